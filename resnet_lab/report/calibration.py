"""Are probabilities what they say, and where to cut them: calibration, temperature, and operating points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize
from sklearn.metrics import roc_curve

from resnet_lab import statistics
from resnet_lab.scores import Predictions

BINS = 10
TARGETS = {"high sensitivity": 0.975, "high specificity": 0.981}  # Gulshan et al. 2016 chose theirs so
SMALLEST = 1e-12  # of a stored probability, before its logarithm is taken


class Reliability(NamedTuple):
    """By bin of confidence: its mean, how often the prediction is right, and the number of images; (B,) each."""

    confidence: np.ndarray
    accuracy: np.ndarray
    images: np.ndarray


def reliability(predictions: Predictions, bins: int = BINS) -> Reliability:
    """How often a prediction is right by its confidence (the largest probability), in bins of equal width.

    Empty bins have NaN.
    """
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.targets
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as Guo et al. 2017
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights.astype(float), bins) / images for weights in (confidence, right)]
    return Reliability(means[0], means[1], images)


def calibration_error(predictions: Predictions, bins: int = BINS) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over the images (Naeini et al. 2015)."""
    found = reliability(predictions, bins)
    gap = np.nan_to_num(np.abs(found.confidence - found.accuracy))
    return float(np.sum(found.images * gap) / found.images.sum())


def temperature(predictions: Predictions) -> float:
    """The T that minimizes the negative log-likelihood of softmax(log p / T) (Guo et al. 2017); 1 changes nothing.

    Looked for between 0.05 and 20.
    """
    logits, rows = _logits(predictions), np.arange(len(predictions.targets))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[rows, predictions.targets]))

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _logits(predictions: Predictions) -> np.ndarray:
    """Logits (N, K) up to a constant a row."""
    values: np.ndarray = np.log(np.maximum(predictions.probabilities, SMALLEST))
    return values


def temperature_scaled(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with probabilities of another temperature; the predicted classes stay."""
    scaled = _logits(predictions) / temperature
    probabilities = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
    return predictions._replace(probabilities=probabilities)


class OperatingPoint(NamedTuple):
    """A threshold on the probability of the referable grades, and what it gives on some images."""

    threshold: float
    sensitivity: float
    specificity: float


def referable(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is to be referred (N,), and the probability of that (N,)."""
    return statistics.referable(predictions.targets, predictions.probabilities)


def thresholds(validation: Predictions) -> dict[str, float]:
    """The threshold of each operating point, chosen on validation.

    High sensitivity is the highest threshold that still finds 97.5 % of those to be referred, high specificity the
    lowest that leaves 98.1 % of the others alone. Empty where validation holds only one kind.
    """
    positive, probability = referable(validation)
    if positive.all() or not positive.any():
        return {}
    false_alarms, found, cuts = roc_curve(positive, probability, drop_intermediate=False)
    sensitive = cuts[np.argmax(found >= TARGETS["high sensitivity"])]
    specific = cuts[np.flatnonzero(1 - false_alarms >= TARGETS["high specificity"])[-1]]
    return dict(zip(TARGETS, map(float, (sensitive, specific)), strict=True))


def operate(predictions: Predictions, threshold: float) -> OperatingPoint:
    """What a threshold gives on these images; NaN where they hold none of a kind."""
    positive, probability = referable(predictions)
    called = probability >= threshold
    with np.errstate(invalid="ignore"):
        sensitivity = np.sum(called & positive) / np.sum(positive)
        specificity = np.sum(~called & ~positive) / np.sum(~positive)
    return OperatingPoint(threshold, float(sensitivity), float(specificity))
