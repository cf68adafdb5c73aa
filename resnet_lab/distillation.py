"""Distillation (`loss.teacher`): the probabilities of a trained network are soft targets beside the labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from resnet_lab.compatibility import ADDED
from resnet_lab.data.transforms import renormalization
from resnet_lab.errors import UserError
from resnet_lab.inputs import sources_of
from resnet_lab.models.pretrained import digest_of
from resnet_lab.objectives import Objective, Softmax
from resnet_lab.run_folder import RunFolder
from resnet_lab.trained import Trained, load, match_classes

log = logging.getLogger("resnet_lab")

PREPROCESSING = ("resize", "eye_crop", "local_mean")  # keys of data that should be those of the teacher
IDLE = ("temperature", "teacher_weight")  # keys of loss without effect if there is no teacher


class Distillation:
    """Frozen teacher, and the loss of a student that learns from it and from the labels (Hinton, Vinyals, Dean 2015).

    It is not an `nn.Module`, so the student's checkpoints, optimizer and averaged weights do not contain the teacher.

    Args:
        teacher: the trained network.
        mean: channel means of the student's images, (3,).
        std: their standard deviations, (3,).
        temperature: T, which divides the logits of both.
        weight: share of the teacher's part of the loss.

    Attributes:
        digest: hash of the teacher's weights.
    """

    def __init__(self, teacher: Trained, mean: Tensor, std: Tensor, temperature: float, weight: float) -> None:
        self.network, self.objective = teacher.network.eval().requires_grad_(False), teacher.objective
        self.temperature, self.weight, self.digest = temperature, weight, digest_of_teacher(teacher)
        own_mean, own_std = torch.tensor(teacher.origin["mean"]), torch.tensor(teacher.origin["std"])
        self.scale, self.shift = (each.view(3, 1, 1) for each in renormalization(mean, std, own_mean, own_std))
        self.memory_format = torch.contiguous_format
        self.renormalizes = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))

    def __deepcopy__(self, memo: dict[int, Any]) -> Distillation:
        return self  # `callbacks=ema` copies the module

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Move the teacher to a device, with the memory format of the images."""
        self.network.to(device).to(memory_format=memory_format)
        self.memory_format = memory_format
        self.objective.to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def losses(self, labels: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Return the losses (B,) of a training batch.

        The teacher's part is the Kullback-Leibler divergence of the student's probabilities at temperature T from the
        teacher's, times T², which keeps the size of its gradients.

        Args:
            labels: losses by the labels, (B,).
            logits: logits of the student, (B, K).
            images: the images that the student sees, augmented and normalized, (B, 3, S, S).
        """
        with torch.no_grad():
            seen = images * self.scale + self.shift if self.renormalizes else images
            probabilities = self.objective.probabilities(
                self.network(seen.contiguous(memory_format=self.memory_format))
            )
            # the logarithms are the logits of a softmax, up to a constant, and exist for every objective
            soft = (probabilities.clamp(min=torch.finfo(torch.float32).tiny).log() / self.temperature).log_softmax(1)
        own = (logits.float() / self.temperature).log_softmax(1)
        divergence = kl_div(own, soft, reduction="none", log_target=True).sum(1)
        return (1 - self.weight) * labels + self.weight * self.temperature**2 * divergence


def digest_of_teacher(teacher: Trained) -> str:
    """Return a hash of the weights of a teacher."""
    return digest_of(teacher.network.state_dict(), teacher.objective.state_dict())


def teacher_of(loss: Mapping[str, Any], data: Mapping[str, Any], class_names: Sequence[str]) -> Trained:
    """Load the teacher of a job, and check that it fits the data.

    Args:
        loss: the group of the configuration.
        data: the group of the configuration.
        class_names: K names of the data's classes.

    Raises:
        UserError: there is no such network, it has other classes, or it sees images of another size.
    """
    source = f"loss.teacher={loss['teacher']}"
    try:
        teacher = load(str(loss["teacher"]))
    except UserError as error:
        raise UserError(f"loss.teacher: {error}") from None
    match_classes(teacher, class_names, str(data["name"]), "choose another loss.teacher")
    size = data["crop"] or data["image_size"]
    if teacher.size != size:
        raise UserError(
            f"{source} takes images of {teacher.size} px, but this job uses {size} px; train at the same size"
        )
    own = teacher.origin["config"]["data"]
    different = [f"data.{key}={str(own[key]).lower()}" for key in PREPROCESSING if own[key] != data[key]]
    if _part_seen(own) != _part_seen(data):
        different.append(f"data.crop={own['crop']} at data.image_size={own['image_size']}".replace("None", "null"))
    if different:
        log.warning("%s was trained with %s, and gets other images here", source, ", ".join(different))
    return teacher


def _part_seen(data: Mapping[str, Any]) -> float:
    """Return the share of an image's side that the network sees."""
    return float((data["crop"] or data["image_size"]) / data["image_size"])


def refuse_no_logits(objective: Objective, loss: Mapping[str, Any]) -> None:
    """Refuse a teacher for a loss whose outputs are not one logit per class.

    Raises:
        UserError: there is a teacher, and the loss is of another kind.
    """
    if loss["teacher"] is not None and not isinstance(objective, Softmax):
        raise UserError(
            f"loss.teacher={loss['teacher']}: the outputs for loss._target_ {loss['_target_']} are not one logit per "
            "class; set loss=cross_entropy or loss.teacher=null"
        )


def refuse_own_folder(loss: Mapping[str, Any], folder: Path) -> None:
    """Refuse a teacher in the run folder of its student.

    Raises:
        UserError: the teacher is the folder, in it, or an ensemble with it.
    """
    if loss["teacher"] is None:
        return
    places = [Path(str(loss["teacher"])).expanduser()]
    for place in places:  # grows by the members of each ensemble
        places += [each for each in sources_of(RunFolder(place)) if each not in places]
    if any(each.resolve().is_relative_to(folder.resolve()) for each in places):
        raise UserError(f"loss.teacher={loss['teacher']} is this run itself; name another run, or another sweep_dir")


def idle_keys(loss: Mapping[str, Any]) -> list[str]:
    """Return one message per key of the teacher that has no effect, as there is none."""
    changed = [key for key in IDLE if loss["teacher"] is None and loss[key] != ADDED[f"loss.{key}"].value]
    return [f"loss.{key}={loss[key]} has no effect: loss.teacher names no network" for key in changed]
