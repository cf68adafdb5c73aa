"""What a picture of a report is: figures with a heading and a note."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure


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
