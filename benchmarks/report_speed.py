"""Measure report and status on many generated runs: `python benchmarks/report_speed.py [--quick] [--out FILE.md]`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import page
import pandas as pd

from resnet_lab.axes import note_jobs
from resnet_lab.run_folder import RunFolder, flat, list_jobs

ROOT = Path(__file__).resolve().parents[1]
CONFIGURED = ROOT / "docs" / "results" / "dr_drop_majority"  # its runs have a configuration of usual size
SEEDS = 3
QUESTION = (
    "How long do `resnet-lab report` and `resnet-lab status` take on many runs, and how much memory do they need?"
)
METHOD = """
The generated runs have made-up predictions of five grades, two images per patient, for test and validation (half as
many images), and the metrics of 50 epochs. Each group has three seeds. Each measurement is a new process, imports
included; "CPU" is its user and system time on one thread, "MB" its largest resident memory.
"""


class Cost(NamedTuple):
    """The resources of a process."""

    cpu: float  # seconds
    wall: float  # seconds
    memory: float  # MB


def write_runs(folder: Path, runs: int, images: int, seeds: int = SEEDS) -> None:
    """Write a sweep of finished runs with predictions for validation and test; their skills differ a little."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_runs import write_run

    config = flat(RunFolder(next(CONFIGURED.glob("*/config.yaml")).parent).read_config())
    config = {key: value for key, value in config.items() if key.partition(".")[0] in ("data", "optim", "trainer")}
    overrides = {}
    for number in range(runs):
        depth, seed = divmod(number, seeds)
        name = f"depth-{depth}-seed-{seed}"
        run = write_run(folder / name, depth, None, seed, 2 + 0.02 * depth, images=images, epochs=50, config=config)
        frame = pd.read_csv(run / "predictions_test.csv", dtype={"image": str})
        frame.iloc[: images // 2].to_csv(run / "predictions_val.csv", index=False)
        overrides[name] = [f"model.depth={depth}", f"seed={seed}"]
    list_jobs(folder, overrides)
    note_jobs(folder, overrides)


# a small process between: a child inherits the peak memory of its parent
MEASURED = """
import resource, subprocess, sys, time
begun = time.perf_counter()
subprocess.run([sys.executable, "-m", "resnet_lab", *sys.argv[1:]], check=True, stdout=sys.stderr)
wall, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)
"""


def cost_of(verb: str, folder: Path) -> Cost:
    """Run `resnet-lab VERB FOLDER` once on one thread."""
    command = [sys.executable, "-c", MEASURED, verb, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return Cost(*map(float, printed.split()))


def rows_of(verb: str, folder: Path, name: str, repetitions: int, goal: Cost | None = None) -> list[page.Row]:
    """Return CPU time, wall time and memory of a verb, from several processes."""
    costs = [cost_of(verb, folder) for _ in range(repetitions)]
    columns = zip(Cost(*zip(*costs, strict=True)), ("CPU s", "s", "MB"), goal or ("", "", ""), strict=True)
    return [page.Row(f"{verb}: {name}", unit, values, f"≤ {most:g}" if most else "") for values, unit, most in columns]


def measure(folder: Path, quick: bool) -> list[page.Row]:
    """Return all rows; with `quick`, of a tenth of the runs, measured once."""
    part, repetitions = (10, 1) if quick else (1, 3)
    rows = []
    reports = ((30, 31, None), (120, 31, None), (480, 31, None), (480, 5000 // part, Cost(0, 15, 600)))
    for runs, images, goal in reports:
        groups = max(runs // part // SEEDS, 2)
        write_runs(folder / "sweep", groups * SEEDS, images)
        name = f"{groups * SEEDS} runs in {groups} groups, {images:,} images"
        rows += rows_of("report", folder / "sweep", name, repetitions, goal)
        shutil.rmtree(folder / "sweep")
    for runs, goal in ((480, None), (1000, Cost(0, 4, 0))):
        write_runs(folder / "sweep", runs // part, 31)
        rows += rows_of("status", folder / "sweep", f"{runs // part:,} runs", repetitions, goal)
        shutil.rmtree(folder / "sweep")
    return rows


if __name__ == "__main__":
    page.main(__doc__, "Reports on many runs", QUESTION, METHOD, measure)
