"""Oxford Flowers-102 through torchvision, which downloads it if absent."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torchvision.datasets import Flowers102 as Torchvision

from resnet_lab.data.image_data import ImageData
from resnet_lab.data.listing import refuse_closed
from resnet_lab.data.splits import SPLITS
from resnet_lab.errors import UserError, count

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Flowers102(ImageData):
    """`root/flowers-102` with `jpg/`, `imagelabels.mat` and `setid.mat`; all images of a split may be absent."""

    names_patients = False

    def read_table(self) -> pd.DataFrame:
        """Return the official splits; sets `class_names` if the configuration gives none.

        Raises:
            UserError: the data set is absent and cannot be downloaded, or some images of a split are missing.
        """
        folder = Path(self.root).expanduser() / "flowers-102"
        if self.class_names is None:
            self.class_names = list(getattr(Torchvision, "classes", map(str, range(102))))  # torchvision 0.21 has none
        listed = pd.concat([self._split(folder, split) for split in SPLITS], ignore_index=True)
        return _present(listed, folder / "jpg")

    def _split(self, folder: Path, split: str) -> pd.DataFrame:
        """Return the rows of one official split, whether or not the images exist."""
        refuse_closed(folder.parent, folder, folder / "jpg")
        try:
            flowers = Torchvision(folder.parent, split, download=True)
        except PermissionError:
            raise
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{folder} is missing or incomplete, and cannot be downloaded ({error}); set data.root to the folder "
                f"above it, or put 102flowers.tgz, unpacked, imagelabels.mat and setid.mat there, from "
                f"{Torchvision._download_url_prefix}"
            ) from None
        files = flowers._image_files  # torchvision has no public name for them
        names, paths = [file.name for file in files], [str(file) for file in files]
        return pd.DataFrame({"image": names, "target": flowers._labels, "split": split, "path": paths})


def _present(listed: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the rows of the splits with images in the folder; refuse a split that is incomplete."""
    present = listed["image"].isin(os.listdir(folder))  # noqa: PTH208 - names are faster than paths
    found = set(listed["split"][present]) or set(SPLITS)
    missing = listed["image"][~present & listed["split"].isin(found)]
    if len(missing):
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{folder}: {count(len(missing), 'image is', 'images are')} missing ({names}); unpack 102flowers.tgz "
            f"again, from {Torchvision._download_url_prefix}"
        )
    if absent := [split for split in SPLITS if split not in found]:
        log.warning("%s has no image of the official split %s, which is left out", folder, " and ".join(absent))
    return listed[present].reset_index(drop=True)
