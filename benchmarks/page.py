"""The page that `make bench` writes: where and when it was measured, a table, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from resnet_lab import environment

DIGITS = {"images/s": 1, "ratio": 3, "CPU s": 2, "MB": 0}
METHOD = """
- Images per second: of an epoch from the end of its first batch to the end of its last, median over the epochs of a
  training. The program is all of `resnet_lab.job`: augmentation, metrics, callbacks, checkpoints, TensorBoard. The bare
  loop has the same network, optimiser, batch size, precision and memory layout, and takes normalised float tensors from
  memory. All take turns in one process, after one training each that is not counted, in an order that reverses with
  each turn; a ratio is of two trainings of the same turn.
- "Float32 NCHW" is `trainer.precision=32-true trainer.channels_last=false`; the program is otherwise at its defaults.
- CPU seconds: user and system time of the command and its children.
- Peak memory: resident, of one epoch in a process of its own.
"""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, n values in `unit`, and what they should be."""

    name: str
    unit: str
    values: Sequence[float]
    goal: str = ""

    def __str__(self) -> str:
        low, middle, high = (
            f"{value:.{DIGITS[self.unit]}f}" for value in (min(self.values), median(self.values), max(self.values))
        )
        return f"| {self.name} | {self.unit} | {len(self.values)} | {middle} | {low} – {high} | {self.goal} |"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Of the same turn: (n,), (n,) → (n,)."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def page(rows: Sequence[Row], quick: bool) -> str:
    """The markdown page: where and when it was measured, the table, and how."""
    machine = environment.hardware()
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    lines = ["# Speed and memory", ""]
    if quick:
        lines += ["**A smoke run of tiny networks: these numbers mean nothing.**", ""]
    lines += [
        f"`make bench`, {datetime.now(UTC):%Y-%m-%d}, commit {environment.commit()}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['threads']} threads; {versions}.",
        "",
        "| | unit | n | median | min – max | goal |",
        "|---|---|---:|---:|---:|---:|",
        *map(str, rows),
    ]
    return "\n".join(lines) + "\n" + METHOD
