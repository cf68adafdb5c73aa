"""`resnet-lab status`: how far the jobs of a sweep are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from fake_data import refusal

from resnet_lab import status
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.status import JobState, state_of, states_of, table


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "sweep" / "depth-18")
    run.path.mkdir(parents=True)
    run.config_file.write_text(yaml.safe_dump({"trainer": {"max_epochs": 10}}))
    return run


def test_every_state_has_its_line(run: RunFolder) -> None:
    run.update_status(state="created")
    assert state_of(run) == JobState("depth-18", "created", "not started")
    run.update_status(state="running")
    assert state_of(run) == ("depth-18", "interrupted", "before the end of its first epoch")  # nobody holds the lock
    with run.lock():
        assert state_of(run) == ("depth-18", "running", "in its first epoch")
        run.update_status(epoch=3, seconds=200.0)
        assert state_of(run) == ("depth-18", "running", "epoch 4 of 10, 50 s an epoch, about 5 min left")
    assert state_of(run) == ("depth-18", "interrupted", "epoch 4 of 10")
    run.update_status(state="running", epoch=-1)
    with run.lock():
        assert state_of(run) == ("depth-18", "running", "trains no epoch")
    run.update_status(state="failed", error="no such file\nmore")
    assert state_of(run) == ("depth-18", "failed", "no such file")
    run.update_status(state="done", seconds=9000.0)
    assert state_of(run) == ("depth-18", "done", "2 h 30 min")
    run.status_file.write_text("{")
    assert state_of(run).state == "unreadable"
    assert state_of(run).note.startswith("status.json is damaged (")


def test_a_child_that_outlives_the_job_does_not_hold_its_lock(run: RunFolder) -> None:
    with run.lock():
        child = get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        assert run.is_locked()
    try:
        deadline = time.monotonic() + 20
        while run.is_locked() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not run.is_locked()
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_what_reads_no_further_is_no_error(run: RunFolder) -> None:
    run.update_status(state="created")
    command = [sys.executable, "-m", "resnet_lab.status", str(run.path)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_jobs_that_were_asked_for_and_not_begun_are_missing(run: RunFolder) -> None:
    run.update_status(state="created")
    sweep = run.path.parent
    assert list_jobs(sweep) == []
    assert list_jobs(sweep, ["depth-18", "depth-34"]) == ["depth-18", "depth-34"]
    assert list_jobs(sweep, ["depth-50", "depth-34"]) == ["depth-18", "depth-34", "depth-50"]  # a sweep that grew
    assert [(job.name, job.state) for job in states_of(sweep.parent)] == [
        ("depth-18", "created"),
        ("depth-34", "missing"),
        ("depth-50", "missing"),
    ]
    assert table(states_of(sweep)).splitlines()[-1] == "3 jobs: 1 created, 2 missing"


def test_a_sweep_that_has_begun_nothing_is_all_missing(tmp_path: Path) -> None:
    list_jobs(tmp_path / "sweep", ["a", "b"])
    assert [job.state for job in states_of(tmp_path / "sweep")] == ["missing", "missing"]


def test_an_empty_list_of_jobs_is_none(tmp_path: Path) -> None:
    (tmp_path / "jobs.txt").touch()
    assert table(states_of(tmp_path)) == "0 jobs: none"


def test_a_folder_without_runs_is_one_error(tmp_path: Path) -> None:
    assert "no run" in refusal(status.command, [str(tmp_path)])
    assert "is not a folder" in refusal(status.command, [str(tmp_path / "nowhere")])
    assert "resnet-lab status --help" in refusal(status.command, [])


def test_the_verb_prints_them(run: RunFolder) -> None:
    run.update_status(state="failed", error="out of memory")
    command = [sys.executable, "-m", "resnet_lab", "status", str(run.path.parent)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["failed  depth-18  out of memory", "1 job: 1 failed"]


@pytest.mark.parametrize(
    "odd",
    ['"state": 5', '"state": null', '"state": {"a": []}', '"state": "finished"']
    + [f'"state": "done", "seconds": {value}' for value in ("NaN", "Infinity", "null", '"x"', "[]", "{}")],
)
def test_an_odd_status_is_that_of_one_job_and_the_others_are_shown(tmp_path: Path, odd: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("trainer: {max_epochs: 1}\n")
        (tmp_path / name / "status.json").write_text('{"state": "done", "seconds": 5}')
    (tmp_path / "b" / "status.json").write_text(f"{{{odd}}}")
    (tmp_path / "jobs.txt").write_bytes(b"a\nb\n\xff\xfe\n")
    good, bad, *missing = states_of(tmp_path)
    assert good == ("a", "done", "5 s")
    assert bad.state == "unreadable"
    assert [job.state for job in missing] == ["missing"]
    assert table([good, bad, *missing]).endswith("3 jobs: 1 done, 1 missing, 1 unreadable")
