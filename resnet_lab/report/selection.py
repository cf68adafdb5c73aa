"""Which epoch the validation split selected, and how many others are as good within its noise."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from resnet_lab.report.groups import Group, Table
from resnet_lab.report.intervals import FEW_OF_A_CLASS, Z, estimate
from resnet_lab.report.runs import Run, StoredPredictions, read_metrics
from resnet_lab.scores import SCORES, Predictions

LOSS = "loss"
ALIKE = 1e-5  # values of metrics.csv and status.json come from float32


class Selection(NamedTuple):
    """The selected epoch of a run."""

    epoch: int  # from 1
    epochs: int
    alike: int  # other epochs within one standard error of it (Breiman et al. 1984)
    images: int  # of validation


class Blind(NamedTuple):
    """A group in which most epochs are as good as the selected one."""

    label: str
    selections: list[Selection]


def blind_of(table: Table) -> list[Blind]:
    """Return the groups in which more than half of the other epochs are within one standard error of the selected."""
    found = [Blind(group.label, selections_of(group)) for group in table.ranked]
    return [each for each in found if each.selections and _mostly_alike(each.selections)]


def _mostly_alike(selections: list[Selection]) -> bool:
    others = sum(each.epochs - 1 for each in selections)
    return others > 0 and sum(each.alike for each in selections) > others / 2


def selections_of(group: Group) -> list[Selection]:
    """Return the selections of the runs that store validation predictions and the curve of the selecting score."""
    return [found for run in group.scored if (found := _selection(run))]


def _selection(run: Run) -> Selection | None:
    monitor, best = str(run.status.get("monitor")), run.status.get("best_value")
    name = monitor.removeprefix("val/")
    validation = run.predictions if run.split == "val" else run.validation  # without a test split it is scored
    if validation is None or name not in (*SCORES, LOSS) or not isinstance(best, int | float):
        return None
    rows = read_metrics(run.folder.stored_metrics)
    if monitor not in rows:
        return None
    values = rows[monitor].to_numpy(float)
    places = np.flatnonzero(np.abs(values - best) < ALIKE)
    if not len(places):
        return None
    patient = np.unique(validation.patients, return_inverse=True)[1]
    error = _error_of_loss(validation.labeled, patient, best) if name == LOSS else _error(validation, patient, name)
    if not np.isfinite(error):
        return None
    falls = name == LOSS or SCORES[name].falls
    worse = (values - best) * (1 if falls else -1)  # NaN: undefined in that epoch
    alike = int(np.sum(worse <= error)) - 1
    return Selection(int(rows.index[places[-1]]) + 1, len(values), alike, len(patient))


def _error(validation: StoredPredictions, patient: np.ndarray, name: str) -> float:
    """Return the standard error of a score over patients; NaN without an interval."""
    if SCORES[name].from_sums is None:
        return np.nan
    found = estimate([[validation.labeled]], patient, draws=1, metrics=[name], compared=[])[name]
    # with few images of a class, the true error is larger than this one, so even more epochs are as good
    limits = (replace(found, withheld="") if found.withheld == FEW_OF_A_CLASS else found).interval(0)
    return (limits.high - limits.low) / (2 * Z)


def _error_of_loss(labeled: Predictions, patient: np.ndarray, best: float) -> float:
    """Return the standard error of the mean cross-entropy over patients; NaN if the loss is another one.

    Args:
        labeled: validation predictions.
        patient: number of each image's patient, (N,).
        best: the stored loss of the selected epoch; cross-entropy without weights and smoothing gives the same.
    """
    targets, _, probabilities = labeled
    losses = -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], np.finfo(float).tiny))
    patients = patient.max() + 1
    if not np.isclose(losses.mean(), best, rtol=0.01) or patients < 2:
        return np.nan
    sums = np.bincount(patient, losses - losses.mean())
    return float(np.sqrt((sums**2).sum() * patients / (patients - 1)) / len(losses))
