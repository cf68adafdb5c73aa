"""Scores of resampled test sets against scikit-learn's on the resampled images."""

import numpy as np
import pytest
from fake_predictions import World
from sklearn import metrics

from resnet_lab import statistics
from resnet_lab.report.resampling import cells_by_patient, counts_of_patients, scores_of, sums_by_patient, sums_of
from resnet_lab.scores import Predictions, summary_of


def world(seed: int, patients: int = 60, shares=(0.5, 0.1, 0.2, 0.1, 0.1)):
    made = World(np.random.default_rng(seed), shares)
    targets, patient, hard = made.patients(patients)
    return made.predictions(targets, hard), patient


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_test_set_has_the_scores_of_the_summary(seed):
    predictions, patient = world(seed)
    scores = scores_of(sums_by_patient(predictions, patient).sum(axis=0))
    assert scores == pytest.approx(summary_of(predictions), abs=1e-12)
    assert 0.5 < scores["referable_auroc"] < 1


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_has_the_scores_of_its_images(seed):
    predictions, patient = world(seed)
    counts = counts_of_patients(60, 5, seed)
    scores = scores_of(counts @ sums_by_patient(predictions, patient))
    for draw, weights in enumerate(counts[:, patient]):
        rows = np.repeat(np.arange(len(weights)), weights.astype(int))
        true, called = predictions.targets[rows], predictions.classes[rows]
        for average in ("macro", "weighted"):
            expected = metrics.f1_score(true, called, average=average, zero_division=0)
            assert scores[f"f1_{average}"][draw] == pytest.approx(expected)
        assert scores["accuracy"][draw] == pytest.approx(metrics.accuracy_score(true, called))
        assert scores["balanced_accuracy"][draw] == pytest.approx(metrics.balanced_accuracy_score(true, called))
        kappa = metrics.cohen_kappa_score(true, called, weights="quadratic")
        assert scores["qwk"][draw] == pytest.approx(kappa)


@pytest.mark.slow
def test_the_area_of_a_draw_is_close_to_scikit_learns():
    predictions, patient = world(4, patients=300)
    counts = counts_of_patients(300, 200)
    linear = scores_of(counts @ sums_by_patient(predictions, patient))
    exact = {"auroc": [], "referable_auroc": []}
    referred, probability = predictions.targets >= 2, predictions.probabilities[:, 2:].sum(axis=1)
    for weights in counts[:, patient]:
        areas = [
            metrics.roc_auc_score(predictions.targets == k, predictions.probabilities[:, k], sample_weight=weights)
            for k in range(5)
        ]
        exact["auroc"].append(np.mean(areas))
        exact["referable_auroc"].append(metrics.roc_auc_score(referred, probability, sample_weight=weights))
    for metric, areas in exact.items():
        assert np.corrcoef(linear[metric], areas)[0, 1] > 0.99
        assert np.std(linear[metric]) == pytest.approx(np.std(areas), rel=0.03)


def test_each_draw_has_as_many_patients_as_there_are():
    counts = counts_of_patients(50, 4000)
    assert counts.shape == (4000, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.var(ddof=1) == pytest.approx(1 - 1 / 50, abs=0.02)  # variance of a binomial with 50 trials
    np.testing.assert_array_equal(counts, counts_of_patients(50, 4000))


def test_sums_are_those_of_each_patients_images_in_any_order():
    predictions, patient = world(1)
    shuffled = np.random.default_rng(0).permutation(len(patient))
    mixed = Predictions(*(column[shuffled] for column in predictions))
    np.testing.assert_allclose(sums_by_patient(mixed, patient[shuffled]), sums_by_patient(predictions, patient))
    sums = sums_of(sums_by_patient(predictions, patient).sum(axis=0))
    matrix = metrics.confusion_matrix(predictions.targets, predictions.classes, labels=range(5))
    expected = (matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))
    np.testing.assert_array_equal((sums.found, sums.true, sums.predicted), expected)


def test_counts_of_classes_by_patient():
    predictions = Predictions(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1]), np.zeros((4, 2)))
    found, true, predicted = cells_by_patient(predictions, np.array([0, 0, 1, 1]))
    assert found.tolist() == [[1, 1], [0, 0]]
    assert true.tolist() == [[1, 1], [1, 1]]
    assert predicted.tolist() == [[1, 1], [1, 1]]


def test_a_class_that_a_draw_lacks_does_not_count_in_it():
    targets = np.array([0, 0, 1])
    predictions = Predictions(targets, np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]))
    scores = scores_of(np.array([[1.0, 1, 1], [2, 1, 0]]) @ sums_by_patient(predictions, np.arange(3)))
    assert scores["balanced_accuracy"].tolist() == pytest.approx([0.75, 2 / 3])
    assert scores["auroc"][0] == 1
    assert np.isnan(scores["auroc"][1])


def test_placements_add_up_to_the_area():
    predictions, _ = world(2)
    above, below = statistics.placements(np.eye(5, dtype=bool)[predictions.targets], predictions.probabilities)
    for k in range(5):
        positive = predictions.targets == k
        area = metrics.roc_auc_score(positive, predictions.probabilities[:, k])
        assert above[positive, k].mean() + below[~positive, k].mean() == pytest.approx(area)
        assert not above[~positive, k].any()
        assert not below[positive, k].any()
