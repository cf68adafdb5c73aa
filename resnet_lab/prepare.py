"""`resnet-lab prepare data=retinopathy data.root=… data.image_size=512`: prepare a set, and report on the data."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_lab.command_line import log_to, run_command
from resnet_lab.config import build, composed, name_unused_folder, words_of_trust
from resnet_lab.data.check import digest_of
from resnet_lab.data.duplicates import VERSION, find_duplicates, near_pairs, thumbnail
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.prepared import PreparedSet, prepare, read_prepared
from resnet_lab.data.splits import join_patients, leaking, merged_patients
from resnet_lab.errors import UserError, count
from resnet_lab.files import refuse_unwritable, write_atomically
from resnet_lab.processes import cores, end
from resnet_lab.terminal import Lines
from resnet_lab.trust import trust
from resnet_lab.verbs import VERBS

log = logging.getLogger("resnet_lab")


def facts_of(data: ImageData, target: PreparedSet, rows: pd.DataFrame, index: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the listed rows joined with the index, in the splits that training would use.

    Returns:
        The facts, and the reason if the splits cannot be cut; then the facts have the splits of the data set.
    """
    index = index.set_index("image").drop(columns=["bytes", "changed", "rules"]).rename(columns={"prepared": "stored"})
    keys = [target.name(path) for path in rows["path"].tolist()]
    facts = rows.assign(key=keys).join(index, on="key").drop(columns="key")
    places = facts["place"] if "place" in facts else [""] * len(facts)
    files = [target.stored(*each) for each in zip(facts["path"], places, strict=True)]
    facts["prepared"] = pd.Series(files, facts.index, dtype=object).where(facts["defect"] == "", "")
    good = join_patients(facts[facts["defect"] == ""])
    facts.loc[good.index, "patient"] = good["patient"]
    facts, good = facts.drop(columns="decoded"), good.drop(columns="decoded")
    problem = ""
    try:
        # leaks that training drops remain in the report, in their own split
        kept = good[~leaking(good)] if data.on_leak == "drop" else good
        cut = data.cut(kept)
        facts.loc[cut.index, "split"] = cut["split"]
    except UserError as error:  # training refuses it; the report shows it
        problem = str(error)
    return facts, problem


def statistics(facts: pd.DataFrame) -> tuple[list[float], list[float]] | None:
    """Return mean and std (3,) of the readable training images, in [0, 1]; None if there are none."""
    train = facts[(facts["split"] == "train") & (facts["defect"] == "")]
    if train.empty:
        return None
    mean = train[["mean_r", "mean_g", "mean_b"]].mean().to_numpy()
    square = train[["square_r", "square_g", "square_b"]].mean().to_numpy()
    return mean.tolist(), np.sqrt(square - mean**2).tolist()


def stored_near_pairs(target: PreparedSet, good: pd.DataFrame) -> list[Sequence[int]]:
    """Return the `near_pairs` of the distinct files; the set caches them until its JPEGs change (they take minutes).

    Args:
        target: the set.
        good: rows with `digest`, `prepared` (for `read_prepared`) and `stored` (the digest of that).
    """
    distinct = good.drop_duplicates("digest")
    jpegs = digest_of(f"{VERSION} {' '.join(distinct['stored'])}".encode())
    with suppress(OSError, ValueError, TypeError, KeyError):  # not searched yet, or damaged
        kept = json.loads(target.near_file.read_text(encoding="utf-8"))
        if kept["jpegs"] == jpegs:
            return list(kept["pairs"])
    log.info("searching for duplicates among %s", count(len(distinct), "photograph"))
    pairs = near_pairs(Thumbnails(list(distinct["prepared"])))
    try:
        write_atomically(target.near_file, json.dumps({"jpegs": jpegs, "pairs": pairs}))
    except OSError as error:
        log.warning("cannot cache the pairs of near duplicates: %s", error)
    return list(pairs)


class Thumbnails(Sequence[np.ndarray]):
    """The thumbnails of prepared photographs, (SIDE, SIDE) uint8 each, which are read on demand."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Any) -> Any:
        return thumbnail(read_prepared(self.files[place], gray=True))


def command(arguments: list[str]) -> None:
    """Prepare the data set of the configuration, and report on it; defects in the data do not stop it."""
    given = VERBS["prepare"]().read(arguments)
    log_to([Lines()])
    name_unused_folder(given.config_dir or "", given.overrides)
    config = composed(given.overrides, given.config_dir or "")
    trust(words_of_trust(config))  # the command line itself names them
    data: ImageData = build("data", config["data"])
    rows, target = data.listed(), data.prepared_set
    if not rows["path"].map(os.path.exists).any():
        raise UserError(f"data={data.name} has no image files, so there is nothing to prepare")
    if data.reads_itself:
        raise UserError(
            f"data={data.name}: {type(data).__name__} defines its own read(), so its images are not prepared"
        )
    if given.out:
        refuse_unwritable(Path(given.out))
    index = prepare(target, list(rows["path"]), given.processes or cores())
    facts, problem = facts_of(data, target, rows, index)
    good = facts[facts["defect"] == ""]
    duplicates = find_duplicates(good, stored_near_pairs(target, good))
    log.info("writing the report")
    # matplotlib; each process of `prepare` imports this module, too
    from resnet_lab.data_report import DataSummary, write_data_report

    out = Path(given.out or target.folder / "report")
    assert data.class_names is not None
    summary = DataSummary(
        name=data.name,
        root=target.root,
        folder=target.folder,
        class_names=data.class_names,
        mean_and_std=statistics(facts),
        recipe=asdict(target.recipe),
        split_problem=problem,
        bad_labels=data.bad_labels,
        patients=data.patients,
        merged=merged_patients(rows["patient"], facts["patient"]),
    )
    for finding in write_data_report(out, facts, duplicates, summary):
        log.warning("%s: %s", finding.kind, finding.text)
    log.info("prepared set: %s (%d of %s)", target.folder, len(good), count(len(facts), "photograph"))
    log.info("report: %s", out / "data_report.html")


if __name__ == "__main__":
    end(run_command(command))
