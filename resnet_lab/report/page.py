"""The report as one self-contained HTML page: the values of its sections for the template."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_hex

from resnet_lab.data.progress import with_progress
from resnet_lab.files import write_atomically
from resnet_lab.processes import Claims, in_background
from resnet_lab.rendering import FEW_NAMES, Finding, base64_of, png, render
from resnet_lab.report import costs, thresholds
from resnet_lab.report.by_class import Share, class_rows, confusions_of, shares_by_distance
from resnet_lab.report.calibration import COLDEST, HOTTEST
from resnet_lab.report.combined import RANKS_DECISIONS, combined_rows, decision_rows, fold_rows
from resnet_lab.report.drawing import Picture, best_of, colors_of, spoken
from resnet_lab.report.effects import confounded_of, effects_of
from resnet_lab.report.figures import CURVES, PICTURES, picture
from resnet_lab.report.glossary import glossary_of, meaning_of
from resnet_lab.report.groups import Group, Table, places_of, sweeps_of
from resnet_lab.report.leaderboard import interval_text, referable_rows_of, rows_of
from resnet_lab.report.recipe import recipe_of, subject_of
from resnet_lab.report.runs import Run
from resnet_lab.report.sharing import unshared_of
from resnet_lab.report.summaries import SHOWN_ROWS, headline, titles_of
from resnet_lab.scores import ABSENT, MINUS, SCORES
from resnet_lab.statistics import DECISIONS, MANY_CLASSES

FIGURES = ("accuracy", "confusion_matrices")  # if no configuration names any
OF_SECTIONS = ("confusion_matrices", "roc", "precision_recall", "reliability", "cost")  # in separate sections
PAGE_WIDTH, NAMES_WIDTH, CELL_WIDTH, LETTER_WIDTH = 1110, 86, 36, 6.5  # pixels of a confusion matrix
NO_LIMITS = (math.nan, math.nan, math.nan)
MANY_SWEEPS = 8  # columns in the table of differences; of more, single runs share that of their parent folder
FAR = 3  # times the range of all intervals; a baseline further below is not drawn
Pictures = dict[str, dict[str, Any]]  # by name: what the template shows of each


def page(
    runs: Sequence[Run], tables: Sequence[Table], findings: Sequence[Finding], drawn: Callable[[], list[Pictures]]
) -> str:
    """Return the page.

    Args:
        runs: all runs.
        tables: tables of comparable runs.
        findings: faults and limits.
        drawn: returns the pictures (see `pictures_of`); called last, as another process may draw meanwhile.
    """
    parts = [{"id": f"t{number}", **_section(table)} for number, table in enumerate(tables, start=1)]
    metrics = [metric for metric in SCORES if any(metric in table.metrics for table in tables)]
    sweeps = sweeps_of(runs)
    if len(sweeps) > MANY_SWEEPS:
        sweeps = sweeps_of(runs, apart=False)
    unshared = unshared_of(sweeps) if len(sweeps) > 1 else []
    for part, shown in zip(parts, drawn(), strict=True):
        rest = [each for name, each in shown.items() if name not in OF_SECTIONS]
        part |= {"pictures": shown, "rest": rest}
    return render(
        "report/report.html.j2",
        tables=parts,
        recipe=recipe_of(runs, tables),
        subject=subject_of(runs),
        glossary=glossary_of(tables),
        meaning_of=meaning_of,
        temperatures=f"{COLDEST:g} to {HOTTEST:g}",
        shown_rows=SHOWN_ROWS,
        few_names=FEW_NAMES,
        findings=findings,
        runs=_listing(runs, metrics),
        titles=titles_of(metrics),
        sweeps={name: len(members) for name, members in sweeps.items()},
        unshared=unshared,
    )


def _listing(runs: Sequence[Run], metrics: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "run": run,
            "place": place,
            "cells": [SCORES[metric].text(run.scores.get(metric, math.nan)) for metric in metrics],
        }
        for run, place in zip(runs, places_of(runs).values(), strict=True)
    ]


def _section(table: Table) -> dict[str, Any]:
    """Return the values of one table's section."""
    groups = [group for group in table.ranked if group.scored]
    part: dict[str, Any] = {"title": table.title, "titles": titles_of(table.metrics), "metric": table.title_of_metric}
    lead = table.metrics.index(table.metric)
    part |= {"lead": lead, "others": _without(part["titles"], lead)}
    part |= {"scored": bool(groups), "headline": headline(table), "unit": _unit(table)}
    part["colors"] = {label: to_hex(color) for label, color in colors_of(table).items()}
    part["best_of"] = best_of(table)
    part["withheld"] = table.estimates[table.metric].withheld if groups else ""
    part["method"] = method_of(table.metric)
    part |= _board(table)
    if not groups:
        return part
    found = effects_of(table)
    part |= {"effects": list(zip(found, _bars([(e.low, e.value, e.high) for e in found], zero=True), strict=True))}
    part |= {"combined": combined_rows(table), "folds": fold_rows(table)}
    part["combines"] = any(axis.startswith("combine.") for axis in groups[0].values)
    part |= {"decisions": decision_rows(table), "rules": list(DECISIONS), "of_rules": SCORES[RANKS_DECISIONS].label}
    part |= {"confounded": confounded_of(table), "names": table.scored[0].class_names}
    part |= {"matrices": _matrices(table), "difference": _difference(table), "many": _many_classes(table)}
    part["confusions"] = (
        [(group.label, confusions_of(_counts(group), part["names"])) for group in groups] if part["many"] else []
    )
    part["distances"] = [
        (group.label, _cells(shares_by_distance(group.predictions, table.patient))) for group in groups if table.ordered
    ]
    part["classes"] = [
        (group.label, len(group.scored), class_rows(group.predictions, table.patient, part["names"]))
        for group in groups
    ]
    part |= {"areas": referable_rows_of(table), "referable_classes": table.referable_classes}
    part |= {"operating": thresholds.operating_rows(table)}
    part |= {"calibration": thresholds.calibration_rows(table), "few_to_fit": thresholds.few_to_fit(table)}
    part["started_differently"] = costs.started_differently(table)
    part["costs"] = [
        (cost, costs.cost_cells(cost), SCORES[table.metric].text(cost.quality / SCORES[table.metric].factor))
        for cost in costs.costs_of(table)
    ]
    return part


def method_of(metric: str) -> str:
    """Return how the intervals of a metric are made, for the note below the leaderboard; see `Estimates.interval`."""
    score = SCORES[metric]
    if math.isinf(score.upper):
        return "Student's t distribution"
    rescaled = f" on {score.label} rescaled from {score.lower:g}…{score.upper:g} to 0…1".replace("-", MINUS)
    return "Wilson's score method" + rescaled * ((score.lower, score.upper) != (0, 1))


class Bar(NamedTuple):
    """Positions of an interval and its middle on a scale, in percent; NaN if unknown."""

    low: float
    middle: float
    high: float
    mark: float  # the baseline, or no difference


def _bars(rows: Sequence[tuple[float, float, float]], zero: bool = False, mark: float = math.nan) -> list[Bar]:
    """Return bars on one scale for all rows (low, middle, high), with a mark at 0 or another value."""
    mark = 0.0 if zero else mark
    known = [value for value in (*np.ravel(rows), mark) if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    span = (high - low) or 1.0
    return [Bar(*(3 + 94 * (value - low) / span for value in (*row, mark))) for row in rows]


def _unit(table: Table) -> str:
    """Return the word for the resampled units."""
    return "patients" if len(np.unique(table.patient)) < len(table.patient) else "images"


def _board(table: Table) -> dict[str, Any]:
    every = rows_of(table)
    rows = [row for row in every if row.kind != "reference"]
    baseline = next((row.value for row in rows if row.kind == "baseline"), math.nan)
    limits = [(row.interval.low, row.value, row.interval.high) if row.kind == "group" else NO_LIMITS for row in rows]
    known = [value for value in np.ravel(limits) if math.isfinite(value)]
    near = bool(known) and baseline > min(known) - FAR * (max(known) - min(known))  # a far one squeezes the intervals
    bars = _bars(limits, mark=baseline if near else math.nan)
    board = [
        {
            "row": row,
            "bar": bar,
            "interval": interval_text(table.metric, row.interval) if row.kind == "group" else "",
            "others": _without(row.cells, table.metrics.index(table.metric)),
        }
        for row, bar in zip(rows, bars, strict=True)
    ]
    marks = [row.mark for row in rows if row.mark in ("tied", "behind")]
    crossed = "behind" in marks and "tied" in marks[marks.index("behind") :]
    published = [row for row in every if row.kind == "reference"]
    bracketed = any("[" in row.shortfall for row in rows)
    facts = {"bracketed": bracketed, "dotted": near, "crossed": crossed, "marked": bool(marks)}
    return {"rows": board, "published": published, **facts}


def _without(cells: Sequence[str], lead: int) -> list[str]:
    """Return the cells of all metrics but the ranking one."""
    return [cell for place, cell in enumerate(cells) if place != lead]


def _cells(shares: Iterable[tuple[str, Share]]) -> list[dict[str, Any]]:
    return [{"name": name, "share": share} for name, share in shares]


def _matrices(table: Table) -> dict[str, Any]:
    """Return confusion matrices in rows of equal length, in the order of the leaderboard."""
    names = table.scored[0].class_names
    if len(names) > MANY_CLASSES:
        return {}
    groups = [group for group in table.drawn if group.scored]
    columns = columns_of(len(groups), max(1, PAGE_WIDTH // (NAMES_WIDTH + CELL_WIDTH * len(names))))
    cells = [{"label": group.label, "runs": len(group.scored), **_matrix(group)} for group in groups]
    width = (PAGE_WIDTH / columns - NAMES_WIDTH) / len(names)
    upright = LETTER_WIDTH * max(map(len, names)) > width
    return {"columns": columns, "cells": cells, "upright": upright}


def _counts(group: Group) -> np.ndarray:
    values: np.ndarray = np.sum([run.counts for run in group.scored], axis=0)
    return values


def _matrix(group: Group) -> dict[str, Any]:
    counts = _counts(group)
    totals = counts.sum(axis=1, keepdims=True)
    return {
        "counts": counts.tolist(),
        "shares": (counts / np.maximum(totals, 1)).tolist(),
        "totals": totals[:, 0].tolist(),
    }


def columns_of(number: int, room: int) -> int:
    """Return how many of `number` figures stand side by side, at most `room`, so that rows are about equally full."""
    return math.ceil(number / math.ceil(number / room))


def _difference(table: Table) -> dict[str, Any]:
    """Return the values with which the page's script compares any two groups or runs."""
    groups = [group for group in table.ranked if group.scored]
    sides = [{"label": group.label, "counts": _counts(group).tolist()} for group in groups]
    for group in groups:
        if len(group.scored) > 1:
            sides += [
                {"label": f"{group.label}, seed {run.config.get('seed', ABSENT)}", "counts": run.counts.tolist()}
                for run in group.scored
            ]
    if len(sides) < 2:
        return {}
    names = list(table.scored[0].class_names)
    values = [group.mean_and_std(table.metric)[0] for group in groups]
    first, second = (int(np.nanargmax(values)), int(np.nanargmin(values))) if np.ptp(values) > 0 else (0, 1)
    return {"names": names, "sides": sides, "list": len(names) > MANY_CLASSES, "first": first, "second": second}


def pictures_of(
    tables: Sequence[Table], folder: Path, figures: Sequence[str] = (), fork: bool = False
) -> Callable[[], list[Pictures]]:
    """Return a function that returns the pictures of each table, and saves those that are named.

    Args:
        tables: tables of comparable runs.
        folder: of the files; it exists.
        figures: names of pictures; empty: those in the runs' configurations.
        fork: whether another process may begin to draw now; the returned function then draws with it.
    """
    named = [figures or figures_of(table) for table in tables]
    suffixes = [f"_table{number}" if len(tables) > 1 else "" for number in range(1, len(tables) + 1)]

    def draw(*shared: Any) -> list[Pictures]:
        each = zip(tables, named, suffixes, strict=True)
        return [pictures(table, names, folder, suffix, *shared) for table, names, suffix in each]

    tasks = sum(map(len, map(_wanted, named)))
    if not fork or tasks > Claims.MOST:
        return draw
    take = Claims(tasks).take
    work = partial(draw, take)
    there = in_background(work, again=draw)
    if there is work:
        return draw

    def finish() -> list[Pictures]:
        both = zip(draw(take, True), there(), named, strict=True)
        return [_in_order(mine | others, names) for mine, others, names in both]

    return finish


def _wanted(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*names, *OF_SECTIONS]))


def _in_order(shown: Pictures, names: Sequence[str]) -> Pictures:
    return {name: shown[name] for name in _wanted(names) if name in shown}


def pictures(
    table: Table,
    names: Sequence[str],
    folder: Path,
    suffix: str,
    mine: Callable[[], bool] = lambda: True,
    silent: bool = False,
) -> Pictures:
    """Return the table's pictures by name, with figures in base64; pictures in `names` are also saved as files.

    Args:
        table: a table of comparable runs.
        names: pictures that are saved; those of the page's sections come after them.
        folder: of the files; it exists.
        suffix: of their names.
        mine: called once for each picture; False: another process draws it.
        silent: shows no progress, as the other process does.
    """
    shown = {}
    once = functools.cache(png)  # a figure may be a file, too
    wanted, done = _wanted(names), f"{suffix.replace('_table', 'table ')}: drawn" if suffix else "drawn"
    for name in wanted if silent else with_progress(wanted, len(wanted), done, unit="figures", end=False):
        if not mine():
            continue
        as_text = name == "confusion_matrices" and not _many_classes(table)  # the page has them as tables
        drawn = None if as_text and name not in names else picture(name, table)
        if drawn is None:
            continue
        saved = (drawn.files() if drawn.files else [drawing.wide for drawing in drawn.shown]) if name in names else []
        for number, figure in enumerate(saved, start=1):
            place = f"_{number}" if len(saved) > 1 else ""
            write_atomically(folder / f"{name}{place}{suffix}.png", once(figure))
        seen = [] if as_text else drawn.shown
        figures = [[base64_of(once(figure)) for figure in drawing if figure] for drawing in seen]
        texts = {"title": drawn.title, "note": drawn.note, "legend": drawn.legend}
        shown[name] = {"name": name, **texts, "figures": figures, "alts": _alts(table, drawn, len(figures))}
    return shown


def _alts(table: Table, drawn: Picture, figures: int) -> list[str]:
    """Return what each figure of a picture shows, for readers who cannot see it."""
    title = drawn.title
    if drawn.values:
        return [f"{title}: {text}" for text in (drawn.values if figures > 1 else [spoken(drawn.values)])]
    labels = [group.label for group in table.drawn]
    if figures == len(labels):
        return [f"{title}: {label}" for label in labels]
    numbers = [f", {number} of {figures}" for number in range(1, figures + 1)] if figures > 1 else [""]
    return [f"{title}{number}: {'; '.join(labels)}" for number in numbers]


def _many_classes(table: Table) -> bool:
    return bool(table.scored) and len(table.scored[0].class_names) > MANY_CLASSES


def figures_of(table: Table) -> list[str]:
    """Return the names of the pictures in the configurations of a table's runs, each once."""
    runs = [run for group in table.groups for run in group.runs]
    wanted = [run.figures or FIGURES for run in runs]
    return [name for name in dict.fromkeys(name for names in wanted for name in names) if name in (*CURVES, *PICTURES)]
