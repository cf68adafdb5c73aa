"""Keeps the small files of a sweep beside its page: `python benchmarks/publish.py SWEEP docs/results/NAME [OLD=NEW …]`.

Each finished run becomes a folder of its configuration, status, metrics and packed predictions (7 digits), from which
`resnet-lab report docs/results/NAME` makes every table and picture again. OLD=NEW replaces the paths of a machine.
"""

from __future__ import annotations

import gzip
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from resnet_lab.report.comparison import tables_of
from resnet_lab.report.runs import Run, read_run
from resnet_lab.run_folder import RunFolder, find_runs

DIGITS = "%.7g"  # of the probabilities
NAMES = {"image": str, "patient": str}


def publish(sweep: Path, out: Path, replacements: dict[str, str]) -> list[Path]:
    """The folders that were written, named by what sets their runs apart."""
    written = []
    for table in tables_of([read_run(folder) for folder in find_runs([sweep])]):
        for group in table.groups:
            for run in group.scored:
                name = re.sub(r"[^\w.+-]+", "-", f"{group.label} seed={run.config['seed']}")
                keep(run, RunFolder(out / name), replacements)
                written.append(out / name)
    return written


def keep(run: Run, target: RunFolder, replacements: dict[str, str]) -> None:
    """Copy the files that a report reads."""
    shutil.rmtree(target.path, ignore_errors=True)
    target.path.mkdir(parents=True)
    for file in (run.folder.config_file, run.folder.status_file):
        text = file.read_text("utf-8")
        for old, new in replacements.items():
            text = text.replace(old, new)
        (target.path / file.name).write_text(text, "utf-8")
    for file in (run.folder.metrics_file, run.folder.layers_file):
        if file.is_file():
            shutil.copy(file, target.path / file.name)
    for file in run.folder.path.glob("predictions_*.csv"):
        text = pd.read_csv(file, dtype=NAMES, keep_default_na=False).to_csv(index=False, float_format=DIGITS)
        # without a name and a time in it, so that the same predictions are the same bytes
        packed = gzip.compress(text.encode(), mtime=0)
        (target.path / f"{file.name}.gz").write_bytes(packed)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in pair for pair in sys.argv[3:]):
        sys.exit(__doc__)
    pairs = dict(pair.split("=", 1) for pair in sys.argv[3:])
    print(*publish(Path(sys.argv[1]), Path(sys.argv[2]), pairs), sep="\n")
