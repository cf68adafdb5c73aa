"""Derived runs: run folders that are made from the stored predictions of other runs (no torch)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from resnet_lab.axes import settings_in
from resnet_lab.config import changed_keys
from resnet_lab.data.splits import fingerprints
from resnet_lab.errors import UserError
from resnet_lab.files import write_atomically
from resnet_lab.outputs import as_stored, write_split
from resnet_lab.ranks import is_alone
from resnet_lab.report.runs import digest_of_predictions, read_predictions
from resnet_lab.report.verify import metrics_of
from resnet_lab.run_folder import RunFolder, flat, same_root
from resnet_lab.scores import Predictions
from resnet_lab.statistics import OWN_RULE, confusion_matrix, decisions, fitted_thresholds, is_collapsed

log = logging.getLogger("resnet_lab")

DECISION = "loss.decision"
SPLITS = ("val", "test")  # whose predictions a run stores
# entries of status.json that belong to one process or to the checkpoints, not to the predictions
OWN = (
    *("state", "error", "id", "starts", "started", "overrides", "config_hash", "config_dir", "finished"),
    *("best_checkpoint", "last_checkpoint", "decision", "decision_in_training", "thresholds", "metrics", "collapsed"),
    *("trains", "derived_from", "source_digests", "ended_after"),
)


@dataclass(frozen=True)
class Labeled:
    """The stored predictions of a split, in the order of the file."""

    rows: pd.DataFrame  # N rows: image, target, and patient if the file has it
    probabilities: np.ndarray  # (N, K)

    @property
    def targets(self) -> np.ndarray:
        """The true classes (N,)."""
        return self.rows["target"].to_numpy(int)

    @property
    def fingerprint(self) -> str:
        """A hash of images and targets, as in status.json."""
        return fingerprints(self.rows.assign(split=""))[""]


def stored_splits(run: RunFolder) -> dict[str, Labeled]:
    """Return the predictions that a run stores, by split.

    Raises:
        UserError: a file is damaged.
    """
    found = {}
    for split in SPLITS:
        file = run.stored_predictions(split)
        if not file.is_file():
            continue
        try:
            checked = read_predictions(file).labeled
        except UserError as error:
            raise UserError(f"{run.path}: {error}") from None
        frame = pd.read_csv(file, dtype={"image": str, "patient": str}, keep_default_na=False)
        rows = frame[[name for name in frame if name in ("image", "patient", "target")]]
        rows = rows.assign(target=pd.to_numeric(rows["target"]).astype(int))  # a spreadsheet may have written 1.0
        of_classes = [f"p_{k}" for k in range(checked.probabilities.shape[1])]  # and may have moved the columns
        found[split] = Labeled(rows, frame[of_classes].apply(pd.to_numeric).to_numpy(float))
    return found


def write_derived(
    run: RunFolder,
    splits: Mapping[str, Labeled],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    rule: str,
    title: str,
    sources: Sequence[RunFolder],
    losses: Mapping[str, float] | None = None,
) -> None:
    """Apply a decision rule, and write predictions, tables, pictures and status of a derived run.

    Args:
        run: its folder.
        splits: the probabilities by split.
        config: the nested configuration.
        facts: further entries of status.json.
        rule: rule of `statistics.DECISIONS`; thresholds are fitted on `val`.
        title: of the pictures, before the split.
        sources: the runs that the probabilities are from; a report finds out if their predictions change later.
        losses: `<split>/loss` → value, if the probabilities do not define the loss.

    Raises:
        UserError: the rule is `thresholds`, and there are no predictions on validation.
    """
    # rounding errors of a mean would order probabilities that are equal in the file
    splits = {split: replace(each, probabilities=as_stored(each.probabilities)) for split, each in splits.items()}
    thresholds = None
    if rule == "thresholds":
        if "val" not in splits:
            raise UserError(f"{run.path}: thresholds need predictions on validation; choose the decision expected")
        thresholds = fitted_thresholds(splits["val"].probabilities, splits["val"].targets)
    num_classes = next(iter(splits.values())).probabilities.shape[1]
    names = [str(name) for name in facts.get("class_names") or range(num_classes)]
    class_counts = dict(facts.get("class_counts") or {})
    train_counts = class_counts.get("train") or []
    metrics, judged = dict[str, float](losses or {}), None
    for split, each in splits.items():
        classes = decisions(each.probabilities, rule, thresholds)
        counts = confusion_matrix(each.targets, classes, len(names))
        judged = counts if judged is None or split == "val" else judged
        write_split(run, split, each.rows, classes, each.probabilities, counts, names, title)
        predictions = Predictions(each.targets, classes, each.probabilities)
        derived = metrics_of(predictions, flat(dict(config)), train_counts)
        class_counts[split] = counts.sum(axis=1).tolist()
        metrics = {f"{split}/{name}": value for name, value in derived.items() if not np.isnan(value)} | metrics
    known = facts.get("split_fingerprint") or {}
    result = {
        "state": "done",
        "error": None,
        "class_counts": class_counts,
        "decision": rule,
        "thresholds": thresholds,
        "split_fingerprint": {**known, **{split: each.fingerprint for split, each in splits.items()}},
        "metrics": metrics,
        "collapsed": judged is not None and is_collapsed(judged),
        "source_digests": [digest_of_predictions(source) for source in sources],
        "best_checkpoint": None,
        "last_checkpoint": None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    run.update_status(**{**facts, **result})


def same_training(run: RunFolder, config: Mapping[str, Any]) -> RunFolder | None:
    """Return the finished job of the same sweep that differs only in the decision rule; None if there is none.

    The job waits for another one that trains the same network, so nothing is trained twice. Jobs that start at the same
    time take turns, and the first one marks in its status.json that it trains. A job of several ranks trains by itself,
    as its ranks could decide differently.

    Args:
        run: folder of the job.
        config: its configuration.
    """
    if not is_alone() or not any(DECISION in overrides for overrides in settings_in(run.path.parent).values()):
        return None
    while True:
        with run.turn():
            source, training = _of_same_training(run, config)
            if source is None and training is None:
                run.update_status(trains=True)
        if training is None:
            return source
        log.info("waiting for %s, which trains the same network", training.path.name)
        while training.is_locked():
            time.sleep(1)


def _of_same_training(run: RunFolder, config: Mapping[str, Any]) -> tuple[RunFolder | None, RunFolder | None]:
    """Return a finished job of the same training, or one that trains now; None instead of each that does not exist."""
    training = None
    for other in run.siblings():
        try:
            before = other.read_config()
            if not (same_root(before, config) and changed_keys(before, dict(config)) <= {DECISION}):
                continue
            locked = other.is_locked()  # before its status, which may say "done" a moment later
            status = other.read_status()
            own = status.get("decision_in_training") or status.get("decision")
            if own == OWN_RULE and config["loss"]["decision"] == "auto":  # only the network knows it
                continue
            if locked:  # this job does not wait for one that waits itself
                training = other if status.get("trains") or other.last_checkpoint.is_file() else training
            elif status.get("state") == "done" and "derived_from" not in status:
                expected = {split for split in SPLITS if split in (status.get("class_counts") or {})}
                if expected and expected <= {*stored_splits(other)}:
                    return other, None
        except UserError:  # damaged; `status` shows it
            continue
    return None, training


def derive_decision(run: RunFolder, config: Mapping[str, Any], source: RunFolder, title: str) -> None:
    """Make a run from the probabilities of another run of the same training, with its own decision rule.

    Args:
        run: folder of the derived run.
        config: its configuration.
        source: folder of the finished run.
        title: of the pictures.
    """
    status = source.read_status()
    own = status.get("decision_in_training") or status.get("decision") or "argmax"
    rule = config["loss"]["decision"]
    facts = {key: value for key, value in status.items() if key not in OWN}
    if rule not in ("auto", own):
        facts["decision_in_training"] = own
    facts["derived_from"] = os.path.relpath(source.path, run.path)
    losses = {name: value for name, value in (status.get("metrics") or {}).items() if name.endswith("/loss")}
    if source.stored_metrics.is_file():
        write_atomically(run.path / source.stored_metrics.name, source.stored_metrics.read_bytes(), durable=True)
    write_derived(run, stored_splits(source), config, facts, own if rule == "auto" else rule, title, [source], losses)


def mean_of(members: Sequence[Labeled]) -> Labeled:
    """Return the mean of the members' probabilities for the same images, with the rows of one of them.

    It is the first one with the fewest patients, which a report on the members uses, too.

    Raises:
        UserError: an image has several rows.
    """
    grouped = [each.rows for each in members if "patient" in each.rows]
    rows = min(grouped, key=lambda rows: rows["patient"].nunique(), default=members[0].rows)
    first = rows["image"]
    if not first.is_unique:
        raise UserError(f"image {first[first.duplicated()].iloc[0]} has several rows, so its predictions have no mean")
    places = [pd.Index(each.rows["image"]).get_indexer(first) for each in members]
    aligned = [each.probabilities[place] for each, place in zip(members, places, strict=True)]
    return Labeled(rows, np.mean(aligned, axis=0))


def pooled(members: Sequence[Labeled]) -> Labeled:
    """Return the rows of all members, which have no image in common, one after the other."""
    return Labeled(
        pd.concat([each.rows for each in members], ignore_index=True),
        np.concatenate([each.probabilities for each in members]),
    )
