"""A picture of a report: figures with a heading and a note."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from resnet_lab.plots.frame import Color, palette
from resnet_lab.report.groups import Table

SPOKEN = 12  # lines of a figure that its alternative text describes


def colors_of(table: Table) -> dict[str, Color]:
    """Return label → color of the groups in pictures, the same in every picture of a table."""
    return palette(group.label for group in table.drawn)


def best_of(table: Table) -> str:
    """Return a sentence on the groups that a picture shows; empty if it shows all."""
    shown, groups = len(table.drawn), len(table.scored_groups or table.groups)
    if shown == groups:
        return ""
    return f" This shows {shown} of {groups} groups: the best by {table.title_of_metric}, and those named with groups=."


def spoken(lines: Sequence[str]) -> str:
    """Return what a figure shows, for its alternative text: the first lines, and how many more there are."""
    more = f"; and {len(lines) - SPOKEN} more" if len(lines) > SPOKEN else ""
    return "; ".join(lines[:SPOKEN]) + more


class Drawing(NamedTuple):
    """One figure for wide windows, and one for narrow windows if it differs."""

    wide: Figure
    narrow: Figure | None = None


class Picture(NamedTuple):
    """A part of the report: heading, note, figures on the page, and figures saved as files."""

    title: str
    note: str
    shown: list[Drawing]
    files: Callable[[], list[Figure]] | None = None  # None: the wide figures of `shown`
    values: tuple[str, ...] = ()  # for the alternative text: lines of one figure, or one text for each of several
    legend: tuple[str, ...] = ()  # groups whose colors the page names beside the figures
