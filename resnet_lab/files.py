"""Write files atomically, refuse folders that cannot be written, and remove leftovers of dead processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from resnet_lab.errors import UserError

Content = str | bytes | memoryview | Callable[[BinaryIO], None]


def write_atomically(path: Path, content: Content, durable: bool = False) -> None:
    """Write a temporary file in the same folder and rename it to `path`, so that `path` is never incomplete.

    Args:
        path: file to write.
        content: its content, or a function that writes it into an open file, which it may also read.
        durable: flush to disk first; otherwise the file may be empty after a power failure.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if callable(content):
            with temporary.open("w+b") as file:
                content(file)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the error of a full disk has no file name
        raise


def refuse_unwritable(folder: Path, remedy: str = "choose another folder with out=") -> None:
    """Refuse a folder that cannot be written, before any work starts; create nothing.

    Args:
        folder: folder for results, which need not exist.
        remedy: end of the error message.

    Raises:
        UserError: `folder`, or its first existing parent, cannot be written.
    """
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} is not a folder, or cannot be written; {remedy}")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder for the files written in the `with` block; if the block fails, remove empty new folders."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of `write_atomically` (`.NAME.PROCESS_ID`) whose process no longer exists."""
    for file in folder.rglob(".*.*"):
        number = file.name.rpartition(".")[2]
        if number.isdigit() and not _lives(int(number)):
            file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Return whether a process with this ID exists (without /proc, which macOS lacks)."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
