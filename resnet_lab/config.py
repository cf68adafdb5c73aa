"""Compose and check a configuration, and build its parts; a `_target_` is checked by its signature, not imported."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import sys
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

from resnet_lab.axes import as_typed
from resnet_lab.data.settings import refuse_contradictions
from resnet_lab.errors import UserError, count, reason_of
from resnet_lab.hydra_errors import one_line, with_file
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
from resnet_lab.signatures import (
    REQUIRED,
    Arguments,
    arguments_of,
    hints_of,
    installation,
    is_ours,
    ordinal_losses,
    signature,
)
from resnet_lab.trust import WELL_KNOWN, refuse_foreign, trust_words
from resnet_lab.values import Text, conform

ABSENT = "absent"
PHOTOGRAPHS = "resnet_lab.data.photographs.Photographs"  # replaces the data set in `predict`
PARTIAL = ("optim", "schedule")  # groups whose objects get more arguments later
TYPED = {  # key outside the groups of parts → type of its values
    f"{prefix}{each.name}": each.metadata["hint"]
    for prefix, schema in (("", Config), ("trainer.", TrainerConfig))
    for each in fields(schema)
    if "hint" in each.metadata
}


def register() -> None:
    """Register the schema and the resolver `job_name` with Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)


def compose_config(overrides: Sequence[str], config_dir: str | Path = "") -> DictConfig:
    """Return the configuration of these overrides, without Hydra's command line.

    Args:
        overrides: `KEY=VALUE`.
        config_dir: folder of further YAML files; empty: none.

    Raises:
        UserError: a key, group, value or folder does not exist, or an override is a flag.
    """
    register()
    if odd := [each for each in overrides if not isinstance(each, str)]:
        raise UserError(f"{odd[0]}: give each override as a separate string, such as 'model.depth=18', 'seed=1'")
    if flags := [each for each in overrides if each.startswith("-")]:
        raise UserError(f'{flags[0]}: flags are not overrides; give KEY=VALUE, and your own folder as config_dir="DIR"')
    check_overrides(overrides)
    overrides = [*overrides, *searchpath_of(config_dir)]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("config", overrides=overrides)
        OmegaConf.to_container(config, resolve=True)  # refuses a ${KEY} of an unknown key
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(with_file(one_line(error, overrides), overrides, config_dir)) from error
    return config


def composed(overrides: Sequence[str], config_dir: str | Path = "") -> DictConfig:
    """Return the checked configuration of these overrides; see `compose_config`.

    Raises:
        UserError: as `compose_config`, or a value is wrong; it names the YAML file of the user that sets the value.
    """
    config = compose_config(overrides, config_dir)
    try:
        check(config)
    except UserError as error:
        raise UserError(with_file(str(error), overrides, config_dir)) from error
    return config


def searchpath_of(config_dir: str | Path) -> list[str]:
    """Return the override with which Hydra finds the YAML files of a folder; an empty list for an empty name.

    Raises:
        UserError: there is no such folder.
    """
    if not str(config_dir):
        return []
    if not Path(config_dir).is_dir():
        raise UserError(f"config_dir={config_dir}: {'not a' if Path(config_dir).exists() else 'no such'} folder")
    place = str(Path(config_dir).absolute()).replace("'", "\\'")
    return [f"hydra.searchpath=['file://{place}']"]


def job_name(overrides: str, sweep_dir: str | None = None) -> str:
    """Return the folder name of a sweep's job, which needs no quotes in an override.

    `model.depth=18,seed=0` → `depth-18_seed-0`. Of a value with other characters (a path), only the end is used, with
    a hash.

    Args:
        overrides: overrides of the job, `key=value,key=value`.
        sweep_dir: folder of the sweep. If it has a job that differs only in how `data.root` is written, that job's
            name is returned.
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
    """Return the ways to write a path: as given, normalized, relative and absolute."""
    if path is None:
        return [""]
    plain = path.strip("'\"")
    absolute = os.path.abspath(Path(plain).expanduser())  # noqa: PTH100 - links stay
    return [path, os.path.normpath(plain), os.path.relpath(absolute), absolute]


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


def check(config: DictConfig, importing: bool = False, unset: bool = False, trains: bool = True) -> None:
    """Check a configuration before anything is built.

    Args:
        config: composed configuration.
        importing: also import the parts that are not resnet_lab's, and check their arguments.
        unset: accept mandatory keys that are not set; if there are any, values are not checked.
        trains: also check that the loss fits the classes, which does not matter for a trained network.

    Raises:
        UserError: a mandatory key is not set, a value is wrong, a group has a key too many or too few, or the loss
            needs ordered classes.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing and not unset:
        raise UserError(f"{missing[0]} is not set; give {missing[0]}=… on the command line")
    _check_names(config, Config)
    if not isinstance(config.trainer, DictConfig):
        raise UserError(f"trainer={as_typed(config.trainer)}: must be a group of keys; choose one with trainer=…")
    _check_names(config.trainer, TrainerConfig, "trainer.")
    if not missing:
        _check_settings(config)
    for group in PROVIDED:
        node = config[group]
        if isinstance(node, DictConfig) and OmegaConf.is_missing(node, "_target_"):
            continue
        if not isinstance(node, DictConfig) or node.get("_target_") is None:
            raise UserError(f"{group} has no _target_; choose one with {group}=…, see conf/{group}/")
        _check_part(group, node, importing, bool(missing))
        if node.get("_partial_", False) is not (group in PARTIAL):
            raise UserError(f"{group}._partial_={node.get('_partial_')}: must be {group in PARTIAL}".lower())
    for group in BY_NAME:
        _check_named(group, config[group], importing, bool(missing))
    if trains and not missing:
        _refuse_unordered(config)


def _refuse_unordered(config: DictConfig) -> None:
    """Refuse a loss or a decision of grades for classes without an order: it would treat their numbers as distances."""
    if config.data.get("ordered"):
        return
    target, rule = str(config.loss["_target_"]), config.loss["decision"]
    if target in ordinal_losses():
        raise UserError(
            f"loss={target.rpartition('.')[2]} needs ordered classes, but data.ordered=false; set data.ordered=true if "
            "the classes are grades in their order, else loss=cross_entropy"
        )
    if rule not in ("auto", "argmax"):
        raise UserError(
            f"loss.decision={rule} needs ordered classes, but data.ordered=false; set data.ordered=true if the classes "
            "are grades in their order, else loss.decision=argmax"
        )


def _check_settings(config: DictConfig) -> None:
    """Refuse wrong values at the top level and of the trainer."""
    _check_values(config, Config)
    _check_values(config.trainer, TrainerConfig, "trainer.")
    if config.follow_layers and config.trainer.compile:
        raise UserError(
            "follow_layers=true with trainer.compile: layers of a compiled network cannot be observed; set one to false"
        )
    if unknown := [name for name in config.figures if name not in FIGURES]:
        close = difflib.get_close_matches(str(unknown[0]), FIGURES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose among {', '.join(FIGURES)}"
        raise UserError(f"figures: no figure is named {unknown[0]}; {hint}")
    _check_labels(OmegaConf.to_container(config, resolve=True))


def _check_labels(config: Any) -> None:
    """Refuse labels of an unknown key, labels that are not text, and equal labels of two values."""
    if not isinstance(config["labels"], dict):
        raise UserError(f"labels={as_typed(config['labels'])}: must be a mapping {{key: {{value: text}}}}")
    known = {*flat(config), *known_keys()}  # an experiment may label keys that another network lacks
    for key, texts in config["labels"].items():
        if key not in known:
            raise UserError(f"labels: {no_such_key(str(key))}")
        if not isinstance(texts, dict):
            raise UserError(f"labels: {key}: {as_typed(texts)}: must be a mapping {{value: text}}")
        for value, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                named = f"labels: {key}: {as_typed(value)}: {as_typed(text)}"
                raise UserError(f"{named}: must be text; quote words such as on and no")
            if list(texts.values()).count(text) > 1:
                raise UserError(f"labels: {key}: two values are labeled {text}; give each a different text")


def _check_named(group: str, parts: Any, importing: bool, missing: bool) -> None:
    """Check the callbacks or loggers: each needs a name, a `_target_` and valid keys."""
    kind = group.removesuffix("s")
    if not isinstance(parts, DictConfig):
        raise UserError(f"{group}={as_typed(parts)}: must be a mapping {{name: {kind}}}")
    for name, node in parts.items():
        place = f"{group}.{name!s}"
        if not isinstance(node, DictConfig) or node.get("_target_") is None:
            raise UserError(f"{place} has no _target_; set {place}._target_ to the name of a {kind}")
        _check_part(place, node, importing, missing)


def _check_part(group: str, node: DictConfig, importing: bool, missing: bool) -> None:
    """Refuse keys that a part does not take or lacks, and values of a wrong type; `missing`: some key is not set."""
    target = node["_target_"]
    if not isinstance(target, str) or not target:
        raise UserError(f"{group}._target_={as_typed(target)}: must be text, the dotted name of a function or class")
    refuse_foreign(group, OmegaConf.to_container(node), {target})  # refuses special keys below the top
    if not is_ours(target) and not importing:
        return
    takes, keys = _arguments(group, target), {str(key) for key in node} - {"_target_", "_partial_"}
    own = OF_JOB.get(group, {})
    if shared := sorted({*own} & takes.required):
        raise UserError(f"{group}._target_={target}: the job uses the key {shared[0]}; rename that argument")
    provided = PROVIDED.get(group, FOR_LOGGERS if of_logger(group) else set()) & {*takes.defaults}
    if not is_ours(target):
        provided -= FOR_LOGGERS & keys
        provided |= {*list(takes.defaults)[:1]} if group in PARTIAL else set()  # passed by position
        provided |= {"num_classes"} if takes.others and group == "model" else set()
        jobs = _of_the_job(group, node, takes)
        for key in jobs:
            conform(f"{group}.{key}", None if OmegaConf.is_missing(node, key) else node[key], FOR_OTHERS[group][key])
        keys -= {*jobs}
    taken = {*takes.defaults, *own} - provided
    unknown = sorted(keys & provided if takes.others else keys - taken)
    if faults := [_fault_of_key(group, key, target, taken, provided) for key in unknown]:
        raise UserError("; and ".join(faults))
    if lacking := sorted((takes.required | {*own}) - provided - keys):
        hint = "; name a function or class that returns the loss function" if group == "loss" else ""
        needs = f"{'every run' if lacking[0] in own else target} needs it"
        raise UserError(f"{group}.{lacking[0]} is missing; {needs}{hint}")
    if missing and OmegaConf.missing_keys(node):  # the configuration is only printed
        return
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    if group == "model" and "pretrained" in keys and is_ours(target) and isinstance(plain["pretrained"], bool | None):
        value = as_typed(plain["pretrained"])
        raise UserError(f"model.pretrained={value}: choose none, imagenet, or the path of a file or run")
    for key, hint in (hints_of(target) | own).items():
        if key in keys:
            plain[key] = conform(f"{group}.{key}", plain[key], hint)
    if group == "data" and is_ours(target):
        refuse_contradictions({str(key): value for key, value in plain.items()})


def _fault_of_key(group: str, key: str, target: str, taken: set[str], provided: set[str]) -> str:
    """Return the message for a key that a part does not take, or that the job provides."""
    typed = f"{group}.{key}"
    if key in provided:
        return f"{typed}: the job sets it; leave it out"
    elsewhere = {name for name in known_keys() if name.rpartition(".")[2] == key}
    meant = suggestion(typed, {f"{group}.{name}" for name in taken}) or suggestion(typed, elsewhere)
    hint = meant or f"it takes {', '.join(sorted(taken)) or 'no keys'}"
    if typed in known_keys():  # left over from another choice of the group
        hint += f"; if an experiment file sets it, remove it there, or add '~{typed}' to the command line"
    return f"{typed}: {target} takes no such argument; {hint}"


def _check_values(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Refuse values that do not match their hint in the schema."""
    plain = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    for each in fields(schema):
        if "hint" in each.metadata:
            conform(f"{prefix}{each.name}", plain[each.name], each.metadata["hint"])
    devices = plain.get("devices")
    if isinstance(devices, list) and len({*devices}) < max(len(devices), 1):
        raise UserError(f"{prefix}devices={devices}: give auto, a number, or different numbers of devices")


def _check_names(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Refuse unknown keys, which nothing would read, and missing ones."""
    names, known = {str(name) for name in node}, {each.name for each in fields(schema)}
    if unknown := sorted(names - known):
        raise UserError(no_such_key(f"{prefix}{unknown[0]}"))
    if lacking := sorted(known - names):
        raise UserError(f"{prefix}{lacking[0]} is missing; every run needs it")


def without_unknown(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration without unknown keys, and the dotted names of these keys.

    Schema version 1 accepted unknown keys, which nothing read.
    """
    top, trainer = ({each.name for each in fields(schema)} for schema in (Config, TrainerConfig))
    kept = {key: value for key, value in config.items() if key in top}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key in trainer}
    unknown = [key for key in config if key not in top]
    return kept, unknown + [f"trainer.{key}" for key in config["trainer"] if key not in trainer]


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse overrides that Hydra accepts although nothing reads them, or print that they have no effect.

    Args:
        arguments: arguments of a command line.

    Raises:
        UserError: a group is added twice or set to no name, a key of `hydra` does not exist or would rename jobs, or a
            key gets a list, a mapping or null that its type does not allow.
    """
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key in TYPED:
            _refuse_misfit(argument, key)
        if key in CHOSEN:
            _refuse_no_names(argument, key)
        if key in ("launcher", "hydra.launcher"):
            raise UserError(f"{argument}: a launcher is a group of Hydra; write hydra/launcher={value}")
        if key == "hydra.sweep.subdir":
            remedy = "leave this key out"
            raise UserError(f"{argument}: a job is named by its overrides, so that the same command finds it; {remedy}")
        if (key, value.lower()) == ("hydra.job.chdir", "true"):
            raise UserError(
                f"{argument}: jobs stay in the folder of the command, where relative paths begin; leave it out"
            )
        sweeps = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}
        if key == ("hydra.run.dir" if sweeps else "hydra.sweep.dir"):
            _print_ignored(argument, f"{'in' if sweeps else 'without'} a sweep; write sweep_dir={value}")
        if key == "hydra/launcher" and not sweeps:
            _print_ignored(argument, "without a sweep (-m)")
        if not argument.startswith("+"):
            continue
        if key in CHOSEN:
            raise UserError(f"{argument}: {key} has a default already; write {key}={value}")
        if key.startswith("hydra."):
            _check_hydra(key)
    last = {argument.lstrip("+").partition("=")[0]: argument for argument in arguments if "=" in argument}
    for argument in dict.fromkeys(arguments):
        if (later := last.get(argument.lstrip("+").partition("=")[0], argument)) != argument:
            _print_ignored(argument, f"because {later} comes later; leave one out")


def name_unused_folder(config_dir: str, overrides: Sequence[str]) -> None:
    """Print that `--config-dir` has no effect if no override chooses one of its files; it must exist."""
    chosen = [(key, values) for key, _, values in (each.lstrip("+").partition("=") for each in overrides)]
    words = [(key, [values.strip("'\""), *re.split(r"[,\s\[\]()'\"]+", values)]) for key, values in chosen]
    names = {f"{key}/{value.removesuffix('.yaml')}.yaml" for key, values in words for value in values}
    if not config_dir or any((Path(config_dir) / name).is_file() for name in names):
        return
    files = [(group, file) for group in sorted(CHOSEN) for file in sorted((Path(config_dir) / group).rglob("*.yaml"))]
    for group, file in files[:1]:
        example = f"{group}={file.relative_to(Path(config_dir) / group).with_suffix('').as_posix()}"
        _print_ignored(f"--config-dir {config_dir}", f"because no override chooses one of its files, such as {example}")


def _print_ignored(argument: str, why: str) -> None:
    print(f"{argument} has no effect {why}", file=sys.stderr, flush=True)


def _refuse_no_names(argument: str, group: str) -> None:
    """Refuse null, a number or a mapping as the choice of a group: Hydra raises an assertion error."""
    try:
        override = OverridesParser.create().parse_override(argument)
        chosen = list(override.sweep_iterator()) if override.is_choice_sweep() else [override.value()]
    except HydraException:  # raised again when the configuration is composed
        return
    if not all(isinstance(each, str | list) and each for each in chosen):
        remedy = ", or leave it out" if group in ("experiment", "scale") else ""
        raise UserError(f"{argument}: name a file of conf/{group}/{remedy}")
    if group in ("experiment", "scale") and (lists := [each for each in chosen if isinstance(each, list)]):
        swept = ",".join(map(str, lists[0]))
        raise UserError(f"{argument}: takes one name; a sweep over several is -m {group}={swept}")


def _refuse_misfit(argument: str, key: str) -> None:
    """Refuse a list, a mapping or null of a wrong type: Hydra's error does not name what the key allows."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:  # raised again when the configuration is composed
        return
    if override.is_sweep_override() or "${" in argument:
        return
    value, hint = override.value(), TYPED[key]
    if isinstance(value, list | dict) or (value is None and hint is not Text):
        conform(key, value, hint)


def _check_hydra(key: str) -> None:
    known: Any = HydraConf
    for name in key.split(".")[1:]:
        hints = get_type_hints(known) if is_dataclass(known) else None
        if hints is None:  # a mapping with any names, or the keys of a plugin
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
    """Return the keys that the job reads itself, with their values, of a part that is not resnet_lab's.

    A key that the part takes is passed to it instead, except text where the part takes true or false
    (`pretrained` of timm), and `none`.
    """
    found = {key: node[key] for key in FOR_OTHERS.get(group, ()) if key in node}
    return {
        key: value
        for key, value in found.items()
        if key not in takes.defaults
        or value == "none"
        or (isinstance(takes.defaults[key], bool) and isinstance(value, str))
    }


def _nothing_for(default: Any) -> Any:
    """Return what tells an external network to load no weights, from the default of its argument `pretrained`."""
    return False if isinstance(default, bool) else default if default == "none" else None


def of_the_job(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a checked part that the job reads itself, with their values; empty for resnet_lab's parts.

    Raises:
        UserError: see `imported`.
    """
    target = str(node["_target_"])
    return {} if is_ours(target) else _of_the_job(group, node, arguments_of(group, target))


@cache
def named_in_conf(group: str) -> frozenset[str]:
    """Return all `_target_` names of a group in resnet_lab's conf/, and the data set of `predict`."""
    nodes = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in (conf_dir() / group).glob("*.yaml")]
    if group in BY_NAME:
        nodes = [each for node in nodes for each in node.values()]
    targets = {node.get("_target_") for node in nodes} - {None, MISSING}
    return frozenset(targets) | ({PHOTOGRAPHS} if group == "data" else set())


def known_names(group: str) -> frozenset[str]:
    """Return the names that a file from others may call: those of conf/, and well-known ones."""
    return named_in_conf(group) | WELL_KNOWN.get(group, frozenset())


def refuse_foreign_targets(config: Mapping[str, Any]) -> None:
    """Refuse a configuration with a group whose `_target_` is neither known nor trusted (see `resnet_lab.trust`).

    Raises:
        UserError: a group has such a name.
    """
    for group in PROVIDED:
        refuse_foreign(group, config.get(group), known_names(group))


def refuse_foreign_named(config: Mapping[str, Any]) -> None:
    """Refuse callbacks and loggers whose `_target_` is neither known nor trusted; only training calls them.

    Raises:
        UserError: a callback or logger has such a name.
    """
    for group, name, node in _named(config):
        refuse_foreign(group, node, known_names(group), f"{group}.{name}")


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Yield group, name and node of each callback and logger."""
    for group in BY_NAME:
        parts = config.get(group)
        yield from ((group, str(name), node) for name, node in parts.items()) if isinstance(parts, Mapping) else ()


def words_of_trust(config: Mapping[str, Any]) -> list[str]:
    """Return the names (`GROUP:dotted.name`) that a user's own configuration calls and conf/ does not have."""
    words = trust_words(config, {group: known_names(group) for group in PROVIDED})
    for group, _, node in _named(config):
        words += trust_words({group: node}, {group: known_names(group)})
    return words


def build(group: str, node: dict[str, Any], place: str = "", **arguments: Any) -> Any:
    """Build the object of a group's `_target_`; the only call of `instantiate()`.

    Args:
        group: group of the configuration.
        node: content of the group; the keys that the job reads itself (`OF_JOB`) are removed.
        place: path of the node in the configuration; empty: the group.
        arguments: arguments of the job. A part gets those that it names; a network with `**kwargs` gets `num_classes`.

    Raises:
        UserError: the name is neither known nor trusted, building a part that is not resnet_lab's fails, or the part
            raises it itself.
    """
    refuse_foreign(group, node, known_names(group), place)
    target, place = node["_target_"], place or group
    node = {key: value for key, value in node.items() if key not in OF_JOB.get(group, ())}
    takes, jobs = _arguments(group, target), of_the_job(group, node)
    node = {key: value for key, value in node.items() if key not in jobs}
    node |= {key: _nothing_for(takes.defaults[key]) for key in jobs if key in takes.defaults}
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
    """Return a hash of all keys except paths and bookkeeping."""
    return _hash(json.dumps(_comparable(config), sort_keys=True), 16)


def differences(before: dict[str, Any], now: dict[str, Any], most: int = 5) -> list[str]:
    """Return the first `most` keys in which two configurations differ, with both values; see `changed_keys`."""
    old, new = _comparable(before), _comparable(now)
    keys = [key for key in {**old, **new} if key in changed_keys(before, now)]
    values = [(key, as_typed(old.get(key, ABSENT)), as_typed(new.get(key, ABSENT))) for key in keys[:most]]
    texts = [f"{key} is {there} there, {here} here" for key, there, here in values]
    return texts + ([f"and {count(len(keys) - most, 'more key')}"] if len(keys) > most else [])


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """Return the dotted keys in which two configurations differ, except paths and bookkeeping."""
    old, new = _comparable(before), _comparable(now)
    return {key for key in {**old, **new} if old.get(key, ABSENT) != new.get(key, ABSENT)}


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if not is_bookkeeping(key)}
