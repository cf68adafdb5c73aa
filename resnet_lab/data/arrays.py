"""Data sets that consist of arrays of all images, kept in memory as uint8."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_lab.data.check import digest_of, image_hash
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.reader import fit
from resnet_lab.errors import UserError, count

log = logging.getLogger(__name__)
MANY = 1000  # a small file may have labels below this


@dataclass(kw_only=True)
class ArrayData(ImageData):
    """Base class; a data set adds `read_arrays`. A row's `path` is its split and index, such as `train/00012`."""

    names_patients = False  # a name is an array index

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrays: dict[str, np.ndarray] = {}  # split → images; filled by `read_table`

    @abstractmethod
    def read_arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return images, uint8 (N, H, W, 3) or gray (N, H, W), and labels (N,) by split; may set `class_names`."""

    @property
    def source(self) -> Path:
        """The file or folder named in errors."""
        return Path(self.root).expanduser()

    def read_table(self) -> pd.DataFrame:
        """Return one row per image, in the order of the arrays; unnamed classes are named by their numbers.

        Raises:
            UserError: an array violates the contract of `read_arrays`, or there is none.
        """
        splits = self.read_arrays()
        if not isinstance(splits, dict) or not all(_is_pair(each) for each in splits.values()):
            raise UserError(
                f"{self.source}: {type(self).__name__}.read_arrays must return a dictionary with a pair of numpy "
                "arrays, images and labels, for each split"
            )
        if not splits:
            raise UserError(f"{self.source} has no split; it must contain train, val or test")
        rows = pd.concat([self._rows(split, *arrays) for split, arrays in splits.items()], ignore_index=True)
        self.arrays = {split: images for split, (images, _) in splits.items()}
        most = int(rows["target"].max())
        if self.class_names is None and most >= max(len(rows), MANY):
            worst = rows["image"].iloc[int(rows["target"].argmax())]
            raise UserError(
                f"{self.source}: the label of {worst} is {most}, too many classes for {count(len(rows), 'image')}; "
                "correct the label, or set data.class_names"
            )
        if self.class_names is None and not (rows["target"] == 0).any():
            text = "%s: no label is 0, and the largest is %d, so class 0 has no image; number the classes from 0"
            log.warning(text, self.source, most)
        if self.class_names is None:
            self.class_names = [str(number) for number in range(most + 1)]
        if most >= len(self.class_names):
            raise UserError(
                f"{self.source}: {rows.sort_values('target')['split'].iloc[-1]}_labels reaches {most}, but there "
                f"{'is' if len(self.class_names) == 1 else 'are'} {count(len(self.class_names), 'class', 'classes')} "
                f"({', '.join(self.class_names)}); set data.class_names"
            )
        return rows

    def _rows(self, split: str, images: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
        """Return the checked rows of one split."""
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise UserError(
                f"{self.source}: {split}_images is {images.dtype} {images.shape}; "
                "it must hold 2D images, uint8 (N, H, W) or (N, H, W, 3)"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or min(labels, default=-1) < 0:
            need = count(len(images), "image needs", "images need")
            raise UserError(
                f"{self.source}: {split}_labels is {labels.dtype} {labels.shape}; {need} one whole "
                "number from 0 each (multi-label training is not supported)"
            )
        names = [f"{split}/{index:05d}" for index in range(len(labels))]
        return pd.DataFrame({"image": names, "target": labels.astype(np.int64), "split": split, "path": names})

    def read(self, path: str) -> np.ndarray:
        """Return the image of a row before augmentation, uint8 (H, W, 3); gray becomes RGB."""
        return fit(self._rgb(path), self.recipe)

    def check(self, rows: pd.DataFrame, pixels: str | None = None) -> pd.DataFrame:
        """Add the columns of `ImageData.check`; `defect` and `prepared` are empty because there are no files."""
        digests = [digest_of(self._image(path).tobytes()) for path in rows["path"]]
        images = (self._rgb(path) for path in rows["path"])
        decoded = [image_hash((image.shape[1], image.shape[0]), image.tobytes()) for image in images]
        return rows.assign(defect="", digest=digests, decoded=decoded, prepared="", pixels=digests)

    def _rgb(self, path: str) -> np.ndarray:
        """Return an image (H, W, 3); a gray image gets three equal channels."""
        image = self._image(path)
        return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)

    def _image(self, path: str) -> np.ndarray:
        split, index = path.split("/")
        values: np.ndarray = self.arrays[split][int(index)]
        return values


def _is_pair(value: object) -> bool:
    """Return whether a value is a pair of arrays."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, np.ndarray) for each in value)
