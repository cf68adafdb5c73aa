"""The pictures of probabilities and of cost, drawn from the runs of one table (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from resnet_lab.report import calibration, charts, costs, thresholds
from resnet_lab.report.drawing import Drawing, Picture, best_of, colors_of, spoken
from resnet_lab.report.groups import Table
from resnet_lab.scores import SCORES

RELIABLE = 3  # groups in the picture of reliability, the best ones


def roc(table: Table) -> Picture | None:
    """Draw sensitivity against the false positive rate for the referable grades and each class."""
    panels = thresholds.panels_of(table, thresholds.roc_of, "AUC")
    if not panels:
        return None
    note = f"{_which(table)} Dotted: guessing."
    if any(line.points for _, lines in panels for line in lines):
        note += " Marks: operating points from validation (circle: high sensitivity, triangle: high specificity), "
        note += "means over the runs."
    return _curves("ROC", note, panels, ("false positive rate", "sensitivity"), table, diagonal=True)


def precision_recall(table: Table) -> Picture | None:
    """Draw precision against recall for the referable grades and each class."""
    panels = thresholds.panels_of(table, thresholds.precision_recall_of, "AP")
    if not panels:
        return None
    note = f"{_which(table)} AP: average precision."
    return _curves("Precision and recall", note, panels, ("recall", "precision"), table)


def _curves(
    title: str,
    note: str,
    panels: Sequence[tuple[str, Sequence[charts.Line]]],
    axes: tuple[str, str],
    table: Table,
    diagonal: bool = False,
) -> Picture:
    """Return a picture whose panels are figures of their own on the page, and one figure in a file."""
    colors = colors_of(table)
    shown = [Drawing(charts.unit_curves([panel], *axes, 1, diagonal, colors, legend=False)) for panel in panels]
    values = tuple(f"{name}: {spoken([f'{line.label} {line.score}' for line in lines])}" for name, lines in panels)
    names = tuple(dict.fromkeys(line.label for _, lines in panels for line in lines))
    return Picture(title, note, shown, lambda: [charts.unit_curves(panels, *axes, 3, diagonal, colors)], values, names)


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
    shown = [Drawing(charts.reliability([panel], 1, legend=False)) for panel in panels]
    values = tuple(f"{name}: ECE {error:.3f}" for name, _, error in panels)
    note = "Bars below the dotted line: overconfident. Red: the gap between confidence and accuracy (darker: more "
    note += (
        "images). The panels show the best groups; bars pool the runs of a group, and ECE is the mean over the runs."
    )
    return Picture("Reliability", note, shown, lambda: [charts.reliability(panels, 3)], values)


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
