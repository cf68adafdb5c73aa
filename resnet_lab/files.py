"""Files that are complete or not there: atomic writing, folders that cannot be written, leftovers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnet_lab.errors import UserError


def write_atomically(path: Path, content: str | bytes | memoryview, durable: bool = False) -> None:
    """Write to a neighbor of `path` first and rename it, so that no half file ever has its name.

    Args:
        path: the file.
        content: of it.
        durable: wait for the disk, or after a power cut the name may stand over nothing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # a full disk names no file
        raise


def refuse_unwritable(folder: Path, remedy: str = "name another place with out=") -> None:
    """Stop before the work whose files could not be written; creates nothing.

    Raises:
        UserError: `folder`, or where it does not exist the first folder above it that does, cannot be written.
    """
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} is not a folder, or cannot be written; {remedy}")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder for what is written in it; where that fails, no empty folder stays."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in new:
            with suppress(OSError):  # it holds something
                each.rmdir()
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what processes left that died while they wrote (`write_atomically` names such files by the process)."""
    for file in folder.rglob(".*.*"):
        number = file.name.rpartition(".")[2]
        if number.isdigit() and not _lives(int(number)):
            file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether there is a process with this number (not by /proc, which macOS lacks)."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
