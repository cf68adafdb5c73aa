"""Statistics of stored predictions, with numpy only; undefined ones are NaN, never 0."""

from __future__ import annotations

import numpy as np

DECISIONS = {"argmax": "the most probable class", "median": "the median class"}  # rule → what it chooses
COLLAPSED = 0.98  # share of predictions in one class from which a model is called collapsed
REFERABLE = 2  # grades from here on are referred (moderate and worse)
MANY_CLASSES = 20  # above which classes are not looked at one by one


def decisions(probabilities: np.ndarray, rule: str) -> np.ndarray:
    """The classes (N,) that a rule of `DECISIONS` chooses by probabilities (N, K)."""
    median = rule == "median"
    classes: np.ndarray
    classes = (probabilities.cumsum(axis=1)[:, :-1] < 0.5).sum(axis=1) if median else probabilities.argmax(axis=1)
    return classes


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K) with rows true and columns predicted, from classes (N,) and (N,)."""
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Share of the N images whose class is found."""
    return float(np.mean(targets == predictions))


def balanced_accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean recall over the classes that the targets hold."""
    return float(np.mean([np.mean(predictions[targets == k] == k) for k in np.unique(targets)]))


def quadratic_weighted_kappa(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Cohen's kappa with weights (i - j)², for ordered classes (Cohen 1968); 0 for a constant predictor.

    The expected disagreement is that of all N² pairs of a target and a prediction: both variances plus the
    squared difference of the means. NaN where that is 0, targets and predictions being one and the same class.
    """
    bias = targets.mean() - predictions.mean()
    expected = targets.var() + predictions.var() + bias**2
    return float(1 - np.mean((targets - predictions) ** 2) / expected) if expected else float("nan")


def auroc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Macro mean of the areas under the ROC curves of one class against the rest, from probabilities (N, K).

    Only classes with both positives and negatives count; NaN where there is none.
    """
    classes = np.unique(targets)
    if len(classes) < 2:
        return float("nan")
    return float(np.mean([_area(targets == k, probabilities[:, k]) for k in classes]))


def referable(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is to be referred (N,), and the probability of that (N,), from probabilities (N, K)."""
    return targets >= REFERABLE, probabilities[:, REFERABLE:].sum(axis=1)


def referable_auroc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve of the grades that are referred against the others; NaN where one kind is missing."""
    positive, scores = referable(targets, probabilities)
    return float(_area(positive, scores)) if 0 < positive.sum() < len(positive) else float("nan")


def _area(positive: np.ndarray, scores: np.ndarray) -> float:
    """Share of the (positive, negative) pairs in the right order, ties for a half (Mann and Whitney 1947)."""
    mid_ranks = _mid_ranks(scores)
    positives, negatives = positive.sum(), (~positive).sum()
    return float((mid_ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _mid_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1, (N,); equal scores share the middle of theirs."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def placements(positives: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each image adds to the areas under B ROC curves (DeLong, DeLong and Clarke-Pearson 1988).

    The first array (N, B) holds, for the positives, the share of the other images that are scored below, the second,
    for the others, the share of the positives that are scored above; half the area is taken off both, so that mean +
    mean over the images concerned is the area. 0 elsewhere, and where one kind is missing.

    Args:
        positives: whether an image is of the kind that is looked for (N, B).
        scores: the higher, the more likely (N, B).
    """
    above, below = np.zeros((2, *scores.shape))
    for column in np.flatnonzero(positives.any(axis=0) & ~positives.all(axis=0)):
        positive = positives[:, column]
        ranks = _mid_ranks(scores[:, column])
        for mine, rows in ((above, positive), (below, ~positive)):
            lower = (ranks[rows] - _mid_ranks(scores[rows, column])) / (len(scores) - rows.sum())
            share = lower if mine is above else 1 - lower
            mine[rows, column] = share - share.mean() / 2
    return above, below


def class_scores(counts: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 of each class (3, K) from a confusion matrix (K, K), rows true.

    Precision of a class that is never predicted is NaN, recall and F1 of one without images too.
    """
    found, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true > 0, 2 * found / (true + predicted), np.nan)
        return np.stack([found / predicted, found / true, f1])
