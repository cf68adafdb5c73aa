"""The rows of a leaderboard: groups with intervals and ties, the majority baseline, and published numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_lab.report.groups import AREA, Group, Table
from resnet_lab.report.intervals import CONFIDENCE, Interval
from resnet_lab.report.references import references_for
from resnet_lab.scores import ABSENT, SCORES

CONSTANT = "none: one class predicted"  # in place of an interval without width
NOTHING = Interval(math.nan, math.nan)
READ = {"original": "", "abstract": " (from the abstract)", "copy": " (from a secondary source)"}  # source of a number


class Row(NamedTuple):
    """One line of a table: a group, the majority baseline, or a published number."""

    label: str
    remark: str
    n: str
    cells: list[str]  # one for each of the table's metrics
    kind: str = "group"  # or baseline, reference
    mark: str = ""  # best, tied, behind, untested, or empty
    value: float = math.nan  # of the metric that ranks
    interval: Interval = NOTHING
    shortfall: str = ""  # difference from the best, with limits


def rows_of(table: Table) -> list[Row]:
    """Return the groups from the best to the worst, then the majority baseline, then published numbers."""
    marks, shortfalls = _against_best(table)
    rows = [_row(table, group, marks.get(id(group), ""), shortfalls.get(id(group), "")) for group in table.ranked]
    for run in {run.majority: run for run in table.scored}.values():
        cells = [SCORES[metric].text(run.baseline[metric]) for metric in table.metrics]
        label = f"majority baseline: always predicting “{run.class_names[run.majority]}”"
        rows.append(Row(label, "", "", cells, "baseline", value=run.baseline[table.metric]))
    return rows + _published(table, table.metrics, table.metric)


def referable_rows_of(table: Table) -> list[Row]:
    """Return the referable AUROC of the groups, best first, then published numbers; empty without such grades.

    The first cell is the area, the second its interval.
    """
    if not table.referable:
        return []
    rows = []
    for group in (group for group in table.ranked if group.scored):
        area = SCORES[AREA].text(*group.mean_and_std(AREA))
        limits = interval_text(AREA, interval_of(table, group, AREA))
        rows.append(Row(group.label, "", str(len(group.scored)), [area, limits]))
    return rows + [row._replace(cells=[*row.cells, ""]) for row in _published(table, [AREA], AREA)]


def _published(table: Table, metrics: Sequence[str], ranking: str) -> list[Row]:
    """Return the published numbers for any of these metrics."""
    rows = []
    for reference in references_for(table.scored):
        scores, std = reference.scores, reference.std
        if not scores.keys() & set(metrics):
            continue
        cells = [SCORES[metric].text(scores.get(metric, math.nan), std.get(metric, math.nan)) for metric in metrics]
        origin = reference.source + READ[reference.read]
        remark = f"{origin}. {reference.verdict(table.scored)}"
        rows.append(Row(reference.what, remark, "", cells, "reference", value=scores.get(ranking, math.nan)))
    return rows


def _row(table: Table, group: Group, mark: str, shortfall: str) -> Row:
    remarks = {
        "without a result": len(group.runs) - len(group.scored),
        "collapsed": len(group.collapsed),
        "leaking": len(group.leaking),
    }
    remark = ", ".join(f"{number} {text}" for text, number in remarks.items() if number)
    cells = [SCORES[metric].text(*group.mean_and_std(metric)) for metric in table.metrics]
    value = group.mean_and_std(table.metric)[0]
    return Row(
        group.label,
        remark,
        str(len(group.scored)),
        cells,
        mark=mark,
        value=value,
        interval=interval_of(table, group, table.metric),
        shortfall=shortfall,
    )


def interval_of(table: Table, group: Group, metric: str) -> Interval:
    """Return the 95 % interval of a group's mean; NaN if it has no result."""
    places = [place for place, other in enumerate(table.scored_groups) if other is group]
    return table.estimates[metric].interval(places[0]) if places else NOTHING


def _against_best(table: Table) -> tuple[dict[int, str], dict[int, str]]:
    """Return the marks of the groups and their differences from the best group, by `id` of the group.

    If the metric has no interval, the other groups are untested: neither tied nor behind.
    """
    groups = [id(group) for group in table.scored_groups]
    untested = bool(table.estimates and table.estimates[table.metric].withheld)
    if len(groups) < 2 or all(math.isnan(value) for value in table.estimates[table.metric].values):
        return {}, {}
    best, found = table.against_best
    if not np.any(found.values):
        return {}, {}  # all values are equal: none is the best
    marks, shortfalls = {groups[best]: "" if untested else "best"}, {groups[best]: ABSENT}
    for place, group in enumerate(groups):
        if place != best and not math.isnan(found.values[place]):
            behind = "untested" if untested else "behind"
            marks[group] = "tied" if found.p[place] > 1 - CONFIDENCE and not untested else behind
            shortfalls[group] = limits_text(table.metric, found.values[place], found.low[place], found.high[place])
    return marks, shortfalls


def limits_text(metric: str, value: float, low: float, high: float) -> str:
    """Return a difference and its limits, `−0.12 [−0.20, −0.04]`; why it has none if the limits have no width."""
    shown = SCORES[metric]
    if low == high:
        return f"{shown.difference(value)} [{CONSTANT}]"
    limits = "" if math.isnan(low) else f" [{shown.difference(low)}, {shown.difference(high)}]"
    return shown.difference(value) + limits


def interval_text(metric: str, interval: Interval) -> str:
    """Return `0.31 to 0.48`; a dash if the limits are unknown, and CONSTANT if the score is the same on any images."""
    shown = SCORES[metric]
    if interval.low == interval.high:
        return CONSTANT
    return ABSENT if math.isnan(interval.low) else f"{shown.text(interval.low)} to {shown.text(interval.high)}"
