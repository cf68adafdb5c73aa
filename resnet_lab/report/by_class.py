"""Scores of single classes and of thresholds, with intervals over images and patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_lab.report.intervals import Interval, wilson
from resnet_lab.report.resampling import cells_by_patient
from resnet_lab.scores import Predictions
from resnet_lab.statistics import MANY_CLASSES

DISTANCES = ("right", "one grade off", "two grades off", "three or more")


class Share(NamedTuple):
    """A share with its 95 % interval; NaN if its denominator is 0."""

    value: float
    interval: Interval


NOTHING = Share(np.nan, Interval(np.nan, np.nan))


class ClassRow(NamedTuple):
    """Precision, recall and F1 of one class in a group."""

    name: str
    images: int
    precision: Share
    recall: Share
    f1: Share


def class_rows(runs: Sequence[Predictions], patient: np.ndarray, class_names: Sequence[str]) -> list[ClassRow]:
    """Return precision, recall and F1 of each class, from the sums over the runs of a group.

    Many classes are sorted by recall, lowest first. F1 is 2 J / (1 + J), where J is the Jaccard index: the share of
    found images among those of the class or predicted as it. The limits of F1 follow from those of J.

    Args:
        runs: predictions on the same N images.
        patient: the patient of each image (N,), integers from 0 to P - 1.
        class_names: K names.
    """
    # (P, K) each: means over the runs
    found, true, predicted = np.mean([cells_by_patient(predictions, patient) for predictions in runs], axis=0)
    rows = []
    for k, name in enumerate(class_names):
        jaccard = share_of(found[:, k], true[:, k] + predicted[:, k] - found[:, k])
        f1 = Share(_f1(jaccard.value), Interval(*map(_f1, jaccard.interval)))
        if not true[:, k].any():
            f1 = NOTHING  # as recall
        precision, recall = share_of(found[:, k], predicted[:, k]), share_of(found[:, k], true[:, k])
        rows.append(ClassRow(str(name), round(true[:, k].sum()), precision, recall, f1))
    return sorted(rows, key=lambda row: np.nan_to_num(row.recall.value, nan=2)) if len(rows) > MANY_CLASSES else rows


class Confusion(NamedTuple):
    """Images of one class that are predicted as another."""

    true: str
    predicted: str
    share: float  # of the images of the true class
    images: int  # over all runs of the group


def confusions_of(counts: np.ndarray, class_names: Sequence[str], most: int = 10) -> list[Confusion]:
    """Return the most frequent errors of a confusion matrix (K, K), the largest share of the true class first."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * (1 - np.eye(len(counts)))
    order = np.argsort(-shares, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(counts)) for place in order]
    return [
        Confusion(str(class_names[i]), str(class_names[j]), float(shares[i, j]), int(counts[i, j]))
        for i, j in places
        if shares[i, j] > 0
    ]


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def share_of(part: np.ndarray, whole: np.ndarray) -> Share:
    """Return sum(part) / sum(whole) of sums by patient (P,), with Wilson's interval (1927).

    Correlated images of a patient lower the effective number of images (Korn and Graubard 1998). It never exceeds the
    number of images, although a mean over seeds is slightly more precise.
    """
    total = float(whole.sum())
    if total == 0:
        return NOTHING
    value = float(part.sum()) / total
    patients = int(np.count_nonzero(whole))
    influence = (part - value * whole)[whole > 0] / total
    variance = float(np.sum(influence**2))
    size = min(total, value * (1 - value) / variance if variance else patients)
    return Share(value, wilson(value, size))


def shares_by_distance(runs: Sequence[Predictions], patient: np.ndarray) -> list[tuple[str, Share]]:
    """Return the shares of images that are right, one class off, two, and three or more; at most K for K classes.

    Args:
        runs: predictions on the same N images.
        patient: the patient of each image (N,), integers from 0 to P - 1.
    """
    classes = runs[0].probabilities.shape[1]
    off = np.stack([np.minimum(np.abs(predictions.targets - predictions.classes), 3) for predictions in runs])
    whole = by_patient(np.ones_like(patient), patient)
    return [
        (name, share_of(by_patient((off == steps).mean(axis=0), patient), whole))
        for steps, name in enumerate(DISTANCES[:classes])
    ]


def by_patient(marked: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Return the number of marked images (N,) of each patient (P,); marks may be fractions."""
    return np.bincount(patient, marked.astype(float))
