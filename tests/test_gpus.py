"""Workers of a launcher on one machine get different GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_lab import gpus
from resnet_lab.gpus import VARIABLE, gpus_here, place_on_gpu

ONE = {"accelerator": "auto", "devices": 1}


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with three GPUs, and a folder for its locks."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(gpus, "_own", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    yield
    if gpus._own is not None:
        gpus._own.close()


def test_the_gpus_are_those_of_the_driver_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus_here() == ["0", "1", "2"]
    monkeypatch.setenv(VARIABLE, "2, GPU-8f3c")
    assert gpus_here() == ["2", "GPU-8f3c"]
    monkeypatch.setenv(VARIABLE, " -1")
    assert gpus_here() == []
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", "")
    assert gpus_here() == []


def worker() -> subprocess.Popen[str]:
    code = (
        "import os, sys; from resnet_lab.gpus import place_on_gpu; "
        f"print(place_on_gpu({ONE})); print(os.environ.get({VARIABLE!r}), flush=True); sys.stdin.read()"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout is not None
    return process.stdout.readline().strip(), process.stdout.readline().strip()


def test_each_worker_uses_a_gpu_of_its_own_until_it_ends() -> None:
    workers = [worker() for _ in range(3)]
    found = [lines(each) for each in workers]
    assert sorted(name for _, name in found) == ["0", "1", "2"]
    assert all(f"GPU {int(name) + 1} of 3 ({VARIABLE}={name})" in line for line, name in found)
    assert "all 3 GPUs are in use" in place_on_gpu(ONE)
    assert VARIABLE not in os.environ
    workers[1].communicate()
    assert f"{VARIABLE}={found[1][1]}" in place_on_gpu(ONE)
    assert place_on_gpu(ONE) == ""  # it has one already
    os.environ.pop(VARIABLE)
    for each in workers[::2]:
        each.communicate()


@pytest.mark.parametrize("trainer", [{"accelerator": "cpu"}, {"devices": 2}, {"devices": "auto"}, {"devices": [1]}])
def test_jobs_on_the_cpu_or_on_several_gpus_are_not_placed(trainer: dict[str, object]) -> None:
    assert place_on_gpu(ONE | trainer) == ""
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("before", [None, "1,2"])
@pytest.mark.parametrize("trainer", [{"devices": 2}, {"devices": [1]}])
def test_a_worker_returns_its_gpu_for_other_jobs(
    monkeypatch: pytest.MonkeyPatch, before: str | None, trainer: dict[str, object]
) -> None:
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    monkeypatch.setattr(gpus, "_before", "of another test")
    first = "0" if before is None else "1"
    assert f"{VARIABLE}={first}" in place_on_gpu(ONE)
    assert place_on_gpu(ONE | {"accelerator": "cpu"}) == ""
    assert os.environ[VARIABLE] == first  # a job on the CPU changes nothing
    assert place_on_gpu(ONE | trainer) == ""
    assert os.environ.get(VARIABLE) == before
    other = worker()
    assert lines(other)[1] == first  # the lock is free
    other.communicate()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / f"resnet_lab_gpus_{os.getuid()}").write_text("a file")
    assert place_on_gpu(ONE) == (
        f"this worker shares the first of 3 GPUs: cannot lock one in {tmp_path}/resnet_lab_gpus_{os.getuid()} "
        "(File exists); set TMPDIR to a folder that can be written"
    )
    assert VARIABLE not in os.environ


def test_a_single_gpu_needs_no_placing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    assert place_on_gpu(ONE) == ""
    assert os.environ[VARIABLE] == "3"
