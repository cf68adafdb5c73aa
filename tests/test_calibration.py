"""Calibration and operating points: by hand, and against scikit-learn."""

import numpy as np
import pytest
from fake_predictions import World
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, log_loss

from resnet_lab.report import calibration
from resnet_lab.scores import Predictions


def made(seed: int = 0, patients: int = 400) -> Predictions:
    world = World(np.random.default_rng(seed))
    targets, _, hard = world.patients(patients)
    return world.predictions(targets, hard)


def test_reliability_is_scikit_learns_calibration_curve():
    predictions = made()
    found = calibration.reliability(predictions)
    confidence, right = predictions.probabilities.max(axis=1), predictions.classes == predictions.targets
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    filled = found.images > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], mean)
    assert found.images.sum() == 800
    assert np.isnan(found.accuracy[:2]).all()  # one of five classes has at least 0.2


def test_the_error_is_the_mean_distance_over_images():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.35, 0.65], [0.4, 0.6]])
    predictions = Predictions(np.array([0, 1, 1, 1]), probabilities.argmax(axis=1), probabilities)
    # confidence, accuracy: 0.93, 0.5 in (0.9, 1]; 0.65, 1 in (0.6, 0.7]; 0.6, 1 in (0.5, 0.6]
    assert calibration.calibration_error(predictions) == pytest.approx((2 * 0.43 + 0.35 + 0.4) / 4)


def test_temperature_restores_distorted_probabilities():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 20_000)
    targets = (generator.random((20_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    predictions = Predictions(targets, probabilities.argmax(axis=1), probabilities)
    assert calibration.temperature(predictions) == pytest.approx(1, abs=0.03)
    sharp = calibration.temperature_scaled(predictions, 0.5)
    assert calibration.temperature(sharp) == pytest.approx(2, abs=0.06)
    np.testing.assert_allclose(calibration.temperature_scaled(sharp, 2).probabilities, probabilities, atol=1e-9)
    assert calibration.calibration_error(sharp) > 0.1 > 0.02 > calibration.calibration_error(predictions)


def test_the_temperature_minimizes_scikit_learns_log_loss():
    predictions = made()
    best = calibration.temperature(predictions)
    losses = [
        log_loss(predictions.targets, calibration.temperature_scaled(predictions, best * factor).probabilities)
        for factor in (0.97, 1, 1.03)
    ]
    assert losses[1] == min(losses)


def test_probabilities_of_0_and_1_do_no_harm():
    predictions = Predictions(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([[1.0, 0], [0, 1], [1, 0]]))
    temperature = calibration.temperature(predictions)
    assert 1 < temperature <= 20.01
    assert np.isfinite(calibration.temperature_scaled(predictions, temperature).probabilities).all()


def test_operating_points_reach_their_target_on_validation_only():
    validation, test = made(1), made(2)
    cuts = calibration.thresholds(validation)
    sensitive, specific = (calibration.operate(validation, cuts[name]) for name in calibration.TARGETS)
    assert sensitive.sensitivity >= 0.975
    assert specific.specificity >= 0.981
    positive, probability = calibration.referable(validation)
    stricter = np.min(probability[probability > cuts["high sensitivity"]])
    assert calibration.operate(validation, stricter).sensitivity < 0.975
    looser = np.max(probability[probability < cuts["high specificity"]])
    assert calibration.operate(validation, looser).specificity < 0.981
    frozen = calibration.operate(test, cuts["high sensitivity"])
    positive, probability = calibration.referable(test)
    counts = confusion_matrix(positive, probability >= cuts["high sensitivity"])
    assert frozen.sensitivity == pytest.approx(counts[1, 1] / counts[1].sum())
    assert frozen.specificity == pytest.approx(counts[0, 0] / counts[0].sum())


def test_images_of_one_kind_have_no_operating_point():
    predictions = made()
    healthy = Predictions(*(column[predictions.targets < 2] for column in predictions))
    assert calibration.thresholds(healthy) == {}
    found = calibration.operate(healthy, 0.5)
    assert np.isnan(found.sensitivity)
    assert 0.8 < found.specificity < 1
