"""Scores of thousands of resampled test sets at once: each score is a formula of sums over patients (numpy only).

A bootstrap over patients draws P of P patients with replacement, R times, and scores each draw. Every score here is a
function of sums over images, so a draw costs one row of a matrix product: counts (R, P) @ sums by patient (P, F).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resnet_lab.statistics import REFERABLE, averages_of, placements, referable

MOMENTS = 9  # sums that do not depend on the number of classes: images, hits, t, t², p, p², (t - p)², referable areas


class Answers(NamedTuple):
    """What one model answered on N images."""

    targets: np.ndarray  # (N,)
    predictions: np.ndarray  # (N,)
    probabilities: np.ndarray  # (N, K)


class ClassSums(NamedTuple):
    """Sums by class, each (…, K), of which precision, recall and F1 are made."""

    found: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def counts_of_patients(patients: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each patient is in each of the draws with replacement: counts (R, P), rows adding up to P."""
    chosen = np.random.default_rng(seed).integers(patients, size=(draws, patients))
    chosen += np.arange(draws)[:, None] * patients
    return np.bincount(chosen.ravel(), minlength=draws * patients).reshape(draws, patients).astype(np.float32)


def sums_by_patient(answers: Answers, patient: np.ndarray) -> np.ndarray:
    """The sums (P, F) that `scores_of` and `class_sums` need, F = 9 + 5 K.

    Args:
        answers: of N images.
        patient: the patient of each image (N,), integers from 0 to P - 1, all of which occur.
    """
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=-1))
    return np.add.reduceat(_terms(answers)[order], starts, axis=0)


def _terms(answers: Answers) -> np.ndarray:
    """What each image adds to the sums, (N, F)."""
    t, p = answers.targets.astype(float), answers.predictions.astype(float)
    classes = np.arange(answers.probabilities.shape[1])
    true, predicted = answers.targets[:, None] == classes, answers.predictions[:, None] == classes
    moments = np.stack([np.ones_like(t), t == p, t, t**2, p, p**2, (t - p) ** 2], axis=1)
    referred, probability = referable(answers.targets, answers.probabilities)
    areas = placements(referred[:, None], probability[:, None])
    by_class = placements(true, answers.probabilities)
    return np.hstack([moments, *areas, true, true & predicted, predicted, *by_class])


def scores_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of `statistics.summary_of`, each (…,), from totals (…, F) over the patients of a draw.

    On the whole test set they are the same, exactly. In a resample AUROC is its first-order
    expansion in the weights (the placements of DeLong et al. 1988), the others are exact. A class of which a draw holds
    no image does not count in it.
    """
    count, hits, t, tt, p, pp, squared, upper, lower = np.moveaxis(sums[..., :MOMENTS], -1, 0)
    found, true, predicted = class_sums(sums)
    above, below = np.split(sums[..., MOMENTS:], 5, axis=-1)[3:]
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = tt / count - (t / count) ** 2 + pp / count - (p / count) ** 2 + ((t - p) / count) ** 2
        areas = above / true + below / (count[..., None] - true)
        referred = true[..., REFERABLE:].sum(axis=-1)
        return {
            "accuracy": hits / count,
            "balanced_accuracy": _mean(found / true),
            "qwk": 1 - squared / count / np.where(expected > 0, expected, np.nan),
            "auroc": _mean(areas),
            "referable_auroc": upper / referred + lower / (count - referred),
            **averages_of(found, true, predicted),
        }


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without what is undefined; NaN where all is."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


def class_sums(sums: np.ndarray) -> ClassSums:
    """Images found, true and predicted by class from totals (…, F)."""
    true, found, predicted = np.split(sums[..., MOMENTS:], 5, axis=-1)[:3]
    return ClassSums(found, true, predicted)
