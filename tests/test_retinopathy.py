"""Retinopathy photographs in all layouts of users, from files to the table for training."""

import logging

import numpy as np
import pandas as pd
import pytest
from fake_data import (
    TEST,
    TRAIN,
    refusal,
    retinopathy,
    write_aptos,
    write_kaggle,
    write_labels,
    write_pair,
    write_photographs,
    write_studies,
)
from PIL import Image

from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.splits import class_counts, fingerprints


def listed(table, split):
    rows = table[table["split"] == split]
    return dict(zip(rows["image"], rows["target"], strict=True))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


# layouts


@pytest.mark.parametrize("header", [False, True])
def test_studies_keep_every_row(root, header):
    table = retinopathy(write_studies(root, header=header)).read_table()
    assert listed(table, "train") == TRAIN
    assert listed(table, "test") == TEST
    assert set(table["split"]) == {"train", "test"}
    assert table["path"].tolist() == [str(root / "images" / f"{name}.jpeg") for name in [*TRAIN, *TEST]]


def test_studies_with_a_validation_file(root):
    write_studies(root)
    write_photographs(root / "images", ["99_left", "99_right"])
    write_labels(root / "val.csv", {"99_left": 1, "99_right": 2}, "image,level")
    data = retinopathy(root, val_csv="val.csv")
    table, _ = data.table()
    assert listed(table, "val") == {"99_left": 1, "99_right": 2}
    assert listed(table, "train") == TRAIN  # no split is cut if there is a file


def test_kaggle(root):
    table = retinopathy(write_kaggle(root)).read_table()
    assert listed(table, "train") == TRAIN
    assert set(table["split"]) == {"train"}
    assert table["path"][0] == str(root / "train" / "1_left.jpeg")


def test_aptos(root):
    table = retinopathy(write_aptos(root)).read_table()
    assert len(table) == 20
    assert table["target"].tolist() == [n % 5 for n in range(20)]
    assert table["path"][0] == str(root / "train_images" / f"{table['image'][0]}.png")


def test_any_csv_by_its_columns(root):
    root.mkdir()
    (root / "eyes.csv").write_text("age,file,grade\n50,001.jpg,4\n60,NA.jpg,0\n")
    (root / "held_out.csv").write_text("file,grade\n003.jpg,2\n")
    write_photographs(root / "scans" / "a", ["001", "NA", "003"], ".jpg")
    keys = {"images": "scans/a", "image_column": "file", "label_column": "grade"}
    table = retinopathy(root, train_csv="eyes.csv", test_csv="held_out.csv", **keys).read_table()
    assert listed(table, "train") == {"001.jpg": 4, "NA.jpg": 0}
    assert listed(table, "test") == {"003.jpg": 2}


def test_images_beside_the_csv(root):
    write_photographs(root, ["1", "2"], ".png")
    write_labels(root / "train.csv", {"1": 0, "2": 1}, "id_code,diagnosis")
    assert retinopathy(root).read_table()["path"].tolist() == [str(root / "1.png"), str(root / "2.png")]


def test_named_csv_wins_over_the_pairs(root):
    write_studies(root)
    write_labels(root / "mine.csv", {"3_left": 3}, "image,level")
    table = retinopathy(root, train_csv="mine.csv").read_table()
    assert listed(table, "train") == {"3_left": 3}
    assert set(table["split"]) == {"train"}


def test_two_classes(root):
    write_studies(root, {"1_left": 0, "2_left": 1}, {"3_left": 1})
    assert class_counts(retinopathy(root, class_names=["no", "yes"]).read_table(), 2)["train"] == [1, 1]
    write_pair(root, "test", {"3_left": 2})
    assert "label '2' in line 1 (image 3_left): labels run from 0 to 1" in refusal(
        retinopathy(root, class_names=["no", "yes"]).read_table
    )


# errors


def test_missing_root(root):
    message = refusal(retinopathy(root).read_table)
    assert message.startswith(f"{root} is not a folder; set data.root to the folder of the data set (EyePACS: ")


def test_root_without_csv(root):
    root.mkdir()
    message = refusal(retinopathy(root).read_table)
    assert message.startswith(f"{root} contains neither train_img.csv with train_label.csv, nor trainLabels.csv")
    assert "data.train_csv" in message


@pytest.mark.parametrize("missing", ["train_img.csv", "train_label.csv", "test_img.csv", "test_label.csv"])
def test_half_a_pair(root, missing):
    write_studies(root)
    (root / missing).unlink()
    assert f"{root / missing} does not exist" in refusal(retinopathy(root).read_table)


@pytest.mark.parametrize("key", ["train_csv", "val_csv", "test_csv"])
def test_missing_named_csv(root, key):
    write_studies(root)
    assert f"{root / 'none.csv'} does not exist" in refusal(retinopathy(root, **{key: "none.csv"}).read_table)


def test_missing_image_folder(root):
    write_studies(root)
    message = refusal(retinopathy(root, images="scans").read_table)
    assert message.startswith(f"{root / 'scans'} is not a folder; set data.images")


def test_missing_images(root):
    write_studies(root)
    for name in ("1_left", "2_right"):
        (root / "images" / f"{name}.jpeg").unlink()
    message = refusal(retinopathy(root).read_table)
    assert "2 of 40 listed images are missing (1_left, 2_right)" in message
    assert "data.on_bad_image=drop" in message


def test_rows_without_their_file_are_dropped_like_unreadable_images(root, caplog):
    write_studies(root)
    for name in ("1_left", "22_right"):
        (root / "images" / f"{name}.jpeg").unlink()
    table, dropped = retinopathy(root, on_bad_image="drop").table()
    assert dropped["skipped_images"] == 2
    assert len(table) == len(TRAIN) + len(TEST) - 2
    assert f"dropped {root / 'images' / '1_left'}: No such file or directory" in caplog.text


def test_most_files_missing_is_an_error_even_if_bad_images_are_dropped(root):
    write_studies(root)
    for name in [*TRAIN][:21]:
        (root / "images" / f"{name}.jpeg").unlink()
    message = refusal(retinopathy(root, on_bad_image="drop").read_table)
    assert "21 of 40 listed images are missing" in message
    assert "check data.root" in message


def test_one_error_names_every_kind_of_bad_row(root):
    write_studies(root)
    write_pair(root, "train", TRAIN | {"2_left": "", "3_left": 9, "../x": 0, "99_left": 1})
    write_pair(root, "test", TEST | {"21_left": "?"})
    message = refusal(retinopathy(root).read_table)
    kinds = (
        "'' in line 3 (image 2_left)",
        "'9' in line 5 (image 3_left)",
        "'../x' in line 41",
        "'?' in line 1",
        "(99_left)",
    )
    for number, kind in enumerate(kinds, 1):
        assert f"({number}) " in message
        assert kind in message


def test_errors_name_the_file_that_is_wrong(root):
    write_studies(root)
    write_pair(root, "train", {"1_left": 0, "../2_left": 1})
    assert refusal(retinopathy(root).read_table).startswith(f"{root / 'train_img.csv'}: image '../2_left'")
    write_pair(root, "train", {"1_left": 0, "2_left": "x"})
    message = refusal(retinopathy(root).read_table)
    assert message.startswith(f"{root / 'train_label.csv'}: label 'x' in line 2 (image 2_left)")


@pytest.mark.parametrize("name", ["3_left", "3_left.jpeg"])
def test_image_in_two_splits(root, name):
    write_studies(root)
    write_pair(root, "test", {**TEST, name: 3})
    message = refusal(retinopathy(root, on_leak="ignore").read_table)
    assert message == (
        f"{root}: the CSVs list 1 image file twice (first '3_left' in line 5 of train_img.csv and {name!r} in line 11 "
        "of test_img.csv, a leak between train and test); keep one row of each"
    )


def test_an_image_of_two_rows_with_other_names(root):
    write_photographs(root / "images", ["1_left", "1_right"], ".jpg")
    (root / "sub").mkdir()
    rows = "file,level\n1_left.jpg,0\n1_right.jpg,1\n1_left,0\n1_RIGHT.JPG,2\n1_right,1\n"
    (root / "sub" / "mine.csv").write_text(rows)
    message = refusal(retinopathy(root, train_csv="sub/mine.csv").read_table)
    assert message == (
        f"{root}: the CSVs list 2 image files twice (first '1_left.jpg' in line 2 of sub/mine.csv and '1_left' in line "
        "4 of sub/mine.csv); keep one row of each"
    )
    (root / "sub" / "mine.csv").write_text(rows.replace("1_left,0\n", "\n"))
    message = refusal(retinopathy(root, train_csv="sub/mine.csv").read_table)
    assert "1 image file twice (first '1_right.jpg' in line 3 of sub/mine.csv and '1_RIGHT.JPG' in line 5 of" in message
    assert "and '1_right' in line 6 of sub/mine.csv, with labels 'mild' and 'moderate'); keep" in message


def test_no_class_names(root):
    assert refusal(retinopathy(write_studies(root), class_names=[]).read_table).startswith("data.class_names is empty")


# the whole table: bad images, then leaks, then splits


def test_table_by_default(root):
    table, dropped = retinopathy(write_studies(root)).table()
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
    found = ["defect", "digest", "decoded", "prepared", "pixels"]
    assert table.columns.tolist() == ["image", "target", "path", "split", "patient", *found]
    # 0.15 of four patients per grade is 0.6, so one each
    assert class_counts(table, 5) == {"train": [6] * 5, "val": [2] * 5, "test": [2] * 5}
    assert listed(table, "test") == TEST
    assert table["patient"].tolist()[:3] == ["1", "1", "2"]


def test_no_validation_trains_on_everything(root):
    table, _ = retinopathy(write_studies(root), val_fraction=0).table()
    assert listed(table, "train") == TRAIN
    assert set(table["split"]) == {"train", "test"}


def test_test_split_of_data_without_one(root):
    table, _ = retinopathy(write_kaggle(root), test_fraction=0.25, val_fraction=0.25).table()
    assert class_counts(table, 5) == {"train": [4] * 5, "val": [2] * 5, "test": [2] * 5}
    assert table.groupby("patient")["split"].nunique().max() == 1


def test_test_fraction_leaves_a_given_test_split_alone(root, caplog):
    table, _ = retinopathy(write_studies(root), test_fraction=0.5, val_fraction=0).table()
    assert listed(table, "test") == TEST
    assert listed(table, "train") == TRAIN
    assert "data.test_fraction=0.5 has no effect: the data set has a test split" in caplog.text


def test_test_fraction_has_no_effect_beside_folds(root, caplog):
    table, _ = retinopathy(write_kaggle(root), test_fraction=0.25, val_fraction=0, folds=2).table()
    assert class_counts(table, 5) == {"train": [4] * 5, "test": [4] * 5}
    assert "data.test_fraction=0.25 has no effect: the fold is the test split" in caplog.text
    caplog.clear()
    retinopathy(root, val_fraction=0, folds=2).table()
    assert "test_fraction" not in caplog.text


def test_splits_depend_on_split_seed(root):
    write_studies(root)
    prints = [fingerprints(retinopathy(root, split_seed=seed).table()[0]) for seed in (0, 0, 1)]
    assert prints[0] == prints[1]
    assert prints[0]["val"] != prints[2]["val"]
    assert prints[0]["test"] == prints[2]["test"]


def write_eyepacs(root):
    """Write Kaggle 2015 with the solution, published later, and the photographs of both parts."""
    write_kaggle(root)
    test = {f"{patient}_{eye}": patient % 5 for patient in range(31, 37) for eye in ("left", "right")}
    usage = ["Public" if n < 4 else "Private" for n in range(len(test))]
    lines = [f"{name},{level},{use}" for (name, level), use in zip(test.items(), usage, strict=True)]
    (root / "retinopathy_solution.csv").write_text("\n".join(["image,level,Usage", *lines]) + "\n")
    write_photographs(root / "test", test)
    return test


def test_eyepacs_community_protocol(root):
    test = write_eyepacs(root)
    table, _ = retinopathy(root).table()
    assert listed(table, "train") == TRAIN
    assert listed(table, "val") == dict(list(test.items())[:4])
    assert listed(table, "test") == dict(list(test.items())[4:])
    assert table["path"].iloc[-1] == str(root / "test" / "36_right.jpeg")
    assert set(retinopathy(root, train_csv="trainLabels.csv").read_table()["split"]) == {"train"}  # only the named file


def test_solution_of_an_unknown_usage(root):
    write_eyepacs(root)
    file = root / "retinopathy_solution.csv"
    file.write_text(file.read_text().replace("Private", "Secret"))
    lines = file.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "Secret" in text)
    place = f"in line {line} (image {lines[line - 1].split(',')[0]})"
    assert f"Usage 'Secret' {place}: it must be Public or Private" in refusal(retinopathy(root).read_table)


def test_patients_in_a_column(root):
    write_photographs(root / "images", ["a", "b", "c", "001", "NA", "ü"])
    rows = "a,0,p\nb,1,p\nc,0,001\n001,1,NA\nNA,0,NA\nü,1,q\n"
    (root / "train.csv").write_text("image,level,person\n" + rows)
    data = retinopathy(root, patient_column="person", val_fraction=0)
    table, _ = data.table()
    assert dict(zip(table["image"], table["patient"], strict=True)) == {
        "a": "p", "b": "p", "c": "001", "001": "NA", "NA": "NA", "ü": "q",
    }  # fmt: skip
    message = refusal(retinopathy(root, patient_column="who").read_table)
    assert message.endswith("has no column who; its columns are image, level, person; set data.patient_column")


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_columns_of_files_with_one_column_cannot_be_named(root, key):
    message = refusal(retinopathy(write_studies(root), **{key: "other"}).read_table)
    assert message.startswith(f"data.{key}=other: ")
    assert ("train_label.csv is read" in message) == (key == "label_column")


def test_columns_of_a_named_csv_are_those_beside_files_with_one_column(root):
    write_studies(root)
    write_labels(root / "mess.csv", {"9001": 1, "9002": 2}, "photo,grade1")
    write_photographs(root / "images", ["9001", "9002"])
    data = retinopathy(root, test_csv="mess.csv", image_column="photo", label_column="grade1", val_fraction=0)
    assert data.read_table().query("split == 'test'")["target"].tolist() == [1, 2]


def test_patient_column_needs_a_table(root):
    message = refusal(retinopathy(write_studies(root), patient_column="person").read_table)
    assert "data.patient_column=person" in message
    assert "name a CSV with this column" in message


def test_fold_is_validation_beside_a_test_split_and_test_without_one(root):
    table, _ = retinopathy(write_studies(root), folds=4, fold=1).table()
    assert class_counts(table, 5) == {"train": [6] * 5, "val": [2] * 5, "test": [2] * 5}
    alone = retinopathy(root, train_csv="all.csv", folds=4, fold=1, val_fraction=0.25)
    write_labels(root / "all.csv", TRAIN, "image,level")
    assert class_counts(alone.table()[0], 5) == {"train": [4] * 5, "val": [2] * 5, "test": [2] * 5}


def test_folds_of_data_whose_splits_are_given(root):
    write_eyepacs(root)
    assert "its own val and test splits" in refusal(retinopathy(root, folds=5).table)


def test_identical_images_in_two_splits_are_a_leak(root):
    write_studies(root)
    twin = root / "images" / "21_left.jpeg"  # an image of test
    twin.write_bytes((root / "images" / "3_right.jpeg").read_bytes())  # an image of train
    assert refusal(retinopathy(root).table).startswith("2 images of train or val belong to 1 patient")
    table, dropped = retinopathy(root, on_leak="drop", val_fraction=0).table()
    assert dropped["leaks"] == 2
    assert {"3_left", "3_right"}.isdisjoint(table["image"])
    assert set(table.loc[table["image"].isin(["21_left", "21_right"]), "patient"]) == {"3"}


def test_identical_images_of_train_are_never_split(root):
    write_studies(root)
    for patient in range(1, 19, 2):
        source = (root / "images" / f"{patient}_left.jpeg").read_bytes()
        (root / "images" / f"{patient + 1}_left.jpeg").write_bytes(source)
    table, _ = retinopathy(root, val_fraction=0.3).table()
    assert table.groupby("digest")["split"].nunique().max() == 1
    assert (table["split"] == "val").any()


def test_leaks_between_the_files(root):
    write_studies(root, TRAIN, {"99_left": 1})
    write_pair(root, "train", {name: grade for name, grade in TRAIN.items() if name not in ("1_left", "2_left")})
    write_pair(root, "test", {"1_left": 1, "2_left": 2, "99_left": 1})
    message = refusal(retinopathy(root).table)
    assert message.startswith("2 images of train or val belong to 2 patients")
    for on_leak, training in (("drop", 36), ("ignore", 38)):
        table, dropped = retinopathy(root, on_leak=on_leak, val_fraction=0).table()
        assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 2}
        assert (table["split"] == "train").sum() == training
        assert list(listed(table, "test")) == ["1_left", "2_left", "99_left"]
        assert {"1_right", "2_right"}.isdisjoint(listed(table, "train")) == (on_leak == "drop")


def test_a_validation_split_cut_from_train_never_leaks(root):
    table, dropped = retinopathy(write_studies(root), val_fraction=0.5).table()
    assert dropped["leaks"] == 0
    patients = table.groupby("split")["patient"].agg(set)
    assert patients["val"].isdisjoint(patients["train"])


def test_bad_image_stops(root):
    write_studies(root)
    truncate(root / "images" / "5_left.jpeg")
    message = refusal(retinopathy(root).table)
    assert message.startswith(f"{root / 'images' / '5_left.jpeg'}: image file is truncated")
    assert "1 of 50 images cannot be read" in message
    assert "data.on_bad_image=drop" in message


def test_every_kind_of_bad_image_is_counted(root, caplog):
    write_studies(root)
    images, good = root / "images", (root / "images" / "1_left.jpeg").read_bytes()
    (images / "1_left.jpeg").write_bytes(b"")
    (images / "2_left.jpeg").write_bytes(good[:-40])
    (images / "3_left.jpeg").write_text("no image")
    (images / "4_left.jpeg").unlink()
    (images / "4_left.jpeg").mkdir()
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(images / "5_left.jpeg", "png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8), "CMYK").save(images / "6_left.jpeg")  # these two are readable
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / "7_left.jpeg", "png")
    assert "5 of 50 images cannot be read" in refusal(retinopathy(root).table)
    with caplog.at_level(logging.WARNING):
        table, dropped = retinopathy(root, on_bad_image="drop", val_fraction=0).table()
    assert (dropped["skipped_images"], len(table)) == (5, 45)
    for reason in ("the file is empty", "truncated", "no image of a known format", "Is a directory", "8 bits"):
        assert reason in caplog.text


def test_bad_images_leave_before_splits_are_cut(root, tmp_path, caplog):
    write_studies(root)
    bad = ["5_left", "5_right", "21_left"]
    for name in bad:
        truncate(root / "images" / f"{name}.jpeg")
    table, dropped = retinopathy(root, on_bad_image="drop").table()
    assert dropped == {"skipped_images": 3, "skipped_labels": 0, "leaks": 0}
    assert sorted(table["image"]) == sorted({*TRAIN, *TEST} - set(bad))
    # rows without bad images from the start give the same splits
    clean = tmp_path / "clean"
    kept = [{name: grade for name, grade in rows.items() if name not in bad} for rows in (TRAIN, TEST)]
    assert fingerprints(table) == fingerprints(retinopathy(write_studies(clean, *kept)).table()[0])
    assert class_counts(table, 5)["val"] == [0, 2, 2, 2, 2]  # 0.15 of the three remaining healthy patients is none
    (line,) = [line for line in caplog.messages if "drawn without" in line]
    assert line.startswith("val drawn without the 3 dropped images")
    caplog.clear()
    retinopathy(root, on_bad_image="drop", val_fraction=0).table()
    assert "drawn without" not in caplog.text  # no split is drawn


def test_bad_test_image_is_no_leak(root):
    write_studies(root, {"1_left": 0, "2_left": 1}, {"1_right": 0, "3_left": 1})
    truncate(root / "images" / "1_right.jpeg")
    table, dropped = retinopathy(root, on_bad_image="drop", val_fraction=0).table()
    assert dropped == {"skipped_images": 1, "skipped_labels": 0, "leaks": 0}
    assert table["image"].tolist() == ["1_left", "2_left", "3_left"]


def test_max_images_of_each_split(root):
    write_studies(root)
    table, _ = retinopathy(root, max_images=6, val_fraction=0).table()
    assert class_counts(table, 5) == {"train": [1] * 5, "test": [1] * 5}
    again, _ = retinopathy(root, max_images=6, val_fraction=0).table()
    pd.testing.assert_frame_equal(table, again)


def test_solution_beside_other_csvs(root):
    write_studies(root)
    (root / "solution.csv").write_text("image,level,Usage\n1_left,1,Public\n2_left,2,Private\n")
    message = refusal(retinopathy(root, solution_csv="solution.csv", test_csv="test_img.csv").read_table)
    assert message.startswith("data.solution_csv ")
    assert message.endswith("leave out data.val_csv and data.test_csv")


def test_a_row_without_its_patient(root):
    write_studies(root)
    (root / "mine.csv").write_text("image,level,pid\n1_left,1,a\n2_left,2,\n")
    message = refusal(retinopathy(root, train_csv="mine.csv", patient_column="pid").read_table)
    assert message.endswith("patient '' in line 3 (image 2_left): data.patient_column must have a value in every row")


# names, folders and patients


def write_two_folders(root, train=("train", "train_images"), test=("test", "test_images"), content=("train/", "test/")):
    """The layout of IDRiD: the same names in a folder for each split."""
    for (name, folder), count, what in zip((train, test), (10, 5), content, strict=True):
        labels = {f"IDRiD_{n:03d}": n % 5 for n in range(1, count + 1)}
        write_labels(root / f"{name}.csv", labels, "image,level")
        write_photographs(root / folder, labels, content=what)
    return root


@pytest.mark.parametrize("regex", ["auto", None, r"(.+)_(?:left|right)"])
def test_the_same_names_in_a_folder_of_each_split_are_no_leak(root, regex):
    data = retinopathy(write_two_folders(root), test_csv="test.csv", patient_regex=regex, val_fraction=0)
    table, dropped = data.table()
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
    assert class_counts(table, 5) == {"train": [2] * 5, "test": [1] * 5}
    folders = table["split"].map({"train": "train_images", "test": "test_images"})
    assert table["path"].tolist() == (f"{root}/" + folders + "/" + table["image"] + ".jpeg").tolist()
    patients = dict(zip(folders + "/" + table["image"], table["patient"], strict=True))
    assert patients["train_images/IDRiD_001"] == "train_images/IDRiD_001.jpeg"
    assert patients["test_images/IDRiD_001"] == "test_images/IDRiD_001.jpeg"
    assert patients["train_images/IDRiD_010"] == "IDRiD_010"  # in one folder only: the name alone


def test_the_same_names_leak_if_pattern_column_or_bytes_match(root):
    write_two_folders(root)
    same_name = retinopathy(root, test_csv="test.csv", patient_regex=r"IDRiD_(\d+)")
    assert refusal(same_name.table).startswith("5 images of train or val belong to 5 patients")
    (root / "test_images" / "IDRiD_001.jpeg").write_bytes((root / "train_images" / "IDRiD_007.jpeg").read_bytes())
    assert refusal(retinopathy(root, test_csv="test.csv").table).startswith(
        "1 image of train or val belongs to 1 patient"
    )
    for name in ("train", "test"):
        rows = (root / f"{name}.csv").read_text().splitlines()
        (root / f"{name}.csv").write_text("\n".join(f"{row},{row.split(',')[0]}" for row in rows) + "\n")
    by_column = retinopathy(root, test_csv="test.csv", patient_column="image")
    assert refusal(by_column.table).startswith("6 images of train or val belong to 5 patients")


def test_validation_images_come_from_their_own_folder_or_none(root):
    write_two_folders(root, test=("val", "val"))
    table = retinopathy(root, val_csv="val.csv").read_table()
    assert set(table.loc[table["split"] == "val", "path"].map(lambda path: path.split("/")[-2])) == {"val"}
    (root / "val").rename(root / "test")  # the names are also in train's folder: ambiguous
    message = refusal(retinopathy(root, val_csv="val.csv").read_table)
    assert f"'IDRiD_001' is in {root / 'test'} and in {root / 'train_images'}" in message


@pytest.mark.parametrize("link", ["train", "test", "test_images"])
def test_validation_images_of_linked_folders_are_one(root, link):
    write_aptos(root)
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[:16]) + "\n")
    (root / "val.csv").write_text("\n".join([lines[0], *lines[16:]]) + "\n")
    (root / link).symlink_to("train_images")
    table = retinopathy(root, val_csv="val.csv").read_table()
    assert class_counts(table, 5) == {"train": [3] * 5, "val": [1] * 5}
    (root / link).unlink()
    write_photographs(root / link, [lines[-1].split(",")[0]], ".png", "another")
    message = refusal(retinopathy(root, val_csv="val.csv").read_table)
    assert f"is in {root / link} and in {root / 'train_images'}; " in message


def test_suffixes_of_every_kind_and_case_are_found(root):
    labels = {"a": 0, "b": 1, "c.d": 2, "e": 3, "f.webp": 4}
    write_labels(root / "train.csv", labels, "image,level")
    files = ["a.webp", "b.Jpeg", "c.d.BMP", "e.Png", "f.webp"]
    for file in files:
        name, _, suffix = file.rpartition(".")
        write_photographs(root / "images", [name], f".{suffix}")
    assert retinopathy(root).read_table()["path"].tolist() == [str(root / "images" / file) for file in files]


def test_the_first_of_two_suffixes_is_used_and_the_other_reported(root, caplog):
    write_labels(root / "train.csv", {"a": 0, "b": 1}, "image,level")
    for suffix in (".webp", ".PNG", ".JPG", ".png"):
        write_photographs(root / "images", ["a"], suffix)
    write_photographs(root / "images", ["b", "sub/c", "._d"])
    with caplog.at_level(logging.INFO):
        table = retinopathy(root).read_table()
    assert [path.split("/")[-1] for path in table["path"]] == ["a.png", "b.jpeg"]
    assert f"{root}: left out 4 images that no CSV lists: 3 in images, 1 in images/sub" in caplog.text


def test_folders_that_no_csv_lists_are_reported(root, caplog):
    data = retinopathy(write_kaggle(root), cache_dir=str(root / "cache"))
    write_photographs(root / "test", ["1", "2", "sub/3"])
    write_photographs(root / "other" / "deep", ["4"], ".png")
    write_photographs(root, ["5", "6"])
    write_photographs(root / "cache" / "prepared", ["7"])
    (root / "train_images").symlink_to("train")
    (root / "test" / "again").symlink_to(root / "other")
    with caplog.at_level(logging.INFO):
        data.read_table()
    said = "left out 6 images that no CSV lists: 2 in ., 2 in test, 1 in other/deep, 1 in test/sub"
    assert f"{root}: {said}" in caplog.text


def test_there_is_no_message_if_all_images_are_listed(root, caplog):
    with caplog.at_level(logging.INFO):
        retinopathy(write_studies(root)).read_table()
    assert "left out" not in caplog.text


def test_the_log_names_the_patients_once(root, caplog):
    data = retinopathy(write_studies(root))
    with caplog.at_level(logging.INFO):
        data.table()
    lines = [line for line in caplog.messages if line.startswith("patients: ")]
    assert lines == [f"patients: {data.patients.summary}"]
    assert data.patients.summary.startswith("25 in 50 images, by the form _left/_right of the file names, such as 1 (")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        retinopathy(root, patient_regex=r"(\d+_\w)\w+").table()
    assert [
        line
        for line in caplog.messages
        if "may belong to one patient" in line and "set data.patient_regex=_left/_right" in line
    ]


def test_all_images_of_one_csv_are_test(root):
    write_kaggle(root)
    table, _ = retinopathy(root, all_images="test").table()
    assert class_counts(table, 5) == {"test": [8] * 5}
    (root / "trainLabels.csv").rename(root / "mine.csv")
    table, _ = retinopathy(root, all_images="test", test_csv="mine.csv").table()  # no train CSV beside it
    assert class_counts(table, 5) == {"test": [8] * 5}
    table, _ = retinopathy(root, all_images="train", train_csv="mine.csv", test_fraction=0.5, max_per_class=3).table()
    assert class_counts(table, 5) == {"train": [3] * 5}


@pytest.mark.parametrize("keys", [{"find_csvs": False}, {"test_csv": "mine.csv"}, {"val_csv": "mine.csv"}])
def test_the_remedy_of_data_without_train_is_all_images(root, keys):
    write_kaggle(root)
    (root / "trainLabels.csv").rename(root / "mine.csv")
    message = refusal(retinopathy(root, **keys).read_table)
    assert "name yours in data.train_csv" in message
    assert "set data.all_images=test" in message
    if "find_csvs" not in keys:
        assert len(retinopathy(root, **keys, all_images="test").read_table()) == 40


def test_without_known_columns_the_error_names_the_tables_and_their_columns(root, caplog):
    write_kaggle(root)
    (root / "trainLabels.csv").rename(root / "labels.csv")
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("image,level", "photo,stage"))
    with caplog.at_level(logging.INFO):
        message = refusal(retinopathy(root, all_images="test").read_table)
    assert "(labels.csv has the columns photo, stage); name yours in data.test_csv (and its columns in" in message
    assert "set data.all_images" not in message
    assert "no label file with known columns" in caplog.text
    assert "(labels.csv has the columns photo, stage); name yours in data.train_csv" in refusal(
        retinopathy(root).read_table
    )


def test_all_images_of_files_found_by_name_without_train(root):
    write_studies(root)
    for name in ("train_img.csv", "train_label.csv"):
        (root / name).unlink()
    assert "set data.all_images=test" in refusal(retinopathy(root).read_table)
    assert class_counts(retinopathy(root, all_images="test").table()[0], 5) == {"test": [2] * 5}
    (root / "test_img.csv").unlink()
    (root / "test_label.csv").unlink()
    lines = ["image,level,Usage", *(f"{name},{level},Private" for name, level in TEST.items())]
    (root / "retinopathy_solution.csv").write_text("\n".join(lines) + "\n")
    assert class_counts(retinopathy(root, all_images="test").table()[0], 5) == {"test": [2] * 5}


def test_the_remedy_of_a_missing_test_split_is_all_images(root):
    datamodule = DataModule(retinopathy(write_kaggle(root), val_fraction=0), seed=0)
    datamodule.read()
    message = refusal(lambda: datamodule.rows("test"))
    assert message.endswith("no split test; choose among train, or set data.all_images=test to evaluate on all images")


def test_all_images_of_two_csvs_have_distinct_names(root):
    table, _ = retinopathy(write_two_folders(root), test_csv="test.csv", all_images="test").table()
    assert table["image"].is_unique
    assert table["image"].tolist()[:1] == ["train_images/IDRiD_001.jpeg"]
    assert table["image"].tolist()[9:11] == ["IDRiD_010", "test_images/IDRiD_001.jpeg"]


def test_an_unused_column_of_patients_raises_a_doubt(root):
    write_photographs(root / "images", [f"img{n}" for n in range(8)])
    lines = "".join(f"img{n},{n // 2},{n // 2 % 5}\n" for n in range(8))
    (root / "train.csv").write_text(f"image_id,patient_id,diagnosis\n{lines}")
    data = retinopathy(root)
    assert list(data.read_table()) == ["image", "target", "path", "split"]
    data.listed()
    assert "set data.patient_column=patient_id" in data.patients.doubt
    named = retinopathy(root, patient_column="patient_id")
    assert named.listed()["patient"].nunique() == 4
    assert named.patients.doubt == ""


def test_names_of_classes_that_are_numbers_of_others_are_refused(root):
    assert "the label 0 is the class called 1" in refusal(
        retinopathy(write_studies(root), class_names=["1", "0"]).table
    )
