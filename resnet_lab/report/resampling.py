"""Scores of thousands of resampled test sets at once, from sums over patients (numpy only).

A bootstrap over patients draws P of P patients with replacement, R times, and scores each draw. Every score here is a
function of sums over images. Therefore a draw costs one row of a matrix product: counts (R, P) @ sums (P, F).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from resnet_lab.scores import SCORES, Predictions, Sums
from resnet_lab.statistics import placements, referable

MOMENTS = 9  # sums that do not depend on the number of classes: images, hits, t, t², p, p², (t - p)², referable areas


def counts_of_patients(patients: int, draws: int, seed: int = 0) -> np.ndarray:
    """Return how often each patient is in each draw with replacement: counts (R, P), each row has the sum P."""
    chosen = np.random.default_rng(seed).integers(patients, size=(draws, patients))
    chosen += np.arange(draws)[:, None] * patients
    return np.bincount(chosen.ravel(), minlength=draws * patients).reshape(draws, patients).astype(np.float32)


def sums_by_patient(predictions: Predictions, patient: np.ndarray) -> np.ndarray:
    """Return the sums (P, F) by patient, F = 9 + 5 K, in the order of `sums_of`.

    Args:
        predictions: predictions on N images.
        patient: the patient of each image (N,), all integers from 0 to P - 1.
    """
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=-1))
    return np.add.reduceat(_terms(predictions)[order], starts, axis=0)


def _terms(predictions: Predictions) -> np.ndarray:
    """Return the contribution of each image to the sums, (N, F)."""
    t, p = predictions.targets.astype(float), predictions.classes.astype(float)
    classes = np.arange(predictions.probabilities.shape[1])
    true, predicted = predictions.targets[:, None] == classes, predictions.classes[:, None] == classes
    moments = np.stack([np.ones_like(t), t == p, t, t**2, p, p**2, (t - p) ** 2], axis=1)
    referred, probability = referable(predictions.targets, predictions.probabilities)
    areas = placements(referred[:, None], probability[:, None])
    by_class = placements(true, predictions.probabilities)
    return np.hstack([moments, *areas, true, true & predicted, predicted, *by_class])


def sums_of(totals: np.ndarray) -> Sums:
    """Return totals (…, F) over the patients of a draw as named sums."""
    moments = tuple(np.moveaxis(totals[..., :MOMENTS], -1, 0))
    by_class = tuple(np.split(totals[..., MOMENTS:], 5, axis=-1))
    return Sums(*moments[:7], *by_class[:3], *moments[7:], *by_class[3:])


def scores_of(totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return every score with a formula of sums, each (…,), from totals (…, F) over the patients of a draw.

    On the whole test set, they equal `scores.summary_of` exactly. In a resample, areas are first-order expansions in
    the weights (the placements of DeLong et al. 1988); other scores are exact. A draw ignores classes that it lacks.
    """
    sums = sums_of(totals)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: score.from_sums(sums) for name, score in SCORES.items() if score.from_sums}


def drawn_predictions(predictions: Predictions, patient: np.ndarray, counts: np.ndarray) -> Iterator[Predictions]:
    """Yield the predictions of each draw, for scores without a formula of sums.

    Args:
        predictions: predictions on N images.
        patient: the patient of each image (N,).
        counts: how often each patient is in each draw (R, P).
    """
    for row in counts:
        images = np.repeat(np.arange(len(patient)), row[patient].astype(int))
        yield predictions.of(images)
