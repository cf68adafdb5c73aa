"""What this process takes from its machine."""

from __future__ import annotations

import ctypes
import platform
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_lab import environment, evaluate, job, predict
from resnet_lab.environment import free_memory, keep_freed_memory, return_freed_memory
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


@pytest.mark.parametrize(
    ("version", "line", "limits", "free"),
    [
        (2, "0::/", {"": "1000"}, 1000 - 700 + 600),
        (2, "0::/user.slice/job", {"": "max", "user.slice": "900", "user.slice/job": "950"}, 900 - 700 + 600),
        (2, "0::/user.slice/job", {"user.slice": "950", "user.slice/job": "900"}, 900 - 700 + 600),
        (2, "0::/../../other", {"": "1000"}, 1000 - 700 + 600),
        (1, "4:cpu,memory:/docker/abc\n0::/", {"": "1000"}, 1000 - 700 + 600),  # the root is the container's own
        (1, "4:memory:/slurm/job:1\n0::/", {"": "2000", "slurm/job:1": "800"}, 800 - 700 + 600),
        (1, "", {"": "50"}, 0),
    ],
)
def test_the_smallest_limit_of_the_cgroups_counts_without_cached_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, line: str, limits: dict[str, str], free: int
) -> None:
    root = tmp_path / "cgroup"
    place, limit, usage, cache = (
        (root, "memory.max", "memory.current", "inactive_file")
        if version == 2
        else (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    for name, most in limits.items():
        folder = place / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text("700\n")
        (folder / "memory.stat").write_text(f"file 650\n{cache} 600\n")
    (tmp_path / "own").write_text(line)
    monkeypatch.setattr(environment, "OWN_CGROUPS", tmp_path / "own")
    roots = [(name, root / folder.relative_to("/sys/fs/cgroup"), *rest) for name, folder, *rest in environment.CGROUPS]
    monkeypatch.setattr(environment, "CGROUPS", roots)
    assert free_memory() == free


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


@pytest.mark.parametrize(("given", "cores", "expected"), [(None, 2, 2), (None, 64, 3), ("3", 2, 3)])
def test_a_container_limits_the_threads(
    monkeypatch: pytest.MonkeyPatch, given: str | None, cores: int, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr("resnet_lab.processes.cores", lambda: cores)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        environment.limit_threads()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
