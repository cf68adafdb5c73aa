"""Overrides of a command that have no effect beside the other keys of the run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from resnet_lab.axes import as_typed
from resnet_lab.data.augmentation import NEUTRAL, Augmentation
from resnet_lab.data.datamodule import DataModule
from resnet_lab.models.resnet import Bottleneck
from resnet_lab.run_folder import flat

OF_IMAGES = {f"data.{each.name}" for each in fields(Augmentation)} - {"data.augment_classes", "data.mixup"}
MOVES = ("data.rotation", "data.scale", "data.translate")  # what interpolates
OF_PROGRESSIVE = ("data.sampling_decay", "data.sampling_final")
LIMITS = ("data.max_images", "data.max_per_class")


def idle_overrides(
    config: dict[str, Any], given: Collection[str], datamodule: DataModule, network: nn.Module
) -> list[str]:
    """Return one message per override that changes nothing in this training.

    Args:
        config: configuration of the run.
        given: dotted keys of the command line.
        datamodule: data of the run, after `read`.
        network: network of the run.
    """
    values = flat(config)
    reasons = {key: reason for key, reason in _reasons(values, datamodule, network) if key in given}
    return [f"{key}={as_typed(values[key])} has no effect: {reason}" for key, reason in reasons.items()]


def _reasons(values: Mapping[str, Any], datamodule: DataModule, network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield each key without effect, with the reason."""
    if values["data.sampling"] != "progressive":
        yield from ((key, f"data.sampling={values['data.sampling']} is not progressive") for key in OF_PROGRESSIVE)
    if values["data.augment_classes"] == "none":
        active = sorted(key for key in OF_IMAGES if values[key] not in NEUTRAL)
        yield from ((key, "data.augment_classes=none augments no image") for key in [*active, "data.interpolation"])
    elif all(values[key] in NEUTRAL for key in MOVES):
        yield "data.interpolation", f"{', '.join(MOVES)} move no image"
    own, drawn = datamodule.data.own_splits, {*datamodule.splits} - datamodule.data.own_splits
    if "val" in own:
        yield "data.val_fraction", "the data set has a validation split"
    elif "test" in own and values["data.folds"] is not None:
        yield "data.val_fraction", "the fold is the validation split"
    if not drawn and all(values[key] is None for key in LIMITS):
        yield "data.split_seed", "no split is drawn"
    if values.get("data.patient_column") is not None:
        yield "data.patient_regex", "data.patient_column names the patients"
    if values.get("model.stride_on") and not any(isinstance(each, Bottleneck) for each in network.modules()):
        yield "model.stride_on", "this network has no bottlenecks"
    patience, epochs = values["trainer.early_stopping"], values["trainer.max_epochs"]
    if patience is not None and 0 < epochs <= patience + 1:
        yield "trainer.early_stopping", f"trainer.max_epochs={epochs} comes first"
    if values["trainer.sync_batchnorm"] and values["trainer.devices"] == values["trainer.num_nodes"] == 1:
        yield "trainer.sync_batchnorm", "there is one process"
    if not any(key.startswith("logger.") for key in values):
        yield "trainer.log_every_n_steps", "logger=none"
    if values.get("schedule.warmup_epochs") == 0:
        yield "schedule.warmup_factor", "schedule.warmup_epochs=0"
