"""Print the numbers in docs/results that predictions do not give: `python docs/tools/last_epoch.py DIR …`.

The script prints mean ± standard deviation over seeds for each group of runs:

- the last epoch of metrics.csv
- the first epoch (from 0) that reaches some levels
- the loss without its worst images
- the best epoch on test minus the last one
- gradients and dead units by layer in the first and the last epoch, if the runs have layers.csv
- the cost of all runs
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import Run, read_layers, read_metrics, read_run
from resnet_lab.run_folder import find_runs

LEVELS = {
    "train/accuracy": 0.5,
    "test/accuracy": 0.4,
    "test/recall_3": 0.1,
    "test/recall_4": 0.1,
}  # the script prints the first epoch that reaches each level
WORST = 5  # number of images whose losses are left out


def facts_of(run: Run) -> dict[str, float]:
    """Return the numbers of one run."""
    metrics = read_metrics(run.folder.stored_metrics)
    last = metrics.iloc[-1]
    facts = {name: float(last[name]) for name in last.index if name.split("/")[-1] in ("loss", "accuracy")}
    facts |= {name: float(last[name]) for name in last.index if name.startswith(("test/recall_", "train/recall_"))}
    for name, level in LEVELS.items():
        if name in metrics:
            reached = metrics.index[metrics[name] >= level]
            facts[f"{name} of {level}, first epoch"] = float(reached[0]) if len(reached) else np.nan
    if run.predictions and "test/loss" in metrics:
        targets, _, probabilities = run.predictions.labeled
        losses = -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], np.finfo(np.float32).tiny))
        facts[f"test/loss without the {WORST} worst images"] = float(np.sort(losses)[:-WORST].mean())
    if "test/accuracy" in metrics:
        facts["test/accuracy, best epoch - last"] = float(metrics["test/accuracy"].max() - last["test/accuracy"])
        facts["test/recall_1 > 0, epochs"] = float((metrics.get("test/recall_1", pd.Series(dtype=float)) > 0).sum())
        if "train/accuracy" in metrics:
            facts["train/accuracy - test/accuracy"] = float(last["train/accuracy"] - last["test/accuracy"])
        steps = metrics["test/accuracy"].diff().abs()
        facts |= {"test/accuracy, median step": float(steps.median()), "largest step": float(steps.max())}
    layers = read_layers(run.folder.stored_layers)
    for epoch in sorted({layers["epoch"].min(), layers["epoch"].max()}) if len(layers) else ():
        values = layers[layers["epoch"] == epoch].set_index("quantity")["value"]
        facts[f"gradient of the first layer, epoch {epoch}"] = float(values["gradient_norm"].iloc[0])
        facts[f"gradient of the last layer but one, epoch {epoch}"] = float(values["gradient_norm"].iloc[-2])
        facts[f"dead units in the worst layer, epoch {epoch}"] = float(np.max(values.get("dead_units", 0)))
    return facts | {"core seconds": run.status.get("core_seconds", np.nan)}


def tables(folder: str) -> str:
    """Return the tables of all groups below a folder as text."""
    runs = [read_run(run) for run in find_runs([folder])]
    blocks = []
    for table in tables_of(runs):
        for group in table.groups:
            facts = pd.DataFrame([facts_of(run) for run in group.scored]).T
            deviation = facts.std(axis=1, ddof=1, skipna=False)
            lines = [
                f"  {name:<52}{mean:>10.4f} ± {deviation[name]:<10.4f}{'  '.join(f'{v:.4g}' for v in facts.loc[name])}"
                for name, mean in facts.mean(axis=1, skipna=False).items()
            ]
            blocks.append("\n".join([f"{group.label} (n = {len(group.scored)}; seeds in the last columns)", *lines]))
    total = sum(run.status.get("core_seconds", 0) for run in runs)
    return "\n\n".join([*blocks, f"{len(runs)} runs, {total:,.0f} core seconds in all"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(*map(tables, sys.argv[1:]), sep="\n\n")
