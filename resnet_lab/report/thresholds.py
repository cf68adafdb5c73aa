"""What the probabilities of a table's runs are worth: ROC and precision–recall, operating points, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from resnet_lab.report import calibration, charts
from resnet_lab.report.by_class import NOTHING, Share, by_patient, share_of
from resnet_lab.report.groups import Group, Table
from resnet_lab.scores import Predictions
from resnet_lab.statistics import REFERABLE

PLACES = np.linspace(0, 1, 201)  # where the curves of several runs are averaged
HARDEST = 6  # classes that are drawn one by one where there are many
PANELS = 12  # classes that are drawn one by one; of more, the hardest

Binary = tuple[np.ndarray, np.ndarray]  # whether each image is positive (N,), and its score (N,)
Curve = tuple[np.ndarray, float]  # values at PLACES, and the area under it


def roc_of(binary: Binary) -> Curve:
    """Sensitivity at each false positive rate, and the area under the curve."""
    false_alarms, found, _ = roc_curve(*binary)
    return np.interp(PLACES, false_alarms, found), float(np.trapezoid(found, false_alarms))


def precision_recall_of(binary: Binary) -> Curve:
    """Precision at each recall, and average precision, the mean precision over the steps of recall."""
    precision, recall, _ = precision_recall_curve(*binary)
    reached = np.searchsorted(recall[::-1], PLACES)  # steps: between two recalls there is no threshold
    values = precision[::-1][reached]
    return values, float(-np.sum(np.diff(recall) * precision[:-1]))


def panels_of(table: Table, curve: Callable[[Binary], Curve], score: str) -> list[tuple[str, list[charts.Line]]]:
    """One panel for the referable grades and one a class, each with a line a group."""
    if not table.scored:
        return []
    panels: list[tuple[str, Callable[[Predictions], Binary]]] = []
    if table.referable:
        panels.append((f"referable (from {table.scored[0].class_names[REFERABLE]} on)", calibration.referable))
    panels += [(table.scored[0].class_names[k], _against_the_rest(k)) for k in _drawn_classes(table)]
    groups = [group for group in table.drawn if group.scored]
    found = [(title, [_line(group, binary, curve, score) for group in groups]) for title, binary in panels]
    return [(title, [line for line in lines if line]) for title, lines in found if any(lines)]


def _against_the_rest(k: int) -> Callable[[Predictions], Binary]:
    return lambda predictions: (predictions.targets == k, predictions.probabilities[:, k])


def _drawn_classes(table: Table) -> list[int]:
    """All classes that are tested, or of many those with the lowest recall."""
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
    """What a threshold that was chosen on validation gives on test: means over the runs of a group.

    Without thresholds where a run of the group has no validation images of both kinds.
    """

    label: str
    name: str  # high sensitivity, or high specificity
    thresholds: tuple[float, ...]  # of the runs
    sensitivity: Share
    specificity: Share
    chosen_on: str = ""  # validation images, and how many of them are to be referred; of the runs

    @property
    def refer_none(self) -> int:
        """Runs whose threshold is above all scores: they refer nobody."""
        return sum(math.isinf(cut) for cut in self.thresholds)

    @property
    def point(self) -> calibration.OperatingPoint:
        """For a mark on the curve."""
        return calibration.OperatingPoint(
            float(np.mean(self.thresholds)), self.sensitivity.value, self.specificity.value
        )


def operating_rows(table: Table) -> list[OperatingRow]:
    """Both operating points of each group whose runs all have validation predictions, best group first."""
    if not table.referable:
        return []
    return [row for group in table.ranked if group.scored for row in operating_rows_of(group, table.patient)]


def operating_rows_of(group: Group, patient: np.ndarray | None = None) -> Iterator[OperatingRow]:
    """The rows of one group; images are their own patients where `patient` (N,) is not given."""
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
    """Expected calibration error of a group, mean over its runs; NaN where no validation predictions are stored."""

    label: str
    before: float
    temperature: float
    after: float


def calibration_rows(table: Table) -> list[CalibrationRow]:
    """Each group before and after temperature scaling fitted on validation, best group first."""
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
        rows.append(CalibrationRow(group.label, before, mean, after))
    return rows


def scaled_predictions(group: Group) -> list[tuple[float, Predictions]]:
    """By run, the temperature fitted on validation and the scaled test predictions; empty without validation."""
    found = []
    for run, predictions in zip(group.scored, group.predictions, strict=True):
        if run.validation is None:
            return []
        fitted = calibration.temperature(run.validation.labeled)
        found.append((fitted, calibration.temperature_scaled(predictions, fitted)))
    return found


def concatenate(predictions: Sequence[Predictions]) -> Predictions:
    """The predictions of several runs as those of one."""
    return Predictions(*(np.concatenate(parts) for parts in zip(*predictions, strict=True)))
