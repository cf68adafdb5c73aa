"""Tables of comparable groups of runs, with their estimates."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from resnet_lab.axes import plain, shown_of
from resnet_lab.errors import UserError, count
from resnet_lab.keys import all_keys
from resnet_lab.report.intervals import Comparisons, Estimates, estimate
from resnet_lab.report.runs import Run, in_order_of_jobs
from resnet_lab.run_folder import comparable, is_bookkeeping
from resnet_lab.scores import ABSENT, ALIASES, NEEDS, SCORES, Predictions
from resnet_lab.statistics import REFERABLE

DRAWN = 10  # groups in pictures, the best ones
AREA = "referable_auroc"  # has its intervals in another table
MANY_NAMES = 2  # of more single runs, the name of their folder stands for them
MANY_BOUND = 4  # from so many keys that differ between sweeps alone, the sweep's name replaces them in labels


@dataclass
class Group:
    """Runs that differ only in their seed."""

    values: dict[str, Any]  # values of the axes, by dotted key
    runs: list[Run]
    shown: dict[str, str] = field(default_factory=dict)  # dotted key → short `key=value`, for people
    implied: set[str] = field(default_factory=set)  # keys of `shown` that its label leaves out
    unnamed: str = "all runs"  # its label if nothing is shown

    @property
    def label(self) -> str:
        """The settings that distinguish the group within its table."""
        return self.text_of(self.shown) or self.unnamed

    def text_of(self, axes: Iterable[str]) -> str:
        """Return the values of these axes as in the label."""
        return " ".join(self.shown[axis] for axis in axes if axis in {*self.shown} - self.implied)

    def level(self, axis: str) -> str:
        """Return the value of an axis as shown; sources of weights that differ only by depth are one value."""
        return self.shown.get(axis, "")

    @cached_property
    def predictions(self) -> list[Predictions]:
        """The predictions of the runs with a result."""
        return [run.predictions.labeled for run in self.scored if run.predictions]

    @cached_property
    def scored(self) -> list[Run]:
        """The runs with a result."""
        return [run for run in self.runs if run.scores]

    @cached_property
    def collapsed(self) -> list[Run]:
        """The collapsed runs among those with a result."""
        return [run for run in self.scored if run.collapsed]

    @property
    def is_mean(self) -> bool:
        """Whether the group is one combined run, the mean of runs with several seeds."""
        return len(self.scored) == 1 and self.scored[0].joins_seeds

    @cached_property
    def leaking(self) -> list[Run]:
        """The leaking runs among those with a result."""
        return [run for run in self.scored if run.leaking]

    def mean_and_std(self, metric: str) -> tuple[float, float]:
        """Return mean and sample standard deviation over the runs; NaN if there are too few."""
        values = [run.scores[metric] for run in self.scored]
        return (
            float(np.mean(values)) if values else math.nan,
            float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        )


@dataclass
class Table:
    """Groups that were scored on the same images, ranked by one metric."""

    groups: list[Group]
    wanted: str = ""  # the metric that ranks the groups; empty or not applicable: the first of `metrics`
    named: Sequence[str] = ()  # words in labels; pictures show these groups besides the best
    fork: bool = False  # whether another process may share the work on the estimates

    @cached_property
    def scored_groups(self) -> list[Group]:
        """The groups with a result."""
        return [group for group in self.groups if group.scored]

    @cached_property
    def scored(self) -> list[Run]:
        """All runs with a result."""
        return [run for group in self.groups for run in group.scored]

    @cached_property
    def differing_data(self) -> list[tuple[str, list[list[Group]]]]:
        """Splits (train, val) in which groups with the same keys of `data` had other images or labels.

        Each comes with lists of groups, one list for each content of the split.
        """
        found = []
        for split in ("train", "val"):
            runs = [(group, run) for group in self.groups for run in group.scored if not run.members]
            if len({run.fingerprint(split) for _, run in runs} - {""}) < 2:
                continue
            from resnet_lab.data.image_data import LOADING  # imports cv2

            without = {f"data.{key}" for key in (*LOADING, "root")}
            alike: dict[str, dict[str, dict[int, Group]]] = {}
            for group, run in runs:
                keys = {key: value for key, value in run.config.items() if key.startswith("data.")}
                settings = str(sorted((key, repr(value)) for key, value in keys.items() if key not in without))
                if content := run.fingerprint(split):
                    alike.setdefault(settings, {}).setdefault(content, {})[id(group)] = group
            found += [
                (split, [[*groups.values()] for groups in contents.values()])
                for contents in alike.values()
                if len(contents) > 1 and len({place for groups in contents.values() for place in groups}) > 1
            ]
        return found

    @cached_property
    def metrics(self) -> list[str]:
        """The applicable metrics that the table shows."""
        return [name for name in self.possible if "leaderboard" in SCORES[name].shown or name == self.wanted]

    @cached_property
    def possible(self) -> list[str]:
        """The applicable metrics."""
        classes = len(self.scored[0].class_names) if self.scored else 0
        return [name for name, score in SCORES.items() if score.means_something(self.ordered, classes)]

    @cached_property
    def ordered(self) -> bool:
        """Whether the classes are grades."""
        return any(run.status.get("ordered") for group in self.groups for run in group.runs)

    @property
    def referable(self) -> bool:
        """Whether the classes are grades, some of them referable."""
        return AREA in self.possible

    @property
    def referable_classes(self) -> str:
        """The referable classes in words: `moderate or worse`, or the last class; empty without such classes."""
        names = self.scored[0].class_names[REFERABLE:] if self.referable else ()
        return f"{names[0]}{' or worse' if len(names) > 1 else ''}" if names else ""

    @cached_property
    def metric(self) -> str:
        """The metric that ranks the groups: the wanted one, or the first one that all of them have."""
        if self.wanted in self.metrics:
            return self.wanted
        # test images of one grade have no QWK if all predictions are right
        groups = self.scored_groups
        known = [name for name in self.metrics if not any(math.isnan(each.mean_and_std(name)[0]) for each in groups)]
        return (known or self.metrics)[0]

    @property
    def title_of_metric(self) -> str:
        """The name of that metric in a sentence."""
        return SCORES[self.metric].label

    @cached_property
    def estimates(self) -> dict[str, Estimates]:
        """The estimates of `scored_groups`, in their order, by shown metric; empty if no run has a result."""
        found = [group.predictions for group in self.scored_groups]
        means = [place for place, group in enumerate(self.scored_groups) if group.is_mean]
        shown = [*self.metrics, AREA] if self.referable else self.metrics
        if not found:
            return {}
        return estimate(found, self.patient, metrics=shown, compared=[self.metric], fork=self.fork, fixed=means)

    @cached_property
    def patient(self) -> np.ndarray:
        """The patient of each of the N test images, integers from 0 to P - 1; (0,) without a result.

        If runs disagree, the grouping with the fewest patients is used.
        """
        return max(self.groupings, key=lambda each: -each.max(), default=np.zeros(0, int))

    @cached_property
    def groupings(self) -> list[np.ndarray]:
        """`patient` by file of images; the groupings differ if some runs lack patient IDs."""
        names = {id(run.predictions.split): run.predictions.patients for run in self.scored if run.predictions}
        return [np.unique(patients, return_inverse=True)[1] for patients in names.values()]

    @cached_property
    def against_best(self) -> tuple[int, Comparisons]:
        """The index of the best of `scored_groups`, and the difference of each group to it; see `Estimates`."""
        return self.estimates[self.metric].against_best()

    @cached_property
    def ranked(self) -> list[Group]:
        """The groups from the best to the worst, then groups without a result."""
        sign = 1 if SCORES[self.metric].falls else -1
        return sorted(self.groups, key=lambda group: _last_if_unknown(sign * group.mean_and_std(self.metric)[0]))

    @cached_property
    def drawn(self) -> list[Group]:
        """The groups in pictures, best first: the best ones and the named ones."""
        groups = [group for group in self.ranked if group.scored] or self.groups
        return [
            group
            for place, group in enumerate(groups)
            if place < DRAWN or any(has_words(group.label, words) for words in self.named)
        ]

    @property
    def title(self) -> str:
        """The heading: data set, split, images, classes."""
        if not self.scored:
            return "No run has a result"
        split, fingerprint, names, images = self.scored[0].test_set
        config = self.scored[0].config
        data = config.get("data.name", "data")
        if config.get("data.folds"):
            folds, values = config["data.folds"], {run.config.get("data.fold") for run in self.scored}
            some = ", ".join(map(str, sorted(values, key=str)))
            pools = any(isinstance(value, str) for value in values)
            data += f", all {folds} folds" if pools else f", fold{'s' * (len(values) > 1)} {some} of {folds}"
        return f"{data}, {split} split: {count(images, 'image')}, {len(names)} classes" + (
            f" (fingerprint {fingerprint[:8]})" if fingerprint else ""
        )


def _last_if_unknown(value: float) -> float:
    return math.inf if math.isnan(value) else value


def tables_of(runs: Sequence[Run], metric: str = "", named: Sequence[str] = (), fork: bool = False) -> list[Table]:
    """Return one table per set of test images; a run without a result joins the table of its data.

    A single run that failed at the start, or never started, joins none, unless all did; its keys would become axes.

    Args:
        runs: the runs of all tables.
        metric: ranks the groups; empty: the first applicable metric of each table.
        named: words in labels; pictures show these groups besides the best.
        fork: whether another process may share the work on their estimates.

    Raises:
        UserError: the metric ranks no table, or no label contains the words.
    """
    sets: dict[tuple[Any, ...], list[Run]] = {}
    begun = [run for run in runs if not (run.single and run.without_epoch)] or runs
    for run in sorted(begun, key=lambda run: not run.scores):
        if run.scores:
            sets.setdefault(run.test_set, []).append(run)
        elif run.config:
            _runs_with(run, sets).append(run)
    tables = [Table(_groups(members), metric, named, fork) for members in sets.values()]
    known = [name for name in SCORES if any(name in table.possible for table in tables)]
    if metric and metric not in known:
        logged = {name.partition("/")[2] for run in runs for name in run.status.get("metrics") or {}}
        other = "cannot rank" if metric in logged else "is in no run"
        why = NEEDS[SCORES[metric].needs] if metric in SCORES else other
        close = get_close_matches(metric.lower(), known, n=1) or [metric]
        meant = ALIASES.get(metric.lower(), close[0])
        hint = f"did you mean {meant}?" if meant in known else f"choose among {', '.join(known)}"
        raise UserError(f"metric={metric} {why}; {hint}")
    labels = [group.label for table in tables for group in table.groups]
    for each in named:
        if not any(has_words(label, each) for label in labels):
            raise UserError(f"groups={each}: no group has these words in its label; one label is {labels[0]}")
    return tables


def has_words(label: str, words: str) -> bool:
    """Return whether a group's label contains all of these words: `depth=18`, or a key or a value alone."""
    tokens = label.split()
    return set(words.split()) <= {*tokens, *(part for token in tokens for part in token.split("="))}


def _runs_with(run: Run, sets: dict[tuple[Any, ...], list[Run]]) -> list[Run]:
    same_images = [members for key, members in sets.items() if key[1] and run.fingerprint(key[0]) == key[1]]
    name = run.config.get("data.name")
    same_data = [members for members in sets.values() if members[0].config.get("data.name") == name]
    found = same_images or same_data
    return found[0] if found else sets.setdefault(("", "", (), 0), [])


def axes_of(runs: Sequence[Run]) -> list[str]:
    """Return the configuration keys (dotted) in which runs differ, without seed and bookkeeping.

    They have the order of the command, as in `status`; then come keys that no command gave.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "seed" and not is_bookkeeping(key))
    axes = [key for key in keys if len({repr(_value(run, key)) for run in runs}) > 1]
    given = dict.fromkeys(key.lstrip("+~") for run in in_order_of_jobs(runs) for key, _ in run.overrides)
    places = {key: place for place, key in enumerate(given)}

    def place(axis: str) -> int:
        """Return the place of the key, or of the longest group that contains it: `optim` for `optim.lr`."""
        parts = axis.split(".")
        groups = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
        return next((places[group] for group in groups if group in places), len(places))

    return sorted(axes, key=place)


def _value(run: Run, key: str) -> Any:
    """Return a run's value of a key; null and the word none are one value, and so are 1 and 1.0."""
    value = comparable(key, run.config.get(key, ABSENT))
    return "none" if value is None else value


def sweeps_of(runs: Sequence[Run], apart: bool = True) -> dict[str, list[Run]]:
    """Return the runs by name of their sweep's folder (with as many of its parents as tell it from the others).

    Args:
        runs: the runs.
        apart: whether a single run counts as a separate sweep; otherwise it belongs to its parent folder, as a
            published run does, which has neither overrides nor a list of jobs beside it.
    """
    folders: dict[Path, list[Run]] = {}
    alone = {run.folder.path.resolve() for run in runs if run.single}
    for run in runs:
        path = run.members[0] if run.members else run.folder.path.resolve()  # a combined run joins that of its members
        folders.setdefault(path if apart and path in alone else path.parent, []).append(run)
    names = _shortest(folders)
    return {names[folder]: members for folder, members in folders.items()}


def _shortest(folders: Collection[Path]) -> dict[Path, str]:
    """Return folder → the shortest end of its path that no other folder has."""
    names, depth = dict[Path, str](), 0
    while len(names) < len(folders):
        depth += 1
        ends = {folder: Path(*folder.parts[-depth:]).as_posix() for folder in folders}
        times = Counter(ends.values())
        names |= {folder: end for folder, end in ends.items() if folder not in names and times[end] == 1}
    return names


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the values of the axes, by run.

    The effects of keys that differ only between sweeps cannot be separated if there are more keys than settings; many
    such keys become one axis, the sweep (the run, if all are single runs).
    """
    # a single group has no axes, but needs a label
    axes = axes_of(runs) or [key for key in ("model.depth", "model.pretrained") if key in runs[0].config]
    sweeps = sweeps_of(runs)
    bound = [
        axis
        for axis in axes
        if len(sweeps) > 1
        and all(len({repr(_value(run, axis)) for run in members}) == 1 for members in sweeps.values())
    ]
    alike: dict[str, list[str]] = {}  # values of the bound axes → names of the sweeps that have them
    for name, members in sweeps.items():
        alike.setdefault(repr([_value(members[0], axis) for axis in bound]), []).append(name)
    if len(bound) < MANY_BOUND or len(alike) > len(bound):
        return [{axis: _value(run, axis) for axis in axes} for run in runs]
    named = {run.folder: _joined(names, sweeps) for names in alike.values() for name in names for run in sweeps[name]}
    free = [axis for axis in axes if axis not in bound]
    kind = "run" if all(run.single for run in runs) else "sweep"
    return [{kind: named[run.folder]} | {axis: _value(run, axis) for axis in free} for run in runs]


def _joined(names: Sequence[str], sweeps: dict[str, list[Run]]) -> str:
    """Return one name for sweeps that differ in nothing: that of their folder if they are many single runs."""
    parents = {run.folder.path.parent for name in names for run in sweeps[name] if not run.members}
    return parents.pop().name if len(names) > MANY_NAMES and len(parents) == 1 else "+".join(names)


def _groups(runs: Sequence[Run]) -> list[Group]:
    groups: dict[str, Group] = {}
    settings = _settings(runs)
    axes = list(settings[0])
    for run, values in zip(runs, settings, strict=True):
        groups.setdefault(repr(values), Group(values, [])).runs.append(run)
    _name(list(groups.values()), axes)
    return sorted(groups.values(), key=lambda group: [order_of(value) for value in group.values.values()])


def _name(groups: Sequence[Group], axes: Sequence[str]) -> None:
    """Fill `shown` of the groups; a group without any of the keys is named by the first of them."""
    settings = [{axis: group.values[axis] for axis in axes if group.values[axis] != ABSENT} for group in groups]
    configs = [run.config for group in groups for run in group.runs]
    for group, shown in zip(groups, shown_of(settings, _labels(configs, axes)), strict=True):
        group.shown |= shown
    implied = _implied(groups)
    for group in groups:
        group.implied |= implied
        if len(groups) > 1:
            part = axes[0].removesuffix("._target_")
            group.unnamed = "not combined" if part.startswith("combine.") else f"without {part.rpartition('.')[2]}"


def bundles_of(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return each axis → itself and, for the choice of a part, the axes that this choice alone determines.

    `loss=mse` instead of `cross_entropy` changes `loss._target_` and the keys that only one of them has; these are one
    axis. A key that varies beside one and the same choice stays an axis of its own.
    """
    bundles = {axis: [axis] for group in groups[:1] for axis in group.values}
    for axis in [axis for axis in bundles if axis.endswith("_target_")]:
        for other in [each for each in bundles if each != axis and each.startswith(axis.removesuffix("_target_"))]:
            pairs = {(group.level(axis), group.level(other)) for group in groups}
            if len(pairs) == len({choice for choice, _ in pairs}):
                bundles[axis].append(other)
    return bundles


def _implied(groups: Sequence[Group]) -> set[str]:
    """Return the axes that follow from a choice in the command: it did not give them, and all values are defaults.

    `loss=cross_entropy` then stands for `loss.label_smoothing=0` too, as in `status`.
    """
    runs = [run for group in groups for run in group.runs]
    given = {key.lstrip("+~") for run in runs for key, _ in run.overrides}
    return {
        axis
        for choice, axes in bundles_of(groups).items()
        for axis in axes[1:]
        if choice.removesuffix("._target_") in given and axis not in given
        if {plain(group.values[axis]) for group in groups} <= _defaults_of(axis)
    }


def _defaults_of(axis: str) -> set[str]:
    """Return the values that conf/ gives a key, and no value, as `plain` writes them."""
    return {"none", plain(ABSENT), *(plain(key.default) for key in all_keys() if key.name == axis)}


def _labels(configs: Iterable[dict[str, Any]], axes: Sequence[str]) -> dict[str, str]:
    """Return `key=value` → its label, from configurations by dotted keys."""
    found = {key: text for config in configs for key, text in config.items() if key.startswith("labels.")}
    return {
        f"{axis}={plain(key.removeprefix(f'labels.{axis}.'))}": str(text)
        for axis in axes
        for key, text in found.items()
        if key.startswith(f"labels.{axis}.")
    }


def order_of(value: Any) -> tuple[bool, bool, float, str]:
    """Return a sort key: none first, then numbers by size, then texts."""
    number = float(value) if isinstance(value, int | float) else math.inf
    return value != "none", value == ABSENT, number, str(value)


def places_of(runs: Iterable[Run]) -> dict[Path, str]:
    """Return run folder → its path below the deepest common folder, for people."""
    folders = [run.folder.path for run in runs]
    root = os.path.commonpath([folder.parent for folder in folders])
    return {folder: folder.relative_to(root).as_posix() for folder in folders}
