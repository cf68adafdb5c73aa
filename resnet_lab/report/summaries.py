"""The leaderboard as text for the terminal, as Markdown, and as a table of unrounded numbers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import pandas as pd

from resnet_lab.rendering import Finding
from resnet_lab.report.groups import Group, Table
from resnet_lab.report.leaderboard import CONSTANT, Row, interval_of, interval_text, rows_of
from resnet_lab.scores import ABSENT, SCORES

SHORT = {"balanced acc. %": "bal. acc. %"}  # for the narrow columns of the terminal
SHOWN_ROWS = 20  # groups per table; the page shows further ones on demand
MARKS = {
    "best": "best",
    "tied": "tied with the best",
    "behind": "behind the best",
    "untested": "not tested against the best",
}


def titles_of(metrics: Sequence[str]) -> list[str]:
    """Return the headings of columns."""
    return [SCORES[metric].title for metric in metrics]


def headline(table: Table) -> str:
    """Return a summary of the leaderboard in a few sentences; empty without a result."""
    every = rows_of(table)
    rows = [row for row in every if row.kind == "group" and row.n != "0"]
    if not rows:
        return ""
    shown, best = SCORES[table.metric], rows[0]
    most = "lowest" if shown.falls else "highest"
    limits = interval_text(table.metric, best.interval)
    percent = " %" if shown.title.endswith(" %") else ""
    value = f"{shown.text(best.value)}{percent}" + (f" (95 %: {limits})" if limits not in (ABSENT, CONSTANT) else "")
    baseline = next(row for row in every if row.kind == "baseline")
    always = baseline.label.partition(": ")[2]
    first = next(group for group in table.ranked if group.scored)
    doubt = f"{first.label} leaks, so its score may be too high. " if first.leaking else ""
    against = f"{doubt}{always[:1].upper()}{always[1:]} would score {shown.text(baseline.value)}{percent}."
    if len(rows) == 1:
        return f"{best.label}: {table.title_of_metric} {value}. {against}"
    marks = [row.mark for row in rows]
    if "untested" in marks:
        reason = table.estimates[table.metric].withheld
        text = f"Of {len(rows)} groups, {best.label} has the {most} {table.title_of_metric}: {value}. "
        return f"{text}Differences between groups are not tested, since {reason}. {against}"
    if "best" not in marks:
        which = "Both" if len(rows) == 2 else f"All {len(rows)}"
        return f"{which} groups have the same {table.title_of_metric}: {value}. {against}"
    tied, behind, others = marks.count("tied"), marks.count("behind"), len(rows) - 1
    if others == 1:
        others_are = f"The other one {'may be as good' if tied else 'is behind'}."
    elif tied == others:
        others_are = "Each of the others may be as good."
    elif not tied:
        others_are = "All others are behind."
    else:
        others_are = f"{tied} of the other {others} may be as good; {behind} {'is' if behind == 1 else 'are'} behind."
    text = f"Of {len(rows)} groups, {best.label} has the {most} {table.title_of_metric}: {value}. {others_are}"
    return f"{text} {against}"


def text_table(table: Table, width: int = 80) -> str:
    """Return the best groups and the baseline for a terminal, in lines of at most `width` characters.

    A label that is too long for its column has its own line above the numbers.
    """
    rows = [row for row in rows_of(table) if row.kind != "reference"]  # too long for a terminal
    shown = [row for place, row in enumerate(rows) if row.kind != "group" or place < SHOWN_ROWS]
    titles = _leading(table, [SHORT.get(title, title) for title in titles_of(table.metrics)])
    shown = [row._replace(cells=_leading(table, row.cells)) for row in shown]
    widths = [max(map(len, column)) + 2 for column in zip(titles, *(row.cells for row in shown), strict=True)]
    room = max(width - 3 - sum(widths), 8)
    lines = [*wrap(table.title, width), _line("group", room, "n", titles, widths)]
    for row in shown:
        label = _with_remarks(table, row)
        lines += [] if len(label) < room else _broken(label, width)
        lines.append(_line(label if len(label) < room else "", room, row.n, row.cells, widths))
    if hidden := len(rows) - len(shown):
        lines.append(f"and {hidden} more groups: summary.csv has them all")
    return "\n".join(lines)


def _leading(table: Table, cells: Sequence[str]) -> list[str]:
    """Return one cell per metric, first that of the metric that ranks."""
    place = table.metrics.index(table.metric)
    return [cells[place], *cells[:place], *cells[place + 1 :]]


def _broken(label: str, width: int) -> list[str]:
    """Return the lines of a label, broken between its remarks (`1 collapsed`) rather than within them."""
    group, bracket, remarks = label.partition(" (")
    whole = group + bracket + remarks.replace(" ", "\xa0").replace(",\xa0", ", ")
    return [line.replace("\xa0", " ") for line in wrap(whole, width, subsequent_indent="  ")]


def _line(label: str, room: int, n: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = "".join(f"{cell:>{space}}" for cell, space in zip(cells, widths, strict=True))
    return f"{label:<{room}}{n:>3}{numbers}"


def _with_remarks(table: Table, row: Row) -> str:
    limits = interval_text(table.metric, row.interval)
    interval = [f"{table.title_of_metric} {limits}"] if limits not in (ABSENT, CONSTANT) else []
    remarks = ", ".join(filter(None, [MARKS.get(row.mark, ""), *interval, row.remark]))
    return row.label + (f" ({remarks})" if remarks else "")


def markdown(tables: Sequence[Table], findings: Sequence[Finding]) -> str:
    """Return the findings and the tables as Markdown."""
    lines = [f"- **{_escaped(finding.kind)}**: {_escaped(str(finding))}" for finding in findings]
    blocks = ["\n".join(lines)] if findings else []
    for table in tables:
        blocks += [f"**{_escaped(table.title)}**", _markdown_table(table)]
    note = (
        "Mean ± standard deviation over n runs with different seeds; 95 % intervals over patients and seeds. "
        "Tied: these runs cannot show a difference from the best (paired, corrected for many comparisons). "
        "Behind: they show that the group is worse."
    )
    return "\n\n".join([*blocks, note]) + "\n"


def _markdown_table(table: Table) -> str:
    titles = ["group", "n", *_leading(table, titles_of(table.metrics)), f"{table.title_of_metric}, 95 %", "vs. best"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows_of(table):
        label = _escaped(row.label + (f" ({row.remark})" if row.remark else ""))
        limits = interval_text(table.metric, row.interval) if row.kind == "group" else ""
        against = {"behind": f"behind, {row.shortfall}", "untested": row.shortfall}.get(row.mark, row.mark)
        lines.append("| " + " | ".join([label, row.n, *_leading(table, row.cells), limits, against]) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def summary(tables: Sequence[Table], ranked: bool = False) -> pd.DataFrame:
    """Return one row per group with unrounded numbers: axes, counts, mean, std and interval of each metric, baseline.

    `n_failed` counts all runs without a result.

    Args:
        tables: one table per test set.
        ranked: whether the best group of a table comes first; otherwise the axes give the order.
    """
    rows = []
    for table in tables:
        marks = {id(group): row.mark for group, row in zip(table.ranked, rows_of(table), strict=False)}
        groups = table.ranked if ranked else table.groups
        rows += [_summary_row(table, group, marks[id(group)]) for group in groups]
    return pd.DataFrame(rows)


def _summary_row(table: Table, group: Group, mark: str) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group.label}
    row |= {axis: "none" if value is None else value for axis, value in group.values.items()}
    row |= {"n": len(group.scored), "n_failed": len(group.runs) - len(group.scored)}
    row |= {"n_collapsed": len(group.collapsed), "n_leaking": len(group.leaking)}
    row |= {"mark": mark, "ranked_by": table.metric}
    for metric in table.metrics:
        row[f"{metric}_mean"], row[f"{metric}_std"] = group.mean_and_std(metric)
        row[f"{metric}_low"], row[f"{metric}_high"] = interval_of(table, group, metric)
    for run in group.scored[:1]:
        row |= {"split": run.split, "images": run.test_set[3], "fingerprint": run.test_set[1]}
        row |= {"baseline_class": run.class_names[run.majority]}
        row |= {f"baseline_{metric}": round(run.baseline[metric], 12) + 0.0 for metric in table.metrics}  # no -2e-16
    return row
