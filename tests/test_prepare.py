"""`resnet-lab prepare`: one command makes the prepared set and a report; bad data do not stop it."""

import csv
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA, unpacked
from fake_data import (
    TEST,
    TRAIN,
    photographs,
    refusal,
    retinopathy,
    write_medmnist,
    write_pair,
    write_photographs,
    write_studies,
)
from PIL import Image

from resnet_lab import prepare as module
from resnet_lab.data.duplicates import near_pairs
from resnet_lab.data.prepared import read_prepared
from resnet_lab.prepare import command, statistics

KNOWN = {("021", "391"), ("028", "327"), ("045", "333"), ("073", "375"), ("079", "279")}  # in IDRiD's train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_studies(tmp_path / "data")


def prepare(root: Path, *overrides: str) -> Path:
    """Run the command, and return the folder of the report."""
    out = root.parent / "report"
    own = (f"data.root={root}", f"data.cache_dir={root.parent / 'cache'}", "data.image_size=16")
    given = {word.partition("=")[0] for word in overrides}
    options = [word for word in (f"out={out}", "processes=1") if word.partition("=")[0] not in given]
    command(["data=retinopathy", *own, *options, *overrides])
    return out


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_report_is_in_the_prepared_set_which_training_finds(root, make_run):
    command(["data=retinopathy", f"data.root={root}", f"data.cache_dir={root.parent / 'cache'}", "data.image_size=24"])
    (folder,) = (root.parent / "cache" / "prepared").iterdir()
    assert sum(int(row["train"]) + int(row["val"]) for row in rows(folder / "report", "class_counts")) == len(TRAIN)
    assert (folder / "report" / "data_report.html").is_file()
    assert len(list((folder / "images").rglob("*.jpeg"))) == len(TRAIN) + len(TEST)


@pytest.mark.slow
def test_splits_leaks_and_duplicates_are_those_of_training(root):
    # 41_left of train equals 21_left of test, with another label; the right eye of patient 1 is in test
    write_pair(root, "train", {name: grade for name, grade in TRAIN.items() if name != "1_right"} | {"41_left": 3})
    write_pair(root, "test", TEST | {"1_right": 1})
    (root / "images" / "41_left.jpeg").write_bytes((root / "images" / "21_left.jpeg").read_bytes())
    out = prepare(root, "data.val_fraction=0.2")
    pairs = {(row["image_a"], row["split_a"], row["image_b"], row["split_b"]) for row in rows(out, "duplicates")}
    assert ("21_left", "test", "41_left", "train") in pairs
    first = rows(out, "duplicates")[0]
    assert (first["split_a"] == first["split_b"], first["label_a"] == first["label_b"]) == (False, False)
    leaking = {(row["image"], row["other_splits"]) for row in rows(out, "leaks")}
    assert leaking == {("1_left", "test"), ("41_left", "test")}
    assert 6 <= sum(int(row["val"]) for row in rows(out, "class_counts")) <= 10  # a fifth of the patients of 40 images


@pytest.mark.slow
def test_unreadable_files_are_listed_and_do_not_stop_the_command(root):
    (root / "images" / "1_left.jpeg").write_bytes(b"")
    (root / "images" / "2_left.jpeg").write_bytes(b"no photograph")
    out = prepare(root)
    assert [(row["image"], row["defect"]) for row in rows(out, "unreadable")] == [
        ("1_left", "the file is empty"),
        ("2_left", "no image of a known format"),
    ]
    assert (
        "2 of 50 files missing or unreadable, such as 1_left (the file is empty)"
        in (out / "data_report.html").read_text()
    )


@pytest.mark.slow
def test_merged_patients_are_explained(root, caplog):
    (root / "images" / "2_left.jpeg").write_bytes((root / "images" / "1_left.jpeg").read_bytes())
    with caplog.at_level(logging.INFO):
        text = (prepare(root) / "data_report.html").read_text()
    assert "50 of 50 listed photographs can be read.\nPatients: 25 in 50 images" in text
    merged = "2 patients (1 and 2) share identical images and count as 1"
    assert f"{merged}.\n" in text
    assert merged in caplog.text


@pytest.mark.slow
def test_a_row_without_its_file_is_listed_as_unreadable(root):
    (root / "images" / "1_left.jpeg").unlink()
    assert "data.on_bad_image=drop" in refusal(prepare, root)
    for _ in range(2):  # the second time, the prepared set exists
        out = prepare(root, "data.on_bad_image=drop")
        assert [(row["image"], row["defect"]) for row in rows(out, "unreadable")] == [
            ("1_left", "No such file or directory")
        ]
    assert "1 of 50 files missing or unreadable, such as 1_left" in (out / "data_report.html").read_text()


def test_a_folder_of_only_bad_files_is_reported(root):
    for file in (root / "images").iterdir():
        file.write_bytes(b"x")
    out = prepare(root, "data.folds=2")
    assert len(rows(out, "unreadable")) == len(TRAIN) + len(TEST)
    assert "50 of 50 files missing or unreadable" in (out / "data_report.html").read_text()


def test_splits_that_cannot_be_cut_are_reported_and_do_not_stop_the_command(root):
    (root / "test_img.csv").unlink()
    (root / "test_label.csv").unlink()
    out = prepare(root, "data.folds=30")
    assert "data.folds" in (out / "data_report.html").read_text()
    assert sum(int(row["train"]) for row in rows(out, "class_counts")) == len(TRAIN)


@pytest.mark.slow
def test_splits_are_those_of_a_training_that_drops_leaks(root):
    write_pair(root, "train", {name: grade for name, grade in TRAIN.items() if name != "1_right"})
    write_pair(root, "test", TEST | {"1_right": 1})
    out = prepare(root, "data.on_leak=drop", "data.val_fraction=0.2", "data.eye_crop=false")
    data = retinopathy(root, on_leak="drop", val_fraction=0.2, image_size=16, eye_crop=False)
    trained = data.table()[0].groupby("split").size()
    counted = {split: sum(int(row[split]) for row in rows(out, "class_counts")) for split in ("train", "val", "test")}
    assert counted == {"train": trained["train"] + 1, "val": trained["val"], "test": trained["test"]}  # 1_left leaks


@pytest.mark.slow
def test_the_log_names_the_findings_and_the_report(root, caplog):
    write_pair(root, "train", {name: grade for name, grade in TRAIN.items() if name != "1_right"})
    write_pair(root, "test", TEST | {"1_right": 1})
    with caplog.at_level(logging.INFO):
        out = prepare(root)
    assert "leak: " in caplog.text
    assert f"report: {out / 'data_report.html'}" in caplog.text


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of thumbnail counts, one per search for near duplicates."""
    sizes: list[int] = []
    monkeypatch.setattr(module, "near_pairs", lambda pictures: sizes.append(len(pictures)) or near_pairs(pictures))
    return sizes


def copy_of(root: Path, name: str, source: str) -> None:
    """Save a photograph again, so that the two are near duplicates."""
    Image.open(root / "images" / f"{source}.jpeg").save(root / "images" / f"{name}.jpeg", quality=90)


@pytest.mark.slow
def test_near_duplicates_are_searched_once_for_the_same_photographs(root, searched):
    write_pair(root, "train", TRAIN | {"41_left": 3, "42_left": 0})
    for name in ("41_left", "42_left"):
        copy_of(root, name, "2_left")
    (root / "images" / "42_left.jpeg").write_bytes((root / "images" / "41_left.jpeg").read_bytes())
    keys = ("data.eye_crop=false", "data.image_size=64")
    before = rows(prepare(root, *keys), "duplicates")
    near = [(row["image_a"], row["image_b"]) for row in before if row["kind"] == "near"]
    assert {("2_left", "41_left"), ("2_left", "42_left")} <= set(near)
    assert rows(prepare(root, *keys), "duplicates") == before
    assert searched == [51]  # two of 52 are the same file
    write_pair(root, "train", TRAIN | {"41_left": 1, "42_left": 0})  # labels do not affect the search
    labels = {row["image_b"]: row["label_b"] for row in rows(prepare(root, *keys), "duplicates")}
    assert (labels["41_left"], searched) == ("1", [51])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "half {"])
def test_near_duplicates_are_searched_again_if_a_photograph_or_the_file_changed(root, searched, damage):
    prepare(root)
    copy_of(root, "2_left", "3_left")
    prepare(root)
    (folder,) = (root.parent / "cache" / "prepared").iterdir()
    (folder / "near_duplicates.json").write_text(damage)
    prepare(root)
    assert searched == [50, 50, 50]


@pytest.mark.slow
def test_each_phase_has_its_line(root, caplog):
    with caplog.at_level(logging.INFO):
        prepare(root)
    phases = ["looked up 50 of 50", "50 of 50 photographs to prepare", "read 50 of 50", "searching for duplicates"]
    phases += ["loaded 50 of 50", "compared 50 of 50", "writing the report"]
    found = [next(k for k, line in enumerate(caplog.messages) if phase in line) for phase in phases]
    assert found == sorted(found)


def test_mean_and_std_are_those_of_the_prepared_training_images(root):
    prepare(root, "data.val_fraction=0")
    (folder,) = (root.parent / "cache" / "prepared").iterdir()
    index = pd.read_csv(folder / "index.csv", keep_default_na=False)
    names = [f"images/{name}.jpeg" for name in TRAIN]
    mean, std = statistics(index[index["image"].isin(names)].assign(split="train"))
    pixels = np.stack([read_prepared(str(folder / "images" / name)) for name in names]) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), atol=0.01)  # they differ by JPEG compression
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), atol=0.01)


def test_nothing_is_prepared_with_wrong_arguments(root, tmp_path):
    assert "processes=no" in refusal(prepare, root, "processes=no")
    assert "data.image_sise" in refusal(prepare, root, "data.image_sise=3")
    assert "name a folder, not a file" in refusal(prepare, root, f"out={root / 'train_img.csv'}")
    assert "choose another folder with out=" in refusal(prepare, root, f"out={root / 'train_img.csv' / 'below'}")
    assert not list(tmp_path.rglob("index*.csv"))  # nothing is prepared before
    write_medmnist(tmp_path / "arrays" / "retinamnist.npz", {"train": [0, 1, 2, 3, 4], "val": [0], "test": [1]})
    message = refusal(prepare, tmp_path / "arrays", "data=retinamnist")
    assert message == "data=retinamnist has no image files, so there is nothing to prepare"
    assert photographs(root).prepared_set.cache_dir == tmp_path / "cache"


def test_names_are_text_and_need_no_ascii(tmp_path):
    names = {"001": 0, "NA": 1, "Auge_ä": 2, "<b>x</b>": 3, "null": 4}
    root = tmp_path / "data"
    write_pair(root, "train", names)
    write_pair(root, "test", {"002": 0})
    write_photographs(root / "images", [*(name.replace("/", "_") for name in names), "002"])
    write_pair(root, "train", {name.replace("/", "_"): label for name, label in names.items()})
    out = prepare(root, "data.val_fraction=0")
    page = (out / "data_report.html").read_text()
    assert rows(out, "unreadable") == []
    assert {"001", "NA", "null", "Auge_ä", "&lt;b&gt;x&lt;_b&gt;"} <= set(page.replace("<", ">").split(">"))


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no ../shared/data")
def test_the_known_pairs_of_idrid_and_one_eye_taken_twice(tmp_path):
    out = prepare(unpacked("idrid_256", tmp_path), "data.eye_crop=true", "data.image_size=224", "processes=2")
    exact = [(row["image_a"], row["image_b"]) for row in rows(out, "duplicates") if row["kind"] == "exact"]
    assert exact[0] == ("test_064", "train_118")
    assert {(a.removeprefix("train_"), b.removeprefix("train_")) for a, b in exact[1:]} == KNOWN
    assert len(exact) == 6
    near = {(row["image_a"], row["image_b"]) for row in rows(out, "duplicates") if row["kind"] == "near"}
    # another exposure of the same eye, graded 3 and 2; and possibly a pair at the threshold
    assert {("train_013", "train_397")} <= near <= {("train_013", "train_397"), ("train_043", "train_401")}
    assert [row["image"] for row in rows(out, "leaks")] == ["train_118"]
    assert [sum(int(row[split]) for row in rows(out, "class_counts")) for split in ("train", "val", "test")][2] == 103
