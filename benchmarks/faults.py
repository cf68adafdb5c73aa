"""What a sweep survives, tried for real: `python benchmarks/faults.py [--kills 20] [--out docs/results/faults.md]`.

A small sweep is killed with SIGKILL at random moments, as a whole or one of its jobs first, and started again each
time; it has to end with the tables of one that was never killed. Then a disk that fills up (a small one, mounted in a
namespace of its own), a job that has too little memory, and one whose loss is no number.
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
DISK = 6  # MB, for a run that needs a few hundred KB an epoch until it has its pictures
MEMORY = 12  # GB of address space, of which a process with torch takes half


class Kill(NamedTuple):
    """One SIGKILL: after how many seconds, what, and the jobs' states when all were dead."""

    seconds: float
    what: str
    states: str


def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """Start a command of `resnet-lab train` there, its output in a file."""
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen([*TRAIN, *arguments], cwd=folder, stdout=output, stderr=output, **options)  # type: ignore[call-overload]


def jobs_of(folder: Path) -> list[int]:
    """The processes of jobs at work below a folder."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"resnet_lab.job" in command and str(folder).encode() in command:
            processes.append(int(process.name))
    return processes


def kill_once(folder: Path, grid: Sequence[str], dice: random.Random, longest: float) -> Kill:
    """Start the sweep, kill it or a job of it at a random moment, and wait until nothing is at work."""
    process, seconds = start(folder, *grid), dice.uniform(0.5, longest)
    time.sleep(seconds)
    jobs = jobs_of(folder)
    one_job = bool(jobs) and dice.random() < 0.5
    if one_job:
        os.kill(jobs[0], signal.SIGKILL)
        time.sleep(dice.uniform(0, 1))
    process.kill()
    process.wait()
    while jobs_of(folder):
        time.sleep(0.1)
    runs = find_runs([folder / "sweep"]) if list(folder.glob("sweep/*/status.json")) else []
    cut = [str(file) for run in runs for file in run.checkpoints.glob("*.ckpt") if not is_whole(file)]
    assert not cut, f"cut short: {cut}"
    states = [job.state for job in states_of(folder / "sweep")] if (folder / "sweep").is_dir() else []
    assert "running" not in states, states
    return Kill(seconds, "a job, then the sweep" if one_job else "the sweep", ", ".join(states) or "nothing begun")


def results(folder: Path) -> dict[str, str]:
    """What a report reads, by the name of the file."""
    names = ("metrics.csv", "predictions_test.csv", "predictions_val.csv", "confusion_matrix_test.csv")
    runs = find_runs([folder / "sweep"])
    return {f"{run.path.name}/{name}": (run.path / name).read_text() for run in runs for name in names}


def kills(work: Path, number: int, seed: int, epochs: int, workers: int) -> list[Kill]:
    """A sweep killed `number` times and then left alone, against one without loader workers that nobody disturbed.

    Raises:
        AssertionError: a checkpoint was cut short, a dead job was called running, or the results differ.
    """
    whole, broken = work / "whole", work / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    grid = [*GRID, f"trainer.max_epochs={epochs}", f"data.num_workers={workers}"]
    begun = time.monotonic()
    assert start(whole, *grid, "data.num_workers=0").wait() == 0, (whole / "output.txt").read_text()
    longest = (time.monotonic() - begun) / 8  # so that most kills come before the end
    shutil.copytree(whole / "data", broken / "data")
    dice = random.Random(seed)
    done = [kill_once(broken, grid, dice, longest) for _ in range(number)]
    assert start(broken, *grid).wait() == 0, (broken / "output.txt").read_text()
    assert results(broken) == results(whole), "the results differ"
    return done


def full_disk(work: Path) -> list[str]:
    """A run on a disk that fills up, and again after something was removed from it."""
    folder, data = work / "disk", work / "whole" / "data" / "synthetic"
    folder.mkdir()
    run = " ".join([*TRAIN, *SMALL, "trainer.max_epochs=4", f"data.root={data}", "sweep_dir=disk/run"])
    # the last MB but a half is what the run has
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
    """A sweep of a batch that fits and one that does not, in a limited address space."""
    folder = work / "memory"
    shutil.copytree(work / "whole" / "data", folder / "data")
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (MEMORY << 30, MEMORY << 30))
    grid = ["-m", *SMALL, "model=resnet", "model.depth=18", "data.image_size=256", "data.max_images=600"]
    start(folder, *grid, "data.batch_size=600,8", "sweep_dir=sweep", preexec_fn=limit).wait()
    return [f"{job.state}: {job.name}: {job.note}" for job in states_of(folder / "sweep")]


def no_number(work: Path) -> list[str]:
    """A learning rate at which the loss overflows."""
    folder = work / "nan"
    shutil.copytree(work / "whole" / "data", folder / "data")
    start(folder, *SMALL, "trainer.max_epochs=9", "optim.lr=1e30", "optim=sgd", "sweep_dir=run").wait()
    run = RunFolder(folder / "run")
    kept = sorted(file.name for file in run.checkpoints.glob("*.ckpt"))
    return [*(f"{job.state}: {job.note}" for job in states_of(run.path)), f"checkpoints: {', '.join(kept) or 'none'}"]


def tried(name: str, attempt: Callable[[Path], list[str]], work: Path) -> list[str]:
    """A section of the page."""
    return [f"## {name}", "", "```", *attempt(work), "```", ""]


def main(arguments: Sequence[str] | None = None) -> None:
    """Try everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        lines = ["# Faults survived", "", f"`python benchmarks/faults.py --kills {options.kills}`; {origin()}", ""]
        lines += ["## SIGKILL at random moments", ""]
        jobs = f"four jobs of {EPOCHS} short epochs and {options.workers} loader workers each"
        lines += [f"A sweep of {jobs}, started again after each kill.", ""]
        lines += ["| kill | after s | killed | jobs when all was dead |", "|---:|---:|---|---|"]
        for number, kill in enumerate(kills(work, options.kills, options.seed, EPOCHS, options.workers), start=1):
            lines.append(f"| {number} | {kill.seconds:.1f} | {kill.what} | {kill.states} |")
        lines += [
            "",
            "No checkpoint was cut short, no dead job was called running, and the sweep, left alone at last, ended",
        ]
        lines += [
            "with the same metrics, predictions and confusion matrices, byte for byte, as an undisturbed one.",
            "",
        ]
        lines += tried("A disk that fills up", full_disk, work)
        lines += tried("Too little memory for one job", small_memory, work)
        lines += tried("A loss that is no number", no_number, work)
    text = "\n".join(lines).replace(f"{work}/", "")
    print(text)
    if options.out:
        options.out.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
