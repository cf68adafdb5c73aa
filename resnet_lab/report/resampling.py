"""Scores of thousands of resampled test sets at once, from sums over patients (numpy only).

A bootstrap over patients draws P of P patients with replacement, R times, and scores each draw. Every score here is a
function of sums over images. Therefore a draw costs one row of a matrix product: counts (R, P) @ sums (P, F).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

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
    targets, classes, probabilities = predictions
    found, true, predicted = cells_by_patient(predictions, patient)
    grades = np.arange(probabilities.shape[1])
    of_classes = [found.sum(axis=1), true @ grades, true @ grades**2, predicted @ grades, predicted @ grades**2]
    moments = [np.bincount(patient), *of_classes, np.bincount(patient, (targets - classes) ** 2)]
    referred, probability = referable(targets, probabilities)
    areas = placements(referred[:, None], probability[:, None])
    by_class = placements(targets[:, None] == grades, probabilities)
    referable_areas, class_areas = (
        [np.bincount(patient, column) for each in pair for column in each.T] for pair in (areas, by_class)
    )
    return np.column_stack([*moments, *referable_areas, true, found, predicted, *class_areas])


def cells_by_patient(predictions: Predictions, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `found`, `true` and `predicted` of `scores.Sums` by patient, (P, K) each; see `sums_by_patient`."""
    targets, classes, probabilities = predictions
    shape = patient.max() + 1, probabilities.shape[1]
    cells = patient * shape[1]
    right = targets == classes
    found, true, predicted = (
        np.bincount(each, minlength=shape[0] * shape[1]).reshape(shape)
        for each in ((cells + targets)[right], cells + targets, cells + classes)
    )
    return found, true, predicted


def sums_of(totals: np.ndarray) -> Sums:
    """Return totals (…, F) over the patients of a draw as named sums."""
    moments = tuple(np.moveaxis(totals[..., :MOMENTS], -1, 0))
    by_class = tuple(np.split(totals[..., MOMENTS:], 5, axis=-1))
    return Sums(*moments[:7], *by_class[:3], *moments[7:], *by_class[3:])


def scores_of(totals: np.ndarray, metrics: Collection[str] = SCORES) -> dict[str, np.ndarray]:
    """Return the scores with a formula of sums, each (…,), from totals (…, F) over the patients of a draw.

    On the complete test set, they equal `scores.summary_of` exactly. In a resample, areas are first-order expansions in
    the weights (the placements of DeLong et al. 1988); other scores are exact. A draw ignores classes that it lacks.
    """
    sums = sums_of(totals)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: score.from_sums(sums) for name, score in SCORES.items() if score.from_sums and name in metrics}


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
