"""Splits of a table: cut by patient, folds, leaks, limits, fingerprints."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from resnet_lab.errors import UserError, count

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
NO_TEST = "there is no test split; set data.test_fraction or data.folds, or add a test split to the data"


def remap_splits(table: pd.DataFrame, splits: Mapping[str, str | Sequence[str]] | None) -> pd.DataFrame:
    """Rename and join the splits of a data set; splits that are not named are dropped.

    Args:
        table: rows with `split`.
        splits: our splits, each with one split of the data set or several: `{train: [train, val], test: test}`
            trains on both; None: as they are.

    Raises:
        UserError: a name is not one of the three, a split is given twice, or train has no images.
    """
    if splits is None:
        if odd := sorted(set(table["split"].astype(str)) - set(SPLITS)):
            raise UserError(
                f"the data has a split {odd[0]}, and the splits of a training are {', '.join(SPLITS)}; map them with "
                f"data.splits, such as {{train: {odd[0]}}}"
            )
        return table
    sources = {name: [given] if isinstance(given, str) else list(given) for name, given in splits.items()}
    named = [source for given in sources.values() for source in given]
    if twice := [name for name in named if named.count(name) > 1]:
        *_, last = (name for name, given in sources.items() if twice[0] in given)
        raise UserError(
            f"data.splits={dict(splits)}: {twice[0]} is given twice; leave one out. If you did not write {last}, it "
            f"comes from the file of data=; then add {last}: []"
        )
    if not set(splits) <= set(SPLITS) or not sources.get("train"):
        raise UserError(
            f"data.splits={dict(splits)}: map train, val and test to splits of the data, such as {{train: test, …}}"
        )
    known = sorted(table["split"].unique())
    if unknown := [name for name in named if name not in (*SPLITS, *known)]:
        raise UserError(f"data.splits={dict(splits)}: there is no split {unknown[0]}; the data has {', '.join(known)}")
    if not set(sources["train"]) & set(known):
        raise UserError(
            f"data.splits: there is no split {' or '.join(sources['train'])} to train on; the data has "
            f"{', '.join(known)}"
        )
    for name in sorted(set(named) - set(known)):
        log.warning("data.splits: the data has no split %s", name)
    renamed = table["split"].map({source: name for name, given in sources.items() for source in given})
    return table.assign(split=renamed)[renamed.notna()].reset_index(drop=True)


def join_patients(table: pd.DataFrame) -> pd.DataFrame:
    """Merge patients who share an identical image into one patient.

    Args:
        table: rows with `patient`, `digest` and `decoded` (hash of the pixels; empty if unknown); the merged patient
            gets the first name in the table.
    """
    decoded = table.get("decoded", pd.Series("", table.index))
    # a comment in a file changes its bytes; the pixels of some files may be unknown
    marks = pd.concat([table["digest"], decoded[decoded != ""]])
    owners = pd.concat([table["patient"], table["patient"][decoded != ""]])
    shared = marks.duplicated(keep=False)
    if owners[shared].groupby(marks[shared]).nunique().le(1).all():
        return table
    patients, names = pd.factorize(owners)
    digests, _ = pd.factorize(marks)
    size = len(names) + digests.max() + 1
    links = coo_array((np.ones(len(marks)), (patients, len(names) + digests)), (size, size))
    _, component = connected_components(links, directed=False)
    joined = table.groupby(pd.Series(component[patients[: len(table)]], index=table.index))["patient"].transform(
        "first"
    )
    log.info("patients: %s", merged_patients(table["patient"], joined))
    return table.assign(patient=joined)


def merged_patients(before: pd.Series, after: pd.Series) -> str:
    """Describe the patients that `join_patients` merged; empty if there are none.

    Args:
        before: the patient of each image (N,).
        after: the same after the merge.
    """
    changed = before != after
    if not changed.any():
        return ""
    merged = before[after.isin(after[changed])].nunique()
    one, other = after[changed].iloc[0], before[changed].iloc[0]
    such = f"{one} and {other}" if merged == 2 else f"such as {one} and {other}"
    return f"{merged} patients ({such}) share identical images and count as {after[changed].nunique()}"


def label_conflicts(table: pd.DataFrame, class_names: Sequence[str]) -> int:
    """Return how many images have an identical copy with another label, and log the first pair.

    Args:
        table: rows with `image`, `target` and `decoded` (hash of the pixels; empty if unknown).
        class_names: their names, by target.
    """
    known = table[table["decoded"] != ""]
    rows = known[known.groupby("decoded")["target"].transform("nunique") > 1]
    if len(rows):
        first = rows[rows["decoded"] == rows["decoded"].iloc[0]].drop_duplicates("target")
        shown = [f"{row.image} ({row.split}, {class_names[row.target]})" for row in first.head(2).itertuples()]
        text = (
            "%d images have an identical copy with a different label, such as %s; correct the labels or remove one copy"
        )
        log.warning(text, len(rows), " and ".join(shown))
    return len(rows)


def refuse_one_class(table: pd.DataFrame, class_names: Sequence[str], root: str) -> None:
    """Refuse training images of a single class: a network that learns from them predicts it for every image.

    Args:
        table: rows with `target` and `split`.
        class_names: their names, by target.
        root: `data.root`, for the message.

    Raises:
        UserError: all images of train have the same target.
    """
    train = table.loc[table["split"] == "train", "target"]
    if train.nunique() == 1:
        raise UserError(
            f"{root}: {class_names[train.iloc[0]]} is the only label of {count(len(train), 'training image')}; "
            "training needs at least two classes, so check the column of labels and the splits"
        )


def cut_split(table: pd.DataFrame, name: str, fraction: float, seed: int, key: str) -> pd.DataFrame:
    """Move a share of the training patients to split `name`, stratified by a patient's worst grade.

    Both eyes of a patient stay together. The result depends only on the table and `seed`. (It is not stratified if
    every class is too small to give a patient.)

    Args:
        table: rows of every split; only rows of `train` move.
        name: `val` or `test`.
        fraction: share of the patients, in [0, 1); 0 changes nothing.
        seed: seed of the split, not of the training.
        key: the configuration key, for errors.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"{key}={fraction}: a share must be at least 0 and below 1")
    if fraction == 0:
        return table
    worst = table[table["split"] == "train"].groupby("patient")["target"].max()
    chosen = worst.groupby(worst).sample(frac=fraction, random_state=seed).index
    if not len(chosen):  # no single class is large enough
        chosen = worst.sample(frac=fraction, random_state=seed).index
    if not len(chosen) or len(chosen) == len(worst):
        raise UserError(
            f"{key}={fraction} of {count(len(worst), 'training patient')} (or images) leaves a split empty; "
            "use another share"
        )
    moved = (table["split"] == "train") & table["patient"].isin(chosen)
    return table.assign(split=table["split"].mask(moved, name))


def cut_fold(
    table: pd.DataFrame, name: str, folds: int, fold: int, seed: int, class_names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Move one of `folds` equal parts of the training patients to split `name`, stratified by a patient's worst grade.

    The parts of `fold` 0, 1, … do not overlap and cover all training patients.

    Raises:
        UserError: the fold does not exist, or a class has fewer patients than there are folds.
    """
    if not 0 <= fold < folds:
        raise UserError(f"data.fold={fold}: data.folds={folds} has folds 0 to {folds - 1}")
    worst = table[table["split"] == "train"].groupby("patient")["target"].max()
    if worst.empty:
        raise UserError(f"data.folds={folds}: there is no training image to cut folds from")
    rarest, fewest = Counter(worst).most_common()[-1]
    if fewest < folds:
        name_of = f" ({class_names[rarest]})" if class_names else ""
        fewer = f"use at most {fewest} folds, or " if fewest > 1 else ""
        raise UserError(
            f"data.folds={folds}: class {rarest}{name_of} has only {count(fewest, 'patient')} "
            f"(by their worst grade), and each fold needs one; {fewer}leave this class out or join it with another one"
        )
    from sklearn.model_selection import StratifiedKFold  # imported here because it takes half a second

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(worst, worst)
    chosen = worst.index[next(islice((held_out for _, held_out in parts), fold, None))]
    moved = (table["split"] == "train") & table["patient"].isin(chosen)
    return table.assign(split=table["split"].mask(moved, name))


def leaking(table: pd.DataFrame) -> pd.Series:
    """Return which rows of train or val belong to a patient who is also in a later split, (N,) bool."""
    order = table["split"].map({split: rank for rank, split in enumerate(SPLITS)})
    return order < order.groupby(table["patient"]).transform("max")


def resolve_leaks(table: pd.DataFrame, on_leak: str) -> tuple[pd.DataFrame, int]:
    """Handle patients who are in two splits: in train and in val or test, or in val and test.

    Patients who share an identical image must already be merged (`join_patients`).

    Args:
        table: rows of every split.
        on_leak: `error`, `drop` (remove the rows from train, or from val if the patient is in test) or `ignore`.

    Returns:
        The table, and the number of leaking rows of train or val.

    Raises:
        UserError: there are such rows and `on_leak` is `error`.
    """
    leaks = leaking(table)
    number = int(leaks.sum())
    if number and on_leak == "error":
        patients = table.loc[leaks, "patient"].unique()
        raise UserError(
            f"{count(number, 'image of train or val belongs', 'images of train or val belong')} to "
            f"{count(len(patients), 'patient who is', 'patients who are')} also in a later split, by name or by an "
            f"identical image ({', '.join(patients[:3])}{', …' if len(patients) > 3 else ''}); set "
            "data.on_leak=drop to remove these images, or data.on_leak=ignore to train on them"
        )
    if number:
        share = count(number, "image of train or val shares", "images of train or val share")
        log.warning("%s a patient with a later split: %s", share, on_leak)
    return (table[~leaks] if on_leak == "drop" else table).reset_index(drop=True), number


def limit_rows(table: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """Keep at most `most` images of each split, with classes in proportion and at least one image per class.

    The largest class gives up the images that rare classes get beyond their proportion.
    """
    if most is None:
        return table
    kept = []
    for _, rows in table.groupby("split", sort=False):
        share = min(1.0, most / len(rows))
        sizes = rows["target"].value_counts().map(lambda n, share=share: max(1, int(n * share)))
        sizes.iloc[0] = max(1, sizes.iloc[0] - max(0, sizes.sum() - most))
        kept += [group.sample(n=sizes[target], random_state=seed) for target, group in rows.groupby("target")]
    return pd.concat(kept).sort_index().reset_index(drop=True)


def limit_classes(table: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """Keep at most `most` training images of each class (study C left out healthy eyes)."""
    if most is None:
        return table
    train = table[table["split"] == "train"]
    kept = train.sample(frac=1, random_state=seed).groupby("target").head(most).index
    return table.drop(index=train.index.difference(kept))


def fingerprints(table: pd.DataFrame, column: str = "target") -> dict[str, str]:
    """Return a hash of the images and targets of each split, independent of their order.

    Args:
        table: rows with `image` and `split`.
        column: the column that is hashed with the image's name.
    """
    prints = {}
    for split, rows in table.groupby("split"):
        lines = sorted(f"{image}\t{value}" for image, value in zip(rows["image"], rows[column], strict=True))
        prints[str(split)] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return prints


def order_of_training(table: pd.DataFrame) -> str:
    """Return a hash of the order of the training images, on which that of the batches depends; see `fingerprints`."""
    names = table.loc[table["split"] == "train", "image"]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def class_counts(table: pd.DataFrame, num_classes: int) -> dict[str, list[int]]:
    """Return the number of images of each class, by split."""
    return {
        str(split): rows["target"].value_counts().reindex(range(num_classes), fill_value=0).tolist()
        for split, rows in table.groupby("split")
    }
