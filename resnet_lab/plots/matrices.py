"""Confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_lab.plots.frame import shown_names
from resnet_lab.statistics import MANY_CLASSES


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str = "", largest: float = 7.5) -> Figure:
    """Draw one confusion matrix: colors are shares of the true class, texts are counts and shares.

    Up to 20 classes, the cells have texts; above, only every n-th class is named.

    Args:
        counts: images (K, K), rows true, columns predicted.
        class_names: K names, in the order of the rows.
        title: title of the picture.
        largest: maximum size of the matrix in inches.
    """
    return confusion_matrices([(title, counts)], class_names, largest=largest)


def confusion_matrices(
    matrices: Sequence[tuple[str, np.ndarray]], class_names: Sequence[str], columns: int = 2, largest: float = 7.5
) -> Figure:
    """Draw confusion matrices (K, K) of the same classes side by side, in the same size, each with its title."""
    columns = min(columns, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    side = min(max(3.4, 0.62 * len(class_names)), largest)  # inches: room for two lines of text per cell
    width, height = side + 0.25 + _names_width(class_names), side + 0.55 + _names_height(class_names, side)
    figure = Figure(figsize=(columns * width, rows * height))
    for place, (title, counts) in enumerate(matrices):
        row, column = divmod(place, columns)
        left, bottom = column * width + width - side - 0.15, (rows - row) * height - 0.5 - side
        box = (
            left / (columns * width),
            bottom / (rows * height),
            side / (columns * width),
            side / (rows * height),
        )
        _draw_matrix(figure.add_axes(box), counts, class_names, title, side)
    return figure


def _names_width(class_names: Sequence[str]) -> float:
    return 0.45 + 0.075 * min(max(map(len, class_names)), 24)


def _upright(class_names: Sequence[str], side: float) -> bool:
    """Return whether the names are too long to fit side by side under the columns."""
    return max(map(len, class_names)) * 0.085 > side / len(class_names)


def _names_height(class_names: Sequence[str], side: float) -> float:
    return _names_width(class_names) if _upright(class_names, side) else 0.45


def _draw_matrix(axes: Axes, counts: np.ndarray, class_names: Sequence[str], title: str, side: float) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    # a class without images has no shares; masked, it looks different from a share of 0
    shares = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    colors = matplotlib.colormaps["Blues"].with_extremes(bad="0.88")
    axes.imshow(shares, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
    _name_classes(axes, class_names, side)
    axes.set_title(fill(title, max(24, int(side * 11))), fontsize=10, parse_math=False)
    if len(class_names) <= MANY_CLASSES:
        _write_cells(axes, counts, shares, points=72 * side / len(class_names))


def _name_classes(axes: Axes, class_names: Sequence[str], side: float) -> None:
    shown, names = shown_names(class_names)
    upright = _upright(class_names, side)
    axes.set_xticks(shown, names, rotation=90 if upright else 0, fontsize=8, parse_math=False)
    axes.set_yticks(shown, names, fontsize=8, parse_math=False)
    axes.tick_params(length=0 if shown.step == 1 else 2, width=0.5)
    axes.spines[:].set_color("0.8")
    legend = "" if len(class_names) <= MANY_CLASSES else " (darker: larger share of the true class)"
    axes.set_xlabel(f"predicted{legend}", fontsize=9)
    axes.set_ylabel("true", fontsize=9)


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ma.MaskedArray, points: float) -> None:
    """Write count and row share into each cell of `points` points, white on dark cells."""
    size = min(9.0, 0.29 * points)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = "–" if share is np.ma.masked else f"{count}\n{100 * share:.0f} %" if count else "0"
        color = "0.4" if share is np.ma.masked else "white" if share > 0.68 else "0.1"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=size, color=color, linespacing=1.1, in_layout=False
        )
