"""One run folder in, one `Run` out: what it was, what became of it, and its scores from the stored predictions."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_lab.data.progress import with_progress
from resnet_lab.errors import UserError
from resnet_lab.run_folder import REMEDY, UNTRAINED, RunFolder, find_runs, flat
from resnet_lab.scores import Predictions, majority_baseline, summary_of
from resnet_lab.statistics import COLLAPSED, confusion_matrix

SHAPES: dict[str, Any] = {  # what a job writes into status.json; [int] is a list of them, {"": str} texts by name
    "split_fingerprint": {"": str},
    "pixels": str,
    "decision": str,
    "recipe": {"": object},
    "pixel_digests": {"": str},
    "class_counts": {"": [int]},
    "class_names": [object],
    "leaks": int,
    "skipped_images": int,
    "skipped_labels": int,
}
SUM_TOLERANCE = 1e-3  # probabilities of an image are rounded


@dataclass
class StoredPredictions:
    """What a run predicted on the N images of a split, in the order of their names."""

    images: np.ndarray  # (N,) names
    patients: np.ndarray  # (N,) names; an image without one is its own patient
    labeled: Predictions

    @property
    def fingerprint(self) -> str:
        """Equal where two files are about the same images with the same targets; as `table.fingerprints`."""
        lines = sorted(f"{image}\t{target}" for image, target in zip(self.images, self.labeled.targets, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@dataclass
class Run:
    """A run folder as far as it can be read; `scores` is empty where it has no result: `problem` says why."""

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)  # by dotted keys
    status: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    split: str = ""
    predictions: StoredPredictions | None = None  # of `split`
    class_names: tuple[str, ...] = ()
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), int))  # (K, K), rows true
    scores: dict[str, float] = field(default_factory=dict)
    majority: int = 0  # the largest class of the training images
    baseline: dict[str, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The state of the job; `unreadable` where its files are damaged."""
        return str(self.status.get("state", "unreadable"))

    @property
    def trained(self) -> bool:
        """Whether the job trained its weights; False where it evaluated them as they were (trainer.max_epochs=0)."""
        return self.status.get("epoch") != UNTRAINED

    @property
    def collapsed(self) -> bool:
        """Whether the job says so of what it judged, or one class is predicted for nearly all images here."""
        predicted = self.counts.sum(axis=0)
        return bool(self.status.get("collapsed") or (self.scores and predicted.max() >= COLLAPSED * predicted.sum()))

    @property
    def test_set(self) -> tuple[str, str, tuple[str, ...], int]:
        """What two runs must share to stand in one table: split, its images and targets, classes, number of images."""
        scored = self.predictions.fingerprint if self.predictions else ""
        return self.split, scored, self.class_names, int(self.counts.sum())

    @property
    def validation(self) -> StoredPredictions | None:
        """The predictions on the validation split, where they are stored, whole, and not what is scored."""
        found = self._validation
        return found if isinstance(found, StoredPredictions) else None

    @property
    def validation_problem(self) -> str:
        """What is wrong with them; empty where nothing is, or there are none."""
        return self._validation if isinstance(self._validation, str) else ""

    @cached_property
    def _validation(self) -> StoredPredictions | str | None:
        file = self.folder.stored_predictions("val")
        if self.split != "test" or not file.is_file():
            return None
        try:
            found = read_predictions(file)
        except UserError as error:
            return str(error)
        noted = self.fingerprint("val")
        if found.labeled.probabilities.shape[1] != len(self.class_names) or (noted and noted != found.fingerprint):
            return f"predictions_val.csv is of other images or classes than status.json says; {_remedy(file.parent)}"
        if self.predictions and found.fingerprint == self.predictions.fingerprint:
            return "predictions_val.csv is of the test images"
        return found

    def fingerprint(self, split: str) -> str:
        """What the job noted as the fingerprint of a split's rows; empty where it did not get so far."""
        return str((self.status.get("split_fingerprint") or {}).get(split, ""))

    @property
    def figures(self) -> list[str]:
        """The names of the pictures that its configuration asks for."""
        wanted = self.config.get("figures") or []
        names = wanted.split(",") if isinstance(wanted, str) else wanted if isinstance(wanted, list) else [wanted]
        return list(map(str, names))

    def class_counts(self, split: str) -> list[int]:
        """Images of a split by class; empty where the job did not get so far."""
        return (self.status.get("class_counts") or {}).get(split) or []


def read_run(folder: RunFolder) -> Run:
    """Read a run folder and score its stored predictions; whatever is damaged becomes the run's `problem`."""
    run = Run(folder)
    try:
        run.config, run.status = flat(folder.read_config()), folder.read_status()
        _shapes(run)
        if run.state == "done":
            _score(run)
        else:
            epoch = run.status.get("epoch", UNTRAINED)
            reached = f"no result, last epoch: {'none' if epoch == UNTRAINED else epoch + 1}"
            run.problem = _first_line(run.status.get("error") or reached)
    except UserError as error:
        run.problem = _first_line(error).replace(f"{folder.path}/", "")
    except OSError as error:
        run.problem = f"{Path(str(error.filename)).name} cannot be read ({error.strerror}); see to its permissions"
    return run


def read_runs(folders: Sequence[str], closed: Sequence[str] = ()) -> list[Run]:
    """All runs at or below some folders.

    Args:
        folders: run folders, or folders that hold some.
        closed: those in them that may not be read.

    Raises:
        UserError: a folder does not exist, holds no run, or may not be read.
    """
    for folder in folders:
        if Path(folder).is_file():
            raise UserError(f"{folder} is a file; give the run folder, or a folder that holds several")
        if folder in closed:
            raise UserError(f"{folder}: no permission to read it")
    try:
        found = find_runs(folders)
        return [read_run(folder) for folder in with_progress(found, len(found), "read", unit="runs", end=False)]
    except PermissionError as error:
        raise UserError(f"{error.filename}: no permission to read it; give the other folders by name") from error
    except UserError as error:
        note = f"; no permission to read {', '.join(closed)}" if closed else ""
        raise UserError(f"{error}{note}") from error


def _shapes(run: Run) -> None:
    """Refuse files whose entries are of another kind than a job writes."""
    wrong = {key: run.status[key] for key, shape in SHAPES.items() if not _has_shape(run.status.get(key), shape)}
    if wrong:
        run.status = {key: value for key, value in run.status.items() if key not in wrong}
        key, value = next(iter(wrong.items()))
        raise UserError(f"status.json: {key} holds {str(value)[:40]!r}; {REMEDY}")
    seed = run.config.get("seed")
    if isinstance(seed, list | dict):
        run.config = run.config | {"seed": str(seed)}
        raise UserError(f"config.yaml: seed holds {seed}, not a number; mend it, or remove the folder")


def _has_shape(value: Any, shape: Any) -> bool:
    if value is None:
        return True
    if isinstance(shape, dict | list):
        inner = next(iter(shape.values() if isinstance(shape, dict) else shape))
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, type(shape)) and all(_has_shape(each, inner) for each in values)
    return isinstance(value, shape)


def _remedy(folder: Path) -> str:
    """How lost predictions of a run come back: a job that has its last epoch tests again without training."""
    tests_again = RunFolder(folder).last_checkpoint.is_file()
    return "remove the file and run `python -m resnet_lab.job RUN`, which tests again" if tests_again else REMEDY


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _score(run: Run) -> None:
    run.split = next((s for s in ("test", "val") if run.folder.stored_predictions(s).is_file()), "")
    if not run.split:
        raise UserError(f"no predictions_test.csv; {_remedy(run.folder.path)}")
    found = read_predictions(run.folder.stored_predictions(run.split))
    targets, classes, probabilities = found.labeled
    num_classes = probabilities.shape[1]
    run.class_names = tuple(map(str, run.status.get("class_names") or range(num_classes)))
    train_counts = run.class_counts("train") or np.bincount(targets)
    if len(run.class_names) != num_classes or len(train_counts) > num_classes:
        raise UserError(f"status.json has {len(run.class_names)} class_names, the predictions {num_classes} classes")
    noted = run.fingerprint(run.split)
    if noted and noted != found.fingerprint:
        images = sum(run.class_counts(run.split))
        raise UserError(
            f"predictions_{run.split}.csv: {len(targets)} rows that are not the {images} images of status.json, "
            f"or not with their targets; {_remedy(run.folder.path)}"
        )
    run.predictions = found
    run.majority = int(np.argmax(train_counts))
    run.counts = confusion_matrix(targets, classes, num_classes)
    run.scores = summary_of(found.labeled)
    run.baseline = majority_baseline(targets, run.majority, num_classes)


def read_predictions(file: Path) -> StoredPredictions:
    """A predictions file.

    Raises:
        UserError: a column is missing, or a row is incomplete or holds no class.
    """
    try:
        # an image may be called NA or 007
        frame = pd.read_csv(file, dtype={"image": str, "patient": str}, keep_default_na=False)
        num_classes = sum(str(name).startswith("p_") for name in frame)
        columns = ["target", "prediction", *(f"p_{k}" for k in range(num_classes))]
        frame = frame.sort_values("image", kind="stable")
        numbers = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror or _first_line(error)})") from error
    except (ValueError, KeyError, EOFError, zlib.error) as error:
        raise UserError(f"{file.name} is damaged ({_first_line(error)}); {_remedy(file.parent)}") from error
    classes, probabilities = numbers[:, :2], numbers[:, 2:]
    no_class = (classes % 1 != 0) | (classes < 0) | (classes >= num_classes)
    no_share = ~np.isfinite(probabilities) | (probabilities < 0)
    improper = no_share.any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > SUM_TOLERANCE)
    bad = frame.index[no_class.any(axis=1) | improper]
    if len(bad) or not len(frame):
        where = (
            f"line {bad.min() + 2} lacks a class, or its probabilities do not add up to 1"
            if len(bad)
            else "has no rows"
        )
        raise UserError(f"{file.name}: {where}; {_remedy(file.parent)}")
    images = frame["image"].to_numpy(str)
    patients = frame["patient"].to_numpy(str) if "patient" in frame else images
    predictions = Predictions(classes[:, 0].astype(int), classes[:, 1].astype(int), probabilities)
    return StoredPredictions(images, np.where(patients == "", images, patients), predictions)


def may_not_be_read(file: Path) -> bool:
    """Whether a file is there and we lack the permission, which is neither damage nor loss."""
    return file.is_file() and not os.access(file, os.R_OK)


def read_metrics(file: Path) -> pd.DataFrame:
    """The complete rows of metrics.csv by epoch; a killed run's half row is left out. Empty where there is none."""
    try:
        stored = file.read_bytes() if file.is_file() else b""
        text = (gzip.decompress(stored) if file.suffix == ".gz" else stored).decode("utf-8", errors="replace")
        frame = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1])).apply(pd.to_numeric, errors="coerce")
        result: pd.DataFrame = frame.dropna(subset="epoch").drop_duplicates("epoch", keep="last").set_index("epoch")
        return result
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return pd.DataFrame()


def read_layers(file: Path) -> pd.DataFrame:
    """The rows `epoch, quantity, layer, value` of layers.csv; empty where there is none, or it is damaged."""
    try:
        frame = pd.read_csv(file, dtype={"layer": str})
        return frame.astype({"epoch": int, "value": float})[["epoch", "quantity", "layer", "value"]]
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return pd.DataFrame(columns=["epoch", "quantity", "layer", "value"])
