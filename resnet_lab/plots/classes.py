"""Images and scores of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_lab.plots.frame import BLUE, GRAY, RED, shown_names
from resnet_lab.statistics import MANY_CLASSES


def counts(
    counts: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    mark: float | None = None,
    title: str = "",
    stacked: bool = False,
) -> Figure:
    """Draw the images of each class as bars, one panel per split.

    Args:
        counts: images (K,) by split.
        class_names: K names; above 20 classes, only every n-th name and no number is shown.
        mark: position of a dotted line in the panel of train.
        title: title of the picture.
        stacked: whether the panels are below each other, for a narrow screen.
    """
    shown, names = shown_names(class_names)
    rows, width = (len(counts), 3.6) if stacked else (1, 6.5)
    figure = Figure(figsize=(width, rows * (0.7 + 0.25 * min(len(class_names), 20))), layout="constrained")
    grid = figure.subplots(rows, len(counts) // rows, sharey=True, squeeze=False).ravel()
    for axes, (split, images) in zip(grid, counts.items(), strict=True):
        bars = axes.barh(range(len(class_names)), images, height=0.75, color=BLUE)
        if len(class_names) <= MANY_CLASSES:
            axes.bar_label(bars, padding=2, fontsize=8)
        if mark is not None and split == "train":
            axes.axvline(mark, color=GRAY, linestyle=":", linewidth=1.5)
        axes.set_title(split, fontsize=10, parse_math=False)
        axes.margins(x=0.25)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    grid[0].set_yticks(shown, names, parse_math=False)
    grid[0].set_ylim(len(class_names) - 0.4, -0.6)  # the first class on top, as in a table
    if title:
        figure.suptitle(fill(title, 70), fontsize=11, parse_math=False)
    return figure


SCORES = ("precision", "recall", "F1")


def scores(values: np.ndarray, class_names: Sequence[str], pass_mark: float, title: str = "") -> Figure:
    """Draw precision, recall and F1 of each class as bars; classes below the pass mark are red and named.

    Args:
        values: scores (3, K), NaN if undefined.
        class_names: K names.
        pass_mark: the pass mark of all three scores.
        title: title of the picture.
    """
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    for axes, score, row in zip(panels, SCORES, values, strict=True):
        below = np.nan_to_num(row) < pass_mark
        axes.bar(range(len(row)), np.nan_to_num(row), color=np.where(below, RED, BLUE), width=0.8)
        axes.axhline(pass_mark, color=GRAY, linestyle=":", linewidth=1.5)
        axes.set_ylim(0, 1)
        axes.set_ylabel(score, fontsize=9)
        caption = fill(f"{below.sum()} of {len(row)} below {pass_mark}{_those(below, class_names)}", 150)
        axes.set_title(caption, fontsize=8, loc="left", color=RED if below.any() else GRAY, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    shown, names = shown_names(class_names)
    panels[-1].set_xticks(shown, names, rotation=90, fontsize=7, parse_math=False)
    figure.suptitle(fill(title, 90), fontsize=11, parse_math=False)
    return figure


def _those(below: np.ndarray, class_names: Sequence[str]) -> str:
    """Return the names of the classes below the mark, or of the others if they are fewer."""
    low, high = ([name for name, is_low in zip(class_names, below, strict=True) if is_low == side] for side in (1, 0))
    listed, start = (low, ": ") if len(low) <= len(high) else (high, ", all but ")
    more = f" and {len(listed) - MANY_CLASSES} more" if len(listed) > MANY_CLASSES else ""
    return start + ", ".join(listed[:MANY_CLASSES]) + more if listed else ""


def bands(shares: Mapping[str, np.ndarray], edges: Sequence[float]) -> Figure:
    """Draw the share of the classes in each band of precision, recall and F1, as stacked bars, one per group.

    Args:
        shares: shares (3, B) by group; the sum of each row is 1.
        edges: B + 1 limits of the bands.
    """
    figure = Figure(figsize=(9, 1.1 + 0.42 * len(shares)), layout="constrained")
    colors = matplotlib.colormaps["RdYlBu"](np.linspace(0.08, 0.92, len(edges) - 1))
    panels = figure.subplots(1, 3, sharey=True)
    for place, (axes, name) in enumerate(zip(panels, SCORES, strict=True)):
        left = np.zeros(len(shares))
        for band, color in enumerate(colors):
            widths = 100 * np.array([group[place, band] for group in shares.values()])
            label = f"{edges[band]:g} to {edges[band + 1]:g}"
            axes.barh(range(len(shares)), widths, left=left, color=color, height=0.7, label=label)
            left += widths
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("classes, %", fontsize=9)
        axes.set_xlim(0, 100)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    panels[0].set_yticks(range(len(shares)), [fill(label, 30) for label in shares], fontsize=8, parse_math=False)
    panels[0].set_ylim(len(shares) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return figure
