"""Schedules against their formulas, and the loss against torch's mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_data import refusal
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from resnet_lab import objectives, optim


def rates(scheduler, optimizer, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.fixture
def optimizer():
    return optim.sgd([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False)


def test_constant_keeps_the_rate(optimizer) -> None:
    assert rates(optim.constant(optimizer, 10, 2), optimizer, 20) == [0.1] * 20


def test_multistep_follows_the_paper(optimizer) -> None:
    scheduler = optim.multistep(optimizer, 10, 4, [0.5, 0.75], gamma=0.1, warmup_epochs=0, warmup_factor=0.1)
    seen = rates(scheduler, optimizer, 40)
    assert seen == pytest.approx([0.1] * 20 + [0.01] * 10 + [0.001] * 10)


def test_milestones_stay_where_they_are_with_warmup(optimizer) -> None:
    scheduler = optim.multistep(optimizer, 10, 4, [0.5, 0.75], gamma=0.1, warmup_epochs=1, warmup_factor=0.1)
    seen = rates(scheduler, optimizer, 40)
    assert seen[0] == pytest.approx(0.01)
    assert seen[:10] == sorted(seen[:10])
    assert seen[10:] == pytest.approx([0.1] * 10 + [0.01] * 10 + [0.001] * 10)


def test_cosine_falls_to_zero_after_warmup(optimizer) -> None:
    seen = rates(optim.cosine(optimizer, 10, 4, warmup_epochs=1, warmup_factor=0.1), optimizer, 40)
    expected = [0.05 * (1 + math.cos(math.pi * step / 30)) for step in range(30)]
    assert seen[10:] == pytest.approx(expected)
    assert seen[0] == pytest.approx(0.01)


@pytest.mark.parametrize(("monitor", "values"), [("val/loss", [1.0, 1.0, 1.0]), ("val/qwk", [0.5, 0.5, 0.4])])
def test_plateau_cuts_the_rate_after_patience(optimizer, monitor: str, values: list[float]) -> None:
    scheduler = optim.plateau(optimizer, 10, 4, monitor=monitor, factor=0.1, patience=1)
    for value in values:
        scheduler.step(value)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_plateau_expects_kappa_to_rise(optimizer) -> None:
    scheduler = optim.plateau(optimizer, 10, 4, monitor="val/qwk", factor=0.1, patience=0)
    for value in (0.1, 0.2, 0.3):
        scheduler.step(value)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_cross_entropy_is_by_sample() -> None:
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = objectives.cross_entropy(0.0, "none", [1] * 4).losses(logits, targets)
    assert losses.shape == (6,)
    assert losses.mean() == pytest.approx(nn.functional.cross_entropy(logits, targets).item())


def test_class_weights_against_scikit_learn() -> None:
    counts, targets = [60, 5, 12, 3], np.repeat(range(4), [60, 5, 12, 3])
    logits = torch.randn(80, 4)
    losses = objectives.cross_entropy(0.0, "balanced", counts).losses(logits, torch.from_numpy(targets))
    weights = compute_class_weight("balanced", classes=np.arange(4), y=targets)
    plain = nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
    torch.testing.assert_close(losses, plain * torch.tensor(weights[targets]).float())
    assert weights[targets].mean() == pytest.approx(1)
    given = objectives.cross_entropy(0.0, [1, 2, 0, 0.5], counts).losses(logits, torch.from_numpy(targets))
    torch.testing.assert_close(given, plain * torch.tensor([1, 2, 0, 0.5])[targets])


@pytest.mark.parametrize("weights", ["balance", [1.0], [0.0, 0.0, 0.0, 0.0]])
def test_invalid_class_weights_are_refused(weights: str | list[float]) -> None:
    message = refusal(objectives.cross_entropy, 0.0, weights, [60, 5, 12, 3])
    assert message == f"loss.class_weights={weights}: choose none, balanced or 4 numbers from 0"
    assert "class 1 has no training image" in refusal(objectives.cross_entropy, 0.0, "balanced", [60, 0, 12, 3])


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (optim.sgd, {"lr": 0.02, "momentum": 0.7, "weight_decay": 1e-4, "nesterov": True}),
        (optim.adamw, {"lr": 0.02, "weight_decay": 0.1}),
        (optim.nadam, {"lr": 0.02, "weight_decay": 1e-4}),
    ],
)
def test_optimizers_get_their_arguments(make, given) -> None:
    (group,) = make([nn.Parameter(torch.zeros(1))], **given).param_groups
    assert {key: group[key] for key in given} == given


def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every parameter look as if it were on a CUDA GPU."""
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)


@pytest.mark.parametrize(
    ("make", "given", "precision", "fused"),
    [
        (torch.optim.SGD, {}, "bf16-mixed", True),
        (torch.optim.Adam, {}, "32-true", True),
        (torch.optim.AdamW, {}, "bf16-mixed", True),
        (torch.optim.SGD, {}, "16-mixed", None),
        (torch.optim.NAdam, {}, "bf16-mixed", None),
        (torch.optim.RMSprop, {}, "bf16-mixed", None),
        (torch.optim.SGD, {"foreach": True}, "bf16-mixed", None),
        (torch.optim.Adam, {"fused": False}, "bf16-mixed", False),
        (torch.optim.Adam, {"capturable": True}, "bf16-mixed", None),
    ],
)
def test_optimizers_on_cuda_are_fused_unless_their_arguments_choose(
    monkeypatch: pytest.MonkeyPatch, make, given, precision, fused
) -> None:
    on_cuda(monkeypatch)
    optimizer = make([nn.Parameter(torch.zeros(1))], lr=0.1, **given)
    optim.use_fused(optimizer, precision)
    (group,) = optimizer.param_groups
    assert group.get("fused") is fused
    assert group.get("foreach") is (False if fused else given.get("foreach"))


@pytest.mark.parametrize("nesterov", [False, True])
def test_weights_that_are_unfrozen_later_step_as_without_the_kernel(
    monkeypatch: pytest.MonkeyPatch, nesterov: bool
) -> None:
    kernels = []
    for fused in (True, False):
        layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        for number, weight in enumerate(layers.parameters()):
            nn.init.constant_(weight, 0.1 * (number + 1))
        layers[0].requires_grad_(False)
        optimizer = torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
        if fused:
            with monkeypatch.context() as patch:
                on_cuda(patch)
                optim.use_fused(optimizer, "32-true")

        def closure(layers: nn.Module = layers, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = layers(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss

        for step in range(4):
            layers[0].requires_grad_(step > 1)
            optimizer.step(closure)  # Lightning computes gradients in the step, too
        kernels.append([weight.detach() for weight in layers.parameters()])
        assert optimizer.param_groups[0]["fused"] is (True if fused else None)
    torch.testing.assert_close(*kernels)


def test_a_momentum_with_dampening_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda(monkeypatch)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9, dampening=0.1)
    optim.use_fused(optimizer, "32-true")
    assert optimizer.param_groups[0]["fused"] is None


def test_a_factor_of_nadam_returns_to_the_cpu() -> None:
    with FakeTensorMode():  # tensors of a GPU without storage
        weights = [nn.Parameter(torch.zeros(2, device="cuda")) for _ in range(2)]
        optimizer = torch.optim.NAdam(weights, lr=0.1)
        optimizer.state[weights[0]] = {key: torch.ones((), device="cuda") for key in ("mu_product", "exp_avg")}
        optim.keep_products_on_cpu(optimizer)
    found = {key: value.device.type for key, value in optimizer.state[weights[0]].items()}
    assert found == {"mu_product": "cpu", "exp_avg": "cuda"}
    assert weights[1] not in optimizer.state


def test_optimizers_on_the_cpu_are_unchanged() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    before = [{**group} for group in optimizer.param_groups]
    optim.use_fused(optimizer, "32-true")
    assert optimizer.param_groups == before
    mixed = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}], lr=0.1)
    optim.use_fused(mixed, "bf16-mixed")
    assert mixed.param_groups[0]["fused"] is None


def test_a_resumed_optimizer_takes_the_implementation_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=lr) for lr in (0.1, 0.2)]
    optim.use_fused(made[0], "32-true")
    on_cuda(monkeypatch)
    optim.use_fused(made[1], "32-true")
    states = [each.state_dict() for each in made]
    for optimizer, state, implementation in zip(made, reversed(states), [(None, None), (True, False)], strict=True):
        optimizer.load_state_dict(state)
        (group,) = optimizer.param_groups
        assert (group["fused"], group["foreach"]) == implementation
    assert [each.param_groups[0]["lr"] for each in made] == [0.2, 0.1]
    states[0]["param_groups"] *= 2
    with pytest.raises(ValueError, match="different number of parameter groups"):
        made[0].load_state_dict(states[0])


def test_a_schedule_that_is_none_is_refused(optimizer) -> None:
    assert "returns NoneType without optimizer; name a schedule" in refusal(optim.refuse_no_schedule, None)
    optim.refuse_no_schedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
