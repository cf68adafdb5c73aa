"""Lists the image files of a folder and its sub-folders, finds the files of a table, and logs what is left out."""

from __future__ import annotations

import errno
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from resnet_lab.errors import UserError, count, refuse

log = logging.getLogger(__name__)

# formats that Pillow and OpenCV decode, in lower case; a name without suffix in a CSV gets the first that exists
SUFFIXES = (
    *(".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jpe", ".jfif", ".mpo", ".dib", ".avif"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx"),
)
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
WORD = re.compile(r"[A-Z]{2,}(?=[A-Z][a-z])|[A-Z]?[a-z]{2,}|[A-Z]{2,}")  # skips the letter in `a. Training Set`
JUNK = (
    *("__macosx", "icon\r", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found", "__pycache__"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
)
NO_IMAGES = ("file without an image suffix", "files without an image suffix")
KINDS = 5  # suffixes or folders that a log line names, at most


class Listing(NamedTuple):
    """Content of a folder."""

    images: list[str]  # paths below the folder, sorted folder by folder
    others: Counter[str]  # suffix → number of files that are not images


def folded(name: str) -> str:
    """Return a name for comparison: in lower case, an accent and its letter as one character (a Mac writes two)."""
    return unicodedata.normalize("NFC", name).lower()


def is_image(name: str) -> bool:
    """Return whether a file name has an image suffix, ignoring case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - ten times faster than Path objects


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden or created by an operating system (`._1.jpg`, `__MACOSX`)."""
    return name.startswith(".") or name.lower() in JUNK


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: `train` and `images` of `trainImages_2`."""
    return [word.lower() for word in WORD.findall(name)]


def splits_of(name: str) -> set[str]:
    """Return the splits that a name contains, such as `Training Set` or `validset`."""
    words = {word.removesuffix("set") for word in words_of(name)}
    return {split for split, own in SPLIT_NAMES.items() if words & {*own}}


def stem_of(name: str) -> str:
    """Return a name without its folders and without an image suffix."""
    name = name.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if is_image(name) else name


def list_images(folder: Path, deep: bool = True, apart: Path | None = None) -> Listing:
    """Return the images at and below a folder, without junk; a folder reached through several links is listed once.

    Args:
        folder: the folder; links to folders are followed, except upward.
        deep: whether to list sub-folders, too.
        apart: a folder to skip.

    Raises:
        UserError: a folder cannot be read.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    seen, folders, links = set(), [""], list[str]()
    if apart is not None and apart.is_dir():
        seen.add((apart.stat().st_dev, apart.stat().st_ino))
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
    """Return the sub-folders of a folder, sorted by name, without junk and without links that lead upward."""
    found = [entry for entry in _entries(folder) if os.path.isdir(entry.path)]  # noqa: PTH112
    return sorted(folder / entry.name for entry in found if not (entry.is_symlink() and _leads_up(entry.path, folder)))


def _leads_up(link: str, folder: Path) -> bool:
    """Return whether a link leads to a folder that contains the link or `folder`; such links are not followed."""
    places = {Path(os.path.abspath(folder)), folder.resolve(), Path(link).parent.resolve()}  # noqa: PTH100
    above = {os.path.realpath(parent) for place in places for parent in (place, *place.parents)}
    return os.path.realpath(link) in above


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}; make it readable") from error


def refuse_closed(*folders: Path) -> None:
    """Refuse a folder that exists but is not readable; libraries would treat it as absent.

    Raises:
        UserError: a folder is not readable.
    """
    for folder in folders:
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            raise UserError(f"{folder} cannot be listed: {os.strerror(errno.EACCES)}; make it readable")


def say_left_out(place: Path, one: str, several: str, counts: Counter[str], done: str = "left out") -> None:
    """Log in one line how many files are left out, the most frequent kinds or folders first; nothing if none.

    Args:
        place: the folder of the data set.
        one: description of one file, such as `image that no CSV lists`.
        several: description of several files, such as `images that no CSV lists`.
        counts: kind or folder → number of files.
        done: what was done with them.
    """
    if total := counts.total():
        named = ", ".join(f"{number} {kind or 'without suffix'}" for kind, number in counts.most_common(KINDS))
        what = count(total, one, several)
        log.info("%s: %s %s: %s%s", place, done, what, named, ", …" if len(counts) > KINDS else "")


def find_images(
    table: pd.DataFrame,
    folders: Sequence[Path],
    borrowed: Collection[Path],
    places: Sequence[Path],
    split: str,
    below: Callable[[Path], Sequence[str]] = lambda top: list_images(top).images,
    drop: bool = False,
    faults: list[str] | None = None,
) -> pd.DataFrame:
    """Add `path`: the file of each name in the first folder that has it; a missing suffix is completed.

    Names found in none of the folders are searched for at any depth, in upper or lower case, with any image suffix.
    One log line counts the names without suffix that fit several files of a folder.

    Args:
        table: rows with `image` and `target`; a negative target means that the image may be missing.
        folders: folders to search first.
        borrowed: the `folders` that belong to other splits; a name found in two of them is ambiguous, unless both are
            the same file (one folder is a link to the other).
        places: the folder to search in depth, and the folder to prefer files near to.
        split: split of the table; images in folders of other splits are not used if it has its own folders.
        below: function that lists the images at any depth of a folder, as paths below it.
        drop: give a missing image the path where it should be, unless most are missing; it counts as unreadable.
        faults: gets the text about missing images, instead of an error.

    Raises:
        UserError: a listed image is missing (how many, the first names), or is in two folders.
    """
    parents = {os.path.dirname(os.path.normpath(name)) for name in table["image"]}  # noqa: PTH120 - a fifth of the time
    listing = [(folder, {parent: _by_name(_list(folder / parent)) for parent in parents}) for folder in folders]
    formats: dict[str, list[str]] = {}  # name → files of its folder that fit, the one that is used first

    def locate(name: str) -> str | None:
        parent, own = os.path.split(os.path.normpath(name))
        files = [(folder, names[parent].get(own)) for folder, names in listing]
        found = [(folder, os.path.join(folder, parent, file[0])) for folder, file in files if file]  # noqa: PTH118
        if not found:
            return None
        chosen, path = found[0]
        formats[name] = next(file for _, file in files if file)
        if len(found) > 1 and chosen in borrowed:
            _refuse_two_places(name, [Path(path), *(Path(other) for _, other in found[1:])])
        return path

    paths = table["image"].map(locate)
    if paths.isna().any():
        paths = paths.fillna(_in_depth(table.loc[paths.isna(), "image"], places, split, below(places[0]), formats))
    _say_formats(places[1], formats)
    wanted = table["target"] >= 0
    missing = table.loc[paths.isna() & wanted, "image"]
    few = 2 * len(missing) <= wanted.sum()
    if drop and few:
        paths = paths.mask(paths.isna() & wanted, table["image"].map(lambda name: os.path.join(folders[0], name)))  # noqa: PTH118
    elif len(missing):
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        found = [] if faults is None else faults
        found.append(
            f"{' and '.join(map(str, folders))}: {len(missing)} of {count(len(table), 'listed image')} "
            f"{'is' if len(missing) == 1 else 'are'} missing ({names}); searched there and below {places[0]}, ignoring "
            f"case, without and with the suffixes {' '.join(SUFFIXES[:4])} …; check data.root, and data.images or "
            f"data.{split}_images" + (", or set data.on_bad_image=drop to leave such rows out" if few else "")
        )
        if faults is None:
            refuse(found)
    return table.assign(path=paths)


def has_own(images: Iterable[str], split: str) -> bool:
    """Return whether any image, by its path, is in a folder named after the split."""
    return any(_rank(PurePosixPath(folder), split) == 0 for folder in {os.path.dirname(image) for image in images})  # noqa: PTH120


def _say_formats(place: Path, formats: Mapping[str, Sequence[str]]) -> None:
    """Log in one line how many names without suffix fit several files of a folder, and which is used; nothing if none.

    Args:
        place: the folder of the label file.
        formats: name → the files that fit, the one that is used first.
    """
    several = [(name, files) for name, files in formats.items() if len(files) > 1]
    if several:
        name, (used, *others) = several[0]
        number = count(len(several), "name without suffix fits", "names without suffix fit")
        log.info("%s: %s several files (%s is %s, not %s)", place, number, name, used, " or ".join(others))


def _in_depth(
    names: pd.Series, places: Sequence[Path], split: str, images: Iterable[str], formats: dict[str, list[str]]
) -> pd.Series:
    """Find the files of names at any depth; exact names come first, then files near the label file.

    Folders of other splits are skipped, and a file farther from the label file than most is not used. One log line
    counts the names that differ from their files in case, suffix, or how accents are encoded. `formats` gets the files
    of names without suffix.

    Raises:
        UserError: two folders have an equally good match, or one folder has two formats of it.
    """
    top, near = places
    files: dict[str, list[PurePosixPath]] = {}
    for file in map(PurePosixPath, images):
        files.setdefault(folded(stem_of(file.name)), []).append(file)
    ranks = {folder: _rank(folder, split) for folder in {file.parent for each in files.values() for file in each}}
    beside = near.relative_to(top).parts if near.is_relative_to(top) else ()
    fits: dict[str, list[str]] = {}

    def locate(name: str) -> tuple[int, PurePosixPath] | None:
        pure = PurePosixPath(name)
        below = [*map(folded, pure.parent.parts)]
        fitting = [
            file
            for file in files.get(folded(stem_of(pure.name)), [])
            if [*map(folded, file.parent.parts[len(file.parent.parts) - len(below) :])] == below
            and ranks[file.parent] < 2
        ]
        if not fitting:
            return None
        orders = [(_otherness(pure.name, file.name), -_shared(file.parts, beside)) for file in fitting]
        closest = [file for file, order in zip(fitting, orders, strict=True) if order == min(orders)]
        _refuse_two_places(name, [top / file for file in {file.parent: file for file in closest}.values()])
        if len(closest) > 1 and is_image(pure.name):
            kinds = " and ".join(file.name for file in closest)
            raise UserError(f"image {name!r}: {top / closest[0].parent} contains {kinds}; name one of them in the CSV")
        closest.sort(key=lambda file: (SUFFIXES.index(file.suffix.lower()), file.name))
        chosen = closest[0]
        fits[name] = [file.name for file in closest if file.parent == chosen.parent]
        return _shared(chosen.parts, beside), chosen

    found = {name: place for name in names if (place := locate(name)) is not None}
    usual = Counter(shared for shared, _ in found.values()).most_common(1)[0][0] if found else 0
    paths = {name: file for name, (shared, file) in found.items() if shared >= usual}
    formats |= {name: fits[name] for name in paths}
    other = [
        f"{PurePosixPath(name).name} is {file.name}"
        for name, file in paths.items()
        if _otherness(PurePosixPath(name).name, file.name)
    ]
    if other:
        number = count(len(other), "name")
        log.info("%s: %s with a case or suffix that differs from the file's (%s)", near, number, other[0])
    return pd.Series([str(top / paths[name]) if name in paths else None for name in names], names.index, dtype=object)


def _otherness(name: str, file: str) -> int:
    """Return how a file's name differs: 0 not at all or by a missing suffix, 1 in case or accents, 2 in its suffix."""
    if name in (file, stem_of(file)):
        return 0
    return 1 if folded(name) in (folded(file), folded(stem_of(file))) else 2


def _rank(folder: PurePosixPath, split: str) -> int:
    """Return 0 for a folder of the split, 1 for no split, 2 for other splits, by the innermost name with a split."""
    named = next((splits for part in reversed(folder.parts) if (splits := splits_of(part))), {split, ""})
    return 1 if "" in named else 0 if split in named else 2


def _shared(parts: Sequence[str], others: Sequence[str]) -> int:
    """Return how many leading folders two paths share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, others, strict=False)))


def _refuse_two_places(name: str, paths: Sequence[Path]) -> None:
    real = os.path.realpath(paths[0])
    others = [path for path in paths[1:] if os.path.realpath(path) != real]
    if others:
        folders = " and in ".join(str(path.parent) for path in (paths[0], *others))
        raise UserError(
            f"image {name!r} is in {folders}; create a folder for the split (val), or set data.images or "
            "data.train_images, data.val_images, data.test_images"
        )


def _by_name(files: Iterable[str]) -> dict[str, list[str]]:
    """Map names, with and without image suffix, to files: first those in lower case, in the order of SUFFIXES."""
    images = [(*os.path.splitext(file), file) for file in files if is_image(file)]  # noqa: PTH122
    images.sort(key=lambda image: (image[1] != image[1].lower(), SUFFIXES.index(image[1].lower()), image[2]))
    named: dict[str, list[str]] = {}
    for stem, _, file in images:
        named.setdefault(stem, []).append(file)
    return named | {file: [file] for file in files}


def say_unlisted(table: pd.DataFrame, root: Path, cache_dir: Path) -> None:
    """Log how many images in `root`, or in folders of listed images elsewhere, are not listed.

    Args:
        table: rows of all splits, with `path`.
        root: folder of the data set.
        cache_dir: a folder to skip.
    """
    real = cache(os.path.realpath)
    listed = {(real(os.path.dirname(path)), os.path.basename(path)) for path in table["path"]}  # noqa: PTH119, PTH120
    unlisted, apart = Counter[str](), os.path.realpath(cache_dir)
    for folder, names in _images_around(table, root):
        for part, name in map(os.path.split, names):
            place = f"{folder}/{part}" if part else folder
            if (real(place), name) not in listed and not f"{real(place)}/".startswith(f"{apart}/"):
                listed.add((real(place), name))
                unlisted[place] += 1
    counts = {f"in {os.path.relpath(folder, root)}": number for folder, number in unlisted.items()}
    say_left_out(root, "image that no CSV lists", "images that no CSV lists", Counter(counts))


def _images_around(table: pd.DataFrame, root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders in `root` and of listed images, with all images below; for `root` only those directly in it."""
    folders = {os.path.dirname(path) for path in table["path"]}  # noqa: PTH120 - ten times faster than Path objects
    with suppress(UserError):
        yield str(root), list_images(root, deep=False).images
        folders |= {str(folder) for folder in subfolders(root)}
    for folder in sorted(folders):
        if not any(str(parent) in folders for parent in Path(folder).parents):
            with suppress(UserError):  # an unreadable folder nearby is not an error
                yield folder, list_images(Path(folder)).images


def _list(folder: Path) -> set[str]:
    """Return the file names in a folder, and folders with an image suffix; empty if the folder does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if is_image(entry.name) or not entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def refuse_undecodable(paths: Iterable[str]) -> None:
    """Refuse a file name that is not UTF-8: it cannot be written to a CSV, log or report."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode(errors="backslashreplace").decode()
            raise UserError(f"{shown}: the name is not UTF-8; rename the file (convmv renames many at once)") from None
