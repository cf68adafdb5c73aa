"""Matplotlib figures of thresholds, probabilities and resources, from arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_lab.plots.frame import BLUE, GRAY, LEGEND_WIDTH, RED, Color, add_legend, legend_height, palette
from resnet_lab.report.calibration import OperatingPoint, Reliability

CORNERS = ((0.98, False), (0.03, False), (0.98, True), (0.03, True))  # of a panel, for numbers: x, whether at the top
SCORE_WIDTH, SCORE_HEIGHT = 0.3, 0.06  # of a number, as shares of the panel
SIDE, BESIDE, BELOW, MARGIN = 3.6, 0.6, 0.5, 0.1  # inches: a panel in the unit square, and around it
TITLE_WIDTH = 46  # characters per line of its title
ALIKE = 0.01  # relative difference of resources whose dots would cover each other
PLAQUE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}  # keeps text on curves readable


@dataclass(frozen=True)
class Line:
    """A curve over [0, 1]: values (R, X) of R runs at the same places (X,), with a number for the panel."""

    label: str
    x: np.ndarray
    values: np.ndarray
    score: str = ""
    points: tuple[tuple[str, OperatingPoint], ...] = ()  # marks on the curve, each with its name


def unit_curves(
    panels: Sequence[tuple[str, Sequence[Line]]],
    xlabel: str,
    ylabel: str,
    columns: int,
    diagonal: bool = False,
    colors: Mapping[str, Color] | None = None,
    legend: bool = True,
) -> Figure:
    """Draw curves in the unit square, one panel per title: lines are means, bands span the runs.

    Args:
        panels: title and lines of each panel; the same lines in the same order.
        xlabel: label of the horizontal axis.
        ylabel: label of the vertical axis.
        columns: panels per row.
        diagonal: whether to draw the diagonal (guessing), with the numbers below it.
        colors: label → color; None: one color per label.
        legend: whether to name the colors below the panels.
    """
    shades = colors or palette(line.label for line in panels[0][1])
    names = [line.label for line in panels[0][1]]
    handles = [Line2D([], [], color=shades[name], linewidth=1.8, label=fill(name, LEGEND_WIDTH)) for name in names]
    figure, grid = _squares([title for title, _ in panels], columns, handles if legend else [])
    for axes, (title, lines) in zip(grid, panels, strict=False):
        if diagonal:
            axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", linewidth=1)
        x, top = _free_corner(lines, CORNERS[:1] if diagonal else CORNERS)
        for place, line in enumerate(lines):
            _draw(axes, line, shades[line.label])
            y = (0.97 if top else 0.03 + SCORE_HEIGHT * len(lines)) - SCORE_HEIGHT * (place + 1)
            side = "left" if x < 0.5 else "right"
            axes.text(x, y, line.score, ha=side, color=shades[line.label], fontsize=9, bbox=PLAQUE)
        _square(axes, xlabel, ylabel, title)
    return figure


def _squares(titles: Sequence[str], columns: int, handles: Sequence[Line2D]) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes: square panels of one size, with room for their titles, labels and a legend.

    The places are fixed, which is faster than a layout that measures all labels.
    """
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    above = 0.25 + 0.17 * max(fill(title, TITLE_WIDTH).count("\n") + 1 for title in titles)
    width, height = BESIDE + SIDE, above + SIDE + BELOW
    legend_columns = 1 if columns == 1 else 2
    names = [str(line.get_label()) for line in handles]
    legend = max(legend_height(names, legend_columns), legend_height(names[:1])) + 0.3 if names else 0.0
    all_width, all_height = columns * width + MARGIN, rows * height + legend
    figure = Figure(figsize=(all_width, all_height))
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": BESIDE / all_width,
            "right": 1 - MARGIN / all_width,
            "bottom": (legend + BELOW) / all_height,
            "top": 1 - above / all_height,
            "wspace": BESIDE / SIDE,
            "hspace": (above + BELOW) / SIDE,
        },
    ).flatten()
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    if handles:
        add_legend(figure, handles, legend_columns, "lower center")
    for axes in grid:
        axes.set_in_layout(bool(handles))  # a legend may be wider than the panels
    return figure, grid


def _free_corner(lines: Sequence[Line], corners: Sequence[tuple[float, bool]]) -> tuple[float, bool]:
    """Return the corner, as x and whether at the top, where the fewest points of curves lie behind the numbers."""
    places = np.concatenate([line.x for line in lines])
    curves = np.concatenate([line.values.mean(axis=0) for line in lines])
    height = SCORE_HEIGHT * len(lines) + 0.05

    def behind(corner: tuple[float, bool]) -> int:
        x, top = corner
        return int(np.sum((abs(places - x) < SCORE_WIDTH) & ((curves > 1 - height) if top else (curves < height))))

    return min(corners, key=behind)


def _draw(axes: Axes, line: Line, shade: Color) -> None:
    if len(line.values) > 1:
        axes.fill_between(
            line.x, line.values.min(axis=0), line.values.max(axis=0), color=shade, alpha=0.15, linewidth=0
        )
    axes.plot(line.x, line.values.mean(axis=0), color=shade, linewidth=1.6)
    for (_, point), marker in zip(line.points, "o^", strict=False):
        axes.plot(1 - point.specificity, point.sensitivity, marker, color=shade, markersize=7, markeredgecolor="white")


def _square(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_title(fill(title, TITLE_WIDTH), fontsize=10, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def reliability(panels: Sequence[tuple[str, Reliability, float]], columns: int, legend: bool = True) -> Figure:
    """Draw accuracy by confidence, with the diagonal of perfect calibration.

    Args:
        panels: title, bins, and expected calibration error.
        columns: panels per row.
        legend: whether to explain the red lines below the panels.
    """
    explained = "gap between confidence and accuracy (darker: more images)"
    handles = [Line2D([], [], color=RED, linewidth=2.2, label=explained)]
    figure, grid = _squares([title for title, _, _ in panels], columns, handles if legend else [])
    for axes, (title, bins, error) in zip(grid, panels, strict=False):
        width = 1 / len(bins.images)
        middles = width * (np.arange(len(bins.images)) + 0.5)
        # bins with more images are darker
        weight = bins.images / max(bins.images.max(), 1)
        tints = [to_rgba(BLUE, 0.2 + 0.8 * share) for share in weight]
        axes.bar(middles, np.nan_to_num(bins.accuracy), width=0.92 * width, color=tints)
        for middle, sure, right, share in zip(middles, bins.confidence, bins.accuracy, weight, strict=True):
            if share:
                axes.plot([middle, middle], [right, sure], color=RED, linewidth=2.2, alpha=0.35 + 0.65 * share)
        axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", linewidth=1.2)
        _square(
            axes,
            "confidence (probability of the predicted class)",
            "accuracy (share of correct predictions)",
            title,
        )
        axes.text(0.03, 0.92, f"ECE {error:.3f}", fontsize=9, bbox=PLAQUE)
    return figure


@dataclass(frozen=True)
class Cost:
    """A group's quality with its limits (NaN if unknown), and its use of each resource."""

    label: str
    quality: float
    limits: tuple[float, float]
    resources: dict[str, float]  # by name with unit


def cost(groups: Sequence[Cost], ylabel: str, columns: int = 2, colors: Mapping[str, Color] | None = None) -> Figure:
    """Draw quality against resources on logarithmic scales, one panel per resource.

    Args:
        groups: G groups with the same resources.
        ylabel: name of the quality.
        columns: panels per row.
        colors: label → color; None: one color per label.
    """
    shades = colors or palette(group.label for group in groups)
    names = list(groups[0].resources)
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(
        figsize=(max(4.4 * columns, 5.2), 3.3 * rows + legend_height(group.label for group in groups)),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, name in zip(grid, names, strict=False):
        for group in groups:
            # groups with about equal resources are drawn side by side, in the order of their values
            about = [other for other in groups if abs(other.resources[name] / group.resources[name] - 1) < ALIKE]
            equal = [other.label for other in sorted(about, key=lambda other: other.resources[name])]
            shift = 1.02 ** (equal.index(group.label) - (len(equal) - 1) / 2)
            shade, x = shades[group.label], group.resources[name] * shift
            axes.plot([x, x], group.limits, color=shade, linewidth=1.6, alpha=0.5)
            axes.plot(x, group.quality, "o", color=shade, markersize=6)
        _resource_axis(axes, name, [group.resources[name] for group in groups])
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(ylabel, fontsize=9)
    handles = [
        Line2D([], [], color=shades[group.label], marker="o", linestyle="none", label=fill(group.label, LEGEND_WIDTH))
        for group in groups
    ]
    add_legend(figure, handles, 1)
    return figure


def _resource_axis(axes: Axes, name: str, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(values), max(values)
    axes.set_xlim(low / 1.6, high * 1.6)
    # the default ticks of a logarithmic axis are unreadable within one decade
    ticks = np.geomspace(low, high, 3) if high > 1.3 * low else np.array([low])
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 100 else f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
