"""`resnet-lab report DIR… [out=DIR] [figures=NAME,…]`: what run folders compare to, as a page and tables."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from resnet_lab.command_line import run_command
from resnet_lab.comparison import ABSENT, METRICS, Finding, Group, Table, findings_of, places_of, tables_of
from resnet_lab.errors import UserError
from resnet_lab.figures import CURVES, PICTURES, picture
from resnet_lab.run_folder import find_runs, write_atomically
from resnet_lab.runs import Run, read_run

USAGE = "usage: resnet-lab report DIR… [out=DIR] [figures=NAME,…]   (run folders, or folders of sweeps)"
FIGURES = ("accuracy", "confusion_matrices")  # of runs whose configuration names none
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


def _pictures(table: Table, names: Sequence[str], folder: Path, suffix: str) -> list[dict[str, Any]]:
    """Save the table's pictures, and return them for the page, with each figure in base64."""
    shown = []
    for name in names:
        drawn = picture(name, table)
        if drawn is None:
            continue
        files = drawn.files or [drawing.wide for drawing in drawn.shown]
        for number, figure in enumerate(files, start=1):
            place = f"_{number}" if len(files) > 1 else ""
            (folder / f"{name}{place}{suffix}.png").write_bytes(png(figure))
        figures = [[base64_of(png(figure)) for figure in drawing if figure] for drawing in drawn.shown]
        shown.append({"name": name, "title": drawn.title, "note": drawn.note, "figures": figures})
    return shown


def figures_of(table: Table) -> list[str]:
    """The names of the pictures that the runs of a table ask for, each once."""
    runs = [run for group in table.groups for run in group.runs]
    return list(dict.fromkeys(name for run in runs for name in run.config.get("figures") or FIGURES))


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    return file.getvalue()


def base64_of(content: bytes) -> str:
    """Bytes as the text of a data: address."""
    return base64.b64encode(content).decode()


def page(
    runs: Sequence[Run], tables: Sequence[Table], findings: Sequence[Finding], out: Path, figures: Sequence[str] = ()
) -> str:
    """The report as one self-contained HTML page; saves its pictures below `out` on the way."""
    folder = out / "report_figures"
    folder.mkdir(exist_ok=True)
    for name in (*CURVES, *PICTURES):
        for stale in folder.glob(f"{name}*.png"):
            stale.unlink(missing_ok=True)
    parts = []
    for number, table in enumerate(tables, start=1):
        suffix = f"_table{number}" if len(tables) > 1 else ""
        pictures = _pictures(table, figures or figures_of(table), folder, suffix)
        part = {"title": table.title, "titles": _titles(table.metrics), "rows": rows_of(table), "pictures": pictures}
        parts.append(part)
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


def report(folders: Sequence[str], out: Path, figures: Sequence[str] = ()) -> str:
    """Write the report on all runs at or below `folders` to `out`, and return what the terminal shows.

    Args:
        folders: run folders, or folders that hold some.
        out: is made if need be.
        figures: names of pictures; those that the runs ask for where empty.

    Raises:
        UserError: a folder does not exist or holds no run, or `out` cannot be written.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    tables = tables_of(runs)
    findings = findings_of(runs, tables)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.html", page(runs, tables, findings, out, figures))
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
    folders = [argument for argument in arguments if not argument.startswith(("out=", "figures="))]
    if {"-h", "--help"} & set(folders):
        print(USAGE)
        return
    if not folders:
        raise UserError(USAGE)
    options = dict(argument.split("=", 1) for argument in arguments if argument not in folders)
    figures = [name for name in options.get("figures", "").split(",") if name]
    print(report(folders, Path(options.get("out", folders[0])), figures))


if __name__ == "__main__":
    sys.exit(run_command(command))
