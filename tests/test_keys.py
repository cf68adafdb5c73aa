"""Every key: odd values are refused in one line that names it or have a meaning, and one place documents it."""

from __future__ import annotations

import ast
import copy
import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest
import yaml
from conftest import composed, with_values
from fake_data import refusal
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab import keys
from resnet_lab.axes import as_typed
from resnet_lab.config import check, check_overrides, compose_config
from resnet_lab.errors import UserError
from resnet_lab.hydra_errors import one_line
from resnet_lab.keys import SYNONYMS, known_keys, suggestion
from resnet_lab.schema import CHOSEN, Config, TrainerConfig, conf_dir
from resnet_lab.signatures import hints_of, is_ours
from resnet_lab.values import NotNegative, Positive, Share, Within, conform

ODD = ("-1", "0.5", "nan", "inf", "-inf", "1e400", "null", "abc", "[1,2]", "{a:1}", "true")
FINE = {  # key → allowed values among ODD
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
    "trainer.tta": (),
    "trainer.log_every_n_steps": (),
    "trainer.profiler": ("null",),
    "model.freeze": ("-1", "0.5", "null", "nan", "inf", "-inf", "1e400", "abc", "[1,2]"),
    "model.unfreeze_at_epoch": ("null",),
    "model.zero_init_head": ("true",),
    "optim.backbone_lr_factor": ("0.5",),
    "loss.teacher": ("-1", "0.5", "null", "nan", "inf", "-inf", "1e400", "abc"),
    "loss.temperature": ("0.5",),
    "loss.teacher_weight": ("0.5",),
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
    "data.mixup": ("0.5",),
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


def outcome(config: DictConfig, key: str, value: str) -> str:
    """Return the line that refuses a value; empty if the value is allowed. The configuration stays as it was."""
    before = copy.deepcopy(OmegaConf.select(config, key))
    try:
        OmegaConf.update(config, key, yaml.safe_load(value.replace("nan", ".nan").replace("inf", ".inf")))
        check(config)
    except (UserError, OmegaConfBaseException) as error:
        return one_line(error)
    finally:
        OmegaConf.update(config, key, before)
    return ""


@pytest.mark.parametrize("key", FINE)
def test_odd_values_are_refused_by_key_or_have_a_meaning(key: str) -> None:
    config = copy.deepcopy(composed(()))
    said = {value: outcome(config, key, value) for value in ODD}
    assert config == composed(())
    assert {value for value, line in said.items() if not line} == {*FINE[key]}
    assert all("\n" not in line for line in said.values())
    assert all(key in line or "full_key" not in line for line in said.values())


@pytest.mark.parametrize("key", ["seed", "trainer.devices", "optim.lr", "loss.label_smoothing", "trainer.max_epochs"])
def test_the_command_line_names_the_key(key: str) -> None:
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
def test_common_mistakes_are_refused_by_key(override: str) -> None:
    assert override.partition("=")[0] in refusal(lambda: check(with_values([override])))


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
    message = refusal(lambda: check(with_values([f"schedule={schedule}", f"schedule.{override}"])))
    assert message.startswith(f"schedule.{key}=")


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("class_names", "[a,a,b]", "must not repeat"),
        ("class_names", "[a]", "at least two"),
        ("crop", "9999", "set a smaller crop"),
        ("padding", "9999", "set it below"),
        ("scale", "[2,1]", "the smaller first"),
        ("mean", "[0.5]", "three numbers"),
        ("std", "[1,1,0]", "above 0"),
        ("fold", "3", "set data.folds"),
    ],
)
def test_keys_of_the_data_that_contradict_each_other_stop_before_anything_is_read(
    key: str, value: str, remedy: str
) -> None:
    message = outcome(copy.deepcopy(composed(())), f"data.{key}", value)
    assert message.startswith(f"data.{key}=")
    assert remedy in message


@pytest.mark.parametrize("value", ["true", "null"])
def test_the_choices_of_initial_weights_are_named(value: str) -> None:
    message = refusal(lambda: check(with_values([f"model.pretrained={value}"])))
    assert message == f"model.pretrained={value}: choose none, imagenet, or the path of a file or run"


def test_a_first_label_beside_a_mapping_of_labels_is_refused() -> None:
    words = ["data=retinopathy", "data.root=x", "data.labels={a: 0}", "data.first_label=1"]
    message = refusal(lambda: check(with_values(words)))
    assert message.startswith("data.first_label=1 has no effect: data.labels names the class of each label")


def test_hints_come_from_the_annotations() -> None:
    assert hints_of("resnet_lab.optim.sgd")["lr"] == NotNegative
    assert hints_of("resnet_lab.optim.multistep")["gamma"] == Positive
    assert "class_counts" not in hints_of("resnet_lab.objectives.cross_entropy")  # `values` does not support Sequence
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
        (bool | Literal["auto"], 2, "true, false or auto"),
    ],
)
def test_limits_in_words(hint: object, value: object, words: str) -> None:
    assert refusal(conform, "a.b", value, hint) == f"a.b={as_typed(value)}: must be {words}"


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
        ("+lr", "optim.lr"),
        ("+optimizer", "optim"),
        ("+model.lr", "optim.lr"),
    ],
)
def test_synonyms_of_keys_are_understood(typed: str, meant: str) -> None:
    def compose() -> None:
        check(compose_config([f"{typed}=1"]))

    assert f"did you mean {meant}?" in refusal(compose)


def test_synonyms_name_existing_keys() -> None:
    names = known_keys() | {*CHOSEN}
    assert set(SYNONYMS.values()) <= names
    assert not set(SYNONYMS) & {name.rpartition(".")[2] for name in names}


FILES = [("", "config"), *((group, file.stem) for group in keys.GROUPS for file in conf_dir().glob(f"{group}/*.yaml"))]
SPECIAL = {"defaults", "hydra", "_target_", "_partial_"}


@pytest.mark.parametrize(("group", "name"), FILES)
def leaves(node: dict, known: dict, prefix: str = "") -> dict:
    """Return dotted keys with values; a mapping is a value if `known` has it."""
    found = {}
    for key, value in node.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" not in known:
            found |= leaves(value, known, f"{prefix}{key}.")
        elif key not in SPECIAL:
            found[f"{prefix}{key}"] = value
    return found


@pytest.mark.parametrize(("group", "name"), FILES)
def test_the_keys_of_a_file_are_those_that_yaml_finds(group: str, name: str) -> None:
    found = {key: yaml.safe_load(default) for key, (default, _) in keys._read(group, name).keys.items()}
    content = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text("utf-8"))
    content.pop("hydra", None)
    chosen = [each for each in content.pop("defaults", []) if isinstance(each, dict)]
    own = leaves(content, found if group else {})
    assert found == own | {key: each[key] for each in chosen for key in each if key.isidentifier()}


def test_every_key_has_one_meaning() -> None:
    meanings = {name: {key.meaning for key in keys.all_keys() if key.name == name} for name in known_keys()}
    assert {name: found for name, found in meanings.items() if len(found) != 1 or "" in found} == {}
    assert all(key.allowed for key in keys.all_keys())


def test_every_choice_has_a_description() -> None:
    assert [(group, name) for group in CHOSEN for name, about in keys.choices_of(group).items() if not about] == []


def test_the_defaults_are_those_that_a_run_has() -> None:
    config = compose_config([])
    chosen = {key.name: key.default for key in keys.all_keys() if key.name in CHOSEN}
    for name, of in ((key.name, key.group) for key in keys.all_keys() if key.name not in CHOSEN):
        same = [key for key in keys.all_keys() if key.name == name]
        here = [key.default for key in same if chosen.get(of) in key.choices]
        here = here or [key.default for key in same if not key.choices]
        value = OmegaConf.to_container(OmegaConf.create(f"value: {here[0]}"))["value"] if here else None
        assert OmegaConf.select(config, name) == value or "${" in here[0], name


def words_of(hint: object) -> set[str]:
    """Return the words among the values of a type hint."""
    if get_origin(hint) is Literal:
        return {*map(str, get_args(hint))}
    return {word for each in get_args(hint) for word in words_of(each)}


def test_the_allowed_words_of_a_key_are_in_its_description() -> None:
    hints = {f"trainer.{each.name}": each.metadata["hint"] for each in fields(TrainerConfig)}
    hints |= {each.name: each.metadata["hint"] for each in fields(Config) if "hint" in each.metadata}
    for group, name in FILES[1:]:
        for target in keys._read(group, name).targets:
            hints |= {f"{group}.{key}": hint for key, hint in hints_of(target).items()}
    meanings = {key.name: key.meaning for key in keys.all_keys()}
    lacking = {
        name: {word for word in words_of(hint) if word not in meanings.get(name, word)} for name, hint in hints.items()
    }
    assert {name: words for name, words in lacking.items() if words} == {}


def our_targets() -> list[str]:
    targets = {target for group, name in FILES for target in keys._read(group, name).targets if is_ours(target)}
    return sorted({*targets, "resnet_lab.data.image_data.ImageData", "resnet_lab.data.arrays.ArrayData"})


@pytest.mark.parametrize("target", our_targets())
def test_no_key_is_also_described_in_the_code(target: str) -> None:
    module, _, name = target.rpartition(".")
    source = Path(importlib.util.find_spec(module).origin).read_text("utf-8")
    (node,) = [each for each in ast.parse(source).body if getattr(each, "name", "") == name]
    described = set(re.findall(r"^ +(\w+): ", ast.get_docstring(node) or "", re.MULTILINE))
    assert described & {key.rpartition(".")[2] for key in known_keys()} == set()
    if isinstance(node, ast.ClassDef):
        lines = [source.splitlines()[each.end_lineno - 1] for each in node.body if isinstance(each, ast.AnnAssign)]
        assert [line for line in lines if "#" in line] == []


@pytest.mark.parametrize(
    ("pattern", "some", "none"),
    [
        ("seed", {"seed"}, {"data.split_seed"}),
        ("_seed", {"data.split_seed", "data.draw_seed"}, {"seed"}),
        ("model", {"model", "model.depth", "model.freeze"}, {"data.mean"}),
        ("optim.*", {"optim.lr", "optim.momentum"}, {"optim"}),
        ("LR", {"optim.lr", "optim.backbone_lr_factor"}, {"seed"}),
        ("ema.decay", {"callbacks.ema.decay"}, {"data.sampling_decay"}),
    ],
)
def test_a_pattern_is_a_key_a_group_a_glob_or_a_part(pattern: str, some: set[str], none: set[str]) -> None:
    found = {key.name for key in keys.matching([pattern])}
    assert some <= found
    assert not none & found


@pytest.mark.parametrize(
    ("pattern", "fact"),
    [
        ("learning_rate", "did you mean optim.lr?"),
        ("data.btach_size", "did you mean data.batch_size?"),
        ("data.color_jitter", "data.brightness"),
        ("optim.*q", "train --keys"),
    ],
)
def test_a_pattern_without_keys_is_refused(pattern: str, fact: str) -> None:
    assert fact in refusal(keys.matching, ["seed", pattern])


def test_a_key_with_the_whole_name_comes_first() -> None:
    assert keys.matching(["lr"])[0].name == "optim.lr"
    assert keys.matching() == list(keys.all_keys())


def test_the_text_of_a_key() -> None:
    text = keys.as_text(keys.matching(["data.batch_size", "model.depth"]))
    assert "    values   a whole number from 1\n    default  64\n" in text
    assert "128  data=cifar10|medmnist|retinamnist" in text
    assert "20  model=resnet_cifar: 6n+2" in text
    assert max(map(len, keys.as_text(keys.matching()).splitlines())) <= 80


def test_a_key_of_another_choice_names_the_choices_that_have_it():
    assert suggestion("model.dropout", known_keys()) == "it is a key of model=example_cnn"
    assert (
        suggestion("scale", known_keys()) == "it only chooses a file; write scale=NAME with one of full, reduced, smoke"
    )
    assert "model=resnet_cifar" in suggestion("model.depth", known_keys())
    assert suggestion("lr", known_keys()) == "did you mean optim.lr?"
