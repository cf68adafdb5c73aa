"""Scores of groups of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from resnet_lab.plots.frame import BLUE, GRAY


@dataclass(frozen=True)
class Scores:
    """One group's scores, (N,) by run; `best`: the scores of the best epochs, or empty."""

    label: str
    values: np.ndarray
    best: np.ndarray


def scores(rows: Sequence[Scores], xlabel: str, baseline: tuple[str, float] | None = None) -> Figure:
    """Draw scores as points, and mean and standard deviation as a bar, one line per group.

    Args:
        rows: the groups from top to bottom.
        xlabel: name of the values, with their unit.
        baseline: a split and the value of the majority baseline on it, in the same unit; a dotted line.
    """
    figure = Figure(figsize=(6.5, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        std = row.values.std(ddof=1) if len(row.values) > 1 else 0
        axes.plot([row.values.mean() - std, row.values.mean() + std], [place, place], color=BLUE, linewidth=2.5)
        axes.plot(row.values.mean(), place, "|", color=BLUE, markersize=12)
        axes.plot(row.values, np.full(len(row.values), place), "o", color=BLUE, markersize=4)
        axes.plot(row.best, np.full(len(row.best), place), "D", color=GRAY, markerfacecolor="none", markersize=5)
    if baseline is not None:
        axes.axvline(baseline[1], color=GRAY, linestyle=":", linewidth=1.5)
        axes.set_title(f"dotted: majority baseline ({baseline[0]})", fontsize=8, color=GRAY, loc="right")
    axes.set_yticks(range(len(rows)), [fill(row.label, 44) for row in rows], fontsize=9, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(labelsize=8, axis="x")
    axes.grid(color="0.92", axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, axis="y")
    return figure
