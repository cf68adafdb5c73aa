"""Statistics of stored predictions (numpy only); an undefined value is NaN, never 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DECISIONS = {  # rule → its choice
    "argmax": "the most probable class",
    "median": "the median class",
    "expected": "the grade nearest to the expected grade",
    "thresholds": "the grade whose fitted thresholds enclose the expected grade",
}
OWN_RULE = "own"  # a rule of an external objective, which does not follow from the probabilities
OF_GRADES = ("median", "expected", "thresholds")  # rules that need ordered classes
STEP = 0.01  # grid of fitted thresholds, in grades: coarser than rounding errors of the expected grade
EXACT = 9  # decimals of expected grades and cumulative probabilities, so that rounding errors cross no limit
COLLAPSED = 0.98  # from this share of predictions in one class, a model counts as collapsed
REFERABLE = 2  # grades from here on are referable (moderate or worse)
MANY_CLASSES = 20  # more classes are not shown one by one


def decisions(probabilities: np.ndarray, rule: str, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Return the classes (N,) that a rule of `DECISIONS` chooses from probabilities (N, K).

    Args:
        probabilities: probabilities (N, K).
        rule: name of the rule.
        thresholds: K - 1 increasing limits of the expected grade, for the rule `thresholds`.
    """
    if rule == "argmax":
        classes: np.ndarray = probabilities.argmax(axis=1)
    elif rule == "median":
        classes = (np.round(probabilities.cumsum(axis=1)[:, :-1], EXACT) < 0.5).sum(axis=1)
    else:
        limits = midpoints(probabilities.shape[1]) if rule == "expected" else np.asarray(thresholds)
        classes = np.searchsorted(limits, expected_grades(probabilities))
    return classes


def expected_grades(probabilities: np.ndarray) -> np.ndarray:
    """Return the expected grade (N,), float64, of probabilities (N, K)."""
    shares = probabilities.astype(float)
    grades: np.ndarray = np.round(shares @ np.arange(shares.shape[1]) / shares.sum(axis=1), EXACT)
    return grades


def midpoints(num_classes: int) -> np.ndarray:
    """Return the limits of the nearest grade, 0.5, 1.5, …, (K - 1,)."""
    return np.arange(num_classes - 1) + 0.5


def fitted_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> list[float]:
    """Return the K - 1 increasing limits of the expected grade with a high QWK, on a grid of `STEP`.

    Coordinate ascent from the midpoints, which finds a local maximum: each limit in turn moves to its best place
    between its neighbors, until none moves. Among equally good places, the one nearest to the midpoint is chosen, so
    the result is deterministic.

    Args:
        probabilities: probabilities (N, K).
        targets: classes (N,).
    """
    num_classes, places = probabilities.shape[1], round(1 / STEP)
    grid = np.arange(1, (num_classes - 1) * places) / places
    cells = np.zeros((len(grid) + 1, num_classes), int)
    np.add.at(cells, (np.searchsorted(grid, expected_grades(probabilities)), targets), 1)
    below = cells.cumsum(axis=0)  # images of each class up to each place of the grid; the last row has all
    grades = np.arange(num_classes)
    weights = (grades[:, None] - grades) ** 2
    chance = weights @ below[-1] / below[-1].sum()  # disagreement of each predicted grade with a random target
    # both sums of kappa are a constant plus one term per limit, which depends on its place
    observed = below[:-1] @ (weights[:, :-1] - weights[:, 1:])
    expected = below[:-1].sum(axis=1)[:, None] * (chance[:-1] - chance[1:])
    observed_0, expected_0 = below[-1] @ weights[:, -1], below[-1].sum() * chance[-1]
    centers = [round(each * places) - 1 for each in midpoints(num_classes)]
    limits, before, each = np.array(centers), np.zeros(0, int), np.arange(num_classes - 1)
    while not np.array_equal(limits, before):
        before = limits.copy()
        for k, center in enumerate(centers):
            least = limits[k - 1] + 1 if k else 0
            most = limits[k + 1] - 1 if k + 1 < len(limits) else len(grid) - 1
            candidates = np.array(sorted(range(least, most + 1), key=lambda place: (abs(place - center), place)))
            above = observed_0 + observed[limits, each].sum() - observed[limits[k], k] + observed[candidates, k]
            under = expected_0 + expected[limits, each].sum() - expected[limits[k], k] + expected[candidates, k]
            ratios = np.divide(above, under, out=np.ones(len(above)), where=under > 0)
            limits[k] = candidates[np.argmin(np.round(ratios, 12))]
    return [float(grid[place]) for place in limits]


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return counts (K, K), rows true and columns predicted, from classes (N,) and (N,)."""
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def is_collapsed(counts: np.ndarray) -> bool:
    """Return whether counts (K, K), rows true, are those of a collapsed model.

    At least 98 % of the predictions are one class, and so are those for most images of the other classes: a good model
    of a rare disease predicts "healthy" for nearly all images, too.
    """
    predicted = counts.sum(axis=0)
    most = int(predicted.argmax())
    others = counts.sum() - counts[most].sum()
    missed = predicted[most] - counts[most, most]
    return bool(predicted[most] >= COLLAPSED * predicted.sum() and 2 * missed >= others)


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
    n, t, p = len(targets), int(targets.sum()), int(predictions.sum())
    # both disagreements times n², in whole numbers: rounding would leave a constant predictor beside 0
    expected = n * int((targets**2 + predictions**2).sum()) - t**2 - p**2 + (t - p) ** 2
    return 1 - n * int(((targets - predictions) ** 2).sum()) / expected if expected else float("nan")


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
