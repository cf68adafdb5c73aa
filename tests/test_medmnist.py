"""MedMNIST's npz files: splits, gray and color, damaged files, and the download, without a network."""

from __future__ import annotations

import hashlib
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REAL_DATA
from fake_data import medmnist, pixels, refusal, retinamnist, web, write_medmnist
from PIL import Image

from resnet_lab.data.check import examine
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.splits import class_counts

LABELS = {"train": [0, 1, 2, 0, 1, 2, 0, 1], "val": [2, 1, 0], "test": [1, 1, 0, 2]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Block the network, and the medmnist package unless a test brings one."""
    monkeypatch.setitem(sys.modules, "medmnist", None)
    return web(monkeypatch, {})


def written(root: Path, labels: dict[str, list[int]] = LABELS, **form: int) -> Path:
    return write_medmnist(root / "bloodmnist.npz", labels, **form)


def changed(root: Path, **arrays: np.ndarray | None) -> str:
    """Return the error message, without the file name, for a file with these arrays and otherwise valid ones."""
    file = written(root)
    whole = {name: array for name, array in (dict(np.load(file)) | arrays).items() if array is not None}
    np.savez(file, **whole)
    message = refusal(medmnist(root).read_table)
    assert message.startswith(str(file))
    return message.removeprefix(str(file))


def package(monkeypatch: pytest.MonkeyPatch, **md5: str) -> None:
    """Replace the package medmnist 3.0.2, which downloads through torchvision and hides the reason of a failure."""

    class BloodMNIST:
        def __init__(self, split: str, download: bool, root: str, size: int) -> None:
            from torchvision.datasets.utils import download_url

            name = f"bloodmnist{'' if size == 28 else f'_{size}'}.npz"
            try:
                download_url(f"https://zenodo.org/{name}", root, name, md5[f"size_{size}"])
            except Exception:
                raise RuntimeError("\n  Automatic download failed!\n  Please …") from None

    label = {"0": "basophil", "1": "eosinophil", "2": "erythroblast"}
    tasks = {"chestmnist": "multi-label, binary-class", "organmnist3d": "multi-class", "bloodmnist": "multi-class"}
    flags = {flag: {"task": task, "python_class": "BloodMNIST", "label": label} for flag, task in tasks.items()}
    monkeypatch.setitem(sys.modules, "medmnist", SimpleNamespace(INFO=flags, BloodMNIST=BloodMNIST))


def test_the_splits_are_its_own(root: Path) -> None:
    written(root)
    data = medmnist(root)
    table, dropped = data.table()
    assert class_counts(table, 3) == {"train": [3, 3, 2], "val": [1, 1, 1], "test": [1, 2, 1]}
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
    assert data.class_names == ["0", "1", "2"]
    last = table.iloc[-1]
    assert last["image"] == last["path"] == last["patient"] == "test/00003"
    assert last["target"] == 2


def test_images_come_as_they_are_stored(root: Path) -> None:
    written(root)
    data = medmnist(root, image_size=28)
    data.read_table()
    assert np.array_equal(data.read("val/00002"), pixels("val/00002", 28, 28))
    again = pickle.loads(pickle.dumps(data))  # as in a worker process
    assert np.array_equal(again.read("test/00001"), pixels("test/00001", 28, 28))


def test_another_size_than_the_file_has(root: Path) -> None:
    written(root)
    data = medmnist(root, image_size=14)
    data.read_table()
    blocks = pixels("train/00000", 28, 28).reshape(14, 2, 14, 2, 3).mean((1, 3))
    assert np.abs(data.read("train/00000") - blocks).max() <= 0.5


def test_gray_becomes_rgb(root: Path) -> None:
    written(root, channels=1)
    data = medmnist(root, image_size=28)
    data.read_table()
    gray = pixels("train/00004", 28, 28)[..., 0]
    assert np.array_equal(data.read("train/00004"), np.stack([gray] * 3, axis=2))


@pytest.mark.parametrize("size", [64, 128])
def test_larger_sizes_have_files_of_their_own(root: Path, size: int) -> None:
    write_medmnist(root / f"bloodmnist_{size}.npz", LABELS, size=size)
    data = medmnist(root, size=size, image_size=size)
    data.read_table()
    assert np.array_equal(data.read("train/00001"), pixels("train/00001", size, size))


def test_a_batch(root: Path) -> None:
    written(root)
    module = DataModule(medmnist(root, image_size=28), seed=0)
    module.setup()
    (batch,) = module.evaluation_dataloader("val")
    assert batch["target"].tolist() == [2, 1, 0]
    for n, image in enumerate(batch["image"].numpy()):
        assert np.array_equal(image, pixels(f"val/{n:05d}", 28, 28))


def test_a_file_by_name(root: Path, tmp_path: Path) -> None:
    write_medmnist(root / "cut.npz", LABELS)
    write_medmnist(tmp_path / "elsewhere" / "other.npz", {"train": [3, 0]})
    assert len(medmnist(root, file="cut.npz").read_table()) == 15
    assert medmnist(root, file=str(tmp_path / "elsewhere" / "other.npz")).read_table()["target"].tolist() == [3, 0]
    assert refusal(medmnist(root, file="gone.npz").read_table) == (
        f"{root / 'gone.npz'} does not exist; download it from https://zenodo.org/records/10519652, "
        "or name yours in data.file"
    )


def test_a_file_may_lack_splits(root: Path) -> None:
    written(root, {"train": [0, 1] * 10})
    table, _ = medmnist(root, val_fraction=0.2).table()
    assert class_counts(table, 2) == {"train": [8, 8], "val": [2, 2]}
    written(root, {"val": [0, 1], "test": [1, 1, 0]})
    assert medmnist(root).table()[0]["split"].tolist() == ["val", "val", "test", "test", "test"]  # for evaluation
    table, _ = medmnist(root, splits={"train": "test", "val": "val"}).table()
    assert table["split"].tolist() == ["val", "val", "train", "train", "train"]
    assert table["path"].tolist()[-1] == "test/00002"


def test_a_file_without_any_split(root: Path) -> None:
    written(root, {})
    assert "has no split" in refusal(medmnist(root, splits={"train": "val"}).read_table)


def test_identical_images_leave_train(root: Path) -> None:
    arrays = dict(np.load(written(root)))
    arrays["train_images"][5] = arrays["test_images"][1]
    np.savez(root / "bloodmnist.npz", **arrays)
    table, dropped = medmnist(root).table()
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 1}
    assert "train/00005" not in set(table["path"])
    assert table["split"].value_counts().to_dict() == {"train": 7, "test": 4, "val": 3}


def test_labels_that_start_at_one_are_pointed_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(root, {"train": [1, 2, 3], "val": [2, 3], "test": [1]})
    medmnist(root, class_names=["healthy", "a", "b", "c"]).read_table()
    assert "label" not in caplog.text
    medmnist(root).read_table()
    assert "no label is 0, and the largest is 3, so class 0 has no image" in caplog.text


def test_given_class_names_bound_the_labels(root: Path) -> None:
    written(root)
    names = ["no DR", "mild", "moderate", "severe"]
    data = medmnist(root, class_names=names)
    data.read_table()
    assert data.class_names == names
    message = refusal(medmnist(root, class_names=["a", "b"]).read_table)
    assert message.startswith(f"{root / 'bloodmnist.npz'}: ")
    assert message.endswith("_labels reaches 2, but there are 2 classes (a, b); set data.class_names")


IMAGES = np.zeros((3, 28, 28, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "val_images is float32 (3, 28, 28, 3); it must hold 2D images, uint8"),
        (np.zeros((3, 28, 28, 4), np.uint8), "val_images is uint8 (3, 28, 28, 4); it must hold 2D images"),
        (np.zeros((3, 28, 28, 28), np.uint8), "val_images is uint8 (3, 28, 28, 28); it must hold 2D images"),
        (np.zeros((3, 64, 64, 3), np.uint8), "val_images is (3, 64, 64, 3); set data.size"),
        (np.uint8(3), "val_images is (); set data.size"),
        (np.array([{}, {}, {}]), "cannot read val_images: Object arrays cannot be loaded when allow_pickle=False"),
    ],
)  # fmt: skip
def test_images_of_another_type_are_refused(root: Path, images: np.ndarray, message: str) -> None:
    assert changed(root, val_images=images).startswith(f": {message}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 14), np.uint8), "val_labels is uint8 (3, 14); 3 images need one whole number from 0 each"),
        (np.zeros((4, 1), np.uint8), "val_labels is uint8 (4,); 3 images need one"),
        (np.zeros(3), "val_labels is float64 (3,); 3 images need one"),
        (np.array([0, -1, 2]), "val_labels is int64 (3,); 3 images need one whole number from 0"),
        (np.array([0, None, 2]), "cannot read val_labels: Object arrays cannot be loaded"),
        (None, "cannot read val_labels: 'val_labels is not a file in the archive'"),
    ],
)  # fmt: skip
def test_labels_of_another_type_are_refused(root: Path, labels: np.ndarray | None, message: str) -> None:
    assert changed(root, val_labels=labels).startswith(f": {message}")


def test_labels_may_be_a_plain_row(root: Path) -> None:
    arrays = dict(np.load(written(root)))
    np.savez(root / "bloodmnist.npz", **{name: array.squeeze() for name, array in arrays.items()})
    assert medmnist(root).read_table()["target"].tolist() == [*LABELS["train"], *LABELS["val"], *LABELS["test"]]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no npz at all"])
def test_a_folder_without_npz_is_refused(root: Path, content: bytes) -> None:
    written(root).write_bytes(content)
    assert refusal(medmnist(root).read_table).startswith(f"{root / 'bloodmnist.npz'} is not an npz, or incomplete")


def test_a_damaged_npz_is_refused(root: Path) -> None:
    file = written(root)
    content = bytearray(file.read_bytes())
    content[300:340] = bytes(40)
    file.write_bytes(content)
    assert refusal(medmnist(root).read_table).startswith(f"{file}: cannot read train_images: ")


def test_absent_without_the_package(root: Path, network: list[str]) -> None:
    assert refusal(medmnist(root, size=64).read_table) == (
        f"{root / 'bloodmnist_64.npz'} does not exist; download it from https://zenodo.org/records/10519652, or name "
        "yours in data.file; for automatic download, pip install 'resnet-lab[medmnist]'"
    )
    assert network == []


@pytest.mark.parametrize("size", [28, 64])
def test_download_through_the_package(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    name = {28: "bloodmnist.npz", 64: "bloodmnist_64.npz"}[size]
    content = write_medmnist(tmp_path / name, LABELS, size=size).read_bytes()
    asked = web(monkeypatch, {name: content})
    package(monkeypatch, **{f"size_{size}": hashlib.md5(content).hexdigest()})
    data = medmnist(root, size=size)
    assert len(data.read_table()) == 15
    assert data.class_names == ["basophil", "eosinophil", "erythroblast"]
    assert [path.name for path in root.iterdir()] == [name]
    requests = len(asked)
    assert len(medmnist(root, size=size).read_table()) == 15
    assert len(asked) == requests > 0


def test_a_wrong_download_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web(monkeypatch, {"bloodmnist.npz": b"half of it"})
    package(monkeypatch, size_28="0" * 32)
    message = refusal(medmnist(root).read_table)
    assert message == (
        f"cannot download {root / 'bloodmnist.npz'}: File not found or corrupted.; "
        "download it from https://zenodo.org/records/10519652"
    )
    assert list(root.iterdir()) == []


def test_no_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, size_28="0" * 32)
    assert "<urlopen error no network in tests>" in refusal(medmnist(root).read_table)


@pytest.mark.parametrize(
    "changes", [{"flag": "bloodmnits"}, {"flag": "organmnist3d"}, {"flag": "chestmnist"}, {"size": 32}]
)
def test_an_unknown_set_is_refused(
    root: Path, network: list[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | int]
) -> None:
    package(monkeypatch)
    message = refusal(medmnist(root, **changes).read_table)
    assert message.startswith("there is no MedMNIST set ")
    assert message.endswith(".npz: data.flag must be one of bloodmnist, data.size one of (28, 64, 128, 224)")
    assert network == []


def test_the_package_does_not_name_the_classes_of_a_user_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch)
    write_medmnist(root / "mine.npz", LABELS)
    data = medmnist(root, flag="mine")
    data.read_table()
    assert data.class_names == ["0", "1", "2"]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no ../shared/data")
def test_retinamnist() -> None:
    file = REAL_DATA / "retinamnist_trainval.npz"
    data = retinamnist(REAL_DATA, file=file.name, image_size=28)
    table, dropped = data.table()
    assert (data.class_names, data.ordered) == (["no DR", "mild", "moderate", "severe", "proliferative"], True)
    assert class_counts(table, 5) == {"train": [486, 128, 206, 194, 66], "val": [54, 12, 28, 20, 6]}
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
    assert np.array_equal(data.read("val/00119"), np.load(file)["val_images"][119])


def test_an_npz_of_something_else(root: Path) -> None:
    with zipfile.ZipFile(written(root), "w") as file:
        file.writestr("train_images", b"plain bytes")
        file.writestr("train_labels", b"plain bytes")
    assert "cannot read train_images: it is not an array; download the file from" in refusal(medmnist(root).read_table)


def test_an_npz_with_a_damaged_directory(root: Path) -> None:
    content = bytearray(written(root).read_bytes())
    content[content.rindex(b"PK\x01\x02")] = 0
    (root / "bloodmnist.npz").write_bytes(content)
    assert "is damaged (" in refusal(medmnist(root).read_table)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_an_array_and_its_png_have_equal_pixels(tmp_path, channels):
    root = write_medmnist(tmp_path / "data" / "retinamnist.npz", {"train": [0, 1]}, channels=channels).parent
    data = retinamnist(root, val_fraction=0, test_fraction=0)
    table, _ = data.table()
    for row, name in enumerate(table["path"]):
        Image.fromarray(data._image(name)).save(tmp_path / "image.png")
        assert examine(str(tmp_path / "image.png"))[2] == table["decoded"][row]


def test_array_indices_are_not_patients_and_give_no_message(root, caplog):
    write_medmnist(root / "bloodmnist.npz", LABELS)
    with caplog.at_level("INFO"):
        for regex in ("auto", "(.+)_(?:left|right)", None):
            data = medmnist(root, patient_regex=regex)
            assert data.listed()["patient"].tolist() == data.listed()["image"].tolist()
    assert "patient" not in caplog.text


def test_all_images_are_one_split(root):
    write_medmnist(root / "bloodmnist.npz", LABELS)
    assert set(medmnist(root, all_images="test").table()[0]["split"]) == {"test"}


def test_an_absurd_label_is_refused_before_a_billion_classes_are_named(root: Path) -> None:
    labels = np.zeros(40, np.int64)
    labels[7] = 10**9
    root.mkdir(exist_ok=True)
    np.savez(root / "big.npz", train_images=np.zeros((40, 28, 28, 3), np.uint8), train_labels=labels)
    message = refusal(medmnist(root, file="big.npz").read_table)
    assert f"{root / 'big.npz'}: the label of train/00007 is 1000000000" in message
