"""Base class of data sets: the table of images, and every setting for turning them into batches (no torch)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import numpy as np
import pandas as pd

from resnet_lab.data.augmentation import Augmentation
from resnet_lab.data.check import Rules, check_files, drop_defects
from resnet_lab.data.listing import refuse_undecodable
from resnet_lab.data.patients import (
    DEFAULTS,
    EACH_IMAGE,
    distinct_names,
    find_patients,
    patients_of_column,
    unused_column,
)
from resnet_lab.data.prepared import PreparedSet, as_stored
from resnet_lab.data.reader import Recipe, read_image
from resnet_lab.data.settings import refuse_contradictions
from resnet_lab.data.splits import (
    cut_fold,
    cut_split,
    join_patients,
    limit_classes,
    limit_rows,
    remap_splits,
    resolve_leaks,
)
from resnet_lab.errors import UserError, count
from resnet_lab.values import BelowOne, Count, FromOne, NotNegative, Seed, Share, Within, conform

log = logging.getLogger(__name__)

Side = Annotated[int, Within(1, 10_000)]


# keys that leave each split with the same images and labels
LOADING = {
    *("name", "image_size", "resize", "eye_crop", "local_mean", "crop", "padding", "interpolation", "mean", "std"),
    *("sampling", "sampling_decay", "sampling_final", "batch_size", "num_workers", "in_memory", "cache_dir"),
    *("prepared_format", *(each.name for each in fields(Augmentation))),
}


@dataclass(kw_only=True)
class ImageData(Augmentation, ABC):
    """Settings shared by all data sets; a data set adds its own fields and `read_table`.

    The fields are the keys of `conf/data/*.yaml`, which documents them (`_common.yaml` the shared ones).
    """

    unused_patients = ("", dict[str, str]())  # a column that no key names, and its text by path
    names_patients = True  # whether `patient_regex=auto` looks for patients in the names

    name: str
    root: str
    class_names: list[str] | None
    ordered: bool

    image_size: Side
    resize: Literal["square", "shorter"]
    eye_crop: bool
    local_mean: bool
    crop: Side | None
    padding: Annotated[int, Within(0, 10_000)]
    interpolation: Literal["bilinear", "nearest"]
    mean: Literal["train", "model"] | list[float] | None
    std: Literal["train", "model"] | list[float] | None

    splits: dict[str, str | list[str]] | None
    all_images: Literal["train", "val", "test"] | None
    val_fraction: BelowOne
    test_fraction: BelowOne
    folds: Annotated[int, Within(2, 1_000)] | None
    fold: Count
    split_seed: Seed
    patient_regex: str | None
    on_leak: Literal["error", "drop", "ignore"]
    on_bad_image: Literal["error", "drop"]
    max_pixels: Annotated[int, Within(1, 10_000_000_000)]
    strict_jpeg: bool
    max_images: FromOne | None
    max_per_class: FromOne | None

    sampling: Literal["none", "balanced", "undersample", "progressive"]
    sampling_decay: Share
    sampling_final: NotNegative

    batch_size: FromOne
    num_workers: Literal["auto"] | Annotated[int, Within(0, 1_000)]
    in_memory: bool | Literal["auto", "device"]
    cache_dir: str
    prepared_format: Literal["jpeg", "raw"]

    def __post_init__(self) -> None:
        """Refuse values of a wrong type and contradictions, by key."""
        self.bad_labels = 0  # rows dropped because their label is empty, out of range or unknown
        self.patients = EACH_IMAGE  # how patients were found; set by `listed`
        self.own_splits = set[str]()  # splits that are not drawn; set by `table`
        self.as_prepared = False  # originals are read as prepared JPEGs, for a network that was trained on those
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            setattr(self, field.name, conform(f"data.{field.name}", getattr(self, field.name), hints[field.name]))
        refuse_contradictions(vars(self))

    @property
    def recipe(self) -> Recipe:
        """Recipe that turns a file into an image, before augmentation."""
        return Recipe(self.image_size, self.resize, self.eye_crop, self.local_mean)

    @property
    def rules(self) -> Rules:
        """Rules for what counts as a damaged image file."""
        return Rules(self.max_pixels, self.strict_jpeg)

    @abstractmethod
    def read_table(self) -> pd.DataFrame:
        """Return one row per image of the data set: `image, target, split, path`, and `patient` if known."""

    def read(self, path: str) -> np.ndarray:
        """Return the image of a row before augmentation, uint8 (H, W, 3)."""
        return read_image(path, self.recipe, max_pixels=self.max_pixels)

    def read_as_trained(self, path: str) -> np.ndarray:
        """Return the image of a file: as `read` does, or as a prepared JPEG if `as_prepared` is set.

        Raises:
            UserError: `read` of a data set's own class returns something else than it must.
        """
        image = self.read(path)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"{path}: {type(self).__name__}.read returns {found}; it must return uint8 (H, W, 3)")
        return as_stored(image) if self.as_prepared else image

    @property
    def is_labeled(self) -> bool:
        """Whether the rows have a class."""
        return True

    @property
    def reads_itself(self) -> bool:
        """Whether the data set defines its own `read`, so that no prepared set contains its images."""
        return type(self).read is not ImageData.read

    def check(self, rows: pd.DataFrame, pixels: str | None = None) -> pd.DataFrame:
        """Add `defect`, `digest`, `decoded`, `prepared` and `pixels`.

        `defect` is empty if the image can be read. `digest` is equal for identical files, `decoded` for files that
        decode to the same image. `prepared` is the file to read instead, empty if the original is read. `pixels` is
        the digest of the file that is read.

        Args:
            rows: rows with `path`.
            pixels: `originals` or `prepared`: what to read; None: the prepared set if it is complete and the
                data set does not define its own `read`.
        """
        if pixels == "prepared" or (pixels is None and not self.reads_itself):
            found = self.prepared_set.lookup(rows, needed=pixels == "prepared")
            if found is not None:
                return found
        checked = rows.join(check_files(rows["path"], self.prepared_set.cache_dir, self.rules), on="path")
        return checked.assign(prepared="", pixels=checked["digest"])

    @property
    def prepared_set(self) -> PreparedSet:
        """The prepared set of this data set and recipe, whether or not it exists."""
        root = Path(self.root).expanduser().absolute()  # links are not resolved: the rows' paths contain them, too
        return PreparedSet(root, self.recipe, Path(self.cache_dir).expanduser(), self.rules, self.prepared_format)

    def listed(self) -> pd.DataFrame:
        """Return the rows of the data set with their patients, in the configured splits."""
        table = self.read_table()
        if self.is_labeled:
            self._refuse_bad_rows(table)
        # with `all_images`, any names of splits are replaced
        rows = self._joined(table if self.all_images is not None else remap_splits(table, self.splits))
        refuse_undecodable(rows["path"])
        rows = self._with_patients(rows)
        return limit_rows(rows, self.max_images, self.split_seed)

    def _refuse_bad_rows(self, table: pd.DataFrame) -> None:
        """Refuse what a `read_table` must not return: rows without a class, names that repeat, patients without a name.

        Raises:
            UserError: there is such a row, or a column or the names of the classes are missing.
        """
        where = f"data={self.name}: {type(self).__name__}.read_table"
        if missing := [name for name in ("image", "target", "split", "path") if name not in table]:
            raise UserError(f"{where} returns no column {', '.join(missing)}")
        if not self.class_names:
            raise UserError(f"{where} sets no class_names; set self.class_names there, or data.class_names")
        if table.empty:
            raise UserError(f"{where} returns no rows")
        texts = [name for name in ("image", "split", "path", "patient") if name in table]
        for name in texts:
            if (odd := ~table[name].map(lambda each: isinstance(each, str)).astype(bool)).any():
                row = table[odd].iloc[0]
                raise UserError(f"{where}: image {row['image']} has the {name} {row[name]}; it must be text")
        numeric, classes = pd.api.types.is_numeric_dtype(table["target"]), len(self.class_names)
        number = table["target"] if numeric else pd.Series(np.nan, table.index)
        bad = ~number.between(0, classes - 1) | (number % 1 != 0)
        if bad.any():
            row = table[bad].iloc[0]
            raise UserError(
                f"{where}: image {row['image']} has the target {row['target']}; it must be an integer from 0 to "
                f"{classes - 1}, a place in {', '.join(map(str, self.class_names))}"
            )
        if (twice := table.duplicated(["split", "image"])).any():
            row = table[twice].iloc[0]
            raise UserError(f"{where}: {row['split']} has several rows named {row['image']}; names must differ")

    def _joined(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Move all rows to the split that `all_images` names, if any; make the names within joined splits distinct.

        Other splits keep their names, so that their predictions stay comparable.
        """
        joined = {name for name, given in (self.splits or {}).items() if isinstance(given, list) and len(given) > 1}
        if self.all_images is not None:
            rows, joined = rows.assign(split=self.all_images), {self.all_images}
        within = rows["split"].isin(joined)
        names = distinct_names(rows[within], Path(self.root).expanduser())
        return rows.assign(image=rows["image"].mask(within, names))

    def _with_patients(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Add `patient` if no column names it, and log how patients are found."""
        if "patient" in rows:
            self.patients = patients_of_column(rows)
        else:
            setting = self.patient_regex if self.names_patients or self.patient_regex not in DEFAULTS else None
            rows, self.patients = find_patients(rows, setting, Path(self.root).expanduser())
            column, texts = self.unused_patients
            if doubt := unused_column(column, rows["path"].map(texts), rows):
                found = self.patients.summary if self.patients.form else ""
                self.patients = replace(self.patients, summary=found, doubt=doubt)
        for line in filter(None, (self.patients.summary, self.patients.doubt)):
            log.info("patients: %s", line)
        return rows

    def table(self, pixels: str | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
        """Return the table for training, and the numbers of dropped rows.

        Bad images are dropped first, so that no split depends on them; then leaks are resolved and splits are cut.

        Args:
            pixels: see `check`.

        Returns:
            The table, with columns `image, target, split, path, patient` and the columns of `check`; and the numbers
            of rows `skipped_images`, `skipped_labels` and `leaks`.
        """
        rows, skipped = drop_defects(self.check(self.listed(), pixels), self.on_bad_image)
        self.own_splits, (rows, leaks) = set(rows["split"]), resolve_leaks(join_patients(rows), self.on_leak)
        rows = self.cut(rows)
        if drawn := sorted(set(rows["split"]) - self.own_splits) if skipped else []:
            text = "%s drawn without the %s: if these are repaired, other images are drawn, and runs cannot be compared"
            log.warning(text, " and ".join(drawn), count(skipped, "dropped image"))
        return rows, {"skipped_images": skipped, "skipped_labels": self.bad_labels, "leaks": leaks}

    def cut(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Cut the splits that the data set lacks: a fold, or a share of the training patients."""
        seed, given = self.split_seed, set(rows["split"])
        if "train" not in given:  # data for evaluation only
            return rows
        if self.all_images is not None:
            return limit_classes(rows, self.max_per_class, seed)
        if self.test_fraction and ("test" in given or self.folds is not None):
            why = "the data set has a test split" if "test" in given else "the fold is the test split"
            log.warning("data.test_fraction=%s has no effect: %s", self.test_fraction, why)
        if self.folds is not None:
            if {"val", "test"} <= given:
                raise UserError("data.folds: the data has its own val and test splits; leave one out with data.splits")
            rows = cut_fold(rows, "val" if "test" in given else "test", self.folds, self.fold, seed, self.class_names)
        elif "test" not in given:
            rows = cut_split(rows, "test", self.test_fraction, seed, "data.test_fraction")
        if "val" not in set(rows["split"]):
            rows = cut_split(rows, "val", self.val_fraction, seed, "data.val_fraction")
        return limit_classes(rows, self.max_per_class, seed)


def existing_folder(root: str, key: str = "data.root", source: str = "") -> Path:
    """Return `root` as a path; refuse a missing folder, with the key to set and the source of the data."""
    folder = Path(str(root)).expanduser()
    if not folder.is_dir():
        hint = f" ({source})" if source else ""
        with suppress(OSError):  # no such folder, or no permission
            names = [each.name for each in folder.absolute().parent.iterdir() if each.is_dir()]
            if close := get_close_matches(folder.name, names, n=1):
                hint = f"; did you mean {folder.with_name(close[0])}?"
        raise UserError(f"{folder} is not a folder; set {key} to the folder of the data set{hint}")
    return folder
