"""Values by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnet_lab.plots.frame import GRAY, LEGEND_WIDTH, STYLES, Color, Style, add_legend, legend_height, palette

CROWDED = 4  # panels with more lines do not show single runs


@dataclass(frozen=True)
class Series:
    """One line of `by_epoch`: a value by epoch for each of R runs that differ only in their seed."""

    panel: str
    label: str
    split: str  # train (dashed), val (solid) or test (dash-dotted)
    epochs: np.ndarray  # (E,), counted from 0 as in metrics.csv; pictures count from 1
    values: np.ndarray  # (R, E), NaN if a run has no value


def by_epoch(
    series: Sequence[Series],
    ylabel: str,
    baseline: tuple[str, float] | None = None,
    columns: int = 2,
    logarithmic: bool = False,
    colors: Mapping[str, Color] | None = None,
) -> Figure:
    """Draw values by epoch, one panel per `panel`, one color per `label`; thin lines are runs, bands span the runs.

    Thick lines are means at epochs that all runs have, so every point averages the same runs. Crowded panels show bands
    without single runs. If there is only one split, its lines are solid.

    Args:
        series: the lines, in the order of panels and legend.
        ylabel: name of the values, with their unit.
        baseline: a split and the value of the majority baseline on it, in the same unit; a dotted line.
        columns: panels per row.
        logarithmic: whether the axis of the values is logarithmic.
        colors: label → color; None: one color per label.
    """
    panels, labels = (list(dict.fromkeys(names)) for names in zip(*((s.panel, s.label) for s in series), strict=True))
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    splits = [split for split in STYLES if any(line.split == split for line in series)]
    shades = {label: shade for label, shade in (colors or palette(labels)).items() if label in labels}
    styles: Mapping[str, Style] = STYLES if len(splits) > 1 else {splits[0]: "-"}
    width, legend = max(columns * 4.6, 5.5), _legend(splits, styles, shades, baseline, columns)
    height = rows * 3.2 + legend_height((str(line.get_label()) for line in legend), columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(fill(panel, 50), fontsize=11, parse_math=False)
        shown = [line for line in series if line.panel == panel]
        for line in shown:
            _draw_series(axes, line, shades[line.label], styles[line.split], alone=len(shown) <= CROWDED)
        if baseline is not None:
            axes.axhline(baseline[1], color=GRAY, linestyle=":", linewidth=1.5)
    _tidy(grid, len(panels), columns, ylabel)
    if logarithmic:
        grid[0].set_yscale("log")
        grid[0].yaxis.set_major_formatter("{x:g}")
    add_legend(figure, legend, columns)
    return figure


def _draw_series(axes: Axes, line: Series, color: Color, style: Style, alone: bool) -> None:
    epochs = line.epochs + 1
    if len(line.values) > 1:
        if alone:
            axes.plot(epochs, line.values.T, color=color, linestyle=style, linewidth=0.6, alpha=0.45)
        low, high = np.fmin.reduce(line.values), np.fmax.reduce(line.values)
        axes.fill_between(epochs, low, high, color=color, alpha=0.13, linewidth=0)
    # a line does not show a single epoch
    marker = "o" if len(line.epochs) == 1 else None
    axes.plot(epochs, line.values.mean(axis=0), color=color, linestyle=style, linewidth=1.8, marker=marker)


def _legend(
    splits: Sequence[str],
    styles: Mapping[str, Style],
    shades: Mapping[str, Color],
    baseline: tuple[str, float] | None,
    columns: int,
) -> list[Line2D]:
    """Return the legend of colors and line styles for all panels, filled up for two columns."""
    colors = [
        Line2D([], [], color=shade, linewidth=1.8, label=fill(label, LEGEND_WIDTH)) for label, shade in shades.items()
    ]
    lines = [Line2D([], [], color=GRAY, linestyle=styles[split], label=split) for split in splits]
    if baseline is not None:
        label = f"majority baseline ({baseline[0]})"
        lines.append(Line2D([], [], color=GRAY, linestyle=":", linewidth=1.5, label=label))
    blank = Line2D([], [], linestyle="none", label=" ")
    missing = (len(lines) - len(colors)) if columns == 2 else 0
    return colors + [blank] * missing + lines + [blank] * -missing


def _tidy(grid: np.ndarray, panels: int, columns: int, ylabel: str) -> None:
    for place, axes in enumerate(grid):
        axes.set_visible(place < panels)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        lowest = place + columns >= panels  # no panel below, even if the last row is incomplete
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel("epoch" if lowest else "")
        if place % columns == 0:
            axes.set_ylabel(ylabel)
