"""The pictures of probabilities and of cost: runs of one table in, figures out (no torch)."""

from __future__ import annotations

from dataclasses import replace

from resnet_lab.report import calibration, charts, costs, thresholds
from resnet_lab.report.drawing import Drawing, Picture
from resnet_lab.report.groups import Table
from resnet_lab.scores import SCORES

RELIABLE = 3  # groups whose reliability is drawn, the best ones


def roc(table: Table) -> Picture | None:
    """Sensitivity against false alarms for the referable grades and for each class."""
    panels = thresholds.panels_of(table, thresholds.roc_of, "AUC")
    if not panels:
        return None
    wide, narrow = (
        charts.unit_curves(panels, "false positive rate", "sensitivity", columns, diagonal=True) for columns in (3, 1)
    )
    note = f"{_which(table)} Dotted: guessing."
    if any(line.points for _, lines in panels for line in lines):
        note += " Marks: operating points from validation; circle for high sensitivity, triangle for high specificity."
    return Picture("ROC", note, [Drawing(wide, narrow)])


def precision_recall(table: Table) -> Picture | None:
    """Precision against recall for the referable grades and for each class."""
    panels = thresholds.panels_of(table, thresholds.precision_recall_of, "AP")
    if not panels:
        return None
    wide, narrow = (charts.unit_curves(panels, "recall", "precision", columns) for columns in (3, 1))
    return Picture("Precision and recall", f"{_which(table)} AP: average precision.", [Drawing(wide, narrow)])


def _which(table: Table) -> str:
    shown, groups = len(thresholds.drawn_groups(table)), len(table.scored_groups)
    text = "One class against the rest; lines are means over the runs of a group, bands span them."
    if shown < groups:
        text += f" The {shown} best of {groups} groups in {table.title_of_metric}."
    if len(table.scored[0].class_names) > thresholds.PANELS:
        text += " The classes with the lowest recall."
    return text


def reliability(table: Table) -> Picture | None:
    """How often predictions are right, by their confidence, before and after temperature scaling."""
    panels = []
    for group in [group for group in table.ranked if group.scored][:RELIABLE]:
        cases = [("", group.predictions)]
        if scaled := thresholds.scaled_predictions(group):
            cases = [(", as trained", group.predictions), (", scaled", [predictions for _, predictions in scaled])]
        for suffix, predictions in cases:
            error = sum(map(calibration.calibration_error, predictions)) / len(predictions)
            bins = calibration.reliability(thresholds.concatenate(predictions))
            panels.append((group.label + suffix, bins, error))
    if not panels:
        return None
    wide, narrow = (charts.reliability(panels, columns) for columns in (3, 1))
    note = "Bars below the dotted line: surer than right. Of the best groups, all runs of a group together."
    return Picture("Reliability", note, [Drawing(wide, narrow)])


def cost(table: Table) -> Picture | None:
    """Quality against each resource that the jobs noted and that differs between the groups."""
    found = costs.costs_of(table)
    titles = (
        [title for title in found[0].resources if len({each.resources[title] for each in found}) > 1] if found else []
    )
    if not titles:
        return None
    found = [replace(each, resources={title: each.resources[title] for title in titles}) for each in found]
    wide, narrow = (charts.cost(found, SCORES[table.metric].title, columns) for columns in (3, 1))
    note = "Lines: 95 % intervals. Above and to the left is better; of images a second, above and to the right."
    return Picture("Quality and cost", note, [Drawing(wide, narrow)])
