"""What a terminal shows of a command at work: the lines of its log, and below them one line on how far it is."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence

CLEAR = "\r\x1b[K"  # back to the first column, and nothing right of it
EVERY = 0.2  # seconds between two drawings
WIDEST = 24  # characters of the bar


def is_terminal() -> bool:
    """Whether the output goes to a terminal that can clear a line; a log file must hold no control characters."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def clear() -> None:
    """Remove the line that a process has left which was killed."""
    if is_terminal():
        sys.stdout.write(CLEAR)
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def left(seconds: float) -> str:
    """The time that a phase still takes, without digits that change with every drawing."""
    return f"{duration(round(max(seconds, 0)))} left"


def line_of(share: float, parts: Sequence[str], columns: int) -> str:
    """A bar, and as many of the first parts as fit into a line beside each other.

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


class Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """Log lines on standard output, each in the place of the line that shows the progress."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and before it at a terminal what clears the last one, whichever process has drawn that."""
        return (CLEAR if is_terminal() else "") + super().format(record)


class Progress:
    """The last line of the terminal, on how far a phase is; of several processes at a terminal one draws it."""

    def __init__(self) -> None:
        self._next, self._lock = 0.0, -1
        self.shown = False  # whether the line stands there

    def is_due(self) -> bool:
        """Whether it is time to draw the line again, at a terminal where no other process draws one."""
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
        """Whether this process has the terminal's lock, or takes it now."""
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
