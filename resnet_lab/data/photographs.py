"""Unlabeled photographs for prediction: one file, or all images below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_lab.data.image_data import ImageData
from resnet_lab.data.listing import NO_IMAGES, SUFFIXES, list_images, say_left_out
from resnet_lab.data.patients import find_patients
from resnet_lab.errors import UserError
from resnet_lab.inputs import refuse_no_images


@dataclass(kw_only=True)
class Photographs(ImageData):
    """Every image at or below `root`, as split `test`, without targets.

    Attributes:
        like: the data set that reads the files, if it defines its own `read`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.like: ImageData | None = None

    @property
    def is_labeled(self) -> bool:
        return False

    @property
    def reads_itself(self) -> bool:
        return self.like is not None

    def read(self, path: str) -> np.ndarray:
        return super().read(path) if self.like is None else self.like.read(path)

    def read_table(self) -> pd.DataFrame:
        """Return one row per file, sorted by name.

        Raises:
            UserError: `root` does not exist, or contains no image.
        """
        root = Path(self.root).expanduser()
        refuse_no_images(root)
        names, folder = ([root.name], root.parent) if root.is_file() else (self._list(root), root)
        files = [str(folder / name) for name in names]
        return pd.DataFrame({"image": names, "path": files, "split": "test"})

    def _with_patients(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Add `patient` without logging, as nothing is split; a single photograph gets a patient, too."""
        return find_patients(rows, self.patient_regex, Path(self.root).expanduser(), shared=False)[0]

    def _list(self, root: Path) -> list[str]:
        listing = list_images(root)
        if not listing.images:
            raise UserError(f"{root} contains no image ({' '.join(SUFFIXES[:4])} …)")
        say_left_out(root, *NO_IMAGES, listing.others)
        return listing.images
