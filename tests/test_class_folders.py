"""A folder per class, with and without splits."""

import pytest
from fake_data import class_folders, refusal, write_class_folders, write_photographs

from resnet_lab.data.table import class_counts

SPLITS = {"train/cat": 2, "train/ant": 3, "val/ant": 1, "val/cat": 1, "test/cat": 2}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_split_folders(root):
    data = class_folders(write_class_folders(root, SPLITS))
    table, dropped = data.table()
    assert data.class_names == ["ant", "cat"]
    assert class_counts(table, 2) == {"train": [3, 2], "val": [1, 1], "test": [0, 2]}
    assert dropped == {"skipped_images": 0, "leaks": 0}
    first = table.iloc[0]
    assert (first["image"], first["target"], first["patient"]) == ("train/ant/000.jpeg", 0, "train/ant/000.jpeg")
    assert first["path"] == str(root / "train/ant/000.jpeg")


def test_classes_alone_are_train(root):
    data = class_folders(write_class_folders(root, {"b": 8, "a": 4, "c": 4}), test_fraction=0.25, val_fraction=0.5)
    table, _ = data.table()
    assert data.class_names == ["a", "b", "c"]
    assert class_counts(table, 3) == {"train": [1, 3, 1], "val": [2, 3, 2], "test": [1, 2, 1]}


def test_given_class_names_set_the_order(root):
    table = class_folders(write_class_folders(root, SPLITS), class_names=["cat", "ant", "bee"]).read_table()
    assert class_counts(table, 3)["train"] == [2, 3, 0]


def test_other_files_and_hidden_folders_are_no_images(root):
    write_class_folders(root, {"a": 1, "b": 1, ".ipynb_checkpoints": 1})
    (root / "a" / "notes.txt").touch()
    (root / "labels.csv").touch()
    data = class_folders(root)
    assert data.read_table()["image"].tolist() == ["a/000.jpeg", "b/000.jpeg"]
    assert data.class_names == ["a", "b"]


def test_eyes_of_a_patient_are_found_across_folders(root):
    write_photographs(root / "train" / "0", ["1_left", "2_left"])
    write_photographs(root / "train" / "1", ["1_right"])
    write_photographs(root / "test" / "0", ["2_right", "3_left"])
    assert refusal(class_folders(root).table).startswith("1 images of train or val are of 1 patients")
    table, dropped = class_folders(root, on_leak="drop", val_fraction=0).table()
    assert dropped["leaks"] == 1
    assert table["image"].tolist() == [
        "train/0/1_left.jpeg",
        "train/1/1_right.jpeg",
        "test/0/2_right.jpeg",
        "test/0/3_left.jpeg",
    ]
    assert table["patient"].tolist() == ["1", "1", "2", "3"]


def test_class_that_train_lacks(root):
    message = refusal(class_folders(write_class_folders(root, {"train/a": 1, "train/b": 1, "test/c": 1})).read_table)
    assert message.startswith(f"{root / 'test' / 'c'}: no class of that name among a, b; rename the folder")


def test_splits_without_train(root):
    message = refusal(class_folders(write_class_folders(root, {"test/a": 1})).read_table)
    assert message == f"{root} holds no folder train; put the training classes into {root / 'train'}"


@pytest.mark.parametrize("folders", [{}, {"a": 0, "b": 0}])
def test_no_image(root, folders):
    root.mkdir()
    message = refusal(class_folders(write_class_folders(root, folders)).read_table)
    assert message.startswith(f"{root} holds no images (.jpeg .jpg .png .tif …)")


def test_missing_root(root):
    assert refusal(class_folders(root).read_table).startswith(f"{root} is not a folder; set data.root")
