"""`resnet-lab report --check`: every stored number that follows from the predictions, derived from them again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resnet_lab import statistics
from resnet_lab.errors import UserError
from resnet_lab.report.comparison import places_of
from resnet_lab.report.resampling import Answers
from resnet_lab.report.runs import Run, read_predictions

TOLERANCE = 1e-5  # stored metrics are of float32 probabilities, the predictions have eight digits
LOSS_TOLERANCE = 1e-4  # relative; a logarithm makes more of the last digit


def differences_of(runs: Sequence[Run]) -> list[str]:
    """One line for every stored number that does not follow from the predictions, or cannot be derived from them."""
    names = places_of(runs)
    return [f"{names[run.folder.path]}: {line}" for run in runs if run.state == "done" for line in _differences(run)]


def _differences(run: Run) -> Iterator[str]:
    metrics: dict[str, float | None] = run.status.get("metrics") or {}
    for split in dict.fromkeys(name.split("/")[0] for name in metrics):
        try:
            found = read_predictions(run.folder.kept_predictions(split))
        except UserError as error:
            yield f"the metrics of {split} cannot be checked: {error}"
            continue
        derived = metrics_of(found.answers, run.config, run.class_counts("train"))
        for name, stored in metrics.items():
            if name.startswith(f"{split}/"):
                yield from _difference(name, stored, derived.get(name.partition("/")[2]))
        yield from _files(run, split, found.answers)
        noted = run.fingerprint(split)
        if noted and noted != found.fingerprint:
            yield f"predictions of {split} are of other images or targets than status.json notes"


def _difference(name: str, stored: float | None, derived: float | None) -> Iterator[str]:
    if derived is None:
        yield f"{name} is stored, but cannot be derived from predictions"
    elif stored is None or math.isnan(stored):
        if not math.isnan(derived):
            yield f"{name} is stored as undefined, the predictions give {derived:.6f}"
    elif not math.isclose(stored, derived, rel_tol=LOSS_TOLERANCE * name.endswith("/loss"), abs_tol=TOLERANCE):
        yield f"{name} is stored as {stored:.6f}, the predictions give {derived:.6f}"


def _files(run: Run, split: str, answers: Answers) -> Iterator[str]:
    """The predicted class of each row, and the two tables beside the predictions, where they are kept."""
    changed = int(np.sum(answers.probabilities.argmax(axis=1) != answers.predictions))
    if changed:
        yield f"predictions of {split}: in {changed} rows the prediction is not the most probable class"
    counts = statistics.confusion_matrix(answers.targets, answers.predictions, answers.probabilities.shape[1])
    expected = {
        run.folder.confusion_matrix_file(split): counts,
        run.folder.class_report_file(split): np.vstack(
            [np.nan_to_num(statistics.class_scores(counts)), counts.sum(1)]
        ).T,
    }
    for file, values in expected.items():
        if file.is_file():
            try:
                stored = pd.read_csv(file, index_col=0).to_numpy(float)
            except ValueError as error:
                yield f"{file.name} is damaged ({error})"
                continue
            if stored.shape != values.shape or not np.allclose(stored, values, atol=TOLERANCE):
                yield f"{file.name} does not follow from the predictions"


def metrics_of(answers: Answers, config: dict[str, Any], train_counts: Sequence[int]) -> dict[str, float]:
    """What a job stores of a split, by the same names and with its averages (metrics.py), with numpy alone.

    Args:
        answers: on the split.
        config: of the run, by dotted keys; says what the loss is.
        train_counts: training images by class.
    """
    counts = statistics.confusion_matrix(answers.targets, answers.predictions, answers.probabilities.shape[1])
    derived = statistics.summary_of(*answers)
    if math.isnan(derived["auroc"]):
        derived["auroc"] = 0.5  # as metrics.MacroAUROC where there is one class only
    with np.errstate(invalid="ignore"):
        derived |= {f"recall_{k}": float(share) for k, share in enumerate(counts.diagonal() / counts.sum(axis=1))}
    loss = _loss(answers, config, train_counts)
    return derived | ({} if loss is None else {"loss": loss})


def _loss(answers: Answers, config: dict[str, Any], train_counts: Sequence[int]) -> float | None:
    """Mean cross-entropy with smoothing and weights as in `optim.cross_entropy`; None where it is something else."""
    smoothing, weights = config.get("loss.label_smoothing", 0.0), config.get("loss.class_weights", "none")
    if config.get("loss._target_", "resnet_lab.optim.cross_entropy") != "resnet_lab.optim.cross_entropy":
        return None
    classes, rows = answers.probabilities.shape[1], np.arange(len(answers.targets))
    if weights == "none":
        weights = np.ones(classes)
    elif weights == "balanced":
        weights = np.sum(train_counts) / (classes * np.array(train_counts, float))
    surprise = -np.log(np.maximum(answers.probabilities, np.finfo(np.float32).tiny)) * np.asarray(weights)
    return float(np.mean((1 - smoothing) * surprise[rows, answers.targets] + smoothing * surprise.mean(axis=1)))
