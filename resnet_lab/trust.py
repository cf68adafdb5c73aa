"""Names that a file may call: names in conf/, well-known ones, and names that a command trusts (imports nothing)."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from resnet_lab.errors import UserError

GROUPS = ("data", "model", "loss", "optim", "schedule", "callbacks", "logger")  # groups with a `_target_`
OPTION = "trust="  # command-line option; not a configuration key, so that no file can contain it
_MODELS = """
alexnet convnext_tiny convnext_small convnext_base convnext_large densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0
mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_x_1_6gf
regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf
regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d
resnext101_32x8d resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
squeezenet1_0 squeezenet1_1 swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b vgg11 vgg11_bn vgg13 vgg13_bn vgg16
vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14 wide_resnet50_2 wide_resnet101_2
"""
_OPTIMIZERS = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS NAdam RAdam RMSprop Rprop SGD"
_SCHEDULES = """
ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR
PolynomialLR ReduceLROnPlateau StepLR
"""


def _below(module: str, names: str) -> frozenset[str]:
    return frozenset(f"{module}.{name}" for name in re.findall(r"\w+", names))


# group → harmless constructors of other packages (no loggers: they upload and delete files)
WELL_KNOWN = {
    "model": _below("torchvision.models", _MODELS) | {"timm.create_model"},
    "loss": _below("torch.nn", "CrossEntropyLoss MultiMarginLoss"),
    "optim": _below("torch.optim", _OPTIMIZERS),
    "schedule": _below("torch.optim.lr_scheduler", _SCHEDULES),
}
_trusted: set[str] = set()  # `GROUP:dotted.name`, or a package
_used: set[str] = set()  # those of them that allowed a name


def trust(words: Iterable[str], exists: bool = True) -> None:
    """Allow this process to call these names.

    Args:
        words: `GROUP:dotted.name` for one name, or a package for all its names; a word may list several (`a,b`).
        exists: refuse a word whose module does not exist.

    Raises:
        UserError: a word is neither, its group does not exist, or there is no such module.
    """
    for word in _split(words):
        if not re.fullmatch(r"([a-z]+:)?[^\W\d]\w*(\.[^\W\d]\w*)*", word):
            raise UserError(f"{OPTION}{word}: give a package ({OPTION}mylab) or one name ({OPTION}model:mylab.Net)")
        group, _, name = word.rpartition(":")
        if group and group not in GROUPS:
            raise UserError(f"{OPTION}{word}: {group} is not a group; choose one of {', '.join(GROUPS)}")
        top = name.partition(".")[0]
        if exists and find_spec(top) is None:
            raise UserError(f"{OPTION}{word}: there is no module {top}; install it, or start the command in its folder")
        _trusted.add(word)


def trust_option() -> str:
    """Return the trust option of this process, to append to a command; empty if nothing is trusted."""
    return f" {OPTION}{','.join(sorted(_trusted))}" if _trusted else ""


def without_trust(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the arguments without trust options, and the trusted words."""
    words = list(arguments)
    trusted = [word.removeprefix(OPTION) for word in words if word.startswith(OPTION)]
    return [word for word in words if not word.startswith(OPTION)], trusted


def refuse_foreign(group: str, node: object, known: Collection[str], place: str = "") -> None:
    """Refuse a name that is neither in conf/ nor trusted by the command line, before it is imported or called.

    Args:
        group: group of the configuration, for the exact word of trust.
        node: content of the group.
        known: the names that are always allowed.
        place: path of the node in the configuration; empty: the group.

    Raises:
        UserError: the name is not allowed, or a special key of Hydra is at another place than the top.
    """
    place = place or group
    for key, value in _special_keys(node, place):
        if key not in (f"{place}._target_", f"{place}._partial_"):
            raise UserError(f"{key}: _target_ and _partial_ are allowed only at the top of {place}; remove it")
        if key.endswith("._partial_") and not isinstance(value, bool):
            raise UserError(f"{key}={value}: it must be true or false")
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if target is None or (isinstance(target, str) and target in known):
        return
    ours = sorted(name for name in known if name.startswith("resnet_lab."))
    word = f"{group}:{target}"
    allowing = {each for each in _trusted if covers(each, word)} if isinstance(target, str) else set()
    _used.update(allowing)
    if not allowing:
        raise UserError(
            f"{place}._target_ {target} is not called, as it is not one of resnet_lab's ({', '.join(ours)}); if "
            f"you know what it does, add {OPTION}{word} to the command"
        )


def covers(word: str, exact: str) -> bool:
    """Return whether a word of trust allows an exact one, `GROUP:dotted.name`."""
    return word == exact or (":" not in word and exact.partition(":")[2].startswith(f"{word}."))


def unused_words(typed: Iterable[str], exact: Iterable[str] = ()) -> list[str]:
    """Return the words of trust that allowed no name so far, and none of these exact words."""
    return [word for word in _split(typed) if word not in _used and not any(covers(word, each) for each in exact)]


def warn_of_unused(typed: Iterable[str], exact: Iterable[str] = ()) -> None:
    """Print a line for each unused word (see `unused_words`)."""
    for word in unused_words(typed, exact):
        print(f"{OPTION}{word} has no effect: no _target_ needs it; leave it out", file=sys.stderr, flush=True)


def _split(words: Iterable[str]) -> list[str]:
    return [part for each in words for part in each.split(",")]


def refuse_reexported(group: str, target: str, found: object) -> None:
    """Refuse an object that a trusted package only imports from elsewhere (`mylab.system` may be `os.system`).

    Args:
        group: group of the configuration.
        target: dotted name of the object.
        found: the object.

    Raises:
        UserError: only a package is trusted, and the object is defined outside of it.
    """
    word = f"{group}:{target}"
    allowing = [each for each in _trusted if covers(each, word)]
    home = str(getattr(found, "__module__", None))
    if allowing and word not in allowing and not any(f"{home}.".startswith(f"{each}.") for each in allowing):
        raise UserError(
            f"{group}._target_ {target} is defined in {home}, and {OPTION}{allowing[0]} covers only what {allowing[0]} "
            f"defines; if you know what it does, add {OPTION}{word} to the command"
        )


def _special_keys(value: object, place: str) -> Iterator[tuple[str, object]]:
    """Yield the dotted keys at any depth that have a special meaning in Hydra."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if str(key).startswith("_"):
                yield f"{place}.{key}", each
            yield from _special_keys(each, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _special_keys(each, f"{place}[{number}]")


def trust_words(config: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    """Return the exact words of trust, `GROUP:dotted.name`, for the names in a user's own configuration.

    Args:
        config: composed from a command line and the user's own files.
        known: group → the names in conf/.
    """
    targets = {group: config[group].get("_target_") for group in known if isinstance(config.get(group), Mapping)}
    return [f"{group}:{target}" for group, target in targets.items() if target and target not in known[group]]
