"""Test which faults a sweep survives: `python benchmarks/faults.py [--kills 20] [--out docs/results/faults.md]`.

The script kills a small sweep with SIGKILL at random moments and restarts it each time. It kills the complete sweep, or
first one of its jobs. The sweep must end with the same tables as one that was never killed.

Three further faults follow:

- a disk that fills up (a small one, mounted in its own namespace)
- a job with too little memory
- a job with a NaN loss
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from page import origin

from resnet_lab.checkpoints import is_whole
from resnet_lab.run_folder import RunFolder, find_runs
from resnet_lab.status import states_of

TRAIN = [sys.executable, "-m", "resnet_lab", "train"]
SMALL = ["scale=smoke", "model=resnet_cifar", "model.depth=8", "trainer=cpu", "trainer.progress_bar=false"]
GRID = ["-m", *SMALL, "optim.lr=0.01,0.1", "seed=0,1", "sweep_dir=sweep"]
EPOCHS = 200
DISK = 6  # MB; a run needs a few hundred KB per epoch until it has written its pictures
MEMORY = 8  # GB of address space; a process with torch takes half of it

QUESTION = """\
Does a sweep survive SIGKILL, a full disk, too little memory and a NaN loss? After all kills the same command completes
the sweep, with results that are byte-identical to those of an undisturbed one. The other sections show the output.
"""
SURVIVED = """\
No checkpoint was truncated, and no dead job was shown as running. The last run of the sweep was not killed. Its
metrics, predictions and confusion matrices are byte-identical to those of an undisturbed sweep.
"""


class Kill(NamedTuple):
    """One SIGKILL: its delay in seconds, what was killed, and the states of the jobs afterward."""

    seconds: float
    what: str
    states: str


def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """Start `resnet-lab train` in a folder, with its output in a file."""
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen([*TRAIN, *arguments], cwd=folder, stdout=output, stderr=output, **options)  # type: ignore[call-overload]


def processes_of(folder: Path) -> dict[int, list[str]]:
    """Return the fields of /proc/PID/stat, from the state on, of the supervisor, jobs and workers of a sweep, by ID."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = b"resnet_lab.supervisor" in (process / "cmdline").read_bytes()
            if ours and (process / "cwd").readlink() == folder:
                found[int(process.name)] = (process / "stat").read_text().rpartition(")")[2].split()
    return found


def jobs_of(folder: Path) -> list[int]:
    """Return the IDs of processes that a supervisor forked; each leads a session, which its loader workers do not."""
    found = processes_of(folder)
    forked = {number: fields for number, fields in found.items() if int(fields[1]) in found}  # its parent is here, too
    return [number for number, fields in forked.items() if int(fields[3]) == number]


def kill_once(folder: Path, grid: Sequence[str], dice: random.Random, longest: float) -> Kill:
    """Start the sweep, kill it or one of its jobs at a random moment, and wait until all processes have ended."""
    process, seconds = start(folder, *grid), dice.uniform(0.5, longest)
    time.sleep(seconds)
    begun = find_runs([folder / "sweep"]) if list(folder.glob("sweep/*/status.json")) else []
    jobs = jobs_of(folder) if any(run.is_locked() for run in begun) else []  # not the check before the first job
    one_job = bool(jobs) and dice.random() < 0.5
    if one_job:
        os.kill(jobs[0], signal.SIGKILL)
        time.sleep(dice.uniform(0, 1))
    process.kill()
    process.wait()
    while processes_of(folder):
        time.sleep(0.1)
    runs = find_runs([folder / "sweep"]) if list(folder.glob("sweep/*/status.json")) else []
    cut = [str(file) for run in runs for file in run.checkpoints.glob("*.ckpt") if not is_whole(file)]
    assert not cut, f"truncated: {cut}"
    states = [job.state for job in states_of(folder / "sweep")] if (folder / "sweep").is_dir() else []
    assert "running" not in states, states
    return Kill(seconds, "a job, then the sweep" if one_job else "the sweep", ", ".join(states) or "nothing begun")


def results(folder: Path) -> dict[str, str]:
    """Return the text of each file that a report reads, by file name."""
    names = ("metrics.csv", "predictions_test.csv", "predictions_val.csv", "confusion_matrix_test.csv")
    runs = find_runs([folder / "sweep"])
    return {f"{run.path.name}/{name}": (run.path / name).read_text() for run in runs for name in names}


def kills(work: Path, number: int, seed: int, epochs: int, workers: int) -> list[Kill]:
    """Compare a sweep that is killed up to `number` times before its end with an undisturbed one without workers.

    Raises:
        AssertionError: a checkpoint was truncated, a dead job was shown as running, or the results differ.
    """
    undisturbed, killed = work / "undisturbed", work / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    grid = [*GRID, f"trainer.max_epochs={epochs}", f"data.num_workers={workers}"]
    begun = time.monotonic()
    assert start(undisturbed, *grid, "data.num_workers=0").wait() == 0, (undisturbed / "output.txt").read_text()
    longest = (time.monotonic() - begun) / max(8, 0.6 * number)  # so that the kills come before the end
    shutil.copytree(undisturbed / "data", killed / "data")
    dice = random.Random(seed)
    done: list[Kill] = []
    while len(done) < number and not (done and set(done[-1].states.split(", ")) == {"done"}):
        done.append(kill_once(killed, grid, dice, longest))
    assert start(killed, *grid).wait() == 0, (killed / "output.txt").read_text()
    assert results(killed) == results(undisturbed), "the results differ"
    return done


def full_disk(work: Path) -> list[str]:
    """Run a job on a disk that fills up, then rerun it after some space was freed."""
    folder, data = work / "disk", work / "undisturbed" / "data" / "synthetic"
    folder.mkdir()
    run = " ".join([*TRAIN, *SMALL, "trainer.max_epochs=4", f"data.root={data}", "sweep_dir=disk/run"])
    # the ballast leaves half a MB to the run
    script = f"""
        mount -t tmpfs -o size={DISK}m tmpfs disk && head -c {DISK - 1}500000 /dev/zero > disk/ballast
        {run}; echo "exit code $?"
        {sys.executable} -m resnet_lab status disk/run
        rm disk/ballast
        {run} >/dev/null; echo "exit code $?"
        {sys.executable} -m resnet_lab status disk/run
    """
    command = ["unshare", "-Urm", "sh", "-c", script]
    shown = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    return [line for line in (shown.stdout + shown.stderr).splitlines() if not line.startswith("  ")]


def small_memory(work: Path) -> list[str]:
    """Run a sweep over a batch size that fits and one that does not, in a limited address space."""
    folder = work / "memory"
    shutil.copytree(work / "undisturbed" / "data", folder / "data")
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (MEMORY << 30, MEMORY << 30))
    grid = ["-m", *SMALL, "model=resnet", "model.depth=18", "data.image_size=1024"]
    start(folder, *grid, "data.batch_size=64,2", "sweep_dir=sweep", preexec_fn=limit).wait()
    jobs = states_of(folder / "sweep")
    if {job.state for job in jobs} != {"failed", "done"}:
        raise SystemExit(f"one job should fail for lack of memory: {jobs}")
    return [f"{job.state}: {job.name}: {job.note}" for job in jobs]


def nan_loss(work: Path) -> list[str]:
    """Run a job with a learning rate at which the loss overflows."""
    folder = work / "nan"
    shutil.copytree(work / "undisturbed" / "data", folder / "data")
    start(folder, *SMALL, "trainer.max_epochs=9", "optim.lr=1e30", "optim=sgd", "sweep_dir=run").wait()
    run = RunFolder(folder / "run")
    kept = sorted(file.name for file in run.checkpoints.glob("*.ckpt"))
    return [*(f"{job.state}: {job.note}" for job in states_of(run.path)), f"checkpoints: {', '.join(kept) or 'none'}"]


def tried(name: str, attempt: Callable[[Path], list[str]], work: Path) -> list[str]:
    """Return one section of the page."""
    return [f"## {name}", "", "```", *attempt(work), "```", ""]


def main(arguments: Sequence[str] | None = None) -> None:
    """Test all faults and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        command = f"python benchmarks/faults.py --kills {options.kills}"
        lines = ["# Faults survived", "", QUESTION, origin(command), "", "## SIGKILL at random moments", ""]
        jobs = f"four jobs of {EPOCHS} short epochs and {options.workers} loader workers each"
        lines += [f"A sweep of {jobs} is restarted after each kill.", ""]
        lines += ["| kill | after s | killed | states of the jobs afterward |", "|---:|---:|---|---|"]
        for number, kill in enumerate(kills(work, options.kills, options.seed, EPOCHS, options.workers), start=1):
            lines.append(f"| {number} | {kill.seconds:.1f} | {kill.what} | {kill.states} |")
        lines += ["", SURVIVED]
        lines += tried("A disk that fills up", full_disk, work)
        lines += tried("Too little memory for one job", small_memory, work)
        lines += tried("A NaN loss", nan_loss, work)
    text = "\n".join(lines).replace(f"{work}/", "")
    print(text)
    if options.out:
        options.out.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
