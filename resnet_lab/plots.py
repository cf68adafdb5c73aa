"""Arrays in, matplotlib Figures out; made without pyplot, so no figure stays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnet_lab.statistics import MANY_CLASSES

Style = Literal["--", "-", "-."]
STYLES: dict[str, Style] = {"train": "--", "val": "-", "test": "-."}
CROWDED = 4  # lines of a panel above which single runs are not drawn
GREY, BLUE, RED = "0.45", "#2b6cb0", "#a4381c"


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str = "", largest: float = 7.5) -> Figure:
    """One confusion matrix: the colour is the share of the true class, the text count and share.

    Up to 20 classes the cells have text; above, only every n-th class is named.

    Args:
        counts: images (K, K), rows true, columns predicted.
        class_names: K names, in the order of the rows.
        title: above the picture.
        largest: inches of the matrix at most.
    """
    return confusion_matrices([(title, counts)], class_names, largest=largest)


def confusion_matrices(
    matrices: Sequence[tuple[str, np.ndarray]], class_names: Sequence[str], columns: int = 2, largest: float = 7.5
) -> Figure:
    """Confusion matrices (K, K) of the same classes side by side, each with its title and as large as the others."""
    columns = min(columns, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    side = min(max(3.4, 0.62 * len(class_names)), largest)  # inches: room for two lines of text a cell
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
    """Whether the names are too long to lie side by side under the columns."""
    return max(map(len, class_names)) * 0.085 > side / len(class_names)


def _names_height(class_names: Sequence[str], side: float) -> float:
    return _names_width(class_names) if _upright(class_names, side) else 0.45


def _draw_matrix(axes: Axes, counts: np.ndarray, class_names: Sequence[str], title: str, side: float) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    # a class without images has no shares: masked, so that it looks unlike a share of 0
    shares = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="0.88")
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    _name_classes(axes, class_names, side)
    axes.set_title(fill(title, max(24, int(side * 11))), fontsize=10, parse_math=False)
    if len(class_names) <= MANY_CLASSES:
        _write_cells(axes, counts, shares, points=72 * side / len(class_names))


def _name_classes(axes: Axes, class_names: Sequence[str], side: float) -> None:
    shown, names = _shown_names(class_names)
    upright = _upright(class_names, side)
    axes.set_xticks(shown, names, rotation=90 if upright else 0, fontsize=8, parse_math=False)
    axes.set_yticks(shown, names, fontsize=8, parse_math=False)
    axes.tick_params(length=0 if shown.step == 1 else 2, width=0.5)
    axes.spines[:].set_color("0.8")
    legend = "" if len(class_names) <= MANY_CLASSES else " (darker: larger share of the true class)"
    axes.set_xlabel(f"predicted{legend}", fontsize=9)
    axes.set_ylabel("true", fontsize=9)


def _shown_names(class_names: Sequence[str]) -> tuple[range, list[str]]:
    """Every n-th class, so that names do not overlap, and its name, cut where it is long."""
    shown = range(0, len(class_names), math.ceil(len(class_names) / MANY_CLASSES))
    # long ones often differ in their last letters
    return shown, [name if len(name) <= 24 else f"{name[:13]}…{name[-10:]}" for name in (class_names[k] for k in shown)]


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ma.MaskedArray, points: float) -> None:
    """Count and row share in each cell of `points` points, white on dark cells."""
    size = min(9.0, 0.29 * points)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = "–" if share is np.ma.masked else f"{count}\n{100 * share:.0f} %" if count else "0"
        colour = "0.4" if share is np.ma.masked else "white" if share > 0.68 else "0.1"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.1)


@dataclass(frozen=True)
class Series:
    """One line of `curves`: a value by epoch for each of R runs that differ in their seed only."""

    panel: str
    label: str
    split: str  # train (dashed), val (solid) or test (dash-dotted)
    epochs: np.ndarray  # (E,)
    values: np.ndarray  # (R, E), NaN where a run has no value


def curves(
    series: Sequence[Series],
    ylabel: str,
    baseline: tuple[str, float] | None = None,
    columns: int = 2,
    logarithmic: bool = False,
) -> Figure:
    """Values by epoch, one panel per `panel`, one colour per `label`; thin lines are runs, bands span them.

    Thick lines are means, at the epochs that all their runs have, so that a mean never changes its runs on the way. In
    a crowded panel the bands stand alone for the runs; where there is one split only, its lines are solid.

    Args:
        series: the lines, in the order of panels and legend.
        ylabel: what the values are, with their unit.
        baseline: a split, and what answering the majority class gives on it, in the same unit; a dotted line.
        columns: panels in a row.
        logarithmic: whether the values' axis is, for values that are far apart.
    """
    panels, labels = (list(dict.fromkeys(names)) for names in zip(*((s.panel, s.label) for s in series), strict=True))
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    splits = [split for split in STYLES if any(line.split == split for line in series)]
    styles: Mapping[str, Style] = STYLES if len(splits) > 1 else {splits[0]: "-"}
    width, legend = max(columns * 4.6, 5.5), _legend(splits, styles, labels, baseline, columns)
    height = rows * 3.2 + 0.22 * len(legend) / columns
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(fill(panel, 50), fontsize=11, parse_math=False)
        shown = [line for line in series if line.panel == panel]
        for line in shown:
            shade = colour(labels.index(line.label), len(labels))
            _draw_series(axes, line, shade, styles[line.split], alone=len(shown) <= CROWDED)
        if baseline is not None:
            axes.axhline(baseline[1], color=GREY, linestyle=":", linewidth=1.5)
    _tidy(grid, len(panels), columns, ylabel)
    if logarithmic:
        grid[0].set_yscale("log")
        grid[0].yaxis.set_major_formatter("{x:g}")
    add_legend(figure, legend, columns)
    return figure


def add_legend(figure: Figure, lines: Sequence[Line2D], columns: int) -> None:
    """Below all panels; names are text, whatever they hold."""
    box = figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    for text in box.get_texts():
        text.set_parse_math(False)


def _draw_series(
    axes: Axes, line: Series, colour: tuple[float, float, float, float], style: Style, alone: bool
) -> None:
    if len(line.values) > 1:
        if alone:
            axes.plot(line.epochs, line.values.T, color=colour, linestyle=style, linewidth=0.6, alpha=0.45)
        low, high = np.fmin.reduce(line.values), np.fmax.reduce(line.values)
        axes.fill_between(line.epochs, low, high, color=colour, alpha=0.13, linewidth=0)
    # a single epoch is a point, which a line does not show
    marker = "o" if len(line.epochs) == 1 else None
    axes.plot(line.epochs, line.values.mean(axis=0), color=colour, linestyle=style, linewidth=1.8, marker=marker)


def _legend(
    splits: Sequence[str],
    styles: Mapping[str, Style],
    labels: Sequence[str],
    baseline: tuple[str, float] | None,
    columns: int,
) -> list[Line2D]:
    """What the colours and the styles mean, once for all panels; in two columns where there is room."""
    colours = [
        Line2D([], [], color=colour(place, len(labels)), linewidth=1.8, label=fill(label, 60))
        for place, label in enumerate(labels)
    ]
    lines = [Line2D([], [], color=GREY, linestyle=styles[split], label=split) for split in splits]
    if baseline is not None:
        label = f"majority baseline ({baseline[0]})"
        lines.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.5, label=label))
    blank = Line2D([], [], linestyle="none", label=" ")
    missing = (len(lines) - len(colours)) if columns == 2 else 0
    return colours + [blank] * missing + lines + [blank] * -missing


def colour(place: int, count: int) -> tuple[float, float, float, float]:
    """The colour of one of so many lines: the same place has the same one in every picture."""
    if count <= 10:
        return matplotlib.colormaps["tab10"](place)
    return matplotlib.colormaps["turbo"](place / (count - 1))


def _tidy(grid: np.ndarray, panels: int, columns: int, ylabel: str) -> None:
    for place, axes in enumerate(grid):
        axes.set_visible(place < panels)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        lowest = place + columns >= panels  # nothing below it, not even in an incomplete last row
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel("epoch" if lowest else "")
        if place % columns == 0:
            axes.set_ylabel(ylabel)


def images(batch: np.ndarray, labels: Sequence[str], columns: int = 4) -> Figure:
    """A sample of a batch: images (B, H, W, 3), uint8, each with its label above.

    One picture in one pair of axes: a pair each takes ten times as long to draw.
    """
    columns = min(columns, len(batch))
    rows = math.ceil(len(batch) / columns)
    texts = [fill(label, 26) for label in labels[: len(batch)]]
    height, width = batch.shape[1:3]
    above = math.ceil(width * (0.06 + 0.09 * max(text.count("\n") + 1 for text in texts)))
    between = math.ceil(0.05 * width)
    sheet = np.full((rows, columns, above + height, width + between, 3), 255, np.uint8)
    figure = Figure(figsize=(1.9 * columns, 1.9 * rows * sheet.shape[2] / sheet.shape[3]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for place, (image, text) in enumerate(zip(batch, texts, strict=True)):
        row, column = divmod(place, columns)
        sheet[row, column, above:, :width] = image
        left, top = column * sheet.shape[3], row * sheet.shape[2]
        axes.text(left + width / 2, top + above, text, ha="center", va="bottom", fontsize=9, parse_math=False)
    axes.imshow(sheet.swapaxes(1, 2).reshape(rows * sheet.shape[2], columns * sheet.shape[3], 3), aspect="auto")
    return figure


def class_counts(
    counts: Mapping[str, np.ndarray], class_names: Sequence[str], mark: float | None = None, title: str = ""
) -> Figure:
    """Images of each class as bars, one panel per split.

    Args:
        counts: images (K,) by split.
        class_names: K names; above 20 classes every n-th is shown, and no number.
        mark: a dotted line at so many images of train.
        title: above the picture.
    """
    shown, names = _shown_names(class_names)
    figure = Figure(figsize=(6.5, 0.7 + 0.25 * min(len(class_names), 20)), layout="constrained")
    grid = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (split, images) in zip(grid, counts.items(), strict=True):
        bars = axes.barh(range(len(class_names)), images, height=0.75, color=BLUE)
        if len(class_names) <= MANY_CLASSES:
            axes.bar_label(bars, padding=2, fontsize=8)
        if mark is not None and split == "train":
            axes.axvline(mark, color=GREY, linestyle=":", linewidth=1.5)
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


QUANTITIES = {  # of layers.csv → title, factor
    "gradient_norm": ("gradient norm of the weights", 1),
    "activation_variance": ("variance of the activations", 1),
    "dead_units": ("dead units, %", 100),
}


def layers(profiles: Mapping[str, Mapping[str, np.ndarray]], columns: int = 3) -> Figure:
    """Gradient norm, activation variance and dead units from a network's first layer (0) to its last (1).

    Args:
        profiles: by label, and by the name of the quantity, one value a layer.
        columns: panels in a row.
    """
    rows = math.ceil(len(QUANTITIES) / columns)
    figure = Figure(figsize=(max(3.2 * columns, 5.5), 2.9 * rows + 0.22 * len(profiles)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (quantity, (title, factor)) in zip(grid, QUANTITIES.items(), strict=True):
        for place, profile in enumerate(profiles.values()):
            values = factor * profile.get(quantity, np.zeros(0))
            axes.plot(np.linspace(0, 1, len(values)), values, color=colour(place, len(profiles)), linewidth=1.5)
        if factor == 1 and any(np.any(profile.get(quantity, 0) > 0) for profile in profiles.values()):
            axes.set_yscale("log")
        elif factor != 1:
            top = max(10.0, 1.05 * axes.get_ylim()[1])
            axes.set_ylim(-0.03 * top, top)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("place in the network", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    lines = [
        Line2D([], [], color=colour(place, len(profiles)), linewidth=1.8, label=fill(label, 60))
        for place, label in enumerate(profiles)
    ]
    add_legend(figure, lines, min(columns, 2))
    return figure


@dataclass(frozen=True)
class Scores:
    """One group's scores, (N,) by run; `best` of their best epochs, or empty."""

    label: str
    values: np.ndarray
    best: np.ndarray


def scores(rows: Sequence[Scores], xlabel: str, baseline: tuple[str, float] | None = None) -> Figure:
    """Scores of groups as points, mean and standard deviation as a bar, one line a group.

    Args:
        rows: the groups from top to bottom.
        xlabel: what the values are, with their unit.
        baseline: a split, and what answering the majority class gives on it, in the same unit; a dotted line.
    """
    figure = Figure(figsize=(6.5, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        spread = row.values.std(ddof=1) if len(row.values) > 1 else 0
        axes.plot([row.values.mean() - spread, row.values.mean() + spread], [place, place], color=BLUE, linewidth=2.5)
        axes.plot(row.values.mean(), place, "|", color=BLUE, markersize=12)
        axes.plot(row.values, np.full(len(row.values), place), "o", color=BLUE, markersize=4)
        axes.plot(row.best, np.full(len(row.best), place), "D", color=GREY, markerfacecolor="none", markersize=5)
    if baseline is not None:
        axes.axvline(baseline[1], color=GREY, linestyle=":", linewidth=1.5)
        axes.set_title(f"dotted: majority baseline ({baseline[0]})", fontsize=8, color=GREY, loc="right")
    axes.set_yticks(range(len(rows)), [fill(row.label, 44) for row in rows], fontsize=9, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(labelsize=8, axis="x")
    axes.grid(color="0.92", axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, axis="y")
    return figure


SCORES = ("precision", "recall", "F1")


def class_scores(values: np.ndarray, class_names: Sequence[str], pass_mark: float, title: str = "") -> Figure:
    """Precision, recall and F1 of each class as bars, with the classes below the pass mark in red and by name.

    Args:
        values: (3, K), NaN where undefined.
        class_names: K names.
        pass_mark: of all three.
        title: above the picture.
    """
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    for axes, score, row in zip(panels, SCORES, values, strict=True):
        below = np.nan_to_num(row) < pass_mark
        axes.bar(range(len(row)), np.nan_to_num(row), color=np.where(below, RED, BLUE), width=0.8)
        axes.axhline(pass_mark, color=GREY, linestyle=":", linewidth=1.5)
        axes.set_ylim(0, 1)
        axes.set_ylabel(score, fontsize=9)
        caption = fill(f"{below.sum()} of {len(row)} below {pass_mark}{_those(below, class_names)}", 150)
        axes.set_title(caption, fontsize=8, loc="left", color=RED if below.any() else GREY, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    shown, names = _shown_names(class_names)
    panels[-1].set_xticks(shown, names, rotation=90, fontsize=7, parse_math=False)
    figure.suptitle(fill(title, 90), fontsize=11, parse_math=False)
    return figure


def _those(below: np.ndarray, class_names: Sequence[str]) -> str:
    """The classes below the mark by name; where most are, the others."""
    low, high = ([name for name, is_low in zip(class_names, below, strict=True) if is_low == side] for side in (1, 0))
    listed, start = (low, ": ") if len(low) <= len(high) else (high, ", all but ")
    more = f" and {len(listed) - MANY_CLASSES} more" if len(listed) > MANY_CLASSES else ""
    return start + ", ".join(listed[:MANY_CLASSES]) + more if listed else ""


def score_bands(shares: Mapping[str, np.ndarray], edges: Sequence[float]) -> Figure:
    """Share of the classes in each band of precision, recall and F1, as stacked bars, one line a group.

    Args:
        shares: (3, B) by group, rows adding up to 1.
        edges: B + 1 limits of the bands.
    """
    figure = Figure(figsize=(9, 1.1 + 0.42 * len(shares)), layout="constrained")
    colours = matplotlib.colormaps["RdYlBu"](np.linspace(0.08, 0.92, len(edges) - 1))
    panels = figure.subplots(1, 3, sharey=True)
    for place, (axes, name) in enumerate(zip(panels, SCORES, strict=True)):
        left = np.zeros(len(shares))
        for band, colour in enumerate(colours):
            widths = 100 * np.array([group[place, band] for group in shares.values()])
            label = f"{edges[band]:g} to {edges[band + 1]:g}"
            axes.barh(range(len(shares)), widths, left=left, color=colour, height=0.7, label=label)
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
