"""The files of a model's predictions on a split (complete or absent), and the table of its scores."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_lab import plots
from resnet_lab.errors import UserError, count, on_one_line
from resnet_lab.files import new_folder, write_atomically
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import SCORES, majority_baseline

STORED = "%.8g"  # format of a probability in a file
FEW = 5  # classes without an image that a line names
LABEL, CELL = 26, 9  # characters of the columns of the table of scores: six of them fit into 80


def refuse_undefined(rows: pd.DataFrame, probabilities: np.ndarray, source: str = "the model") -> None:
    """Stop at undefined predictions: the argmax of NaN is the first class.

    Args:
        rows: N rows with `image`, in the order of `probabilities`.
        probabilities: probabilities (N, K).
        source: the checkpoint, for the message.

    Raises:
        UserError: a probability is NaN or infinite; the message names the images.
    """
    images = rows["image"].to_numpy()[~np.isfinite(probabilities).all(axis=1)]
    if len(images):
        names = ", ".join(images[:3]) + (", …" if len(images) > 3 else "")
        raise UserError(
            f"the probabilities of {len(images)} of {len(rows)} images are NaN or infinite ({names}): {source} has no "
            "prediction for them; try trainer.precision=32-true, or train again with a lower optim.lr"
        )


def for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with `'` before texts that a spreadsheet computes (they start with = + - @, tab or return)."""

    def marked(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell

    return table.map(marked).rename(columns=marked)


def as_stored(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) as `write_predictions` rounds them."""
    rounded: np.ndarray = np.char.mod(STORED, probabilities).astype(float)
    return rounded


def write_predictions(
    file: Path,
    rows: pd.DataFrame,
    classes: np.ndarray,
    probabilities: np.ndarray,
    exact: bool = True,
    class_names: Sequence[str] = (),
) -> None:
    """Write `image,patient,target,prediction,p_0…p_{K-1}`; `patient` and `target` only if `rows` has them.

    An image without a patient has its name in both columns, even if its path identified it among several data splits.

    Args:
        file: CSV to write.
        rows: N rows in the order of the predictions.
        classes: predicted classes (N,).
        probabilities: probabilities (N, K).
        exact: whether names stay unchanged; otherwise see `for_spreadsheets`.
        class_names: K names; the column `class` has that of the prediction.

    Raises:
        UserError: a probability is NaN or infinite; nothing is written.
    """
    refuse_undefined(rows, probabilities)
    known = [column for column in ("image", "patient", "target") if column in rows]
    names = rows[known].reset_index(drop=True)
    if {"patient", "path"} <= {*rows}:
        cells = zip(rows["image"], rows["patient"], rows["path"], strict=True)
        own = {patient: image for image, patient, path in cells if path.endswith(f"/{patient}")}
        names["patient"] = names["patient"].map(lambda patient: own.get(patient, patient))
    if class_names:
        names["class"] = np.array(class_names, object)[classes]
    table = (names if exact else for_spreadsheets(names)).assign(prediction=classes)
    columns = pd.DataFrame(probabilities, columns=[f"p_{k}" for k in range(probabilities.shape[1])])
    text = pd.concat([table, columns], axis=1).to_csv(index=False, float_format=STORED)
    with new_folder(file.parent):
        write_atomically(file, text, durable=True)


def write_split(
    run: RunFolder,
    split: str,
    rows: pd.DataFrame,
    classes: np.ndarray,
    probabilities: np.ndarray,
    counts: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Write predictions, confusion matrix (counts and picture) and class report of one split into `run`.

    Args:
        run: the run folder.
        split: the split, a part of the file names.
        rows: N rows of the table, in the order of the predictions.
        classes: predicted classes (N,).
        probabilities: probabilities (N, K).
        counts: confusion matrix (K, K), rows true.
        class_names: K names.
        title: of the picture, before the split.
    """
    write_predictions(run.predictions_file(split), rows, classes, probabilities)
    names = list(class_names)
    matrix = pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=names).to_csv()
    write_atomically(run.confusion_matrix_file(split), matrix, durable=True)
    write_atomically(run.class_report_file(split), class_report(counts, names).to_csv(index=False), durable=True)
    picture = io.BytesIO()
    plots.matrices.confusion_matrix(counts, names, title=f"{title}: {split}").savefig(picture, dpi=120)
    write_atomically(run.confusion_matrix_file(split, "png"), picture.getbuffer(), durable=True)


def class_report(counts: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Return `class,precision,recall,f1,support` from counts (K, K), rows true; a division by 0 gives 0."""
    hits, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    return pd.DataFrame(
        {
            "class": list(class_names),
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(support + predicted, 1),
            "support": support,
        }
    )


def score_table(
    metrics: dict[str, float], counts: Mapping[str, Sequence[int]], train_counts: Sequence[int], names: Sequence[str]
) -> str:
    """Return a text table: each split's scores, and below them the majority baseline of the training images.

    Args:
        metrics: `<split>/<metric>` → score.
        counts: images of each class, by split to show.
        train_counts: training images of each class, whatever data the model is scored on.
        names: class names.
    """
    terminal = [name for name, score in SCORES.items() if "terminal" in score.shown]
    columns = [
        name for name in terminal if any(not math.isnan(metrics.get(f"{split}/{name}", math.nan)) for split in counts)
    ]
    majority = int(np.argmax(train_counts))
    always = f"  always “{on_one_line(names[majority])}”"
    always = always if len(always) <= LABEL else f"{always[: LABEL - 2]}…”"
    words = [["", *name.split("_", 1)][-2:] for name in columns]  # `balanced_accuracy` takes two lines
    titles = ["".join(f"{each:>{CELL}}" for each in line) for line in zip(*words, strict=True)]
    lines = [" " * LABEL + line for line in titles if line.strip()]
    for split, images in counts.items():
        targets = np.repeat(np.arange(len(images)), images)
        baseline = majority_baseline(targets, majority, len(images))
        title = f"{split} ({count(len(targets), 'image')})"
        lines.append(f"{title:{LABEL}}" + _cells(metrics, split, columns))
        lines.append(f"{always:{LABEL}}" + _cells({f"{split}/{k}": v for k, v in baseline.items()}, split, columns))
    return "\n".join(lines)


def without_images(split: str, names: Sequence[str], images: Sequence[int]) -> str:
    """Return `test has no image of a, b` for the classes without an image; empty if each has one.

    Args:
        split: name of the split.
        names: class names.
        images: number of images of each class; empty if the split does not exist.
    """
    absent = [name for name, number in zip(names, images, strict=False) if not number]
    more = f" and {count(len(absent) - FEW, 'more class', 'more classes')}" if len(absent) > FEW else ""
    return f"{split} has no image of {', '.join(absent[:FEW])}{more}" if absent else ""


def _cells(metrics: dict[str, float], split: str, names: Sequence[str]) -> str:
    """Return the cells of a line, empty for a score that is undefined there."""
    values = [metrics.get(f"{split}/{name}", math.nan) for name in names]
    return "".join(" " * CELL if math.isnan(value) else f"{round(value, 4) + 0.0:{CELL}.4f}" for value in values)
