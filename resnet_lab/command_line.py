"""`key=value` command lines for the verbs that need no Hydra."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

from resnet_lab.errors import UserError, on_one_line, one_line_of, printable


def split_arguments(
    arguments: Sequence[str], positional: Sequence[str], options: dict[str, str], usage: str
) -> tuple[list[str], dict[str, str], list[str]]:
    """Sort a command line into positional arguments, options and the remaining `key=value` overrides.

    Args:
        arguments: words of the command line.
        positional: names of the positional arguments, which come as words without `=` or before any override.
        options: the verb's own keys with their defaults.
        usage: the command, for errors.

    Raises:
        UserError: the number of positional arguments is wrong.
    """
    words = list(arguments[: len(positional)])
    rest = arguments[len(positional) :]
    if len(words) < len(positional) or not all("=" in item for item in rest) or any(w.startswith("-") for w in words):
        keys = " ".join(f"[{key}={value}]" for key, value in options.items())
        raise UserError(f"usage: {usage} {' '.join(positional)} {keys} [key=value …]")
    given = dict(item.split("=", 1) for item in rest)
    chosen = {key: given.pop(key, default) for key, default in options.items()}
    return words, chosen, [f"{key}={value}" for key, value in given.items()]


def switched_on(key: str, value: str) -> bool:
    """An option that is `true` or `false`."""
    if value not in ("true", "false"):
        raise UserError(f"{key}={value}: choose true or false")
    return value == "true"


class PrintableFormatter(logging.Formatter):
    """Lines with the time, in which no name from a file steers the terminal or breaks the line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s  %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line; of several lines are only messages that hold them without arguments, as tables and tracebacks."""
        shown = copy(record)
        if isinstance(record.args, tuple):
            texts = (on_one_line(str(each)) if isinstance(each, str | Path) else each for each in record.args)
            shown.args = tuple(texts)
        return printable(super().format(shown))


def log_to(handlers: Sequence[logging.Handler], level: int = logging.INFO, alone: bool = False) -> None:
    """Send the log to these handlers; `alone` takes those of before away."""
    for handler in handlers:
        handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=level, handlers=handlers, force=alone)


def begin() -> None:
    """Make up for what this process lacks: characters in the terminal's encoding (shown as `?`), and a home folder."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path raises an error
        home = os.path.join(tempfile.gettempdir(), f"resnet_lab_{os.getuid()}")  # noqa: PTH118
        os.makedirs(home, mode=0o700, exist_ok=True)  # noqa: PTH103
        os.environ["HOME"] = home
        print(f"this user has no home folder (HOME is not set); caches go to {home}", file=sys.stderr)


def run_command(command: Callable[[list[str]], None]) -> int:
    """Run a verb; what the user got wrong is one line and exit code 2."""
    begin()
    try:
        command(sys.argv[1:])
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says it again at its end
        return 0
    except (UserError, OSError) as error:
        print(f"error: {one_line_of(error)}", file=sys.stderr)
        return 2
    return 0
