"""What this process takes from its machine."""

from __future__ import annotations

import ctypes
import platform
import resource
from collections.abc import Callable

import pytest

from resnet_lab import evaluate, job, predict
from resnet_lab.environment import keep_freed_memory, return_freed_memory
from resnet_lab.run_folder import RunFolder

BLOCKS, SIZE = 4, 24 * 2**20  # number and bytes; in all more than glibc keeps by default


def page_faults() -> int:
    """Return how often the system had to give this process a page while it filled and freed blocks."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [library.malloc(SIZE) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in blocks:
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not that of glibc")
def test_freed_blocks_are_used_again_until_they_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(key, raising=False)
    assert keep_freed_memory()
    page_faults()
    assert page_faults() < 100
    return_freed_memory()
    assert page_faults() > 1000  # of 24,576 pages, some of which other freed memory may replace


def test_a_limit_of_the_address_space_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**33, resource.RLIM_INFINITY))
    assert not keep_freed_memory()


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
