"""Retinopathy photographs with CSV labels: the studies' four files, Kaggle 2015, APTOS, or any CSV."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal

import pandas as pd

from resnet_lab.data.image_data import ImageData, existing_folder
from resnet_lab.data.label_files import columns_of_tables, is_text, label_files, unreadable
from resnet_lab.data.labels import BAD, PATIENTS, Grades, lists_labels, parse, read_labels, read_pair
from resnet_lab.data.listing import find_images, has_own, list_images, say_unlisted, splits_of
from resnet_lab.data.splits import SPLITS
from resnet_lab.errors import UserError, count, refuse
from resnet_lab.values import Count, Text

log = logging.getLogger(__name__)

SOURCE = (  # where to download the data
    "EyePACS: kaggle.com/c/diabetic-retinopathy-detection, APTOS: kaggle.com/c/aptos2019-blindness-detection, "
    "IDRiD: doi.org/10.3390/data3030025"
)
LABEL_FILES = {  # names of the 2015 competition and of APTOS 2019; they take precedence over other files
    "train": ("trainLabels.csv", "train.csv"),
    "val": ("val.csv", "valid.csv", "validation.csv"),
    "test": ("test.csv", "testing.csv"),
}
SOLUTION = "retinopathy_solution.csv"  # of the 2015 competition, published afterward
USAGES = {"Public": "val", "Private": "test"}  # the community's protocol
OLDER_VAL = ("images", "test", "test_images", "train", "train_images")  # searched for val by versions before 2
IMAGE_FOLDERS = {
    "train": ("images", "train", "train_images"),
    # the competition's validation images are among its test images
    "val": ("images", "val", "val_images", "valid", "validation", "test", "test_images", "train", "train_images"),
    "test": ("images", "test", "test_images", "train", "train_images"),
}
BORROWED = {"train": (), "val": ("test", "test_images", "train", "train_images"), "test": ()}  # folders of other splits


def _speaks_of_others(folder: Path, split: str) -> bool:
    return bool(splits_of(folder.name)) and split not in splits_of(folder.name)


LISTED = "listed_patient"  # column with the texts of a column that no key names
Labels = tuple[pd.DataFrame, Path]  # rows with `image` and `target`, and their file


@dataclass(kw_only=True)
class Retinopathy(ImageData):
    """A folder of photographs and its CSVs; files and columns of keys that are None are found by common names."""

    train_csv: str | None
    val_csv: str | None
    test_csv: str | None
    solution_csv: str | None
    find_csvs: bool
    images: str | None
    train_images: str | None
    val_images: str | None
    test_images: str | None
    image_column: str | None
    label_column: str | None
    patient_column: str | None
    labels: dict[str, Count | Text] | None
    first_label: Count
    on_bad_label: Literal["error", "drop"]

    def read_table(self) -> pd.DataFrame:
        """Return the rows of all splits without invalid labels; sets `bad_labels`, the number of these.

        With `on_bad_image=drop`, a row without its file stays; it is dropped later, like an unreadable image.

        Raises:
            UserError: a folder, file, column, label, name or image is wrong; the message names it.
        """
        root = existing_folder(self.root, source=SOURCE)
        if swapped := self._grades.swapped():
            raise UserError(f"data.class_names: {swapped}")
        self._faults, self._patients_named = list[str](), ""
        labels = self._labels(root)
        for split in SPLITS:
            if getattr(self, f"{split}_images") and split not in labels:
                raise UserError(f"data.{split}_images: {split} has no label file; name it in data.{split}_csv")
        below = cache(lambda top: list_images(top, apart=self.prepared_set.cache_dir).images)
        located = [self._located(root, split, *rows, below) for split, rows in labels.items()]
        refuse(self._faults)
        table = pd.concat(located, keys=labels)  # the index is the split and the line
        here = table.dropna(subset="path")  # images of rows with an invalid label may be missing
        here = here[here["path"].map(os.path.isfile)]
        good = here[here["target"] != BAD]
        self._refuse_listed_twice(root, good, {split: source for split, (_, source) in labels.items()})
        say_unlisted(here, root, self.prepared_set.cache_dir)
        bad = table["target"] == BAD
        self.bad_labels = int(bad.sum())
        if self._patients_named:
            known = table[~bad].dropna(subset=LISTED)
            self.unused_patients = self._patients_named, dict(zip(known["path"], known[LISTED], strict=True))
            table = table.drop(columns=LISTED)
        return table[~bad].reset_index(drop=True)

    def _refuse_listed_twice(self, root: Path, rows: pd.DataFrame, sources: dict[str, Path]) -> None:
        """Refuse rows of the same file; their names may differ: `1` and `1.jpeg`.

        Raises:
            UserError: a file has several rows; the message names those of the first.
        """
        again = rows.loc[rows["path"].duplicated(), "path"]
        if again.empty:
            return
        same = rows[rows["path"] == again.iloc[0]]
        seen = [
            f"{image!r} in line {line} of {os.path.relpath(sources[split], root)}"
            for (split, line), image in same["image"].items()
        ]
        names = self._grades.class_names
        labels = [repr(names[target]) for target in same["target"].unique()]
        differ = f", with labels {' and '.join(labels)}" if len(labels) > 1 else ""
        leak = f", a leak between {' and '.join(same['split'].unique())}" if same["split"].nunique() > 1 else ""
        raise UserError(
            f"{root}: the CSVs list {count(again.nunique(), 'image file')} twice (first {' and '.join(seen)}"
            f"{differ}{leak}); keep one row of each"
        )

    def _labels(self, root: Path) -> dict[str, Labels]:
        """Return rows and label file by split: files named by keys, the studies' pairs, or files found.

        Raises:
            UserError: train is missing and `all_images` is not set.
        """
        if self.solution_csv and (self.val_csv or self.test_csv):
            raise UserError("data.solution_csv provides both val and test; leave out data.val_csv and data.test_csv")
        named = {"train": self.train_csv, "val": self.val_csv, "test": self.test_csv}
        self._refuse_no_text(root, [name for name in named.values() if name])
        labels = {split: self._read(root / name) for split, name in named.items() if name is not None}
        if self.train_csv is None:
            pairs = {split: self._pair(root, split) for split in ("train", "test") if split not in labels}
            labels |= {split: pair for split, pair in pairs.items() if pair is not None}
        if self.solution_csv or (not any(named.values()) and self._has_solution(root)):
            labels |= self._solution(root / (self.solution_csv or SOLUTION))
        labels |= {split: self._read(path) for split, path in self._found(root, labels).items()}
        if "train" not in labels and not (self.all_images and labels):
            tables = columns_of_tables(root)[:3] if self.find_csvs else []
            seen = f" ({'; '.join(tables)})" if tables else ""
            split = self.all_images or "train"
            instead = "" if self.all_images else ", or set data.all_images=test to evaluate without a train CSV"
            broken = ", ".join(str(path.relative_to(root)) for path in unreadable(root)[:3]) if self.find_csvs else ""
            raise UserError(
                (f"{root}: save {broken} as CSV in UTF-8; the folder " if broken else f"{root} ")
                + f"contains neither train_img.csv with train_label.csv, nor {' nor '.join(LABEL_FILES['train'])}, "
                f"nor another file with names and grades{'' if self.all_images else ' for train'}{seen}; name yours in "
                f"data.{split}_csv (and its columns in data.image_column and data.label_column){instead}"
            )
        return {split: labels[split] for split in SPLITS if split in labels}

    def _refuse_no_text(self, root: Path, named: list[str]) -> None:
        """Refuse several label files that are not UTF-8 text; the error of a single one names it, too.

        Raises:
            UserError: there are several.
        """
        pairs = [f"{split}_{kind}.csv" for split in ("train", "test") for kind in ("img", "label")]
        names = named or [*pairs, *chain(*LABEL_FILES.values())]
        broken = [name for name in dict.fromkeys(names) if (root / name).is_file() and not is_text(root / name)]
        if len(broken) > 1:
            raise UserError(f"{root}: {', '.join(broken)} are not UTF-8 text; save each as CSV in UTF-8")

    def _has_solution(self, root: Path) -> bool:
        """Return whether the competition's solution exists and has the configured columns."""
        file = root / SOLUTION
        return file.is_file() and (not self.find_csvs or lists_labels(file, self._columns, self._grades))

    def _found(self, root: Path, labels: dict[str, Labels]) -> dict[str, Path]:
        """Find label files below root for splits without one; only for train if a key names any file.

        Raises:
            UserError: a split has several candidates.
        """
        keys = (self.train_csv, self.val_csv, self.test_csv, self.solution_csv)
        wanted = [split for split in (("train",) if any(keys) else SPLITS) if split not in labels]
        usual = {split: [root / name for name in LABEL_FILES[split] if (root / name).is_file()] for split in wanted}
        if "train" in labels or not self.find_csvs:
            return {split: files[0] for split, files in usual.items() if split == "train" and files}
        files = label_files(root, self._columns, self._grades)
        known = [root / name for name in (*keys, SOLUTION) if name]
        files = {split: [file for file in found if file not in known] for split, found in files.items()}
        fitting = {  # including unreadable files, so that the error names them
            split: [file for file in usual[split] if file in files.get(split, []) or not is_text(file)]
            for split in wanted
        }
        without = [file for split in wanted for file in usual[split] if file not in fitting[split]]
        if fitting["train"] or files.get("train") or files.get(""):  # else the error names the usual file
            usual["train"] = fitting["train"]
        usual |= {split: fitting[split] for split in wanted[1:]}
        found = {split: usual[split][:1] or files.get(split, []) for split in wanted}
        if "train" in wanted and not found["train"]:
            found["train"] = files.get("", [])
        for split, several in found.items():
            if len(several) > 1:
                names = " and ".join(str(file.relative_to(root)) for file in several)
                raise UserError(f"{root}: {names} could each be the labels of {split}; name one in data.{split}_csv")
        taken = {split: one for split, several in found.items() for one in several}
        left = [file for several in (*files.values(), without) for file in several if file not in taken.values()]
        used = [f"{split} from {file.relative_to(root)}" for split, file in taken.items()]
        more = f"; left out {', '.join(str(file.relative_to(root)) for file in left)}" if left else ""
        log.info("%s: %s%s", root, ", ".join(used) or "no label file with known columns", more)
        return taken

    def _located(
        self, root: Path, split: str, labels: pd.DataFrame, source: Path, below: Callable[[Path], list[str]]
    ) -> pd.DataFrame:
        """Return the rows of a split with the paths of their images; `below` lists the images of a folder."""
        own = getattr(self, f"{split}_images")
        if own is None and self.images is None:
            top, names = root, IMAGE_FOLDERS[split] if self.find_csvs or split != "val" else OLDER_VAL
            folders = [root / name for name in names if (root / name).is_dir()]
            others = [folder for folder in folders if _speaks_of_others(folder, split)]
            if self.find_csvs and others and has_own(below(root), split):
                folders = [folder for folder in folders if folder not in others]
            folders = folders or [root]
        else:
            key = "data.images" if own is None else f"data.{split}_images"
            top = existing_folder(str(root / (own or str(self.images))), key)
            folders = [top]
        borrowed = [root / name for name in BORROWED[split]]
        places, drop = (top, source.parent), self.on_bad_image == "drop"
        return find_images(labels, folders, borrowed, places, split, below, drop, self._faults).assign(split=split)

    def _solution(self, path: Path) -> dict[str, Labels]:
        """Return the competition's public rows as val and its private rows as test."""
        rows, _ = self._read(path, {"usage": ("Usage", "data.solution_csv")})
        unknown = rows[~rows["usage"].isin(USAGES)]
        if len(unknown):
            line, row = unknown.index[0], unknown.iloc[0]
            place = f"in line {line} (image {row['image']})"
            raise UserError(f"{path}: Usage {row['usage']!r} {place}: it must be {' or '.join(USAGES)}")
        return {split: (rows[rows["usage"] == usage].drop(columns="usage"), path) for usage, split in USAGES.items()}

    def _pair(self, root: Path, split: str) -> Labels | None:
        images, labels = root / f"{split}_img.csv", root / f"{split}_label.csv"
        if not images.is_file() and not labels.is_file():
            return None
        others = self.train_csv or self.val_csv or self.test_csv or self.solution_csv  # which the keys may be for
        for key in ("patient_column", *(() if others else ("image_column", "label_column"))):
            if (name := getattr(self, key)) is not None:
                file = labels if key == "label_column" else images
                raise UserError(
                    f"data.{key}={name}: {file} is read by its only column; leave the key out, or name a CSV with this "
                    "column in data.train_csv"
                )
        return self._parsed(read_pair(images, labels, self._grades), images, labels), images

    def _read(self, path: Path, more: dict[str, tuple[str, str]] | None = None) -> Labels:
        more = dict(more or {})
        if self.patient_column is not None:
            more["patient"] = (self.patient_column, "data.patient_column")
        labels = read_labels(path, self.image_column, self.label_column, self._grades, more)
        name, texts = labels.attrs.pop(PATIENTS, ("", []))
        parsed = self._parsed(labels, path, path)
        if name:
            self._patients_named = name
            parsed = parsed.assign(**{LISTED: parsed.index.map(dict(zip(labels.index, texts, strict=True)))})
        return parsed, path

    def _parsed(self, labels: pd.DataFrame, image_csv: Path, label_csv: Path) -> pd.DataFrame:
        return parse(labels, image_csv, label_csv, self._grades, self.on_bad_label == "drop", self._faults)

    @property
    def _columns(self) -> tuple[str | None, str | None]:
        return self.image_column, self.label_column

    @property
    def _grades(self) -> Grades:
        if not self.class_names:
            raise UserError("data.class_names is empty; list one name per grade")
        return Grades(self.class_names, self.labels, self.first_label)
