"""The exception for wrong input, with a remedy in its message; and helpers for the text of messages."""

import errno
import unicodedata
from collections.abc import Sequence
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # error codes of a full disk


class UserError(Exception):
    """Bad input. Its message is one line naming the file, row or key, what was seen, and the remedy.

    The command line prints the message alone; any other exception is a defect and shows its traceback.
    """


def refuse(faults: Sequence[str]) -> None:
    """Refuse input with faults, one text each, in a single message; nothing if there are none.

    Raises:
        UserError: there are faults.
    """
    if faults:
        numbers = [f"({number}) " for number in range(1, len(faults) + 1)] if len(faults) > 1 else [""]
        raise UserError("; ".join(f"{number}{fault}" for number, fault in zip(numbers, faults, strict=True)))


def printable(text: str) -> str:
    """Escape the control characters of a text for a terminal (`\\x1b`); names from files may contain some."""
    if text.isprintable():
        return text
    control = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        each if each in "\n\t" or unicodedata.category(each) not in control else _escaped(each) for each in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def on_one_line(text: str) -> str:
    """Escape the line breaks of a text (`\\n`); names from a CSV may contain some."""
    return text.replace("\n", "\\n")


def one_line_of(error: BaseException) -> str:
    """Return the message of an error as one line for a terminal; an OSError begins with its file."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(on_one_line(f"{error.filename}: {error.strerror}"))
    text = on_one_line(str(error)) if isinstance(error, UserError) else str(error)
    return printable(" ".join(text.split()))


def short(path: str | Path) -> str:
    """Return a path as users type it: relative to the working folder if it is below."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def reason_of(error: BaseException) -> str:
    """Return type and message of an error from other code, on one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def count(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: `1 file`, `2 files`; `several` is an irregular plural: `1 class`, `2 classes`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def size_text(number: float) -> str:
    """Return a number of bytes in GB, MB or kB: `1.5 GB`, `350.0 MB`."""
    unit, of = next((unit, of) for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if number >= of or unit == "kB")
    return f"{number / of:.1f} {unit}"
