"""MedMNIST's 2D sets with one class per image: one npz per set, with its own splits."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_lab.data.arrays import ArrayData
from resnet_lab.data.splits import SPLITS
from resnet_lab.errors import UserError
from resnet_lab.values import FromOne

SIZES = (28, 64, 128, 224)
WEB = "https://zenodo.org/records/10519652"


@dataclass(kw_only=True)
class MedMNIST(ArrayData):
    """Arrays `<split>_images` and `<split>_labels`, the latter (N, 1) or (N,); the file may lack a split."""

    flag: str
    size: FromOne
    file: str | None

    @property
    def source(self) -> Path:
        """The npz file."""
        name = self.file or (f"{self.flag}.npz" if self.size == 28 else f"{self.flag}_{self.size}.npz")
        return Path(self.root).expanduser() / Path(name).expanduser()

    def read_arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the splits of the file; if the configuration has no class names, the medmnist package gives them."""
        if not self.source.exists():
            self._download()
        with self.source.open("rb") as stream:  # an unreadable file is not a damaged one
            whole = zipfile.is_zipfile(stream)
        if not whole:
            raise UserError(f"{self.source} is not an npz, or incomplete; delete it, and download it again from {WEB}")
        try:
            with self.source.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {split: self._split(file, split) for split in SPLITS if f"{split}_images" in file.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.source} is damaged ({error}); download it from {WEB}") from None
        if self.class_names is None and (package := _package()) and self.flag in package.INFO:
            self.class_names = list(package.INFO[self.flag]["label"].values())
        return arrays

    def _split(self, file: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._array(file, f"{split}_images"), self._array(file, f"{split}_labels")
        if images.shape[1:3] != (self.size, self.size):
            raise UserError(f"{self.source}: {split}_images is {images.shape}; set data.size to the size of the images")
        return images, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels

    def _array(self, file: Any, name: str) -> np.ndarray:
        try:
            array = file[name]
            if not isinstance(array, np.ndarray):
                raise ValueError("it is not an array")
            return array
        except (KeyError, ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.source}: cannot read {name}: {error}; download the file from {WEB}") from None

    def _download(self) -> None:
        """Download the file with the medmnist package, which checks its MD5; the file appears only when complete."""
        package, file = _package(), self.source
        if self.file is not None or package is None:
            also = "" if self.file else "; for automatic download, pip install 'resnet-lab[medmnist]'"
            raise UserError(f"{file} does not exist; download it from {WEB}, or name yours in data.file{also}")
        fits = [flag for flag, info in package.INFO.items() if flag[-2:] != "3d" and "multi-label" not in info["task"]]
        if self.flag not in fits or self.size not in SIZES:
            flags = ", ".join(fits)
            raise UserError(
                f"there is no MedMNIST set {file.name}: data.flag must be one of {flags}, data.size one of {SIZES}"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                dataset = getattr(package, package.INFO[self.flag]["python_class"])
                dataset(split="val", size=self.size, root=folder, download=True)
                (Path(folder) / file.name).replace(file)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot download {file}: {error.__context__ or error}; download it from {WEB}") from None


def _package() -> Any:
    """Return the medmnist package, or None if it is not installed."""
    try:
        import medmnist
    except ImportError:
        return None
    return medmnist
