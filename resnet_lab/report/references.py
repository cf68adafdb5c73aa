"""Published numbers beside ours (references.yaml), and how their protocols compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from resnet_lab.report.runs import Run

READER = "retinopathy"  # default of data.name: a file format, not a data set
SIZES = {  # identify the data set then: minimum and maximum of all images
    "eyepacs": (30_000, 90_000),
    "aptos": (3_600, 3_700),
    "messidor2": (1_740, 1_750),
    "idrid": (500, 516),
}
NAMES = {"eyepacs": "EyePACS", "aptos": "APTOS 2019", "messidor2": "Messidor-2", "idrid": "IDRiD"}
FILE = Path(__file__).with_name("references.yaml")
WORDS = {  # field of a protocol → text of a difference
    "images": "{:,} test images, here {:,}",
    "train_images": "{:,} training images, here {:,}",
    "image_size": "{} px, here {}",
    "selection": "epoch chosen on {}, here on {}",
}


@dataclass(frozen=True)
class Reference:
    """One row of references.yaml; the comments there explain the fields."""

    data: list[str]
    classes: int
    what: str
    scores: dict[str, float]
    protocol: dict[str, Any]
    source: str
    read: str
    std: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def fits(self, runs: Sequence[Run]) -> bool:
        """Return whether the row has the data of these runs and the network of one of them."""
        return self._same_data(runs[0]) and any(
            all(run.config.get(key) == value for key, value in self.config.items()) for run in runs
        )

    def _same_data(self, run: Run) -> bool:
        return data_of(run) in self.data and len(run.class_names) == self.classes

    def verdict(self, runs: Sequence[Run]) -> str:
        """Return a sentence that compares the protocol with the run of the most similar protocol."""
        differ, silent = min((self._differences(run) for run in runs), key=lambda found: len(found[0]))
        agree = sum(not self._differences(run)[0] for run in runs)
        guessed = str(runs[0].config.get("data.name")).lower() == READER
        guess = f"Data set assumed from the number of images: {NAMES[data_of(runs[0])]}. " if guessed else ""
        if len(silent) == len(WORDS):
            return f"{guess}Protocol not stated"
        agreed = "Same protocol as far as stated" if silent else "Same protocol"
        text = "Different protocol: " + "; ".join(differ) if differ else agreed
        if 0 < agree < len(runs):
            text += f", in {agree} of {len(runs)} runs"
        return guess + text + (f" (not stated: {', '.join(silent)})" if silent else "")

    def _differences(self, run: Run) -> tuple[list[str], list[str]]:
        """Return the differences from the protocol of a run as texts, and the fields that are not stated."""
        ours, differ, silent = protocol_of(run), [], []
        for key, words in WORDS.items():
            theirs = self.protocol.get(key)
            if theirs is None:
                silent.append(key.replace("_", " "))
            elif theirs != ours[key]:
                differ.append(words.format(theirs, ours[key]))
        return differ, silent


def data_of(run: Run) -> str:
    """Return the data set of a run: `data.name`, or the data set of this size if that is the reader's name."""
    name = str(run.config.get("data.name")).lower()
    images = sum(sum(run.class_counts(split)) for split in ("train", "val", "test"))
    fitting = [data for data, (least, most) in SIZES.items() if least <= images <= most]
    return fitting[0] if name == READER and fitting else name


@cache
def _rows() -> list[Reference]:
    return [Reference(**row) for row in yaml.safe_load(FILE.read_text(encoding="utf-8"))]


def protocol_of(run: Run) -> dict[str, Any]:
    """Return the protocol of a run, with the fields of `Reference.protocol`."""
    monitor = run.status.get("monitor")
    return {
        "images": int(run.counts.sum()),
        "train_images": sum(run.class_counts("train")),
        "image_size": run.config.get("data.crop") or run.config.get("data.image_size"),
        "selection": {"val": "validation", "test": "test"}.get(str(monitor).split("/")[0], "last"),
    }


def references_for(runs: Sequence[Run]) -> list[Reference]:
    """Return the rows that fit runs on one test set; none if the runs were scored on validation images."""
    if not runs or runs[0].split != "test":
        return []
    return [row for row in _rows() if row.fits(runs)]
