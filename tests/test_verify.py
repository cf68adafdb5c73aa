"""`report --check`: stored numbers follow from the predictions, and each changed number is named."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from fake_runs import change_status, edit_predictions, write_run

from resnet_lab.metrics import SplitMetrics
from resnet_lab.objectives import Softmax
from resnet_lab.report import __main__ as report
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of, metrics_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import Predictions


def run_with_metrics(folder, **config):
    """Write a run whose stored numbers follow from its predictions."""
    run = read_run(RunFolder(write_run(folder, config=config)))
    derived = metrics_of(run.predictions.labeled, run.config, run.class_counts("train"))
    change_status(folder, metrics={f"test/{name}": value for name, value in derived.items()})
    return folder


def lines(*folders) -> list[str]:
    return differences_of([read_run(RunFolder(folder)) for folder in folders])


@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4], [0, 2, 4], [2]])
def test_the_metrics_are_those_that_a_job_computes(tmp_path, classes):
    run = read_run(RunFolder(write_run(tmp_path / "run")))
    some = np.isin(run.predictions.labeled.targets, classes)
    predictions = Predictions(*(part[some] for part in run.predictions.labeled))
    logits = torch.log(torch.tensor(predictions.probabilities, dtype=torch.float32))
    targets = torch.tensor(predictions.targets)
    job = SplitMetrics("test", 5, ordered=True)
    job.update(torch.nn.functional.cross_entropy(logits, targets, reduction="none"), logits, targets)
    stored = {name.removeprefix("test/"): float(value) for name, value in job.compute(Softmax(5, None, 0.0)).items()}
    derived = metrics_of(predictions, run.config, run.class_counts("train"))
    assert set(stored) == set(derived)
    for name, value in stored.items():
        assert derived[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize(
    ("smoothing", "weights"), [(0.0, "none"), (0.1, "none"), (0.0, "balanced"), (0.1, [1, 2, 3, 4, 5])]
)
def test_the_loss_is_torchs(tmp_path, smoothing, weights):
    run = read_run(RunFolder(write_run(tmp_path / "run")))
    predictions, counts = run.predictions.labeled, run.class_counts("train")
    config = {"loss.label_smoothing": smoothing, "loss.class_weights": weights}
    balanced = np.sum(counts) / (5 * np.array(counts))
    values = (
        {"none": np.ones(5), "balanced": balanced}[weights] if isinstance(weights, str) else np.array(weights, float)
    )
    losses = torch.nn.functional.cross_entropy(
        torch.log(torch.tensor(predictions.probabilities)),
        torch.tensor(predictions.targets),
        weight=torch.tensor(values),
        label_smoothing=smoothing,
        reduction="none",
    )
    assert metrics_of(predictions, config, counts)["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)


def test_a_loss_of_another_kind_is_not_guessed(tmp_path):
    run = read_run(RunFolder(write_run(tmp_path / "run")))
    config = {"loss._target_": "somewhere.focal"}
    assert "loss" not in metrics_of(run.predictions.labeled, config, run.class_counts("train"))


def test_numbers_that_follow_from_the_predictions_pass(tmp_path, capsys):
    run_with_metrics(tmp_path / "run")
    write_run(tmp_path / "failed", state="failed", error="boom")
    report.command([str(tmp_path), "--check"])
    out = capsys.readouterr().out
    assert out.startswith("all stored metrics of 1 finished run follow from their predictions\nnot checked: ")
    assert not (tmp_path / "report.html").exists()


def test_a_changed_metric_fails_and_is_named(tmp_path, capsys):
    folder = run_with_metrics(tmp_path / "run")
    metrics = json.loads((folder / "status.json").read_text())["metrics"]
    true = metrics["test/qwk"]
    change_status(folder, metrics=metrics | {"test/qwk": true + 0.001})
    with pytest.raises(SystemExit) as error:
        report.command([str(tmp_path), "--check"])
    assert error.value.code == 1
    assert (
        capsys.readouterr().out == f"run: test/qwk is stored as {true + 0.001:.6f}, the predictions give {true:.6f}\n"
    )


def test_changed_predictions_contradict_all_derived_numbers(tmp_path):
    folder = run_with_metrics(tmp_path / "run")
    file = folder / "predictions_test.csv"
    frame = pd.read_csv(file, dtype={"image": str})
    frame.assign(target=np.where(frame.index < 5, (frame["target"] + 1) % 5, frame["target"])).to_csv(file, index=False)
    found = " ".join(lines(folder))
    assert "cannot be checked: predictions_test.csv: 400 rows do not match the 400 images of status.json" in found
    edit_predictions(folder, lambda frame: frame)
    found = " ".join(lines(folder))
    assert "test/accuracy is stored as" in found
    assert "test/qwk is stored as" in found


def test_a_prediction_that_is_not_the_most_probable_class_is_counted(tmp_path):
    folder = run_with_metrics(tmp_path / "run")
    file = folder / "predictions_test.csv"
    frame = pd.read_csv(file, dtype={"image": str})
    frame.assign(prediction=np.where(frame.index < 3, (frame["prediction"] + 1) % 5, frame["prediction"])).to_csv(
        file, index=False
    )
    assert any("in 3 rows the prediction is not the most probable class" in line for line in lines(folder))


def test_the_tables_beside_the_predictions_are_checked_too(tmp_path):
    folder = run_with_metrics(tmp_path / "run")
    run = read_run(RunFolder(folder))
    good = pd.DataFrame(run.counts, run.class_names, run.class_names)
    good.to_csv(run.folder.confusion_matrix_file("test"))
    assert lines(folder) == []
    good.rename(index={"mild": "moderate", "moderate": "mild"}).to_csv(run.folder.confusion_matrix_file("test"))
    assert lines(folder) == [
        "run: confusion_matrix_test.csv has other classes or columns than status.json, or another order"
    ]
    (good + np.eye(5, dtype=int)).to_csv(run.folder.confusion_matrix_file("test"))
    assert lines(folder) == ["run: confusion_matrix_test.csv does not follow from the predictions"]
    run.folder.class_report_file("test").write_text("class,precision\nno DR,x\n")
    assert any("class_report_test.csv" in line for line in lines(folder))


def test_metrics_without_predictions_and_unknown_ones_cannot_be_checked(tmp_path):
    folder = run_with_metrics(tmp_path / "run")
    change_status(folder, metrics={"test/charm": 0.5, "val/accuracy": 0.5})
    found = lines(folder)
    assert "run: test/charm is stored, but cannot be derived from predictions" in found
    assert any(line.startswith("run: the val metrics cannot be checked: predictions_val.csv") for line in found)


def test_an_undefined_metric_agrees_only_with_an_undefined_one(tmp_path):
    folder = run_with_metrics(tmp_path / "run")
    metrics = json.loads((folder / "status.json").read_text())["metrics"]
    change_status(folder, metrics=metrics | {"test/qwk": None})
    assert len(lines(folder)) == 1
    assert lines(folder)[0].startswith("run: test/qwk is stored as undefined, the predictions give 0.")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metrics": {}}, "test/accuracy is not stored, the predictions give"),
        ({"metrics": {"final/accuracy": 0.5}}, "metrics without a split in status.json cannot be derived: final/"),
        ({"metrics": {"test/recall_0": 0.5}}, "test/recall_1 is not stored, the predictions give"),
        ({"metrics": []}, "status.json: metrics is list, not a mapping of names to numbers"),
        ({"metrics": {"test/accuracy": "high"}}, "test/accuracy is stored as 'high', not a number"),
        ({"collapsed": True}, "collapsed is stored as True, one class is predicted for "),
        ({"class_counts": {"test": [1, 2, 3, 4, 5]}}, "class_counts of test are stored as [1, 2, 3, 4, 5]"),
        (
            {"best_value": 0.99, "monitor": "val/accuracy"},
            "best_value is stored as 0.990000, but no epoch in metrics.csv has this val/accuracy",
        ),
        ({"best_value": 0.99, "monitor": "test/qwk"}, "best_value is stored as 0.990000, the predictions of test give"),
    ],
)
def test_all_numbers_that_follow_from_the_predictions_are_checked(tmp_path, changes, line):
    folder = run_with_metrics(tmp_path / "run")
    assert lines(folder) == []
    change_status(folder, **changes)
    assert any(found.startswith(f"run: {line}") for found in lines(folder)), lines(folder)


@pytest.mark.parametrize(("monitor", "epoch"), [(None, 5), ("test/accuracy", 2)])
def test_the_row_of_metrics_csv_that_made_the_predictions_is_checked(tmp_path, monitor, epoch):
    folder = run_with_metrics(tmp_path / "run")
    true = read_run(RunFolder(folder)).scores
    rows = pd.read_csv(folder / "metrics.csv")
    for name in ("accuracy", "qwk"):
        rows[f"test/{name}"] = np.where(rows["epoch"] == epoch, true[name], true[name] - 0.1)
    change_status(folder, monitor=monitor, best_value=true["accuracy"])
    rows.to_csv(folder / "metrics.csv", index=False)
    assert lines(folder) == []
    rows.assign(**{"test/qwk": rows["test/qwk"] + 0.3}).to_csv(folder / "metrics.csv", index=False)
    assert lines(folder) == [
        f"run: test/qwk in the row of metrics.csv with epoch={epoch} is {true['qwk'] + 0.3:.6f}, "
        f"the predictions give {true['qwk']:.6f}"
    ]
    if monitor:
        last = rows["epoch"] == rows["epoch"].max()
        rows.assign(**{monitor: np.where(last, true["accuracy"] + 0.05, rows[monitor])}).to_csv(
            folder / "metrics.csv", index=False
        )
        (line,) = lines(folder)
        assert "but an epoch in metrics.csv has a better test/accuracy" in line
    (folder / "metrics.csv").unlink()
    assert "run: metrics.csv is missing, or has no complete row" in lines(folder)


@pytest.mark.parametrize(("limit", "checked"), [(1.0, True), (1, False), (0.5, False)])
def test_epochs_that_were_validated_in_part_are_not_compared_with_the_predictions(tmp_path, limit, checked):
    folder = run_with_metrics(tmp_path / "run", **{"trainer.limit_val_batches": limit})
    true = read_run(RunFolder(folder)).scores["accuracy"]
    change_status(folder, monitor="test/accuracy", best_value=true - 0.1)
    rows = pd.read_csv(folder / "metrics.csv").assign(**{"test/accuracy": true - 0.1})
    rows.to_csv(folder / "metrics.csv", index=False)
    assert len(lines(folder)) == (2 if checked else 0)


def test_unchecked_numbers_are_not_a_success(tmp_path, capsys):
    folder = run_with_metrics(tmp_path / "cut")
    (folder / "status.json").write_text('{"state": "do')
    bare = run_with_metrics(tmp_path / "bare")
    (bare / "predictions_test.csv").unlink()
    failed = write_run(tmp_path / "failed", state="failed", error="boom", metrics={"test/accuracy": 0.99})
    with pytest.raises(SystemExit):
        report.command([str(tmp_path), "--check"])
    shown = capsys.readouterr().out
    assert "cut: cannot be checked: status.json is damaged" in shown
    assert "bare: cannot be checked: no predictions_test.csv" in shown
    assert f"{failed.name}: test/accuracy is stored as 0.990000" in shown


def test_a_run_without_epochs_has_no_row_to_be_checked(tmp_path):
    run = read_run(RunFolder(write_run(tmp_path / "run", epochs=0)))
    derived = metrics_of(run.predictions.labeled, run.config, run.class_counts("train"))
    change_status(tmp_path / "run", metrics={f"test/{name}": value for name, value in derived.items()})
    change_status(tmp_path / "run", monitor="val/accuracy", best_value=0.5)
    assert lines(tmp_path / "run") == []
    change_status(tmp_path / "run", epoch=2)
    assert len(lines(tmp_path / "run")) == 2


def test_a_loss_of_another_kind_passes_unchecked(tmp_path):
    folder = run_with_metrics(tmp_path / "run", **{"loss._target_": "somewhere.focal"})
    metrics = json.loads((folder / "status.json").read_text())["metrics"]
    change_status(folder, metrics=metrics | {"test/loss": 3.0})
    assert lines(folder) == []


def test_the_loss_of_averaged_views_passes_unchecked(tmp_path):
    folder = run_with_metrics(tmp_path / "run", **{"trainer.tta": "flips"})
    metrics = json.loads((folder / "status.json").read_text())["metrics"]
    change_status(folder, metrics=metrics | {"test/loss": 3.0})
    assert lines(folder) == []
    change_status(folder, metrics=metrics | {"test/accuracy": 0.0})
    assert [line for line in lines(folder) if "test/accuracy is stored as 0.000000" in line]


def test_a_loss_beyond_the_precision_of_probabilities_has_a_lower_bound(tmp_path):
    folder = write_run(tmp_path / "run")

    def sure(frame):
        frame.loc[0, ["target", *(f"p_{k}" for k in range(5))]] = [1, 1, 0, 0, 0, 0]
        return frame.assign(target=frame["target"].astype(int))

    edit_predictions(folder, sure)
    run = read_run(RunFolder(folder))
    derived = metrics_of(run.predictions.labeled, run.config, run.class_counts("train"))
    stored = {f"test/{name}": value for name, value in derived.items()}
    change_status(folder, metrics=stored | {"test/loss": derived["loss"] + 5})
    assert not [line for line in lines(folder) if "loss" in line]
    change_status(folder, metrics=stored | {"test/loss": derived["loss"] - 0.1})
    assert [line for line in lines(folder) if "test/loss is stored as" in line]
