"""Common parts of all pictures: colors, line styles, legend, class names that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_lab.statistics import MANY_CLASSES

Color = tuple[float, float, float, float]
LEGEND_WIDTH = 60  # characters per line of a legend
LegendPlace = Literal["outside lower center", "lower center"]
Style = Literal["--", "-", "-."]
STYLES: dict[str, Style] = {"train": "--", "val": "-", "test": "-."}
GRAY, BLUE, RED = "0.45", "#2b6cb0", "#a4381c"


def shown_names(class_names: Sequence[str]) -> tuple[range, list[str]]:
    """Return every n-th class, so that names do not overlap, and its name, shortened if it is long."""
    shown = range(0, len(class_names), math.ceil(len(class_names) / MANY_CLASSES))
    # long names often differ in their last letters
    return shown, [name if len(name) <= 24 else f"{name[:13]}…{name[-10:]}" for name in (class_names[k] for k in shown)]


def legend_height(labels: Iterable[str], columns: int = 1) -> float:
    """Return the height of a legend below the panels in inches; labels wrap."""
    return 0.2 * sum(fill(label, LEGEND_WIDTH).count("\n") + 1 for label in labels) / columns


def add_legend(
    figure: Figure, lines: Sequence[Line2D], columns: int, place: LegendPlace = "outside lower center"
) -> None:
    """Add a legend below all panels; labels are plain text, never formulas."""
    box = figure.legend(handles=lines, loc=place, ncols=columns, fontsize=9, frameon=False)
    for text in box.get_texts():
        text.set_parse_math(False)


def palette(labels: Iterable[str]) -> dict[str, Color]:
    """Return label → color; the same labels in the same order get the same colors in every picture."""
    names = list(dict.fromkeys(labels))
    if len(names) <= 10:
        return {name: matplotlib.colormaps["tab10"](place) for place, name in enumerate(names)}
    return {name: matplotlib.colormaps["turbo"](place / (len(names) - 1)) for place, name in enumerate(names)}
