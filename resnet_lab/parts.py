"""Network and objective of a configuration, ours or from outside, and whether they fit each other."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from resnet_lab.config import build, of_the_job
from resnet_lab.data.image_data import ImageData
from resnet_lab.errors import UserError, reason_of
from resnet_lab.models.pretrained import load_fitting, weights_of_torchvision
from resnet_lab.objectives import Criterion, Objective
from resnet_lab.signatures import imported, is_ours

SOURCES = ("pretrained", "weights", "checkpoint_path")  # keys of networks that name initial values


def build_network(model: dict[str, Any], num_outputs: int) -> nn.Module:
    """The network that a configuration names, with its initial or pretrained values.

    Args:
        model: the group.
        num_outputs: M, the length of its last layer.

    Raises:
        UserError: it cannot be built, or its weights cannot be had.
    """
    network = build("model", model, num_classes=num_outputs)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise UserError(
            f"model._target_ {model['_target_']} gives a {kind}, no network; name one that gives an nn.Module"
        )
    source = of_the_job("model", model).get("pretrained")
    if source not in (None, False, "none"):
        load_fitting(network, str(source))
    return network


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """The keys of a network whose initial values will be replaced, so that none are fetched."""
    none = {"pretrained": False if isinstance(model.get("pretrained"), bool) else "none"}
    found = {key: none.get(key) for key in SOURCES if model.get(key)}
    return model | (found if not is_ours(str(model["_target_"])) else {key: none[key] for key in found if key in none})


def build_objective(loss: dict[str, Any], class_counts: Sequence[int]) -> Objective:
    """What a network's outputs mean, of a configuration.

    Args:
        loss: the group. A loss from outside takes logits (B, K) and classes (B,), and gives losses (B,); one that has
            an argument `reduction` is built with `none`.
        class_counts: training images of each class, (K,).

    Raises:
        UserError: it cannot be built, or does not give one loss per image.
    """
    target = str(loss["_target_"])
    if is_ours(target):
        objective: Objective = build("loss", loss, class_counts=class_counts)
        return objective
    made = build(
        "loss", _with_tensors(loss), class_counts=class_counts, num_classes=len(class_counts), reduction="none"
    )
    if isinstance(made, Objective):
        return made
    if not callable(made):
        raise UserError(f"loss._target_ {target} gives a {type(made).__name__}; name one that gives a loss")
    criterion = Criterion(len(class_counts), made)
    targets = torch.arange(2) % len(class_counts)
    try:
        with warnings.catch_warnings(action="ignore"):
            losses = criterion.losses(torch.zeros(2, len(class_counts)), targets)
    except Exception as error:
        reason = reason_of(error)
        raise UserError(
            f"loss._target_ {target} cannot be computed of logits (2, {len(class_counts)}) and classes (2,): {reason}"
        ) from error
    if not isinstance(losses, Tensor) or losses.shape != (2,):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise UserError(
            f"loss._target_ {target} gives {shape} for two images; it has to give one loss per image, (2,): "
            "leave out its mean"
        )
    return criterion


def _with_tensors(loss: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers as tensors, where a loss of torch names a tensor (`weight`)."""
    if not str(loss["_target_"]).startswith("torch."):
        return loss
    parameters = inspect.signature(imported("loss", loss["_target_"])).parameters
    named = {name for name, each in parameters.items() if "Tensor" in str(each.annotation)}
    return {
        key: torch.tensor(value, dtype=torch.float) if key in named and isinstance(value, list) else value
        for key, value in loss.items()
    }


def refuse_no_data_set(data: object) -> None:
    """Stop where a class from outside is none of ours, which brings all of the keys of a data set.

    What is wrong with the group in other ways, `check` says.

    Raises:
        UserError: it is not, or cannot be imported.
    """
    target = data.get("_target_") if isinstance(data, dict) else None
    found = imported("data", target) if isinstance(target, str) and not is_ours(target) else None
    if isinstance(found, type) and not issubclass(found, ImageData):
        raise UserError(f"data._target_ {target} is no data set: derive it from resnet_lab.data.image_data.ImageData")


def refuse_misfit(network: nn.Module, num_outputs: int, size: int, target: str) -> None:
    """Stop where a network from outside does not give M outputs per image, in training and in evaluation.

    Args:
        network: stays as it is.
        num_outputs: M.
        size: of the images, in pixels.
        target: its name, for the message.

    Raises:
        UserError: it gives something else, or fails on such images.
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
        raise UserError(
            f"model._target_ {target} gives {found} for two images in {mode}, not (2, {num_outputs}); take num_classes "
            "as an argument, which the job sets, or set the length of its last layer"
        )


def statistics_of(config: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """Mean and std by channel that the network names for its weights; None unless the configuration wants the model's.

    Raises:
        UserError: the network names none.
    """
    data, model = config["data"], config["model"]
    if data["mean"] != "model":
        return None
    found = _named_statistics(model)
    if found is None:
        raise UserError(
            f"data.mean=model: {model['_target_']} names no mean and std of its weights; set data.mean=train, or three "
            "numbers"
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
