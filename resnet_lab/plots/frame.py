"""What every picture shares: colors, line styles, the legend, class names that fit."""

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
LEGEND_WIDTH = 60  # letters of a line in a legend
Style = Literal["--", "-", "-."]
STYLES: dict[str, Style] = {"train": "--", "val": "-", "test": "-."}
GRAY, BLUE, RED = "0.45", "#2b6cb0", "#a4381c"


def shown_names(class_names: Sequence[str]) -> tuple[range, list[str]]:
    """Every n-th class, so that names do not overlap, and its name, cut where it is long."""
    shown = range(0, len(class_names), math.ceil(len(class_names) / MANY_CLASSES))
    # long ones often differ in their last letters
    return shown, [name if len(name) <= 24 else f"{name[:13]}…{name[-10:]}" for name in (class_names[k] for k in shown)]


def legend_height(labels: Iterable[str], columns: int = 1) -> float:
    """Inches that a legend below the panels takes; labels wrap."""
    return 0.2 * sum(fill(label, LEGEND_WIDTH).count("\n") + 1 for label in labels) / columns


def add_legend(figure: Figure, lines: Sequence[Line2D], columns: int) -> None:
    """Below all panels; names are text, whatever they hold."""
    box = figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    for text in box.get_texts():
        text.set_parse_math(False)


def palette(labels: Iterable[str]) -> dict[str, Color]:
    """Label → color; the same labels in the same order have the same colors in every picture."""
    names = list(dict.fromkeys(labels))
    if len(names) <= 10:
        return {name: matplotlib.colormaps["tab10"](place) for place, name in enumerate(names)}
    return {name: matplotlib.colormaps["turbo"](place / (len(names) - 1)) for place, name in enumerate(names)}
