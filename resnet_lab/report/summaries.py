"""The leaderboard without pictures: for a terminal, for a page of documentation, and as unrounded numbers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import pandas as pd

from resnet_lab.rendering import Finding
from resnet_lab.report.groups import Group, Table
from resnet_lab.report.leaderboard import Row, interval_of, interval_text, rows_of
from resnet_lab.scores import ABSENT, SCORES

MARKS = {
    "best": "best",
    "tied": "tied with the best",
    "behind": "behind the best",
    "untested": "not tested against the best",
}


def titles_of(metrics: Sequence[str]) -> list[str]:
    """The headings of columns."""
    return [SCORES[metric].title for metric in metrics]


def headline(table: Table) -> str:
    """What the leaderboard comes to, in a sentence or two; empty where there is no result."""
    every = rows_of(table)
    rows = [row for row in every if row.kind == "group" and row.n != "0"]
    if not rows:
        return ""
    shown, best = SCORES[table.metric], rows[0]
    most = "lowest" if shown.falls else "highest"
    limits = interval_text(table.metric, best.interval)
    percent = " %" if shown.title.endswith(" %") else ""
    value = f"{shown.text(best.value)}{percent}" + (f" (95 %: {limits})" if limits != ABSENT else "")
    baseline = next(row for row in every if row.kind == "baseline")
    against = f"The majority baseline has {shown.text(baseline.value)}{percent}."
    if len(rows) == 1:
        return f"{best.label}: {table.title_of_metric} {value}. {against}"
    marks = [row.mark for row in rows]
    if "untested" in marks:
        reason = table.estimates[table.metric].withheld
        text = f"Of {len(rows)} groups {best.label} has the {most} {table.title_of_metric}: {value}. "
        return f"{text}No difference between groups is tested, since {reason}. {against}"
    if "best" not in marks:
        return f"All {len(rows)} groups have {table.title_of_metric} {value}. {against}"
    tied, behind, others = marks.count("tied"), marks.count("behind"), len(rows) - 1
    if others == 1:
        others_are = f"the other one {'cannot be told from it' if tied else 'is behind it'}"
    elif tied == others:
        others_are = "none of the others can be told from it"
    else:
        others_are = f"{tied} of the other {others} cannot be told from it" if tied else "all others are behind it"
    text = f"Of {len(rows)} groups {best.label} has the {most} {table.title_of_metric}: {value}; {others_are}"
    return text + (f", {behind} {'is' if behind == 1 else 'are'} behind. " if tied and behind else ". ") + against


def text_table(table: Table, width: int = 110) -> str:
    """The table for a terminal; labels wrap, so that a line has at most `width` characters."""
    titles = titles_of(table.metrics)
    room = width - 3 - 16 * len(titles)
    lines = [table.title, f"{'group':<{room}}{'n':>3}" + "".join(f"{title:>16}" for title in titles)]
    for row in rows_of(table):
        if row.kind != "reference":  # their sources want more room than a terminal has
            first, *more = wrap(_with_remarks(table, row), room - 1)
            lines += [f"{first:<{room}}{row.n:>3}" + "".join(f"{cell:>16}" for cell in row.cells)]
            lines += [f"  {line}" for line in more]
    return "\n".join(lines)


def _with_remarks(table: Table, row: Row) -> str:
    limits = interval_text(table.metric, row.interval)
    interval = [f"{table.title_of_metric} {limits}"] * any(letter.isdigit() for letter in limits)
    remarks = ", ".join(filter(None, [MARKS.get(row.mark, ""), *interval, row.remark]))
    return row.label + (f" ({remarks})" if remarks else "")


def markdown(tables: Sequence[Table], findings: Sequence[Finding]) -> str:
    """The findings and the tables for a page of the documentation."""
    lines = [f"- **{_escaped(finding.kind)}**: {_escaped(finding.text)}" for finding in findings]
    blocks = ["\n".join(lines)] if findings else []
    for table in tables:
        blocks += [f"**{_escaped(table.title)}**", _markdown_table(table)]
    note = (
        "Mean ± standard deviation over n runs that differ in their seed; 95 % intervals over patients and seeds. "
        "Tied: a difference to the best is not shown by these runs (paired, corrected for many comparisons)."
    )
    return "\n\n".join([*blocks, note]) + "\n"


def _markdown_table(table: Table) -> str:
    titles = ["group", "n", *titles_of(table.metrics), f"{table.title_of_metric}, 95 %", "to the best"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows_of(table):
        label = _escaped(row.label + (f" ({row.remark})" if row.remark else ""))
        limits = interval_text(table.metric, row.interval) if row.kind == "group" else ""
        against = row.shortfall if row.mark in ("behind", "untested") else row.mark
        lines.append("| " + " | ".join([label, row.n, *row.cells, limits, against]) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def summary(tables: Sequence[Table], ranked: bool = False) -> pd.DataFrame:
    """One row per group with unrounded numbers: axes, counts, mean, std and interval of each metric, baseline.

    `n_failed` counts the runs without a result, whatever the reason.

    Args:
        tables: each of one test set.
        ranked: whether the best group of a table comes first; otherwise their order is that of the axes.
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
    row |= {"n_collapsed": len(group.collapsed), "mark": mark, "ranked_by": table.metric}
    for metric in table.metrics:
        row[f"{metric}_mean"], row[f"{metric}_std"] = group.mean_and_std(metric)
        row[f"{metric}_low"], row[f"{metric}_high"] = interval_of(table, group, metric)
    for run in group.scored[:1]:
        row |= {"split": run.split, "images": run.test_set[3], "fingerprint": run.test_set[1]}
        row |= {"baseline_class": run.class_names[run.majority]}
        row |= {f"baseline_{metric}": run.baseline[metric] for metric in table.metrics}
    return row
