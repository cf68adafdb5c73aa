"""Time a report on generated runs: `python benchmarks/report_speed.py [runs=50] [images=1000] [seeds=1]`.

With `seeds=1` every run is its own group, which takes longest.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

TESTS = Path(__file__).resolve().parents[1] / "tests"


def write_runs(folder: Path, runs: int, images: int, seeds: int) -> None:
    """Write finished runs with predictions for validation and test; their skills differ a little."""
    sys.path.insert(0, str(TESTS))
    from fake_runs import write_run

    for number in range(runs):
        depth, seed = number // seeds, number % seeds
        run = write_run(folder / f"{depth}-{seed}", depth, seed=seed, skill=2 + 0.02 * depth, images=images, epochs=50)
        frame = pd.read_csv(run / "predictions_test.csv", dtype={"image": str})
        frame.iloc[: images // 2].to_csv(run / "predictions_val.csv", index=False)


def cpu_seconds(folder: Path) -> float:
    """Run `resnet-lab report` once and return its user and system time, imports included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "resnet_lab.report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Write the runs, create their report, and print the CPU time."""
    options = {"runs": 50, "images": 1000, "seeds": 1}
    options |= {key: int(value) for key, value in (argument.split("=") for argument in sys.argv[1:])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder, **options)
        seconds = cpu_seconds(folder)
        size = (folder / "report.html").stat().st_size / 1e6
    print(f"{options}: {seconds:.1f} s of CPU time, a page of {size:.1f} MB")


if __name__ == "__main__":
    main()
