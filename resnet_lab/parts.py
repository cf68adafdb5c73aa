"""Builds network and objective of a configuration, ours or external, and checks that they fit each other."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchvision.models import get_model_weights

from resnet_lab import statistics
from resnet_lab.config import build, of_the_job
from resnet_lab.data.image_data import ImageData
from resnet_lab.errors import UserError, reason_of
from resnet_lab.models.pretrained import load_fitting, weights_of_torchvision
from resnet_lab.objectives import Criterion, Objective
from resnet_lab.signatures import imported, is_ours

TRIAL = 96  # pixels of an image that shows which layer comes last
SOURCES = ("pretrained", "weights", "checkpoint_path")  # keys of networks that select initial weights


def build_network(model: dict[str, Any], num_outputs: int) -> nn.Module:
    """Build the network that a configuration names, with its initial or pretrained weights.

    Args:
        model: the group of the configuration.
        num_outputs: M, the length of its last layer.

    Raises:
        UserError: it cannot be built, its weights cannot be loaded, or a last layer to be set to zero is not linear.
    """
    network = build("model", model, num_classes=num_outputs)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise UserError(
            f"model._target_ {model['_target_']} returns a {kind}; name a function or class that gives an nn.Module"
        )
    if lazy := [name for name, each in network.named_parameters() if is_lazy(each)]:
        raise UserError(
            f"model._target_ {model['_target_']}: the shape of {lazy[0]} is unknown before the first image; replace "
            "the lazy layer with one of fixed size"
        )
    source = of_the_job("model", model).get("pretrained")
    if source not in (None, False, "none"):
        load_fitting(network, str(source))
    if model.get("zero_init_head"):
        head = network.get_submodule(head_of(network, "model.zero_init_head=true"))
        if not isinstance(head, nn.Linear):  # SqueezeNet's convolution is before an activation
            raise UserError(
                f"model.zero_init_head=true: the last layer of {model['_target_']} is not linear, and may never "
                "learn from zero; leave the key out"
            )
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return network


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a network without pretrained weights, so that none are downloaded only to be replaced."""
    none = {"pretrained": False if isinstance(model.get("pretrained"), bool) else "none"}
    found = {key: none.get(key) for key in SOURCES if model.get(key)}
    return model | (found if not is_ours(str(model["_target_"])) else {key: none[key] for key in found if key in none})


def build_objective(loss: dict[str, Any], class_counts: Sequence[int]) -> Objective:
    """Build the objective of a configuration.

    Args:
        loss: the group of the configuration. An external loss maps logits (B, K) and classes (B,) to losses (B,); if it
            has an argument `reduction`, it is built with `none`.
        class_counts: training images of each class, (K,).

    Raises:
        UserError: it cannot be built, or does not return one loss per image.
    """
    objective = _own_objective(loss, class_counts)
    objective.choose(str(loss.get("decision", "auto")), len(class_counts))
    return objective


def _own_objective(loss: dict[str, Any], class_counts: Sequence[int]) -> Objective:
    """Return the objective of a configuration, with its own decision rule."""
    target = str(loss["_target_"])
    if is_ours(target):
        objective: Objective = build("loss", loss, class_counts=class_counts)
        return objective
    made = build(
        "loss", _with_tensors(loss), class_counts=class_counts, num_classes=len(class_counts), reduction="none"
    )
    if isinstance(made, Objective):
        _refuse_odd(made, target, len(class_counts))
        return made
    if not callable(made):
        raise UserError(f"loss._target_ {target} returns a {type(made).__name__}; name one that returns a loss")
    criterion = Criterion(len(class_counts), made)
    trial = copy.deepcopy(criterion)  # losses may have a state
    targets = torch.arange(2) % len(class_counts)
    try:
        with warnings.catch_warnings(action="ignore"):
            losses = trial.losses(torch.zeros(2, len(class_counts)), targets)
    except Exception as error:
        reason = reason_of(error)
        raise UserError(
            f"loss._target_ {target} fails on logits (2, {len(class_counts)}) and classes (2,): {reason}"
        ) from error
    if not isinstance(losses, Tensor) or losses.shape != (2,):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise UserError(
            f"loss._target_ {target} returns {shape} for two images; it must return one loss per image, (2,): "
            "do not average them"
        )
    if new := sorted({*trial.state_dict()} - {*criterion.state_dict()}):
        raise UserError(
            f"loss._target_ {target} creates {new[0].removeprefix('criterion.')} in its first call, so no checkpoint "
            "could be loaded; create it in __init__"
        )
    return criterion


def _refuse_odd(objective: Objective, target: str, num_classes: int) -> None:
    """Refuse an external objective whose methods fail or return other shapes than `Objective` says.

    Raises:
        UserError: a method does, or its decision rule is unknown.
    """
    rules = [rule for rule in (*statistics.DECISIONS, statistics.OWN_RULE) if rule != "thresholds"]
    if objective.decision not in rules:
        raise UserError(f"loss._target_ {target}: decision={objective.decision} is none of {', '.join(rules)}")
    trial, method = copy.deepcopy(objective), "num_outputs"
    try:
        outputs, classes = torch.zeros(2, trial.num_outputs), torch.arange(2) % num_classes
        for method, shape in (("losses", (2,)), ("probabilities", (2, num_classes)), ("decide", (2,))):
            found = getattr(trial, method)(*[outputs, classes][: 1 + (method == "losses")])
            if not isinstance(found, Tensor) or found.shape != shape:
                seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(f"loss._target_ {target}: {method} returns {seen} for two images; return {shape}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"loss._target_ {target}: {method} fails: {reason_of(error)}") from error


def _with_tensors(loss: dict[str, Any]) -> dict[str, Any]:
    """Convert lists of numbers to tensors for arguments of torch's losses that are tensors (`weight`)."""
    if not str(loss["_target_"]).startswith("torch."):
        return loss
    parameters = inspect.signature(imported("loss", loss["_target_"])).parameters
    named = {name for name, each in parameters.items() if "Tensor" in str(each.annotation)}
    return {
        key: torch.tensor(value, dtype=torch.float) if key in named and isinstance(value, list) else value
        for key, value in loss.items()
    }


def refuse_unmixable(objective: Objective, loss: dict[str, Any], mixup: float) -> None:
    """Refuse `data.mixup` for a loss whose value for an image depends on other images of the batch.

    Args:
        objective: the built objective.
        loss: the group of the configuration.
        mixup: `data.mixup`.

    Raises:
        UserError: the loss has `mixable = False`.
    """
    if mixup and not objective.mixable:
        raise UserError(
            f"data.mixup={mixup}: loss._target_ {loss['_target_']} has mixable=False, so its losses cannot be mixed; "
            "set data.mixup=0, or choose another loss"
        )


def refuse_decision(rule: str, splits: Collection[str]) -> None:
    """Refuse fitted thresholds for data without a validation split.

    Args:
        rule: `loss.decision`.
        splits: names of the splits.

    Raises:
        UserError: the rule is `thresholds`, and there is no validation split.
    """
    if rule == "thresholds" and "val" not in splits:
        raise UserError(
            "loss.decision=thresholds needs a validation split; set data.val_fraction or data.val_csv, or choose "
            "loss.decision=expected"
        )


def refuse_no_data_set(data: object) -> None:
    """Refuse an external class that does not derive from `ImageData`; `check` reports all other errors of the group.

    Raises:
        UserError: the class does not derive from `ImageData`, or cannot be imported.
    """
    target = data.get("_target_") if isinstance(data, dict) else None
    found = imported("data", target) if isinstance(target, str) and not is_ours(target) else None
    if isinstance(found, type) and not issubclass(found, ImageData):
        raise UserError(
            f"data._target_ {target} is not a data set: derive it from resnet_lab.data.image_data.ImageData"
        )


def head_of(network: nn.Module, key: str) -> str:
    """Return the dotted name of the layer that computes the outputs: the linear layer that an image reaches last.

    If the network has no linear layer, it is the last convolution (SqueezeNet). If the network rejects an image of
    `TRIAL` pixels, it is the layer that is defined last.

    Args:
        network: any network; it stays as it is.
        key: the configuration key that needs the head, for the error.

    Raises:
        UserError: the network has neither.
    """
    layers = {layer: name for name, layer in network.named_modules()}
    found = ([layer for layer in layers if isinstance(layer, kind)] for kind in (nn.Linear, nn.Conv2d))
    reached: list[nn.Module] = list(next(filter(None, found), []))
    if not reached:
        raise UserError(f"{key}: this network has no linear layer and no convolution, thus no head")
    hooks = [layer.register_forward_hook(lambda each, *_: reached.append(each)) for layer in [*reached]]
    modes = {layer: layer.training for layer in network.modules()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):
            network.eval()(torch.zeros(1, 3, TRIAL, TRIAL, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in modes.items():
            layer.training = mode
    return str(layers[reached[-1]])


def refuse_misfit(network: nn.Module, num_outputs: int, size: int, target: str) -> None:
    """Refuse an external network that does not return M outputs per image, in training and in evaluation.

    Args:
        network: the network, which is not changed.
        num_outputs: M.
        size: side of the images in pixels.
        target: its name, for the message.

    Raises:
        UserError: it returns something else, or fails on such images.
    """
    if is_ours(target):
        return
    images = torch.zeros(2, 3, size, size)
    for training in (True, False):
        trial = copy.deepcopy(network).train(training)
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                outputs = trial(images)
        except Exception as error:
            reason = reason_of(error)
            raise UserError(
                f"model._target_ {target} fails on images of shape {tuple(images.shape)}: {reason}"
            ) from error
        if isinstance(outputs, Tensor) and outputs.shape == (2, num_outputs):
            continue
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        mode = "training" if training else "evaluation"
        remedy = "give it an argument num_classes, which the job sets, or set the length of its last layer"
        if not isinstance(outputs, Tensor):
            remedy = "let it return the outputs alone (torchvision's GoogLeNet and Inception: +model.aux_logits=false)"
        raise UserError(
            f"model._target_ {target} returns {found} for two images in {mode}, not (2, {num_outputs}); {remedy}"
        )


def takes_channels_last(network: nn.Module, config: dict[str, Any]) -> bool:
    """Return whether a network works with channels-last images; the `view` of an external network may not.

    Args:
        network: the network, which is not changed.
        config: configuration of its run.
    """
    if is_ours(str(config["model"]["_target_"])):
        return True
    size, layout = config["data"]["crop"] or config["data"]["image_size"], torch.channels_last
    trial = copy.deepcopy(network).to("cpu").to(memory_format=layout).eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            trial(torch.zeros(2, 3, size, size).contiguous(memory_format=layout))
    except RuntimeError:
        return False
    return True


def statistics_of(config: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """Return mean and std by channel of the network's weights; None unless `data.mean=model`.

    Raises:
        UserError: the network defines none.
    """
    data, model = config["data"], config["model"]
    if data["mean"] != "model":
        return None
    found = _named_statistics(model)
    if found is None:
        raise UserError(
            f"data.mean=model: {model['_target_']} defines no mean and std for its weights; set data.mean=train, or "
            "three numbers"
        )
    return found[0], data["std"] if isinstance(data["std"], list) else found[1]


def _named_statistics(model: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    target = str(model["_target_"])
    transforms: Any = None
    if target.startswith("torchvision.models.") and model.get("weights"):
        transforms = get_model_weights(target.rpartition(".")[2])[str(model["weights"]).rpartition(".")[2]].transforms()
    elif is_ours(target):
        weights = weights_of_torchvision(str(model.get("pretrained")), int(model.get("depth", 0)))
        transforms = weights.transforms() if weights else None
    if transforms is not None:
        return list(transforms.mean), list(transforms.std)
    if is_ours(target):
        return None
    with torch.device("meta"):
        network = build_network(without_weights(model), 2)
    named = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    if "mean" not in named or "std" not in named:
        return None
    return list(named["mean"]), list(named["std"])
