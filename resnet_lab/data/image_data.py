"""What one data set is: where its table comes from, and every setting of how its images become batches (no torch)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resnet_lab.data.reader import drop_defects
from resnet_lab.data.table import add_patients, cut_split, find_images, limit_rows, resolve_leaks
from resnet_lab.errors import UserError

LIMITS: dict[str, tuple[Any, float, float]] = {  # type, least, most
    "image_size": (int, 1, 10_000),
    "crop": (int, 1, 10_000),
    "padding": (int, 0, 10_000),
    "horizontal_flip": ((int, float), 0, 1),
    "vertical_flip": ((int, float), 0, 1),
    "rotation": ((int, float), 0, 360),
    "val_fraction": ((int, float), 0, 1),
    "test_fraction": ((int, float), 0, 1),
    "split_seed": (int, 0, 2**32 - 1),
    "max_images": (int, 1, math.inf),
    "batch_size": (int, 1, math.inf),
    "num_workers": (int, 0, 1_000),
}


@dataclass(kw_only=True)
class ImageData(ABC):
    """The settings that all data sets share; a data set adds its own fields and `read_table`.

    The keys of `conf/data/*.yaml` are these fields, one by one.
    """

    name: str
    class_names: list[str] | None  # None: found in the data
    ordered: bool  # whether the classes are grades, so that QWK means something

    image_size: int  # pixels
    resize: str  # square | shorter: both sides become image_size, or the shorter one does
    eye_crop: bool  # cut off the black border around the eye before resizing
    crop: int | None  # pixels: a random crop in training, the centre in evaluation; None: image_size
    padding: int  # pixels of black around the image before a random crop
    horizontal_flip: float  # probability
    vertical_flip: float  # probability
    rotation: float  # degrees: uniform in ± this
    interpolation: str  # bilinear | nearest: of the rotation
    mean: str | list[float] | None  # train: computed from the training split; None: images stay in [0, 1]
    std: str | list[float] | None

    val_fraction: float  # share of the training patients; 0: train on everything, keep the last epoch
    test_fraction: float  # share of the training patients, for data without a test split of its own
    split_seed: int  # of the splits, so that sweeping `seed` leaves them alone
    on_leak: str  # error | drop | ignore: a patient in train and in another split
    on_bad_image: str  # error | drop: an image that cannot be read
    max_images: int | None  # at most so many of each split

    batch_size: int  # of one optimiser step, shared among the ranks
    num_workers: int | str  # auto: none where the images are in memory, else one a core
    in_memory: bool | str  # auto: keep decoded images in memory where all take less than 2 GB
    cache_dir: str  # where the check of the image files is kept

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense, by key."""
        for key, (kind, least, most) in LIMITS.items():
            value = getattr(self, key)
            if (key, value) in (("crop", None), ("max_images", None), ("num_workers", "auto")):
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                whole = "a whole number" if kind is int else "a number"
                raise UserError(f"data.{key}={value}: must be {whole} from {least} to {most}")
        if self.in_memory not in (True, False, "auto"):
            raise UserError(f"data.in_memory={self.in_memory}: choose true, false or auto")

    @abstractmethod
    def read_table(self) -> pd.DataFrame:
        """The rows that the files of the data set list: `image, target, split, path`, and `patient` where known."""

    def table(self) -> tuple[pd.DataFrame, dict[str, int]]:
        """The table that is trained on, and what was dropped on the way.

        Bad images leave first, so that no split counts on them; then splits are cut, and leaks resolved.

        Returns:
            Columns `image, target, split, path, patient`; `{"skipped_images": n, "leaks": n}`.
        """
        rows = self.read_table()
        if "patient" not in rows:
            rows = add_patients(rows)
        rows = limit_rows(rows, self.max_images, self.split_seed)
        rows, skipped = drop_defects(rows, Path(self.cache_dir).expanduser(), self.on_bad_image)
        rows, leaks = resolve_leaks(rows, self.on_leak)
        if "test" not in set(rows["split"]):
            rows = cut_split(rows, "test", self.test_fraction, self.split_seed, "data.test_fraction")
        if "val" not in set(rows["split"]):
            rows = cut_split(rows, "val", self.val_fraction, self.split_seed, "data.val_fraction")
        return rows, {"skipped_images": skipped, "leaks": leaks}

    def locate(self, labels: pd.DataFrame, folder: Path, split: str) -> pd.DataFrame:
        """Rows of one split with the `path` of each image below `folder`."""
        return find_images(labels, folder).assign(split=split)


def existing_folder(root: str, key: str = "data.root") -> Path:
    """`root` as a path; a clear error where there is no such folder."""
    folder = Path(str(root)).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; set {key} to the folder that holds the data set")
    return folder
