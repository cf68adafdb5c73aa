"""The one exception that means: the input is wrong, and here is what to do; and numbers of things in messages."""

import errno
import unicodedata

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says


class UserError(Exception):
    """Bad input. Its message is one line naming the file, row or key, what was seen, and the remedy.

    The command line prints the message alone; any other exception is a defect and shows its traceback.
    """


def printable(text: str) -> str:
    """A text for a terminal: characters that would steer it, as a name from a file may hold, are escaped (`\\x1b`)."""
    if text.isprintable():
        return text
    steering = ("Cc", "Cf", "Cs", "Zl", "Zp")
    kept = (each if each in "\n\t" or unicodedata.category(each) not in steering else _escaped(each) for each in text)
    return "".join(kept)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def on_one_line(text: str) -> str:
    """A text with its line breaks escaped, as a name from a CSV may hold them (`\\n`)."""
    return text.replace("\n", "\\n")


def one_line_of(error: BaseException) -> str:
    """The message of an error as one line for a terminal; of the operating system's with the file in front."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(on_one_line(f"{error.filename}: {error.strerror}"))
    text = on_one_line(str(error)) if isinstance(error, UserError) else str(error)
    return printable(" ".join(text.split()))


def reason_of(error: BaseException) -> str:
    """The kind and the message of somebody else's error, on one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def count(number: int, one: str, several: str = "") -> str:
    """`1 file`, `2 files`; where more than an `s` changes, `several` says it: `1 class`, `2 classes`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"
