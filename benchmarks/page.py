"""What the benchmarks share: contestants that take turns, and the page: where and when, a table, and how."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from resnet_lab import environment
from resnet_lab.build import set_up_logging

DIGITS = {"s": 2, "ms": 1, "images/s": 1, "ratio": 3, "CPU s": 2, "MB": 0, "gray levels": 3, "QWK": 3}


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


def take_turns(contestants: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Run each once to warm up, then all by turns, in an order that reverses with each turn."""
    for run in contestants.values():
        run()
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repetitions):
        for name in reversed(contestants) if turn % 2 else contestants:
            values[name].append(contestants[name]())
            print(f"{name}: {values[name][-1]:.1f} images/s", file=sys.stderr)
    return values


def origin() -> str:
    """When, of which commit, on which machine and with which versions: a sentence."""
    machine, versions = environment.hardware(), ", ".join(map(" ".join, environment.versions().items()))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {environment.commit()}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads; {versions}."
    )


def page(title: str, rows: Sequence[Row], method: str, quick: bool) -> str:
    """The markdown page: where and when it was measured, the table, and how."""
    lines = [f"# {title}", ""]
    if quick:
        lines += ["**A smoke run of tiny networks: these numbers mean nothing.**", ""]
    lines += [
        f"`make bench`, {origin()}",
        "",
        "| | unit | n | median | min – max | goal |",
        "|---|---|---:|---:|---:|---:|",
        *map(str, rows),
    ]
    return "\n".join(lines) + "\n" + method


def main(description: str, title: str, method: str, measure: Callable[[Path, bool], Sequence[Row]]) -> None:
    """The command line of a benchmark: measure, print the page, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke run of tiny networks and images")
    parser.add_argument("--out", type=Path, help="markdown file to write the page to")
    options = parser.parse_args()
    set_up_logging()
    logging.getLogger("resnet_lab").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        text = page(title, measure(Path(folder), options.quick), method, options.quick)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
