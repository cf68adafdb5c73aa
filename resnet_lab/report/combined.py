"""Groups made from other runs: ensembles beside their members, folds, and other decision rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from resnet_lab.errors import count
from resnet_lab.report.groups import Group, Table
from resnet_lab.report.intervals import Seeds, estimate
from resnet_lab.report.leaderboard import limits_text
from resnet_lab.report.runs import Run
from resnet_lab.scores import ABSENT, SCORES, Predictions
from resnet_lab.statistics import DECISIONS, decisions, fitted_thresholds

RANKS_DECISIONS = "qwk"  # the score that shows what a decision rule gives


class CombinedRow(NamedTuple):
    """A combined group and its members, by the metric that ranks."""

    label: str
    members: str  # labels of their groups; with a number if a group has more runs
    value: str
    of_members: str  # mean of their runs
    difference: str  # with limits


def combined_rows(table: Table) -> list[CombinedRow]:
    """Return the combined groups whose members are in the table, with the paired difference from their mean.

    The limits of all differences hold at once. They cover patients, not seeds: a group and its members share them.
    """
    groups = table.scored_groups
    group_of = {run.folder.path.resolve(): (run, group) for group in groups for run in group.scored}
    found = list[tuple[Group, list[tuple[Run, Group]]]]()
    for group in groups:
        sources = [folder for run in group.scored for folder in run.members]
        if sources and all(folder in group_of for folder in sources):
            found.append((group, [group_of[folder] for folder in sources]))
    if not found:
        return []
    metric = SCORES[table.metric]
    # the members alone: their group may have more seeds
    compared = [group.predictions for group, _ in found]
    compared += [[run.predictions.labeled for run, _ in members if run.predictions] for _, members in found]
    estimates = estimate(compared, table.patient, metrics=[table.metric], compared=[table.metric])[table.metric]
    none = np.zeros(len(compared))
    values = estimates.values[len(found) :]
    contrasts = np.hstack([np.eye(len(found)), -np.eye(len(found))])
    limits = replace(estimates, seeds=Seeds(none, none, none)).compare(contrasts)[:3]
    return [
        CombinedRow(
            group.label,
            "; ".join(filter(None, (_of_group(other, members) for other in groups))),
            metric.text(group.mean_and_std(table.metric)[0]),
            metric.text(float(value)),
            limits_text(table.metric, *(float(column[number]) for column in limits)),
        )
        for number, ((group, members), value) in enumerate(zip(found, values, strict=True))
    ]


def _of_group(group: Group, members: Sequence[tuple[Run, Group]]) -> str:
    """Return the label of a group, with the number of members if it has other runs, too; empty without members."""
    number, runs = len({run.folder.path for run, own in members if own is group}), len(group.scored)
    part = f" ({number} of {count(runs, 'run')})" if number < runs else ""
    return f"{group.label}{part}" if number else ""


class FoldRow(NamedTuple):
    """A cross-validated group: the score of all images together, and of each fold alone."""

    label: str
    value: str  # of the pooled images
    mean: str  # of the folds, with their standard deviation
    folds: list[str]


def fold_rows(table: Table) -> list[FoldRow]:
    """Return the groups with pooled folds; a fold's score is the mean over the runs."""
    rows, metric = [], SCORES[table.metric]
    for group in table.ranked:
        scores = [found for run in group.scored if (found := _of_folds(run, table.metric))]
        if not scores or len({len(each) for each in scores}) > 1:
            continue
        by_fold = np.mean(scores, axis=0)
        spread = metric.text(float(by_fold.mean()), float(by_fold.std(ddof=1)))
        value = metric.text(group.mean_and_std(table.metric)[0])
        rows.append(FoldRow(group.label, value, spread, [metric.text(float(each)) for each in by_fold]))
    return rows


def _of_folds(run: Run, metric: str) -> list[float]:
    """Return the score of each fold of a pooled run; empty for another run."""
    sizes = list(run.folds.values())
    if not run.predictions or len(sizes) < 2 or min(sizes) < 1 or sum(sizes) != len(run.predictions.images):
        return []
    fold = np.repeat(np.arange(len(sizes)), sizes)[run.predictions.split.order]
    return [SCORES[metric].of(run.predictions.labeled.of(fold == number)) for number in range(len(sizes))]


class DecisionRow(NamedTuple):
    """A group with the score that each decision rule gives; a rule that was not chosen is computed after the test."""

    label: str
    chosen: str
    cells: list[str]  # one for each rule of DECISIONS


def decision_rows(table: Table) -> list[DecisionRow]:
    """Return QWK by decision rule for groups of grades; thresholds are fitted on stored validation predictions."""
    if not table.ordered:
        return []
    rows = []
    for group in table.ranked:
        chosen = {str(run.status.get("decision") or "argmax") for run in group.scored}
        if len(chosen) != 1:
            continue
        cells = []
        for rule in DECISIONS:
            values = [_decided(run, rule) for run in group.scored]
            cells.append(SCORES[RANKS_DECISIONS].text(float(np.mean(values))) if values else ABSENT)
        rows.append(DecisionRow(group.label, chosen.pop(), cells))
    return rows


def _decided(run: Run, rule: str) -> float:
    """Return the score of a run under a rule; NaN if there is no validation split to fit the thresholds on."""
    if run.predictions is None:
        return math.nan
    predictions, thresholds = run.predictions.labeled, None
    if rule == run.status.get("decision"):
        return SCORES[RANKS_DECISIONS].of(predictions)
    if rule == "thresholds":
        if run.validation is None:
            return math.nan
        known = run.validation.labeled
        thresholds = fitted_thresholds(known.probabilities, known.targets)
    return SCORES[RANKS_DECISIONS].of(_with_classes(predictions, rule, thresholds))


def _with_classes(predictions: Predictions, rule: str, thresholds: Sequence[float] | None) -> Predictions:
    return predictions._replace(classes=decisions(predictions.probabilities, rule, thresholds))
