"""The pictures of a report by name, drawn from the runs of one table (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from resnet_lab import plots
from resnet_lab.errors import UserError, count
from resnet_lab.plots.frame import Color
from resnet_lab.report import score_figures
from resnet_lab.report.drawing import Drawing, Picture, best_of, colors_of
from resnet_lab.report.groups import Group, Table, order_of
from resnet_lab.report.runs import Run, read_layers, read_metrics
from resnet_lab.statistics import MANY_CLASSES, class_scores

BANDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # edges of the bands of `score_bands`
BESIDE = 4.0  # inches: size of a confusion matrix beside another one
PASS = 0.7  # study B's pass mark
Counts = tuple[tuple[str, tuple[int, ...]], ...]  # images of each class, by split
MOST_COUNTS = 6  # pictures of class counts at most
FAR = 10.0  # a loss this many times the median makes the axis logarithmic
FEW = 20  # study B's line in the counts of 102 classes


class Curve(NamedTuple):
    """The definition of a figure of values by epoch."""

    title: str
    metric: str  # of metrics.csv, without its split; `error` is 1 − accuracy
    splits: Sequence[str]  # `judged`: test if it is evaluated in each epoch, otherwise val
    by_depth: bool  # one panel per depth
    ylabel: str
    factor: float  # to the unit of the label


CURVES = {
    "accuracy": Curve("Accuracy by epoch", "accuracy", ("train", "val", "test"), True, "accuracy, %", 100),
    "loss": Curve("Loss by epoch", "loss", ("train", "val", "test"), True, "loss", 1),
    "train_loss": Curve("Training loss by epoch", "loss", ("train",), False, "training loss", 1),
    "error": Curve("Error by epoch", "error", ("judged",), False, "error, %", 100),
    "error_by_depth": Curve("Error by epoch and depth", "error", ("train", "judged"), True, "error, %", 100),
}


def picture(name: str, table: Table) -> Picture | None:
    """Return the picture of that name, or None if the runs have no data for it.

    Raises:
        UserError: no picture has this name.
    """
    check_name(name)
    return _curves(CURVES[name], table) if name in CURVES else PICTURES[name](table)


def check_name(name: str) -> None:
    """Refuse a name that no picture has."""
    if name not in CURVES and name not in PICTURES:
        raise UserError(f"figures: no figure is named {name}; choose among {', '.join([*CURVES, *PICTURES])}")


def series_of(table: Table, curve: Curve = CURVES["accuracy"]) -> Iterator[plots.curves.Series]:
    """Yield a metric by epoch, one panel per depth if more than the depth differs.

    A group without a result is drawn with all its runs, to show how far they came.
    """
    panels = curve.by_depth and any(axis != "model.depth" for group in table.groups for axis in group.values)
    for group in sorted(table.drawn, key=lambda group: order_of(group.values.get("model.depth", ""))):
        panel = group.shown.get("model.depth", "") if panels else ""
        frames = [read_metrics(run.folder.stored_metrics) for run in group.scored or group.runs]
        splits = [split for split in plots.frame.STYLES if split in curve.splits or split == _judged(frames, curve)]
        for split in splits:
            if (values := _aligned(frames, split, curve.metric)) is not None:
                scaled = curve.factor * values.to_numpy().T
                yield plots.curves.Series(panel, group.label, split, values.index.to_numpy(), scaled)


def _judged(frames: Sequence[pd.DataFrame], curve: Curve) -> str | None:
    """Return the split that is evaluated in each epoch, test before val, if the curve includes it."""
    if "judged" not in curve.splits:
        return None
    return next((split for split in ("test", "val") if any(f"{split}/accuracy" in frame for frame in frames)), None)


def _aligned(frames: Sequence[pd.DataFrame], split: str, metric: str) -> pd.DataFrame | None:
    """Return values, epochs by runs, or None if no run has the metric."""
    column = f"{split}/{'accuracy' if metric == 'error' else metric}"
    lines = [frame[column].dropna() for frame in frames if column in frame]
    if not any(map(len, lines)):
        return None
    values = pd.concat(lines, axis=1).sort_index()
    return 1 - values if metric == "error" else values


def baseline_of(table: Table, splits: set[str]) -> tuple[str, float] | None:
    """Return the evaluated split, test before val, and the accuracy there of the training majority, in %."""
    for split in ("test", "val"):
        for run in table.scored:
            total = sum(counts := run.class_counts(split))
            if split in splits and total:
                return split, 100 * counts[run.majority] / total
    return None


def _both(
    series: Sequence[plots.curves.Series],
    ylabel: str,
    baseline: tuple[str, float] | None = None,
    logarithmic: bool = False,
    colors: Mapping[str, Color] | None = None,
) -> Drawing:
    """Draw panels in two columns for wide windows, and in one for narrow windows."""
    several = len({line.panel for line in series}) > 1
    drawn = [
        plots.curves.by_epoch(series, ylabel, baseline, columns, logarithmic, colors)
        for columns in ((2, 1) if several else (1,))
    ]
    return Drawing(*drawn)


def _curves(curve: Curve, table: Table) -> Picture | None:
    series = list(series_of(table, curve))
    if not series:
        return None
    baseline = baseline_of(table, {line.split for line in series}) if curve.metric in ("accuracy", "error") else None
    if baseline and curve.metric == "error":
        baseline = (baseline[0], 100 - baseline[1])
    note = "Thick lines are means, bands span the runs. In panels with few lines, thin lines are single runs."
    note += best_of(table)
    if {line.split for line in series} == {"train"} and "train" not in curve.title.lower():
        note += " Only training is shown: the jobs evaluated no other split during training."
    far = curve.metric == "loss" and _are_far_apart(np.concatenate([line.values.ravel() for line in series]))
    note += " The axis is logarithmic, as some losses are far above the others." if far else ""
    ends = _ends_of(series, "label", "split")
    return Picture(curve.title, note, [_both(series, curve.ylabel, baseline, far, colors_of(table))], values=ends)


def _ends_of(series: Sequence[plots.curves.Series], *names: str) -> tuple[str, ...]:
    """Return the first and the last mean of each line, with their epochs counted from 1, after fields of the line."""
    ends = []
    for line in series:
        means = line.values.mean(axis=0)
        known = dict.fromkeys(np.flatnonzero(np.isfinite(means))[[0, -1]]) if np.isfinite(means).any() else ()
        at = (f"{means[place]:.3g} at epoch {line.epochs[place] + 1}" for place in known)
        ends.append(f"{', '.join(getattr(line, name) for name in names)}: {', '.join(at) or 'no values'}")
    return tuple(ends)


def _are_far_apart(values: np.ndarray) -> bool:
    """Return whether a linear axis would squeeze most values below a few large ones."""
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > FAR * np.median(values))


def confusion_matrices(table: Table) -> Picture | None:
    """Draw one matrix per group, summed over its runs; the file contains all of them."""
    groups = [group for group in table.drawn if group.scored]
    if not groups:
        return None
    names = table.scored[0].class_names
    matrices = [(_runs_of(group), np.sum([run.counts for run in group.scored], axis=0)) for group in groups]
    note = (
        "Rows: true class; columns: predicted class. The darker a cell, the larger its share of the true class. "
        "Counts are summed over the runs of a group. Gray rows: no image of that class."
    ) + best_of(table)
    on_page = matrices if len(names) > MANY_CLASSES else ()  # the page shows small ones as tables
    shown = [Drawing(plots.matrices.confusion_matrix(counts, names, title, BESIDE)) for title, counts in on_page]
    return Picture("Confusion matrices", note, shown, lambda: [plots.matrices.confusion_matrices(matrices, names)])


def _runs_of(group: Group) -> str:
    return group.label + (f" ({len(group.scored)}\N{NO-BREAK SPACE}runs)" if len(group.scored) > 1 else "")


def scores(table: Table) -> Picture | None:
    """Draw the accuracy of each run, by group, and of its best epoch on test if that was evaluated, as A and B do."""
    rows = []
    for group in table.drawn:
        if group.scored:
            best = [read_metrics(run.folder.stored_metrics).get(f"{run.split}/accuracy") for run in group.scored]
            values = [run.scores["accuracy"] for run in group.scored]
            followed = [100 * line.max() for line in best if line is not None and group.scored[0].split == "test"]
            rows.append(plots.groups.Scores(group.label, 100 * np.array(values), np.array(followed)))
    if not rows:
        return None
    baseline = baseline_of(table, {table.scored[0].split})
    note = "Dots are runs; bars are mean ± standard deviation."
    if any(len(row.best) for row in rows):
        note += " Diamonds: the best epoch on test, as the studies report it. Chosen on test, it is too optimistic."
    seen = tuple(f"{row.label}: {', '.join(f'{value:.1f}' for value in row.values)} %" for row in rows)
    return Picture("Accuracy", note, [Drawing(plots.groups.scores(rows, "accuracy, %", baseline))], values=seen)


def recall(table: Table) -> Picture | None:
    """Draw the recall of each class by epoch, one panel per group; it shows a collapse and the recovery from it."""
    series = []
    for group in table.drawn:
        frames = [read_metrics(run.folder.stored_metrics) for run in group.scored or group.runs]
        names = next((run.class_names for run in group.scored), ())
        split = _judged(frames, CURVES["error"])
        for k, name in enumerate(names):
            values = _aligned(frames, split or "train", f"recall_{k}")
            if values is not None:
                line = 100 * values.to_numpy().T
                series.append(plots.curves.Series(group.label, name, split or "train", values.index.to_numpy(), line))
    if not series:
        return None
    note = (
        "Recall: the share of a class that is found. A collapsed network has 100 % for one class and 0 for the others."
    )
    ends = _ends_of(series, "panel", "label")
    return Picture("Recall of each class by epoch", note, [_both(series, "recall, %")], values=ends)


def gap(table: Table) -> Picture | None:
    """Draw training accuracy minus accuracy on the evaluated split."""
    series, others = [], set()
    for group in table.drawn:
        frames = [read_metrics(run.folder.stored_metrics) for run in group.scored or group.runs]
        split = _judged(frames, CURVES["error"])
        train, other = (_aligned(frames, part, "accuracy") if part else None for part in ("train", split))
        if train is not None and other is not None and split:
            ahead = 100 * (train.to_numpy() - other.reindex(train.index).to_numpy()).T
            series.append(plots.curves.Series("", group.label, split, train.index.to_numpy(), ahead))
            others.add({"val": "validation"}.get(split, split))
    if not series:
        return None
    split = " or ".join(sorted(others))
    note = f"Training accuracy (with augmentation) minus {split} accuracy."
    shown, ends = [_both(series, "accuracy gap, points", colors=colors_of(table))], _ends_of(series, "label")
    return Picture(f"Gap between train and {split}", note, shown, values=ends)


def class_counts(table: Table) -> Picture | None:
    """Draw the images of each class and split, one picture per different counts (limits and folds change them)."""
    names = next((run.class_names for run in table.scored), ())
    many = len(names) > MANY_CLASSES
    found: dict[Counts, dict[str, Group]] = {}
    for group in table.groups:
        own: dict[Counts, Run] = {}
        for run in group.scored:
            own.setdefault(_counts_of(run), run)
        own.pop((), None)
        for counts, run in own.items():  # several if seeds have different images
            name = group.label + (f" seed={run.config.get('seed')}" if len(own) > 1 else "")
            found.setdefault(counts, {})[name] = group
    shown = []
    for counts, groups in list(found.items())[:MOST_COUNTS]:
        images = {split: np.array(numbers) for split, numbers in counts}
        title = _shared(groups) if len(found) > 1 else ""
        shown.append(Drawing(plots.classes.counts(images, names, FEW if many else None, title)))
    note = f"Dotted: {FEW} training images." if many else ""
    if len(found) > len(shown):
        note += f" This shows the first {len(shown)} of {len(found)} different splits."
    return Picture("Images of each class", note.strip(), shown) if shown else None


def _counts_of(run: Run) -> Counts:
    return tuple((split, tuple(run.class_counts(split))) for split in plots.frame.STYLES if run.class_counts(split))


def _shared(groups: Mapping[str, Group]) -> str:
    """Return the settings that several groups share, or their names if they share none."""
    first, *others = groups.values()
    common = set(first.shown.items()).intersection(*(group.shown.items() for group in others))
    label = " ".join(text for axis, text in first.shown.items() if (axis, text) in common)
    return label if label and others else "; ".join(groups)


def scores_by_class(table: Table) -> Picture | None:
    """Draw precision, recall and F1 of each class, one figure per group; classes below the pass mark are named."""
    groups = [group for group in table.drawn if group.scored]
    if not groups:
        return None
    names = table.scored[0].class_names
    shown = [Drawing(plots.classes.scores(mean_class_scores(group), names, PASS, _runs_of(group))) for group in groups]
    note = f"Means over the runs of a group; red: below {PASS}. A class that is never predicted has a precision of 0."
    return Picture("Precision, recall and F1 of each class", note, shown)


def mean_class_scores(group: Group) -> np.ndarray:
    """Return precision, recall and F1 of each class (3, K), means over the runs; NaN for a class without images.

    If a run never predicts a class, its precision counts as 0, as in scikit-learn's averages.
    """
    values = [
        np.where(run.counts.sum(axis=1) > 0, np.nan_to_num(class_scores(run.counts)), np.nan) for run in group.scored
    ]
    result: np.ndarray = np.mean(values, axis=0)
    return result


def score_bands(table: Table) -> Picture | None:
    """Draw the share of the classes in each band of precision, recall and F1."""
    groups = [group for group in table.drawn if group.scored]
    if not groups:
        return None
    scores = {group.label: mean_class_scores(group) for group in groups}
    tested = ~np.isnan(next(iter(scores.values()))).all(axis=0)  # the same images for all groups
    shares = {label: band_shares(values[:, tested]) for label, values in scores.items()}
    note = "Share of the classes in each band; a class that is never predicted counts as 0."
    note += (
        "" if tested.all() else f" {count(int((~tested).sum()), 'class has', 'classes have')} no image and no share."
    )
    return Picture("Classes by score", note, [Drawing(plots.classes.bands(shares, BANDS))])


def band_shares(values: np.ndarray) -> np.ndarray:
    """Return the share of the classes in each band, (3, K) → (3, B); an undefined score counts as 0."""
    edges = np.array(BANDS)
    edges[-1] += 1e-9  # the last band includes its upper edge
    result: np.ndarray = np.array([np.histogram(np.nan_to_num(row), edges)[0] for row in values]) / values.shape[1]
    return result


def layers(table: Table) -> Picture | None:
    """Draw gradients, activations and dead units by layer, after the first and the last epoch."""
    frames: dict[str, pd.DataFrame] = {}
    for group in table.drawn:
        measured = [frame for run in group.runs if len(frame := read_layers(run.folder.stored_layers))]
        frames |= {group.label: measured[0]} if measured else {}
    if not frames:
        return None
    shown = []
    for pick in ("min", "max"):
        profiles = {
            label: plots.layers.profile_of(frame, getattr(frame["epoch"], pick)()) for label, frame in frames.items()
        }
        shown.append(Drawing(*(plots.layers.by_depth(profiles, columns, colors_of(table)) for columns in (3, 1))))
    note = "The first run of each group: the first epoch above, the last epoch below. 0: first layer; 1: last layer."
    return Picture("Gradients and activations by layer", note, shown)


PICTURES: dict[str, Callable[[Table], Picture | None]] = {
    "scores": scores,
    "confusion_matrices": confusion_matrices,
    "recall": recall,
    "gap": gap,
    "class_counts": class_counts,
    "class_scores": scores_by_class,
    "score_bands": score_bands,
    "layers": layers,
    "roc": score_figures.roc,
    "precision_recall": score_figures.precision_recall,
    "reliability": score_figures.reliability,
    "cost": score_figures.cost,
}
