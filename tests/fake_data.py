"""Writes each data set's real layout on disk, a few KB: tiny JPEGs, CSVs, folders."""

import io
import pickle
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import yaml
from scipy.io import savemat

from resnet_lab.data.cifar10 import CIFAR10
from resnet_lab.data.class_folders import ClassFolders
from resnet_lab.data.flowers102 import Flowers102
from resnet_lab.data.medmnist import MedMNIST
from resnet_lab.data.photographs import Photographs
from resnet_lab.data.retinopathy import Retinopathy
from resnet_lab.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf" / "data"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EYES = ("left", "right")
TRAIN = {f"{patient}_{eye}": patient % 5 for patient in range(1, 21) for eye in EYES}
TEST = {f"{patient}_{eye}": patient % 5 for patient in range(21, 26) for eye in EYES}


def pixels(name: str, width: int = 24, height: int = 16) -> np.ndarray:
    """Return a smooth picture that depends on the name, uint8 (height, width, 3), without black pixels."""
    coarse = np.random.default_rng(zlib.crc32(name.encode())).integers(40, 255, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


@cache
def encoded(name: str, suffix: str) -> bytes:
    """Return the content of an image file (cached, because many tests write the same files)."""
    done, data = cv2.imencode(suffix, pixels(name)[..., ::-1])
    assert done
    return data.tobytes()


def write_photographs(folder: Path, names: Iterable[str], suffix: str = ".jpeg", content: str = "") -> None:
    """Write one photograph per name; `content` makes pictures of the same name differ."""
    for name in names:
        file = folder / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(content + name, suffix))


def write_pair(root: Path, split: str, labels: Mapping[str, int], header: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for kind, title, cells in (("img", "image", labels.keys()), ("label", "level", labels.values())):
        lines = [title] * header + [str(cell) for cell in cells]
        (root / f"{split}_{kind}.csv").write_text("\n".join(lines) + "\n")


def write_studies(
    root: Path, train: Mapping[str, int] = TRAIN, test: Mapping[str, int] = TEST, header: bool = False
) -> Path:
    """Write the studies' layout: four single-column CSVs without header, and a folder of JPEGs."""
    write_pair(root, "train", train, header)
    write_pair(root, "test", test, header)
    write_photographs(root / "images", [*train, *test])
    return root


def write_labels(file: Path, labels: Mapping[str, int], header: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in [header, *(f"{name},{level}" for name, level in labels.items())]))


def write_kaggle(root: Path, labels: Mapping[str, int] = TRAIN) -> Path:
    """Write Diabetic Retinopathy Detection 2015: `trainLabels.csv` and the folder `train`."""
    write_labels(root / "trainLabels.csv", labels, "image,level")
    write_photographs(root / "train", labels)
    return root


def write_aptos(root: Path) -> Path:
    """Write APTOS 2019: `train.csv` of codes and the PNGs in `train_images`."""
    labels = {f"{zlib.crc32(str(n).encode()):08x}": n % 5 for n in range(20)}
    write_labels(root / "train.csv", labels, "id_code,diagnosis")
    write_photographs(root / "train_images", labels, ".png")
    return root


def write_class_folders(root: Path, folders: Mapping[str, int]) -> Path:
    """Write folders of images: `{"train/cat": 3}` gives `root/train/cat/000.jpeg` to `002.jpeg`."""
    for folder, number in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_photographs(root / folder, [f"{n:03d}" for n in range(number)], content=folder)
    return root


def write_medmnist(file: Path, labels: Mapping[str, Iterable[int]], size: int = 28, channels: int = 3) -> Path:
    """Write MedMNIST: one npz of `<split>_images` (N, size, size[, 3]) and `<split>_labels` (N, 1), both uint8."""
    arrays = {}
    for split, column in labels.items():
        pictures = [pixels(f"{split}/{n:05d}", size, size) for n, _ in enumerate(column)]
        arrays[f"{split}_images"] = np.stack(pictures if channels == 3 else [picture[..., 0] for picture in pictures])
        arrays[f"{split}_labels"] = np.array([*column], np.uint8)[:, None]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)
    return file


def write_cifar10(root: Path, each: int = 4) -> Path:
    """Write CIFAR-10's Python version: pickles of 5 training batches and a test batch with `each` images each.

    Pictures are `pixels("data_batch_1/0")` and so on, the classes 0 to 9 in turn.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        pictures = np.stack([pixels(f"{name}/{n}", 32, 32) for n in range(each)])
        planes = pictures.transpose(0, 3, 1, 2).reshape(each, -1)
        (folder / name).write_bytes(pickle.dumps({"data": planes, "labels": [n % 10 for n in range(each)]}, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*CIFAR10_CLASSES]}, 2))
    return root


def write_flowers102(root: Path, splits: Mapping[str, Mapping[int, int]]) -> Path:
    """Write Flowers-102: `jpg/image_00001.jpg` …, and the MATLAB files of labels (from 1 on) and of splits.

    `{"trnid": {1: 5}}` makes image 1, of class 5, the official split train; `valid` and `tstid` are val and test.
    """
    folder = root / "flowers-102"
    labels = {number: label for column in splits.values() for number, label in column.items()}
    write_photographs(folder / "jpg", [f"image_{number:05d}" for number in labels], ".jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[labels[n + 1] for n in range(len(labels))]], np.uint8)})
    savemat(folder / "setid.mat", {split: np.array([[*column]], np.uint16) for split, column in splits.items()})
    return root


def medmnist(root: Path, flag: str = "bloodmnist", **changes: Any) -> MedMNIST:
    return MedMNIST(**settings("medmnist", root, {"flag": flag} | changes))


def retinamnist(root: Path, **changes: Any) -> MedMNIST:
    return MedMNIST(**settings("retinamnist", root, changes))


def cifar10(root: Path, **changes: Any) -> CIFAR10:
    return CIFAR10(**settings("cifar10", root, changes))


def flowers102(root: Path, **changes: Any) -> Flowers102:
    return Flowers102(**settings("flowers102", root, {"crop": 10} | changes))


def web(monkeypatch: pytest.MonkeyPatch, pages: Mapping[str, bytes]) -> list[str]:
    """Replace the network by pages, named by the end of their address; return the list of requests."""
    asked = []

    def urlopen(request: Any, *_: Any, **__: Any) -> io.BytesIO:
        url = request if isinstance(request, str) else request.full_url
        asked.append(url)
        page = next((page for name, page in pages.items() if url.endswith(name)), None)
        if page is None:
            raise URLError("no network in tests")
        response = io.BytesIO(page)
        response.url, response.length = url, len(page)  # type: ignore[attr-defined]
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def retinopathy(root: Path, **changes: Any) -> Retinopathy:
    return Retinopathy(**settings("retinopathy", root, changes))


def class_folders(root: Path, **changes: Any) -> ClassFolders:
    return ClassFolders(**settings("class_folders", root, changes))


def photographs(root: Path, **changes: Any) -> Photographs:
    return Photographs(**settings("_common", root, {"name": "photographs"} | changes))


def settings(name: str, root: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the composed keys of conf/data, for small images and with a cache beside the data."""
    small = {"root": str(root), "cache_dir": str(root.parent / "cache"), "image_size": 12, "num_workers": 0}
    merged = composed(name) | small | dict(changes)
    return {key: merged[value[3:-1]] if str(value).startswith("${.") else value for key, value in merged.items()}


def composed(name: str) -> dict[str, Any]:
    """Return the keys of a file of conf/data and of its parents."""
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    merged: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        merged |= composed(base)
    own.pop("_target_", None)
    return merged | own


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """Return the message of the UserError that a call raises; it is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
