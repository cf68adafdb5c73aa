"""Statistics of stored predictions (numpy only); an undefined value is NaN, never 0."""

from __future__ import annotations

import numpy as np

DECISIONS = {"argmax": "the most probable class", "median": "the median class"}  # rule → its choice
OWN_RULE = "own"  # a rule that does not follow from the probabilities
COLLAPSED = 0.98  # from this share of predictions in one class, a model counts as collapsed
REFERABLE = 2  # grades from here on are referable (moderate or worse)
MANY_CLASSES = 20  # more classes are not shown one by one


def decisions(probabilities: np.ndarray, rule: str) -> np.ndarray:
    """Return the classes (N,) that a rule of `DECISIONS` chooses from probabilities (N, K)."""
    median = rule == "median"
    classes: np.ndarray
    classes = (probabilities.cumsum(axis=1)[:, :-1] < 0.5).sum(axis=1) if median else probabilities.argmax(axis=1)
    return classes


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return counts (K, K), rows true and columns predicted, from classes (N,) and (N,)."""
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return the share of the N images with a correct prediction."""
    return float(np.mean(targets == predictions))


def balanced_accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean recall over the classes of the targets."""
    return float(np.mean([np.mean(predictions[targets == k] == k) for k in np.unique(targets)]))


def quadratic_weighted_kappa(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return Cohen's kappa with weights (i - j)², for ordered classes (Cohen 1968); 0 for a constant predictor.

    The expected disagreement covers all N² pairs of a target and a prediction: both variances plus the squared
    difference of the means. If it is 0, all targets and predictions are one class, and kappa is NaN.
    """
    bias = targets.mean() - predictions.mean()
    expected = targets.var() + predictions.var() + bias**2
    return float(1 - np.mean((targets - predictions) ** 2) / expected) if expected else float("nan")


def auroc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the macro mean of the areas under the one-vs-rest ROC curves, from probabilities (N, K).

    Only classes with both positives and negatives count; NaN if there are none.
    """
    classes = np.unique(targets)
    if len(classes) < 2:
        return float("nan")
    return float(np.mean([_area(targets == k, probabilities[:, k]) for k in classes]))


def referable(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each image is referable (N,), and the probability of that (N,), from probabilities (N, K)."""
    return targets >= REFERABLE, probabilities[:, REFERABLE:].sum(axis=1)


def referable_auroc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the ROC curve of referable grades against the others; NaN if one kind is missing."""
    positive, scores = referable(targets, probabilities)
    return float(_area(positive, scores)) if 0 < positive.sum() < len(positive) else float("nan")


def _area(positive: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs in the right order; ties count half (Mann and Whitney 1947)."""
    mid_ranks = _mid_ranks(scores)
    positives, negatives = positive.sum(), (~positive).sum()
    return float((mid_ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _mid_ranks(scores: np.ndarray) -> np.ndarray:
    """Return ranks from 1, (N,); equal scores share their mean rank."""
    order, first, last = _sorted(scores)
    ranks = np.empty(len(scores))
    ranks[order] = (first + last + 1) / 2
    return ranks


def _sorted(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of the scores (N,), and by place in it the bounds [first, last) of its equal scores, (N,) each.

    `first` of the scores are lower, and N - `last` are higher.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    sizes = np.diff(edges)
    return order, np.repeat(edges[:-1], sizes), np.repeat(edges[1:], sizes)


def placements(positives: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's contribution to the areas under B ROC curves (DeLong, DeLong and Clarke-Pearson 1988).

    - The first array (N, B): for each positive, the share of negatives with a lower score.
    - The second array (N, B): for each negative, the share of positives with a higher score.

    Half the area is subtracted from both, so the area is the mean over positives plus the mean over negatives. All
    other entries are 0, and so is a curve without positives or negatives.

    Args:
        positives: whether an image is positive (N, B).
        scores: the higher, the more likely positive (N, B).
    """
    above, below = np.zeros((2, *scores.T.shape))
    for column in np.flatnonzero(positives.any(axis=0) & ~positives.all(axis=0)):
        positive = positives[:, column]
        order, first, last = _sorted(scores[:, column])
        passed = np.concatenate([[0], np.cumsum(positive[order])])  # positives among the lowest scores
        positives_below = (passed[first] + passed[last]) / 2  # equal scores count half
        negatives_below = (first + last) / 2 - positives_below
        share = np.empty(len(scores))
        share[order] = np.where(
            positive[order], negatives_below / (len(scores) - passed[-1]), 1 - positives_below / passed[-1]
        )
        for mine, rows in ((above[column], positive), (below[column], ~positive)):
            mine[rows] = share[rows] - share[rows].mean() / 2
    return above.T, below.T


def threshold_counts(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each distinct score, highest first: positives and negatives from it on, and the score; (T,) each.

    Args:
        positive: whether an image is positive (N,).
        scores: the higher, the more likely positive (N,).
    """
    order, first, _ = _sorted(-scores)
    lowest = np.append(np.flatnonzero(np.diff(first)), len(scores) - 1)  # the last of each distinct score
    found = np.cumsum(positive[order])[lowest]
    return found, lowest + 1 - found, scores[order[lowest]]


def class_scores(counts: np.ndarray) -> np.ndarray:
    """Return precision, recall and F1 of each class (3, K) from a confusion matrix (K, K), rows true.

    Precision is NaN for a class without predictions; recall and F1 are NaN for a class without images.
    """
    found, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true > 0, 2 * found / (true + predicted), np.nan)
        return np.stack([found / predicted, found / true, f1])
