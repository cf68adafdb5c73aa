"""Objectives: probabilities, decisions, and the fit on validation images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from fake_data import refusal
from omegaconf import OmegaConf
from scipy import stats

from resnet_lab import statistics
from resnet_lab.compatibility import upgraded
from resnet_lab.config import check, compose_config, named_in_conf
from resnet_lab.evaluate import evaluate_split, load, override
from resnet_lab.launch import create_run
from resnet_lab.objectives import LEAST_WIDTH, Objective, SquaredError, corn, mse, smooth_l1
from resnet_lab.parts import build_objective
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of, metrics_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.signatures import ordinal_losses
from resnet_lab.sweep import jobs_of
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]

COUNTS = [60, 5, 12, 3]
LOGITS = [[-0.7, 1.1, 0.2], [0.4, -2.0, 3.0], [2.5, 0.1, -0.6], [1.3, 2.2, 1.9], [3.0, -0.4, 0.0]]  # of CORN, K = 4
TARGETS = torch.tensor([0, 1, 2, 3, 3])
CHOICES = ("loss=mse", "trainer.max_epochs=2", "optim.lr=0.01", "trainer.precision=32-true")


@pytest.fixture
def objective() -> SquaredError:
    found = mse("none", [7, 1, 2, 3])
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
    objective = mse("none", [1] * 4)
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


def of_loss(loss: str, class_weights: Any = "none") -> Objective:
    """Build the objective of a file of conf/loss, for four classes."""
    node: Any = OmegaConf.to_container(composed((f"loss={loss}",)).loss)
    return build_objective(node | {"class_weights": class_weights}, COUNTS)


def outputs_of(objective: Objective, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return five outputs of a network for an objective with four classes."""
    return torch.tensor([[*row, 0.3] for row in LOGITS], dtype=dtype)[:, : objective.num_outputs]


def test_the_loss_of_corn_is_that_of_dlordinal() -> None:
    """`dlordinal.losses.CORNLoss(4)` of dlordinal 2.7.0 gives these numbers in float64."""
    outputs = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    pairs = 1 + 2 + 3 + 3 + 3  # outputs that each image trains
    loss = corn("none", COUNTS).losses(outputs, TARGETS).sum() / pairs
    loss.backward()
    assert loss.item() == pytest.approx(0.3620109977998898, rel=1e-12)
    assert outputs.grad is not None
    assert outputs.grad[1].tolist() == pytest.approx([-0.033442694990629, 0.00993357683517647, 0], rel=1e-12)
    assert outputs.grad[3].tolist() == pytest.approx(
        [-0.017847084746453447, -0.00831254075997376, -0.010842372863583154], rel=1e-12
    )


def test_corn_by_hand() -> None:
    objective = corn("none", COUNTS)
    steps = 1 / (1 + np.exp(-np.array(LOGITS)))  # P(y > k | y >= k)
    above = np.hstack([np.ones((5, 1)), steps.cumprod(axis=1), np.zeros((5, 1))])
    probabilities = -np.diff(above, axis=1)
    outputs = torch.tensor(LOGITS)
    assert objective.probabilities(outputs).numpy() == pytest.approx(probabilities, abs=1e-6)
    losses = -np.log(probabilities[np.arange(5), TARGETS])
    assert objective.losses(outputs, TARGETS).numpy() == pytest.approx(losses, rel=1e-5)
    assert objective.decide(outputs).tolist() == (above[:, 1:-1] > 0.5).sum(axis=1).tolist() == [0, 1, 1, 3, 1]


def test_the_published_decision_of_corn_is_the_median() -> None:
    objective = corn("none", COUNTS)
    outputs = 3 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    probabilities = objective.probabilities(outputs).numpy()
    assert (statistics.decisions(probabilities, objective.decision) == objective.decide(outputs).numpy()).all()
    assert (statistics.decisions(probabilities, "argmax") != objective.decide(outputs).numpy()).any()


def test_smooth_l1_is_quadratic_then_linear() -> None:
    outputs, targets = torch.tensor([[0.5], [3.0], [2.0]]), torch.tensor([0, 0, 3])
    assert smooth_l1(1.0, "none", COUNTS).losses(outputs, targets).tolist() == [0.125, 2.5, 0.5]
    assert smooth_l1(2.0, "none", COUNTS).losses(outputs, targets).tolist() == [0.0625, 2.0, 0.25]
    assert smooth_l1(0.0, "none", COUNTS).losses(outputs, targets).tolist() == [0.5, 3.0, 1.0]


LOSSES = ("cross_entropy", "mse", "smooth_l1", "corn")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_gradients(loss: str, class_weights: str) -> None:
    objective = of_loss(loss, class_weights).double()
    outputs = outputs_of(objective).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: objective.losses(each, TARGETS), outputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_multiply_the_loss_of_each_image(loss: str) -> None:
    outputs = outputs_of(of_loss(loss), torch.float32)
    plain = of_loss(loss).losses(outputs, TARGETS)
    torch.testing.assert_close(
        of_loss(loss, [1, 2, 0, 0.5]).losses(outputs, TARGETS), plain * torch.tensor([1, 2, 0, 0.5])[TARGETS]
    )
    balanced = of_loss(loss, "balanced").losses(outputs, TARGETS)
    torch.testing.assert_close(balanced, plain * (80 / 4 / torch.tensor(COUNTS, dtype=torch.float32))[TARGETS])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("extreme", [1e4, -1e4, 1e18, -1e18])
def test_extreme_outputs_are_finite_in_bfloat16(loss: str, extreme: float) -> None:
    objective = of_loss(loss, "balanced")
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [-1, 1, 1, 1], [-1, -1, 1, 1]])[:, : objective.num_outputs]
    for target in range(4):
        outputs = (extreme * signs).to(torch.bfloat16).requires_grad_()
        losses = objective.losses(outputs.float(), torch.full((4,), target))  # as a step does
        losses.sum().backward()
        assert outputs.grad is not None
        assert losses.isfinite().all()
        assert outputs.grad.isfinite().all()
    probabilities = objective.probabilities(outputs.detach())
    assert probabilities.dtype == torch.float32
    assert probabilities.sum(1).tolist() == pytest.approx([1] * 4, abs=1e-6)
    assert ((objective.decide(outputs) >= 0) & (objective.decide(outputs) <= 3)).all()


def test_each_loss_is_ordinal_or_not() -> None:
    assert named_in_conf("loss") - ordinal_losses() == {"resnet_lab.objectives.cross_entropy"}
    assert named_in_conf("loss") > ordinal_losses()


FOLDERS = ("data=class_folders", "data.root=folders")


@pytest.mark.parametrize(
    ("loss", "data"), [("mse", ("data=cifar10",)), ("smooth_l1", ("data=flowers102",)), ("corn", FOLDERS)]
)
def test_a_loss_of_grades_needs_ordered_classes(loss: str, data: tuple[str, ...]) -> None:
    config = compose_config([f"loss={loss}", *data])
    message = refusal(check, config)
    assert message.startswith(f"loss={loss} needs ordered classes, but data.ordered=false; set data.ordered=true")
    config.data.ordered = True
    check(config)


def test_a_sweep_with_a_loss_of_grades_is_refused_before_its_first_job() -> None:
    assert "loss=corn needs ordered classes" in refusal(jobs_of, ["-m", "loss=cross_entropy,corn", "data=cifar10"])
    assert len(jobs_of(["-m", "loss=cross_entropy,corn", "data=retinamnist"])) == 2


def test_a_trained_loss_of_grades_can_be_evaluated_without_an_order() -> None:
    config = OmegaConf.to_container(compose_config(["loss=corn"]), resolve=True)
    origin = {"config": config, "class_names": ["a", "b"], "ordered": True}
    assert override(origin, [*FOLDERS, "data.ordered=false"])["data"]["ordered"] is False


def test_a_loss_refuses_keys_without_a_meaning() -> None:
    smoothed = compose_config(["loss=corn", "+loss.label_smoothing=0.1"])
    assert "resnet_lab.objectives.corn takes no such argument" in refusal(check, smoothed)
    other = ["loss=own", "loss._target_=torch.nn.CrossEntropyLoss", "+loss.class_weights=balanced"]
    message = refusal(check, compose_config(other), True)
    assert message.startswith("loss.class_weights: torch.nn.CrossEntropyLoss takes no such argument")


def test_an_older_run_with_mse_has_no_class_weights() -> None:
    older = {"loss": {"_target_": "resnet_lab.objectives.mse"}}
    assert upgraded(older)["loss"]["class_weights"] == "none"
    assert "class_weights" not in upgraded({"loss": {"_target_": "mylab.focal"}})["loss"]


@pytest.mark.parametrize(
    ("loss", "rule", "noted"),
    [
        ("smooth_l1", "auto", "median"),
        pytest.param("corn", "auto", "median", marks=pytest.mark.slow),
        pytest.param("corn", "thresholds", "thresholds", marks=pytest.mark.slow),
    ],
)
def test_a_loss_of_grades_is_trained_checked_and_evaluated(make_run: MakeRun, loss: str, rule: str, noted: str) -> None:
    run = make_run(f"loss={loss}", "loss.class_weights=balanced", f"loss.decision={rule}", *CHOICES[1:])
    assert guarded(run) == 0
    assert run.read_status()["decision"] == noted
    checkpoint = torch.load(run.best_checkpoint, weights_only=True)
    assert checkpoint["resnet_lab"]["decision"] == noted
    assert checkpoint["state_dict"]["loss.weight"].shape == (5,)
    assert differences_of([read_run(run)]) == []
    model = load(str(run.path))
    _, module, _ = evaluate_split(model, model.origin["config"], "test")
    stored = pd.read_csv(run.predictions_file("test"))
    assert module.predictions["test"].classes.tolist() == stored["prediction"].tolist()
    assert module.predictions["test"].probabilities == pytest.approx(stored.filter(like="p_").to_numpy(), abs=1e-6)


@pytest.mark.parametrize("loss", ["mse", "smooth_l1", "corn"])
def test_a_loss_of_grades_learns(loss: str) -> None:
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(400) % 4
    features = targets[:, None] + 0.2 * torch.randn(400, 1, generator=random)
    objective = of_loss(loss)
    layer = torch.nn.Linear(1, objective.num_outputs)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        objective.losses(layer(features), targets).mean().backward()
        optimizer.step()
    classes = objective.decide(layer(features).detach())
    assert statistics.quadratic_weighted_kappa(targets.numpy(), classes.numpy()) > 0.95


@pytest.mark.slow
def test_corn_learns_on_drawn_photographs(tmp_path: Path) -> None:
    drawn = ("train_patients=100", "test_patients=30", "draw_size=64", "balance=balanced", f"root={tmp_path / 'drawn'}")
    own = (*(f"data.{each}" for each in drawn), f"data.cache_dir={tmp_path / 'cache'}", "data.image_size=48")
    network = ("model=resnet_cifar", "model.depth=8", "optim=adamw", "optim.lr=0.005", "data.batch_size=20")
    config = compose_config(["loss=corn", *own, *network, "trainer=cpu", "trainer.max_epochs=8", "schedule=cosine"])
    check(config)
    run = RunFolder(tmp_path / "run")
    create_run(run, config)
    assert guarded(run) == 0
    assert run.read_status()["metrics"]["test/qwk"] > 0.5
    assert differences_of([read_run(run)]) == []


def test_the_check_recomputes_the_loss_of_corn(make_run: MakeRun) -> None:
    run = make_run("loss=corn", "loss.class_weights=[1,2,3,4,5]", "trainer.max_epochs=1", "trainer.precision=32-true")
    assert guarded(run) == 0
    found = read_run(run)
    derived = metrics_of(found.predictions.labeled, found.config, found.class_counts("train"))
    metrics = run.read_status()["metrics"]
    assert derived["loss"] == pytest.approx(metrics["test/loss"], rel=1e-5)
    run.update_status(metrics=metrics | {"test/loss": 2 * metrics["test/loss"]})
    assert any(line.startswith(f"{run.path.name}: test/loss is stored") for line in differences_of([read_run(run)]))


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
