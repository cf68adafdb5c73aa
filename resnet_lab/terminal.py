"""The terminal of a running command: log lines, and one progress line below them."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from textwrap import wrap

CLEAR = "\r\x1b[K"  # back to the first column, and nothing right of it
EVERY = 0.2  # seconds between two drawings
GAP = "  "  # between the time and the parts of a log line
WIDEST = 24  # characters of the bar


def is_terminal() -> bool:
    """Return whether the output is a terminal that can clear a line; log files get no control characters."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def clear() -> None:
    """Remove the progress line, also that of a killed process."""
    if is_terminal():
        sys.stdout.write(CLEAR)
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def left(seconds: float) -> str:
    """Return the time left of a phase, rounded so that it does not flicker."""
    return f"{duration(round(max(seconds, 0)))} left"


def line_of(share: float, parts: Sequence[str], columns: int) -> str:
    """Return a line with a bar and as many of the first parts as fit.

    Args:
        share: of the work that is done, from 0 to 1.
        parts: texts, the most important one first, in front of the bar; the others stand behind it.
        columns: of the terminal.
    """
    shown = [parts[0], f"{min(max(share, 0.0), 1.0):4.0%}"]
    for part in parts[1:]:
        if len("  ".join([*shown, part])) < columns:
            shown.append(part)
    room = min(columns - 1 - len("  ".join(shown)) - len("  []"), WIDEST)
    filled = int(min(max(share, 0.0), 1.0) * room)
    bar = [f"[{'#' * filled}{'.' * (room - filled)}]"] if room >= 6 else []
    return "  ".join([shown[0], *bar, *shown[1:]])[: columns - 1]


def folded(text: str, columns: int) -> str:
    """Break a log line that is too long at its double spaces, below the end of the time."""
    if len(text) <= columns or "\n" in text:
        return text
    time_, *parts = text.split(GAP)
    lines = [time_]
    for part in parts:
        if len(lines[-1] + GAP + part) > columns and len(lines[-1]) > len(time_):
            lines.append(" " * len(time_))
        lines[-1] += GAP + part
    return "\n".join(lines)


def wrapped(text: str, columns: int) -> str:
    """Break the lines of a text that are too long at spaces."""
    lines = list[str]()
    for line in text.split("\n"):
        fits = len(line) <= columns
        broken = wrap(line, columns, subsequent_indent=GAP, break_long_words=False, break_on_hyphens=False)
        lines += [line] if fits else broken
    return "\n".join(lines)


class Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """Handler that writes log lines to standard output, each over the progress line."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; at a terminal it fits the columns, and first clears the progress line of any process."""
        text = super().format(record)
        return CLEAR + folded(text, shutil.get_terminal_size().columns) if is_terminal() else text


class Progress:
    """Progress line of a phase. If several processes share a terminal, one of them draws."""

    def __init__(self) -> None:
        self._next, self._lock = 0.0, -1
        self.shown = False  # whether the line stands there

    def is_due(self) -> bool:
        """Return whether this process may draw the line again now."""
        if not is_terminal() or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + EVERY
        return self._owns()

    def draw(self, share: float, parts: Sequence[str]) -> None:
        """Draw the line; see `line_of`."""
        text = line_of(share, parts, shutil.get_terminal_size().columns)
        sys.stdout.write(f"\r{text}\x1b[K")
        sys.stdout.flush()
        self.shown = True

    def close(self) -> None:
        """Remove the line, and let other processes draw theirs."""
        if self.shown:
            clear()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._next, self.shown = -1, 0.0, False

    def _owns(self) -> bool:
        """Return whether this process has the lock of the terminal; take it if it is free."""
        if self._lock >= 0:
            return True
        try:
            # opened anew, as processes that share a descriptor share its locks
            self._lock = os.open(os.ttyname(sys.stdout.fileno()), os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # it has no name here, or belongs to another user
            return True
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = -1
            return False
        return True
