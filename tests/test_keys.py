"""Every key at odd values is refused in one line that names it, before anything heavy is loaded, or means something."""

from __future__ import annotations

import copy
from typing import Annotated

import pytest
import yaml
from conftest import composed
from fake_data import refusal
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config import CHOSEN, SYNONYMS, check, check_overrides, compose_config, hints_of, known_keys, one_line
from resnet_lab.errors import UserError
from resnet_lab.values import NotNegative, Positive, Share, Within, conform

ODD = ("-1", "0.5", "nan", "inf", "-inf", "1e400", "null", "abc", "[1,2]", "{a:1}", "true")
FINE = {  # key → those of ODD that mean something
    "seed": (),
    "trainer.accelerator": (),
    "trainer.devices": ("[1,2]",),
    "trainer.num_nodes": (),
    "trainer.strategy": (),
    "trainer.precision": (),
    "trainer.channels_last": ("true",),
    "trainer.max_epochs": (),
    "trainer.early_stopping": ("null",),
    "trainer.checkpoint_minutes": ("0.5", "null"),
    "trainer.gradient_clip_val": ("0.5", "null"),
    "trainer.accumulate_grad_batches": (),
    "trainer.limit_train_batches": ("0.5", "null"),
    "trainer.limit_val_batches": ("0.5", "null"),
    "trainer.compile": ("true",),
    "trainer.log_every_n_steps": (),
    "trainer.profiler": ("null",),
    "model.freeze": ("-1", "0.5", "null", "nan", "inf", "-inf", "1e400", "abc", "[1,2]"),
    "model.unfreeze_at_epoch": ("null",),
    "optim.backbone_lr_factor": ("0.5",),
    "trainer.sync_batchnorm": ("true", "-1"),
    "trainer.deterministic": ("true", "-1"),
    "trainer.progress_bar": ("true", "-1"),
    "follow_test": ("true", "-1"),
    "figures": (),
    "on_failed": (),
    "optim.lr": ("0.5",),
    "optim.momentum": ("0.5",),
    "optim.weight_decay": ("0.5",),
    "optim.nesterov": ("true",),
    "loss.label_smoothing": ("0.5",),
    "loss.class_weights": ("[1,2]",),
    "model.depth": (),
    "model.widths": ("null", "[1,2]"),
    "model.stem": ("null",),
    "model.hidden_head": ("true",),
    "data.class_names": ("[1,2]", "null"),
    "data.ordered": ("true",),
    "data.image_size": (),
    "data.resize": (),
    "data.crop": ("null",),
    "data.padding": (),
    "data.horizontal_flip": ("0.5",),
    "data.rotation": ("0.5",),
    "data.scale": ("[1,2]",),
    "data.translate": ("0.5",),
    "data.brightness": ("0.5",),
    "data.hue": ("0.5",),
    "data.augment_classes": ("[1,2]",),
    "data.interpolation": (),
    "data.mean": ("null",),
    "data.std": ("null",),
    "data.splits": ("null",),
    "data.all_images": ("null",),
    "data.val_fraction": ("0.5",),
    "data.folds": ("null",),
    "data.fold": (),
    "data.split_seed": (),
    "data.on_leak": (),
    "data.on_bad_image": (),
    "data.strict_jpeg": ("true",),
    "data.max_images": ("null",),
    "data.sampling": (),
    "data.sampling_decay": ("0.5",),
    "data.sampling_final": ("0.5",),
    "data.batch_size": (),
    "data.num_workers": (),
    "data.in_memory": ("true",),
    "data.first_label": (),
    "data.on_bad_label": (),
}


def outcome(key: str, value: str) -> str:
    """The line by which a value is refused; empty where it means something."""
    config = copy.deepcopy(composed(()))
    try:
        OmegaConf.update(config, key, yaml.safe_load(value.replace("nan", ".nan").replace("inf", ".inf")))
        check(config)
    except (UserError, OmegaConfBaseException) as error:
        return one_line(error)
    return ""


@pytest.mark.parametrize("key", FINE)
def test_odd_values_are_refused_by_key_or_mean_something(key: str) -> None:
    said = {value: outcome(key, value) for value in ODD}
    assert {value for value, line in said.items() if not line} == {*FINE[key]}
    assert all("\n" not in line for line in said.values())
    assert all(key in line or "full_key" not in line for line in said.values())


@pytest.mark.parametrize("key", ["seed", "trainer.devices", "optim.lr", "loss.label_smoothing", "trainer.max_epochs"])
def test_the_command_line_says_the_key(key: str) -> None:
    assert key in refusal(lambda: check(compose_config([f"{key}=abc"])))


@pytest.mark.parametrize(
    "override",
    [
        "seed=4294967296",
        "trainer.devices=0",
        "trainer.devices=[0,0]",
        "trainer.devices=[]",
        "trainer.precision=16-true",
        "trainer.precision=64-true",
        "trainer.precision=bf16-true",
        "trainer.devices=129",
        "trainer.strategy=fsdp",
        "trainer.strategy=ddp_spawn",
        "data._target_=1",
        "data._target_=[a]",
        "name=''",
        "sweep_dir=''",
        "monitor=''",
        "model.depth=10000000",
        "loss.class_weights=[1,-1]",
        "trainer.accelerator=foo",
        "trainer.strategy=foo",
        "trainer.early_stopping=0",
        "optim.momentum=2",
        "optim.momentum=1",
        "loss.label_smoothing=2",
        "figures=[recal]",
        "trainer.limit_train_batches=0",
        "trainer.limit_train_batches=0.0",
        "trainer.limit_val_batches=1.5",
        "trainer.accumulate_grad_batches=0",
        "trainer.gradient_clip_val=0",
        "trainer.compile=fast",
        "trainer.profiler=xla",
        "trainer.log_every_n_steps=0",
        "model.unfreeze_at_epoch=0",
        "model.freeze=''",
        "model.freeze=[[conv1]]",
        "optim.backbone_lr_factor=0",
    ],
)
def test_known_slips_are_refused_by_key(override: str) -> None:
    assert override.partition("=")[0] in refusal(lambda: check(compose_config([override])))


@pytest.mark.parametrize(
    ("schedule", "override"),
    [
        ("cosine", "warmup_epochs=nan"),
        ("cosine", "warmup_epochs=-1"),
        ("multistep", "milestones=[0.5,1.5]"),
        ("multistep", "milestones=0.5"),
        ("multistep", "milestones=[0.75,0.5]"),
        ("multistep", "gamma=0"),
        ("plateau", "factor=2"),
        ("plateau", "factor=1"),
        ("plateau", "patience=-1"),
        ("plateau", "patience=0.5"),
    ],
)
def test_schedules_refuse_by_key(schedule: str, override: str) -> None:
    key = override.partition("=")[0]
    message = refusal(lambda: check(compose_config([f"schedule={schedule}", f"schedule.{override}"])))
    assert message.startswith(f"schedule.{key}=")


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("class_names", "[a,a,b]", "a name of its own"),
        ("class_names", "[a]", "at least two"),
        ("crop", "9999", "set a smaller crop"),
        ("padding", "9999", "set it below"),
        ("scale", "[2,1]", "the smaller one first"),
        ("mean", "[0.5]", "three numbers"),
        ("std", "[1,1,0]", "above 0"),
        ("fold", "3", "set data.folds"),
    ],
)
def test_keys_of_the_data_that_contradict_each_other_stop_before_anything_is_read(
    key: str, value: str, remedy: str
) -> None:
    message = outcome(f"data.{key}", value)
    assert message.startswith(f"data.{key}=")
    assert remedy in message


def test_hints_come_from_the_annotations() -> None:
    assert hints_of("resnet_lab.optim.sgd")["lr"] == NotNegative
    assert hints_of("resnet_lab.optim.multistep")["gamma"] == Positive
    assert "class_counts" not in hints_of("resnet_lab.objectives.cross_entropy")  # `values` knows no Sequence
    assert hints_of("resnet_lab.data.synthetic.Synthetic")["rotation"] == Annotated[float, Within(0, 360)]
    assert hints_of("resnet_lab.data.synthetic.Synthetic")["image_size"] == Annotated[int, Within(1, 10_000)]
    assert hints_of("own.package.Net") == {}


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (NotNegative, -0.1, "a number from 0"),
        (Share, 1.01, "a number from 0 to 1"),
        (Share, float("nan"), "a number from 0 to 1"),
        (Share, True, "a number from 0 to 1"),
    ],
)
def test_limits_in_words(hint: object, value: object, words: str) -> None:
    assert refusal(conform, "a.b", value, hint) == f"a.b={value}: must be {words}"


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("experiment=null", "leave it out"),
        ("experiment=null,demo", "leave it out"),
        ("scale=0.5", "leave it out"),
        ("data=", "conf/data"),
        ("data={a: 1}", "conf/data"),
        ("data=nan", "conf/data"),
    ],
)
def test_a_group_that_is_set_to_nothing_is_refused_by_name(argument: str, remedy: str) -> None:
    message = refusal(check_overrides, [argument])
    assert message.startswith(f"{argument}: ")
    assert remedy in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "optim.lr"),
        ("batch_size", "data.batch_size"),
        ("optimizer", "optim"),
        ("max_epochs", "trainer.max_epochs"),
        ("learning_rate", "optim.lr"),
        ("trainer.epochs", "trainer.max_epochs"),
        ("trainer.gpus", "trainer.devices"),
        ("arch", "model"),
        ("scheduler", "schedule"),
        ("criterion", "loss"),
        ("dataset", "data"),
        ("callback", "callbacks"),
        ("model.lr", "optim.lr"),
    ],
)
@pytest.mark.parametrize("sign", ["", "+"])
def test_what_others_call_a_key_is_understood(typed: str, meant: str, sign: str) -> None:
    def compose() -> None:
        check(compose_config([f"{sign}{typed}=1"]))

    assert f"did you mean {meant}?" in refusal(compose)


def test_synonyms_name_keys_that_there_are() -> None:
    names = known_keys() | {*CHOSEN}
    assert set(SYNONYMS.values()) <= names
    assert not set(SYNONYMS) & {name.rpartition(".")[2] for name in names}
