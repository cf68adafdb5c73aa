"""Rows of the leaderboard: order, intervals, ties, baseline and published numbers."""

import math

import numpy as np
import pytest
from fake_runs import change_status, write_run, write_sweep
from sklearn.metrics import roc_auc_score

from resnet_lab.report.groups import tables_of
from resnet_lab.report.intervals import Interval
from resnet_lab.report.leaderboard import interval_of, interval_text, limits_text, referable_rows_of, rows_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.summaries import headline, markdown, text_table
from resnet_lab.run_folder import find_runs


def table_of(folder, metric=""):
    (table,) = tables_of([read_run(run) for run in find_runs([folder])], metric)
    return table


def test_the_best_group_comes_first_and_indistinguishable_ones_are_tied(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"good-{seed}", 50, seed=seed, skill=3.0)
        write_run(tmp_path / f"same-{seed}", 34, seed=seed, skill=3.0)
        write_run(tmp_path / f"bad-{seed}", 18, seed=seed, skill=1.0)
    write_run(tmp_path / "lost", 101, state="failed", error="boom")
    table = table_of(tmp_path)
    rows = [row for row in rows_of(table) if row.kind == "group"]
    values = [group.mean_and_std("qwk")[0] for group in table.ranked]
    assert values[:3] == sorted(values[:3], reverse=True)
    assert [row.mark for row in rows] == ["best", "tied", "behind", ""]
    assert [row.label for row in rows[2:]] == ["depth=18", "depth=101"]
    assert math.isnan(rows[3].interval.low)
    for group, row in zip(table.ranked[:3], rows, strict=False):
        assert row.interval == interval_of(table, group, "qwk")
        assert row.interval.low < row.value < row.interval.high


def test_the_chosen_metric_ranks(tmp_path):
    write_sweep(tmp_path, seeds=(0, 1))
    for metric in ("qwk", "accuracy", "balanced_accuracy", "auroc", "referable_auroc"):
        table = table_of(tmp_path, metric)
        means = [group.mean_and_std(metric)[0] for group in table.ranked]
        assert means == sorted(means, reverse=True)
        assert rows_of(table)[0].value == means[0]


def test_referable_grades_have_their_own_rows_and_published_numbers(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a-{seed}", 50, seed=seed, config={"data.name": "eyepacs"})
    table = table_of(tmp_path)
    rows = referable_rows_of(table)
    assert [row.kind for row in rows] == ["group", "reference", "reference"]
    predictions = [run.predictions.labeled for run in table.scored]
    areas = [roc_auc_score(each.targets >= 2, each.probabilities[:, 2:].sum(axis=1)) for each in predictions]
    interval = interval_of(table, table.groups[0], "referable_auroc")
    assert rows[0].cells == [
        f"{np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f}",
        f"{interval.low:.3f} to {interval.high:.3f}",
    ]
    assert interval.low < np.mean(areas) < interval.high
    assert {row.cells[0] for row in rows[1:]} == {"0.990", "0.951"}
    assert not {row.label for row in rows[1:]} & {row.label for row in rows_of(table)}


def test_null_and_the_word_none_are_one_group(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, config={"model.pretrained": "none"})
    write_run(tmp_path / "c", 50, seed=0, skill=1.0)
    rows = [row for row in rows_of(table_of(tmp_path)) if row.kind == "group"]
    assert {row.label: row.n for row in rows} == {"depth=18": "2", "depth=50": "1"}


def test_a_single_group_is_neither_best_nor_tied(tmp_path):
    write_run(tmp_path / "run")
    assert [row.mark for row in rows_of(table_of(tmp_path)) if row.kind == "group"] == [""]


def test_published_numbers_are_below_with_their_protocol(tmp_path):
    write_run(tmp_path / "run", config={"data.name": "eyepacs"})
    rows = rows_of(table_of(tmp_path))
    kinds = [row.kind for row in rows]
    assert kinds == sorted(kinds, key=["group", "baseline", "reference"].index)
    (row,) = [row for row in rows if row.label.startswith("ResNet-50, MSE")]
    assert row.cells == ["0.863", "–", "–", "–"]
    expected = (
        "Different protocol: 42,670 test images, here 400; 35,126 training images, here 4,000 (not stated: selection)"
    )
    assert row.remark == f"Huang et al. 2023, Diagnostics 13:1664. {expected}"


def test_published_numbers_of_a_data_set_that_is_a_guess_say_so(tmp_path):
    run = write_run(tmp_path / "run", images=103, config={"data.name": "retinopathy"})
    change_status(run, class_counts={"train": [80] * 5, "test": [103, 0, 0, 0, 0]})
    remarks = [row.remark for row in rows_of(table_of(tmp_path)) if row.kind == "reference"]
    assert remarks
    assert all("Data set assumed from the number of images: IDRiD." in remark for remark in remarks)


@pytest.mark.parametrize(
    ("metric", "numbers", "text"),
    [
        ("qwk", (-0.1234, -0.2, 0.05), "−0.123 [−0.200, +0.050]"),
        ("accuracy", (0.1, 0.05, 0.15), "+10.00 [+5.00, +15.00]"),
        ("qwk", (-0.0001, math.nan, math.nan), "−0.000"),
        ("qwk", (0.0, 0.0, 0.0), "+0.000 [none: one class predicted]"),
    ],
)
def test_differences_have_signs_and_limits(metric, numbers, text):
    assert limits_text(metric, *numbers) == text


def test_an_unknown_interval_is_a_dash():
    assert interval_text("accuracy", Interval(0.415, 0.5)) == "41.50 to 50.00"
    assert interval_text("accuracy", Interval(math.nan, math.nan)) == "–"


def test_equal_groups_have_no_best_one(tmp_path):
    for depth in (18, 34, 50):
        write_run(tmp_path / str(depth), depth, skill=0.0)
    table = table_of(tmp_path)
    assert {row.mark for row in rows_of(table)} == {""}
    # of one predicted class, the score is the same on any images
    assert headline(table) == "All 3 groups have the same QWK: 0.000. Always predicting “no DR” would score 0.000."
    assert markdown([table], []).count("| none: one class predicted |") == 3
    assert "0.000 to 0.000" not in text_table(table)


def test_seeds_that_all_predict_one_class_borrow_no_variance(tmp_path):
    for depth, skill in ((18, 0.0), (34, 2.0)):
        for seed in range(3):
            write_run(tmp_path / f"{depth}_{seed}", depth, seed=seed, skill=skill)
    limits = {row.label: row.interval for row in rows_of(table_of(tmp_path)) if row.kind == "group"}
    assert limits["depth=18"] == (0.0, 0.0)  # shown as “one class predicted”
    assert limits["depth=34"].low < limits["depth=34"].high


def test_a_long_label_breaks_between_its_remarks(tmp_path):
    write_run(tmp_path / "18", 18, skill=0.0, config={"model.pretrained": "a/" + "long" * 10})
    write_run(tmp_path / "34", 34, skill=3.0, config={"model.pretrained": "b/" + "long" * 10})
    lines = text_table(table_of(tmp_path), width=66).splitlines()
    assert max(map(len, lines)) <= 66
    assert any(line.endswith("1 collapsed)") for line in lines)


def test_without_an_interval_groups_are_ranked_but_not_tested(tmp_path):
    for depth, skill in ((18, 1.0), (34, 3.0), (50, 2.0)):
        write_run(tmp_path / str(depth), depth, skill=skill, images=200)
    table = table_of(tmp_path, "balanced_accuracy")
    rows = [row for row in rows_of(table) if row.kind == "group"]
    assert [row.mark for row in rows] == ["", "untested", "untested"]
    assert rows[0].value > rows[1].value > rows[2].value
    assert all(math.isnan(row.interval.low) for row in rows)
    assert rows[1].shortfall == limits_text("balanced_accuracy", rows[1].value - rows[0].value, math.nan, math.nan)
    assert "Differences between groups are not tested, since a class has fewer than 8 images." in headline(table)
    assert rows_of(table_of(tmp_path, "accuracy"))[0].mark == "best"
    page = markdown([table], [])
    assert f"| – | {rows[1].shortfall} |" in page
    assert "tied |" not in page


def test_the_headline_matches_the_rows(tmp_path):
    for depth, skill in ((18, 1.0), (34, 3.0), (50, 3.0)):
        write_run(tmp_path / str(depth), depth, skill=skill)
    table = table_of(tmp_path, "accuracy")
    best = next(row for row in rows_of(table) if row.mark == "best")
    assert headline(table).startswith(
        f"Of 3 groups, {best.label} has the highest accuracy: {100 * best.value:.2f} % (95 %: "
    )
    assert headline(table).endswith(
        "1 of the other 2 may be as good; 1 is behind. Always predicting “no DR” would score "
        f"{100 * table.scored[0].baseline['accuracy']:.2f} %."
    )
    alone = table_of(tmp_path / "18")
    assert headline(alone).startswith("depth=18 pretrained=none: QWK 0.")
