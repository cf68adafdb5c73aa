"""What this process takes from its machine."""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable

import numpy as np
import pytest

from resnet_lab import evaluate, job, predict
from resnet_lab.environment import keep_freed_memory
from resnet_lab.run_folder import RunFolder

BLOCK = 64 * 2**20  # bytes; glibc returns each block of this size by default


def page_faults_of_a_block() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(BLOCK, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not that of glibc")
def test_a_freed_block_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(key, raising=False)
    assert keep_freed_memory()
    page_faults_of_a_block()
    assert page_faults_of_a_block() < 100  # instead of one for each of its 16,384 pages


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_user_come_first(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "131072")
    assert not keep_freed_memory()


class Reached(Exception):
    """Ends a command."""


def reached() -> None:
    raise Reached


def test_jobs_keep_freed_memory(make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["job", str(make_run().path)])
    monkeypatch.setattr("resnet_lab.environment.keep_freed_memory", reached)
    with pytest.raises(Reached):
        job.main()


@pytest.mark.parametrize("verb", [evaluate, predict])
def test_evaluations_and_predictions_keep_freed_memory(monkeypatch: pytest.MonkeyPatch, verb: object) -> None:
    monkeypatch.setattr(verb, "keep_freed_memory", reached)
    with pytest.raises(Reached):
        verb.command(["run", "images"] if verb is predict else ["run"])  # type: ignore[attr-defined]
