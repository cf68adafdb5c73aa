"""A score is one record, used by a job, a report and `--check`; also a record from a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from sklearn import metrics as sk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_lab.metrics import metric_names
from resnet_lab.report import __main__ as report
from resnet_lab.report.groups import Table, tables_of
from resnet_lab.report.intervals import estimate
from resnet_lab.report.leaderboard import rows_of
from resnet_lab.report.runs import read_predictions, read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import SCORES, Predictions, Score, mode_of, summary_of
from resnet_lab.training import guarded


def predictions_of(targets: list[int], predictions: list[int], classes: int) -> Predictions:
    return Predictions(np.array(targets), np.array(predictions), np.eye(classes)[predictions])


def test_specificity_by_hand() -> None:
    # of two images of other classes, one is predicted as class 0, one as class 1, none as class 2
    found = summary_of(predictions_of([0, 1, 2], [1, 0, 2], 4))["specificity_macro"]
    assert found == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


@pytest.mark.parametrize(
    ("targets", "predictions", "matthews", "specificity"),
    [
        ([0, 0, 1, 2], [0, 0, 0, 0], 0.0, (0 + 1 + 1) / 3),  # constant predictions
        ([0, 1, 2, 0], [0, 1, 2, 0], 1.0, 1.0),
        ([0, 1], [1, 0], -1.0, 0.0),
        ([1, 1, 1], [1, 1, 1], np.nan, np.nan),  # a single class
        ([1, 1, 1, 1], [1, 1, 1, 0], np.nan, 3 / 4),
    ],
)
def test_scores_at_the_edge(targets: list[int], predictions: list[int], matthews: float, specificity: float) -> None:
    found = summary_of(predictions_of(targets, predictions, 3))
    assert found["matthews"] == pytest.approx(matthews, nan_ok=True)
    assert found["specificity_macro"] == pytest.approx(specificity, nan_ok=True)


@pytest.mark.slow
def test_new_scores_are_used_everywhere(
    make_run, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("monitor=val/matthews", "optim.lr=0.02")
    assert guarded(run) == 0
    predictions = read_predictions(run.predictions_file("test")).labeled
    own = {k: (predictions.targets != k, predictions.classes != k) for k in np.union1d(*predictions[:2])}
    expected = {
        "matthews": sk.matthews_corrcoef(predictions.targets, predictions.classes),
        "specificity_macro": np.mean([sk.recall_score(*each) for each in own.values()]),
    }
    status, epochs = run.read_status(), pd.read_csv(run.metrics_file)
    events = EventAccumulator(str(run.tensorboard)).Reload()
    for name, value in expected.items():
        assert status["metrics"][f"test/{name}"] == pytest.approx(value, abs=1e-6)
        logged = [event.value for event in events.Scalars(f"val/{name}")]
        assert logged == pytest.approx(epochs[f"val/{name}"].tolist(), abs=1e-6)
        assert f"train/{name}" not in epochs
    assert status["best_value"] == pytest.approx(epochs["val/matthews"].max())
    report.command([str(run.path), "--check"])
    for name, value in expected.items():
        report.command([str(run.path), f"metric={name}", f"out={tmp_path / name}"])
        row = pd.read_csv(tmp_path / name / "summary.csv").iloc[0]
        assert row["ranked_by"] == name
        assert row[f"{name}_mean"] == pytest.approx(value)
        assert row[f"{name}_low"] <= value <= row[f"{name}_high"]
    capsys.readouterr()


def test_a_changed_score_is_found(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path / "run"))
    derived = summary_of(read_run(run).predictions.labeled)
    status = json.loads(run.status_file.read_text())
    stored = {f"test/{name}": derived[name] for name in ("matthews", "specificity_macro")}
    run.status_file.write_text(json.dumps(status | {"metrics": stored | {"test/matthews": 0.9}}))
    assert [line for line in differences_of([read_run(run)]) if "matthews" in line or "spec" in line] == [
        f"run: test/matthews is stored as 0.900000, the predictions give {derived['matthews']:.6f}"
    ]


def test_scores_that_a_version_lacks_are_not_required(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path / "run"))
    derived = summary_of(read_run(run).predictions.labeled)
    status = json.loads(run.status_file.read_text())
    run.status_file.write_text(json.dumps(status | {"metrics": {"test/accuracy": derived["accuracy"]}}))
    assert not any("matthews" in line for line in differences_of([read_run(run)]))
    run.status_file.write_text(
        json.dumps(status | {"metrics": {"test/accuracy": derived["accuracy"], "val/matthews": 0.5}})
    )
    assert any("test/matthews is not stored" in line for line in differences_of([read_run(run)]))


def off_by(predictions: Predictions) -> float:
    return float(np.mean(np.abs(predictions.targets - predictions.classes)))


@pytest.fixture
def distance(monkeypatch: pytest.MonkeyPatch) -> Score:
    """Add a score for which smaller is better, without an upper limit, and without a formula of sums."""
    score = Score(title="distance", from_predictions=off_by, needs="order", falls=True, upper=np.inf)
    monkeypatch.setitem(SCORES, "distance", score)
    return score


def test_a_score_without_a_formula_of_sums_is_resampled_one_by_one(distance: Score) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 5, 150)
    near = np.clip(targets + generator.integers(-1, 2, 150), 0, 4)
    far = generator.integers(0, 5, 150)
    groups = [[Predictions(targets, each, np.eye(5)[each])] for each in (far, near)]
    found = estimate(groups, np.arange(150), 300)["distance"]
    errors = np.abs(targets - near)
    assert found.values == pytest.approx([np.abs(targets - far).mean(), errors.mean()])
    low, high = found.interval(1)
    half = 1.976 * errors.std(ddof=1) / np.sqrt(150)  # Student's t interval of a mean
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.02)
    best, against = found.against_best()
    assert best == 1
    assert against.values[0] > 0
    assert against.p[0] < 0.01


def test_an_external_record_is_used_everywhere(make_run, tmp_path: Path, undrawn: None, distance: Score) -> None:
    run = make_run("monitor=val/distance", "trainer.max_epochs=2")
    assert guarded(run) == 0
    predictions = read_predictions(run.predictions_file("test")).labeled
    status, epochs = run.read_status(), pd.read_csv(run.metrics_file)
    assert status["metrics"]["test/distance"] == pytest.approx(off_by(predictions))
    assert status["best_value"] == pytest.approx(epochs["val/distance"].min())
    assert mode_of("val/distance") == "min"
    assert "distance" in metric_names(5, ordered=True)
    assert "distance" not in metric_names(5, ordered=False)
    assert differences_of([read_run(run)]) == []


def test_the_leaderboard_of_a_falling_score_starts_with_the_smallest(tmp_path: Path, distance: Score) -> None:
    runs = [read_run(RunFolder(write_run(tmp_path / f"{skill}", depth=int(skill), skill=skill))) for skill in (1, 6)]
    (table,) = tables_of(runs, "distance")
    assert isinstance(table, Table)
    first, second = [row for row in rows_of(table) if row.kind == "group"]
    assert first.value < second.value
    assert (first.mark, second.mark) == ("best", "behind")
