"""What a file may have called by name: the names in conf/, and those that a command line trusts (imports nothing)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from resnet_lab.errors import UserError

OPTION = "trust="  # of a command line; no key of a configuration, so that no file can hold it
_trusted: set[str] = set()  # `GROUP:dotted.name`, or a package


def trust(words: Iterable[str]) -> None:
    """From now on call these names, too, in this process.

    Args:
        words: `GROUP:dotted.name` for one name, or a package for all that it defines; several may share a word (`a,b`).

    Raises:
        UserError: a word is neither.
    """
    for word in (part for each in words for part in each.split(",")):
        if not re.fullmatch(r"([a-z]+:)?[^\W\d]\w*(\.[^\W\d]\w*)*", word):
            raise UserError(f"{OPTION}{word}: give a package ({OPTION}mylab) or one name ({OPTION}model:mylab.Net)")
        _trusted.add(word)


def spoken() -> str:
    """The words of trust of this process, as they follow a command; empty where there are none."""
    return f" {OPTION}{','.join(sorted(_trusted))}" if _trusted else ""


def without_trust(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """A command line without its words of trust, and the words."""
    words = list(arguments)
    trusted = [word.removeprefix(OPTION) for word in words if word.startswith(OPTION)]
    return [word for word in words if not word.startswith(OPTION)], trusted


def refuse_foreign(group: str, node: object, known: Collection[str]) -> None:
    """Stop before anything is called, or imported, that neither conf/ names nor the command line trusts.

    Args:
        group: of the configuration, for messages and exact words of trust.
        node: what the group holds.
        known: the names that conf/ has for the group.

    Raises:
        UserError: the name is foreign, or a special key of Hydra stands where it is not ours.
    """
    for key, value in _special_keys(node, group):
        if key not in (f"{group}._target_", f"{group}._partial_"):
            raise UserError(f"{key}: _target_ and _partial_ stand at the top of {group} only; remove it")
        if key.endswith("._partial_") and not isinstance(value, bool):
            raise UserError(f"{key}={value}: it has to be true or false")
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if target is None or (isinstance(target, str) and target in known):
        return
    word = f"{group}:{target}"
    if not isinstance(target, str) or not (word in _trusted or _in_a_trusted_package(target)):
        raise UserError(
            f"{group}._target_ {target} is none of resnet_lab's ({', '.join(sorted(known))}), and is not called; if "
            f"you know what it does, add {OPTION}{word} to the command"
        )


def _in_a_trusted_package(target: str) -> bool:
    return any(target.startswith(f"{word}.") for word in _trusted if ":" not in word)


def _special_keys(value: object, place: str) -> Iterator[tuple[str, object]]:
    """The dotted keys at any depth that Hydra gives a meaning to."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if str(key).startswith("_"):
                yield f"{place}.{key}", each
            yield from _special_keys(each, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _special_keys(each, f"{place}[{number}]")


def foreign_words(config: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    """The exact words of trust for what a user's own configuration names: `GROUP:dotted.name`.

    Args:
        config: composed from a command line and the user's own files.
        known: group → the names that conf/ has.
    """
    targets = {group: config[group].get("_target_") for group in known if isinstance(config.get(group), Mapping)}
    return [f"{group}:{target}" for group, target in targets.items() if target and target not in known[group]]
