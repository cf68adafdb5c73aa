"""Published numbers to stand beside ours (references.yaml), and whether they were got in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from resnet_lab.report.runs import Run

READER = "retinopathy"  # data.name where nobody gave one: the format of some files, not a data set
SIZES = {  # by which it is told then: least and most images in all
    "eyepacs": (30_000, 90_000),
    "aptos": (3_600, 3_700),
    "messidor2": (1_740, 1_750),
    "idrid": (500, 516),
}
FILE = Path(__file__).with_name("references.yaml")
WORDS = {  # field of a protocol → how a difference reads
    "images": "{:,} test images, here {:,}",
    "train_images": "{:,} training images, here {:,}",
    "image_size": "{} px, here {}",
    "selection": "epoch chosen on {}, here on {}",
}


@dataclass(frozen=True)
class Reference:
    """One row of references.yaml, whose comments say what the fields are."""

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
        """Whether it is about the data of these runs, and a network that one of them is."""
        return self._same_data(runs[0]) and any(
            all(run.config.get(key) == value for key, value in self.config.items()) for run in runs
        )

    def _same_data(self, run: Run) -> bool:
        return data_of(run) in self.data and len(run.class_names) == self.classes

    def verdict(self, runs: Sequence[Run]) -> str:
        """How its protocol compares with that of the run that comes nearest to it, in words."""
        differ, silent = min((self._differences(run) for run in runs), key=lambda found: len(found[0]))
        agree = sum(not self._differences(run)[0] for run in runs)
        if len(silent) == len(WORDS):
            return "Protocol not stated"
        agreed = "Protocol agrees as far as it is stated" if silent else "Protocol agrees"
        text = "Other protocol: " + "; ".join(differ) if differ else agreed
        if 0 < agree < len(runs):
            text += f" with that of {agree} of {len(runs)} runs"
        return text + (f" (not stated: {', '.join(silent)})" if silent else "")

    def _differences(self, run: Run) -> tuple[list[str], list[str]]:
        """What differs from the protocol of a run, in words, and what is not stated."""
        ours, differ, silent = protocol_of(run), [], []
        for key, words in WORDS.items():
            theirs = self.protocol.get(key)
            if theirs is None:
                silent.append(key.replace("_", " "))
            elif theirs != ours[key]:
                differ.append(words.format(theirs, ours[key]))
        return differ, silent


def data_of(run: Run) -> str:
    """The data set of a run, by `data.name`, or by its size where that is the name of the reader."""
    name = str(run.config.get("data.name")).lower()
    images = sum(sum(run.class_counts(split)) for split in ("train", "val", "test"))
    fitting = [data for data, (least, most) in SIZES.items() if least <= images <= most]
    return fitting[0] if name == READER and fitting else name


@cache
def _rows() -> list[Reference]:
    return [Reference(**row) for row in yaml.safe_load(FILE.read_text(encoding="utf-8"))]


def protocol_of(run: Run) -> dict[str, Any]:
    """What `Reference.protocol` says, of a run."""
    monitor = run.status.get("monitor")
    return {
        "images": int(run.counts.sum()),
        "train_images": sum(run.class_counts("train")),
        "image_size": run.config.get("data.crop") or run.config.get("data.image_size"),
        "selection": {"val": "validation", "test": "test"}.get(str(monitor).split("/")[0], "last"),
    }


def references_for(runs: Sequence[Run]) -> list[Reference]:
    """The rows that fit runs on one test set; none where they were scored on validation images."""
    if not runs or runs[0].split != "test":
        return []
    return [row for row in _rows() if row.fits(runs)]
