"""Both eyes of a patient: one grade of both, and each eye with the other's help."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import SHARES, edit_predictions, write_run

from resnet_lab.combine import combine, combine_eyes, command
from resnet_lab.derived import Labeled
from resnet_lab.errors import UserError
from resnet_lab.eyes import METHODS, Pairs, graded
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import read_predictions, read_run, read_runs
from resnet_lab.report.verify import differences_of
from resnet_lab.statistics import quadratic_weighted_kappa

pytestmark = pytest.mark.usefixtures("empty_pictures")


def labeled(targets: list[int], probabilities: list[list[float]], patients: list[str]) -> Labeled:
    names = [f"image{n}" for n in range(len(targets))]
    return Labeled(
        pd.DataFrame({"image": names, "patient": patients, "target": targets}), np.array(probabilities, float)
    )


SURE = [[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]]


@pytest.fixture
def three() -> Labeled:
    """Return two eyes of patient a, and one of patient b."""
    return labeled([0, 2, 1], SURE, ["a", "a", "b"])


def test_the_worse_eye_counts(three: Labeled) -> None:
    pairs = Pairs(three, "test")
    assert pairs.alone == 1
    # both at most 0: 0.9 · 0.2; both at most 1: 1.0 · 0.5
    assert pairs.worst() == pytest.approx(np.array([[0.18, 0.32, 0.5], [0.5, 0.5, 0.0]]))
    assert pairs.mean() == pytest.approx(np.array([[0.55, 0.2, 0.25], [0.5, 0.5, 0.0]]))
    found = graded({"test": three}, "worst")["patient"]["test"]
    assert found.rows["image"].tolist() == ["a", "b"]
    assert found.targets.tolist() == [2, 1]


def test_images_without_a_patient_are_graded_alone(three: Labeled) -> None:
    pairs = Pairs(Labeled(three.rows.assign(patient=""), three.probabilities), "test")
    assert (pairs.alone, pairs.patients.tolist()) == (3, ["image0", "image1", "image2"])


def test_a_fitted_model_needs_two_splits(three: Labeled) -> None:
    for split, other in (("val", "test"), ("test", "val")):
        with pytest.raises(UserError, match=f"eyes=logistic needs predictions of {other}"):
            graded({split: three}, "logistic")


def test_more_than_two_images_are_refused(three: Labeled) -> None:
    rows = three.rows.assign(patient="a")
    with pytest.raises(UserError, match=r"patient a has 3 images in test \(image0, image1, image2\); at most one"):
        Pairs(Labeled(rows, three.probabilities), "test")
    alone = Labeled(three.rows.assign(patient=["a", "b", "c"]), three.probabilities)
    with pytest.raises(UserError, match="no patient has two images in test"):
        graded({"test": alone}, "worst")
    assert set(graded({"test": three, "val": alone}, "worst")["patient"]) == {"test", "val"}
    with pytest.raises(UserError, match=r"predictions_val\.csv has no patients"):
        Pairs(Labeled(three.rows.drop(columns="patient"), three.probabilities), "val")


def test_eyes_of_classes_without_an_order_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "two", class_names=["healthy", "ill"])
    assert len(combine_eyes([str(tmp_path / "two")], tmp_path / "out", ["worst"])) == 1
    write_run(tmp_path / "three", class_names=["cat", "dog", "fox"])
    with pytest.raises(UserError, match="three: eyes= needs grades"):
        combine_eyes([str(tmp_path / "three")], tmp_path / "out", ["worst"])


def write_eyes(folder: Path, seed: int = 0) -> Path:
    """Write a run with 500 validation and 300 test patients, whose two eyes have the same grade."""
    write_run(folder, seed=seed, images=600)
    for split, patients in (("val", 500), ("test", 300)):
        rng = np.random.default_rng([seed, patients])
        targets = np.repeat(rng.choice(5, patients, p=SHARES), 2)
        scores = np.log(SHARES) + rng.normal(size=(len(targets), 5)) + np.eye(5)[targets]
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        numbers = range(len(targets))
        columns = {"image": [f"{n:04d}" for n in numbers], "patient": [f"p{n // 2}" for n in numbers]}
        columns |= {"target": targets, "prediction": probabilities.argmax(axis=1)}
        columns |= {f"p_{k}": probabilities[:, k] for k in range(5)}
        (folder / f"predictions_{split}.csv").write_text(pd.DataFrame(columns).to_csv(index=False))
        edit_predictions(folder, lambda frame: frame, split)
    return folder


def kappa_of(folder: Path) -> float:
    found = read_predictions(folder / "predictions_test.csv").labeled
    return quadratic_weighted_kappa(found.targets, found.classes)


@pytest.mark.slow
def test_the_other_eye_helps(tmp_path: Path) -> None:
    run = write_eyes(tmp_path / "runs" / "a")
    made = combine_eyes(
        [str(tmp_path / "runs")], tmp_path / "eyes", ["worst", "mean", "logistic", "boosting"], "expected"
    )
    by_name = {each.path.name: each.path for each in made}
    assert set(by_name) == {
        *(f"a_eyes-{method}_by-patient" for method in METHODS),
        *(f"a_eyes-{method}_by-image" for method in ("logistic", "boosting")),
    }
    assert kappa_of(by_name["a_eyes-logistic_by-image"]) > kappa_of(run) + 0.05
    assert kappa_of(by_name["a_eyes-boosting_by-image"]) > kappa_of(run)
    assert kappa_of(by_name["a_eyes-logistic_by-patient"]) > kappa_of(by_name["a_eyes-worst_by-patient"])
    assert differences_of([read_run(each) for each in made]) == []
    again = combine_eyes([str(run)], tmp_path / "again", ["boosting"], "expected")
    for each in again:
        assert (each.path / "predictions_test.csv").read_bytes() == (
            by_name[each.path.name] / "predictions_test.csv"
        ).read_bytes()


@pytest.mark.slow
def test_one_line_counts_the_patients_with_one_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, fewer in (("a", 1), ("b", 1), ("c", 3)):
        edit_predictions(write_eyes(tmp_path / "runs" / name), lambda frame, fewer=fewer: frame.iloc[:-fewer])
    with caplog.at_level(logging.INFO):
        combine_eyes([str(tmp_path / "runs")], tmp_path / "eyes", ["worst"])
    assert [line for line in caplog.messages if "alone" in line] == ["1 patient with one image, graded alone (3 runs)"]


def test_the_report_has_a_table_by_image_and_one_by_patient(tmp_path: Path) -> None:
    write_eyes(tmp_path / "runs" / "a")
    combine_eyes([str(tmp_path / "runs")], tmp_path / "eyes", ["worst", "logistic"])
    tables = tables_of(read_runs([str(tmp_path / "runs"), str(tmp_path / "eyes")]))
    labels = {len(table.patient): sorted(group.label for group in table.groups) for table in tables}
    assert set(labels) == {300, 600}
    assert len(labels[600]) == 2
    assert any("logistic" in label for label in labels[600])
    assert [label for label in labels[300] if "worst" in label]


def test_eyes_of_means_and_means_of_eyes(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), seed=seed)
    runs = [str(tmp_path / "runs")]
    combine(runs, tmp_path / "means", ["seed"])
    (run,) = combine_eyes([str(tmp_path / "means")], tmp_path / "eyes_of_means", ["mean"])
    assert run.read_config()["combine"] | {"sources": []} == {
        "mean_over": "seed",
        "eyes": "mean",
        "by": "patient",
        "sources": [],
    }
    combine_eyes(runs, tmp_path / "eyes", ["worst", "mean"])
    means = combine([str(tmp_path / "eyes")], tmp_path / "means_of_eyes", ["seed"])
    assert [each.path.name for each in means] == ["eyes-mean_over-seed", "eyes-worst_over-seed"]
    found = [read_predictions(each.predictions_file("test")).labeled.probabilities for each in (run, *means)]
    assert found[0] == pytest.approx(found[1], abs=1e-7)
    labels = [group.label for group in tables_of(read_runs([str(tmp_path / "means_of_eyes")]))[0].groups]
    assert labels == ["eyes=mean", "eyes=worst"]
    assert len(combine_eyes([str(tmp_path)], tmp_path / "again", ["mean"])) == 3  # none of both eyes


def test_few_validation_patients_fit_no_model(tmp_path: Path) -> None:
    folder = write_eyes(tmp_path / "a")
    edit_predictions(folder, lambda frame: frame.iloc[:20], "val")
    with pytest.raises(UserError, match="10 validation patients have two eyes, but a model needs 20"):
        combine_eyes([str(folder)], tmp_path / "eyes", ["logistic"])
    (folder / "predictions_val.csv").unlink()
    with pytest.raises(UserError, match="needs predictions of val, to be fitted"):
        combine_eyes([str(folder)], tmp_path / "eyes", ["logistic"])
    assert not (tmp_path / "eyes").exists()


@pytest.mark.parametrize(
    ("words", "message"), [(["eyes=both"], "eyes=both: choose worst"), (["eyes=worst", "over=seed"], "leave out over=")]
)
def test_options(tmp_path: Path, words: list[str], message: str) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        command([str(tmp_path), f"out={tmp_path / 'eyes'}", *words])


@pytest.mark.parametrize(
    ("images", "alike"),
    [
        (("7_left.jpeg", "7_right.jpeg"), False),
        (("7_left_1.jpeg", "7_left_2.jpeg"), True),
        (("P3_OD_macula.png", "P3_OD_disc.png"), True),
        (("P3_OI.png", "P3_OD.png"), False),
        (("3_links.png", "3_links_2.png"), True),
        (("P1/LE_1.png", "P1/LE_2.png"), True),
        (("left_10.png", "right_10.png"), False),
        (("12.png", "13.png"), False),
    ],
)
def test_two_images_of_one_eye_are_named(
    tmp_path: Path, images: tuple[str, str], alike: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "a", images=40)
    edit_predictions(folder, lambda frame: renamed(frame, images))
    combine_eyes([str(folder)], tmp_path / "eyes", ["worst"])
    line = f"1 patient has two images of one eye ({images[0]} and {images[1]}), which count as two eyes"
    assert (line in caplog.text) == alike


def renamed(frame: pd.DataFrame, images: tuple[str, str]) -> pd.DataFrame:
    """Return predictions in which the first two images are those of one patient."""
    names, patients = frame["image"].tolist(), [f"p{row}" for row in range(len(frame))]
    return frame.assign(image=[*images, *names[2:]], patient=["p0", "p0", *patients[2:]])
