"""Objectives: probabilities, decisions, and the fit on validation images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from resnet_lab import statistics
from resnet_lab.evaluate import evaluate_split, load
from resnet_lab.objectives import LEAST_WIDTH, SquaredError, mse
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]

CHOICES = ("loss=mse", "trainer.max_epochs=2", "optim.lr=0.01", "trainer.precision=32-true")


@pytest.fixture
def objective() -> SquaredError:
    found = mse([7, 1, 2, 3])
    found.width.fill_(0.6)
    return found


def test_probabilities_are_those_of_a_gaussian_between_the_midpoints(objective: SquaredError) -> None:
    outputs = torch.tensor([[1.2], [-3.0], [9.0]])
    found = objective.probabilities(outputs)
    assert found.shape == (3, 4)
    for row, mean in zip(found.tolist(), outputs[:, 0].tolist(), strict=True):
        below = stats.norm(mean, 0.6).cdf([-np.inf, 0.5, 1.5, 2.5, np.inf])
        assert row == pytest.approx(np.diff(below), abs=1e-6)


def test_the_nearest_grade_is_the_median_of_the_probabilities_and_need_not_be_the_most_probable() -> None:
    objective = mse([1] * 4)
    objective.width.fill_(2.0)
    outputs = torch.linspace(-2, 5, 500)[:, None]
    nearest = outputs[:, 0].round().clamp(0, 3)
    assert torch.equal(objective.decide(outputs), nearest.long())
    probabilities = objective.probabilities(outputs).numpy()
    assert (statistics.decisions(probabilities, objective.decision) == nearest.numpy()).all()
    assert (statistics.decisions(probabilities, "argmax") != nearest.numpy()).any()


def test_the_width_is_the_root_of_the_mean_squared_error(objective: SquaredError) -> None:
    outputs, targets = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64), torch.tensor([0, 1, 4])
    objective.fit(outputs, targets)
    assert float(objective.width) == pytest.approx(np.sqrt((0.25 + 0 + 4) / 3))
    objective.fit(targets[:, None].double(), targets)
    assert float(objective.width) == pytest.approx(LEAST_WIDTH)


def rms_of(run: RunFolder, split: str) -> float:
    """Return the width of the errors on a split from the stored probabilities, by the median of each Gaussian."""
    stored = pd.read_csv(run.predictions_file(split))
    probabilities, targets = stored.filter(like="p_").to_numpy(), stored["target"].to_numpy()
    width = float(torch.load(run.best_checkpoint, weights_only=True)["state_dict"]["loss.width"])
    outputs = 0.5 - width * stats.norm.ppf(probabilities[:, 0])
    return float(np.sqrt(np.mean((outputs - targets) ** 2)))


@pytest.fixture
def trained(make_run: MakeRun) -> RunFolder:
    run = make_run(*CHOICES)
    assert guarded(run) == 0
    return run


def test_a_grade_as_a_number_is_trained_fitted_checked_and_evaluated(trained: RunFolder) -> None:
    assert trained.read_status()["decision"] == "median"
    checkpoint = torch.load(trained.best_checkpoint, weights_only=True)
    assert checkpoint["resnet_lab"]["decision"] == "median"
    width = float(checkpoint["state_dict"]["loss.width"])
    assert width == pytest.approx(rms_of(trained, "val"), abs=1e-4)
    assert differences_of([read_run(trained)]) == []
    model = load(str(trained.path))
    _, module, _ = evaluate_split(model, model.origin["config"], "test")
    stored = pd.read_csv(trained.predictions_file("test"))
    assert module.predictions["test"].classes.tolist() == stored["prediction"].tolist()
    assert module.predictions["test"].probabilities == pytest.approx(stored.filter(like="p_").to_numpy(), abs=1e-6)


def test_the_check_follows_the_decision(trained: RunFolder) -> None:
    stored = {split: pd.read_csv(trained.predictions_file(split)) for split in ("val", "test")}
    probable = {split: each.filter(like="p_").to_numpy().argmax(axis=1) for split, each in stored.items()}
    trained.update_status(decision="argmax")
    differs = [line for line in differences_of([read_run(trained)]) if "is not the most probable class" in line]
    assert len(differs) == sum((probable[split] != stored[split]["prediction"]).any() for split in stored)
    trained.update_status(decision="dice")
    assert any("'dice' is unknown" in line for line in differences_of([read_run(trained)]))
    trained.update_status(decision="median")
    wrong = stored["test"].assign(prediction=(stored["test"]["prediction"] + 1) % 5)
    wrong.to_csv(trained.predictions_file("test"), index=False)
    assert any("the prediction is not the median class" in line for line in differences_of([read_run(trained)]))


class Killed(BaseException):
    """Ends a job like kill -9."""


def test_a_kill_after_the_fit_repeats_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, trained: RunFolder
) -> None:
    run = make_run("loss=mse", "trainer.max_epochs=2", "optim.lr=0.01", "trainer.precision=32-true", name="killed")

    def dies(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("resnet_lab.training.write_split", dies)
        with pytest.raises(Killed):
            guarded(run)
    assert guarded(run) == 0
    assert run.predictions_file("test").read_text() == trained.predictions_file("test").read_text()
    states = [torch.load(each.best_checkpoint, weights_only=True)["state_dict"] for each in (run, trained)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_without_validation_the_width_is_that_of_the_training_images(make_run: MakeRun) -> None:
    run = make_run("loss=mse", "trainer.max_epochs=1", "data.val_fraction=0", "trainer.precision=32-true")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SquaredError, "fit", lambda self, outputs, targets: seen.append((outputs, targets)))
        assert guarded(run) == 0
    assert [(outputs.shape, outputs.dtype) for outputs, _ in seen] == [((len(seen[0][1]), 1), torch.float64)]
    assert len(seen[0][1]) == sum(run.read_status()["class_counts"]["train"])


def test_an_objective_is_fitted_after_each_epoch_and_before_the_test(make_run: MakeRun) -> None:
    run, seen = make_run("loss=mse", "trainer.max_epochs=2"), []

    def fit(self: SquaredError, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        seen.append(len(targets))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SquaredError, "fit", fit)
        assert guarded(run) == 0
        model = load(str(run.path))
        evaluate_split(model, model.origin["config"], "val")  # another evaluation fits nothing
    assert seen == [sum(run.read_status()["class_counts"]["val"])] * 3


def test_cross_entropy_needs_no_fit(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=1")
    assert guarded(run) == 0
    assert run.read_status()["decision"] == "argmax"
    assert not [key for key in torch.load(run.best_checkpoint, weights_only=True)["state_dict"] if "loss" in key]
