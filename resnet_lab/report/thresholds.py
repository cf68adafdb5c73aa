"""ROC and precision–recall curves, operating points and calibration of a table's runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from resnet_lab.report import calibration, charts
from resnet_lab.report.by_class import NOTHING, Share, by_patient, share_of
from resnet_lab.report.groups import Group, Table
from resnet_lab.scores import Predictions
from resnet_lab.statistics import threshold_counts

PLACES = np.linspace(0, 1, 201)  # positions at which the curves of several runs are averaged
HARDEST = 6  # panels if there are more than `PANELS` classes: those with the lowest recall
FEW_TO_FIT = 100  # validation images; a temperature fitted on fewer is uncertain
PANELS = 12  # classes with a panel each

Binary = tuple[np.ndarray, np.ndarray]  # whether each image is positive (N,), and its score (N,)
Curve = tuple[np.ndarray, float]  # values at PLACES, and the area under it


def roc_of(binary: Binary) -> Curve:
    """Return sensitivity at each false positive rate, and the area under the curve."""
    found, false_alarms = (np.append(0, counts) / counts[-1] for counts in threshold_counts(*binary)[:2])
    return np.interp(PLACES, false_alarms, found), float(np.trapezoid(found, false_alarms))


def precision_recall_of(binary: Binary) -> Curve:
    """Return precision at each recall, and average precision: the mean precision over the steps of recall.

    The curve starts with the precision of the first threshold that finds a positive; a recall of 0 has none.
    """
    found, false_alarms, _ = threshold_counts(*binary)
    found, false_alarms = found[found > 0], false_alarms[found > 0]
    precision, recall = found / (found + false_alarms), found / found[-1]
    reached = np.searchsorted(recall, PLACES)  # no threshold lies between two recalls
    return precision[reached], float(np.sum(np.diff(recall, prepend=0) * precision))


def panels_of(table: Table, curve: Callable[[Binary], Curve], score: str) -> list[tuple[str, list[charts.Line]]]:
    """Return one panel for the referable grades and one per class, each with one line per group."""
    if not table.scored:
        return []
    panels: list[tuple[str, Callable[[Predictions], Binary]]] = []
    if table.referable:
        panels.append((f"referable ({table.referable_classes})", calibration.referable))
    panels += [(table.scored[0].class_names[k], _against_the_rest(k)) for k in _drawn_classes(table)]
    groups = [group for group in table.drawn if group.scored]
    found = [(title, [_line(group, binary, curve, score) for group in groups]) for title, binary in panels]
    return [(title, [line for line in lines if line]) for title, lines in found if any(lines)]


def _against_the_rest(k: int) -> Callable[[Predictions], Binary]:
    return lambda predictions: (predictions.targets == k, predictions.probabilities[:, k])


def _drawn_classes(table: Table) -> list[int]:
    """Return all tested classes, or those with the lowest recall if there are many."""
    counts = np.sum([run.counts for run in table.scored], axis=0)
    tested = np.flatnonzero(counts.sum(axis=1))
    if len(tested) <= PANELS:
        return list(map(int, tested))
    recall = counts.diagonal()[tested] / counts.sum(axis=1)[tested]
    return list(map(int, tested[np.argsort(recall, kind="stable")[:HARDEST]]))


def _line(
    group: Group, binary: Callable[[Predictions], Binary], curve: Callable[[Binary], Curve], score: str
) -> charts.Line | None:
    cases = [binary(predictions) for predictions in group.predictions]
    if not all(0 < positive.sum() < len(positive) for positive, _ in cases):
        return None
    values, areas = zip(*map(curve, cases), strict=True)
    rows = operating_rows_of(group) if binary is calibration.referable else ()
    points = tuple((row.name, row.point) for row in rows if row.thresholds)
    shown = points if curve is roc_of else ()
    return charts.Line(group.label, PLACES, np.stack(values), f"{score} {np.mean(areas):.3f}", shown)


class OperatingRow(NamedTuple):
    """The test results of a threshold chosen on validation: means over the runs of a group.

    `thresholds` is empty if a run of the group has no validation images of both kinds.
    """

    label: str
    name: str  # high sensitivity, or high specificity
    thresholds: tuple[float, ...]  # one per run
    sensitivity: Share
    specificity: Share
    chosen_on: str = ""  # number of validation images (and of referable ones), by run

    @property
    def refer_none(self) -> int:
        """The number of runs whose threshold is above all scores; they refer no image."""
        return sum(math.isinf(cut) for cut in self.thresholds)

    @property
    def point(self) -> calibration.OperatingPoint:
        """The mark on the curve."""
        return calibration.OperatingPoint(
            float(np.mean(self.thresholds)), self.sensitivity.value, self.specificity.value
        )


def operating_rows(table: Table) -> list[OperatingRow]:
    """Return both operating points of each group with validation predictions for all runs, best group first."""
    if not table.referable:
        return []
    return [row for group in table.ranked if group.scored for row in operating_rows_of(group, table.patient)]


def operating_rows_of(group: Group, patient: np.ndarray | None = None) -> Iterator[OperatingRow]:
    """Yield the rows of one group; without `patient` (N,), each image is its own patient."""
    chosen = [calibration.thresholds(run.validation.labeled) if run.validation else {} for run in group.scored]
    if not all(chosen):
        if any(chosen):
            yield OperatingRow(group.label, "not every run has validation predictions", (), NOTHING, NOTHING)
        return
    sizes = dict.fromkeys(_size_of(run.validation.labeled) for run in group.scored if run.validation)
    patient = np.arange(len(group.predictions[0].targets)) if patient is None else patient
    for name in calibration.TARGETS:
        cuts = tuple(cut[name] for cut in chosen)
        positive, _ = calibration.referable(group.predictions[0])
        called = np.mean(
            [
                calibration.referable(predictions)[1] >= cut
                for predictions, cut in zip(group.predictions, cuts, strict=True)
            ],
            axis=0,
        )
        sensitivity = share_of(by_patient(called * positive, patient), by_patient(positive, patient))
        specificity = share_of(by_patient((1 - called) * ~positive, patient), by_patient(~positive, patient))
        yield OperatingRow(group.label, name, cuts, sensitivity, specificity, "; ".join(sizes))


def _size_of(predictions: Predictions) -> str:
    positive, _ = calibration.referable(predictions)
    return f"{len(positive)} ({positive.sum()})"


class CalibrationRow(NamedTuple):
    """Expected calibration error of a group, mean over its runs; NaN without stored validation predictions."""

    label: str
    before: float
    temperature: float
    after: float
    fitted_on: str = ""  # number of validation images, by run


def calibration_rows(table: Table) -> list[CalibrationRow]:
    """Return each group before and after temperature scaling fitted on validation, best group first."""
    rows = []
    for group in (group for group in table.ranked if group.scored):
        before = float(np.mean([calibration.calibration_error(predictions) for predictions in group.predictions]))
        scaled = scaled_predictions(group)
        after = (
            float(np.mean([calibration.calibration_error(predictions) for _, predictions in scaled]))
            if scaled
            else math.nan
        )
        mean = float(np.exp(np.mean([np.log(each) for each, _ in scaled]))) if scaled else math.nan
        sizes = dict.fromkeys(str(number) for number in _validation_sizes(group)) if scaled else {}
        rows.append(CalibrationRow(group.label, before, mean, after, "; ".join(sizes)))
    return rows


def few_to_fit(table: Table) -> int:
    """Return `FEW_TO_FIT` if a temperature is fitted on fewer validation images, else 0."""
    sizes = [number for group in table.groups for number in _validation_sizes(group)]
    return FEW_TO_FIT if sizes and min(sizes) < FEW_TO_FIT else 0


def _validation_sizes(group: Group) -> list[int]:
    return [len(run.validation.images) for run in group.scored if run.validation]


def scaled_predictions(group: Group) -> list[tuple[float, Predictions]]:
    """Return temperature (fitted on validation) and scaled test predictions by run; empty without validation."""
    found = []
    for run, predictions in zip(group.scored, group.predictions, strict=True):
        if run.validation is None:
            return []
        fitted = calibration.temperature(run.validation.labeled)
        found.append((fitted, calibration.temperature_scaled(predictions, fitted)))
    return found


def concatenate(predictions: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several runs as one."""
    return Predictions(*(np.concatenate(parts) for parts in zip(*predictions, strict=True)))
