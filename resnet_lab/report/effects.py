"""What each axis of a grid changes, averaged over the others, and what can be concluded from it."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np

from resnet_lab.report.groups import Group, Table, order_of
from resnet_lab.report.intervals import CONFIDENCE, Comparisons
from resnet_lab.report.leaderboard import limits_text
from resnet_lab.scores import SCORES

SETTINGS = 4  # as many are listed one by one


class Effect(NamedTuple):
    """One value of an axis in place of its first one, all else equal."""

    axis: str
    label: str  # `pretrained=imagenet instead of none`
    value: float
    low: float
    high: float
    p: float
    settings: tuple[float, ...]  # the same difference in each setting of the other axes
    sentence: str


class Pairing(NamedTuple):
    """Groups that differ in one axis alone, as places among the scored groups."""

    axis: str
    label: str
    pairs: list[tuple[int, int]]  # (the first value of the axis, another one)


def effects_of(table: Table) -> list[Effect]:
    """Every other value of each axis against its first; limits and p-values hold for all of them together."""
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
    effects = []
    for place, pairing in enumerate(pairings):
        settings = tuple(float(estimates.values[other] - estimates.values[first]) for first, other in pairing.pairs)
        value, low, high, p = (float(column[place]) for column in found)
        sentence = _sentence(table, pairing, settings, Comparisons(*(column[place : place + 1] for column in found)))
        effects.append(Effect(pairing.axis, pairing.label, value, low, high, p, settings, sentence))
    return effects


def pairings_of(table: Table) -> list[Pairing]:
    """For each axis and each of its values but the first, the pairs of groups in which nothing else differs."""
    groups, found = table.scored_groups, []
    for axis in table.groups[0].values if table.groups else ():
        orders = {_level(group, axis): order_of(group.values[axis]) for group in groups}
        levels = sorted(orders, key=lambda level: orders[level])
        for level in levels[1:]:
            pairs = [
                (first, other)
                for first, one in enumerate(groups)
                for other, another in enumerate(groups)
                if _level(one, axis) == levels[0] and _level(another, axis) == level and _same_but(one, another, axis)
            ]
            if pairs:
                first = groups[pairs[0][0]].shown.get(axis, "nothing").rpartition("=")[2] or "nothing"
                label = f"{groups[pairs[0][1]].shown.get(axis, axis)} instead of {first}"
                found.append(Pairing(axis, label, pairs))
    return found


def pairing_axes(table: Table) -> set[str]:
    """The axes of which something can be said."""
    return {pairing.axis for pairing in pairings_of(table)}


def confounded_of(table: Table) -> list[str]:
    """The axes in which no two groups differ alone, so that nothing can be said of them."""
    known = pairing_axes(table)
    axes = table.groups[0].values if table.groups else {}
    several = [axis for axis in axes if len({_level(group, axis) for group in table.scored_groups}) > 1]
    return [axis for axis in several if axis not in known]


def _level(group: Group, axis: str) -> str:
    """The value of an axis as it is shown: a source of weights that follows the depth is one value."""
    return group.shown.get(axis, "")


def _same_but(one: Group, other: Group, axis: str) -> bool:
    return all(_level(one, key) == _level(other, key) for key in one.values if key != axis)


def _sentence(table: Table, pairing: Pairing, settings: tuple[float, ...], found: Comparisons) -> str:
    """What can be concluded of one difference, and what cannot."""
    metric = SCORES[table.metric]
    value, low, high, p = (float(column[0]) for column in found)
    name, over = table.title_of_metric, ", averaged over the other axes" if len(settings) > 1 else ""
    if math.isnan(low):
        reason = table.estimates[table.metric].withheld
        return f"{pairing.label}: {name} {metric.difference(value)}{metric.unit}; no interval, since {reason}."
    text = f"{pairing.label}: {name} {limits_text(table.metric, value, low, high)}{metric.unit}{over}. "
    if p <= 1 - CONFIDENCE:
        text += f"It {'raises' if value > 0 else 'lowers'} {name} on images like these."
    else:
        most = max(abs(low), abs(high))
        text += (
            f"These runs cannot show a difference; the true one may be anything up to {metric.text(most)}{metric.unit}."
        )
    return text + _uneven(table, pairing, settings) + _about_seeds(table, pairing)


def _uneven(table: Table, pairing: Pairing, settings: tuple[float, ...]) -> str:
    """Where the difference itself depends on the other axes, their average is of little use."""
    estimates, groups = table.estimates[table.metric], table.scored_groups
    rows = np.zeros((len(settings), len(estimates.values)))
    for row, (first, other) in zip(rows, pairing.pairs, strict=True):
        row[other], row[first] = 1, -1
    between = np.array([rows[one] - rows[other] for one, other in combinations(range(len(settings)), 2)])
    # every axis is tested, so each gets its share of the error probability
    if not len(between) or not np.any(estimates.compare(between).p <= (1 - CONFIDENCE) / len(pairing_axes(table))):
        return ""
    rest = [
        " ".join(text for key, text in groups[first].shown.items() if key != pairing.axis) for first, _ in pairing.pairs
    ]
    parts = [
        f"{SCORES[table.metric].difference(value)} at {where}" for value, where in zip(settings, rest, strict=True)
    ]
    order = np.argsort(settings)
    shown = parts if len(parts) <= SETTINGS else [parts[order[0]], parts[order[-1]]]
    return f" The effect depends on the other axes, which the average hides: {'; '.join(shown)}."


def _about_seeds(table: Table, pairing: Pairing) -> str:
    """With one seed a difference is between two trained networks."""
    groups = table.scored_groups
    single = all(len(groups[place].scored) == 1 for pair in pairing.pairs for place in pair)
    unknown = not np.any(table.estimates[table.metric].seeds.degrees)
    return " With one seed each, this compares these networks, not the settings." if single and unknown else ""
