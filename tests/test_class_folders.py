"""A folder per class, with and without splits."""

import logging
import shutil
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from fake_data import class_folders, pixels, refusal, write_class_folders, write_photographs
from PIL import Image

from resnet_lab.compatibility import upgraded
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.prepared import prepare
from resnet_lab.data.splits import class_counts

SPLITS = {"train/cat": 2, "train/ant": 3, "val/ant": 1, "val/cat": 1, "test/cat": 2}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def write_named(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(name)).save(root / name)


def test_split_folders(root):
    data = class_folders(write_class_folders(root, SPLITS))
    table, dropped = data.table()
    assert data.class_names == ["ant", "cat"]
    assert class_counts(table, 2) == {"train": [3, 2], "val": [1, 1], "test": [0, 2]}
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
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


def test_other_files_and_hidden_folders_are_not_images(root):
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
    assert refusal(class_folders(root).table).startswith("1 image of train or val belongs to 1 patient")
    table, dropped = class_folders(root, on_leak="drop", val_fraction=0).table()
    assert dropped["leaks"] == 1
    assert table["image"].tolist() == [
        "train/0/1_left.jpeg",
        "train/1/1_right.jpeg",
        "test/0/2_right.jpeg",
        "test/0/3_left.jpeg",
    ]
    assert table["patient"].tolist() == ["1", "1", "2", "3"]


def test_a_class_that_train_lacks_is_refused(root):
    message = refusal(class_folders(write_class_folders(root, {"train/a": 1, "train/b": 1, "test/c": 1})).read_table)
    assert message.startswith(f"{root / 'test' / 'c'} is not one of the classes a, b; rename the folder")


def test_splits_without_train(root):
    message = refusal(class_folders(write_class_folders(root, {"test/a": 1})).read_table)
    assert message.startswith(str(root))
    assert f"no folder train; put the training classes into {root / 'train'}" in message
    assert "data.all_images=test" in message


@pytest.mark.parametrize("folders", [{}, {"a": 0, "b": 0}])
def test_no_image(root, folders):
    root.mkdir()
    message = refusal(class_folders(write_class_folders(root, folders)).read_table)
    assert message.startswith(f"{root} contains no images (.jpeg .jpg .png .tif …)")


def test_missing_root(root):
    assert refusal(class_folders(root).read_table).startswith(f"{root} is not a folder; set data.root")


# listing


def log_of(caplog, call):
    with caplog.at_level(logging.INFO):
        result = call()
    return result, "\n".join(caplog.messages)


def test_every_kind_in_any_case_and_in_subfolders_counts(root):
    names = ["a/0.jpg", "a/0.webp", "a/1.Jpeg", "a/2.BMP", "a/camera/0.jpg", "a/camera/old/0.png", "b/0.gif"]
    write_named(root, names)
    table = class_folders(root).read_table()
    assert table["image"].tolist() == names
    assert table["target"].tolist() == [0] * 6 + [1]
    assert table["path"].tolist() == [str(root / name) for name in names]


@pytest.mark.parametrize(
    "names", [("training", "valid", "testing"), ("Train", "validation", "TEST"), ("train", "VAL", "Test")]
)
def test_split_folders_of_other_names(root, names):
    write_class_folders(root, {f"{split}/{name}": 2 for split in names for name in "ab"})
    table = class_folders(root).read_table()
    assert class_counts(table, 2) == {"train": [2, 2], "val": [2, 2], "test": [2, 2]}


def test_two_folders_of_one_split_are_refused(root):
    write_class_folders(root, {"train/a": 1, "val/a": 1, "valid/a": 1})
    assert "val and valid, two folders of split val" in refusal(class_folders(root).read_table)


def test_classes_called_valid_and_invalid(root):
    data = class_folders(write_class_folders(root, {"valid": 2, "invalid": 2}))
    data.read_table()
    assert data.class_names == ["invalid", "valid"]


def test_junk_is_neither_a_class_nor_an_image(root):
    write_class_folders(root, {"a": 2, "b": 2, "__MACOSX/a": 1, "@eaDir": 1})
    (root / "a" / "._000.jpeg").write_bytes(b"\0\5\x16\7")
    data = class_folders(root)
    table, dropped = data.table()
    assert (data.class_names, len(table), dropped["skipped_images"]) == (["a", "b"], 4, 0)


def test_ignored_files_are_reported_in_one_line_per_kind(root, caplog):
    write_class_folders(root, {"train/a": 1, "train/b": 1, "extra/deep": 3})
    write_photographs(root / "train", ["stray"])
    write_photographs(root, ["r1", "r2"])
    for name in ("labels.csv", "train/a/1.txt", "train/a/sub/2.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    _, log = log_of(caplog, class_folders(root).read_table)
    assert f"{root}: left out 6 images outside the class folders: 3 in extra, 2 in data, 1 in train" in log
    assert "left out 3 files without an image suffix: 2 .txt, 1 .csv" in log
    caplog.clear()
    _, log = log_of(caplog, class_folders(write_class_folders(root.with_name("clean"), {"a": 2, "b": 2})).read_table)
    assert "left out" not in log


def test_a_root_one_level_too_high_is_refused(root):
    write_class_folders(root, {"data/train/a": 1, "data/train/b": 1})
    message = refusal(class_folders(root).read_table)
    assert message == f"{root / 'data'} is not a class: it contains a folder per split; set data.root to it"
    write_class_folders(root.with_name("other"), {"vehicles/train": 1, "animals": 1})  # a class with such a subfolder
    assert len(class_folders(root.with_name("other")).read_table()) == 2


@pytest.mark.parametrize("deep", ["", "more/"])
@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "Testing"), ("valid", "testing"), ("train_images", "val"), ("test",)]
)
def test_splits_below_a_class_are_refused(root, names, deep):
    write_class_folders(root, {f"{name}/{deep}{split}": 1 for split in names for name in "ab"})
    message = refusal(class_folders(root).read_table)
    assert message.startswith(f"{root / 'a' / deep} is not a class")
    assert "(train/a)" in message


@pytest.mark.parametrize(
    "names",
    [
        ("Training Set", "Testing Set"),
        ("train_set", "test_set"),
        ("train_images", "val_images", "test_images"),
        ("a. Training Set", "b. Testing Set"),
        ("TrainSet", "VALSET", "testset"),
        ("1-train-data", "2-validation-data"),
    ],
)
def test_split_folders_with_fillers_in_their_names(root, names):
    write_class_folders(root, {f"{split}/{name}": 2 for split in names for name in "ab"})
    data = class_folders(root)
    counts = class_counts(data.read_table(), 2)
    assert data.class_names == ["a", "b"]
    assert len(counts) == len(names)
    assert all(count == [2, 2] for count in counts.values())


def test_a_plain_split_folder_goes_before_one_with_fillers(root, caplog):
    write_class_folders(root, {"train/a": 1, "train/b": 1, "train_images": 3})
    _, log = log_of(caplog, class_folders(root).read_table)
    assert "left out 3 images outside the class folders: 3 in train_images" in log


@pytest.mark.parametrize("names", [("kaggle_train", "kaggle_test"), ("my Training 1", "my val", "TEST of mine")])
def test_splits_are_not_classes(root, names):
    message = refusal(class_folders(write_class_folders(root, dict.fromkeys(names, 2))).read_table)
    assert message.startswith(str(root))
    assert f"{' and '.join(sorted(names))}: splits, not classes; rename them" in message


@pytest.mark.parametrize("names", [("test negative", "test positive"), ("contest", "trainer"), ("bullet train", "car")])
def test_class_names_may_contain_names_of_splits(root, names):
    data = class_folders(write_class_folders(root, dict.fromkeys(names, 2)))
    assert (len(data.read_table()), data.class_names) == (4, sorted(names))


def test_subfolders_of_a_class_are_reported_with_their_counts(root, caplog):
    write_class_folders(root, {"dr/mild": 3, "dr/severe/old": 2, "healthy": 4})
    table, log = log_of(caplog, class_folders(root).read_table)
    assert class_counts(table, 2) == {"train": [5, 4]}
    assert f"{root}: added 5 images of sub-folders to the class above them: 3 in dr/mild, 2 in dr/severe/old" in log


def test_folders_without_an_image_are_not_classes(root, caplog):
    folders = {"train/a": 1, "train/b": 1, "train/aa": 0, "train/__pycache__": 0, "test/aa": 0, "test/other": 0}
    write_class_folders(root, folders | {"train/c": 0, "test/c": 1})
    (root / "train" / "aa" / "notes.txt").touch()
    data = class_folders(root)
    table, log = log_of(caplog, data.read_table)
    assert data.class_names == ["a", "b", "c"]
    assert class_counts(table, 3) == {"train": [1, 1, 0], "test": [0, 0, 1]}
    assert "left out 3 class folders without an image: 2 aa, 1 other" in log
    caplog.clear()
    given = class_folders(root, class_names=["a", "aa", "b", "c"])
    _, log = log_of(caplog, given.read_table)
    assert "left out 1 class folder without an image: 1 other" in log


def test_a_link_to_a_parent_folder_adds_nothing(root):
    write_class_folders(root, {"train/a": 2, "train/b": 2})
    for place in (root / "train" / "a" / "up", root / "train" / "up", root / "up"):
        place.symlink_to("..")
    data = class_folders(root)
    assert class_counts(data.read_table(), 2) == {"train": [2, 2]}


def test_one_class_is_refused(root):
    write_class_folders(root, {"a": 4})
    assert "has one class, a; at least two are needed" in refusal(DataModule(class_folders(root), seed=0).setup)


# all images in one split


def test_all_images_are_one_split(root):
    write_class_folders(root, SPLITS)
    for split in ("train", "val", "test"):
        table, _ = class_folders(root, all_images=split).table()
        assert class_counts(table, 2) == {split: [4, 5]}
    write_class_folders(root.with_name("alone"), {"test/b": 2, "val/a": 1})
    data = class_folders(root.with_name("alone"), all_images="test")
    assert class_counts(data.table()[0], 2) == {"test": [1, 2]}
    assert data.class_names == ["a", "b"]


@pytest.mark.parametrize(("key", "value"), [("splits", {"train": "val"}), ("folds", 5)])
def test_all_images_against_other_splits(root, key, value):
    message = refusal(lambda: class_folders(root, all_images="test", **{key: value}))
    assert message.startswith("data.all_images=test puts every image into one split")
    assert f"set data.{key}=null" in message


def test_all_images_of_no_split(root):
    message = refusal(lambda: class_folders(root, all_images="dev"))
    assert message == "data.all_images=dev: must be train, val, test or null"


def test_all_images_leave_nothing_to_train_on(root):
    datamodule = DataModule(class_folders(write_class_folders(root, SPLITS), all_images="test"), seed=0)
    assert "has no split train; choose among test (data.all_images=test)" in refusal(datamodule.setup)


def test_an_older_run_lists_the_same_images_as_before(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", {"train/cat": 2, "train/dog": 2, "test/cat": 1, "valid/dog": 1})
    source = next((root / "train" / "cat").iterdir())
    for name in ("x.webp", "y.Jpeg", "sub/z.png"):
        (root / "train" / "cat" / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, root / "train" / "cat" / name)
    (root / "train" / "__MACOSX").mkdir()  # class 0
    older = upgraded({"data": {"_target_": "resnet_lab.data.class_folders.ClassFolders"}})["data"]
    data = class_folders(root, all_kinds=older["all_kinds"])
    table = data.read_table()
    assert data.class_names == ["__MACOSX", "cat", "dog"]
    assert table.groupby("split").size().to_dict() == {"train": 4, "test": 1}
    assert sorted(table.query("split == 'train'")["target"]) == [1, 1, 2, 2]
    new = class_folders(root).read_table()
    assert new.groupby("split").size().to_dict() == {"train": 7, "test": 1, "val": 1}


# order of the classes

NUMBERED = ["10 - other", "1 - No DR", "2 - mild", "0 - none"]
GRADES = ["grade 10", "grade 2", "grade 1", "Grade 3"]


@pytest.mark.parametrize(
    ("names", "ordered", "expected"),
    [
        (NUMBERED, True, ["0 - none", "1 - No DR", "2 - mild", "10 - other"]),
        (NUMBERED, False, ["0 - none", "1 - No DR", "2 - mild", "10 - other"]),
        (["10", "9", "09", "010"], False, ["09", "9", "010", "10"]),
        (GRADES, True, ["Grade 3", "grade 1", "grade 2", "grade 10"]),
        (GRADES, False, sorted(GRADES)),
        ([*NUMBERED, "ungradable"], False, sorted([*NUMBERED, "ungradable"])),
        ([*NUMBERED, "ungradable"], True, ["0 - none", "1 - No DR", "2 - mild", "10 - other", "ungradable"]),
    ],
)
def test_classes_are_in_the_order_of_their_numbers(root, names, ordered, expected):
    data = class_folders(write_class_folders(root, dict.fromkeys(names, 1)), ordered=ordered)
    table = data.read_table()
    assert data.class_names == expected
    folders = table["image"].str.partition("/")[0]
    assert [expected[target] for target in table["target"]] == folders.tolist()


@pytest.mark.parametrize(
    ("names", "keys", "said"),
    [
        (["Mild", "No DR"], {"ordered": True}, True),
        (["Mild", "No DR"], {"ordered": True, "class_names": ["No DR", "Mild"]}, False),
        (["Mild", "No DR"], {}, False),
        (["1 Mild", "0 No DR"], {"ordered": True}, False),
    ],
)
def test_grades_in_alphabetical_order_are_pointed_out(root, caplog, names, keys, said):
    class_folders(write_class_folders(root, dict.fromkeys(names, 1)), **keys).read_table()
    assert ("grades in alphabetical order (Mild, No DR); set data.class_names=[…]" in caplog.text) is said


def test_an_older_run_keeps_the_order_of_its_classes(root):
    write_class_folders(root, dict.fromkeys(NUMBERED, 1))
    older = upgraded({"data": {"_target_": "resnet_lab.data.class_folders.ClassFolders", "all_kinds": True}})["data"]
    for all_kinds in (True, False):
        data = class_folders(root, ordered=True, all_kinds=all_kinds, natural_order=older["natural_order"])
        data.read_table()
        assert data.class_names == ["0 - none", "1 - No DR", "10 - other", "2 - mild"]


def test_prepared_copies_below_the_root_are_no_class(root):
    write_class_folders(root, {"b": 8, "a": 4})
    data = class_folders(root, cache_dir=str(root / "cache"))
    prepare(data.prepared_set, data.read_table()["path"].tolist(), 1)
    again = class_folders(root, cache_dir=str(root / "cache"))
    assert (len(again.read_table()), again.class_names) == (12, ["a", "b"])


def test_two_spellings_of_a_class_are_one(root):
    composed, apart = (unicodedata.normalize(form, "s\N{LATIN SMALL LETTER E WITH GRAVE}re") for form in ("NFC", "NFD"))
    write_named(root, [f"train/{composed}/1.png", f"train/{apart}/2.png", "train/no/3.png", "train/no /4.png"])
    write_named(root, [f"val/{apart}/5.png", "val/No/6.png"])
    message = refusal(class_folders(root).read_table)
    assert "val/No is not one of the classes" in message  # A and a may be two letters
    shutil.rmtree(root / "val" / "No")
    data = class_folders(root)
    assert class_counts(data.read_table(), 2) == {"train": [2, 2], "val": [0, 1]}
    assert data.class_names == ["no", apart]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.assign(target=[0, -1, 1]), "image b has the target -1; it must be an integer from 0 to 1"),
        (lambda rows: rows.assign(target=[0, 1.5, 1]), "image b has the target 1.5"),
        (lambda rows: rows.assign(target=[0, 1, 2]), "image c has the target 2"),
        (lambda rows: rows.assign(target=[None, 1, 0]), "image a has the target"),
        (lambda rows: rows.assign(target=["0", "1", "1"]), "image a has the target 0; it must be an integer"),
        (lambda rows: rows.assign(image=[1, 2, 3]), "image 1 has the image 1; it must be text"),
        (lambda rows: rows.assign(path=[Path("a"), Path("b"), Path("c")]), "image a has the path a; it must be text"),
        (lambda rows: rows[:0], "returns no rows"),
        (lambda rows: rows.assign(image="a"), "train has several rows named a"),
        (lambda rows: rows.assign(patient=[1, 2, 3]), "image a has the patient 1; it must be text"),
        (lambda rows: rows.drop(columns=["path"]), "returns no column path"),
    ],
)
def test_rows_of_an_own_data_set_that_cannot_be_used_are_named(root, change, words):
    rows = pd.DataFrame({"image": list("abc"), "target": [0, 1, 1], "split": "train", "path": list("abc")})
    data = class_folders(write_class_folders(root, SPLITS), class_names=["x", "y"])
    data.read_table = lambda: change(rows)
    message = refusal(data.listed)
    assert message.startswith("data=class_folders: ClassFolders.read_table")
    assert words in message


def test_an_own_data_set_has_class_names(root):
    rows = pd.DataFrame({"image": ["a"], "target": 0, "split": "train", "path": "a"})
    data = class_folders(write_class_folders(root, SPLITS))
    data.read_table = lambda: rows
    assert "sets no class_names" in refusal(data.listed)


@pytest.mark.parametrize(
    ("splits", "classes", "warns"),
    [(("tr", "te"), ("0", "1"), True), (("no", "mild"), ("left", "right"), False), (("no", "mild"), ("",), False)],
)
def test_classes_with_the_same_sub_folders_may_be_splits(tmp_path, caplog, splits, classes, warns):
    for split in splits:
        for name in classes:
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / f"{split}{name}.png")
    class_folders(tmp_path).read_table()
    assert ("have the same folders (0, 1); if those are the classes, rename" in caplog.text) == warns
