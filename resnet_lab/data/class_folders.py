"""Data sets with a folder per class, optionally inside a folder per split."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from resnet_lab.data.image_data import ImageData, existing_folder
from resnet_lab.data.listing import (
    NO_IMAGES,
    SPLIT_NAMES,
    SUFFIXES,
    Listing,
    list_images,
    say_left_out,
    splits_of,
    subfolders,
    words_of,
)
from resnet_lab.data.patients import LEFT, RIGHT
from resnet_lab.errors import UserError

log = logging.getLogger(__name__)

OLDER_SUFFIXES = {kind for one in (".jpeg", ".jpg", ".png", ".tif", ".tiff") for kind in (one, one.upper())}
FILLERS = {"set", "split", "data", "dataset", "image", "images", "imgs", "img", "photo", "photos", "original", ""}


@dataclass(kw_only=True)
class ClassFolders(ImageData):
    """`root/<split>/<class>/<image>` or `root/<class>/<image>` (all of it train); classes in the order of their names.

    Images in sub-folders of a class belong to the class. A split's folder has a name of SPLIT_NAMES in upper or lower
    case, alone or with FILLERS (`a. Training Set`, `train_images`).
    """

    all_kinds: bool
    natural_order: bool

    def read_table(self) -> pd.DataFrame:
        """Return the rows of all splits; sets `class_names` from the folders of train if the configuration gives none.

        Raises:
            UserError: there is no image, a split has two folders, train lacks a class, or the class folders are
                named after splits or contain folders of splits.
        """
        root = existing_folder(self.root)
        if not self.all_kinds:
            return self._older_table(root)
        folders = _split_folders(root) or {"train": root}
        listings = {split: {path: self._listed(path) for path in subfolders(folders[split])} for split in folders}
        filled = {path.name for found in listings.values() for path, listing in found.items() if listing.images}
        if self.class_names is None:
            self.class_names = self._found_classes(root, listings, filled)
        rows = [row for split, found in listings.items() for row in self._rows(found, split, root)]
        if not rows:
            raise UserError(f"{root} contains no images ({' '.join(SUFFIXES[:4])} …) in class folders")
        self._say_left_out(root, folders, listings)
        _say_same_folders(root, listings.get("train", {}))
        return pd.DataFrame(rows)

    def _listed(self, folder: Path) -> Listing:
        """List the images at and below a folder, without those of prepared sets."""
        return list_images(folder, apart=self.prepared_set.cache_dir)

    def _older_table(self, root: Path) -> pd.DataFrame:
        """List the images as versions before 2 did, so that their runs can resume: few suffixes, no sub-folders."""
        folders = {split: root / split for split in SPLIT_NAMES if (root / split).is_dir()} or {"train": root}
        classes = {
            split: [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
            for split, folder in folders.items()
        }
        if self.class_names is None:
            self.class_names = self._in_order(path.name for path in classes.get("train", []))
        names = self.class_names
        return pd.DataFrame(
            {"image": str(file.relative_to(root)), "target": names.index(path.name), "split": split, "path": str(file)}
            for split, found in classes.items()
            for path in found
            for file in sorted(path.iterdir())
            if file.suffix in OLDER_SUFFIXES
        )

    def _found_classes(self, root: Path, listings: dict[str, dict[Path, Listing]], filled: set[str]) -> list[str]:
        """Return the classes of train; without train, if `all_images` is set, the classes of any split."""
        if "train" not in listings and self.all_images is None:
            raise UserError(
                f"{root} contains no folder train; put the training classes into {root / 'train'}, "
                "or set data.all_images=test to evaluate on all images"
            )
        found = [listings["train"]] if "train" in listings else listings.values()
        every = sorted({folder.name for split in found for folder in split} & filled, reverse=True)
        names = self._in_order({_spelled(name): name for name in every}.values())
        _refuse_splits_as_classes(root, names)
        if self.ordered and not all(re.search(r"\d", name) for name in names):
            order = ", ".join(names)
            text = "%s: grades in alphabetical order (%s); set data.class_names=[…] for another order"
            log.warning(text, root, order)
        return names

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Sort the class names by their numbers (`2 - moderate`, `10 - other`), or else as strings."""
        names = sorted(names)
        by_number = self.natural_order and (self.ordered or all(name[:1].isdecimal() for name in names))
        return sorted(names, key=_by_number) if by_number else names

    def _rows(self, found: dict[Path, Listing], split: str, root: Path) -> list[dict[str, str | int]]:
        assert self.class_names is not None
        places = {_spelled(name): place for place, name in enumerate(self.class_names)}
        rows: list[dict[str, str | int]] = []
        for class_folder, listing in found.items():
            if not listing.images:
                continue
            if _spelled(class_folder.name) not in places:
                raise UserError(
                    f"{class_folder} is not one of the classes {', '.join(self.class_names)}; "
                    "rename the folder, or set data.class_names"
                )
            _refuse_splits_below(class_folder, listing)
            below, target = class_folder.relative_to(root).as_posix(), places[_spelled(class_folder.name)]
            rows += [
                {"image": f"{below}/{name}", "target": target, "split": split, "path": f"{class_folder}/{name}"}
                for name in listing.images
            ]
        return rows

    def _say_left_out(self, root: Path, folders: dict[str, Path], listings: dict[str, dict[Path, Listing]]) -> None:
        """Log folders without images, images in sub-folders or outside the class folders, and files without images."""
        assert self.class_names is not None
        outside, others, inner, empty = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for folder, listing in ((path, listing) for found in listings.values() for path, listing in found.items()):
            others += listing.others
            below = [name.rpartition("/")[0] for name in listing.images if "/" in name]
            inner.update(f"in {(folder / part).relative_to(root).as_posix()}" for part in below)
            empty[folder.name] += _spelled(folder.name) not in map(_spelled, self.class_names)
        for folder in {root, *folders.values()}:
            listing = list_images(folder, deep=False, apart=self.prepared_set.cache_dir)
            outside[f"in {folder.name}"] = len(listing.images)
            others += listing.others
        if root not in folders.values():
            for folder in set(subfolders(root)) - set(folders.values()):
                outside[f"in {folder.name}"] = len(self._listed(folder).images)
        say_left_out(root, "class folder without an image", "class folders without an image", +empty)
        to_class = "to the class above them"
        say_left_out(root, f"image of sub-folders {to_class}", f"images of sub-folders {to_class}", inner, "added")
        say_left_out(root, "image outside the class folders", "images outside the class folders", +outside)
        say_left_out(root, *NO_IMAGES, others)


def _say_same_folders(root: Path, found: dict[Path, Listing]) -> None:
    """Warn if all classes have the same sub-folders, which may be the classes, below splits with unusual names."""
    filled = {folder.name: listing.images for folder, listing in found.items() if listing.images}
    below = [{name.partition("/")[0] if "/" in name else "" for name in images} for images in filled.values()]
    if len(below) < 2 or len(below[0]) < 2 or any(each != below[0] for each in below):
        return
    if not {name.lower() for name in below[0]} <= {*LEFT, *RIGHT}:
        text = "%s: the classes %s have the same folders (%s); if those are the classes, rename the folders above"
        log.warning(text, root, " and ".join(filled), ", ".join(sorted(below[0])))


def _refuse_splits_below(class_folder: Path, listing: Listing) -> None:
    """Refuse a class with folders of splits at any depth; a lone `train` counts only if it contains folders."""
    children: dict[PurePosixPath, set[str]] = {}
    for part in {name.rpartition("/")[0] for name in listing.images} - {""}:
        for path in (PurePosixPath(part), *PurePosixPath(part).parents[:-1]):
            children.setdefault(path.parent, set()).add(path.name)
    for parent, names in children.items():
        found = _splits(names)
        too_high = any(parent / name in children for split in found.values() for name in split)
        if too_high or set(found) - {"train"}:
            remedy = (
                "set data.root to it" if too_high else f"put the splits above the classes (train/{class_folder.name})"
            )
            raise UserError(f"{class_folder / parent} is not a class: it contains a folder per split; {remedy}")


def _by_number(name: str) -> list[str | int]:
    """Split a name into alternating text and numbers, so that names sort numerically."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def _words(name: str) -> set[str]:
    return {word.removesuffix("set") for word in words_of(name)} - FILLERS


def _splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Map each split to its names, preferably without fillers; empty if they are classes (`valid`, `invalid`)."""
    names, found = sorted(names), {}
    for split, own in SPLIT_NAMES.items():
        exact = [name for name in names if name.lower() in own]
        found[split] = exact or [name for name in names if _words(name) and _words(name) <= {*own}]
    if not found["train"] and not found["test"] and not any("val" in _words(name) for name in found["val"]):
        return {}
    return {split: chosen for split, chosen in found.items() if chosen}


def _split_folders(root: Path) -> dict[str, Path]:
    """Map each split to its folder; empty if the folders are classes.

    Raises:
        UserError: two folders belong to one split.
    """
    found = _splits(path.name for path in subfolders(root))
    for split, names in found.items():
        if len(names) > 1:
            both = " and ".join(names)
            raise UserError(f"{root} contains {both}, two folders of split {split}; put their images into one folder")
    return {split: root / names[0] for split, names in found.items()}


def _refuse_splits_as_classes(root: Path, names: list[str]) -> None:
    """Refuse classes that are all named after splits, unless all are the same split (`my_train`, `my_test`)."""
    named = [frozenset(splits_of(name)) for name in names]
    if all(named) and len({*named}) > 1:
        raise UserError(
            f"{root} contains {' and '.join(names)}: splits, not classes; rename them to train, val and test"
        )


def _spelled(name: str) -> str:
    """Return the name of a class for comparison: without outer spaces, an accent and its letter as one character."""
    return unicodedata.normalize("NFC", name).strip()
