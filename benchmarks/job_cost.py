"""Measure what a job adds to its training: `python benchmarks/job_cost.py [--quick] [--out FILE.md]`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import page

from resnet_lab.data.synthetic import write_synthetic
from resnet_lab.run_folder import RunFolder

# a job that records when it reaches each phase, and how long it writes each file
JOB = """
import json, sys, time
begun = float(sys.argv.pop(1))
from resnet_lab.quick_imports import quick_imports
with quick_imports():
    from resnet_lab import callbacks, checkpoints, job, run_folder, training
    from resnet_lab.module import Classifier
spent, marks = {}, {"imports": time.time() - begun}
def timed(owner, name, label):
    original = getattr(owner, name)
    def call(*args, **kwargs):
        start = time.perf_counter()
        result = original(*args, **kwargs)
        spent.setdefault(label, []).append(time.perf_counter() - start)
        return result
    setattr(owner, name, call)
timed(checkpoints.AtomicCheckpointIO, "save_checkpoint", "checkpoint")
timed(checkpoints.EpochRows, "write", "tables")
timed(run_folder.RunFolder, "update_status", "status")
timed(callbacks.Observer, "on_validation_end", "pictures")
def mark(name, label):
    original = getattr(Classifier, name, lambda self: None)
    setattr(Classifier, name, lambda self: (marks.__setitem__(label, time.time() - begun), original(self))[1])
mark("on_train_start", "ready")
mark("on_fit_end", "trained")
code = job.main()
marks["ended"] = time.time() - begun
json.dump({"spent": spent, "marks": marks}, open("cost.json", "w"))
sys.exit(code)
"""
# a job as a new process before imports were shortened, with which forked jobs are compared
AS_BEFORE = """
import contextlib, runpy
from resnet_lab import quick_imports
quick_imports.quick_imports = contextlib.nullcontext
runpy.run_module("resnet_lab.job", run_name="__main__", alter_sys=True)
"""
QUESTION = "How much time does a job need besides its training?"
METHOD = """
Jobs run one at a time, without workers, on drawn photographs of 64 px that were checked before. Each job trains three
epochs with validation. An epoch writes two checkpoints if it is the best so far, otherwise one.

- "Start" is the time from the start of the process to its first training step. Imports take most of it.
- "A checkpoint" is the time to serialize it, write it to a temporary file, wait for the disk and rename it.
- "End" is the time from the end of training to the end of the process. It includes a test of the selected checkpoint on
  both splits, predictions, confusion matrices with their pictures, and class reports.
- "A done job, rerun" is `resnet-lab train` on a done folder.
- The jobs of a sweep are at smoke scale and 32 px: a few steps, one epoch. On Linux, a local sweep forks its jobs from
  a process that has imported PyTorch once. "Each a new process" creates the same folders with `start=false`, and runs
  `python -m resnet_lab.job` on each, with usual imports, as when the goal was set. Both times include the start of the
  command and its check.
"""


def cost_of(folder: Path, overrides: list[str]) -> dict[str, dict[str, list[float] | float]]:
    """Create a run folder, run its job, and read the recorded times."""
    subprocess.run([sys.executable, "-m", "resnet_lab", "train", *overrides, "start=false"], cwd=folder, check=True)
    run = folder / "run"
    command = [sys.executable, "-c", JOB, str(time.time()), str(run)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "cost.json").read_text())


def rerun_seconds(folder: Path, overrides: list[str]) -> float:
    """Run the same command on a done folder and return its seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "resnet_lab", "train", *overrides]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def sweep_seconds(folder: Path, overrides: list[str], jobs: int, forked: bool) -> float:
    """Run a sweep over seeds on a new folder, and return its seconds.

    Args:
        folder: working folder.
        overrides: of each job.
        jobs: number of seeds.
        forked: as the sweep does it; if not, it only creates the folders, and each job is started as a new process.
    """
    shutil.rmtree(folder / "sweep", ignore_errors=True)
    seeds = f"seed={','.join(map(str, range(jobs)))}"
    command = [sys.executable, "-m", "resnet_lab", "train", "-m", *overrides, seeds, "sweep_dir=sweep"]
    begun = time.perf_counter()
    subprocess.run(command + ([] if forked else ["start=false"]), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for config in sorted((folder / "sweep").glob("*/config.yaml")) if not forked else ():
        job = [sys.executable, "-c", AS_BEFORE, str(config.parent)]
        subprocess.run(job, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def sweeps(folder: Path, quick: bool) -> list[page.Row]:
    """Return the rows of sweeps with jobs of a few steps, forked and as new processes, in turns."""
    jobs, rows = 2 if quick else 6, []
    common = ["data=retinopathy", "data.root=data", "data.cache_dir=cache", "data.image_size=32", "data.num_workers=0"]
    common += ["trainer=cpu", "trainer.max_epochs=1", "scale=smoke"]
    networks = {"CIFAR ResNet-20": ["model=resnet_cifar", "model.depth=20"]}
    networks |= {} if quick else {"ResNet-18": ["model.depth=18"]}
    for name, network in networks.items():
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(1 if quick else 3):
            for forked, seconds in times.items():
                seconds.append(sweep_seconds(folder, [*network, *common], jobs, forked))
        rows += [
            page.Row(f"{jobs} jobs of {name}, forked by the sweep", "s", times[True]),
            page.Row(f"{jobs} jobs of {name}, each a new process", "s", times[False]),
            page.Row(f"forked / new processes, {name}", "ratio", page.ratios(times[True], times[False]), "≤ 0.4"),
        ]
    return rows


def measure(folder: Path, quick: bool) -> list[page.Row]:
    """Return all rows for a ResNet-18 (if `quick`, for a CIFAR ResNet-8, measured once)."""
    write_synthetic(folder / "data", 0, 100, 30, 64, "studies", processes=1)
    network = ["model=resnet_cifar", "model.depth=8"] if quick else ["model.depth=18"]
    overrides = [*network, "data=retinopathy", "data.root=data", "data.cache_dir=cache", "data.image_size=64"]
    overrides += ["data.eye_crop=false", "data.num_workers=0", "trainer=cpu", "trainer.max_epochs=3", "sweep_dir=run"]
    costs, repeats, size = [], [], 0
    for _ in range(1 if quick else 6):
        shutil.rmtree(folder / "run", ignore_errors=True)
        costs.append(cost_of(folder, overrides))
        repeats.append(rerun_seconds(folder, overrides))
        size = RunFolder(folder / "run").last_checkpoint.stat().st_size
    if not quick:
        costs, repeats = costs[1:], repeats[1:]  # the first run fills the caches

    def spent(label: str) -> list[float]:
        return [1000 * mean(cost["spent"][label]) for cost in costs]  # type: ignore[arg-type]

    def between(start: str, end: str) -> list[float]:
        return [cost["marks"][end] - (cost["marks"][start] if start else 0.0) for cost in costs]  # type: ignore[operator]

    return [
        page.Row("start, to the first step", "s", between("", "ready")),
        page.Row("of which imports", "s", between("", "imports")),
        page.Row(f"a checkpoint of {size / 2**20:.0f} MB", "ms", spent("checkpoint")),
        page.Row("metrics.csv of an epoch", "ms", spent("tables")),
        page.Row("status.json of an epoch", "ms", spent("status")),
        page.Row("pictures of an epoch", "ms", spent("pictures")),
        page.Row("end: test, predictions, pictures", "s", between("trained", "ended")),
        page.Row("a done job, rerun", "s", repeats),
        *sweeps(folder, quick),
    ]


if __name__ == "__main__":
    page.main(__doc__, "What a job adds to its training", QUESTION, METHOD, measure)
