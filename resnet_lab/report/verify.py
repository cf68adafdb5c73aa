"""`resnet-lab report --check`: compare stored numbers with those derived from the stored predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resnet_lab import statistics
from resnet_lab.errors import UserError, count
from resnet_lab.report.groups import places_of
from resnet_lab.report.runs import OUTDATED, Run, StoredPredictions, may_not_be_read, read_metrics, read_predictions
from resnet_lab.run_folder import SOURCES
from resnet_lab.scores import SCORES, Predictions, mode_of

CROSS_ENTROPY = "resnet_lab.objectives.cross_entropy"
LIKELIHOODS = (CROSS_ENTROPY, "resnet_lab.objectives.corn")  # losses that are the negative log-likelihood of the class
WEIGHTS = ("none", "balanced")  # words for class weights
TOLERANCE = 1e-5  # stored metrics come from float32 probabilities; stored predictions have eight digits
BEST_TOLERANCE = 2e-3  # the best epoch was scored during training, perhaps in other batches or on another machine
SPLITS = ("train", "val", "test")
EDGE = 1e-6  # rounding error of a cumulative probability in the file
STATES = ("created", "running", "interrupted", "failed", "done")  # in a readable status.json
LOSS_TOLERANCE = 1e-4  # relative; the logarithm magnifies rounding errors


class Split(NamedTuple):
    """The predictions of a run on a split, and the metrics derived from them.

    `in_training` are those of the rule that decided while the job trained, as in metrics.csv.
    """

    predictions: StoredPredictions
    metrics: dict[str, float]
    in_training: dict[str, float]


def differences_of(runs: Sequence[Run]) -> list[str]:
    """Return one line for every stored number that does not follow from the predictions or cannot be derived."""
    names = places_of(runs)
    return [f"{names[run.folder.path]}: {line}" for run in runs for line in _differences(run)]


def _differences(run: Run) -> Iterator[str]:
    metrics = run.status.get("metrics", {})
    if run.state not in STATES or (run.state == "done" and not run.predictions):
        yield f"cannot be checked: {run.problem}"
        return
    if not isinstance(metrics, dict):
        yield f"status.json: metrics is {type(metrics).__name__}, not a mapping of names to numbers"
        return
    stored = {split: _of_split(metrics, split) for split in ("train", "val", "test")}
    of_no_split = [name for name in metrics if name.partition("/")[0] not in SPLITS]
    if of_no_split:
        yield f"metrics without a split in status.json cannot be derived: {', '.join(of_no_split)}"
    splits = [split for split, values in stored.items() if values or any(file.is_file() for file in _files(run, split))]
    found = {}
    for split in splits:
        try:
            stored_split = read_predictions(run.folder.stored_predictions(split))
        except UserError as error:
            yield f"the {split} metrics cannot be checked: {error}"
            continue
        derived = metrics_of(stored_split.labeled, run.config, run.class_counts("train"))
        found[split] = Split(stored_split, derived, _in_training(run, stored_split.labeled, derived))
        yield from _metrics(run, split, stored[split], found[split])
        yield from _tables(run, split, stored_split.labeled)
    yield from _status(run, found)
    if run.is_outdated:
        yield f"it was {OUTDATED}"
    if run.state == "done" and validates_all(run):
        yield from _curves(run, found)


def _in_training(run: Run, predictions: Predictions, derived: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the rule that decided while the job trained; `derived` if it is the final one."""
    rule = run.status.get("decision_in_training")
    if rule not in statistics.DECISIONS or rule == "thresholds":
        return derived
    classes = statistics.decisions(predictions.probabilities, rule)
    return metrics_of(predictions._replace(classes=classes), run.config, run.class_counts("train"))


def validates_all(run: Run) -> bool:
    """Return whether each epoch was validated on all images."""
    limit = run.config.get("trainer.limit_val_batches")
    return limit is None or (isinstance(limit, float) and limit == 1)  # 1: one batch; 1.0: all batches


def _curves(run: Run, found: dict[str, Split]) -> Iterator[str]:
    """Compare the predictions with their row in metrics.csv: the best epoch, or the last one."""
    rows = read_metrics(run.folder.stored_metrics)
    monitor, best = run.status.get("monitor"), run.status.get("best_value")
    if not run.trained or run.config.get(SOURCES):  # the file has only a header, or there is none
        return
    if may_not_be_read(run.folder.stored_metrics):
        yield "metrics.csv cannot be read (Permission denied)"
    elif rows.empty:
        yield "metrics.csv is missing, or has no complete row"
    elif monitor is None or best is None:  # no monitor, or undefined in every epoch
        yield from _row_differences(run, found, rows.tail(1))
    elif monitor in rows and isinstance(best, int | float):
        tied = rows[np.isclose(rows[monitor], best, atol=TOLERANCE)]
        lists = [list(_row_differences(run, found, tied.iloc[[place]])) for place in range(len(tied))]
        yield from min(lists, key=len, default=[])
        highest = mode_of(monitor) == "max"
        of_all = float(rows[monitor].max() if highest else rows[monitor].min())
        if (of_all - best) * (1 if highest else -1) > TOLERANCE:
            yield f"best_value is {best:.6f}, but an epoch in metrics.csv has a better {monitor}: {of_all:.6f}"


def _row_differences(run: Run, found: dict[str, Split], row: pd.DataFrame) -> Iterator[str]:
    """Compare scores in one row of metrics.csv, without losses: rounded probabilities can understate them."""
    for split, (_, _, derived) in found.items():
        for name in sorted({f"{split}/{each}" for each in derived if each != "loss"} & set(row.columns)):
            stored, value = float(row[name].iloc[0]), derived[name.partition("/")[2]]
            if abs(stored - value) > BEST_TOLERANCE:
                where = f"{name} in the row of metrics.csv with epoch={row.index[0]:g}"
                yield f"{where} is {stored:.6f}, the predictions give {value:.6f}"


def _of_split(metrics: dict[str, Any], split: str) -> dict[str, Any]:
    return {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(f"{split}/")}


def _files(run: Run, split: str) -> tuple[Path, Path, Path]:
    folder = run.folder
    return folder.stored_predictions(split), folder.confusion_matrix_file(split), folder.class_report_file(split)


def _metrics(run: Run, split: str, stored: dict[str, Any], judged: Split) -> Iterator[str]:
    predictions, derived = judged.predictions.labeled, judged.metrics
    # an older version computed fewer scores: a missing one may be missing everywhere
    columns = [*(run.status.get("metrics") or {}), *read_metrics(run.folder.stored_metrics).columns]
    computed = {name.partition("/")[2] for name in map(str, columns)}
    for name in dict.fromkeys([*stored, *derived]):
        if name not in stored:
            of_class = re.fullmatch(r"recall_\d+", name)
            absent = "recall_0" not in stored if of_class else name not in computed  # not stored for many classes
            needs = SCORES[name].needs if name in SCORES else ""
            optional = absent or (needs and not run.status.get("ordered"))
            if run.state == "done" and not optional and not math.isnan(derived[name]):
                yield f"{split}/{name} is not stored, the predictions give {derived[name]:.6f}"
        elif name == "loss" and (name not in derived or _underflow(predictions, stored[name], derived[name])):
            continue  # an unknown loss, or larger than the probabilities can show
        else:
            yield from _difference(f"{split}/{name}", stored[name], derived.get(name))


def _underflow(predictions: Predictions, stored: Any, derived: float) -> bool:
    """Return whether the probability of a true class underflows, so that only a lower bound of the loss is known."""
    true = predictions.probabilities[np.arange(len(predictions.targets)), predictions.targets]
    larger = stored is None or (isinstance(stored, int | float) and stored >= derived)  # null: infinite
    return bool(larger and true.min() < np.finfo(np.float32).tiny)


def _difference(name: str, stored: Any, derived: float | None) -> Iterator[str]:
    if derived is None:
        yield f"{name} is stored, but cannot be derived from predictions"
    elif stored is not None and not isinstance(stored, int | float):
        yield f"{name} is stored as {stored!r}, not a number"
    elif stored is None or math.isnan(stored):
        if not math.isnan(derived):
            yield f"{name} is stored as undefined, the predictions give {derived:.6f}"
    elif not math.isclose(stored, derived, rel_tol=LOSS_TOLERANCE * name.endswith("/loss"), abs_tol=TOLERANCE):
        yield f"{name} is stored as {stored:.6f}, the predictions give {derived:.6f}"


def _tables(run: Run, split: str, predictions: Predictions) -> Iterator[str]:
    """Compare the predicted class of each row, and the confusion matrix and class report if they are stored."""
    rule = run.status.get("decision") or "argmax"
    thresholds = run.status.get("thresholds")
    if rule not in (*statistics.DECISIONS, statistics.OWN_RULE):
        yield f"predictions of {split} cannot be checked: the decision rule {rule!r} is unknown"
    elif rule == "thresholds" and len(thresholds or ()) != predictions.probabilities.shape[1] - 1:
        yield f"predictions of {split} cannot be checked: status.json has no thresholds between the classes"
    elif rule != statistics.OWN_RULE and (changed := int(np.sum(undecided(predictions, rule, thresholds)))):
        what = statistics.DECISIONS[rule]
        yield f"predictions of {split}: in {count(changed, 'row')} the prediction is not {what}"
    counts = statistics.confusion_matrix(predictions.targets, predictions.classes, predictions.probabilities.shape[1])
    scores = np.vstack([np.nan_to_num(statistics.class_scores(counts)), counts.sum(1)]).T
    _, matrix, report = _files(run, split)
    names = list(run.class_names) or [str(name) for name in run.status.get("class_names", ())]
    for file, values, columns in (
        (matrix, counts, names),
        (report, scores, ["precision", "recall", "f1", "support"]),
    ):
        if not file.is_file():
            continue
        try:
            frame = pd.read_csv(file, index_col=0, dtype={0: str}, keep_default_na=False)
            numbers = frame.to_numpy(float)
        except (ValueError, OSError) as error:
            yield f"{file.name} cannot be read ({error})"
            continue
        if numbers.shape != values.shape or not np.allclose(numbers, values, atol=TOLERANCE):
            yield f"{file.name} does not follow from the predictions"
        elif [str(name) for name in frame.index] != names or [str(name) for name in frame.columns] != columns:
            yield f"{file.name} has other classes or columns than status.json, or another order"


def undecided(predictions: Predictions, rule: str, thresholds: Sequence[float] | None) -> np.ndarray:
    """Return which predictions contradict the probabilities, (N,); predictions at the edge of two classes do not."""
    probabilities = predictions.probabilities
    wrong: np.ndarray = statistics.decisions(probabilities, rule, thresholds) != predictions.classes
    if rule == "median":
        wrong &= np.abs(probabilities.cumsum(axis=1) - 0.5).min(axis=1) > EDGE
    if rule in ("expected", "thresholds"):
        limits = thresholds if rule == "thresholds" else statistics.midpoints(probabilities.shape[1])
        grades = statistics.expected_grades(probabilities)
        wrong &= np.abs(grades[:, None] - np.array(limits)).min(axis=1) > EDGE
    return wrong


def _status(run: Run, found: dict[str, Split]) -> Iterator[str]:
    """Compare the other derived entries of status.json with the predictions and metrics.csv."""
    for split, (of_split, _, _) in found.items():
        predictions = of_split.labeled
        counts = np.bincount(predictions.targets, minlength=predictions.probabilities.shape[1]).tolist()
        if run.class_counts(split) and run.class_counts(split) != counts:
            yield f"class_counts of {split} are stored as {run.class_counts(split)}, the predictions give {counts}"
        if run.fingerprint(split) and run.fingerprint(split) != of_split.fingerprint:
            yield f"predictions of {split} have other images or targets than status.json"
    judged = found.get("val", found.get("test"))
    if judged is not None and isinstance(noted := run.status.get("collapsed"), bool):
        predictions = judged.predictions.labeled
        share = np.bincount(predictions.classes).max() / len(predictions.classes)
        counts = statistics.confusion_matrix(
            predictions.targets, predictions.classes, predictions.probabilities.shape[1]
        )
        older = noted and share >= statistics.COLLAPSED  # the rule of older versions
        if noted != statistics.is_collapsed(counts) and not older:
            yield f"collapsed is stored as {noted}, one class is predicted for {100 * share:.1f} % of the images"
    best, monitor = run.status.get("best_value"), str(run.status.get("monitor"))
    if isinstance(best, int | float):
        rows = read_metrics(run.folder.stored_metrics)
        if run.trained and monitor in rows and not np.isclose(rows[monitor], best, atol=TOLERANCE).any():
            yield f"best_value is stored as {best:.6f}, but no epoch in metrics.csv has this {monitor}"
        split, _, name = monitor.partition("/")
        if split in found and validates_all(run):
            derived = found[split].in_training.get(name, best)
            if not math.isclose(best, derived, abs_tol=BEST_TOLERANCE):
                yield f"best_value is stored as {best:.6f}, the predictions of {split} give {derived:.6f}"


def metrics_of(predictions: Predictions, config: dict[str, Any], train_counts: Sequence[int]) -> dict[str, float]:
    """Return the metrics that a job stores for a split, with the same names and averages (metrics.py), by numpy.

    Args:
        predictions: predictions on the split.
        config: configuration of the run by dotted keys; it defines the loss.
        train_counts: training images by class.
    """
    counts = statistics.confusion_matrix(predictions.targets, predictions.classes, predictions.probabilities.shape[1])
    derived = {name: score.of(predictions) for name, score in SCORES.items() if score.stored}
    with np.errstate(invalid="ignore"):
        derived |= {f"recall_{k}": float(share) for k, share in enumerate(counts.diagonal() / counts.sum(axis=1))}
    several = config.get("trainer.tta", "none") != "none"  # the loss is that of the images as they are
    loss = None if several else _loss(predictions, config, train_counts)
    return derived | ({} if loss is None else {"loss": loss})


def _loss(predictions: Predictions, config: dict[str, Any], train_counts: Sequence[int]) -> float | None:
    """Return the mean negative log-likelihood with smoothing and weights as in `objectives`; None for other losses."""
    smoothing, weights = config.get("loss.label_smoothing", 0.0), config.get("loss.class_weights", "none")
    several = not isinstance(smoothing, int | float) or (isinstance(weights, str) and weights not in WEIGHTS)
    if several or config.get("loss._target_", CROSS_ENTROPY) not in LIKELIHOODS:  # `several`: combined runs differ
        return None
    classes, rows = predictions.probabilities.shape[1], np.arange(len(predictions.targets))
    if weights == "none":
        weights = np.ones(classes)
    elif weights == "balanced":
        if not sum(train_counts):
            return None
        weights = np.sum(train_counts) / (classes * np.array(train_counts, float))
    losses = -np.log(np.maximum(predictions.probabilities, np.finfo(np.float32).tiny)) * np.asarray(weights)
    return float(np.mean((1 - smoothing) * losses[rows, predictions.targets] + smoothing * losses.mean(axis=1)))
