"""Photographs without labels, for prediction: one file, or all images below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_lab.data.image_data import ImageData
from resnet_lab.data.table import SUFFIXES
from resnet_lab.errors import UserError


@dataclass(kw_only=True)
class Photographs(ImageData):
    """Every image at or below `root`, as split `test`; the targets are 0 and mean nothing."""

    def read_table(self) -> pd.DataFrame:
        """One row per file, in the order of the names.

        Raises:
            UserError: `root` does not exist, or no image is below it.
        """
        root = Path(self.root).expanduser()
        if not root.exists():
            raise UserError(f"{root} does not exist; give an image or a folder of images")
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
        if not files:
            raise UserError(f"{root} holds no image ({' '.join(SUFFIXES[:4])})")
        names = [file.name if root.is_file() else str(file.relative_to(root)) for file in files]
        return pd.DataFrame({"image": names, "path": list(map(str, files)), "split": "test", "target": 0})
