"""Our formulas against scikit-learn, and against cases that can be counted by hand."""

import numpy as np
import pytest
from sklearn import metrics

from resnet_lab import statistics
from resnet_lab.scores import Predictions, majority_baseline, summary_of


def random_case(seed: int, num_classes: int = 5, size: int = 200, absent: tuple[int, ...] = ()):
    """Return skewed targets, tied probabilities (two decimals), and their predictions."""
    generator = np.random.default_rng(seed)
    present = np.setdiff1d(np.arange(num_classes), absent)
    targets = generator.choice(present, size, p=generator.dirichlet(np.ones(len(present)) * 5))
    probabilities = generator.dirichlet(np.ones(num_classes), size) + 0.5 * np.eye(num_classes)[targets]
    probabilities = np.round(probabilities / probabilities.sum(axis=1, keepdims=True), 2)
    return targets, probabilities.argmax(axis=1), probabilities


def averages(targets, predictions) -> dict[str, float]:
    found, names = {}, ("precision", "recall", "f1")
    for average in ("macro", "weighted"):
        scores = metrics.precision_recall_fscore_support(targets, predictions, average=average, zero_division=0)
        found |= {f"{name}_{average}": score for name, score in zip(names, scores[:3], strict=True)}
    return found


def specificity(targets, predictions) -> float:
    """Return specificity by scikit-learn, averaged over the classes that occur or are predicted."""
    return np.mean([metrics.recall_score(targets != k, predictions != k) for k in np.union1d(targets, predictions)])


def referable_area(targets, probabilities) -> float:
    if probabilities.shape[1] < 3:
        return np.nan
    return metrics.roc_auc_score(targets >= 2, probabilities[:, 2:].sum(axis=1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_the_summary_agrees_with_scikit_learn(seed, num_classes):
    targets, predictions, probabilities = random_case(seed, num_classes)
    assert summary_of(Predictions(targets, predictions, probabilities)) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(targets, predictions),
            "balanced_accuracy": metrics.balanced_accuracy_score(targets, predictions),
            "qwk": metrics.cohen_kappa_score(targets, predictions, weights="quadratic"),
            "auroc": np.mean([metrics.roc_auc_score(targets == k, probabilities[:, k]) for k in set(targets)]),
            "matthews": metrics.matthews_corrcoef(targets, predictions),
            "specificity_macro": specificity(targets, predictions),
            "referable_auroc": referable_area(targets, probabilities),
            **averages(targets, predictions),
        },
        nan_ok=True,
    )
    expected = metrics.confusion_matrix(targets, predictions, labels=range(num_classes))
    np.testing.assert_array_equal(statistics.confusion_matrix(targets, predictions, num_classes), expected)


def test_absent_classes_count_nowhere():
    targets, predictions, probabilities = random_case(7, absent=(1, 4))
    assert 1 in predictions  # predicted, although no image has it
    recalls = metrics.recall_score(targets, predictions, labels=[0, 2, 3], average=None)
    assert statistics.balanced_accuracy(targets, predictions) == pytest.approx(recalls.mean())
    areas = [metrics.roc_auc_score(targets == k, probabilities[:, k]) for k in (0, 2, 3)]
    assert statistics.auroc(targets, probabilities) == pytest.approx(np.mean(areas))
    counts = statistics.confusion_matrix(targets, predictions, 5)
    assert counts.shape == (5, 5)
    assert counts[[1, 4]].sum() == 0


def test_averages_count_a_division_by_0_as_0():
    targets, predictions = (
        np.array([0, 0, 1, 1, 3]),
        np.array([0, 0, 0, 4, 3]),
    )  # class 1 is never predicted, 2 does not occur, 4 has no image
    summary = summary_of(Predictions(targets, predictions, np.eye(5)[predictions]))
    assert averages(targets, predictions) == pytest.approx({name: summary[name] for name in averages([0], [0])})
    assert summary["recall_macro"] == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_rows_of_the_confusion_matrix_are_true():
    counts = statistics.confusion_matrix(np.array([0, 0, 0, 2]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_ties_count_for_a_half():
    targets = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.4, 0.4, 0.8])  # three of four pairs are in order, and one is tied
    assert statistics.auroc(targets, np.stack([1 - scores, scores], axis=1)) == pytest.approx(0.875)


def test_distinct_scores_are_thresholds_with_the_images_from_them_on():
    positive, scores = np.array([True, False, True, False, True]), np.array([0.2, 0.5, 0.9, 0.2, 0.5])
    found, false_alarms, cuts = statistics.threshold_counts(positive, scores)
    assert (found.tolist(), false_alarms.tolist(), cuts.tolist()) == ([1, 2, 3], [0, 1, 2], [0.9, 0.5, 0.2])


def test_a_constant_predictor_has_no_skill():
    targets = np.repeat([0, 1, 2, 4], [730, 70, 150, 50])
    baseline = majority_baseline(targets, majority=0, num_classes=5)
    expected = {"accuracy": 0.73, "balanced_accuracy": 0.25, "qwk": 0.0, "auroc": 0.5}
    assert {name: baseline[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_baseline_predicts_the_largest_class_of_the_training_images():
    targets = np.array([0, 0, 0, 1])
    assert majority_baseline(targets, majority=1, num_classes=2)["accuracy"] == 0.25


def test_kappa_grows_with_nearness_and_turns_negative_when_reversed():
    targets = np.arange(5)
    assert statistics.quadratic_weighted_kappa(targets, targets) == 1
    assert statistics.quadratic_weighted_kappa(targets, targets[::-1]) == -1
    near, far = np.array([1, 1, 2, 3, 4]), np.array([4, 1, 2, 3, 4])
    assert statistics.quadratic_weighted_kappa(targets, near) > statistics.quadratic_weighted_kappa(targets, far)


def test_undefined_values_are_nan():
    same = np.array([2, 2, 2])
    assert np.isnan(statistics.quadratic_weighted_kappa(same, same))
    assert np.isnan(statistics.auroc(same, np.full((3, 3), 1 / 3)))


def test_a_good_model_of_a_rare_disease_is_not_collapsed() -> None:
    good = np.array([[1970, 0], [2, 28]])
    blind = np.array([[1970, 0], [16, 14]])
    assert good.sum(axis=0).max() >= statistics.COLLAPSED * good.sum()
    assert not statistics.is_collapsed(good)
    assert statistics.is_collapsed(blind)
    assert statistics.is_collapsed(np.array([[100, 0], [0, 0]]))  # of no other class, nothing is known
    assert not statistics.is_collapsed(np.array([[90, 10], [5, 5]]))
