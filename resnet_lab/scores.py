"""The scores of a model, one record each: name, display and computation (numpy only).

A new score is one record in `SCORES`. Jobs, TensorBoard, metrics.csv, the terminal, the report with its intervals,
`report --check` and summary.csv all use this record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet_lab import statistics
from resnet_lab.statistics import REFERABLE

ABSENT = "–"
MINUS = "\N{MINUS SIGN}"
AREA = 0.15  # cost of a ranking error with one positive or one negative image
NEEDS = {
    "": "",
    "order": "needs classes with an order",
    "referable": f"needs classes with an order, and more than {REFERABLE} of them",
}
ALIASES = {  # name in other programs and papers → name of a score
    **dict.fromkeys(("kappa", "quadratic weighted kappa", "cohen_kappa"), "qwk"),
    **dict.fromkeys(("auc", "roc", "roc_auc", "roc auc"), "auroc"),
    **dict.fromkeys(("acc", "top1"), "accuracy"),
    **dict.fromkeys(("bacc", "balanced_acc"), "balanced_accuracy"),
    **dict.fromkeys(("mcc", "matthews correlation"), "matthews"),
}


Floats: TypeAlias = NDArray[np.float64]


class Predictions(NamedTuple):
    """The predictions of one model on N images, and the true classes."""

    targets: np.ndarray  # (N,) true classes
    classes: np.ndarray  # (N,) predicted classes
    probabilities: np.ndarray  # (N, K)

    def of(self, images: np.ndarray) -> Predictions:
        """Return the predictions on some images, by index or by mask (N,)."""
        return Predictions(*(column[images] for column in self))


class Sums(NamedTuple):
    """Sums over images: (…,) each, by class (…, K); t is the target, p the prediction."""

    images: Floats
    hits: Floats
    t: Floats
    tt: Floats
    p: Floats
    pp: Floats
    squared: Floats  # (t - p)²
    true: Floats  # by class: its images
    found: Floats  # by class: its images that are predicted as the class
    predicted: Floats  # by class: all images that are predicted as the class
    # placements (see `statistics.placements`); NaN without probabilities
    referable_above: Floats = np.array(np.nan)
    referable_below: Floats = np.array(np.nan)
    above: Floats = np.array(np.nan)
    below: Floats = np.array(np.nan)


def sums_of_counts(counts: np.ndarray) -> Sums:
    """Return the sums that follow from a confusion matrix (K, K), rows true."""
    counts = counts.astype(float)
    classes, true, predicted = np.arange(len(counts)), counts.sum(axis=1), counts.sum(axis=0)
    squared = np.sum(counts * np.subtract.outer(classes, classes) ** 2)
    by_target = (true @ classes, true @ classes**2, predicted @ classes, predicted @ classes**2)
    return Sums(counts.sum(), counts.trace(), *by_target, squared, true, counts.diagonal(), predicted)


def _counts_of(predictions: Predictions) -> np.ndarray:
    targets, classes, probabilities = predictions
    return statistics.confusion_matrix(targets, classes, probabilities.shape[1])


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score.

    `from_sums` or `from_predictions` is required. With `from_sums`, thousands of resampled test sets cost one matrix
    product; without it, each resample is scored separately, which is slower. Some scores have both: `from_sums` is
    then an approximation, or rounds differently from published values.

    Attributes:
        title: heading of the score's column.
        meaning: one sentence for the glossary.
        from_sums: sums (…,) or (…, K) → scores (…,).
        from_predictions: predictions on N images → score.
        torchmetric: class of torchmetrics.classification or `resnet_lab.metrics` for jobs; empty: jobs use the
            functions above.
        options: arguments of that class, besides the number of classes.
        of_probabilities: whether that class needs probabilities instead of predicted classes.
        stored: whether jobs compute the score; otherwise only the report does.
        each_epoch: whether a job also computes the score on train in each epoch.
        shown: displays that include the score by default: `leaderboard`, `log` (the line of an epoch), `terminal` (the
            table at the end of a job).
        percent: whether the score is shown in percent.
        lower: smallest possible value.
        upper: largest possible value; infinite: intervals are symmetric.
        falls: whether smaller is better.
        needs: `order`: the classes must be grades; `referable`: some grades must be referable.
        two_classes: whether the score is meaningless on images of one class.
        by_class: whether the score has no interval if a class has few images.
        share: whether the score is a share of the images, so that Wilson's interval applies directly.
        error: counts of images by class (K,) → cost of a typical error, as a share of the range.
        pseudo: errors added to the observed errors: the more errors differ in cost, the more are added.
    """

    title: str
    meaning: str = ""
    from_sums: Callable[[Sums], Floats] | None = None
    from_predictions: Callable[[Predictions], float] | None = None
    torchmetric: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    of_probabilities: bool = False
    stored: bool = True
    each_epoch: bool = False
    shown: tuple[str, ...] = ()
    percent: bool = False
    lower: float = 0.0
    upper: float = 1.0
    falls: bool = False
    needs: Literal["", "order", "referable"] = ""
    two_classes: bool = False
    by_class: bool = False
    share: bool = False
    error: Callable[[Floats], float] = lambda counts: 1 / float(counts.sum())
    pseudo: float = 0.5

    @property
    def label(self) -> str:
        """The title within a sentence."""
        return self.title.removesuffix(" %")

    @property
    def factor(self) -> int:
        """The factor of displayed values."""
        return 100 if self.percent else 1

    @property
    def digits(self) -> int:
        """The number of displayed decimals."""
        return 2 if self.percent else 3

    @property
    def unit(self) -> str:
        """The unit of a difference."""
        return " points" if self.percent else ""

    @property
    def range(self) -> float:
        """The largest value minus the smallest; 1 if infinite."""
        return self.upper - self.lower if math.isfinite(self.upper - self.lower) else 1.0

    @property
    def keeps_predictions(self) -> bool:
        """Whether a job must keep every prediction to compute the score."""
        return self.of_probabilities or (not self.torchmetric and self.from_sums is None)

    def means_something(self, ordered: bool, num_classes: int) -> bool:
        """Return whether the score applies to these classes."""
        return not self.needs or (ordered and (self.needs == "order" or num_classes > REFERABLE))

    def of(self, predictions: Predictions, counts: np.ndarray | None = None) -> float:
        """Return the score of a model's predictions; `counts` is their confusion matrix (K, K), if it is known."""
        if self.from_predictions is not None:
            return float(self.from_predictions(predictions))
        return self.of_counts(_counts_of(predictions) if counts is None else counts)

    def of_counts(self, counts: np.ndarray) -> float:
        """Return the score of a confusion matrix (K, K), rows true."""
        assert self.from_sums is not None
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.from_sums(sums_of_counts(counts)))

    def text(self, value: float, std: float = math.nan) -> str:
        """Return a value as text, with its standard deviation if there is one."""
        if math.isnan(value):
            return ABSENT
        shown = round(self.factor * value, self.digits) + 0.0  # no -0.000
        return f"{shown:.{self.digits}f}".replace("-", MINUS) + (
            "" if math.isnan(std) else f" ± {self.factor * std:.{self.digits}f}"
        )

    def difference(self, value: float) -> str:
        """Return a difference as text, with its sign."""
        return f"{self.factor * value + 0.0:+.{self.digits}f}".replace("-", MINUS)


# by class, (…, K) each; a division by 0 counts as 0, as in torchmetrics


def _precision(sums: Sums) -> Floats:
    return np.nan_to_num(sums.found / sums.predicted)


def _recall(sums: Sums) -> Floats:
    return np.nan_to_num(sums.found / sums.true)


def _f1(sums: Sums) -> Floats:
    return np.nan_to_num(2 * sums.found / (sums.true + sums.predicted))


def _macro(by_class: Callable[[Sums], Floats]) -> Callable[[Sums], Floats]:
    """Return the mean over the classes that occur or are predicted."""
    return lambda sums: by_class(sums).sum(axis=-1) / np.count_nonzero(sums.true + sums.predicted, axis=-1)


def _weighted(by_class: Callable[[Sums], Floats]) -> Callable[[Sums], Floats]:
    """Return the mean over the classes, weighted by their images."""
    return lambda sums: (by_class(sums) * sums.true).sum(axis=-1) / sums.true.sum(axis=-1)


def mean(values: Floats) -> Floats:
    """Return the mean of the defined values over the last axis; NaN if there are none."""
    defined = np.isfinite(values)
    found: Floats = np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)
    return found


def _specificity(sums: Sums) -> Floats:
    """Return the share of other images that are not predicted as the class; NaN if it never occurs nor is predicted."""
    others = sums.images[..., None] - sums.true
    share = (others - sums.predicted + sums.found) / others
    return np.where(sums.true + sums.predicted > 0, share, np.nan)


def _kappa(sums: Sums) -> Floats:
    """Return the same as `statistics.quadratic_weighted_kappa`."""
    n, t, p = sums.images, sums.t, sums.p
    expected = n * sums.tt - t**2 + n * sums.pp - p**2 + (t - p) ** 2  # times n²: exact, as counts are whole numbers
    return 1 - n * sums.squared / np.where(expected > 0, expected, np.nan)


def _matthews(sums: Sums) -> Floats:
    """Return the correlation of targets and predictions for K classes (Gorodkin 2004); 0 for a constant predictor.

    NaN if all images are of one class.
    """
    covariance = sums.hits * sums.images - (sums.true * sums.predicted).sum(axis=-1)
    targets, predictions = (sums.images**2 - (each**2).sum(axis=-1) for each in (sums.true, sums.predicted))
    of_one_class = np.where(targets > 0, 0.0, np.nan)
    return np.where(predictions > 0, covariance / np.sqrt(targets * predictions), of_one_class)


def _referable_area(sums: Sums) -> Floats:
    referred = sums.true[..., REFERABLE:].sum(axis=-1)
    values: Floats = sums.referable_above / referred + sums.referable_below / (sums.images - referred)
    return values


# cost of an error, from the images of each class (K,)


def _of_its_class(counts: np.ndarray) -> float:
    """Return the mean over the classes of 1 / images of the class, for one class of K."""
    present = counts[counts > 0]
    return float(np.mean(1 / present)) / len(present)


def _of_other_classes(counts: np.ndarray) -> float:
    """Return the mean over the classes of 1 / images of other classes, for one class of K."""
    present = counts[counts > 0]
    return float(np.mean(1 / np.maximum(counts.sum() - present, 1))) / len(present)


def _of_pairs(positives: Floats, negatives: Floats) -> Floats:
    """Return the cost of one ranking error, close to the variance of an area by Hanley and McNeil (1982)."""
    return AREA * (1 / np.maximum(positives, 1) + 1 / np.maximum(negatives, 1))


def _of_areas(counts: np.ndarray) -> float:
    present, images = counts[counts > 0], counts.sum()
    # the areas of two classes are identical
    return float(np.mean(_of_pairs(present, images - present))) / max(len(present) - 1, 1)


def _of_referable_area(counts: np.ndarray) -> float:
    referred = counts[REFERABLE:].sum()
    return float(_of_pairs(referred, counts.sum() - referred))


def _averages(name: str, title: str, by_class: Callable[[Sums], Floats], torchmetric: str) -> dict[str, Score]:
    """Return the macro and the weighted mean of a score by class."""
    return {
        f"{name}_macro": Score(
            title=f"{title}, macro",
            from_sums=_macro(by_class),
            torchmetric=torchmetric,
            options={"average": "macro"},
            shown=("terminal",) * (name == "f1"),
            by_class=True,
            error=_of_its_class,
            pseudo=2.0,
        ),
        f"{name}_weighted": Score(
            title=f"{title}, weighted",
            from_sums=_weighted(by_class),
            torchmetric=torchmetric,
            options={"average": "weighted"},
            each_epoch=name == "f1",
            shown=("terminal",) * (name == "f1"),
            share=name == "recall",  # its weighted mean is accuracy
        ),
    }


# in the order of the leaderboard's columns
SCORES: dict[str, Score] = {
    "qwk": Score(
        title="QWK",
        meaning="Quadratic weighted kappa: agreement beyond chance; far errors cost more (1: perfect, 0: chance).",
        from_sums=_kappa,
        from_predictions=lambda predictions: statistics.quadratic_weighted_kappa(
            predictions.targets, predictions.classes
        ),
        torchmetric="MulticlassCohenKappa",
        options={"weights": "quadratic"},
        each_epoch=True,
        shown=("leaderboard", "log", "terminal"),
        lower=-1.0,
        needs="order",
        two_classes=True,
        pseudo=1.3,
    ),
    "accuracy": Score(
        title="accuracy %",
        meaning="The share of correct predictions.",
        from_sums=lambda sums: sums.hits / sums.images,
        from_predictions=lambda predictions: statistics.accuracy(predictions.targets, predictions.classes),
        torchmetric="MulticlassAccuracy",
        options={"average": "micro"},
        each_epoch=True,
        shown=("leaderboard", "log", "terminal"),
        percent=True,
        share=True,
    ),
    "balanced_accuracy": Score(
        title="balanced acc. %",
        meaning="The mean of the recalls of all classes; rare classes count as much as frequent ones.",
        from_sums=lambda sums: mean(sums.found / sums.true),
        from_predictions=lambda predictions: statistics.balanced_accuracy(predictions.targets, predictions.classes),
        torchmetric="BalancedAccuracy",
        each_epoch=True,
        shown=("leaderboard", "log", "terminal"),
        percent=True,
        by_class=True,
        error=_of_its_class,
        pseudo=2.0,
    ),
    "auroc": Score(
        title="AUROC",
        meaning="Area under the ROC curve of each class against the others, averaged (1: perfect, 0.5: guessing).",
        # exact on the complete test set; in a resample, a first-order expansion in the weights (DeLong et al. 1988)
        from_sums=lambda sums: mean(sums.above / sums.true + sums.below / (sums.images[..., None] - sums.true)),
        from_predictions=lambda predictions: statistics.auroc(predictions.targets, predictions.probabilities),
        torchmetric="MacroAUROC",
        options={"average": None},
        of_probabilities=True,
        shown=("leaderboard", "terminal"),
        two_classes=True,
        by_class=True,
        error=_of_areas,
        pseudo=1.0,
    ),
    **_averages("f1", "F1", _f1, "MulticlassF1Score"),
    **_averages("precision", "precision", _precision, "MulticlassPrecision"),
    **_averages("recall", "recall", _recall, "MulticlassRecall"),
    "specificity_macro": Score(
        title="specificity, macro",
        meaning="For each class, the share of the other images that is not predicted as this class; averaged.",
        from_sums=lambda sums: mean(_specificity(sums)),
        error=_of_other_classes,
    ),
    "matthews": Score(
        title="Matthews corr.",
        meaning="The correlation of true and predicted classes (1: perfect, 0: chance).",
        from_sums=_matthews,
        lower=-1.0,
        two_classes=True,
        pseudo=1.3,
    ),
    "referable_auroc": Score(
        title="AUROC, referable",
        meaning="AUROC of the referable grades against the others.",
        from_sums=_referable_area,
        from_predictions=lambda predictions: statistics.referable_auroc(predictions.targets, predictions.probabilities),
        stored=False,
        needs="referable",
        error=_of_referable_area,
        pseudo=1.0,
    ),
}


def stored_scores(num_classes: int, ordered: bool) -> dict[str, Score]:
    """Return the scores that a job computes for these classes."""
    return {
        name: score for name, score in SCORES.items() if score.stored and score.means_something(ordered, num_classes)
    }


def mode_of(metric: str) -> Literal["min", "max"]:
    """Return `min` if a smaller value is better, such as a loss, else `max`."""
    name = metric.rpartition("/")[2]
    return "min" if name == "loss" or (name in SCORES and SCORES[name].falls) else "max"


def summary_of(predictions: Predictions) -> dict[str, float]:
    """Return every score of a model's predictions."""
    counts = _counts_of(predictions)
    return {name: score.of(predictions, counts) for name, score in SCORES.items()}


def majority_baseline(targets: np.ndarray, majority: int, num_classes: int) -> dict[str, float]:
    """Return the scores of a model that always predicts the class `majority`, on targets (N,).

    `majority` must be the largest class of the training images, since a model cannot know that of `targets`.
    """
    constant = np.full_like(targets, majority)
    return summary_of(Predictions(targets, constant, np.eye(num_classes)[constant]))
