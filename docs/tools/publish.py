"""Store the small files of a sweep beside its page: `python docs/tools/publish.py SWEEP docs/results/NAME [OLD=NEW …]`.

Each finished run becomes a folder with its configuration, its status, and compressed metrics and predictions. From them
`resnet-lab report docs/results/NAME` recreates every table and picture. Probabilities keep the digits that the metrics
need: two to four, or up to seven if fewer would change a metric. OLD=NEW replaces the paths of a machine.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import yaml

from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import Run, digest_of_predictions, read_predictions, read_run
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
    """Write a folder for each finished run, named by its group and seed, and return the folders.

    Runs that would have the same name, such as the folds of a cross-validation, also have that of their own folder.
    """
    tables = tables_of([read_run(folder) for folder in find_runs([sweep])])
    runs = [(run, group.label) for table in tables for group in table.groups for run in group.scored]
    names = [re.sub(r"[^\w.+-]+", "-", f"{label} seed={run.config['seed']}") for run, label in runs]
    places = {
        run.folder.path.resolve(): out / (name if names.count(name) == 1 else f"{name}_{run.folder.path.name}")
        for (run, _), name in zip(runs, names, strict=True)
    }
    for (run, _), place in zip(runs, places.values(), strict=True):
        keep(run, RunFolder(place), replacements)
    for (run, _), place in zip(runs, places.values(), strict=True):
        link(run, RunFolder(place), places)
    return list(places.values())


def link(run: Run, target: RunFolder, places: dict[Path, Path]) -> None:
    """Name the published folders of the runs that a run was made from, if all of them are published."""
    sources = run.sources
    if not sources or not {*sources} <= {*places} or run.is_outdated:
        return
    found = [os.path.relpath(places[source], target.path) for source in sources]
    target.update_status(source_digests=[digest_of_predictions(RunFolder(places[source])) for source in sources])
    if run.members:
        config = yaml.safe_load(target.config_file.read_text("utf-8"))
        config["combine"]["sources"] = found
        target.write_config(config)
    else:
        target.update_status(derived_from=found[0])


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
