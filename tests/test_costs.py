"""The costs of runs, from the status files, in readable units."""

import pytest
from fake_runs import write_run

from resnet_lab.report.costs import cost_cells, costs_of, started_differently
from resnet_lab.report.figures import picture
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import find_runs


def table_of(folder):
    (table,) = tables_of([read_run(run) for run in find_runs([folder])])
    return table


def test_costs_are_means_over_the_runs_of_a_group(tmp_path):
    for seed, seconds in ((0, 1000), (1, 3000)):
        write_run(tmp_path / str(seed), seed=seed, seconds=seconds)
    (cost,) = costs_of(table_of(tmp_path))
    assert cost.resources["seconds of training"] == 2000
    assert cost.resources["parameters, M"] == pytest.approx(11.179077)
    assert cost_cells(cost) == ["11.18", "0.59", "2,000", "50", "1,500"]
    assert cost.limits[0] < cost.quality < cost.limits[1]


def test_missing_costs_are_left_out_and_costs_that_all_share_are_not_drawn(tmp_path):
    write_run(tmp_path / "a", 18, peak_memory_mb=None)
    write_run(tmp_path / "b", 50, parameters=23_500_000)
    table = table_of(tmp_path)
    assert "peak memory, MB" not in costs_of(table)[0].resources
    labels = [axes.get_xlabel() for axes in picture("cost", table).shown[0].wide.axes if axes.get_visible()]
    assert labels == ["parameters, M"]


def test_jobs_that_started_in_two_ways_are_not_compared_by_what_a_process_uses(tmp_path):
    write_run(tmp_path / "a", 18, started_by="fork", core_seconds=90)
    write_run(tmp_path / "b", 50, started_by="fork", core_seconds=95)
    assert {"core seconds", "peak memory, MB"} <= costs_of(table_of(tmp_path))[0].resources.keys()
    write_run(tmp_path / "c", 34, core_seconds=100)
    assert started_differently(table_of(tmp_path))
    assert not {"core seconds", "peak memory, MB"} & costs_of(table_of(tmp_path))[0].resources.keys()


def test_a_report_without_results_has_no_costs(tmp_path):
    write_run(tmp_path / "run", state="failed", error="boom")
    assert costs_of(table_of(tmp_path)) == []
    assert picture("cost", table_of(tmp_path)) is None
