"""All keys of the configuration with default, meaning and allowed values, read from conf/ (imports nothing heavy)."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cache

from resnet_lab.compatibility import RENAMED
from resnet_lab.errors import UserError
from resnet_lab.schema import BY_NAME, CHOSEN, FOR_OTHERS, MISSING, OF_JOB, PROVIDED, Config, TrainerConfig, conf_dir
from resnet_lab.signatures import hints_of, is_ours
from resnet_lab.values import words

# name in other programs → our key
SYNONYMS = {
    **dict.fromkeys(("learning_rate", "base_lr", "init_lr"), "optim.lr"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("wd", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("bs", "batchsize"), "data.batch_size"),
    **dict.fromkeys(("img_size", "input_size", "resolution"), "data.image_size"),
    **dict.fromkeys(("workers", "n_workers"), "data.num_workers"),
    **dict.fromkeys(("gpus", "num_gpus"), "trainer.devices"),
    **dict.fromkeys(("arch", "network", "backbone"), "model"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "sched"), "schedule"),
    **dict.fromkeys(("criterion", "objective"), "loss"),
    **dict.fromkeys(("dataset", "datamodule"), "data"),
    **dict.fromkeys(("opt", "optimiser", "optimizer"), "optim"),
    **dict.fromkeys(("cross-validation", "cross_validation", "cv", "kfold"), "data.folds"),
    "amp": "trainer.precision",
    "test_time_augmentation": "trainer.tta",
}
# topic of a question → keys that answer it; the first word is also found by its beginning
TOPICS = {
    "augmentation, data augmentation, flips": (
        *("data.horizontal_flip", "data.vertical_flip", "data.rotation", "data.scale", "data.translate", "data.crop"),
        *("data.padding", "data.brightness", "data.contrast", "data.saturation", "data.hue", "data.random_grayscale"),
        *("data.mixup", "data.augment_classes"),
    ),
    "normalization, normalize, normalise, standardize, standardization": ("data.mean", "data.std", "data.local_mean"),
    "imbalance, class imbalance, unbalanced, rare classes, class weights": (
        *("data.sampling", "loss.class_weights", "data.max_per_class", "data.augment_classes", "monitor"),
    ),
    "overfitting, regularization, regularize, regularisation": (
        *("optim.weight_decay", "data.mixup", "loss.label_smoothing", "model.dropout", "model.freeze"),
        *("trainer.early_stopping", "data.rotation", "data.horizontal_flip"),
    ),
    "patience, early stopping": ("trainer.early_stopping", "schedule.patience"),
    "learningrate, lr schedule, warmup": ("optim.lr", "schedule", "schedule.warmup_epochs", "optim.backbone_lr_factor"),
    "number of classes, num_classes, n_classes, classes": ("data.class_names",),
    "transfer learning, transfer, fine-tuning, finetuning, finetune, fine tuning": (
        *("model.pretrained", "model.freeze", "model.unfreeze_at_epoch", "optim.backbone_lr_factor"),
    ),
    "gpu, gpus, cuda, multi-gpu": (
        *("trainer", "trainer.accelerator", "trainer.devices", "trainer.precision", "trainer.compile"),
        *("data.in_memory", "trainer.sync_batchnorm"),
    ),
}
GROUPS = (*PROVIDED, "trainer", *BY_NAME)  # groups that define keys; scale and experiment only set them
KEY = re.compile(r"(?P<indent> *)(?:- )?(?P<key>\w+):(?P<value>(?: +[^\s#]\S*)*)(?: *# (?P<comment>.+))?")
COMMENT = re.compile(r"(?P<indent> *)# (?P<comment>.*)")
WIDTH = 80  # columns of a terminal
LEAST = 4  # letters of a word that is the beginning of a topic


@dataclass(frozen=True)
class Key:
    """A key of the configuration with the default of one file in conf/."""

    name: str  # dotted
    default: str  # as in the file; `???`: the user must set it
    meaning: str
    note: str  # comment on the default, if the file overrides the default of its base file
    group: str  # empty: top level
    choices: tuple[str, ...]  # choices of the group with this default; empty: all without a different one
    file: str  # `conf/model/resnet_cifar.yaml`

    @property
    def allowed(self) -> str:
        """Description of the allowed values; empty if the type is unknown."""
        if self.name in CHOSEN:
            return ", ".join(choices_of(self.name))
        own = self.name.rpartition(".")[2]
        for each in fields(Config if not self.group else TrainerConfig) if self.group in ("", "trainer") else ():
            if each.name == own:
                return str(each.metadata["allowed"] or words(each.metadata["hint"]))
        ours = map(hints_of, _targets(self.group, self.choices))
        hints = [OF_JOB.get(self.group, {}), *ours, FOR_OTHERS.get(self.group, {})]
        return next((words(known[own]) for known in hints if own in known), "")


@dataclass
class _File:
    """Parsed content of a YAML file."""

    about: str = ""  # comment before the first key, up to an empty line
    bases: list[str] = field(default_factory=list)  # base files in the same group
    targets: list[str] = field(default_factory=list)
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)  # dotted key without its group → default, comment


@cache
def _read(group: str, name: str) -> _File:
    """Parse a file of conf/; the comment of a key is above it, or behind it with indented continuation lines."""
    found, above, path, last = _File(), list[str](), list[str](), ""
    for line in (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if comment := COMMENT.fullmatch(line):
            if last and comment["indent"]:
                found.keys[last] = found.keys[last][0], f"{found.keys[last][1]} {comment['comment']}"
            elif not comment["comment"].startswith("@package"):
                above.append(comment["comment"])
        elif each := KEY.fullmatch(line):
            if not path and not found.about:
                found.about, above = " ".join(above), []
            path = [*path[: len(each["indent"]) // 2], each["key"]]
            last, value = ".".join(path).removeprefix("defaults."), each["value"].strip()
            if last == "defaults":
                found.bases = re.findall(r"\w+", value)
            elif path[-1] == "_target_":
                found.targets.append(value)
            if not value or path[0] == "hydra" or path[-1] in ("defaults", "_target_", "_partial_"):
                last = ""
            else:
                found.keys[last] = value, " ".join([*above, *filter(None, [each["comment"]])])
            above = []
        elif not line and not path:
            found.about, above = " ".join(above), []
    found.about = found.about or " ".join(above)
    return found


def _files(group: str) -> list[str]:
    """Return the names of a group's files, base files first."""
    return sorted((file.stem for file in (conf_dir() / group).glob("*.yaml")), key=lambda name: (name[0] != "_", name))


def _chain(group: str, name: str) -> list[str]:
    """Return a file and its base files, the file itself first."""
    return [name, *(each for base in _read(group, name).bases for each in _chain(group, base))]


def _targets(group: str, choices: Sequence[str]) -> list[str]:
    """Return resnet_lab's functions that may take a key: those of the choices, then those of the whole group."""
    names = [*(each for choice in choices for each in _chain(group, choice)), *_files(group)]
    return [target for name in names for target in _read(group, name).targets if is_ours(target)]


def choices_of(group: str) -> dict[str, str]:
    """Return the choices of a group (files in conf/) with the first sentence of each."""
    about = {name: _read(group, name).about for name in _files(group) if not name.startswith("_")}
    return {name: re.split(r"(?<=[.?]) +(?=[A-Z]|resnet-lab)", text)[0] for name, text in about.items()}


@cache
def all_keys() -> tuple[Key, ...]:
    """Return all keys in the order of conf/; a key with several defaults appears once per file that sets it."""
    return tuple(key for group in ("", *GROUPS) for name in _files(group) for key in _keys_of(group, name))


def _keys_of(group: str, name: str) -> Iterator[Key]:
    chains = {choice: _chain(group, choice) for choice in (choices_of(group) if group else ())}
    for key, (default, comment) in _read(group, name).keys.items():
        here = [choice for choice, chain in chains.items() if _setting(group, chain, key) == name]
        if group and not here:  # all files with this base override the default
            continue
        meanings = [_read(group, each).keys[key][1] for each in _chain(group, name) if key in _read(group, each).keys]
        everywhere = all(name in chain for chain in chains.values())
        yield Key(
            name=f"{group}.{key}".lstrip("."),
            default=default,
            meaning=meanings[-1],
            note=comment if len(meanings) > 1 else "",
            group=group or key.rpartition(".")[0],
            choices=() if everywhere else tuple(here),
            file=f"conf/{group}/{name}.yaml".replace("//", "/"),
        )


def _setting(group: str, chain: Sequence[str], key: str) -> str | None:
    """Return the first file of a chain that sets a key."""
    return next((name for name in chain if key in _read(group, name).keys), None)


def matching(patterns: Sequence[str] = ()) -> list[Key]:
    """Return the keys that match a dotted name, a group, a glob or a part of a name; all keys without a pattern.

    Raises:
        UserError: a pattern matches no key.
    """
    for pattern in patterns:
        if not any(_matches(key.name, pattern) for key in all_keys()):
            raise UserError(no_such_key(pattern))
    found = [key for key in all_keys() if any(_matches(key.name, pattern) for pattern in patterns or "*")]
    return sorted(found, key=lambda key: key.name.rpartition(".")[2] not in patterns)  # optim.lr comes first for `lr`


def topic_of(phrase: str) -> list[Key]:
    """Return the keys of a topic in any case, such as `data augmentation`; an empty list if it is none."""
    plain = " ".join(phrase.lower().split())
    for names, keys in TOPICS.items():
        first, *others = names.split(", ")
        if plain in (first, *others) or (len(plain) >= LEAST and first.startswith(plain)):
            return [key for name in keys for key in all_keys() if key.name == name]
    return []


def about(phrase: str) -> list[Key]:
    """Return the keys whose meaning contains a phrase, in any case; those whose meaning starts with it come first."""
    start = re.compile(rf"\b{re.escape(phrase)}", re.IGNORECASE)
    return sorted(
        filter(lambda key: start.search(key.meaning), all_keys()), key=lambda key: not start.match(key.meaning)
    )


def _matches(name: str, pattern: str) -> bool:
    if pattern in known_keys():
        return name == pattern or name.startswith(f"{pattern}.")
    return fnmatchcase(name, pattern) or pattern.lower() in name


def described(keys: Sequence[Key]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield name, meaning, allowed values and defaults of each key; a default includes its choices and note."""
    for name in dict.fromkeys(key.name for key in keys):
        same = [key for key in keys if key.name == name]
        values = dict.fromkeys(key.allowed for key in same if key.allowed)
        places: dict[tuple[str, str], list[str]] = {}
        for key in same:
            places.setdefault((key.default, key.note), []).extend(key.choices)
        widest = [each for each in values if not any(other.startswith(f"{each} ") for other in values)]
        yield name, same[0].meaning, "; ".join(widest), [_default(name, *each) for each in places.items()]


def _default(name: str, default: tuple[str, str], choices: Sequence[str]) -> str:
    value = "must be set" if default[0] == MISSING else default[0]
    place = f"{name.partition('.')[0]}={'|'.join(choices)}" if choices else ""
    return f"{value}  {': '.join(filter(None, (place, default[1])))}".rstrip()


def _wrapped(text: str, first: str, others: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * others, break_on_hyphens=False)


def as_text(keys: Sequence[Key]) -> str:
    """Return a description of the keys in lines of at most 80 characters."""
    lines = []
    for name, meaning, allowed, defaults in described(keys):
        lines += [name, *_wrapped(meaning, "    ", 4), *_wrapped(allowed, "    values   ", 13)]
        for number, default in enumerate(defaults):
            lines += _wrapped(default, "    default  " if not number else " " * 13, 17)
        for choice, about in choices_of(name).items() if name in CHOSEN else ():
            lines += _wrapped(f"{name}={choice}: {about}", "    ", 8)
    return "\n".join(lines)


def no_such_key(key: str) -> str:
    """Return the error message for an unknown key of the configuration."""
    listed = "resnet-lab train --keys lists all keys"
    if key.startswith("hydra.launcher."):
        listed = "resnet-lab train hydra/launcher=slurm --cfg hydra -p hydra.launcher lists those of slurm"
    meant = suggestion(key, known_keys()) or listed
    return f"{key}: there is no such key; {meant}"


def suggestion(key: str, known: Collection[str]) -> str:
    """Return a hint for an unknown key, from the dotted keys in `known`; empty if none is similar."""
    if key in RENAMED:
        return f"it is now {', '.join(RENAMED[key])}"
    if key in CHOSEN:
        return f"it only chooses a file; write {key}=NAME with one of {', '.join(choices_of(key))}"
    if key in known:
        return f"it is a key of {_choices_with(key)}"
    if key.rpartition(".")[2] == "fast_dev_run":
        return "scale=smoke runs every part of a job in seconds"
    group, _, own = key.rpartition(".")
    if own in SYNONYMS:
        return f"did you mean {SYNONYMS[own]}?"
    close = difflib.get_close_matches(own, {name.rpartition(".")[2] for name in known}, n=1, cutoff=0.7)
    meant = [name for name in known if name.rpartition(".")[2] in close]
    # if several groups have the name, prefer the same group
    return f"did you mean {min(meant, key=lambda name: (name.rpartition('.')[0] != group, name))}?" if meant else ""


def _choices_with(key: str) -> str:
    """Return the choices of a group that have a key: `model=resnet, model=resnet_cifar`."""
    found = [each for each in all_keys() if each.name == key]
    names = [choice for each in found for choice in each.choices or choices_of(each.group)]
    return ", ".join(f"{found[0].group}={name}" for name in dict.fromkeys(names)) if found else key


@cache
def known_keys() -> frozenset[str]:
    """Return the dotted keys of all files in conf/, and the groups."""
    return frozenset(key.name for key in all_keys())
