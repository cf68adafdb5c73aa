"""The effect of each axis of a grid, averaged over the other axes, and the conclusion that it allows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from resnet_lab.report.groups import Group, Table, axes_of, bundles_of, order_of
from resnet_lab.report.intervals import CONFIDENCE, Comparisons
from resnet_lab.report.leaderboard import limits_text
from resnet_lab.scores import SCORES

NAMED = 3  # settings in which sweeps differ that a sentence names
SETTINGS = 4  # of more settings, only the smallest and the largest effect are listed


class Effect(NamedTuple):
    """The effect of one value of an axis against its first value, all else equal."""

    axis: str
    label: str  # `pretrained=imagenet instead of none`
    value: float
    low: float
    high: float
    p: float
    settings: tuple[float, ...]  # the same difference in each setting of the other axes
    sentence: str


class Pairing(NamedTuple):
    """Pairs of groups that differ in one axis alone, as indices of the scored groups."""

    axis: str
    axes: list[str]  # the axis, and those that it determines (see `bundles_of`)
    label: str
    pairs: list[tuple[int, int]]  # (first value of the axis, another value)


def effects_of(table: Table) -> list[Effect]:
    """Return the effect of each further value of each axis; limits and p-values hold for all effects at once."""
    pairings = pairings_of(table)
    if not pairings:
        return []
    estimates = table.estimates[table.metric]
    contrasts = np.zeros((len(pairings), len(estimates.values)))
    for row, pairing in zip(contrasts, pairings, strict=True):
        for first, other in pairing.pairs:
            row[other] += 1 / len(pairing.pairs)
            row[first] -= 1 / len(pairing.pairs)
    found = estimates.compare(contrasts)
    effects, axes = [], len({pairing.axis for pairing in pairings})
    for place, pairing in enumerate(pairings):
        settings = tuple(float(estimates.values[other] - estimates.values[first]) for first, other in pairing.pairs)
        value, low, high, p = (float(column[place]) for column in found)
        one = Comparisons(*(column[place : place + 1] for column in found))
        sentence = _sentence(table, pairing, settings, one, axes)
        effects.append(Effect(pairing.axis, pairing.label, value, low, high, p, settings, sentence))
    return effects


def pairings_of(table: Table) -> list[Pairing]:
    """Return the pairs of groups that differ in nothing else, for each value of an axis and the first that has some."""
    groups, found = table.scored_groups, []
    bundles = bundles_of(groups)
    for axis in table.groups[0].values if table.groups else ():
        if any(axis in bundle[1:] for bundle in bundles.values()):
            continue
        orders = {group.level(axis): order_of(group.values[axis]) for group in groups}
        levels = sorted(orders, key=lambda level: orders[level])
        if any(_pairs(groups, bundles[axis], "", level) for level in levels if level):
            levels = ["", *(level for level in levels if level)]  # groups without the key, such as those not combined
        for place, level in enumerate(levels):
            # a key of a part, such as label_smoothing, may have its first value only with another part
            earlier = (_pairs(groups, bundles[axis], base, level) for base in levels[:place])
            if pairs := _trained(next(filter(None, earlier), []), groups, axis):
                first, other = (groups[place].shown for place in pairs[0])
                if len(bundles[axis]) > 1:
                    named = [
                        [key for key in bundles[axis] if groups[place].values[key] != "none"] for place in pairs[0]
                    ]
                    one, two = (groups[place].text_of(keys) for place, keys in zip(pairs[0], named, strict=True))
                else:
                    absent = "single runs" if axis.startswith("combine.") else "nothing"
                    one, two = first.get(axis, absent).rpartition("=")[2], other.get(axis, axis)
                found.append(Pairing(axis, bundles[axis], f"{two or 'nothing'} instead of {one or 'nothing'}", pairs))
    return found


def _trained(pairs: list[tuple[int, int]], groups: Sequence[Group], axis: str) -> list[tuple[int, int]]:
    """Return the pairs without combined groups, whose members count already; all pairs if there are no others."""
    if axis.startswith("combine."):
        return pairs
    combined = [any(key.startswith("combine.") and group.level(key) for key in group.values) for group in groups]
    return [pair for pair in pairs if not any(combined[place] for place in pair)] or pairs


def _pairs(groups: Sequence[Group], axes: Sequence[str], first: str, other: str) -> list[tuple[int, int]]:
    """Return the places of groups with the first and the other value of `axes[0]` that agree in all axes but these."""
    alike = defaultdict[tuple[str, ...], list[int]](list)
    for place, group in enumerate(groups):
        if group.level(axes[0]) == other:
            alike[_others(group, axes)].append(place)
    return [
        (place, partner)
        for place, group in enumerate(groups)
        if group.level(axes[0]) == first
        for partner in alike[_others(group, axes)]
    ]


def confounded_of(table: Table) -> list[str]:
    """Return the axes that never differ alone, so that their effects cannot be separated."""
    bundles = bundles_of(table.scored_groups)
    known = {key for pairing in pairings_of(table) for key in bundles[pairing.axis]}
    axes = table.groups[0].values if table.groups else {}
    several = [axis for axis in axes if len({group.level(axis) for group in table.scored_groups}) > 1]
    return [axis for axis in several if axis not in known]


def _others(group: Group, axes: Sequence[str]) -> tuple[str, ...]:
    """Return the values of all other axes."""
    return tuple(group.level(key) for key in group.values if key not in axes)


def _sentence(table: Table, pairing: Pairing, settings: tuple[float, ...], found: Comparisons, axes: int) -> str:
    """Return the sentence on one effect: the difference and its conclusion."""
    metric = SCORES[table.metric]
    value, low, high, p = (float(column[0]) for column in found)
    leaks = _about_leaks(table, pairing) or _about_data(table, pairing)
    name, over = table.title_of_metric, ", averaged over the other axes" if len(settings) > 1 else ""
    if math.isnan(low):
        reason = table.estimates[table.metric].withheld
        text = f"{pairing.label}: {name} {metric.difference(value)}{metric.unit}; no interval, since {reason}."
        return text + _about_sweeps(table, pairing)
    if low == high:
        text = f"{pairing.label}: {name} {metric.difference(value)}{metric.unit}{over}. "
        text += f"Each of these runs predicts one class, which gives the same {name} on any images."
        return text + _about_sweeps(table, pairing)
    text = f"{pairing.label}: {name} {limits_text(table.metric, value, low, high)}{metric.unit}{over}. "
    if p <= 1 - CONFIDENCE:
        text += leaks or f"It {'raises' if value > 0 else 'lowers'} {name} on images like these."
    else:
        limits = f"from {metric.difference(low)} to {metric.difference(high)}{metric.unit}"
        text += f"These runs cannot show a difference; the true one may be anything {limits}."
        text += f" {leaks}" if leaks else ""
    warnings = _about_sweeps(table, pairing), _uneven(table, pairing, settings, axes), _about_seeds(table, pairing)
    return text + "".join(warnings)


def _about_leaks(table: Table, pairing: Pairing) -> str:
    """Return the conclusion in place of that on the axis if only some of the compared groups leak."""
    groups = [table.scored_groups[place] for pair in pairing.pairs for place in pair]
    leaking = {bool(group.leaking) for group in groups}
    return "Only some of these groups leak, which may cause the difference." if len(leaking) > 1 else ""


def _about_data(table: Table, pairing: Pairing) -> str:
    """Return the conclusion in place of that on the axis if compared groups had other data, or are unequal means."""
    groups = [table.scored_groups[place] for pair in pairing.pairs for place in pair]
    compared = {id(group) for group in groups}
    for split, contents in table.differing_data:
        if sum(any(id(group) in compared for group in same) for same in contents) > 1:
            return f"These groups had different images or labels in {split}, which may cause the difference."
    if len({len(run.members) for group in groups if group.is_mean for run in group.scored}) > 1:
        return "These groups are means of different numbers of runs, which may cause the difference."
    return ""


def _about_sweeps(table: Table, pairing: Pairing) -> str:
    """Return a warning if the values of the axis are sweeps or single runs, which differ in several settings."""
    if pairing.axis not in ("sweep", "run"):
        return ""
    groups = [table.scored_groups[place] for pair in pairing.pairs for place in pair]
    keys = [key for key in axes_of([run for group in groups for run in group.runs]) if key not in groups[0].values]
    parts = {key.removesuffix("._target_") for key in keys if key.endswith("._target_")}
    names = list(dict.fromkeys(next((part for part in parts if key.startswith(f"{part}.")), key) for key in keys))
    more = ", …" if len(names) > NAMED else ""
    which = f"{pairing.axis}s differ in several settings ({', '.join(names[:NAMED])}{more})"
    return f" The {which}, whose effects cannot be separated."


def _uneven(table: Table, pairing: Pairing, settings: tuple[float, ...], axes: int) -> str:
    """Return a warning if the effect depends on the other axes; otherwise an empty text."""
    estimates, groups = table.estimates[table.metric], table.scored_groups
    rows = np.zeros((len(settings), len(estimates.values)))
    for row, (first, other) in zip(rows, pairing.pairs, strict=True):
        row[other], row[first] = 1, -1
    between = np.array([rows[one] - rows[other] for one, other in combinations(range(len(settings)), 2)])
    # Bonferroni correction over the axes
    if not len(between) or not np.any(estimates.compare(between).p <= (1 - CONFIDENCE) / axes):
        return ""
    rest = [
        groups[first].text_of(axis for axis in groups[first].shown if axis not in pairing.axes)
        for first, _ in pairing.pairs
    ]
    parts = [
        f"{SCORES[table.metric].difference(value)} at {where}" for value, where in zip(settings, rest, strict=True)
    ]
    order = np.argsort(settings)
    shown = parts if len(parts) <= SETTINGS else [parts[order[0]], parts[order[-1]]]
    return f" The effect depends on the other axes, so the average can mislead: {'; '.join(shown)}."


def _about_seeds(table: Table, pairing: Pairing) -> str:
    """Return a warning if each group has one seed: the difference is then between trained networks."""
    groups = table.scored_groups
    compared = [groups[place] for pair in pairing.pairs for place in pair]
    single = all(len(group.scored) == 1 and not group.is_mean for group in compared)
    unknown = not np.any(table.estimates[table.metric].seeds.degrees)
    return " With one seed each, this compares trained networks, not settings." if single and unknown else ""
