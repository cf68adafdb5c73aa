"""Curves, operating points and calibration of a table, against scikit-learn; nothing is chosen on test."""

import numpy as np
import pandas as pd
import pytest
from fake_runs import edit_predictions, write_run
from sklearn.metrics import average_precision_score, roc_auc_score

from resnet_lab.report import calibration, figures
from resnet_lab.report.groups import tables_of
from resnet_lab.report.leaderboard import referable_rows_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.thresholds import (
    PLACES,
    calibration_rows,
    operating_rows,
    panels_of,
    precision_recall_of,
    roc_of,
)
from resnet_lab.run_folder import find_runs


def table_of(folder):
    (table,) = tables_of([read_run(run) for run in find_runs([folder])])
    return table


def with_validation(folder, seed=0, skill=2.0, **settings):
    """Write a run with predictions of both splits; those of validation are from another run on other images."""
    run = write_run(folder, seed=seed, skill=skill, **settings)
    other = write_run(folder.parent / f"{folder.name}-val", seed=seed + 50, skill=skill, test_set="v" * 16, split="val")
    (other / "predictions_val.csv").rename(run / "predictions_val.csv")
    for file in other.iterdir():
        file.unlink()
    other.rmdir()
    return run


def random_case(seed: int, images: int = 300):
    generator = np.random.default_rng(seed)
    positive = generator.random(images) < 0.3
    return positive, np.round(generator.normal(positive, 1.0), 1)  # with ties


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_scikit_learns(seed):
    case = random_case(seed)
    values, area = roc_of(case)
    assert area == pytest.approx(roc_auc_score(*case))
    assert (values[0] >= 0, values[-1]) == (True, 1)
    assert np.all(np.diff(values) >= 0)
    values, precision = precision_recall_of(case)
    assert precision == pytest.approx(average_precision_score(*case))
    assert np.mean(values) == pytest.approx(precision, abs=0.02)  # its area is that of steps; straight lines have more


def test_a_curve_shows_the_rates_of_its_thresholds():
    positive, scores = random_case(0)
    cut = np.quantile(scores[~positive], 0.8) + 1e-9
    false_alarms, found = np.mean(scores[~positive] >= cut), np.mean(scores[positive] >= cut)
    assert np.interp(false_alarms, PLACES, roc_of((positive, scores))[0]) == pytest.approx(found, abs=0.02)


def test_precision_starts_at_the_first_threshold_that_finds_a_positive():
    positive, scores = np.array([False, True, False, True]), np.array([0.9, 0.8, 0.7, 0.6])
    values, precision = precision_recall_of((positive, scores))
    assert values[[0, 100, 101, 200]].tolist() == [0.5] * 4
    assert precision == pytest.approx(average_precision_score(positive, scores))


@pytest.mark.parametrize(
    ("names", "referable"),
    [(["none", "early", "late"], "late"), (list("abcd"), "c or worse"), (["healthy", "ill"], "")],
)
def test_referable_classes_of_own_names(tmp_path, names, referable):
    write_run(tmp_path / "run", class_names=names, ordered=True)
    assert table_of(tmp_path).referable_classes == referable


def test_each_class_and_the_referable_grades_have_a_panel(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    table = table_of(tmp_path)
    panels = panels_of(table, roc_of, "AUC")
    assert [title for title, _ in panels] == ["referable (moderate or worse)", *table.scored[0].class_names]
    (line,) = panels[0][1]
    areas = [roc_auc_score(*calibration.referable(predictions)) for predictions in table.groups[0].predictions]
    assert line.values.shape == (2, len(PLACES))
    assert line.score == f"AUC {np.mean(areas):.3f}"


def test_classes_without_order_or_without_images_have_no_panel(tmp_path):
    run = write_run(tmp_path / "run", class_names=["duck", "goose", "swan"])
    edit_predictions(run, lambda frame: frame[frame["target"] != 2])
    table = table_of(tmp_path)
    assert not table.referable
    assert referable_rows_of(table) == []
    assert [title for title, _ in panels_of(table, roc_of, "AUC")] == ["duck", "goose"]
    assert operating_rows(table) == []


def test_operating_points_are_chosen_on_validation_and_frozen(tmp_path):
    run = read_run(find_runs([with_validation(tmp_path / "run")])[0])
    chosen = calibration.thresholds(run.validation.labeled)
    rows = operating_rows(table_of(tmp_path))
    assert [(row.name, row.thresholds) for row in rows] == [(name, (cut,)) for name, cut in chosen.items()]
    for row in rows:
        expected = calibration.operate(run.predictions.labeled, row.thresholds[0])
        assert (row.sensitivity.value, row.specificity.value) == pytest.approx(expected[1:])
        assert row.sensitivity.interval.low < row.sensitivity.value < row.sensitivity.interval.high
    edit_predictions(run.folder.path, lambda frame: frame.iloc[:200])  # does not change the choice
    assert [row.thresholds for row in operating_rows(table_of(tmp_path))] == [row.thresholds for row in rows]


def test_without_validation_nothing_is_chosen_or_scaled(tmp_path):
    with_validation(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    table = table_of(tmp_path)
    (row,) = operating_rows(table)
    assert (row.name, row.thresholds) == ("not every run has validation predictions", ())
    (row,) = calibration_rows(table)
    assert np.isnan([row.temperature, row.after]).all()
    errors = [calibration.calibration_error(predictions) for predictions in table.groups[0].predictions]
    assert row.before == pytest.approx(np.mean(errors))


def test_operating_rows_name_their_split_and_thresholds_that_refer_no_one(tmp_path):
    run = with_validation(tmp_path / "run")
    frame = pd.read_csv(run / "predictions_val.csv", dtype={"image": str})
    kept = frame.groupby("target").head(3)  # 6 of 15 are not referable
    sure = kept.index[kept["target"] == 0][0]  # one of these has the highest score
    kept.loc[sure, [f"p_{k}" for k in range(5)]] = [0, 0, 0, 0, 1.0]
    kept.assign(prediction=kept[[f"p_{k}" for k in range(5)]].to_numpy().argmax(axis=1)).to_csv(
        run / "predictions_val.csv", index=False
    )
    sensitive, specific = operating_rows(table_of(tmp_path))
    assert sensitive.chosen_on == specific.chosen_on == "15 (9)"
    assert (sensitive.refer_none, specific.refer_none) == (0, 1)
    assert specific.sensitivity.value == 0


def sharpened(run, split, power):
    """Rewrite predictions in place with `power` times their logits."""
    frame = pd.read_csv(run / f"predictions_{split}.csv", dtype={"image": str})
    columns = [f"p_{k}" for k in range(5)]
    sharp = frame[columns] ** power
    frame[columns] = sharp.div(sharp.sum(axis=1), axis=0)
    frame.to_csv(run / f"predictions_{split}.csv", index=False)


@pytest.mark.parametrize(("on_test", "on_val"), [(4, 4), (4, 1), (1, 4)])
def test_temperature_is_fitted_on_validation_and_evaluated_on_test(tmp_path, on_test, on_val):
    run = with_validation(tmp_path / "run")
    sharpened(run, "test", on_test)
    sharpened(run, "val", on_val)
    (row,) = calibration_rows(table_of(tmp_path))
    (run,) = (read_run(folder) for folder in find_runs([tmp_path]))
    best, other = (calibration.temperature(split.labeled) for split in (run.validation, run.predictions))
    assert row.temperature == pytest.approx(best)
    assert row.temperature == pytest.approx(on_val, rel=0.35)
    assert other == pytest.approx(on_test, rel=0.35)
    scaled = calibration.temperature_scaled(run.predictions.labeled, best)
    assert row.after == pytest.approx(calibration.calibration_error(scaled))
    assert row.before == pytest.approx(calibration.calibration_error(run.predictions.labeled))


def test_operating_points_are_marked_on_the_curve(tmp_path):
    with_validation(tmp_path / "run")
    table = table_of(tmp_path)
    (line,) = panels_of(table, roc_of, "AUC")[0][1]
    (sensitive, specific) = (point for _, point in line.points)
    assert sensitive.sensitivity > specific.sensitivity
    assert "operating points from validation" in figures.picture("roc", table).note
    assert panels_of(table, precision_recall_of, "AP")[0][1][0].points == ()
