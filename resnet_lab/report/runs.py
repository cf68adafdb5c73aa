"""Run folders as `Run` objects: configuration, status, and scores from the stored predictions."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_lab.data.progress import with_progress
from resnet_lab.errors import UserError
from resnet_lab.processes import in_two
from resnet_lab.run_folder import REMEDY, SOURCES, UNTRAINED, RunFolder, find_runs, flat, jobs_file, list_jobs
from resnet_lab.scores import SCORES, Predictions, majority_baseline, summary_of
from resnet_lab.statistics import confusion_matrix, is_collapsed

SHAPES: dict[str, Any] = {  # types in status.json; [int]: a list of integers, {"": str}: texts by name
    "split_fingerprint": {"": str},
    "pixels": str,
    "decision": str,
    "decision_in_training": str,
    "thresholds": [float],
    "folds": {"": int},
    "order_of_rows": str,
    "recipe": {"": object},
    "pixel_digests": {"": str},
    "class_counts": {"": [int]},
    "class_names": [object],
    "source_digests": [str],
    "collapsed_members": int,
    "leaks": int,
    "seen_by": {"": {"": int}},
    "skipped_images": int,
    "skipped_labels": int,
    "label_conflicts": int,
}
KEPT = 16  # different splits in memory
SUM_TOLERANCE = 1e-3  # stored probabilities are rounded
OUTDATED = "made from predictions that have changed since; combine again, or remove the folder and run the sweep again"


@dataclass(frozen=True)
class SplitImages:
    """The N images of a split, sorted by name; runs on the same images share one object (`_images_of`)."""

    order: np.ndarray  # (N,) their rows in the file
    images: np.ndarray  # (N,) names
    targets: np.ndarray  # (N,) true classes
    patients: np.ndarray  # (N,) names; an image without one is its own patient
    fingerprint: str

    @cached_property
    def number_of_patients(self) -> int:
        """The number of different patients."""
        return len(np.unique(self.patients))


@lru_cache(maxsize=KEPT)
def _images_of(images: tuple[str, ...], patients: tuple[str, ...], targets: tuple[int, ...]) -> SplitImages:
    """Return the images of a split, from the columns of its file; `patients` may be empty."""
    names = np.array(images)
    order = np.argsort(names, kind="stable")
    groups = np.array(patients or images)
    lines = sorted(f"{image}\t{target}" for image, target in zip(images, targets, strict=True))
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    groups = np.where(groups == "", names, groups)
    return SplitImages(order, names[order], np.array(targets)[order], groups[order], fingerprint)


@lru_cache(maxsize=KEPT)
def _baseline(targets: tuple[int, ...], majority: int, num_classes: int, scores: tuple[str, ...]) -> dict[str, float]:
    """Return `majority_baseline`, computed once for all runs on the same images; `scores` are the known ones."""
    return majority_baseline(np.array(targets), majority, num_classes)


@dataclass
class StoredPredictions:
    """The predictions of a run on the N images of a split, sorted by image name."""

    split: SplitImages
    labeled: Predictions

    @property
    def images(self) -> np.ndarray:
        """The name of each image (N,)."""
        return self.split.images

    @property
    def patients(self) -> np.ndarray:
        """The name of the patient of each image (N,)."""
        return self.split.patients

    @property
    def fingerprint(self) -> str:
        """A hash of images and targets; the same as in `data.splits.fingerprints`."""
        return self.split.fingerprint

    @property
    def order_of_rows(self) -> str:
        """A hash of the images in the order of the file."""
        return order_of(self.images[np.argsort(self.split.order)])


def order_of(images: Iterable[str]) -> str:
    """Return a hash of images in their order; a pooled run stores it, as the places of its rows tell the folds."""
    return hashlib.sha256("\n".join(images).encode()).hexdigest()[:16]


@dataclass(repr=False)
class Run:
    """The readable content of a run folder; without a result, `scores` is empty and `problem` gives the reason."""

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

    def __repr__(self) -> str:
        """Return folder, state, and the main scores or the problem: `Run(runs/one: done, test QWK 0.412, …)`."""
        path, here, classes = self.folder.path, Path.cwd(), len(self.class_names)
        shown = (
            f"{score.label} {score.text(self.scores[name])}{' %' * score.percent}"
            for name, score in SCORES.items()
            if "leaderboard" in score.shown
            and name in self.scores
            and score.means_something(bool(self.status.get("ordered")), classes)
        )
        facts = [self.state, f"{self.split} {', '.join(shown)}" if self.scores else self.problem]
        return f"Run({path.relative_to(here) if path.is_relative_to(here) else path}: {', '.join(filter(None, facts))})"

    @property
    def state(self) -> str:
        """The state of the job; `unreadable` if its files are damaged."""
        return str(self.status.get("state", "unreadable"))

    @property
    def trained(self) -> bool:
        """Whether the job trained; False if it only evaluated its initial weights (trainer.max_epochs=0)."""
        return self.status.get("epoch") != UNTRAINED

    @property
    def single(self) -> bool:
        """Whether a command created this run alone; False for jobs of a sweep, and for published runs."""
        published = self.folder.stored_metrics.suffix == ".gz"  # without the list of jobs of its sweep
        in_sweep = published or jobs_file(self.folder.path.parent).is_file()
        return bool(self.status.get("overrides")) and not in_sweep

    @property
    def overrides(self) -> list[tuple[str, str]]:
        """Key and value of each override of the command, in its order; empty if no command created the run."""
        stored = self.status.get("overrides")
        items = [str(item).partition("=") for item in stored] if isinstance(stored, list) else []
        return [(key, value) for key, _, value in items]

    @property
    def failed_at_start(self) -> bool:
        """Whether an error ended the job before the end of its first epoch."""
        return self.state == "failed" and self.status.get("epoch", UNTRAINED) == UNTRAINED

    @property
    def without_epoch(self) -> bool:
        """Whether the job failed before the end of its first epoch, or was never started."""
        return self.failed_at_start or self.state == "created"

    @property
    def collapsed(self) -> bool:
        """Whether status.json marks the run as collapsed, or nearly all predictions here are one class."""
        return bool(self.status.get("collapsed") or (self.scores and is_collapsed(self.counts)))

    @property
    def leaking(self) -> bool:
        """Whether the network, or the one it started or learned from, may know images or patients of `split`."""
        leaks = bool(self.status.get("leaks")) and self.config.get("data.on_leak") != "drop"
        seen = any(images.get(self.split) for images in (self.status.get("seen_by") or {}).values())
        same = self.fingerprint("train") and self.fingerprint("train") == self.fingerprint(self.split)
        return bool(self.scores) and (leaks or seen or bool(same))

    @property
    def test_set(self) -> tuple[str, str, tuple[str, ...], int]:
        """The key of the run's table: split, fingerprint of images and targets, classes, number of images."""
        scored = self.predictions.fingerprint if self.predictions else ""
        return self.split, scored, self.class_names, int(self.counts.sum())

    @property
    def validation(self) -> StoredPredictions | None:
        """The predictions on validation, if they are stored and undamaged, and another split is scored."""
        found = self._validation
        return found if isinstance(found, StoredPredictions) else None

    @property
    def validation_problem(self) -> str:
        """The fault of the validation predictions; empty if there are no faults or no predictions."""
        return self._validation if isinstance(self._validation, str) else ""

    @cached_property
    def _validation(self) -> StoredPredictions | str | None:
        file = self.folder.stored_predictions("val")
        if self.split != "test" or not self.class_names or not file.is_file():  # without a result, nothing to compare
            return None
        try:
            found = read_predictions(file)
        except UserError as error:
            return str(error)
        noted = self.fingerprint("val")
        if found.labeled.probabilities.shape[1] != len(self.class_names) or (noted and noted != found.fingerprint):
            return f"predictions_val.csv does not match the images or classes of status.json; {_remedy(file.parent)}"
        if self.predictions and found.fingerprint == self.predictions.fingerprint:
            return "predictions_val.csv contains the test images"
        return found

    def fingerprint(self, split: str) -> str:
        """Return the stored fingerprint of a split; empty if the job stopped before it was known."""
        return str((self.status.get("split_fingerprint") or {}).get(split, ""))

    @property
    def members(self) -> list[Path]:
        """The folders of the runs that a combined run was made from; empty for another run."""
        named = self.config.get(SOURCES)
        names = named if isinstance(named, list) else []
        return [Path(os.path.normpath(self.folder.path.resolve() / str(name))).resolve() for name in names]

    @property
    def joins_seeds(self) -> bool:
        """Whether a combined run is the mean of runs with several seeds, also if it pools the means of folds."""
        mean, pooled = (str(self.config.get(f"combine.{key}", "")).split(",") for key in ("mean_over", "pooled_over"))
        within_folds = "seed" in pooled and len(self.members) > len(self.status.get("folds") or {})
        return within_folds or (len(self.members) > 1 and ("seed" in mean or "all" in mean))

    @property
    def folds(self) -> dict[str, int]:
        """Images of each pooled fold, in the order of the rows; empty for another run, or if the rows were sorted."""
        sizes: dict[str, int] = self.status.get("folds") or {}
        noted = self.status.get("order_of_rows")
        moved = noted and self.predictions and noted != self.predictions.order_of_rows
        return {} if moved else sizes

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of all views of an image that the networks see; NaN if unknown."""
        found = self.status.get("multiply_adds")
        views = self.status.get("evaluation_passes") or 1  # test-time augmentation
        return found * views if isinstance(found, int | float) and isinstance(views, int | float) else math.nan

    @property
    def sources(self) -> list[Path]:
        """The folders of the runs that this one was made from: its members, or the run whose rule was replaced."""
        derived = self.status.get("derived_from")
        return self.members or ([(self.folder.path / derived).resolve()] if isinstance(derived, str) else [])

    @property
    def is_outdated(self) -> bool:
        """Whether predictions that the run was made from, or those of their sources, have changed since.

        False where they are not at hand.
        """
        return self._is_outdated(frozenset())

    def _is_outdated(self, seen: frozenset[Path]) -> bool:
        """Return `is_outdated`, without the folders of runs that are made from this one."""
        sources, noted = self.sources, self.status.get("source_digests")
        if not isinstance(noted, list) or len(noted) != len(sources):
            return False
        seen |= {self.folder.path.resolve()}
        for source, then in zip(sources, noted, strict=True):
            run = Run(RunFolder(source))
            if (own := digest_of_predictions(run.folder)) and own != then:
                return True
            with suppress(UserError, OSError):  # its own report names the damage
                run.config, run.status = flat(run.folder.read_config()), run.folder.read_status()
                if source not in seen and run._is_outdated(seen):
                    return True
        return False

    @property
    def figures(self) -> list[str]:
        """The names of the pictures in the configuration."""
        wanted = self.config.get("figures") or []
        names = wanted.split(",") if isinstance(wanted, str) else wanted if isinstance(wanted, list) else [wanted]
        return list(map(str, names))

    def class_counts(self, split: str) -> list[int]:
        """Return the images of a split by class; empty if the job stopped before they were known."""
        return (self.status.get("class_counts") or {}).get(split) or []


def read_run(folder: RunFolder) -> Run:
    """Read a run folder and score its stored predictions; any damage becomes the run's `problem`."""
    run = Run(folder)
    try:
        run.config, run.status = flat(folder.read_config()), folder.read_status()
        _shapes(run)
        if run.state == "done":
            _score(run)
        else:
            epoch = run.status.get("epoch", UNTRAINED)
            reached = "no epoch is finished" if epoch == UNTRAINED else f"last epoch: {epoch + 1}"
            reached = "not started" if run.state == "created" else f"no result, {reached}"
            run.problem = _first_line(run.status.get("error") or reached)
    except UserError as error:
        run.problem = _first_line(error).replace(f"{folder.path}/", "")
    except OSError as error:
        run.problem = f"{Path(str(error.filename)).name} cannot be read ({error.strerror}); check its permissions"
    return run


def in_order_of_jobs(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the jobs of each sweep in the order of its command (jobs.txt), not by name."""
    paths = [run.folder.path if run.single else run.folder.path.parent for run in runs]
    firsts = {path: place for place, path in reversed([*enumerate(paths)])}
    sweeps = {run.folder.path.parent for run in runs if not run.single}
    jobs = {sweep / name: place for sweep in sweeps for place, name in enumerate(listed_jobs(sweep))}
    order = [(firsts[path], jobs.get(run.folder.path, len(jobs))) for run, path in zip(runs, paths, strict=True)]
    return [runs[place] for place in sorted(range(len(runs)), key=order.__getitem__)]


def listed_jobs(sweep: Path) -> list[str]:
    """Return the names in jobs.txt; none if it cannot be read."""
    with suppress(OSError):  # no permission
        return list_jobs(sweep)
    return []


def read_runs(folders: Sequence[str], closed: Sequence[str] = (), fork: bool = False) -> list[Run]:
    """Return all runs at or below some folders.

    Args:
        folders: run folders, or folders that contain run folders.
        closed: folders without read permission among them or below.
        fork: whether another process may read half of them (see `processes.in_two`).

    Raises:
        UserError: a folder does not exist, contains no run, or cannot be read.
    """
    for folder in folders:
        if Path(folder).is_file():
            raise UserError(f"{folder} is a file; give the run folder, or a folder that contains several")
        if folder in closed:
            raise UserError(f"{folder}: no permission to read it")
    try:
        found = find_runs(folders)
        shown = partial(_shown, runs=len(found))
        return in_two(_read_completely, found, shown) if fork else list(map(read_run, shown(found)))
    except PermissionError as error:
        raise UserError(f"{error.filename}: no permission to read it; list the other folders by name") from error
    except UserError as error:
        note = f"; no permission to read {', '.join(closed)}" if closed else ""
        raise UserError(f"{error}{note}") from error


def _shown(folders: Sequence[RunFolder], each: int = 1, runs: int = 0) -> Iterator[RunFolder]:
    return with_progress(folders, runs, "read", each, "runs", end=False)


def _read_completely(folder: RunFolder) -> Run:
    """Return a run with its validation predictions, which are otherwise read at their first use."""
    run = read_run(folder)
    _ = run.validation
    return run


def _shapes(run: Run) -> None:
    """Refuse files with entries of a wrong type."""
    wrong = {key: run.status[key] for key, shape in SHAPES.items() if not _has_shape(run.status.get(key), shape)}
    if wrong:
        run.status = {key: value for key, value in run.status.items() if key not in wrong}
        key, value = next(iter(wrong.items()))
        raise UserError(f"status.json: {key} is {str(value)[:40]!r}, a wrong type; {REMEDY}")
    seed = run.config.get("seed")
    if isinstance(seed, list | dict):
        run.config = run.config | {"seed": str(seed)}
        raise UserError(f"config.yaml: seed is {seed}, not a number; correct it, or remove the folder")


def _has_shape(value: Any, shape: Any) -> bool:
    if value is None:
        return True
    if isinstance(shape, dict | list):
        inner = next(iter(shape.values() if isinstance(shape, dict) else shape))
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, type(shape)) and all(_has_shape(each, inner) for each in values)
    return isinstance(value, shape)


def _remedy(folder: Path, lost: bool = False) -> str:
    """Return how to recover damaged or `lost` predictions: a job with its last checkpoint tests without training."""
    if not RunFolder(folder).last_checkpoint.is_file():
        return REMEDY
    return f"{'' if lost else 'remove the file and '}repeat the command that trained it: it tests again"


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _score(run: Run) -> None:
    run.split = next((s for s in ("test", "val") if run.folder.stored_predictions(s).is_file()), "")
    if not run.split:
        raise UserError(f"no predictions_test.csv; {_remedy(run.folder.path, lost=True)}")
    metrics = run.status.get("metrics")
    if run.split == "val" and isinstance(metrics, dict) and any(name.startswith("test/") for name in metrics):
        raise UserError(f"predictions_test.csv is missing; {_remedy(run.folder.path, lost=True)}")
    found = read_predictions(run.folder.stored_predictions(run.split))
    targets, classes, probabilities = found.labeled
    num_classes = probabilities.shape[1]
    run.class_names = tuple(map(str, run.status.get("class_names") or range(num_classes)))
    train_counts = run.class_counts("train") or np.bincount(targets)
    if len(run.class_names) != num_classes or len(train_counts) > num_classes:
        raise UserError(f"status.json has {len(run.class_names)} class_names, the predictions {num_classes} classes")
    if odd := [split for split in ("train", "val", "test") if len(run.class_counts(split)) not in (0, num_classes)]:
        raise UserError(f"status.json: class_counts.{odd[0]} has not {num_classes} numbers; {REMEDY}")
    noted = run.fingerprint(run.split)
    if noted and noted != found.fingerprint:
        images = sum(run.class_counts(run.split))
        raise UserError(
            f"predictions_{run.split}.csv: {len(targets)} rows do not match the {images} images of status.json, "
            f"or their targets; {_remedy(run.folder.path)}"
        )
    run.predictions = found
    run.majority = int(np.argmax(train_counts))
    run.counts = confusion_matrix(targets, classes, num_classes)
    run.scores = summary_of(found.labeled)
    run.baseline = _baseline(tuple(targets.tolist()), run.majority, num_classes, tuple(SCORES))


def digest_of_predictions(run: RunFolder) -> str:
    """Return a hash of the stored predictions of a run, before compression; empty if none can be read."""
    texts = []
    for split in ("val", "test"):
        with suppress(OSError, EOFError, zlib.error):  # also of a folder without permission
            file = run.stored_predictions(split)
            content = file.read_bytes()
            texts.append(split.encode() + (gzip.decompress(content) if file.suffix == ".gz" else content))
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16] if texts else ""


def read_predictions(file: Path) -> StoredPredictions:
    """Read a predictions file.

    Raises:
        UserError: a column is missing, or a row is incomplete or has no class.
    """
    try:
        # image names may be NA or 007
        frame = pd.read_csv(file, dtype={"image": str, "patient": str}, keep_default_na=False, low_memory=False)
        num_classes = sum(str(name).startswith("p_") for name in frame)
        wanted = ["image", "target", "prediction", "p_0"]
        if "patient" in [str(name).lower() for name in frame]:  # in another case, each image would be a patient
            wanted.append("patient")
        if missing := [name for name in wanted if name not in frame]:
            header = ",".join(map(str, frame))
            raise UserError(
                f"{file.name} is damaged: it has no column {', '.join(missing)}, its header is {header[:60]}; if "
                f"another program saved it, restore the commas and names that a job writes, else {_remedy(file.parent)}"
            )
        columns = ["target", "prediction", *(f"p_{k}" for k in range(num_classes))]
        numbers = _numbers(frame[columns]).to_numpy(float)
        images = tuple(frame["image"].to_numpy(object))
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror or _first_line(error)})") from error
    except (ValueError, KeyError, EOFError, zlib.error) as error:
        raise UserError(f"{file.name} is damaged ({_first_line(error)}); {_remedy(file.parent)}") from error
    classes, probabilities = numbers[:, :2], numbers[:, 2:]
    no_class = (classes % 1 != 0) | (classes < 0) | (classes >= num_classes)
    no_share = ~np.isfinite(probabilities) | (probabilities < 0)
    improper = no_share.any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > SUM_TOLERANCE)
    bad = np.flatnonzero(no_class.any(axis=1) | improper)
    if len(bad) or not len(frame):
        where = (
            f"line {bad.min() + 2} has no class, or the sum of its probabilities is not 1"
            if len(bad)
            else "has no rows"
        )
        raise UserError(f"{file.name}: {where}; {_remedy(file.parent)}")
    targets, predicted = classes.astype(int).T
    patients = tuple(frame["patient"].to_numpy(object)) if "patient" in frame else ()
    split = _images_of(images, patients, tuple(targets.tolist()))
    return StoredPredictions(split, Predictions(split.targets, predicted[split.order], probabilities[split.order]))


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns as numbers; other texts become NaN."""
    if all(map(pd.api.types.is_numeric_dtype, frame.dtypes)):
        return frame
    numbers: pd.DataFrame = frame.apply(pd.to_numeric, errors="coerce")
    return numbers


def may_not_be_read(file: Path) -> bool:
    """Return whether a file exists but cannot be read for lack of permission."""
    return file.is_file() and not os.access(file, os.R_OK)


def read_metrics(file: Path) -> pd.DataFrame:
    """Return the complete rows of metrics.csv by epoch, without an incomplete last row; empty without a file."""
    try:
        frame = _numbers(pd.read_csv(io.StringIO(_complete_lines(file))))
        epochs = frame["epoch"]
        return frame[epochs.notna() & ~epochs.duplicated(keep="last")].set_index("epoch")
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return pd.DataFrame()


def has_epochs(file: Path, epochs: int) -> bool:
    """Return whether metrics.csv has that many epochs; a file without faults needs no pandas, as runs may be many."""
    with suppress(OSError, ValueError, EOFError, zlib.error, csv.Error):
        names, *rows = csv.reader(_complete_lines(file).splitlines())
        if {len(row) for row in rows} == {len(names)}:
            place = names.index("epoch")
            if [row[place] for row in rows] == [str(epoch) for epoch in range(len(rows))]:
                return len(rows) >= epochs
    return len(read_metrics(file)) >= epochs


def _complete_lines(file: Path) -> str:
    stored = file.read_bytes() if file.is_file() else b""
    text = (gzip.decompress(stored) if file.suffix == ".gz" else stored).decode("utf-8", errors="replace")
    return text[: text.rfind("\n") + 1]


def read_layers(file: Path) -> pd.DataFrame:
    """Return the rows `epoch, quantity, layer, value` of layers.csv; empty if it is missing or damaged."""
    try:
        frame = pd.read_csv(file, dtype={"layer": str})
        return frame.astype({"epoch": int, "value": float})[["epoch", "quantity", "layer", "value"]]
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return pd.DataFrame(columns=["epoch", "quantity", "layer", "value"])
