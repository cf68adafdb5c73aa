"""The check of a configuration, of every `_target_` against its signature (without importing it), and the call."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.data.settings import refuse_contradictions
from resnet_lab.errors import NO_ROOM, UserError, count, reason_of
from resnet_lab.keys import known_keys, no_such_key, suggestion
from resnet_lab.run_folder import flat, is_bookkeeping, of_logger
from resnet_lab.schema import (
    BY_NAME,
    CHOSEN,
    FIGURES,
    FOR_LOGGERS,
    FOR_OTHERS,
    MISSING,
    OF_JOB,
    PROVIDED,
    Config,
    TrainerConfig,
    conf_dir,
)
from resnet_lab.signatures import REQUIRED, Arguments, arguments_of, hints_of, installation, is_ours, signature
from resnet_lab.trust import WELL_KNOWN, refuse_foreign, trust_words
from resnet_lab.values import conform

ABSENT = "absent"
PHOTOGRAPHS = "resnet_lab.data.photographs.Photographs"  # what `predict` puts in the place of the data
PARTIAL = ("optim", "schedule")  # the groups that are called with more arguments later


def register() -> None:
    """Make the schema and the name of a sweep's job known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration of these overrides, outside Hydra's own command line.

    Raises:
        UserError: a key, group or value does not exist.
    """
    register()
    check_overrides(overrides)
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """The message of an error of Hydra, OmegaConf or the operating system, with its cause, without line breaks."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        remedy = "free some space" if error.errno in NO_ROOM else "choose a sweep_dir that can be written"
        return f"{error.filename or 'disk'}: {error.strerror}; {remedy}"
    text = f"{error}\n{error.__cause__ or ''}"
    unknown = re.search(r"Key '.*' (?:not in '|is not in struct)", text)
    key = re.search(r"Could not override '(.+)'|full_key: (.+)", text)
    if unknown and key and key[1] in known_keys():
        return f"{key[1]} is a mapping; add to it with +{key[1]}={{…}}"
    if unknown and key:
        return no_such_key(key[1] or key[2])
    if "Incompatible key type 'NoneType'" in text:
        return "a key of a mapping is null, as in labels: {model.pretrained: {null: scratch}}; write none"
    text = str(error).partition("Config search path")[0]
    lines = [line.strip(" .\t") for line in f"{text}\n{error.__cause__ or ''}".splitlines()]
    noise = ("full_key:", "object_type=", "reference_type=", "To append")
    kept = [line for line in lines if line and not line.startswith(noise)]
    return "; ".join([*kept, "resnet-lab train --keys lists all keys"])


def job_name(overrides: str, sweep_dir: str | None = None) -> str:
    """The folder of a sweep's job, from `key=value,key=value`: readable, and usable as a value of an override.

    `model.depth=18,seed=0` → `depth-18_seed-0`. A value that is no plain word is cut to its end, with a hash.

    Args:
        overrides: of the job.
        sweep_dir: a folder; where it holds a job with the same `data.root`, typed otherwise, the name is that one's.
    """
    pairs = [item.partition("=")[::2] for item in re.split(r",(?=[\w.@/+~]+=)", overrides) if item]
    pairs = [(key, value) for key, value in pairs if not of_logger(key)]
    root = next((value for key, value in pairs if key == "data.root"), None)
    names = [
        _name_of([(key, typed if key == "data.root" else value) for key, value in pairs]) for typed in _typed(root)
    ]
    there = (name for name in names if sweep_dir is not None and Path(sweep_dir, name).is_dir())
    return next(there, names[min(1, len(names) - 1)])


def _typed(path: str | None) -> list[str]:
    """The ways to type a path: as it is, without detours, from here, and from the root."""
    if path is None:
        return [""]
    plain = path.strip("'\"")
    whole = os.path.abspath(Path(plain).expanduser())  # noqa: PTH100 - links stay
    return [path, os.path.normpath(plain), os.path.relpath(whole), whole]


def _name_of(pairs: Sequence[tuple[str, str]]) -> str:
    last = [key.split(".")[-1] for key, _ in pairs]
    names = [
        f"{short if last.count(short) == 1 else key}-{_plain(value)}"
        for short, (key, value) in zip(last, pairs, strict=True)
    ]
    name = "_".join(names) or "job"
    return name if len(name) <= 150 else f"{name[:140]}~{_hash(name, 8)}"


def _plain(value: str) -> str:
    word = re.sub(r"[^\w.+-]+", "-", value.rstrip("/").rsplit("/", 1)[-1]).strip("-")
    return word if word == value else f"{word}~{_hash(value, 4)}"


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def check(config: DictConfig, importing: bool = False) -> None:
    """Everything that can be wrong with a configuration before anything is built.

    Args:
        config: composed.
        importing: whether parts from outside are imported, and their arguments checked, too.

    Raises:
        UserError: a mandatory key is not set, or a group has a key that its `_target_` does not take, or lacks one.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{missing[0]} is not set; give {missing[0]}=… on the command line")
    _check_names(config, Config)
    if not isinstance(config.trainer, DictConfig):
        raise UserError(f"trainer={config.trainer}: it has to be a group of keys; choose one with trainer=…")
    _check_names(config.trainer, TrainerConfig, "trainer.")
    _check_values(config, Config)
    _check_values(config.trainer, TrainerConfig, "trainer.")
    if config.follow_layers and config.trainer.compile:
        raise UserError(
            "follow_layers=true with trainer.compile: a compiled network does not show its layers; set one to false"
        )
    if unknown := [name for name in config.figures if name not in FIGURES]:
        close = difflib.get_close_matches(str(unknown[0]), FIGURES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose among {', '.join(FIGURES)}"
        raise UserError(f"figures: there is none called {unknown[0]}; {hint}")
    _check_labels(OmegaConf.to_container(config, resolve=True))
    for group in PROVIDED:
        node = config[group]
        if not isinstance(node, DictConfig) or node.get("_target_") is None:
            raise UserError(f"{group} has no _target_; choose one with {group}=…, see conf/{group}/")
        _check_part(group, node, importing)
        if node.get("_partial_", False) is not (group in PARTIAL):
            raise UserError(f"{group}._partial_={node.get('_partial_')}: it has to be {group in PARTIAL}".lower())
    for group in BY_NAME:
        _check_named(group, config[group], importing)


def _check_labels(config: Any) -> None:
    """Refuse labels of a key that does not exist, labels that are no text, and equal ones of two values."""
    if not isinstance(config["labels"], dict):
        raise UserError(f"labels={config['labels']}: must be a mapping {{key: {{value: text}}}}")
    known = {*flat(config), *known_keys()}  # another network may lack what an experiment labels
    for key, texts in config["labels"].items():
        if key not in known:
            raise UserError(f"labels: {no_such_key(str(key))}")
        if not isinstance(texts, dict):
            raise UserError(f"labels: {key}: {texts}: must be a mapping {{value: text}}")
        for value, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"labels: {key}: {value}: {text}: must be text; quote words such as on and no")
            if list(texts.values()).count(text) > 1:
                raise UserError(f"labels: {key}: two values are labeled {text}; give each a text of its own")


def _check_named(group: str, parts: Any, importing: bool) -> None:
    """Refuse parts that have no names, or no `_target_`, and what is wrong with the keys of each."""
    kind = group.removesuffix("s")
    if not isinstance(parts, DictConfig):
        raise UserError(f"{group}={parts}: it has to be a group of {kind}s by name")
    for name, node in parts.items():
        place = f"{group}.{name!s}"
        if not isinstance(node, DictConfig) or node.get("_target_") is None:
            raise UserError(f"{place} has no _target_; set {place}._target_ to the name of a {kind}")
        _check_part(place, node, importing)


def _check_part(group: str, node: DictConfig, importing: bool) -> None:
    """Refuse keys that a part does not take, and the lack of those that it needs."""
    target = node["_target_"]
    if not isinstance(target, str) or not target:
        raise UserError(f"{group}._target_={target}: must be text, the dotted name of a function or class")
    refuse_foreign(group, OmegaConf.to_container(node), {target})  # special keys in other places
    if not is_ours(target) and not importing:
        return
    takes, keys = _arguments(group, target), {str(key) for key in node} - {"_target_", "_partial_"}
    own = OF_JOB.get(group, {})
    if shared := sorted({*own} & takes.required):
        raise UserError(f"{group}._target_={target}: the job uses the key {shared[0]}; rename that argument")
    provided = PROVIDED.get(group, FOR_LOGGERS if of_logger(group) else set()) & {*takes.defaults}
    if not is_ours(target):
        provided -= FOR_LOGGERS & keys
        provided |= {*list(takes.defaults)[:1]} if group in PARTIAL else set()  # which comes by its place
        keys -= {*_of_the_job(group, node, takes)}
    taken = {*takes.defaults, *own} - provided
    for key in sorted(keys & provided if takes.others else keys - taken):
        typed = f"{group}.{key}"
        meant = suggestion(typed, {f"{group}.{name}" for name in taken}) or suggestion(typed, known_keys())
        hint = meant or f"it takes {', '.join(sorted(taken)) or 'none'}"
        if key in provided:
            hint = "the job sets it"
        raise UserError(f"{group}.{key}: {target} takes no such argument; {hint}")
    if lacking := sorted((takes.required | {*own}) - provided - keys):
        hint = "; name a function or class that returns the loss function" if group == "loss" else ""
        needs = f"{'every run' if lacking[0] in own else target} needs it"
        raise UserError(f"{group}.{lacking[0]} is missing; {needs}{hint}")
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    for key, hint in (hints_of(target) | own).items():
        if key in keys:
            plain[key] = conform(f"{group}.{key}", plain[key], hint)
    if group == "data" and is_ours(target):
        refuse_contradictions({str(key): value for key, value in plain.items()})


def _check_values(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Refuse the value of a key that is not as its hint in the schema says."""
    plain = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    for each in fields(schema):
        if "hint" in each.metadata:
            conform(f"{prefix}{each.name}", plain[each.name], each.metadata["hint"])
    devices = plain.get("devices")
    if isinstance(devices, list) and len({*devices}) < max(len(devices), 1):
        raise UserError(f"{prefix}devices={devices}: give auto, a number, or different numbers of devices")


def _check_names(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Refuse a key that the schema does not have, which nothing would read, and the lack of one that it has."""
    names, known = {str(name) for name in node}, {each.name for each in fields(schema)}
    if unknown := sorted(names - known):
        raise UserError(no_such_key(f"{prefix}{unknown[0]}"))
    if lacking := sorted(known - names):
        raise UserError(f"{prefix}{lacking[0]} is missing; every run needs it")


def without_unknown(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration without the keys that the schema does not have, and their dotted names.

    Versions before 2 accepted such keys, and nothing read them.
    """
    top, trainer = ({each.name for each in fields(schema)} for schema in (Config, TrainerConfig))
    kept = {key: value for key, value in config.items() if key in top}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key in trainer}
    unknown = [key for key in config if key not in top]
    return kept, unknown + [f"trainer.{key}" for key in config["trainer"] if key not in trainer]


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would add to the configuration although nothing reads it.

    Args:
        arguments: of a command line.

    Raises:
        UserError: a group is added that has been chosen already, or set to nothing, or a key that Hydra does not have.
    """
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key in CHOSEN:
            _refuse_no_names(argument, key)
        if not argument.startswith("+"):
            continue
        if key in CHOSEN:
            raise UserError(f"{argument}: {key} has a default already; write {key}={value}")
        if key.startswith("hydra."):
            _check_hydra(key)


def _refuse_no_names(argument: str, group: str) -> None:
    """Stop where a group is chosen by null, a number or a mapping, which Hydra takes for a defect."""
    try:
        override = OverridesParser.create().parse_override(argument)
        chosen = list(override.sweep_iterator()) if override.is_choice_sweep() else [override.value()]
    except HydraException:  # composing says it
        return
    if not all(isinstance(each, str | list) and each for each in chosen):
        remedy = ", or leave it out" if group in ("experiment", "scale") else ""
        raise UserError(f"{argument}: name a file of conf/{group}/{remedy}")


def _check_hydra(key: str) -> None:
    known: Any = HydraConf
    for name in key.split(".")[1:]:
        hints = get_type_hints(known) if is_dataclass(known) else None
        if hints is None:  # a mapping of free names, or what a plugin defines
            return
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            raise UserError(f"{key}: Hydra has no such key" + (f"; did you mean {close[0]}?" if close else ""))
        known = hints[name]


def _arguments(group: str, target: str) -> Arguments:
    if not is_ours(target):
        return arguments_of(group, target)
    required, optional = signature(target)
    return Arguments(dict.fromkeys(required, REQUIRED) | dict.fromkeys(optional), others=False)


def _of_the_job(group: str, node: Mapping[Any, Any], takes: Arguments) -> dict[str, Any]:
    """The keys of a part from outside that the job reads itself, with their values.

    Those that the part takes itself are its own, but for a name of weights where it takes a truth value only (timm).
    """
    found = {key: node[key] for key in FOR_OTHERS.get(group, ()) if key in node}
    return {
        key: value
        for key, value in found.items()
        if key not in takes.defaults or (isinstance(takes.defaults[key], bool) and isinstance(value, str))
    }


def of_the_job(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the job reads itself, of a part that `check` has passed; empty of a part of ours.

    Raises:
        UserError: see `imported`.
    """
    target = str(node["_target_"])
    return {} if is_ours(target) else _of_the_job(group, node, arguments_of(group, target))


@cache
def named_in_conf(group: str) -> frozenset[str]:
    """The exact names that our own conf/ has as `_target_` of a group, and what `predict` puts there."""
    nodes = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in (conf_dir() / group).glob("*.yaml")]
    if group in BY_NAME:
        nodes = [each for node in nodes for each in node.values()]
    targets = {node.get("_target_") for node in nodes} - {None, MISSING}
    return frozenset(targets) | ({PHOTOGRAPHS} if group == "data" else set())


def known_names(group: str) -> frozenset[str]:
    """The exact names that a given file may have called: those of conf/, and well-known ones."""
    return named_in_conf(group) | WELL_KNOWN.get(group, frozenset())


def refuse_foreign_targets(config: Mapping[str, Any]) -> None:
    """Stop at a group of a given configuration that names what is not to be called (see `trust`).

    Raises:
        UserError: there is one.
    """
    for group in PROVIDED:
        refuse_foreign(group, config.get(group), known_names(group))


def refuse_foreign_named(config: Mapping[str, Any]) -> None:
    """Likewise of its callbacks and loggers, which a training alone calls.

    Raises:
        UserError: there is one.
    """
    for group, name, node in _named(config):
        refuse_foreign(group, node, known_names(group), f"{group}.{name}")


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Group, name and node of each callback and logger."""
    for group in BY_NAME:
        parts = config.get(group)
        yield from ((group, str(name), node) for name, node in parts.items()) if isinstance(parts, Mapping) else ()


def words_of_trust(config: Mapping[str, Any]) -> list[str]:
    """What a configuration that the user composed names beside what conf/ does: `GROUP:dotted.name`."""
    words = trust_words(config, {group: known_names(group) for group in PROVIDED})
    for group, _, node in _named(config):
        words += trust_words({group: node}, {group: known_names(group)})
    return words


def build(group: str, node: dict[str, Any], place: str = "", **arguments: Any) -> Any:
    """What a group's `_target_` makes; a UserError raised in it comes out as it is. The one call of `instantiate()`.

    Args:
        group: of the configuration.
        node: what the group holds.
        place: where it stands in the configuration; empty: at the group.
        arguments: of the job; a part is given those that it names, and a network with `**kwargs` gets `num_classes`.
            The keys of the job itself (`OF_JOB`) are left out.

    Raises:
        UserError: nothing in conf/, and no word of trust, has its name; or it is from outside and raises an error.
    """
    refuse_foreign(group, node, known_names(group), place)
    target, place = node["_target_"], place or group
    node = {key: value for key, value in node.items() if key not in OF_JOB.get(group, ())}
    takes, jobs = _arguments(group, target), of_the_job(group, node)
    node = {key: value for key, value in node.items() if key not in jobs}
    arguments = {
        key: value
        for key, value in arguments.items()
        if key in takes.defaults or (takes.others and (group, key) == ("model", "num_classes"))
    }
    try:
        return instantiate(node, **arguments, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if is_ours(target):
            raise
        cause = error.__cause__ or error
        reason = reason_of(cause)
        if isinstance(cause, ModuleNotFoundError):
            lacks = f"{place}._target_ {target} needs a package that is not installed: {reason}"
            raise UserError(f"{lacks}; {installation(target)}") from error
        raise UserError(f"{place}._target_ {target} cannot be built from its keys: {reason}") from error


def config_hash(config: dict[str, Any]) -> str:
    """Equal for two runs that differ in paths and bookkeeping alone."""
    return _hash(json.dumps(_comparable(config), sort_keys=True), 16)


def differences(before: dict[str, Any], now: dict[str, Any], most: int = 5) -> list[str]:
    """The keys in which two configurations differ, paths and bookkeeping aside, with both values; at most `most`."""
    old, new = _comparable(before), _comparable(now)
    keys = [key for key in {**old, **new} if key in changed_keys(before, now)]
    texts = [f"{key} is {old.get(key, ABSENT)} there, {new.get(key, ABSENT)} here" for key in keys[:most]]
    return texts + ([f"and {count(len(keys) - most, 'more key')}"] if len(keys) > most else [])


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """The dotted keys in which two configurations differ, paths and bookkeeping aside."""
    old, new = _comparable(before), _comparable(now)
    return {key for key in {**old, **new} if old.get(key, ABSENT) != new.get(key, ABSENT)}


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if not is_bookkeeping(key)}
