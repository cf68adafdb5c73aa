"""Overrides without effect, beside the same overrides where they have one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import nn

from resnet_lab.config import compose_config
from resnet_lab.idle import idle_overrides
from resnet_lab.models.resnet import resnet

BASIC, BOTTLENECK = resnet(18, 2, widths=[2, 2, 2, 2]), resnet(50, 2, widths=[2, 2, 2, 2])
NO_BOTTLENECKS = "model.stride_on=1x1 has no effect: this network has no bottlenecks"
NOT_PROGRESSIVE = "data.sampling_decay=0.5 has no effect: data.sampling=balanced is not progressive"
NO_AUGMENTATION = "data.rotation=90 has no effect: data.augment_classes=none augments no image"


def idle(*overrides: str, network: nn.Module = BASIC, own: str = "train", drawn: str = "val test") -> list[str]:
    config: Any = OmegaConf.to_container(compose_config(["trainer=cpu", *overrides]), resolve=True)
    splits = {*own.split()}
    datamodule: Any = SimpleNamespace(data=SimpleNamespace(own_splits=splits), splits=[*splits, *drawn.split()])
    return idle_overrides(config, [each.partition("=")[0] for each in overrides], datamodule, network)


@pytest.mark.parametrize(
    ("with_effect", "without", "messages"),
    [
        (["data.sampling=progressive"], ["data.sampling=balanced"], [NOT_PROGRESSIVE]),
        (["data.augment_classes=[1]"], ["data.augment_classes=none"], [NO_AUGMENTATION]),
    ],
)
def test_an_override_that_another_key_switches_off_is_named(
    with_effect: list[str], without: list[str], messages: list[str]
) -> None:
    override = messages[0].partition(" ")[0]
    assert idle(override, *with_effect) == []
    assert idle(override, *without) == messages
    assert idle(*without) == []  # only what the command gives is named


def test_overrides_of_splits_that_are_not_drawn_are_named() -> None:
    given = ("data.val_fraction=0.3", "data.split_seed=4")
    assert idle(*given) == []
    assert idle(*given, own="train val", drawn="test") == [
        "data.val_fraction=0.3 has no effect: the data set has a validation split"
    ]
    folds = [*given, "data.folds=4"]
    assert idle(*folds) == []
    assert idle(*folds, own="train test", drawn="val") == [
        "data.val_fraction=0.3 has no effect: the fold is the validation split"
    ]
    assert len(idle(*given, own="train val test", drawn="")) == 2
    assert idle(given[1], "data.max_images=9", own="train val test", drawn="") == []


def test_other_overrides_without_effect_are_named() -> None:
    assert idle("model.stride_on=1x1") == [NO_BOTTLENECKS]
    assert idle("model.stride_on=1x1", network=BOTTLENECK) == []
    assert idle("data.interpolation=nearest", "data.rotation=5") == []
    assert len(idle("data.interpolation=nearest", "data.rotation=0")) == 1
    assert len(idle("schedule=cosine", "schedule.warmup_factor=0.5", "schedule.warmup_epochs=0")) == 1
    assert idle("schedule=cosine", "schedule.warmup_factor=0.5", "schedule.warmup_epochs=1") == []
    columns = ("data=retinopathy", "data.root=.", "data.patient_regex=auto")
    assert idle(*columns) == []
    assert len(idle(*columns, "data.patient_column=person")) == 1


@pytest.mark.parametrize(
    ("override", "with_effect", "without", "reason"),
    [
        (
            "trainer.early_stopping=3",
            "trainer.max_epochs=5",
            "trainer.max_epochs=4",
            "trainer.max_epochs=4 comes first",
        ),
        ("trainer.sync_batchnorm=true", "trainer.devices=2", "trainer.devices=1", "there is one process"),
        ("trainer.log_every_n_steps=3", "logger=tensorboard", "logger=none", "logger=none"),
    ],
)
def test_overrides_of_the_trainer_without_effect_are_named(
    override: str, with_effect: str, without: str, reason: str
) -> None:
    assert idle(override, with_effect) == []
    assert idle(override, without) == [f"{override} has no effect: {reason}"]
