"""Calibration of probabilities, temperature scaling, and operating points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize

from resnet_lab import statistics
from resnet_lab.scores import Predictions

BINS = 10
COLDEST, HOTTEST = 0.05, 20.0  # range in which a temperature is searched
TARGETS = {"high sensitivity": 0.975, "high specificity": 0.981}  # as in Gulshan et al. 2016
SMALLEST = 1e-12  # lower bound of a stored probability before its logarithm


class Reliability(NamedTuple):
    """Mean confidence, accuracy, and number of images by bin of confidence; (B,) each."""

    confidence: np.ndarray
    accuracy: np.ndarray
    images: np.ndarray


def reliability(predictions: Predictions, bins: int = BINS) -> Reliability:
    """Return accuracy by confidence (the largest probability), in bins of equal width.

    Empty bins have NaN.
    """
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.targets
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as in Guo et al. 2017
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights.astype(float), bins) / images for weights in (confidence, right)]
    return Reliability(means[0], means[1], images)


def calibration_error(predictions: Predictions, bins: int = BINS) -> float:
    """Return the expected calibration error: |confidence - accuracy|, averaged over images (Naeini et al. 2015)."""
    found = reliability(predictions, bins)
    gap = np.nan_to_num(np.abs(found.confidence - found.accuracy))
    return float(np.sum(found.images * gap) / found.images.sum())


def temperature(predictions: Predictions) -> float:
    """Return the T that minimizes the negative log-likelihood of softmax(log p / T) (Guo et al. 2017).

    The search covers `COLDEST` to `HOTTEST`; T = 1 changes nothing.
    """
    logits = _logits(predictions)
    true = float(np.mean(logits[predictions.targets, np.arange(logits.shape[1])]))

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(np.log(np.sum(np.exp(scale * logits), axis=0))) - scale * true)

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded").x))


def _logits(predictions: Predictions) -> np.ndarray:
    """Return logits (K, N); the largest of each image is 0."""
    values: np.ndarray = np.log(np.maximum(predictions.probabilities.T, SMALLEST))
    values -= values.max(axis=0)
    return values


def temperature_scaled(predictions: Predictions, temperature: float) -> Predictions:
    """Return the predictions with temperature-scaled probabilities; the predicted classes stay."""
    scaled = np.exp(_logits(predictions) / temperature)
    scaled /= scaled.sum(axis=0)
    return predictions._replace(probabilities=scaled.T)


class OperatingPoint(NamedTuple):
    """A threshold on the probability of the referable grades, with its sensitivity and specificity."""

    threshold: float
    sensitivity: float
    specificity: float


def referable(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each image is referable (N,), and the probability of that (N,)."""
    return statistics.referable(predictions.targets, predictions.probabilities)


def thresholds(validation: Predictions) -> dict[str, float]:
    """Return the threshold of each operating point, chosen on validation; empty if validation has only one kind.

    High sensitivity: the highest threshold that finds at least 97.5 % of the referable images. High specificity: the
    lowest threshold that refers at most 1.9 % of the other images.
    """
    positive, probability = referable(validation)
    if positive.all() or not positive.any():
        return {}
    found, false_alarms, cuts = statistics.threshold_counts(positive, probability)
    sensitive = cuts[np.argmax(found / found[-1] >= TARGETS["high sensitivity"])]
    # a threshold above all scores refers no image
    specific = np.append(np.inf, cuts)[np.sum(1 - false_alarms / false_alarms[-1] >= TARGETS["high specificity"])]
    return dict(zip(TARGETS, map(float, (sensitive, specific)), strict=True))


def operate(predictions: Predictions, threshold: float) -> OperatingPoint:
    """Return sensitivity and specificity of a threshold on these images; NaN without images of that kind."""
    positive, probability = referable(predictions)
    called = probability >= threshold
    with np.errstate(invalid="ignore"):
        sensitivity = np.sum(called & positive) / np.sum(positive)
        specificity = np.sum(~called & ~positive) / np.sum(~positive)
    return OperatingPoint(threshold, float(sensitivity), float(specificity))
