"""A folder per class, with or without a folder per split above it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_lab.data.image_data import ImageData, existing_folder
from resnet_lab.data.table import SPLITS, SUFFIXES
from resnet_lab.errors import UserError


@dataclass(kw_only=True)
class ClassFolders(ImageData):
    """`root/<split>/<class>/<image>` or `root/<class>/<image>` (all of it train); classes in order of their names."""

    def read_table(self) -> pd.DataFrame:
        """Rows of all splits; sets `class_names` from the folders of train where the configuration gives none.

        Raises:
            UserError: there is no image, or a class folder that train does not have.
        """
        root = existing_folder(self.root)
        folders = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"train": root}
        if "train" not in folders:
            raise UserError(f"{root} holds no folder train; put the training classes into {root / 'train'}")
        if self.class_names is None:
            self.class_names = [folder.name for folder in _class_folders(folders["train"])]
        table = pd.DataFrame([row for split, folder in folders.items() for row in self._rows(folder, split, root)])
        if table.empty:
            raise UserError(f"{root} holds no images ({' '.join(SUFFIXES[:4])}) in a folder per class")
        return table

    def _rows(self, folder: Path, split: str, root: Path) -> list[dict[str, str | int]]:
        assert self.class_names is not None
        rows: list[dict[str, str | int]] = []
        for class_folder in _class_folders(folder):
            if class_folder.name not in self.class_names:
                raise UserError(
                    f"{class_folder}: no class of that name among {', '.join(self.class_names)}; "
                    "rename the folder, or set data.class_names"
                )
            target = self.class_names.index(class_folder.name)
            files = sorted(path for path in class_folder.iterdir() if path.suffix in SUFFIXES)
            rows += [
                {"image": str(path.relative_to(root)), "target": target, "split": split, "path": str(path)}
                for path in files
            ]
        return rows


def _class_folders(folder: Path) -> list[Path]:
    # hidden ones, such as .ipynb_checkpoints, are no classes
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
