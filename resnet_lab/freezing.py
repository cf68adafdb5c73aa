"""Freezes parts of a network (`model.freeze`) until an epoch (`model.unfreeze_at_epoch`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from resnet_lab.errors import UserError
from resnet_lab.parts import head_of

log = logging.getLogger(__name__)

ALL_BUT_HEAD = "all_but_head"


def is_in(name: str, part: str) -> bool:
    """Return whether a dotted name is a part, or inside it."""
    return f"{name}.".startswith(f"{part}.")


def names_in(network: nn.Module, freeze: str | Sequence[str] | None) -> set[str]:
    """Return the dotted names of all modules and tensors that `model.freeze` covers.

    Raises:
        UserError: the network has no such part, or the part has no weights.
    """
    tensors = {*network.state_dict()}
    every = tensors | {name for name, _ in network.named_modules(remove_duplicate=False) if name}
    if freeze == ALL_BUT_HEAD:
        head = head_of(network, f"model.freeze={ALL_BUT_HEAD}")
        trained = {*network.get_submodule(head).modules(), *network.get_submodule(head).parameters()}
        named = (*network.named_modules(remove_duplicate=False), *network.named_parameters(remove_duplicate=False))
        other_names = {name for name, each in named if each in trained}
        return {name for name in every - other_names if not is_in(name, head) and not is_in(head, name)}
    found = set[str]()
    for part in [freeze] if isinstance(freeze, str) else freeze or []:
        inside = {name for name in every if is_in(name, str(part))}
        if not inside & tensors:
            top = dict.fromkeys(name.partition(".")[0] for name in network.state_dict())
            raise UserError(
                f"model.freeze: this network has no part {part} with weights; choose {ALL_BUT_HEAD}, one of "
                f"{', '.join(top)}, or a part inside these (such as layer1.0)"
            )
        found |= inside
    return found


class Freezing(Callback):
    """Callback that keeps parts of a network unchanged, including batch norm statistics.

    Their parameters have no gradient, so the optimizer skips them, although it has all parameters from the start.
    Their modules stay in evaluation mode.

    Args:
        network: the network; the constructor freezes its parameters.
        freeze: `model.freeze`.
        until: number of epochs after which all parts are trained; None: never.

    Attributes:
        names: the dotted names of all frozen modules and tensors.

    Raises:
        UserError: the network has no such part, or nothing is left to train.
    """

    def __init__(self, network: nn.Module, freeze: str | Sequence[str] | None, until: int | None) -> None:
        self.network, self.names, self.until = network, names_in(network, freeze), until
        self._drops_gradients = False
        self._set_gradients(needed=False)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(f"model.freeze={freeze}: nothing is left to train; freeze fewer parts")

    def trains(self, epoch: int) -> bool:
        """Return whether the parts are trained in an epoch."""
        return self.until is not None and epoch >= self.until

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # DDP synchronizes only gradients that exist in the first step, so these are computed and dropped
        self._drops_gradients = self.until is not None and trainer.world_size > 1
        self._set_gradients(needed=self._drops_gradients)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.current_epoch)  # a run that resumes inside an epoch gets no on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.current_epoch)
        if self.names and trainer.current_epoch == self.until:
            log.info("epoch %d  the frozen parts are trained from now on", trainer.current_epoch + 1)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._drops_gradients and not self.trains(trainer.current_epoch):
            for parameter in self._parameters():
                parameter.grad = None

    def _begin(self, epoch: int) -> None:
        self._set_gradients(needed=self.trains(epoch) or self._drops_gradients)
        for name, layer in self.network.named_modules(remove_duplicate=False):
            if name in self.names:
                layer.train(self.trains(epoch))

    def _set_gradients(self, needed: bool) -> None:
        for parameter in self._parameters():
            parameter.requires_grad_(needed)

    def _parameters(self) -> Iterator[nn.Parameter]:
        named = self.network.named_parameters(remove_duplicate=False)  # a layer or weight in two places has two names
        return (parameter for name, parameter in named if name in self.names)


def idle_keys(config: dict[str, Any], freezing: Freezing) -> list[str]:
    """Return one message per key about parts of the network that has no effect in this training.

    Raises:
        UserError: `optim.backbone_lr_factor` is set, but the network has no head.
    """
    until, epochs, factor = freezing.until, config["trainer"]["max_epochs"], config["optim"]["backbone_lr_factor"]
    reached, found = until is not None and until < epochs, []
    if until is not None and not freezing.names:
        found.append(f"model.unfreeze_at_epoch={until} has no effect: model.freeze names no part")
    elif until is not None and not reached and epochs:
        found.append(f"model.unfreeze_at_epoch={until} is not reached: trainer.max_epochs={epochs}")
    untrained = str(config.get("model", {}).get("pretrained", "")).lower() == "none"
    if freezing.names and untrained and not reached and epochs:
        found.append("model.freeze keeps random initial values, as model.pretrained=none")
    if factor == 1:
        return found
    head = head_of(freezing.network, f"optim.backbone_lr_factor={factor}")
    backbone = (each for name, each in freezing.network.named_parameters() if not is_in(name, head))
    if not reached and not any(each.requires_grad for each in backbone):
        found.append(f"optim.backbone_lr_factor={factor} has no effect: model.freeze covers all but the head")
    return found
