"""Writes each data set's real layout on disk, a few KB: tiny JPEGs, CSVs, folders."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from resnet_lab.data.class_folders import ClassFolders
from resnet_lab.data.photographs import Photographs
from resnet_lab.data.retinopathy import Retinopathy
from resnet_lab.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf" / "data"
EYES = ("left", "right")
TRAIN = {f"{patient}_{eye}": patient % 5 for patient in range(1, 21) for eye in EYES}
TEST = {f"{patient}_{eye}": patient % 5 for patient in range(21, 26) for eye in EYES}


def pixels(name: str, width: int = 24, height: int = 16) -> np.ndarray:
    """A smooth picture of its own for each name, uint8 (height, width, 3), nowhere black."""
    coarse = np.random.default_rng(zlib.crc32(name.encode())).integers(40, 255, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


@cache
def encoded(name: str, suffix: str) -> bytes:
    """The file's content, kept because many tests write the same files."""
    done, data = cv2.imencode(suffix, pixels(name)[..., ::-1])
    assert done
    return data.tobytes()


def write_photographs(folder: Path, names: Iterable[str], suffix: str = ".jpeg") -> None:
    for name in names:
        file = folder / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(name, suffix))


def write_pair(root: Path, split: str, labels: Mapping[str, int], header: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for kind, title, cells in (("img", "image", labels.keys()), ("label", "level", labels.values())):
        lines = [title] * header + [str(cell) for cell in cells]
        (root / f"{split}_{kind}.csv").write_text("\n".join(lines) + "\n")


def write_studies(
    root: Path, train: Mapping[str, int] = TRAIN, test: Mapping[str, int] = TEST, header: bool = False
) -> Path:
    """The studies' layout: four single-column CSVs without header, and a folder of JPEGs."""
    write_pair(root, "train", train, header)
    write_pair(root, "test", test, header)
    write_photographs(root / "images", [*train, *test])
    return root


def write_labels(file: Path, labels: Mapping[str, int], header: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in [header, *(f"{name},{level}" for name, level in labels.items())]))


def write_kaggle(root: Path, labels: Mapping[str, int] = TRAIN) -> Path:
    """Diabetic Retinopathy Detection 2015: `trainLabels.csv` and the folder `train`."""
    write_labels(root / "trainLabels.csv", labels, "image,level")
    write_photographs(root / "train", labels)
    return root


def write_aptos(root: Path) -> Path:
    """APTOS 2019: `train.csv` of codes and the PNGs in `train_images`."""
    labels = {f"{zlib.crc32(str(n).encode()):08x}": n % 5 for n in range(20)}
    write_labels(root / "train.csv", labels, "id_code,diagnosis")
    write_photographs(root / "train_images", labels, ".png")
    return root


def write_class_folders(root: Path, folders: Mapping[str, int]) -> Path:
    """`{"train/cat": 3}` gives `root/train/cat/000.jpeg` to `002.jpeg`."""
    for folder, number in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_photographs(root / folder, [f"{n:03d}" for n in range(number)])
    return root


def retinopathy(root: Path, **changes: Any) -> Retinopathy:
    return Retinopathy(**settings("retinopathy", root, changes))


def class_folders(root: Path, **changes: Any) -> ClassFolders:
    return ClassFolders(**settings("class_folders", root, changes))


def photographs(root: Path, **changes: Any) -> Photographs:
    return Photographs(**settings("_common", root, {"name": "photographs"} | changes))


def settings(name: str, root: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of conf/data as the program composes them, on small images and with a cache beside the data."""
    shared, own = (yaml.safe_load((CONF / f"{file}.yaml").read_text()) for file in ("_common", name))
    small = {"root": str(root), "cache_dir": str(root.parent / "cache"), "image_size": 12, "num_workers": 0}
    merged = shared | own | small | dict(changes)
    return {key: value for key, value in merged.items() if key not in ("defaults", "_target_")}


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """The one line of the UserError that a call ends in."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
