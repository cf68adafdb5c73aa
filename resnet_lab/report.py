"""`resnet-lab report DIR… [out=DIR]`: write what run folders compare to, as a page, tables and pictures (no torch)."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resnet_lab import plots
from resnet_lab.command_line import run_command
from resnet_lab.comparison import ABSENT, METRICS, Finding, Group, Table, findings_of, places_of, tables_of
from resnet_lab.errors import UserError
from resnet_lab.run_folder import find_runs, write_atomically
from resnet_lab.runs import Run, read_metrics, read_run

USAGE = "usage: resnet-lab report DIR… [out=DIR]   (run folders, or folders of sweeps)"
COLUMNS = {  # metric → title, factor, digits
    "accuracy": ("accuracy %", 100, 2),
    "balanced_accuracy": ("balanced acc. %", 100, 2),
    "qwk": ("QWK", 1, 3),
    "auroc": ("AUROC", 1, 3),
}


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
    for run in {run.majority: run for run in table.scored}.values():
        cells = [_cell(metric, run.baseline[metric]) for metric in table.metrics]
        rows.append(Row(f"majority baseline: always “{run.class_names[run.majority]}”", "", "", cells))
    return rows


def _cell(metric: str, mean: float, std: float = math.nan) -> str:
    _, factor, digits = COLUMNS[metric]
    if math.isnan(mean):
        return ABSENT
    shown = round(factor * mean, digits) + 0.0  # no -0.000
    return f"{shown:.{digits}f}" + ("" if math.isnan(std) else f" ± {factor * std:.{digits}f}")


def _titles(metrics: Sequence[str]) -> list[str]:
    return [COLUMNS[metric][0] for metric in metrics]


def text_table(table: Table, width: int = 110) -> str:
    """The table for a terminal; labels wrap, so that a line has at most `width` characters."""
    titles = _titles(table.metrics)
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
        titles = _titles(table.metrics)
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
    return pd.DataFrame([_summary_row(group, table.metrics) for table in tables for group in table.groups])


def _summary_row(group: Group, metrics: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group.label}
    row |= {axis: "none" if value is None else value for axis, value in group.values.items()}
    row |= {"n": len(group.scored), "n_failed": len(group.runs) - len(group.scored)}
    row |= {"n_collapsed": len(group.collapsed)}
    for metric in metrics:
        row[f"{metric}_mean"], row[f"{metric}_std"] = group.mean_and_std(metric)
    for run in group.scored[:1]:
        row |= {"split": run.split, "images": run.test_set[3], "fingerprint": run.test_set[1]}
        row |= {"baseline_class": run.class_names[run.majority]}
        row |= {f"baseline_{metric}": run.baseline[metric] for metric in metrics}
    return row


def series_of(table: Table) -> Iterator[plots.Series]:
    """Accuracy in % by epoch, one panel per depth where more than the depth differs.

    Of the runs that count; of all where none does, to show how far they came.
    """
    panels = any(axis != "model.depth" for group in table.groups for axis in group.values)
    for group in table.groups:
        shown = dict(group.shown)
        panel = shown.pop("model.depth", "") if panels else ""
        label = " ".join(shown.values()) or "all runs"
        frames = [read_metrics(run.folder.metrics_file) for run in group.scored or group.runs]
        for split in plots.STYLES:
            lines = [frame[f"{split}/accuracy"].dropna() for frame in frames if f"{split}/accuracy" in frame]
            if any(map(len, lines)):
                aligned = 100 * pd.concat(lines, axis=1).sort_index()
                yield plots.Series(panel, label, split, aligned.index.to_numpy(), aligned.to_numpy().T)


def baseline_of(table: Table, splits: set[str]) -> tuple[str, float] | None:
    """Which of `splits` is judged (test before val), and what the training majority scores on its images, in %."""
    for split in ("test", "val"):
        for run in table.scored:
            total = sum(counts := run.class_counts(split))
            if split in splits and total:
                return split, 100 * counts[run.majority] / total
    return None


def _pictures(table: Table, folder: Path, suffix: str) -> dict[str, list[str]]:
    """Save the table's pictures, and return them for the page: base64, by kind."""
    shown: dict[str, list[str]] = {"curves": [], "matrices": []}
    if series := list(series_of(table)):
        baseline = baseline_of(table, {line.split for line in series})
        # beside each other on a desk, one below the other on a phone
        wide, narrow = (png(plots.curves(series, "accuracy, %", baseline, columns)) for columns in (2, 1))
        (folder / f"curves{suffix}.png").write_bytes(wide)
        shown["curves"] = [base64_of(wide), base64_of(narrow)]
    if groups := [group for group in table.groups if group.scored]:
        names = table.scored[0].class_names
        matrices = [(_matrix_title(group), np.sum([run.counts for run in group.scored], axis=0)) for group in groups]
        (folder / f"confusion_matrices{suffix}.png").write_bytes(png(plots.confusion_matrices(matrices, names)))
        shown["matrices"] = [base64_of(png(plots.confusion_matrix(counts, names, title))) for title, counts in matrices]
    return shown


def _matrix_title(group: Group) -> str:
    return group.label + (f" ({len(group.scored)}\N{NO-BREAK SPACE}runs)" if len(group.scored) > 1 else "")


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    return file.getvalue()


def base64_of(content: bytes) -> str:
    """Bytes as the text of a data: address."""
    return base64.b64encode(content).decode()


def page(runs: Sequence[Run], tables: Sequence[Table], findings: Sequence[Finding], out: Path) -> str:
    """The report as one self-contained HTML page; saves its pictures below `out` on the way."""
    folder = out / "report_figures"
    folder.mkdir(exist_ok=True)
    for stale in [*folder.glob("curves*.png"), *folder.glob("confusion_matrices*.png")]:
        stale.unlink()
    parts = []
    for number, table in enumerate(tables, start=1):
        pictures = _pictures(table, folder, f"_{number}" if len(tables) > 1 else "")
        parts.append({"title": table.title, "titles": _titles(table.metrics), "rows": rows_of(table), **pictures})
    metrics = [metric for metric in METRICS if any(metric in table.metrics for table in tables)]
    listing = [
        {
            "run": run,
            "place": place,
            "link": os.path.relpath(run.folder.path, out.resolve()),
            "cells": [_cell(metric, run.scores.get(metric, math.nan)) for metric in metrics],
        }
        for run, place in zip(runs, places_of(runs).values(), strict=True)
    ]
    return render("report.html.j2", tables=parts, findings=findings, runs=listing, titles=_titles(metrics))


def render(template: str, **values: Any) -> str:
    """A template of this package as HTML, with every value escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)


def report(folders: Sequence[str], out: Path) -> str:
    """Write the report on all runs at or below `folders` to `out`, and return what the terminal shows.

    Raises:
        UserError: a folder does not exist or holds no run, or `out` cannot be written.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    tables = tables_of(runs)
    findings = findings_of(runs, tables)
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


def command(arguments: Sequence[str]) -> None:
    """Report on the folders; `out` is the first of them where it is not given."""
    folders = [argument for argument in arguments if not argument.startswith("out=")]
    if {"-h", "--help"} & set(folders):
        print(USAGE)
        return
    if not folders:
        raise UserError(USAGE)
    outs = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    print(report(folders, Path(outs[-1] if outs else folders[0])))


if __name__ == "__main__":
    sys.exit(run_command(command))
