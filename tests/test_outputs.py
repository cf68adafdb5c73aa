"""The files of a split are replaced completely or not at all, and their scores follow from the counts."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_data import refusal
from sklearn.metrics import precision_recall_fscore_support

from resnet_lab.outputs import class_report, score_table, without_images, write_predictions, write_split
from resnet_lab.run_folder import RunFolder

NAMES = ["healthy", "mild", "severe"]
COUNTS = np.array([[5, 3, 0], [1, 2, 4], [0, 0, 6]])  # far from symmetric


def rows_and_predictions(images: int = 6) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(images)
    rows = pd.DataFrame({"image": [f"{n:02d}" for n in range(images)], "target": np.arange(images) % 3})
    probabilities = generator.dirichlet(np.ones(3), images)
    return rows, probabilities.argmax(axis=1), probabilities


def test_precision_and_recall_are_scikit_learns() -> None:
    targets = np.repeat(np.arange(3), COUNTS.sum(axis=1))
    predictions = np.concatenate([np.repeat(np.arange(3), row) for row in COUNTS])
    expected = precision_recall_fscore_support(targets, predictions)
    report = class_report(COUNTS, NAMES)
    assert list(report) == ["class", "precision", "recall", "f1", "support"]
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert report[column].to_numpy() == pytest.approx(values), column
    assert report["precision"].tolist() == pytest.approx([5 / 6, 2 / 5, 6 / 10])
    assert report["recall"].tolist() == pytest.approx([5 / 8, 2 / 7, 1])


def test_files_are_replaced_and_never_rewritten_in_place(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_split(run, "test", *rows_and_predictions(6), COUNTS, NAMES, "run")
    before = {file: file.read_bytes() for file in run.path.iterdir()}
    assert len(before) == 4
    for file in before:
        os.link(file, tmp_path / file.name)  # a hard link to the same bytes
    write_split(run, "test", *rows_and_predictions(9), COUNTS.T, NAMES, "run")
    for file, content in before.items():
        assert file.read_bytes() != content, file.name
        assert (tmp_path / file.name).read_bytes() == content, file.name
    assert set(run.path.iterdir()) == set(before)


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_names_the_file_and_leaves_each_one_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run, room, write_bytes = RunFolder(tmp_path / "run"), [after], Path.write_bytes
    write_split(run, "test", *rows_and_predictions(6), COUNTS, NAMES, "run")
    before = {file: file.read_bytes() for file in run.path.iterdir()}

    def write(path: Path, data: bytes) -> int:
        room[0] -= 1
        if room[0] < 0:
            write_bytes(path, bytes(data)[:10])
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match=rf"No space left on device: '{run.path}/\w+_test.\w+'"):
        write_split(run, "test", *rows_and_predictions(9), COUNTS.T, NAMES, "run")
    now = {file: file.read_bytes() for file in run.path.iterdir()}
    assert set(now) == set(before)
    assert sum(now[file] != before[file] for file in before) == after


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_undefined_probabilities_are_named_and_not_written(tmp_path: Path, value: float) -> None:
    rows, classes, probabilities = rows_and_predictions(6)
    probabilities[[1, 4], 0] = value
    message = refusal(write_predictions, tmp_path / "new" / "predictions.csv", rows, classes, probabilities)
    assert message.startswith("the probabilities of 2 of 6 images are NaN or infinite (01, 04)")
    assert list(tmp_path.iterdir()) == []


def test_predictions_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    rows, classes, probabilities = rows_and_predictions(6)
    write_predictions(tmp_path / "predictions.csv", rows, 2 - classes, probabilities)
    stored = pd.read_csv(tmp_path / "predictions.csv", dtype={"image": str})
    assert stored["image"].tolist() == rows["image"].tolist()
    assert stored["prediction"].tolist() == (2 - classes).tolist()  # independent of the probabilities
    assert stored[["p_0", "p_1", "p_2"]].to_numpy() == pytest.approx(probabilities, abs=1e-7)


def test_six_scores_fit_80_columns_and_each_has_its_name() -> None:
    names = ["qwk", "accuracy", "balanced_accuracy", "auroc", "f1_macro", "f1_weighted"]
    table = score_table({f"test/{name}": -0.5 for name in names}, {"test": [2, 8, 9]}, [1, 2, 3], NAMES).splitlines()
    assert max(map(len, table)) <= 80
    cells = [[line[start : start + 9].strip() for line in table[:2]] for start in range(26, 80, 9)]
    titles = [" ".join(filter(None, words)) for words in cells]
    assert titles == [name.replace("_", " ") for name in names]
    assert table[2].split()[-6:] == ["-0.5000"] * 6


def test_classes_without_an_image_are_named() -> None:
    assert without_images("train", ["a", "b", "c"], [1, 0, 0]) == "train has no image of b, c"
    assert (
        without_images("test", list("abcdefgh"), [0] * 7 + [1])
        == "test has no image of a, b, c, d, e and 2 more classes"
    )
    assert without_images("test", ["a", "b"], [3, 1]) == without_images("val", ["a", "b"], ()) == ""


def test_the_baseline_is_the_training_majority_by_name() -> None:
    metrics = {"test/accuracy": 0.5, "val/accuracy": 0.25}
    table = score_table(metrics, {"val": [1, 1, 8], "test": [2, 8, 0]}, [10, 30, 20], NAMES)
    cells = [line.split() for line in table.splitlines()]
    assert cells == [
        ["accuracy"],
        ["val", "(10", "images)", "0.2500"],
        ["always", "“mild”", "0.1000"],
        ["test", "(10", "images)", "0.5000"],
        ["always", "“mild”", "0.8000"],
    ]
    undefined = score_table({"val/accuracy": 1.0, "val/auroc": math.nan}, {"val": [0, 9]}, [1, 2], ["a", "b"])
    assert "nan" not in undefined
    assert "auroc" not in undefined
    long = score_table(metrics, {"val": [1, 9]}, [1, 2], ["a", "b" * 99])
    assert len({len(line) for line in long.splitlines()}) == 1
    assert "…”" in long


def test_an_image_without_a_patient_has_one_name_in_both_columns(tmp_path):
    rows = pd.DataFrame(
        {
            "image": ["1", "2", "3", "4_left"],
            "patient": ["test/1.jpg", "test/2.jpg", "test/1.jpg", "4"],  # 3 is a copy of 1
            "path": [f"/data/test/{name}.jpg" for name in ("1", "2", "3", "4_left")],
        }
    )
    write_predictions(tmp_path / "p.csv", rows, np.zeros(4, int), np.full((4, 2), 0.5))
    assert pd.read_csv(tmp_path / "p.csv", dtype=str)["patient"].tolist() == ["1", "2", "1", "4"]
