"""The pictures of probabilities and of cost, drawn from the runs of one table (no torch)."""

from __future__ import annotations

from dataclasses import replace

from resnet_lab.report import calibration, charts, costs, thresholds
from resnet_lab.report.drawing import Drawing, Picture, best_of, colors_of
from resnet_lab.report.groups import Table
from resnet_lab.scores import SCORES

RELIABLE = 3  # groups in the picture of reliability, the best ones


def roc(table: Table) -> Picture | None:
    """Draw sensitivity against the false positive rate for the referable grades and each class."""
    panels = thresholds.panels_of(table, thresholds.roc_of, "AUC")
    if not panels:
        return None
    wide, narrow = (
        charts.unit_curves(panels, "false positive rate", "sensitivity", columns, True, colors_of(table))
        for columns in (3, 1)
    )
    note = f"{_which(table)} Dotted: guessing."
    if any(line.points for _, lines in panels for line in lines):
        note += " Marks: operating points from validation (circle: high sensitivity, triangle: high specificity), "
        note += "means over the runs."
    return Picture("ROC", note, [Drawing(wide, narrow)])


def precision_recall(table: Table) -> Picture | None:
    """Draw precision against recall for the referable grades and each class."""
    panels = thresholds.panels_of(table, thresholds.precision_recall_of, "AP")
    if not panels:
        return None
    wide, narrow = (
        charts.unit_curves(panels, "recall", "precision", columns, colors=colors_of(table)) for columns in (3, 1)
    )
    return Picture("Precision and recall", f"{_which(table)} AP: average precision.", [Drawing(wide, narrow)])


def _which(table: Table) -> str:
    text = f"One class against the rest. Lines are means over the runs of a group; bands span the runs.{best_of(table)}"
    if len(table.scored[0].class_names) > thresholds.PANELS:
        text += " The panels show the classes with the lowest recall."
    return text


def reliability(table: Table) -> Picture | None:
    """Draw accuracy by confidence, before and after temperature scaling."""
    panels = []
    for group in [group for group in table.drawn if group.scored][:RELIABLE]:
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
    note = "Bars below the dotted line: overconfident. The panels show the best groups; bars pool the runs of a group, "
    note += "and ECE is the mean over the runs."
    return Picture("Reliability", note, [Drawing(wide, narrow)])


def cost(table: Table) -> Picture | None:
    """Draw quality against each recorded resource that differs between the groups."""
    shown = {group.label for group in table.drawn}
    found = [each for each in costs.costs_of(table) if each.label in shown]
    titles = (
        [title for title in found[0].resources if len({each.resources[title] for each in found}) > 1] if found else []
    )
    if not titles:
        return None
    found = [replace(each, resources={title: each.resources[title] for title in titles}) for each in found]
    wide, narrow = (charts.cost(found, SCORES[table.metric].title, columns, colors_of(table)) for columns in (3, 1))
    faster = (
        "; for images per second, above and to the right"
        if costs.RESOURCES["images_per_second"].title in titles
        else ""
    )
    note = "Lines: 95 % intervals. Groups with about equal values stand side by side. "
    note += f"Above and to the left is better{faster}."
    return Picture("Quality and cost", note + best_of(table), [Drawing(wide, narrow)])
