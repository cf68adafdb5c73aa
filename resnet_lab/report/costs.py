"""Quality and cost of each group, from the resources that the jobs recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from resnet_lab.report.charts import Cost
from resnet_lab.report.groups import Table
from resnet_lab.report.leaderboard import interval_of
from resnet_lab.report.runs import Run
from resnet_lab.scores import ABSENT, SCORES


class Resource(NamedTuple):
    """One resource of a run."""

    title: str
    factor: float  # from status.json to the unit of the title
    text: Callable[[float], str]


RESOURCES = {  # by key of status.json
    "parameters": Resource("parameters, M", 1e-6, "{:.2f}".format),
    "multiply_adds": Resource("multiply-adds per image, G", 1e-9, "{:.2f}".format),
    "seconds": Resource("seconds of training", 1, "{:,.0f}".format),
    "core_seconds": Resource("core seconds", 1, "{:,.0f}".format),
    "images_per_second": Resource("images per second", 1, "{:,.0f}".format),
    "peak_memory_mb": Resource("peak memory, MB", 1, "{:,.0f}".format),
}


# a forked job shares the imports of its supervisor: it saves their seconds, and counts their memory
OF_PROCESSES = ("core_seconds", "peak_memory_mb")


def started_differently(table: Table) -> bool:
    """Return whether some jobs with a result were forked and others were new processes (`started_by`)."""
    trained = [run for group in table.ranked for run in group.scored if not run.sources]
    return len({run.status.get("started_by", "process") for run in trained}) > 1


def costs_of(table: Table) -> list[Cost]:
    """Return the means of each group with a result, best first.

    Only resources that all groups have, and that mean the same in all of them (see `started_differently`).
    """
    left_out = OF_PROCESSES if started_differently(table) else ()
    groups = [group for group in table.ranked if group.scored]
    shown = SCORES[table.metric]
    means = [
        {
            key: float(np.mean([_resource(run, key) for run in group.scored])) * each.factor
            for key, each in RESOURCES.items()
        }
        for group in groups
    ]
    known = [key for key in RESOURCES if key not in left_out and all(mean[key] > 0 for mean in means)]
    return [
        Cost(
            group.label,
            shown.factor * group.mean_and_std(table.metric)[0],
            (shown.factor * (limits := interval_of(table, group, table.metric)).low, shown.factor * limits.high),
            {RESOURCES[key].title: mean[key] for key in known},
        )
        for group, mean in zip(groups, means, strict=True)
    ]


def cost_cells(cost: Cost) -> list[str]:
    """Return the resources as text."""
    texts = {each.title: each.text for each in RESOURCES.values()}
    return [texts[title](value) if math.isfinite(value) else ABSENT for title, value in cost.resources.items()]


def _resource(run: Run, key: str) -> float:
    value = run.multiply_adds if key == "multiply_adds" else run.status.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
