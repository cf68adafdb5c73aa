"""Every rule about splits: tables in, tables out."""

import logging

import numpy as np
import pandas as pd
import pytest
from fake_data import refusal

from resnet_lab import compose
from resnet_lab.data.splits import (
    class_counts,
    cut_fold,
    cut_split,
    fingerprints,
    join_patients,
    label_conflicts,
    limit_classes,
    limit_rows,
    merged_patients,
    remap_splits,
    resolve_leaks,
)

EYES = r"(.+)_(?:left|right)"
SHARES = {0: 100, 1: 20, 2: 40, 3: 10, 4: 30}  # number of patients by worst grade


def patients(shares=SHARES, split="train"):
    """Return patients with two eyes; the left eye is healthy, the right eye has the worst grade."""
    worst = np.repeat(list(shares), list(shares.values()))
    names = [f"{split}{n}" for n in range(len(worst))]
    rows = [
        {"image": f"{name}_{eye}", "target": target, "split": split, "patient": name}
        for name, grade in zip(names, worst, strict=True)
        for eye, target in (("left", 0), ("right", grade))
    ]
    return pd.DataFrame(rows)


# cutting


def test_cut_goes_by_patient_and_by_worst_grade():
    table = pd.concat([patients(), patients({0: 5, 4: 5}, "test")], ignore_index=True)
    for seed in range(5):
        cut = cut_split(table, "val", 0.2, seed, "data.val_fraction")
        worst = cut[cut["split"] == "val"].groupby("patient")["target"].max()
        assert worst.value_counts().to_dict() == {grade: n // 5 for grade, n in SHARES.items()}
        assert (cut.groupby("patient")["split"].nunique() == 1).all()
        assert (cut.loc[table["split"] == "test", "split"] == "test").all()
        pd.testing.assert_frame_equal(cut.drop(columns="split"), table.drop(columns="split"))


def test_a_cut_depends_only_on_its_seed():
    def held(table, seed):
        cut = cut_split(table, "val", 0.1, seed, "data.val_fraction")
        return set(cut.loc[cut["split"] == "val", "image"])

    np.random.seed(1)  # the global generator must not matter
    first = held(patients(), 0)
    np.random.seed(2)
    assert held(patients().sample(frac=1, random_state=3), 0) == first
    assert held(patients(), 1) != first


def test_no_fraction_no_cut():
    table = patients()
    assert cut_split(table, "val", 0, 0, "data.val_fraction") is table


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_impossible_fraction(fraction):
    message = refusal(cut_split, patients(), "val", fraction, 0, "data.val_fraction")
    assert message == f"data.val_fraction={fraction}: a share must be at least 0 and below 1"


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_empty_split(fraction):
    message = refusal(cut_split, patients({0: 4}), "test", fraction, 0, "data.test_fraction")
    assert f"data.test_fraction={fraction} of 4 training patients (or images) leaves a split empty" in message


def test_many_small_classes_fill_a_split_jointly():
    cut = cut_split(patients(dict.fromkeys(range(10), 3)), "val", 0.1, 0, "data.val_fraction")
    assert cut.loc[cut["split"] == "val", "patient"].nunique() == 3


# folds


def test_folds_are_equal_parts_by_patient_and_by_worst_grade():
    table = pd.concat([patients(), patients({0: 5, 4: 5}, "test")], ignore_index=True)
    held = []
    for fold in range(4):
        cut = cut_fold(table, "val", 4, fold, 0)
        part = cut[cut["split"] == "val"]
        worst = part.groupby("patient")["target"].max().value_counts()
        assert all(abs(worst[grade] - n / 4) <= 1 for grade, n in SHARES.items())
        assert (cut.groupby("patient")["split"].nunique() == 1).all()
        assert (cut.loc[table["split"] == "test", "split"] == "test").all()
        held.append(set(part["image"]))
    assert sorted(image for part in held for image in part) == sorted(table.loc[table["split"] == "train", "image"])


def test_folds_depend_only_on_their_seed():
    np.random.seed(1)
    first = cut_fold(patients(), "val", 5, 2, 0)
    np.random.seed(2)
    pd.testing.assert_frame_equal(cut_fold(patients(), "val", 5, 2, 0), first)
    assert (cut_fold(patients(), "val", 5, 2, 1)["split"] != first["split"]).any()


def test_impossible_folds():
    assert refusal(cut_fold, patients(), "val", 5, 5, 0) == "data.fold=5: data.folds=5 has folds 0 to 4"
    message = refusal(cut_fold, patients({0: 8, 3: 4}), "val", 5, 0, 0)
    assert message == (
        "data.folds=5: class 3 has only 4 patients (by their worst grade), and each fold needs one; "
        "use at most 4 folds, or leave this class out or join it with another one"
    )
    message = refusal(cut_fold, patients({0: 8, 1: 1}), "val", 2, 0, 0, ["healthy", "ill"])
    assert message == (
        "data.folds=2: class 1 (ill) has only 1 patient (by their worst grade), and each fold needs one; "
        "leave this class out or join it with another one"
    )


# the data set's own splits


def test_splits_are_renamed_and_left_out():
    table = pd.DataFrame({"image": list("abcd"), "split": ["train", "val", "test", "test"]})
    swapped = remap_splits(table, {"train": "test", "val": "val", "test": "train"})
    assert dict(zip(swapped["image"], swapped["split"], strict=True)) == {
        "a": "test", "b": "val", "c": "train", "d": "train",
    }  # fmt: skip
    assert remap_splits(table, {"train": "test"})["image"].tolist() == ["c", "d"]
    joined = remap_splits(table, {"train": ["train", "val"], "test": ["test"]})
    assert joined["split"].tolist() == ["train", "train", "test", "test"]
    assert remap_splits(table, None) is table
    message = refusal(remap_splits, table.assign(split="dev"), None)
    assert message.startswith("the data has a split dev, and the splits of a training are train, val, test; map")


def test_a_split_that_the_data_lacks_is_reported(caplog):
    table = pd.DataFrame({"image": ["a"], "split": ["test"]})
    with caplog.at_level(logging.WARNING):
        assert remap_splits(table, {"train": "test", "test": "train"})["split"].tolist() == ["train"]
    assert "data.splits: the data has no split train" in caplog.text
    assert "no split val to train on; the data has test" in refusal(remap_splits, table, {"train": "val"})


@pytest.mark.parametrize(
    "splits",
    [
        {"val": "val"},
        {"train": []},
        {"train": ["test", "tset"]},
        {"train": "test", "test": "test"},
        {"train": ["test", "val"], "val": "val"},
        {"train": ["test", "test"]},
        {"train": "test", "dev": "val"},
    ],
)
def test_invalid_splits_are_refused(splits):
    assert refusal(remap_splits, pd.DataFrame({"split": ["test"]}), splits).startswith("data.splits=")


def test_a_split_of_the_file_is_emptied():
    table = pd.DataFrame({"image": list("abc"), "split": ["train", "val", "test"]})
    composed = compose("data=flowers102", "data.splits={train: [train, val], test: test}").data.splits
    message = refusal(remap_splits, table, dict(composed))  # the file has `val: val`
    assert "val is given twice; leave one out. If you did not write val, it comes from the file of data=" in message
    assert message.endswith("; then add val: []")
    composed = compose("data=flowers102", "data.splits={train: [train, val], val: [], test: test}").data.splits
    assert remap_splits(table, dict(composed))["split"].tolist() == ["train", "train", "test"]


# leaks


def test_identical_images_make_one_patient_of_two():
    rows = [
        ("1_left", "1", "x"),
        ("1_right", "1", "y"),
        ("2_left", "2", "z"),
        ("3_left", "3", "y"),
        ("4_left", "4", "z"),
    ]
    table = pd.DataFrame(rows, columns=["image", "patient", "digest"])
    joined = join_patients(table)["patient"]
    assert joined.tolist() == ["1", "1", "2", "1", "2"]
    assert merged_patients(table["patient"], joined) == (
        "4 patients (such as 1 and 3) share identical images and count as 2"
    )
    assert merged_patients(pd.Series(["a", "b", "c"]), pd.Series(["a", "a", "c"])) == (
        "2 patients (a and b) share identical images and count as 1"
    )
    unlike = table.assign(digest=list("vwxyz"))
    assert join_patients(unlike) is unlike
    same_pixels = unlike.assign(decoded=["p", "", "p", "q", ""])
    assert join_patients(same_pixels)["patient"].tolist() == ["1", "1", "1", "3", "4"]
    of_two_versions = table.assign(decoded=["", "", "p", "q", ""])  # of which one noted no pixels
    assert join_patients(of_two_versions)["patient"].tolist() == ["1", "1", "2", "1", "2"]


def test_identical_images_with_different_labels_are_counted_and_named(caplog):
    table = pd.DataFrame({"image": list("abcde"), "split": "train", "target": [0, 1, 1, 2, 3]})
    names = ["no DR", "mild", "moderate", "severe"]
    assert label_conflicts(table.assign(decoded=["x", "y", "y", "", ""]), names) == 0
    assert caplog.text == ""
    assert label_conflicts(table.assign(decoded=["x", "x", "x", "", ""]), names) == 3
    assert "such as a (train, no DR) and b (train, mild)" in caplog.text


def test_chains_of_identical_images_join_many():
    table = pd.DataFrame({"patient": list("aabbccd"), "digest": list("1223345")})
    assert join_patients(table)["patient"].tolist() == list("aaaaaad")


@pytest.fixture
def leaking():
    """Return three training images of two patients whose other images are held out."""
    rows = [
        ("1_left", "train", "1"),
        ("1_right", "test", "1"),
        ("2_left", "train", "2"),
        ("2_right", "train", "2"),
        ("2_other", "val", "2"),
        ("3_left", "train", "3"),
        ("4_left", "test", "4"),
    ]
    return pd.DataFrame(rows, columns=["image", "split", "patient"]).assign(target=0)


def test_leak_is_an_error_that_counts(leaking):
    message = refusal(resolve_leaks, leaking, "error")
    assert message.startswith(
        "3 images of train or val belong to 2 patients who are also in a later split, by name or "
    )
    assert "data.on_leak=drop" in message


def test_leak_dropped_from_train_only(leaking, caplog):
    with caplog.at_level(logging.WARNING):
        kept, count = resolve_leaks(leaking, "drop")
    assert (list(kept["image"]), count) == (["1_right", "2_other", "3_left", "4_left"], 3)
    assert list(kept.index) == [0, 1, 2, 3]
    assert "3 images of train or val" in caplog.text


def test_leak_ignored_is_still_counted(leaking):
    kept, count = resolve_leaks(leaking, "ignore")
    pd.testing.assert_frame_equal(kept, leaking)
    assert count == 3


@pytest.mark.parametrize("on_leak", ["error", "drop", "ignore"])
def test_no_leak(leaking, on_leak):
    clean = leaking[leaking["patient"].isin(["3", "4"])]
    kept, count = resolve_leaks(clean, on_leak)
    assert (list(kept["image"]), count) == (["3_left", "4_left"], 0)


# limits, counts, fingerprints


def test_limit_keeps_proportions_and_every_class():
    table = pd.concat([patients(), patients({0: 3, 4: 1}, "test")], ignore_index=True)  # 400 and 8 images
    kept = limit_rows(table, 40, 0)
    assert class_counts(kept, 5) == {"test": [7, 0, 0, 0, 1], "train": [30, 2, 4, 1, 3]}
    assert kept["image"].tolist() == [name for name in table["image"] if name in set(kept["image"])]
    pd.testing.assert_frame_equal(kept, limit_rows(table, 40, 0))
    assert set(limit_rows(table, 40, 1)["image"]) != set(kept["image"])


def test_limit_holds_where_classes_are_rare():
    table = patients({0: 96, 1: 1, 2: 1, 3: 1, 4: 1})
    assert class_counts(limit_rows(table, 10, 0), 5) == {"train": [6, 1, 1, 1, 1]}
    assert class_counts(limit_rows(table, 2, 0), 5) == {"train": [1, 1, 1, 1, 1]}
    assert limit_rows(table, None, 0) is table


def test_counts_show_absent_classes():
    table = pd.DataFrame({"split": ["train", "train", "val"], "target": [1, 1, 0]})
    assert class_counts(table, 3) == {"train": [0, 2, 0], "val": [1, 0, 0]}


def test_fingerprint_is_of_images_and_targets_not_of_their_order():
    table = patients({0: 3, 1: 3})
    prints = fingerprints(table)
    assert prints == fingerprints(table.iloc[::-1])
    relabeled = table.assign(target=table["target"].where(table["image"] != "train5_right", 4))
    renamed = table.assign(image=table["image"].str.replace("train5", "train9"))
    fewer, moved = table.iloc[1:], table.assign(split=["test"] + ["train"] * 11)
    others = [fingerprints(other)["train"] for other in (relabeled, renamed, fewer, moved)]
    assert len({prints["train"], *others}) == 4  # `fewer` and `moved` have the same training images
    assert others[2] == others[3]
    assert set(fingerprints(moved)) == {"train", "test"}


def test_folds_of_nothing():
    table = pd.DataFrame({"split": ["test"], "patient": ["a"], "target": [0]})
    assert "no training image" in refusal(cut_fold, table, "val", 2, 0, 0)


def test_limited_classes_lose_only_training_images():
    table = pd.DataFrame(
        {
            "image": [f"{n}" for n in range(40)],
            "target": [0] * 20 + [1] * 8 + [0] * 12,
            "split": ["train"] * 28 + ["test"] * 12,
        }
    )
    kept = limit_classes(table, 10, seed=0)
    assert kept.groupby(["split", "target"]).size().to_dict() == {("train", 0): 10, ("train", 1): 8, ("test", 0): 12}
    assert kept["image"].tolist() == sorted(kept["image"], key=int)
    assert (table.loc[kept.index] == kept).all(axis=None)  # rows keep their index
    assert limit_classes(table, None, seed=0) is table
    assert set(limit_classes(table, 10, seed=1)["image"]) != set(kept["image"])
