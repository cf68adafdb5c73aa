"""Many runs in; out come tables of groups that may be compared, and what to know before believing them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_lab.run_folder import BOOKKEEPING
from resnet_lab.runs import Run

METRICS = ("accuracy", "balanced_accuracy", "qwk", "auroc")
ABSENT = "–"


@dataclass
class Group:
    """The runs that differ in their seed alone."""

    values: dict[str, Any]  # of the axes, by dotted key
    runs: list[Run]
    shown: dict[str, str] = field(default_factory=dict)  # dotted key → `key=value` in short, for people

    @property
    def label(self) -> str:
        """What sets the group apart from the others of its table."""
        return " ".join(self.shown.values()) or "all runs"

    @property
    def scored(self) -> list[Run]:
        """The runs that count: only those with a result."""
        return [run for run in self.runs if run.scores]

    @property
    def collapsed(self) -> list[Run]:
        """The collapsed ones of those that count."""
        return [run for run in self.scored if run.collapsed]

    def mean_and_std(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over the runs; NaN where there are too few."""
        values = [run.scores[metric] for run in self.scored]
        return (
            float(np.mean(values)) if values else math.nan,
            float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        )


@dataclass
class Table:
    """Groups that were scored on the same images."""

    groups: list[Group]

    @property
    def scored(self) -> list[Run]:
        """All runs with a result."""
        return [run for group in self.groups for run in group.scored]

    @property
    def metrics(self) -> list[str]:
        """The metrics that mean something here: QWK only where the classes have an order."""
        ordered = any(run.status.get("ordered") for group in self.groups for run in group.runs)
        return [metric for metric in METRICS if metric != "qwk" or ordered]

    @property
    def title(self) -> str:
        """Which images the numbers are about."""
        if not self.scored:
            return "No run has a result"
        split, fingerprint, names, images = self.scored[0].test_set
        config = self.scored[0].config
        data = config.get("data.name", "data")
        if config.get("data.folds"):
            data += f", fold {config.get('data.fold')} of {config['data.folds']}"
        return f"{data}, {split} split: {images} images, {len(names)} classes" + (
            f" (fingerprint {fingerprint[:8]})" if fingerprint else ""
        )


def tables_of(runs: Iterable[Run]) -> list[Table]:
    """One table per set of test images; a run without a result goes to the table of its data."""
    sets: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.scores):
        if run.scores:
            sets.setdefault(run.test_set, []).append(run)
        elif run.config:
            _home(run, sets).append(run)
    return [Table(_groups(members)) for members in sets.values()]


def _home(run: Run, sets: dict[tuple[Any, ...], list[Run]]) -> list[Run]:
    same_images = [members for key, members in sets.items() if key[1] and run.fingerprint(key[0]) == key[1]]
    name = run.config.get("data.name")
    same_data = [members for members in sets.values() if members[0].config.get("data.name") == name]
    homes = same_images or same_data
    return homes[0] if homes else sets.setdefault(("", "", (), 0), [])


def axes_of(runs: Sequence[Run]) -> list[str]:
    """The configuration keys (dotted) in which runs differ, but for the seed and bookkeeping."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in ("seed", *BOOKKEEPING))
    return [key for key in keys if len({repr(run.config.get(key, ABSENT)) for run in runs}) > 1]


def _groups(runs: Sequence[Run]) -> list[Group]:
    # one group alone still has to be told from those of other reports
    axes = axes_of(runs) or [key for key in ("model.depth", "model.pretrained") if key in runs[0].config]
    groups: dict[str, Group] = {}
    for run in runs:
        values = {axis: run.config.get(axis, ABSENT) for axis in axes}
        groups.setdefault(repr(values), Group(values, [])).runs.append(run)
    _name(list(groups.values()), axes)
    return sorted(groups.values(), key=lambda group: [_order(value) for value in group.values.values()])


def _name(groups: Sequence[Group], axes: Sequence[str]) -> None:
    """Fill `shown` of the groups."""
    keys = [axis.removesuffix("._target_") for axis in axes]
    for axis, key in zip(axes, keys, strict=True):
        separator = "." if axis.endswith("_target_") else "/"
        texts = [_text(group, axis) for group in groups]
        for group, text in zip(groups, texts, strict=True):
            if group.values[axis] != ABSENT:
                # best.ckpt alone says little
                least = 2 if separator == "/" and text == group.values[axis] else 1
                group.shown[axis] = f"{_tail(key, keys, '.')}={_tail(text, texts, separator, least)}"


def _text(group: Group, axis: str) -> str:
    """A value for people; `runs/source/depth-18` in a group of depth 18 is `runs/source`."""
    value = group.values[axis]
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    head, _, last = text.rpartition("/")
    repeats = last in {f"{key.split('.')[-1]}-{other}" for key, other in group.values.items()}
    return head if head and repeats else text


def _tail(text: str, others: Sequence[str], separator: str, least: int = 1) -> str:
    """The shortest tail of `text` (of `least` parts or more) that is the tail of none of the `others`."""
    parts = text.split(separator)
    for size in range(least, len(parts)):
        tail = separator.join(parts[-size:])
        if not any(f"{separator}{other}".endswith(separator + tail) for other in others if other != text):
            return tail
    return text


def _order(value: Any) -> tuple[bool, bool, float, str]:
    """Sorts nothing first, numbers by size, and texts last."""
    number = float(value) if isinstance(value, int | float) else math.inf
    return value not in (None, "none"), value == ABSENT, number, str(value)


class Finding(NamedTuple):
    """One thing to know before believing a table."""

    kind: str
    text: str


def findings_of(runs: Sequence[Run], tables: Sequence[Table]) -> list[Finding]:
    """What is wrong with the runs, the worst first."""
    names = places_of(runs)
    found = [
        Finding("no result" if run.state == "done" else run.state, f"{names[run.folder.path]}: {run.problem}")
        for run in runs
        if run.problem
    ]
    for table in tables:
        found += _doubts(table)
    if sum(bool(table.scored) for table in tables) > 1:
        text = "the runs were scored on different images: each set has its own table, not to be compared with another"
        found.append(Finding("different test sets", text))
    scored = [group for table in tables for group in table.groups if group.scored]
    single = [group.label for group in scored if len(group.scored) == 1]
    if single:
        which = "any group" if len(single) == len(scored) else "; ".join(single)
        found.append(Finding("one seed only", f"no spread is known of {which}"))
    notes = Counter(note for run in runs for note in _data_notes(run))
    return found + [Finding(kind, f"{text} ({count} of {len(runs)} runs)") for (kind, text), count in notes.items()]


def _doubts(table: Table) -> Iterator[Finding]:
    for group in table.groups:
        if group.collapsed:
            seeds = ", ".join(str(run.config.get("seed", ABSENT)) for run in group.collapsed)
            share = f"{len(group.collapsed)} of {len(group.scored)}"
            yield Finding("collapsed", f"{group.label}: {share} answer one class nearly always (seed {seeds})")
        repeated = [seed for seed, n in Counter(run.config.get("seed") for run in group.scored).items() if n > 1]
        roots = sorted({str(run.config.get("data.root")) for run in group.scored})
        if len(roots) > 1:
            yield Finding("different images", f"{group.label}: one name for the data of {' and '.join(roots)}")
        if repeated:
            yield Finding("seed twice", f"{group.label}: seed {repeated[0]} counts more than once; n is too large")
    if table.scored and table.scored[0].split == "val":
        yield Finding("no test split", "numbers are of the validation images, which also chose the checkpoint")


def _data_notes(run: Run) -> Iterator[Finding]:
    leaks, skipped = (run.status.get(key) or 0 for key in ("leaks", "skipped_images"))
    if leaks and run.config.get("data.on_leak") != "drop":
        yield Finding("leaking", f"{leaks} images of train or val share a patient or picture with a later split")
    if skipped:
        yield Finding("skipped images", f"{skipped} images could not be read")


def places_of(runs: Iterable[Run]) -> dict[Path, str]:
    """Run folder → its path below the deepest folder that holds all of them, for people."""
    folders = [run.folder.path for run in runs]
    root = os.path.commonpath([folder.parent for folder in folders])
    return {folder: folder.relative_to(root).as_posix() for folder in folders}
