"""`resnet-lab status DIR …`: the progress of a sweep's jobs (no torch here)."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from resnet_lab.axes import labels_in, texts_of
from resnet_lab.command_line import run_command
from resnet_lab.errors import UserError, count, printable
from resnet_lab.keys import WIDTH
from resnet_lab.run_folder import UNTRAINED, RunFolder, closed_folders, find_runs, jobs_file, list_jobs
from resnet_lab.terminal import duration, left
from resnet_lab.trust import OPTION
from resnet_lab.verbs import STATES, VERBS

TIMED = ("done", "running", "interrupted")  # states with a time per epoch
SHOWN = 20  # jobs that the end of a sweep lists
SAME = "the same error"


class JobState(NamedTuple):
    """One job of a sweep."""

    name: str
    state: str
    note: str = ""


def state_of(run: RunFolder) -> JobState:
    """Return the state of a job from the files of its run folder."""
    name = run.path.name
    try:
        status, config = run.read_status(), run.read_config()
        if status["state"] not in (*STATES,):  # a list in a damaged file has no hash
            raise ValueError(
                f"status.json: state is {str(status['state'])[:40]!r}; it must be one of {', '.join(STATES)}"
            )
        if status["state"] not in ("running", "done") and run.is_locked():
            return JobState(name, "running", "starting")
        return JobState(name, status["state"], _note(status, config))
    except (
        UserError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
    ) as error:  # one damaged job must not hide the others
        return JobState(name, "unreadable", str(error).partition("\n")[0].replace(f"{run.path}/", ""))


def _note(status: dict[str, Any], config: dict[str, Any]) -> str:
    if status["state"] == "failed":
        return str(status["error"]).partition("\n")[0]
    if status["state"] == "done":
        return duration(status.get("seconds", 0))
    if status["state"] == "created":
        return "not started"
    if "epoch" not in status:
        return "in its first epoch" if status["state"] == "running" else "before the end of its first epoch"
    if status["epoch"] == UNTRAINED:
        return "no training"
    finished, epochs = status["epoch"] + 1, config["trainer"]["max_epochs"]
    note = f"{finished} of {count(epochs, 'epoch')}"
    if finished == epochs:
        return f"{note}, not tested"
    if status["state"] == "running":
        seconds = status["seconds"] / finished
        note += f", {duration(seconds)} each, about {duration(seconds * (epochs - finished))} left"
    return note


def states_of(folder: Path) -> list[JobState]:
    """Return all jobs at or below a folder; see `sweeps_in`."""
    return [job for jobs in sweeps_in(folder).values() for job in jobs]


def sweeps_in(folder: Path) -> dict[Path, list[JobState]]:
    """Return folder of a sweep → its jobs in the order of the commands, including those that have not begun.

    Args:
        folder: folder of the sweeps, or above them.

    Raises:
        UserError: the folder does not exist, cannot be read, or contains neither a run nor a sweep.
    """
    closed = closed_folders([str(folder)])
    if str(folder) in closed:
        raise UserError(f"{folder}: no permission to read it")
    planned = {file.parent.resolve(): list_jobs(file.parent) for file in sorted(folder.rglob(jobs_file(folder).name))}
    try:
        runs = find_runs([folder])
    except UserError:
        if not planned and not closed:
            raise
        runs = []
    begun = {run.path for run in runs}
    hidden = [Path(each).resolve() for each in closed if Path(each).resolve() not in begun]
    known = {*begun, *hidden}
    sweeps: dict[Path, list[JobState]] = {place: [] for place in planned}
    for run in runs:
        sweeps.setdefault(run.path.parent, []).append(state_of(run))
    for place, names in planned.items():
        absent = [name for name in names if (place / name).resolve() not in known]
        sweeps[place] += [
            JobState(name, "unreadable", "config.yaml is missing")
            if RunFolder(place / name).status_file.exists()
            else JobState(name, "planned")
            for name in absent
        ]
        place_of = {name: number for number, name in enumerate(names)}
        sweeps[place].sort(key=lambda job: place_of.get(job.name, len(place_of)))
    for each in hidden:
        sweeps.setdefault(each.parent, []).append(JobState(each.name, "unreadable", "no permission to read it"))
    return sweeps


def time_left(place: Path, jobs: Sequence[JobState]) -> float | None:
    """Return the seconds until all jobs of a sweep are done, except failed ones; None if unknown or none is left.

    A job that has not begun is expected to take as long as the others do on average, with its start.
    """
    if all(job.state in ("done", "failed", "unreadable") for job in jobs) or not jobs_file(place).is_file():
        return None
    records = [(job.state, RunFolder(place / job.name)) for job in jobs if job.state in TIMED]
    statuses = [(state, run.read_status(), {} if state == "done" else run.read_config()) for state, run in records]
    starts = [_start_of(status) for state, status, _ in statuses if state == "done"]
    start = mean([each for each in starts if each is not None] or [0.0])
    takes, rest, waiting = list[float](), 0.0, sum(job.state in ("planned", "created") for job in jobs)
    for state, status, config in statuses:
        finished, seconds = status.get("epoch", UNTRAINED) + 1, status.get("seconds", 0.0)
        if state == "done":
            takes.append(seconds + start)
        elif finished:
            takes.append(seconds / finished * config["trainer"]["max_epochs"] + start)
            rest += takes[-1] - seconds - start * (state == "running")
        else:
            waiting += 1
    if not takes or not (rest or waiting):
        return None
    return (rest + waiting * mean(takes)) / max(1, sum(job.state == "running" for job in jobs))


def _start_of(status: Mapping[str, Any]) -> float | None:
    """Return the seconds of a done job before its training: imports, data and network; None if unknown."""
    if status.get("starts") != 1 or not {"started", "finished"} <= {*status}:
        return None
    try:
        took = datetime.fromisoformat(status["finished"]) - datetime.fromisoformat(status["started"])
    except (TypeError, ValueError):  # damaged
        return None
    return max(0.0, took.total_seconds() - float(status.get("seconds", 0.0)))


def labels_of(place: Path) -> dict[str, str]:
    """Return folder name → label of each job of a sweep; empty if the folder contains no sweep."""
    if not jobs_file(place).is_file():
        return {}
    for file in sorted(place.glob("*/config.yaml")):
        with suppress(UserError, OSError):  # damaged: try the next one
            return labels_in(place, texts_of(RunFolder(file.parent).read_config()["labels"]))
    return labels_in(place, {})


def rows(jobs: Sequence[JobState], labels: Mapping[str, str]) -> list[str]:
    """Return state, label and note of each job, in lines of at most 80 characters; each error is shown once."""
    width = max((len(job.state) for job in jobs), default=0) + 2
    longest = max((len(labels.get(job.name, job.name)) for job in jobs), default=0)
    lines, errors = list[str](), set[str]()
    for job in jobs:
        head = f"{job.state:<{width}}{labels.get(job.name, job.name)}"
        note = SAME if job.note in errors else job.note
        errors |= {job.note} if job.state == "failed" else set()
        line = f"{head:<{width + longest}}  {note}".rstrip()
        lines += [line] if len(line) <= WIDTH else [*_wrapped(head, "", width), *_wrapped(note, " " * width, width)]
    return lines


def _wrapped(text: str, first: str, others: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * others,
        break_on_hyphens=False,
        break_long_words=False,
    )


def table(jobs: Sequence[JobState], labels: Mapping[str, str] | None = None, seconds: float | None = None) -> str:
    """Return the jobs, the number of jobs in each state, and the time left in seconds."""
    rest = "" if seconds is None else f"; about {left(seconds)}"
    return "\n".join([*rows(jobs, labels or {}), f"{counts_of(jobs)}{rest}"])


def counts_of(jobs: Sequence[JobState]) -> str:
    """Return `3 jobs: 2 done, 1 failed`."""
    counts = Counter(job.state for job in jobs)
    ordered = sorted(counts, key=lambda state: [*STATES, state].index(state))
    return f"{count(len(jobs), 'job')}: {', '.join(f'{counts[state]} {state}' for state in ordered) or 'none'}"


def overview(*folders: Path) -> str:
    """Return a table for each sweep at or below some folders, each with its folder if there are several."""
    sweeps: dict[Path, list[JobState]] = {}
    for folder in folders:
        for place, jobs in sweeps_in(folder).items():
            known = sweeps.setdefault(place, [])
            known += [job for job in jobs if job not in known]
    tables = {place: table(jobs, labels_of(place), time_left(place, jobs)) for place, jobs in sweeps.items()}
    if len(tables) < 2:
        return "".join(tables.values())
    return "\n\n".join(f"{_from_here(place)}\n{text}" for place, text in tables.items())


def _from_here(place: Path) -> Path:
    return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place


def summary(sweep_dir: Path, command: Sequence[str], seconds: float, names: Sequence[str] = ()) -> str:
    """Return the end of a sweep: counts, what is not done and why, and what to type next.

    Args:
        sweep_dir: its folder.
        command: the words of the command line.
        seconds: duration of the command.
        names: folder names of the command's jobs; empty: all jobs of the sweep.
    """
    jobs = sweeps_in(sweep_dir).get(sweep_dir.resolve(), [])
    unfinished, done = [job for job in jobs if job.state != "done"], [job for job in jobs if job.state == "done"]
    undone = [job for job in unfinished if job.name in names or not names]
    others = [job for job in unfinished if job not in undone]
    lines = ["", f"{sweep_dir}: {counts_of(jobs)}; this command took {duration(seconds)}"]
    lines += _some_rows(undone, sweep_dir)
    if others:
        lines += ["jobs outside this command (to drop one, remove its folder and its line in jobs.txt):"]
        lines += _some_rows(others, sweep_dir)
    folder = [] if any(word.startswith("sweep_dir=") for word in command) else [f"sweep_dir={sweep_dir}"]
    if done:
        lines.append(f"compare the jobs:  resnet-lab report {shlex.quote(str(sweep_dir))}")
    if undone and all(job.state == "created" for job in undone):
        trusted = [word for word in command if word.startswith(OPTION)]
        by_hand = ["python", "-m", "resnet_lab.job", str(sweep_dir / undone[0].name), *trusted]
        lines.append(f"start a job:       {shlex.join(by_hand)}")
    elif undone:
        lines.append(f"run the others:    {shlex.join(['resnet-lab', 'train', *command, *folder])}")
    return "\n".join(lines)


def _some_rows(jobs: Sequence[JobState], sweep_dir: Path) -> list[str]:
    more = f"and {len(jobs) - SHOWN} more: resnet-lab status {shlex.quote(str(sweep_dir))}"
    return [*rows(jobs[:SHOWN], labels_of(sweep_dir)), *[more] * (len(jobs) > SHOWN)]


def command(arguments: Sequence[str]) -> None:
    """Show the states of all jobs below the folders."""
    print(printable(overview(*map(Path, VERBS["status"]().read(arguments).DIR))))


if __name__ == "__main__":
    sys.exit(run_command(command))
