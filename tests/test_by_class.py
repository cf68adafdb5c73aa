"""Scores of single classes against scikit-learn and scipy, and the coverage of their intervals."""

import numpy as np
import pytest
from fake_predictions import World
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from resnet_lab.report.by_class import (
    Confusion,
    by_patient,
    class_rows,
    confusions_of,
    share_of,
    shares_by_distance,
    wilson,
)
from resnet_lab.scores import Predictions
from resnet_lab.statistics import MANY_CLASSES

NAMES = ["no DR", "mild", "moderate", "severe", "proliferative"]


def made(seed: int = 0, patients: int = 200, runs: int = 1):
    world = World(np.random.default_rng(seed))
    targets, patient, hard = world.patients(patients)
    return [world.predictions(targets, hard) for _ in range(runs)], patient


def test_one_run_has_scikit_learns_scores():
    (predictions,), patient = made()
    rows = class_rows([predictions], patient, NAMES)
    precision, recall, f1, images = precision_recall_fscore_support(predictions.targets, predictions.classes)
    np.testing.assert_allclose([row.precision.value for row in rows], precision)
    np.testing.assert_allclose([row.recall.value for row in rows], recall)
    np.testing.assert_allclose([row.f1.value for row in rows], f1)
    assert [row.images for row in rows] == images.tolist()
    for row in rows:
        for share in row[2:]:
            assert share.interval.low <= share.value <= share.interval.high


def test_the_classes_that_are_found_least_come_first():
    classes = MANY_CLASSES + 1
    targets = np.repeat(np.arange(classes - 1), 2)  # the last class has no image
    predictions = targets.copy()
    predictions[[7, 10, 11]] = 0  # one image of class 3 is found, and none of class 5
    names = [f"class {k}" for k in range(classes)]
    rows = class_rows([Predictions(targets, predictions, np.eye(classes)[predictions])], np.arange(len(targets)), names)
    assert [row.name for row in rows[:3]] == ["class 5", "class 3", "class 0"]
    assert rows[-1].name == "class 20"
    assert np.isnan(rows[-1].recall.value)


def test_the_most_frequent_confusions_are_shares_of_the_true_class():
    counts = np.array([[90, 10, 0], [3, 1, 1], [0, 0, 0]])
    assert confusions_of(counts, ["a", "b", "c"], most=2) == [
        Confusion("b", "a", 0.6, 3),
        Confusion("b", "c", 0.2, 1),
    ]
    assert len(confusions_of(counts, ["a", "b", "c"])) == 3
    assert confusions_of(np.eye(3, dtype=int), ["a", "b", "c"]) == []


@pytest.mark.parametrize(("found", "size"), [(0, 5), (3, 5), (5, 5), (40, 103)])
def test_a_share_of_independent_images_has_wilsons_interval(found, size):
    part = np.zeros(size)
    part[:found] = 1
    expected = stats.binomtest(found, size).proportion_ci(method="wilson")
    assert wilson(found / size, size) == pytest.approx((expected.low, expected.high))
    assert share_of(part, np.ones(size)).interval == pytest.approx((expected.low, expected.high))


def test_two_dependent_images_count_as_one():
    part = np.repeat([1.0, 0.0], 50)
    once, twice = share_of(part, np.ones(100)), share_of(2 * part, np.full(100, 2.0))
    assert twice.interval == pytest.approx(once.interval)


def test_a_share_of_no_images_is_unknown():
    share = share_of(np.zeros(3), np.zeros(3))
    assert np.isnan([share.value, *share.interval]).all()


def test_a_class_without_images_and_a_class_without_predictions():
    (predictions,), patient = made()
    some = predictions.targets != 4
    classes = np.where(predictions.classes == 1, 0, predictions.classes)[some]
    fewer = predictions._replace(targets=predictions.targets[some], classes=classes)
    fewer = fewer._replace(probabilities=predictions.probabilities[some])
    rows = class_rows([fewer], np.unique(patient[some], return_inverse=True)[1], NAMES)
    assert np.isnan([rows[4].recall.value, rows[4].f1.value]).all()
    assert np.isnan(rows[1].precision.value)
    assert (rows[1].recall.value, rows[1].f1.value) == (0, 0)
    assert 0 < rows[1].recall.interval.high < 0.25


def test_runs_of_a_group_count_as_their_mean():
    runs, patient = made(runs=3)
    together = class_rows(runs, patient, NAMES)[2]
    alone = [class_rows([predictions], patient, NAMES)[2] for predictions in runs]
    assert together.recall.value == pytest.approx(np.mean([row.recall.value for row in alone]))
    assert together.images == alone[0].images


def test_errors_are_counted_by_their_distance():
    runs, patient = made(runs=2)
    found = shares_by_distance(runs, patient)
    assert [name for name, _ in found] == ["right", "one grade off", "two grades off", "three or more"]
    off = np.abs([predictions.targets - predictions.classes for predictions in runs])
    expected = [np.mean(off == steps) for steps in range(3)] + [np.mean(off >= 3)]
    assert [share.value for _, share in found] == pytest.approx(expected)
    assert all(share.interval.low <= share.value <= share.interval.high for _, share in found)


def test_images_are_counted_by_patient():
    assert by_patient(np.array([True, False, True, True]), np.array([0, 1, 2, 2])).tolist() == [1, 0, 2]


def test_intervals_of_a_class_cover_its_recall():
    world = World(np.random.default_rng(7))
    truth = [row.recall.value for row in class_rows(*_case(world, 40_000), NAMES)]
    missed = np.zeros(5)
    for _ in range(400):
        rows = class_rows(*_case(world, 150), NAMES)
        limits = [row.recall.interval for row in rows]
        missed += [not low <= true <= high for (low, high), true in zip(limits, truth, strict=True)]
    assert (missed / 400 < 0.08).all(), missed


def _case(world, patients):
    targets, patient, hard = world.patients(patients)
    return [world.predictions(targets, hard)], patient
