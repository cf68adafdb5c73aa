"""Store the small files of a sweep beside its page: `python docs/tools/publish.py SWEEP docs/results/NAME [OLD=NEW …]`.

Each finished run becomes a folder with its configuration, its status, and compressed metrics and predictions. From them
`resnet-lab report docs/results/NAME` recreates every table and picture. Probabilities keep the digits that the metrics
need: two to four, or up to seven if fewer would change a metric. OLD=NEW replaces the paths of a machine.
"""

from __future__ import annotations

import gzip
import math
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import Run, read_predictions, read_run
from resnet_lab.report.verify import LOSS_TOLERANCE, TOLERANCE, metrics_of
from resnet_lab.run_folder import RunFolder, find_runs

LADDERS = (
    (4, 3, 2),
    (4, 3, 3),
    (4, 4, 4),
    (5, 5, 5),
    (7, 7, 7),
)  # significant digits: above 0.01, above 0.001, below
HALF = 0.5  # a metric may change by this share of the tolerance of `report --check`
NAMES = {"image": str, "patient": str}


def publish(sweep: Path, out: Path, replacements: dict[str, str]) -> list[Path]:
    """Write a folder for each finished run, named by its group and seed, and return the folders."""
    written = []
    for table in tables_of([read_run(folder) for folder in find_runs([sweep])]):
        for group in table.groups:
            for run in group.scored:
                name = re.sub(r"[^\w.+-]+", "-", f"{group.label} seed={run.config['seed']}")
                keep(run, RunFolder(out / name), replacements)
                written.append(out / name)
    return written


def keep(run: Run, target: RunFolder, replacements: dict[str, str]) -> None:
    """Copy the files of a run that a report reads."""
    shutil.rmtree(target.path, ignore_errors=True)
    target.path.mkdir(parents=True)
    for file in (run.folder.config_file, run.folder.status_file):
        text = file.read_text("utf-8")
        for old, new in replacements.items():
            text = text.replace(old, new)
        (target.path / file.name).write_text(text, "utf-8")
    for file, kept in ((run.folder.metrics_file, target.metrics_file), (run.folder.layers_file, target.layers_file)):
        if file.is_file():
            pack(file.read_text("utf-8"), kept)
    for file in run.folder.path.glob("predictions_*.csv"):
        frame = pd.read_csv(file, dtype=NAMES, keep_default_na=False)
        columns = [name for name in frame if name.startswith("p_")]
        exact = _metrics(file, run)
        for digits in LADDERS:
            short = frame[columns].map(lambda probability, digits=digits: _short(probability, digits))
            packed = pack(frame.assign(**short).to_csv(index=False), target.path / file.name)
            if _same(exact, _metrics(packed, run)):
                break


def pack(text: str, file: Path) -> Path:
    """Write compressed text without name and time, so that the same text gives the same bytes."""
    packed = file.with_name(f"{file.name}.gz")
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    return packed


def _short(probability: float, digits: tuple[int, int, int]) -> str:
    large, small, tiny = digits
    return f"{probability:.{large if probability > 1e-2 else small if probability > 1e-3 else tiny}g}"


def _metrics(file: Path, run: Run) -> dict[str, float]:
    return metrics_of(read_predictions(file).labeled, run.config, run.class_counts("train"))


def _same(exact: dict[str, float], rounded: dict[str, float]) -> bool:
    return all(
        math.isnan(value)
        or math.isclose(
            value, rounded[name], rel_tol=HALF * LOSS_TOLERANCE * (name == "loss"), abs_tol=HALF * TOLERANCE
        )
        for name, value in exact.items()
    )


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in pair for pair in sys.argv[3:]):
        sys.exit(__doc__)
    pairs = dict(pair.split("=", 1) for pair in sys.argv[3:])
    print(*publish(Path(sys.argv[1]), Path(sys.argv[2]), pairs), sep="\n")
