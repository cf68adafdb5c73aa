"""The finding that validation cannot tell the selected epoch from others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import change_status, counts_with, write_run

from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import Table, tables_of
from resnet_lab.report.intervals import FEWEST, Z, estimate
from resnet_lab.report.runs import read_run, read_runs
from resnet_lab.report.selection import Selection, blind_of, selections_of
from resnet_lab.run_folder import RunFolder


def write_selected(folder: Path, below: list[float], seed: int = 0, images: int = 120) -> Path:
    """Write a run whose last epoch is the best; the others are below it by these multiples of its standard error."""
    write_run(folder, seed=seed)
    other = write_run(folder.parent / f".{folder.name}", seed=seed + 50, images=images, test_set="v", split="val")
    frame = pd.read_csv(other / "predictions_val.csv", dtype={"image": str})
    frame.to_csv(folder / "predictions_val.csv", index=False)
    counts = counts_with(folder, "val", frame["target"].to_numpy())
    change_status(folder, class_counts=counts, monitor="val/qwk")
    for file in other.iterdir():
        file.unlink()
    other.rmdir()
    run = read_run(RunFolder(folder))
    assert run.validation is not None
    patient = np.unique(run.validation.patients, return_inverse=True)[1]
    estimates = estimate([[run.validation.labeled]], patient, metrics=["qwk"])["qwk"]
    limits, value = estimates.interval(0), float(estimates.values[0])
    error = (limits.high - limits.low) / (2 * Z)
    values = [value - each * error for each in [*below, 0]]
    pd.DataFrame({"epoch": range(len(values)), "lr": 0.1, "val/qwk": values}).to_csv(
        folder / "metrics.csv", index=False
    )
    change_status(folder, best_value=value, epoch=len(values) - 1)
    return folder


def table_of(root: Path) -> Table:
    return tables_of(read_runs([str(root)]))[0]


def test_epochs_within_one_standard_error_are_counted(tmp_path: Path) -> None:
    write_selected(tmp_path / "a", [3.0, 1.2, 0.9, 0.5, np.nan])
    (found,) = selections_of(table_of(tmp_path).groups[0])
    assert (found.epoch, found.epochs, found.alike, found.images) == (6, 6, 2, 120)


@pytest.mark.parametrize(("below", "blind"), [([0.1, 0.2, 3.0], True), ([0.1, 2.0, 3.0], False), ([], False)])
def test_the_finding_names_groups_with_mostly_equal_epochs(tmp_path: Path, below: list[float], blind: bool) -> None:
    write_selected(tmp_path / "a", below)
    write_selected(tmp_path / "b", below, seed=1)
    table = table_of(tmp_path)
    findings = {each.kind: each for each in findings_of(table.scored, [table])}
    assert ("selection within noise" in findings) == bool(blind_of(table)) == blind
    if blind:
        finding = findings["selection within noise"]
        assert not finding.is_fault
        assert "120 validation images" in finding.text
        assert finding.names == (f"{table.groups[0].label}: epoch 4, 4 of 4; 2 other epochs are as good",)


def test_each_run_has_its_number_of_equal_epochs_if_they_differ(tmp_path: Path) -> None:
    write_selected(tmp_path / "a", [0.1, 0.2, 0.3])
    write_selected(tmp_path / "b", [0.1, 0.2, 3.0], seed=1)
    table = table_of(tmp_path)
    (names,) = [each.names for each in findings_of(table.scored, [table]) if each.kind == "selection within noise"]
    assert names == (f"{table.groups[0].label}: epoch 4, 4 of 4; 3, 2 other epochs are as good",)


def test_without_validation_predictions_nothing_is_said(tmp_path: Path) -> None:
    (write_selected(tmp_path / "a", [0.1, 0.1]) / "predictions_val.csv").unlink()
    assert blind_of(table_of(tmp_path)) == []


@pytest.mark.parametrize(("stored", "known"), [(1.0, True), (1.05, False)])
def test_a_loss_has_the_standard_error_of_the_cross_entropy(tmp_path: Path, stored: float, known: bool) -> None:
    run = read_run(RunFolder(write_run(tmp_path / "a", images=60, split="val", monitor="val/loss", epoch=2)))
    assert run.predictions is not None
    targets, _, probabilities = run.predictions.labeled
    losses = -np.log(probabilities[np.arange(60), targets])
    frame = pd.DataFrame({"patient": run.predictions.patients, "loss": losses - losses.mean()})
    sums = frame.groupby("patient")["loss"].sum()
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / 60
    best = losses.mean() * stored  # label smoothing and class weights change it
    values = pd.DataFrame({"epoch": range(3), "lr": 0.1, "val/loss": [best + 1.1 * error, best + 0.9 * error, best]})
    values.to_csv(tmp_path / "a" / "metrics.csv", index=False)
    change_status(tmp_path / "a", best_value=best)
    found = selections_of(table_of(tmp_path).groups[0])
    assert found == ([Selection(epoch=3, epochs=3, alike=1, images=60)] if known else [])


def test_validation_may_be_scored_and_have_few_images_of_a_class(tmp_path: Path) -> None:
    run = read_run(RunFolder(write_run(tmp_path / "a", images=60, split="val", monitor="val/auroc", epoch=3)))
    assert run.predictions is not None
    assert run.counts.sum(axis=1).min() < FEWEST
    value = float(run.scores["auroc"])
    values = pd.DataFrame({"epoch": range(4), "lr": 0.1, "val/auroc": [value - 0.4, value - 1e-3, value, value - 2e-3]})
    values.to_csv(tmp_path / "a" / "metrics.csv", index=False)
    change_status(tmp_path / "a", best_value=value)
    table = table_of(tmp_path)
    assert selections_of(table.groups[0]) == [Selection(epoch=3, epochs=4, alike=2, images=60)]
    assert "selection within noise" in {each.kind for each in findings_of(table.scored, [table])}
