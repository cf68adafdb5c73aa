"""`resnet-lab status`: the progress of the jobs of a sweep."""

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
from waiting import PATIENCE, wait_for

from resnet_lab import status
from resnet_lab.axes import note_jobs
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.status import JobState, overview, state_of, states_of, summary, sweeps_in, table, time_left


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
    assert state_of(run) == ("depth-18", "interrupted", "before the end of its first epoch")  # the lock is free
    with run.lock():
        assert state_of(run) == ("depth-18", "running", "in its first epoch")
        run.update_status(epoch=3, seconds=200.0)
        assert state_of(run) == ("depth-18", "running", "4 of 10 epochs, 50 s each, about 5 min left")
    assert state_of(run) == ("depth-18", "interrupted", "4 of 10 epochs")
    run.update_status(epoch=9)
    assert state_of(run) == ("depth-18", "interrupted", "10 of 10 epochs, not tested")
    run.update_status(epoch=3)
    run.update_status(state="running", epoch=-1)
    with run.lock():
        assert state_of(run) == ("depth-18", "running", "no training")
    run.update_status(state="failed", error="no such file\nmore")
    with run.lock():  # a process is loading PyTorch
        assert state_of(run) == ("depth-18", "running", "starting")
    assert state_of(run) == ("depth-18", "failed", "no such file")
    run.update_status(state="done", seconds=9000.0)
    assert state_of(run) == ("depth-18", "done", "2 h 30 min")
    run.update_status(state=["done"])
    assert state_of(run).note.startswith("status.json: state is \"['done']\"; it must be one of done, ")
    run.status_file.write_text("{")
    assert state_of(run).state == "unreadable"
    assert state_of(run).note.startswith("status.json is damaged (")


def test_a_child_that_outlives_the_job_does_not_hold_its_lock(run: RunFolder) -> None:
    with run.lock():
        child = get_context("fork").Process(target=time.sleep, args=(2 * PATIENCE,))
        child.start()
        assert run.is_locked()
    try:
        wait_for(lambda: not run.is_locked())
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_closed_pipe_is_not_an_error(run: RunFolder) -> None:
    run.update_status(state="created")
    command = [sys.executable, "-m", "resnet_lab.status", str(run.path)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_requested_jobs_that_have_not_started_are_planned(run: RunFolder) -> None:
    run.update_status(state="created")
    sweep = run.path.parent
    assert list_jobs(sweep) == []
    assert list_jobs(sweep, ["depth-18", "depth-34"]) == ["depth-18", "depth-34"]
    assert list_jobs(sweep, ["depth-50", "depth-34"]) == ["depth-18", "depth-34", "depth-50"]  # the sweep grew
    assert [(job.name, job.state) for job in states_of(sweep.parent)] == [
        ("depth-18", "created"),
        ("depth-34", "planned"),
        ("depth-50", "planned"),
    ]
    assert table(states_of(sweep)).splitlines()[-1] == "3 jobs: 1 created, 2 planned"
    (sweep / "depth-34").mkdir()
    RunFolder(sweep / "depth-34").update_status(state="done")
    assert states_of(sweep)[1] == JobState("depth-34", "unreadable", "config.yaml is missing")


def test_all_jobs_of_an_unstarted_sweep_are_planned(tmp_path: Path) -> None:
    list_jobs(tmp_path / "sweep", ["a", "b"])
    assert [job.state for job in states_of(tmp_path / "sweep")] == ["planned", "planned"]


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
def test_an_invalid_status_affects_only_its_job(tmp_path: Path, odd: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("trainer: {max_epochs: 1}\n")
        (tmp_path / name / "status.json").write_text('{"state": "done", "seconds": 5}')
    (tmp_path / "b" / "status.json").write_text(f"{{{odd}}}")
    (tmp_path / "jobs.txt").write_bytes(b"a\nb\n\xff\xfe\n")
    good, bad, *planned = states_of(tmp_path)
    assert good == ("a", "done", "5 s")
    assert bad.state == "unreadable"
    assert [job.state for job in planned] == ["planned"]
    assert table([good, bad, *planned]).endswith("3 jobs: 1 done, 1 planned, 1 unreadable")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a sweep of eight jobs: four are done, one has failed, one is running, two are planned."""
    monkeypatch.chdir(tmp_path)
    grid = {
        f"depth-{depth}_pretrained-{weights}_seed-{seed}": [
            "experiment=mine",
            f"model.pretrained={weights}",
            f"model.depth={depth}",
            f"seed={seed}",
        ]
        for depth in (18, 34)
        for weights in ("none", "imagenet")
        for seed in (0, 1)
    }
    list_jobs(Path("sweep"), grid)
    note_jobs(Path("sweep"), grid)
    labels = {"model.pretrained": {"none": "scratch", "imagenet": "ImageNet"}}
    for number, name in enumerate(list(grid)[:6]):
        run = RunFolder(Path("sweep", name))
        run.path.mkdir()
        run.config_file.write_text(yaml.safe_dump({"trainer": {"max_epochs": 10}, "labels": labels}))
        run.update_status(state="done", seconds=100.0, overrides=grid[name])
        if number == 4:
            run.update_status(state="failed", error=f"the disk is full: {'make room and start again, ' * 5}")
        if number == 5:
            run.update_status(state="running", seconds=60.0, epoch=4)
    return tmp_path / "sweep"


def test_jobs_are_named_by_what_varies_with_the_time_left_for_all(sweep: Path) -> None:
    lines = overview(Path("sweep")).splitlines()
    assert lines[0].split() == ["done", "scratch", "depth=18", "seed=0", "100", "s"] or "2 min" in lines[0]
    assert any(line.startswith("planned") and "ImageNet depth=34 seed=1" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert "mine" not in overview(Path("sweep"))
    (jobs,) = sweeps_in(sweep).values()
    assert time_left(sweep, jobs) == pytest.approx(60 + 2 * (4 * 100 + 120) / 5)
    assert lines[-1] == "8 jobs: 4 done, 1 interrupted, 1 failed, 2 planned; about 4 min left"
    running = RunFolder(sweep / jobs[5].name)
    with running.lock():
        assert "8 jobs: 4 done, 1 running" in overview(sweep)
    assert time_left(sweep, jobs[:4]) is None  # all are done
    assert time_left(sweep, jobs[6:]) is None  # no job has finished
    doubled = [job._replace(state="running") if place in (3, 5) else job for place, job in enumerate(jobs)]
    assert time_left(sweep, doubled) < time_left(sweep, jobs)  # two at a time


def test_the_time_left_counts_the_starts_of_jobs(sweep: Path) -> None:
    (jobs,) = sweeps_in(sweep).values()
    for job in jobs[:2]:  # each took 40 s longer than its training
        times = {"started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T03:06:25+00:00"}
        RunFolder(sweep / job.name).update_status(starts=1, **times)
    RunFolder(sweep / jobs[2].name).update_status(starts=2, **times)  # an interruption of unknown length
    RunFolder(sweep / jobs[3].name).update_status(starts=1, started=5, finished="now")
    assert time_left(sweep, jobs) == pytest.approx(60 + 40 + 2 * ((4 * 100 + 120) / 5 + 40))
    with RunFolder(sweep / jobs[5].name).lock():
        (running,) = sweeps_in(sweep).values()
        assert time_left(sweep, running) == pytest.approx(60 + 2 * ((4 * 100 + 120) / 5 + 40))


def test_jobs_stand_in_the_order_of_the_commands_at_every_look(sweep: Path) -> None:
    names = list_jobs(sweep)
    assert [job.name for job in states_of(sweep)] == names
    for state in ("created", "done"):
        for name in names[6:]:
            (sweep / name).mkdir(exist_ok=True)
            RunFolder(sweep / name).config_file.write_text("trainer: {max_epochs: 1}")
            RunFolder(sweep / name).update_status(state=state, seconds=1.0)
        assert [job.name for job in states_of(sweep)] == names


def test_several_sweeps_have_a_table_each(sweep: Path, run: RunFolder) -> None:
    other = RunFolder(sweep.parent / "runs" / "alone")
    other.path.mkdir(parents=True)
    other.config_file.write_text(yaml.safe_dump({"trainer": {"max_epochs": 10}}))
    other.update_status(state="done", seconds=9.0)
    lines = overview(sweep.parent).splitlines()
    assert [line for line in lines if line in ("sweep", "runs")] == ["sweep", "runs"]
    assert lines[-2:] == ["done  alone  9 s", "1 job: 1 done"]
    assert overview(sweep, other.path, sweep).splitlines() == lines  # named one by one, and twice


def test_a_sweep_ends_with_its_unfinished_jobs_and_the_next_command(sweep: Path) -> None:
    lines = summary(Path("sweep"), ["-m", "experiment=mine", "seed=0,1"], 7500.0).splitlines()
    assert lines[1] == "sweep: 8 jobs: 4 done, 1 interrupted, 1 failed, 2 planned; this command took 2 h 05 min"
    assert "failed       scratch depth=34 seed=0" in lines
    assert any("the disk is full" in line for line in lines)
    assert not any(line.startswith("done") for line in lines)
    assert max(map(len, lines[2:])) <= 80
    assert lines[-2].endswith("resnet-lab report sweep")
    assert lines[-1].endswith("resnet-lab train -m experiment=mine seed=0,1 sweep_dir=sweep")
    RunFolder(sweep / "depth-34_pretrained-none_seed-0").update_status(state="created")
    typed = summary(Path("sweep"), ["-m", "sweep_dir=sweep"], 1.0).splitlines()
    assert typed[-1].endswith("resnet-lab train -m sweep_dir=sweep")


def test_an_error_of_several_jobs_is_shown_once(run: RunFolder) -> None:
    jobs = [JobState(f"seed-{seed}", "failed", "the disk is full") for seed in (0, 1)]
    others = [
        JobState("seed-2", "failed", "NaN in loss"),
        JobState("seed-3", "done", "9 s"),
        JobState("seed-4", "done", "9 s"),
    ]
    notes = [line.split("seed-")[1][1:].strip() for line in status.rows([*jobs, *others], {})]
    assert notes == ["the disk is full", "the same error", "NaN in loss", "9 s", "9 s"]


def test_a_sweep_lists_jobs_that_its_command_does_not_contain_apart(sweep: Path) -> None:
    names = [name for name in list_jobs(sweep) if "depth-34_pretrained-none_seed-0" not in name]
    lines = summary(Path("sweep"), ["-m", "sweep_dir=sweep"], 1.0, names).splitlines()
    place = lines.index("jobs outside this command (to drop one, remove its folder and its line in jobs.txt):")
    assert lines[place + 1] == "failed  scratch depth=34 seed=0"
    assert not any(line.startswith("failed") for line in lines[:place])
    assert lines[-1].startswith("run the others: ")
    done = [job.name for job in states_of(sweep) if job.state == "done"]
    assert "run the others" not in summary(Path("sweep"), ["-m", "sweep_dir=sweep"], 1.0, done)


@pytest.mark.parametrize(("state", "word"), [("created", "resnet_lab.job sweep/"), ("done", "resnet-lab report sweep")])
def test_jobs_in_the_same_state_end_with_one_command(sweep: Path, state: str, word: str) -> None:
    for name in list_jobs(sweep):
        (sweep / name).mkdir(exist_ok=True)
        RunFolder(sweep / name).config_file.write_text("trainer: {max_epochs: 1}")
        RunFolder(sweep / name).update_status(state=state, seconds=1.0)
    *_, last = summary(Path("sweep"), ["-m"], 1.0).splitlines()
    assert word in last
    assert "resnet-lab train" not in summary(Path("sweep"), ["-m"], 1.0)
