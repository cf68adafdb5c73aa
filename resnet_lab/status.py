"""`resnet-lab status DIR …`: how far the jobs of a sweep are (no torch here)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_lab.command_line import run_command
from resnet_lab.errors import UserError, count, printable
from resnet_lab.run_folder import UNTRAINED, RunFolder, closed_folders, find_runs, jobs_file, list_jobs
from resnet_lab.terminal import duration
from resnet_lab.verbs import VERBS

STATES = ("done", "running", "interrupted", "failed", "created", "missing", "unreadable")


class JobState(NamedTuple):
    """One job of a sweep."""

    name: str
    state: str
    note: str = ""


def state_of(run: RunFolder) -> JobState:
    """What the files of a run folder say about its job."""
    name = run.path.name
    try:
        status, config = run.read_status(), run.read_config()
        if status["state"] not in STATES:
            raise ValueError(
                f"status.json: state holds {str(status['state'])[:40]!r}, and not one of {', '.join(STATES)}"
            )
        return JobState(name, status["state"], _note(status, config))
    except (UserError, OSError, KeyError, TypeError, ValueError, ArithmeticError) as error:  # of one job, not of all
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
        return "trains no epoch"
    finished, epochs = status["epoch"] + 1, config["trainer"]["max_epochs"]
    note = f"epoch {finished} of {epochs}"
    if status["state"] == "running":
        seconds = status["seconds"] / finished
        note += f", {duration(seconds)} an epoch, about {duration(seconds * (epochs - finished))} left"
    return note


def states_of(folder: Path) -> list[JobState]:
    """All jobs at or below a folder, with those that a sweep there was asked for and has not begun.

    Raises:
        UserError: the folder does not exist, may not be read, or holds neither a run nor a sweep.
    """
    closed = closed_folders([str(folder)])
    if str(folder) in closed:
        raise UserError(f"{folder}: no permission to read it")
    sweeps = {file.parent: list_jobs(file.parent) for file in sorted(folder.rglob(jobs_file(folder).name))}
    try:
        runs = find_runs([folder])
    except UserError:
        if not sweeps and not closed:
            raise
        runs = []
    begun = {run.path for run in runs}
    missing = [name for place, names in sweeps.items() for name in names if (place / name).resolve() not in begun]
    hidden = [Path(each).name for each in closed if Path(each).resolve() not in begun]
    unread = [JobState(name, "unreadable", "no permission to read it") for name in hidden]
    missing = [name for name in missing if name not in hidden]
    return [state_of(run) for run in runs] + [JobState(name, "missing") for name in missing] + unread


def table(jobs: Sequence[JobState]) -> str:
    """One line a job, and how many there are of each state."""
    width = max((len(job.state) for job in jobs), default=0)
    longest = max((len(job.name) for job in jobs), default=0)
    lines = [f"{job.state:<{width}}  {job.name:<{longest}}  {job.note}".rstrip() for job in jobs]
    counts = Counter(job.state for job in jobs)
    ordered = sorted(counts, key=lambda state: STATES.index(state) if state in STATES else len(STATES))
    total = count(len(jobs), "job")
    return "\n".join([*lines, f"{total}: {', '.join(f'{counts[state]} {state}' for state in ordered) or 'none'}"])


def command(arguments: Sequence[str]) -> None:
    """Show the states of all jobs below the folders."""
    for folder in VERBS["status"]().read(arguments).DIR:
        print(printable(table(states_of(Path(folder)))))


if __name__ == "__main__":
    sys.exit(run_command(command))
