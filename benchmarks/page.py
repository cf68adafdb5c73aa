"""What the benchmarks share: contestants that run in turns, and the page with question, origin, table and method."""

from __future__ import annotations

import argparse
import compileall
import logging
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import resnet_lab
from resnet_lab import environment
from resnet_lab.build import set_up_logging
from resnet_lab.errors import count

DIGITS = {"s": 2, "ms": 1, "images/s": 1, "ratio": 3, "CPU s": 2, "MB": 0, "KB": 1, "gray levels": 3, "QWK": 3}


@dataclass(frozen=True)
class Row:
    """One row of the table: what was measured, its values in `unit`, and the goal."""

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
    """Ratios of the values of each turn: (n,), (n,) → (n,)."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def take_turns(
    contestants: dict[str, Callable[[], float]], repetitions: int, unit: str = "images/s", warm_up: bool = True
) -> dict[str, list[float]]:
    """Run each contestant once to warm up. Then run all in turns; the order reverses with each turn."""
    for run in contestants.values() if warm_up else ():
        run()
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repetitions):
        for name in reversed(contestants) if turn % 2 else contestants:
            values[name].append(contestants[name]())
            print(f"{name}: {values[name][-1]:.1f} {unit}", file=sys.stderr)
    return values


def origin(command: str, commit: str = "", **packages: str) -> str:
    """Return sentences with command, date, commit, machine and versions; `packages` adds further versions.

    An empty `commit` is that of this checkout.
    """
    machine, versions = environment.hardware(), environment.versions() | packages
    text = (
        f"Measured with `{command}` on {datetime.now(UTC):%Y-%m-%d} at commit {commit or environment.commit()}. "
        f"Machine: {', '.join([*machine['gpus'], machine['cpu']])}, {count(machine['cores'], 'core')}, "
        f"{count(machine['threads'], 'thread')}. "
        f"Versions: {', '.join(map(' '.join, versions.items()))}."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def page(
    title: str,
    question: str,
    rows: Sequence[Row],
    method: str,
    quick: bool,
    command: str = "make bench",
    **packages: str,
) -> str:
    """Return the markdown page: question, origin, table and method."""
    lines = [f"# {title}", "", question, ""]
    if quick:
        lines += ["**A smoke run of tiny networks: these numbers mean nothing.**", ""]
    lines += [
        origin(command, **packages),
        "",
        "| | unit | n | median | min – max | goal |",
        "|---|---|---:|---:|---:|---:|",
        *map(str, rows),
    ]
    return "\n".join(lines) + "\n" + method


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of the command line, with `--quick` and `--out`; compile and silence the program.

    pip compiles an installed package. In a checkout with `PYTHONDONTWRITEBYTECODE`, each command would compile it anew.
    """
    parser.add_argument("--quick", action="store_true", help="smoke run with tiny networks and images")
    parser.add_argument("--out", type=Path, help="write the page to this markdown file")
    compileall.compile_dir(Path(resnet_lab.__file__).parent, quiet=2)
    set_up_logging()
    logging.getLogger("resnet_lab").setLevel(logging.ERROR)
    return parser.parse_args()


def publish(text: str, out: Path | None) -> None:
    """Print the page, and write it to the file of `--out`."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def main(
    description: str, title: str, question: str, method: str, measure: Callable[[Path, bool], Sequence[Row]]
) -> None:
    """Run a benchmark from the command line: measure, print the page, and write it to the file of `--out`."""
    options = read_options(argparse.ArgumentParser(description=description))
    with TemporaryDirectory() as folder:
        text = page(title, question, measure(Path(folder), options.quick), method, options.quick)
    publish(text, options.out)
