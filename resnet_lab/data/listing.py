"""Lists the image files of a folder and its sub-folders; says what it leaves out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from resnet_lab.errors import UserError

log = logging.getLogger(__name__)

# what Pillow and OpenCV decode, in lower case; a CSV's name without suffix is the first of these that the folder has
SUFFIXES = (
    *(".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jpe", ".jfif", ".mpo", ".dib", ".avif"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx"),
)
JUNK = (
    *("__macosx", "icon\r", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found", "__pycache__"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
)
KINDS = 5  # suffixes and folders that a line names, at most


class Listing(NamedTuple):
    """The content of a folder."""

    images: list[str]  # paths below the folder, sorted folder by folder
    others: Counter[str]  # suffix → files that are no images


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image, in whatever case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - ten times faster than Path objects


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by an operating system (`._1.jpg`, `__MACOSX`)."""
    return name.startswith(".") or name.lower() in JUNK


def list_images(folder: Path, deep: bool = True) -> Listing:
    """The images at and below a folder, junk aside; a folder that links lead to twice is listed once.

    Args:
        folder: where to look; links to folders are followed, except upward.
        deep: false leaves sub-folders alone.

    Raises:
        UserError: a folder cannot be read.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    seen, folders, links = set(), [""], list[str]()
    while folders or links:
        below = (folders or links).pop()
        stat = (folder / below).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in _entries(folder / below):
            name = below + entry.name
            if entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - a link to itself
                links += [] if _leads_up(entry.path, folder) else [f"{name}/"]
            elif not entry.is_symlink() and entry.is_dir():
                folders.append(f"{name}/")
            elif is_image(name):
                images.append(name)
            else:
                others[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122
        if not deep:
            break
    return Listing(sorted(images, key=lambda name: name.split("/")), others)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder in the order of their names; without junk and without links that lead upward."""
    found = [entry for entry in _entries(folder) if os.path.isdir(entry.path)]  # noqa: PTH112
    return sorted(folder / entry.name for entry in found if not (entry.is_symlink() and _leads_up(entry.path, folder)))


def _leads_up(link: str, folder: Path) -> bool:
    """Whether a link leads to a folder that contains the link or `folder`; its images are not of the folder's class."""
    places = {Path(os.path.abspath(folder)), folder.resolve(), Path(link).parent.resolve()}  # noqa: PTH100
    above = {os.path.realpath(parent) for place in places for parent in (place, *place.parents)}
    return os.path.realpath(link) in above


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}; make it readable") from error


def say_left_out(place: Path, what: str, counts: Counter[str], done: str = "left out") -> None:
    """Log in one line how many files are left out, the most frequent kinds or folders first; nothing where none is.

    Args:
        place: the folder of the data set.
        what: what the files are, as `files that are no images`.
        counts: kind or folder → files.
        done: what happened to them.
    """
    if total := counts.total():
        named = ", ".join(f"{number} {kind or 'without suffix'}" for kind, number in counts.most_common(KINDS))
        log.info("%s: %s %d %s: %s%s", place, done, total, what, named, ", …" if len(counts) > KINDS else "")
