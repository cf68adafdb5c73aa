"""Flowers-102 in torchvision's layout, with the checksums of generated files."""

from __future__ import annotations

import hashlib
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from conftest import REAL_DATA
from fake_data import flowers102, refusal, web, write_flowers102

from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.splits import class_counts

SPLITS = {"trnid": {2: 1, 5: 102}, "valid": {1: 1, 3: 102}, "tstid": {4: 1, 6: 1, 7: 102, 8: 102, 9: 102}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write nine images of the first and the last class, with checksums for torchvision's check."""
    root = write_flowers102(tmp_path / "data", SPLITS)
    sign(monkeypatch, root)
    return root


def sign(monkeypatch: pytest.MonkeyPatch, root: Path, archive: bytes = b"") -> None:
    files = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    contents = {key: (root / "flowers-102" / name).read_bytes() for key, name in files.items() if key != "image"}
    contents["image"] = archive
    known = {key: (name, hashlib.md5(contents[key]).hexdigest()) for key, name in files.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", known)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return web(monkeypatch, {})


def remove(root: Path, *numbers: int) -> None:
    for number in numbers:
        (root / "flowers-102" / "jpg" / f"image_{number:05d}.jpg").unlink()


def test_study_b_swaps_the_splits(root: Path, network: list[str]) -> None:
    data = flowers102(root)
    table, dropped = data.table()
    numbers = {split: rows["image"].str[6:11].astype(int).tolist() for split, rows in table.groupby("split")}
    assert numbers == {"train": [4, 6, 7, 8, 9], "val": [1, 3], "test": [2, 5]}
    assert class_counts(table, 102)["train"] == [2] + [0] * 100 + [3]
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
    assert table.iloc[0]["path"] == str(root / "flowers-102" / "jpg" / table.iloc[0]["image"])
    assert network == []


def test_the_official_splits(root: Path) -> None:
    table = flowers102(root, splits=None).read_table()
    assert table["split"].tolist() == ["train"] * 2 + ["val"] * 2 + ["test"] * 5
    assert table["image"].tolist()[:3] == ["image_00002.jpg", "image_00005.jpg", "image_00001.jpg"]
    assert table["target"].tolist() == [0, 101, 0, 101, 0, 0, 101, 101, 101]


def test_class_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = flowers102(root)
    data.read_table()
    assert len(data.class_names) == 102
    assert (data.class_names[0], data.class_names[-1]) == ("pink primrose", "blackberry lily")
    monkeypatch.delattr(torchvision.datasets.Flowers102, "classes")
    data = flowers102(root)
    data.read_table()
    assert (data.class_names[0], data.class_names[-1], len(data.class_names)) == ("0", "101", 102)


def test_a_batch(root: Path) -> None:
    data = flowers102(root)
    module = DataModule(data, seed=0)
    module.setup()
    (batch,) = module.evaluation_dataloader("val")
    assert batch["target"].tolist() == [0, 101]
    image = data.read(str(root / "flowers-102/jpg/image_00001.jpg"))
    assert image.shape == (12, 18, 3)  # 24 × 16 with the shorter side resized
    assert np.array_equal(batch["image"][0].numpy(), image[1:11, 4:14])  # the center
    (batch,) = module.train_dataloader()
    assert batch["image"].shape == (5, 10, 10, 3)
    assert batch["color"].shape == (5, 5)


@pytest.mark.parametrize("splits", [{"train": "test", "val": "val", "test": "train"}, None])
def test_a_split_without_images_is_left_out(root: Path, caplog: pytest.LogCaptureFixture, splits: dict | None) -> None:
    gone = "train" if splits else "test"
    remove(root, *({"train": (2, 5), "test": (4, 6, 7, 8, 9)}[gone]))
    with caplog.at_level(logging.WARNING, "resnet_lab.data.flowers102"):
        table, _ = flowers102(root, splits=splits).table()
    assert set(table["split"]) == {"train", "val"}
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("flowers102")]
    assert line.startswith(f"{root}/flowers-102/jpg has no image of the official split {gone}, ")


def test_a_missing_training_split_is_refused(root: Path) -> None:
    remove(root, 4, 6, 7, 8, 9)
    assert "no split test to train on; the data has train, val" in refusal(flowers102(root).table)


def test_missing_images_of_a_split_are_refused(root: Path) -> None:
    remove(root, 1, 2, 5, 8)  # one image of val, all of train, one of test
    message = refusal(flowers102(root).read_table)
    assert message == (
        f"{root}/flowers-102/jpg: 2 images are missing (image_00001.jpg, image_00008.jpg); unpack 102flowers.tgz "
        "again, from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    )


def test_no_image_at_all(root: Path) -> None:
    remove(root, *range(1, 10))
    message = refusal(flowers102(root).read_table)
    assert message.startswith(f"{root}/flowers-102/jpg: 9 images are missing (image_00002.jpg, image_00005.jpg, ")


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_incomplete_and_no_network(root: Path, name: str) -> None:
    (root / "flowers-102" / name).unlink()
    message = refusal(flowers102(root).read_table)
    assert message.startswith(
        f"{root / 'flowers-102'} is missing or incomplete, and cannot be downloaded (<urlopen error"
    )
    assert "set data.root" in message


def test_download(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "102flowers.tgz", "w:gz") as file:
        file.add(root / "flowers-102" / "jpg", "jpg")
    archive = (tmp_path / "102flowers.tgz").read_bytes()
    sign(monkeypatch, root, archive)
    mats = {name: (root / "flowers-102" / name).read_bytes() for name in ("imagelabels.mat", "setid.mat")}
    web(monkeypatch, {"102flowers.tgz": archive} | mats)
    assert len(flowers102(tmp_path / "new").read_table()) == 9
    web(monkeypatch, {})
    assert len(flowers102(tmp_path / "new").read_table()) == 9


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no ../shared/data")
def test_the_real_flowers(tmp_path: Path) -> None:
    with tarfile.open(REAL_DATA / "flowers102_128_trainval.tar") as archive:
        archive.extractall(tmp_path / "data", filter="data")
    data = flowers102(tmp_path / "data")
    rows = data.read_table()
    assert rows["split"].value_counts().to_dict() == {"test": 6149, "val": 1020}
    assert class_counts(rows, 102)["val"] == [10] * 102
    counts = class_counts(rows, 102)["test"]
    assert (min(counts), max(counts)) == (20, 238)
    table, dropped = data.table()
    assert table["split"].value_counts().to_dict() == {"train": 6148, "val": 1020}
    assert dropped == {
        "skipped_images": 0,
        "skipped_labels": 0,
        "leaks": 1,
    }  # image_08067 of the official test split equals image_08077 of val
    assert "image_08067.jpg" not in set(table["image"])
