"""Compare runs: `python -m resnet_lab.report DIR… [out=DIR]` reads run folders only, and imports no torch.

First the runs are read and scored, then they are put into tables and groups, then all is written.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from resnet_lab import plots
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder, find_runs, write_atomically
from resnet_lab.statistics import confusion_matrix, majority_baseline, summary_of

USAGE = "usage: resnet-lab report DIR… [out=DIR]   (run folders, or folders of sweeps)"
METRICS = {  # title, factor, digits
    "accuracy": ("accuracy %", 100, 2),
    "balanced_accuracy": ("balanced acc. %", 100, 2),
    "qwk": ("QWK", 1, 3),
    "auroc": ("AUROC", 1, 3),
}
ABSENT = "–"
# no axes, like every seed and every *_dir: where and how fast a run was made, not what it is
BOOKKEEPING = ("name", "data.root", "data.num_workers", "trainer.progress_bar")


@dataclass
class Run:
    """One run folder as far as it can be read; `scores` is empty where it has no result: `problem` says why."""

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)  # by dotted keys
    status: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    split: str = ""
    class_names: tuple[str, ...] = ()
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), int))  # (K, K), rows true
    scores: dict[str, float] = field(default_factory=dict)
    majority: str = ""
    baseline: dict[str, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The state of the job; `unreadable` where its files are damaged."""
        return str(self.status.get("state", "unreadable"))

    @property
    def collapsed(self) -> bool:
        """Whether the job says so, or one class is the answer to everything."""
        return bool(self.status.get("collapsed") or (self.scores and np.count_nonzero(self.counts.sum(0)) == 1))

    @property
    def test_set(self) -> tuple[str, str, tuple[str, ...], int]:
        """What two runs must share to stand in one table: split, its fingerprint, classes, number of images."""
        return self.split, self.fingerprint(self.split), self.class_names, int(self.counts.sum())

    def fingerprint(self, split: str) -> str:
        """The fingerprint of a split's rows; empty where the job did not get so far."""
        return str((self.status.get("split_fingerprint") or {}).get(split, ""))


def read_run(folder: RunFolder) -> Run:
    """Read a run folder and score its stored predictions; whatever is damaged becomes the run's `problem`."""
    run = Run(folder)
    try:
        run.config = _flat(_read(folder.read_config, folder.config_file))
        run.status = _read(folder.read_status, folder.status_file)
        if run.state == "done":
            _score(run)
        else:
            run.problem = _first_line(run.status.get("error") or f"no result, epoch {run.status.get('epoch', ABSENT)}")
    except UserError as error:
        run.problem = _first_line(error)
    return run


def _read(read: Callable[[], dict[str, Any]], file: Path) -> dict[str, Any]:
    try:
        content = read()
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{file.name} is damaged ({_first_line(error)}); train the run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file.name} holds {type(content).__name__}, not keys; train the run again")
    return content


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _score(run: Run) -> None:
    run.split = next((s for s in ("test", "val") if run.folder.predictions_file(s).is_file()), "")
    if not run.split:
        raise UserError("no predictions_test.csv; evaluate the run")
    targets, predictions, probabilities = read_predictions(run.folder.predictions_file(run.split))
    num_classes = probabilities.shape[1]
    run.class_names = tuple(map(str, run.status.get("class_names") or range(num_classes)))
    train_counts = (run.status.get("class_counts") or {}).get("train") or np.bincount(targets)
    if len(run.class_names) != num_classes or len(train_counts) > num_classes:
        raise UserError(f"status.json has {len(run.class_names)} class_names, the predictions {num_classes} classes")
    majority = int(np.argmax(train_counts))
    run.majority = run.class_names[majority]
    run.counts = confusion_matrix(targets, predictions, num_classes)
    run.scores = summary_of(targets, predictions, probabilities)
    run.baseline = majority_baseline(targets, majority, num_classes)


def read_predictions(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (N,), predictions (N,) and probabilities (N, K) of a predictions file.

    Raises:
        UserError: a column is missing, or a row is incomplete or holds no class.
    """
    try:
        # an image may be called NA or 007
        frame = pd.read_csv(file, dtype={"image": str, "patient": str}, keep_default_na=False)
        columns = [
            "target",
            "prediction",
            *(f"p_{k}" for k in range(sum(str(name).startswith("p_") for name in frame))),
        ]
        numbers = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file.name} is damaged ({_first_line(error)}); evaluate the run again") from error
    classes, probabilities = numbers[:, :2], numbers[:, 2:]
    no_class = (classes % 1 != 0) | (classes < 0) | (classes >= probabilities.shape[1])
    bad = np.flatnonzero(no_class.any(axis=1) | ~np.isfinite(probabilities).all(axis=1))
    if len(bad) or not len(frame):
        where = f"line {bad[0] + 2} lacks a class or a probability" if len(bad) else "has no rows"
        raise UserError(f"{file.name}: {where}; evaluate the run again")
    return classes[:, 0].astype(int), classes[:, 1].astype(int), probabilities


def read_metrics(file: Path) -> pd.DataFrame:
    """The complete rows of metrics.csv by epoch; a killed run's half row is left out. Empty where there is none."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    try:
        frame = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1])).apply(pd.to_numeric, errors="coerce")
        return frame.dropna(subset="epoch").drop_duplicates("epoch", keep="last").set_index("epoch")
    except (ValueError, KeyError):
        return pd.DataFrame()


@dataclass
class Group:
    """The runs that differ in their seed alone."""

    values: dict[str, Any]  # of the axes, by dotted key
    shown: dict[str, str]  # the same in short, for people
    runs: list[Run]

    @property
    def label(self) -> str:
        """What sets the group apart from the others of its table."""
        return " ".join(f"{name}={value}" for name, value in self.shown.items()) or "all runs"

    @property
    def scored(self) -> list[Run]:
        """The runs that count: only those with a result."""
        return [run for run in self.runs if run.scores]

    @property
    def collapsed(self) -> list[Run]:
        """The collapsed ones of those that count."""
        return [run for run in self.scored if run.collapsed]

    def mean_and_std(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over the runs; NaN where there are too few."""
        values = [run.scores[metric] for run in self.scored]
        return (
            float(np.mean(values)) if values else math.nan,
            float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        )


@dataclass
class Table:
    """Groups that were scored on the same images."""

    groups: list[Group]

    @property
    def scored(self) -> list[Run]:
        """All runs with a result."""
        return [run for group in self.groups for run in group.scored]

    @property
    def metrics(self) -> list[str]:
        """The metrics that mean something here: QWK only where the classes have an order."""
        ordered = any(run.status.get("ordered") for group in self.groups for run in group.runs)
        return [metric for metric in METRICS if metric != "qwk" or ordered]

    @property
    def title(self) -> str:
        """Which images the numbers are about."""
        if not self.scored:
            return "No run has a result"
        split, fingerprint, names, images = self.scored[0].test_set
        data = self.scored[0].config.get("data.name", "data")
        return f"{data}, {split} split: {images} images, {len(names)} classes" + (
            f" (fingerprint {fingerprint[:8]})" if fingerprint else ""
        )


def tables_of(runs: Iterable[Run]) -> list[Table]:
    """One table per set of test images; a run without a result goes to the table of its data."""
    sets: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.scores):
        if run.scores:
            sets.setdefault(run.test_set, []).append(run)
        elif run.config:
            _home(run, sets).append(run)
    return [Table(_groups(members)) for members in sets.values()]


def _home(run: Run, sets: dict[tuple[Any, ...], list[Run]]) -> list[Run]:
    same_images = [members for key, members in sets.items() if key[1] and run.fingerprint(key[0]) == key[1]]
    name = run.config.get("data.name")
    same_data = [members for members in sets.values() if members[0].config.get("data.name") == name]
    homes = same_images or same_data
    return homes[0] if homes else sets.setdefault(("", "", (), 0), [])


def _groups(runs: Sequence[Run]) -> list[Group]:
    # one group alone still has to be told from those of other reports
    axes = axes_of(runs) or [key for key in ("model.depth", "model.pretrained") if key in runs[0].config]
    groups: dict[str, Group] = {}
    for run in runs:
        values = {axis: run.config.get(axis, ABSENT) for axis in axes}
        groups.setdefault(repr(values), Group(values, {}, [])).runs.append(run)
    for group in groups.values():
        for axis, value in group.values.items():
            if value != ABSENT:
                others = [str(other.values[axis]) for other in groups.values()]
                name = _tail(axis.removesuffix("._target_"), [a.removesuffix("._target_") for a in axes], ".")
                group.shown[name] = _shown(axis, value, others)
    return sorted(groups.values(), key=lambda group: [_order(value) for value in group.values.values()])


def axes_of(runs: Sequence[Run]) -> list[str]:
    """The configuration keys (dotted) in which runs differ: no seeds, and nothing about where files lie."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if key not in BOOKKEEPING
        and key.split(".")[-1] != "seed"
        and not key.endswith("_dir")
        and len({repr(run.config.get(key, ABSENT)) for run in runs}) > 1
    ]


def _shown(axis: str, value: Any, others: Sequence[str]) -> str:
    if axis.endswith("_target_"):
        return _tail(str(value), others, ".")
    if isinstance(value, str):
        return _tail(value, others, "/", least=2)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _tail(text: str, others: Sequence[str], separator: str, least: int = 1) -> str:
    """The shortest tail of `text` (of `least` parts or more) that is the tail of none of the `others`."""
    parts = text.split(separator)
    for size in range(least, len(parts)):
        tail = separator.join(parts[-size:])
        if not any(f"{separator}{other}".endswith(separator + tail) for other in others if other != text):
            return tail
    return text


def _order(value: Any) -> tuple[bool, bool, float, str]:
    """Sorts nothing first, numbers by size, and texts last."""
    number = float(value) if isinstance(value, int | float) else math.inf
    return value is not None, value == ABSENT, number, str(value)


class Finding(NamedTuple):
    """One thing to know before believing a table."""

    kind: str
    text: str


def findings_of(runs: Sequence[Run], tables: Sequence[Table], out: Path) -> list[Finding]:
    """What is wrong with the runs, the worst first."""
    lost = [run for run in runs if run.problem]
    found = [Finding(run.state.replace("done", "no result"), f"{_place(run, out)}: {run.problem}") for run in lost]
    for table in tables:
        found += _doubts(table)
    if sum(bool(table.scored) for table in tables) > 1:
        text = "the runs were scored on different images: each set has its own table, not to be compared with another"
        found.append(Finding("different test sets", text))
    scored = [group for table in tables for group in table.groups if group.scored]
    single = [group.label for group in scored if len(group.scored) == 1]
    if single:
        which = "any group" if len(single) == len(scored) else "; ".join(single)
        found.append(Finding("one seed only", f"no spread is known of {which}"))
    notes = Counter(note for run in runs for note in _data_notes(run))
    return found + [Finding(kind, f"{text} ({count} of {len(runs)} runs)") for (kind, text), count in notes.items()]


def _doubts(table: Table) -> Iterator[Finding]:
    for group in table.groups:
        if group.collapsed:
            seeds = ", ".join(str(run.config.get("seed", ABSENT)) for run in group.collapsed)
            text = f"{group.label}: {len(group.collapsed)} of {len(group.scored)} answer one class (seed {seeds})"
            yield Finding("collapsed", text)
        repeated = [seed for seed, n in Counter(run.config.get("seed") for run in group.scored).items() if n > 1]
        if repeated:
            yield Finding("seed twice", f"{group.label}: seed {repeated[0]} counts more than once; n is too large")
    if table.scored and table.scored[0].split == "val":
        yield Finding("no test split", "numbers are of the validation images, which also chose the checkpoint")


def _data_notes(run: Run) -> Iterator[Finding]:
    leaks = run.status.get("leaks") or 0
    count = sum(leaks.values()) if isinstance(leaks, dict) else leaks
    if count and run.config.get("data.on_leak") != "drop":
        yield Finding("leaking", f"{count} training images share a patient with another split")
    if run.status.get("skipped_images"):
        yield Finding("skipped images", f"{run.status['skipped_images']} images could not be read")


def _place(run: Run, out: Path) -> str:
    return os.path.relpath(run.folder.path, out.resolve())


class Row(NamedTuple):
    """One line of a table: of a group, or of the majority baseline."""

    label: str
    remark: str
    n: str
    cells: list[str]


def rows_of(table: Table) -> list[Row]:
    """The groups, and below them what answering the training majority to everything gives."""
    rows = []
    for group in table.groups:
        lost, collapsed = len(group.runs) - len(group.scored), len(group.collapsed)
        remark = ", ".join([f"{lost} without result"] * bool(lost) + [f"{collapsed} collapsed"] * bool(collapsed))
        cells = [_cell(metric, *group.mean_and_std(metric)) for metric in table.metrics]
        rows.append(Row(group.label, remark, str(len(group.scored)), cells))
    for majority, scores in {run.majority: run.baseline for run in table.scored}.items():
        cells = [_cell(metric, scores[metric], math.nan) for metric in table.metrics]
        rows.append(Row(f"majority baseline: always “{majority}”", "", "", cells))
    return rows


def _cell(metric: str, mean: float, std: float) -> str:
    _, factor, digits = METRICS[metric]
    if math.isnan(mean):
        return ABSENT
    shown = round(factor * mean, digits) + 0.0  # no -0.000
    return f"{shown:.{digits}f}" + ("" if math.isnan(std) else f" ± {factor * std:.{digits}f}")


def text_table(table: Table, width: int = 110) -> str:
    """The table for a terminal; labels wrap, so that a line has at most `width` characters."""
    titles = [METRICS[metric][0] for metric in table.metrics]
    room = width - 3 - 16 * len(titles)
    lines = [table.title, f"{'group':<{room}}{'n':>3}" + "".join(f"{title:>16}" for title in titles)]
    for row in rows_of(table):
        first, *more = wrap(row.label + (f" ({row.remark})" if row.remark else ""), room - 1)
        lines += [f"{first:<{room}}{row.n:>3}" + "".join(f"{cell:>16}" for cell in row.cells)]
        lines += [f"  {line}" for line in more]
    return "\n".join(lines)


def markdown(tables: Sequence[Table], findings: Sequence[Finding]) -> str:
    """The findings and the tables for a page of the documentation."""
    blocks = ["\n".join(f"- **{_markdown(kind)}**: {_markdown(text)}" for kind, text in findings)] if findings else []
    for table in tables:
        titles = [METRICS[metric][0] for metric in table.metrics]
        lines = ["| " + " | ".join(["group", "n", *titles]) + " |", "|---|" + "---:|" * (1 + len(titles))]
        for row in rows_of(table):
            label = _markdown(row.label + (f" ({row.remark})" if row.remark else ""))
            lines.append("| " + " | ".join([label, row.n, *row.cells]) + " |")
        blocks += [f"**{_markdown(table.title)}**", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n\nMean ± standard deviation over n runs that differ in their seed.\n"


def _markdown(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def summary(tables: Sequence[Table]) -> pd.DataFrame:
    """One row per group with unrounded numbers: axes, counts, mean and std of each metric, baseline.

    `n_failed` counts the runs without a result, whatever the reason.
    """
    rows = []
    for table in tables:
        for group in table.groups:
            row: dict[str, Any] = {"group": group.label}
            row |= {axis: "none" if value is None else value for axis, value in group.values.items()}
            row |= {"n": len(group.scored), "n_failed": len(group.runs) - len(group.scored)}
            row |= {"n_collapsed": len(group.collapsed)}
            for metric in table.metrics:
                row[f"{metric}_mean"], row[f"{metric}_std"] = group.mean_and_std(metric)
            if group.scored:
                run = group.scored[0]
                row |= {"split": run.split, "images": run.test_set[3], "fingerprint": run.test_set[1]}
                row |= {"baseline_class": run.majority}
                row |= {f"baseline_{metric}": run.baseline[metric] for metric in table.metrics}
            rows.append(row)
    return pd.DataFrame(rows)


def _series(group: Group) -> Iterator[plots.Series]:
    """Accuracy by epoch of the runs that count; of all where none does, to show how far they came."""
    frames = [read_metrics(run.folder.metrics_file) for run in group.scored or group.runs]
    depth = group.runs[0].config.get("model.depth")
    panel = "accuracy by epoch" if depth is None else f"depth={depth}"
    label = " ".join(f"{name}={value}" for name, value in group.shown.items() if f"{name}={value}" != panel)
    for split in plots.STYLES:
        column = f"{split}/accuracy"
        lines = [frame[column].dropna() for frame in frames if column in frame]
        if any(map(len, lines)):
            aligned = 100 * pd.concat(lines, axis=1).sort_index()
            yield plots.Series(panel, label or "all runs", split, aligned.index.to_numpy(), aligned.to_numpy().T)


def _pictures(table: Table, folder: Path, suffix: str) -> dict[str, list[str]]:
    """Save the table's pictures, and return them for the page: base64, by kind."""
    shown: dict[str, list[str]] = {"curves": [], "matrices": []}
    if series := [line for group in table.groups for line in _series(group)]:
        baseline = _val_baseline(table)
        wide, narrow = (_pixels(plots.curves(series, "accuracy, %", baseline, columns)) for columns in (2, 1))
        shown["curves"] = [_save(wide, folder / f"curves{suffix}.png"), _base64(narrow)]
    if groups := [group for group in table.groups if group.scored]:
        matrices = [(_matrix_title(group), np.sum([run.counts for run in group.scored], axis=0)) for group in groups]
        columns = min(2, len(matrices))
        pixels = _pixels(plots.confusion_matrices(matrices, table.scored[0].class_names, columns))
        _save(pixels, folder / f"confusion_matrices{suffix}.png")
        bands = np.array_split(pixels, math.ceil(len(matrices) / columns))
        tiles = [tile for band in bands for tile in np.array_split(band, columns, axis=1)]
        # one by one, they stand side by side on a desk and one below the other on a phone
        shown["matrices"] = [_base64(tile) for tile in tiles[: len(matrices)]]
    return shown


def _matrix_title(group: Group) -> str:
    return group.label + (f" ({len(group.scored)} runs)" if len(group.scored) > 1 else "")


def _val_baseline(table: Table) -> float | None:
    """The training majority's share of the validation images, in %."""
    for run in table.scored:
        counts = (run.status.get("class_counts") or {}).get("val")
        if counts and sum(counts):
            return 100 * counts[run.class_names.index(run.majority)] / sum(counts)
    return None


def _pixels(figure: Figure) -> np.ndarray:
    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _base64(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _save(pixels: np.ndarray, file: Path) -> str:
    text = _base64(pixels)
    file.write_bytes(base64.b64decode(text))
    return text


def page(runs: Sequence[Run], tables: Sequence[Table], findings: Sequence[Finding], out: Path) -> str:
    """The report as one self-contained HTML page; saves its pictures below `out` on the way."""
    folder = out / "report_figures"
    folder.mkdir(exist_ok=True)
    parts = []
    for number, table in enumerate(tables, start=1):
        titles = [METRICS[metric][0] for metric in table.metrics]
        pictures = _pictures(table, folder, f"_{number}" if len(tables) > 1 else "")
        parts.append({"title": table.title, "titles": titles, "rows": rows_of(table), **pictures})
    shown = [metric for metric in METRICS if any(metric in table.metrics for table in tables)]
    listing = []
    for run in runs:
        cells = [_cell(metric, run.scores.get(metric, math.nan), math.nan) for metric in shown]
        listing.append({"run": run, "place": _place(run, out), "cells": cells})
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    titles = [METRICS[metric][0] for metric in shown]
    template = environment.get_template("report.html.j2")
    return template.render(tables=parts, findings=findings, runs=listing, titles=titles)


def report(folders: Sequence[str], out: Path) -> str:
    """Write the report on all runs at or below `folders` to `out`, and return what the terminal shows.

    Raises:
        UserError: a folder does not exist or holds no run, or `out` cannot be written.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    tables = tables_of(runs)
    findings = findings_of(runs, tables, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.html", page(runs, tables, findings, out))
        write_atomically(out / "summary.csv", summary(tables).to_csv(index=False))
        write_atomically(out / "summary.md", markdown(tables, findings))
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}); choose another folder") from error
    lines = [f"{kind}: {text}" for kind, text in findings]
    lines += [f"\n{text_table(table)}" for table in tables]
    files = [out / name for name in ("report.html", "summary.csv", "summary.md")]
    return "\n".join([*lines, "", *map(str, [*files, *sorted((out / "report_figures").glob("*.png"))])])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    folders = [argument for argument in given if not argument.startswith("out=")]
    if not folders or {"-h", "--help"} & set(folders):
        print(USAGE, file=sys.stdout if folders else sys.stderr)
        return 0 if folders else 2
    outs = [argument.removeprefix("out=") for argument in given if argument.startswith("out=")]
    try:
        print(report(folders, Path(outs[-1] if outs else folders[0])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
