"""A folder per class, with or without a folder per split above it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_lab.data.image_data import ImageData, existing_folder
from resnet_lab.data.listing import SUFFIXES, list_images, say_left_out, subfolders
from resnet_lab.errors import UserError

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(kw_only=True)
class ClassFolders(ImageData):
    """`root/<split>/<class>/<image>` or `root/<class>/<image>` (all of it train); classes in order of their names.

    Images count in sub-folders of a class, too. The splits have the folders of NAMES, in whatever case.
    """

    def read_table(self) -> pd.DataFrame:
        """Rows of all splits; sets `class_names` from the folders of train where the configuration gives none.

        Raises:
            UserError: there is no image, a split has two folders, or a class has a folder that train does not have.
        """
        root = existing_folder(self.root)
        folders = _split_folders(root) or {"train": root}
        if self.class_names is None:
            self.class_names = self._found_classes(root, folders)
        self._others: Counter[str] = Counter()
        rows = [row for split, folder in folders.items() for row in self._rows(folder, split, root)]
        if not rows:
            raise UserError(f"{root} holds no images ({' '.join(SUFFIXES[:4])} …) in a folder per class")
        self._say_left_out(root, folders)
        return pd.DataFrame(rows)

    def _found_classes(self, root: Path, folders: dict[str, Path]) -> list[str]:
        """The classes of train; where all images are one split and there is no train, those of any split."""
        if "train" not in folders and self.all_images is None:
            raise UserError(f"{root} holds no folder train; put the training classes into {root / 'train'}")
        found = [folders["train"]] if "train" in folders else folders.values()
        return sorted({folder.name for split in found for folder in subfolders(split)})

    def _rows(self, folder: Path, split: str, root: Path) -> list[dict[str, str | int]]:
        assert self.class_names is not None
        rows: list[dict[str, str | int]] = []
        for class_folder in subfolders(folder):
            if class_folder.name not in self.class_names:
                raise UserError(
                    f"{class_folder}: no class of that name among {', '.join(self.class_names)}; "
                    "rename the folder, or set data.class_names"
                )
            inner = _split_folders(class_folder).get("train")
            if inner is not None and subfolders(inner):
                raise UserError(f"{class_folder} is no class, as it holds a folder per split; set data.root to it")
            target, listing = self.class_names.index(class_folder.name), list_images(class_folder)
            self._others += listing.others
            below = class_folder.relative_to(root).as_posix()
            rows += [
                {"image": f"{below}/{name}", "target": target, "split": split, "path": f"{class_folder}/{name}"}
                for name in listing.images
            ]
        return rows

    def _say_left_out(self, root: Path, folders: dict[str, Path]) -> None:
        """Log what lies in no class folder of a split, and what is no image."""
        outside: Counter[str] = Counter()
        for folder in {root, *folders.values()}:
            listing = list_images(folder, deep=False)
            outside[f"in {folder.name}"] = len(listing.images)
            self._others += listing.others
        if root not in folders.values():
            for folder in set(subfolders(root)) - set(folders.values()):
                outside[f"in {folder.name}"] = len(list_images(folder).images)
        say_left_out(root, "images outside the class folders", +outside)
        say_left_out(root, "files that are no images by their suffix", self._others)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split → its folder; none where the folders are classes (`valid` and `invalid` alone are).

    Raises:
        UserError: two folders are of one split.
    """
    found = {split: [path for path in subfolders(root) if path.name.lower() in names] for split, names in NAMES.items()}
    if not found["train"] and not found["test"] and not any(path.name.lower() == "val" for path in found["val"]):
        return {}
    for split, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise UserError(f"{root} holds {names}, which are both {split}; put their images into one folder")
    return {split: paths[0] for split, paths in found.items() if paths}
