"""CIFAR-10 in torchvision's layout, with the checksums of generated files."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from fake_data import CIFAR10_CLASSES, cifar10, pixels, refusal, web, write_cifar10

from resnet_lab.data.datamodule import DataModule

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write five training batches and a test batch of four images each, with checksums for torchvision's check."""
    root = write_cifar10(tmp_path / "data", each=4)
    dataset, folder = torchvision.datasets.CIFAR10, root / "cifar-10-batches-py"
    for key in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, key, [[name, md5(folder / name)] for name, _ in getattr(dataset, key)])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": md5(folder / "batches.meta")})
    return root


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return web(monkeypatch, {})


def test_train_and_test(root: Path, network: list[str]) -> None:
    data = cifar10(root)
    table = data.read_table()
    assert table["split"].tolist() == ["train"] * 20 + ["test"] * 4
    assert table["target"].tolist() == [0, 1, 2, 3] * 6
    assert table["path"].tolist()[18:22] == ["train/00018", "train/00019", "test/00000", "test/00001"]
    assert data.class_names == list(CIFAR10_CLASSES)
    assert network == []


def test_planes_become_rgb(root: Path) -> None:
    data = cifar10(root, image_size=32)
    data.read_table()
    assert np.array_equal(data.read("train/00006"), pixels("data_batch_2/2", 32, 32))
    assert np.array_equal(data.read("test/00003"), pixels("test_batch/3", 32, 32))
    again = pickle.loads(pickle.dumps(data))  # as in a worker process
    assert np.array_equal(again.read("train/00019"), pixels("data_batch_5/3", 32, 32))


def test_val_is_cut_from_train(root: Path) -> None:
    table, dropped = cifar10(root, val_fraction=0.2).table()
    assert table["split"].value_counts().to_dict() == {"train": 16, "val": 4, "test": 4}
    assert table.loc[table["split"] == "val", "target"].sort_values().tolist() == [0, 1, 2, 3]
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}


def test_study_d(root: Path) -> None:
    """Study D crops 32 of 40 pixels, pads with black, and normalizes with its own mean and std."""
    data = cifar10(root, image_size=32, val_fraction=0.2)
    assert (data.crop, data.padding, data.horizontal_flip, data.rotation) == (32, 4, 0.5, 0.0)
    module = DataModule(data, seed=0)
    module.setup()
    (batch,) = module.test_dataloader()[1]
    images = module.on_after_batch_transfer(batch, 0)["image"].numpy()
    expected = (pixels("test_batch/0", 32, 32) / 255 - [0.4914, 0.4824, 0.4467]) / [0.2471, 0.2435, 0.2616]
    assert np.allclose(images[0].transpose(1, 2, 0), expected, atol=1e-5)
    (batch,) = module.train_dataloader()
    assert batch["image"].shape == (16, 32, 32, 3)
    black = (batch["image"] == 0).all(3)  # the pictures have no black pixel
    assert black.any(dim=(1, 2)).sum() > 8
    assert black[:, 4:-4, 4:-4].sum() == 0


def test_the_archive_alone(root: Path, monkeypatch: pytest.MonkeyPatch, network: list[str], tmp_path: Path) -> None:
    other = tmp_path / "archive"
    other.mkdir()
    pack(root, other / "cifar-10-python.tar.gz", monkeypatch)
    assert len(cifar10(other).read_table()) == 24
    assert network == []


def test_download(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pack(root, tmp_path / "archive.tar.gz", monkeypatch)
    asked = web(monkeypatch, {ADDRESS: (tmp_path / "archive.tar.gz").read_bytes()})
    assert len(cifar10(tmp_path / "new").read_table()) == 24
    requests = len(asked)
    assert len(cifar10(tmp_path / "new").read_table()) == 24
    assert len(asked) == requests > 0


def pack(root: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))


def test_missing_data_without_a_network_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "none"
    assert refusal(cifar10(root).read_table) == (
        f"{root / 'cifar-10-batches-py'} is missing or damaged, and cannot be downloaded "
        f"(<urlopen error no network in tests>); put cifar-10-python.tar.gz from {ADDRESS} into data.root={root}"
    )


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_batch_is_refused(root: Path, name: str) -> None:
    file = root / "cifar-10-batches-py" / name
    file.write_bytes(file.read_bytes()[:-5])
    assert refusal(cifar10(root).read_table).startswith(f"{root / 'cifar-10-batches-py'} is missing or damaged")
