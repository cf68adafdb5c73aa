"""What a picture of a report is: figures with a heading and a note."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

from resnet_lab.plots.frame import Color, palette
from resnet_lab.report.groups import Table


def colors_of(table: Table) -> dict[str, Color]:
    """Label → color of the groups that pictures show, the same in every picture of a table."""
    return palette(group.label for group in table.drawn)


def best_of(table: Table) -> str:
    """A sentence for notes where not all groups are shown; empty where all are."""
    shown, groups = len(table.drawn), len(table.scored_groups or table.groups)
    if shown == groups:
        return ""
    return f" Shown are {shown} of {groups} groups: the best in {table.title_of_metric}, and those named by groups=."


class Drawing(NamedTuple):
    """One figure: on a desk, and on a phone where that differs."""

    wide: Figure
    narrow: Figure | None = None


class Picture(NamedTuple):
    """A part of the report: its heading, what to know of it, what the page shows, and what is kept as files."""

    title: str
    note: str
    shown: list[Drawing]
    files: list[Figure] | None = None  # None: the wide ones of `shown`
