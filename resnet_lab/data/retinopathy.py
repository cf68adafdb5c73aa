"""Retinopathy photographs with CSV labels: the studies' four files, Kaggle 2015, APTOS, or any CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_lab.data.image_data import ImageData, existing_folder
from resnet_lab.data.label_files import parse, read_labels, read_pair
from resnet_lab.data.listing import find_images, say_unlisted
from resnet_lab.errors import UserError, count

SOURCE = (  # where the data can be had
    "EyePACS: kaggle.com/c/diabetic-retinopathy-detection, APTOS: kaggle.com/c/aptos2019-blindness-detection, "
    "IDRiD: doi.org/10.3390/data3030025"
)
LABEL_FILES = ("trainLabels.csv", "train.csv")  # the 2015 competition's, APTOS 2019's
SOLUTION = "retinopathy_solution.csv"  # the 2015 competition's, published after it
USAGES = {"Public": "val", "Private": "test"}  # the community's protocol
IMAGE_FOLDERS = {
    "train": ("images", "train", "train_images"),
    # the competition's validation images are among its test images
    "val": ("images", "val", "val_images", "valid", "validation", "test", "test_images", "train", "train_images"),
    "test": ("images", "test", "test_images", "train", "train_images"),
}
BORROWED = {"train": (), "val": ("test", "test_images", "train", "train_images"), "test": ()}  # of other splits


@dataclass(kw_only=True)
class Retinopathy(ImageData):
    """A folder of photographs and its CSVs; a key that is None is found by the names that users have."""

    train_csv: str | None  # below root; None: train_img.csv with train_label.csv, trainLabels.csv or train.csv
    val_csv: str | None  # None: cut from train (val_fraction)
    test_csv: str | None  # None: test_img.csv with test_label.csv, or cut from train (test_fraction)
    solution_csv: str | None  # None: retinopathy_solution.csv where root has it and no CSV is named
    images: str | None  # folder below root; None: those of IMAGE_FOLDERS, or root itself
    image_column: str | None  # None: image or id_code
    label_column: str | None  # None: level, diagnosis or label
    patient_column: str | None  # None: the patient is in the name (patient_regex)

    def read_table(self) -> pd.DataFrame:
        """Rows of all splits that have a file.

        Raises:
            UserError: a folder, file, column, label, name or image is wrong; the message says which.
        """
        root = existing_folder(self.root, source=SOURCE)
        if self.solution_csv and (self.val_csv or self.test_csv):
            raise UserError("data.solution_csv names both val and test; leave out data.val_csv and data.test_csv")
        splits = {"train": self._train(root), "val": self._named(root, self.val_csv), "test": self._test(root)}
        splits |= self._solution(root)
        rows = [
            find_images(labels, self._image_folders(root, split), [root / name for name in BORROWED[split]]).assign(
                split=split
            )
            for split, labels in splits.items()
            if labels is not None
        ]
        table = pd.concat(rows, ignore_index=True)
        twice = table.loc[table["path"].duplicated(), "image"]  # not the names: `1` and `1.jpeg` are one file
        if len(twice):
            raise UserError(
                f"{root}: the CSVs list {count(len(twice), 'image file')} twice (first {twice.iloc[0]!r}); "
                "keep one row of each"
            )
        say_unlisted(table, root, self.prepared_set.cache_dir)
        return table

    def _train(self, root: Path) -> pd.DataFrame | None:
        if self.train_csv is None and (pair := self._pair(root, "train")) is not None:
            return pair
        found = [name for name in LABEL_FILES if (root / name).is_file()]
        if self.train_csv is None and not found:
            others = any((root / name).is_file() for name in ("test_img.csv", "test_label.csv", SOLUTION))
            if self.all_images and (self.val_csv or self.test_csv or self.solution_csv or others):
                return None
            raise UserError(
                f"{root} holds neither train_img.csv with train_label.csv nor {' nor '.join(LABEL_FILES)}; "
                "name your file in data.train_csv, or set data.all_images=test to evaluate on data without a train CSV"
            )
        return self._named(root, self.train_csv or found[0])

    def _test(self, root: Path) -> pd.DataFrame | None:
        if self.test_csv is None and self.train_csv is None:
            return self._pair(root, "test")
        return self._named(root, self.test_csv)

    def _solution(self, root: Path) -> dict[str, pd.DataFrame | None]:
        """The competition's public rows as val and its private rows as test, where there is such a file."""
        named = any((self.train_csv, self.val_csv, self.test_csv))
        name = self.solution_csv or (SOLUTION if not named and (root / SOLUTION).is_file() else None)
        rows = self._named(root, name, {"usage": ("Usage", "data.solution_csv")})
        if rows is None:
            return {}
        if unknown := set(rows["usage"]) - set(USAGES):
            raise UserError(f"{root / str(name)}: Usage {sorted(unknown)[0]!r}: it has to be {' or '.join(USAGES)}")
        return {split: rows[rows["usage"] == usage].drop(columns="usage") for usage, split in USAGES.items()}

    def _pair(self, root: Path, split: str) -> pd.DataFrame | None:
        images, labels = root / f"{split}_img.csv", root / f"{split}_label.csv"
        if not images.is_file() and not labels.is_file():
            return None
        if self.patient_column is not None:
            raise UserError(
                f"data.patient_column={self.patient_column}: {images} has one column; name a CSV that has it"
            )
        return parse(read_pair(images, labels), images, labels, self._num_classes)

    def _named(
        self, root: Path, name: str | None, more: dict[str, tuple[str, str]] | None = None
    ) -> pd.DataFrame | None:
        if name is None:
            return None
        path, more = root / name, dict(more or {})
        if self.patient_column is not None:
            more["patient"] = (self.patient_column, "data.patient_column")
        return parse(read_labels(path, self.image_column, self.label_column, more), path, path, self._num_classes)

    @property
    def _num_classes(self) -> int:
        if not self.class_names:
            raise UserError("data.class_names is empty; list one name per grade")
        return len(self.class_names)

    def _image_folders(self, root: Path, split: str) -> list[Path]:
        if self.images is not None:
            return [existing_folder(str(root / self.images), "data.images")]
        return [root / name for name in IMAGE_FOLDERS[split] if (root / name).is_dir()] or [root]
