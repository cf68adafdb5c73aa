"""Optimizers and schedules: strict constructors for torch's; conf/optim and conf/schedule document their keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from resnet_lab.errors import UserError, reason_of
from resnet_lab.freezing import is_in
from resnet_lab.parts import head_of
from resnet_lab.scores import mode_of
from resnet_lab.signatures import is_ours
from resnet_lab.values import BelowOne, Count, Factor, Items, NotNegative, Positive, Share


def sgd(
    params: Iterable[nn.Parameter], lr: NotNegative, momentum: BelowOne, weight_decay: NotNegative, nesterov: bool
) -> SGD:
    """Build stochastic gradient descent; weight decay is L2.

    Raises:
        UserError: `nesterov` without momentum.
    """
    if nesterov and not momentum:
        raise UserError("optim.nesterov=true needs optim.momentum above 0; set one of the two")
    return SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adamw(params: Iterable[nn.Parameter], lr: NotNegative, weight_decay: NotNegative) -> AdamW:
    """Build Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return AdamW(params, lr=lr, weight_decay=weight_decay)


def nadam(params: Iterable[nn.Parameter], lr: NotNegative, weight_decay: NotNegative) -> NAdam:
    """Build Adam with Nesterov momentum (Dozat 2016); weight decay is L2, as in study B."""
    return NAdam(params, lr=lr, weight_decay=weight_decay)


@contextmanager
def naming(group: str, config: dict[str, Any] | None) -> Iterator[None]:
    """Turn an error of an external optimizer or schedule into one line that names it.

    Args:
        group: `optim` or `schedule`.
        config: configuration of a run; None: unknown.

    Raises:
        UserError: the part fails.
    """
    target = str(config[group]["_target_"]) if config else ""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not target or is_ours(target):
            raise
        raise UserError(f"{group}._target_ {target} cannot be built from its keys: {reason_of(error)}") from error


def optimizer_of(
    make: Callable[..., Optimizer], module: nn.Module, network: nn.Module, backbone_lr_factor: float
) -> Optimizer:
    """Build the optimizer of all parameters, with a separate group and learning rate for the backbone.

    Args:
        make: parameters → optimizer.
        module: the module to train.
        network: its part with backbone and head.
        backbone_lr_factor: factor of the learning rate for everything before the head; 1: a single group.

    Raises:
        UserError: `make` returns something else, or the network has no head.
    """
    if backbone_lr_factor == 1:
        single = make(module.parameters())
        if not isinstance(single, Optimizer):
            raise UserError(f"optim._target_ returns a {type(single).__name__}; name an optimizer")
        return single
    head = head_of(network, f"optim.backbone_lr_factor={backbone_lr_factor}")
    backbone = {parameter for name, parameter in network.named_parameters() if not is_in(name, head)}
    others = [parameter for parameter in module.parameters() if parameter not in backbone]
    scaled = [parameter for parameter in module.parameters() if parameter in backbone]
    optimizer = make([{"params": others, "name": "head"}, {"params": scaled, "name": "backbone"}])
    optimizer.param_groups[1]["lr"] *= backbone_lr_factor
    return optimizer


def use_fused(optimizer: Optimizer, precision: str) -> None:
    """Let SGD, Adam and AdamW update all weights on CUDA in one kernel, unless their arguments forbid it.

    A resumed run takes the implementation for its own device, in place of that in the checkpoint. (With the argument
    `fused` of the constructor, Lightning would refuse `trainer.gradient_clip_val`.) The kernel of SGD needs the
    momentum of all weights or of none; a part of the network that is unfrozen later begins with zeros.

    Args:
        optimizer: the optimizer.
        precision: Lightning's precision; with 16-mixed, the gradient scaler needs the usual implementation.
    """
    if type(optimizer) not in (SGD, Adam, AdamW):
        return
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    chosen = any(
        group["foreach"] is not None or group["fused"] is not None or group.get("capturable") or group["differentiable"]
        for group in groups
    )
    if chosen:
        return
    # with dampening, a momentum of zeros gives another first step
    usual = precision == "16-mixed" or any(group.get("dampening") for group in groups)
    if not usual and all(each.is_cuda and each.is_floating_point() for each in parameters):
        for group in groups:
            group.update(fused=True, foreach=False)
        if isinstance(optimizer, SGD):
            optimizer.register_step_pre_hook(_complete_momentum)
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)


def _complete_momentum(optimizer: Optimizer, *_: Any) -> None:
    """Let weights without momentum begin with zeros where others have some, which gives the same first step."""
    for group in optimizer.param_groups:
        # Lightning computes the gradients within the step, so there are none yet
        states = {each: optimizer.state.get(each, {}) for each in group["params"] if each.requires_grad}
        lacking = [each for each, state in states.items() if state.get("momentum_buffer") is None]
        for each in lacking if group["momentum"] and len(lacking) < len(states) else ():
            optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)


def keep_products_on_cpu(optimizer: Optimizer) -> None:
    """Move a factor of NAdam back to the CPU, where it is created; read from a GPU, it makes each step wait."""
    if isinstance(optimizer, NAdam) and not optimizer.defaults["capturable"]:
        for state in optimizer.state.values():
            if "mu_product" in state:
                state["mu_product"] = state["mu_product"].cpu()


def _keep_implementation(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a checkpoint with the implementation that its optimizer has now."""
    saved, own = state["param_groups"], optimizer.param_groups
    if len(saved) != len(own):
        return state  # torch refuses it
    groups = [old | {key: new[key] for key in ("fused", "foreach")} for old, new in zip(saved, own, strict=True)]
    return state | {"param_groups": groups}


def refuse_no_schedule(scheduler: object) -> None:
    """Refuse what an external schedule returns, if it lacks what a training calls.

    Raises:
        UserError: it is not a schedule.
    """
    needed = ("optimizer", "step", "state_dict", "load_state_dict")
    if lacking := [name for name in needed if not hasattr(scheduler, name)]:
        kind = type(scheduler).__name__
        raise UserError(f"schedule._target_ returns {kind} without {lacking[0]}; name a schedule as those of torch")
    refuse_no_schedule_class(type(scheduler), f"returns {type(scheduler).__name__}, which")


def refuse_no_schedule_class(kind: object, named: str) -> None:
    """Refuse a class that is not derived from a schedule of torch, because Lightning steps no other.

    Args:
        kind: a class; a function is accepted, as only its result shows what it returns.
        named: the class and its origin, for the message.

    Raises:
        UserError: it is such a class.
    """
    if isinstance(kind, type) and not issubclass(kind, LRScheduler | ReduceLROnPlateau):
        raise UserError(
            f"schedule._target_ {named} is not a torch.optim.lr_scheduler.LRScheduler; derive it from that class, or "
            "name one of torch (conf/schedule has some)"
        )


def refuse_lost_factor(optimizer: Optimizer, backbone_lr_factor: float) -> None:
    """Refuse a schedule that overwrites the learning rates of head and backbone.

    Raises:
        UserError: the ratio of the learning rates is not the factor.
    """
    head, backbone = (optimizer.param_groups[place]["lr"] for place in (0, -1))
    if not math.isclose(backbone, backbone_lr_factor * head):
        raise UserError(
            f"optim.backbone_lr_factor={backbone_lr_factor}: the schedule sets a learning rate of {backbone} for the "
            f"backbone and {head} for the head; choose another schedule, or a factor of 1"
        )


def _after_warmup(optimizer: Optimizer, scheduler: LRScheduler, factor: float, steps: int) -> LRScheduler:
    if not steps:
        return scheduler
    warmup = LinearLR(optimizer, start_factor=factor, total_iters=steps)
    return SequentialLR(optimizer, [warmup, scheduler], milestones=[steps])


def constant(optimizer: Optimizer, steps_per_epoch: int, max_epochs: int) -> LRScheduler:
    """Build a constant learning rate."""
    return ConstantLR(optimizer, factor=1.0)


def multistep(
    optimizer: Optimizer,
    steps_per_epoch: int,
    max_epochs: int,
    milestones: Annotated[list[Share], Items(rising=True)],
    gamma: Positive,
    warmup_epochs: NotNegative,
    warmup_factor: Share,
) -> LRScheduler:
    """Multiply the learning rate by `gamma` at each milestone, given as a share of the training.

    The paper's CIFAR schedule is 0.1 at 0.5 and 0.75 of 64k steps. Warm-up is linear from `warmup_factor`.
    """
    total, warmup = steps_per_epoch * max_epochs, round(warmup_epochs * steps_per_epoch)
    steps = [round(share * total) - warmup for share in milestones]
    return _after_warmup(optimizer, MultiStepLR(optimizer, steps, gamma), warmup_factor, warmup)


def cosine(
    optimizer: Optimizer, steps_per_epoch: int, max_epochs: int, warmup_epochs: NotNegative, warmup_factor: Share
) -> LRScheduler:
    """Warm up linearly from `warmup_factor`, then decay by half a cosine to 0 (Loshchilov & Hutter 2017)."""
    total, warmup = steps_per_epoch * max_epochs, round(warmup_epochs * steps_per_epoch)
    return _after_warmup(optimizer, CosineAnnealingLR(optimizer, max(1, total - warmup)), warmup_factor, warmup)


def plateau(
    optimizer: Optimizer, steps_per_epoch: int, max_epochs: int, monitor: str, factor: Factor, patience: Count
) -> ReduceLROnPlateau:
    """Multiply the learning rate by `factor` after `patience` epochs without improvement of `monitor` (study B)."""
    return ReduceLROnPlateau(optimizer, mode=mode_of(monitor), factor=factor, patience=patience)
