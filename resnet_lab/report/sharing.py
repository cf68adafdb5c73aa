"""Differences between sweeps: settings, data, code and machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from resnet_lab.report.runs import Run
from resnet_lab.run_folder import is_bookkeeping
from resnet_lab.scores import ABSENT

NOTED = (
    "commit",
    "versions",
    "hardware",
    "precision",
    "split_fingerprint",
    "pixels",
    "class_names",
)  # of status.json
SHOWN = 4  # values listed per key


class Unshared(NamedTuple):
    """A key that differs between sweeps, with its values in each sweep."""

    key: str
    values_of_sweeps: list[str]


def unshared_of(sweeps: dict[str, list[Run]]) -> list[Unshared]:
    """Return the keys of configuration and status that differ between sweeps, without seeds and paths.

    A key with the same set of values in each sweep does not differ.
    """
    found = []
    facts = [[dict(_facts(run)) for run in runs] for runs in sweeps.values()]
    for key in dict.fromkeys(key for members in facts for fact in members for key in fact):
        values = [sorted({fact.get(key, ABSENT) for fact in members}) for members in facts]
        if any(each != values[0] for each in values):
            found.append(Unshared(key, [_text(each) for each in values]))
    return found


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    for key, value in run.config.items():
        if not (key == "seed" or is_bookkeeping(key) or key.startswith("hydra")):
            yield key, _plain(value)
    for key in NOTED:
        value = run.status.get(key)
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            if value is not None:
                yield f"{key}.{name}".rstrip("."), _plain(part)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(values: Sequence[str]) -> str:
    cut = [value if len(value) <= 60 else f"{value[:59]}…" for value in values[:SHOWN]]
    more = len(values) - SHOWN
    return ", ".join(cut) + (f" and {more} more" if more > 0 else "")
