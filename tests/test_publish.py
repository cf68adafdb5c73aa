"""Published runs: small, without paths of a machine, and with an unchanged report."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import edit_predictions, write_run

from resnet_lab.combine import combine
from resnet_lab.report.combined import combined_rows
from resnet_lab.report.groups import tables_of
from resnet_lab.report.leaderboard import rows_of
from resnet_lab.report.runs import read_layers, read_metrics, read_run
from resnet_lab.run_folder import RunFolder, find_runs

FILE = Path(__file__).resolve().parents[1] / "docs" / "tools" / "publish.py"
SPEC = importlib.util.spec_from_file_location("publish", FILE)
publish = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(publish)


def test_the_published_runs_of_all_pages_are_small():
    files = [file for file in (FILE.parents[1] / "docs" / "results").rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in (".ckpt", ".pt", ".safetensors")]
    assert sum(file.stat().st_size for file in files) < 10_000_000


def shown(folder):
    (table,) = tables_of([read_run(run) for run in find_runs([folder])])
    return rows_of(table)


def test_the_same_tables_come_out_of_published_runs(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / "sweep" / str(seed), seed=seed, config={"data.root": "/disk/somebody/data/eyes"})
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.ckpt").write_bytes(bytes(1000))
    write_run(tmp_path / "sweep" / "failed", seed=2, state="failed", error="boom")
    out = tmp_path / "docs"
    written = publish.publish(tmp_path / "sweep", out, {"/disk/somebody/": ""})
    assert [folder.name for folder in written] == ["depth-18-pretrained-none-seed-0", "depth-18-pretrained-none-seed-1"]
    before, after = shown(tmp_path / "sweep"), shown(out)
    assert [row.cells for row in after] == [row.cells for row in before]
    files = {file.name for file in written[0].iterdir()}
    assert files == {"config.yaml", "status.json", "metrics.csv.gz", "predictions_test.csv.gz"}
    assert "root: data/eyes" in (written[0] / "config.yaml").read_text()
    assert not any(b"somebody" in file.read_bytes() for file in out.rglob("*") if file.is_file())
    first = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    publish.publish(tmp_path / "sweep", out, {"/disk/somebody/": ""})
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == first
    np.testing.assert_array_equal(read_run(find_runs([out])[0]).counts.sum(), 400)


@pytest.mark.slow
def test_probabilities_keep_the_digits_that_the_metrics_need(tmp_path):
    exact = read_run(RunFolder(write_run(tmp_path / "sweep" / "run", images=5000, skill=6.0)))
    written = publish.publish(tmp_path / "sweep", tmp_path / "short", {})
    few = (
        pd.read_csv(written[0] / "predictions_test.csv.gz")["p_3"]
        .astype(str)
        .str.replace(r"^0\.0*|e.*", "", regex=True)
    )
    assert few.str.len().max() <= 4
    assert read_run(RunFolder(written[0])).scores == pytest.approx(exact.scores, abs=5e-6)

    def nearly(frame):
        frame[["p_1", "p_2"]] = 0.2
        frame["p_3"] = 0.2 + 1e-6 * (np.arange(len(frame)) % 7) * (frame["target"] == 3)  # equal with four digits
        frame["p_0"] = frame["p_4"] = (1 - frame[["p_1", "p_2", "p_3"]].sum(axis=1)) / 2
        frame["prediction"] = 3
        return frame

    edit_predictions(tmp_path / "sweep" / "run", nearly)
    exact = read_run(RunFolder(tmp_path / "sweep" / "run"))
    written = publish.publish(tmp_path / "sweep", tmp_path / "long", {})
    assert read_run(RunFolder(written[0])).scores["auroc"] == pytest.approx(exact.scores["auroc"], abs=5e-6)


@pytest.mark.slow
def test_folds_stay_apart_and_combined_runs_find_their_members(tmp_path):
    for fold in (0, 1):
        config = {"data.folds": 2, "data.fold": fold, "data.split_seed": 0}
        for seed in (0, 1):
            run = write_run(tmp_path / "cv" / f"fold-{fold}_seed-{seed}", seed=seed, config=config)
            edit_predictions(run, lambda frame, fold=fold: frame.iloc[200 * fold : 200 * (fold + 1)])
    combine([str(tmp_path / "cv")], tmp_path / "cv" / "pooled", ["data.fold"])
    combine([str(tmp_path / "cv" / "pooled")], tmp_path / "cv" / "mean", ["seed"])
    written = publish.publish(tmp_path / "cv", tmp_path / "docs", {})
    assert len({*written}) == len(find_runs([tmp_path / "docs"])) == 7
    tables = tables_of([read_run(run) for run in find_runs([tmp_path / "docs"])])
    (row,) = [row for table in tables for row in combined_rows(table)]
    assert (row.label, row.members) == ("mean_over=seed", "not combined")
    runs = [read_run(RunFolder(folder)) for folder in written]
    assert [len(run.members) for run in runs if run.members] == [2, 2, 2]
    assert all(source in {*written} for run in runs for source in run.members)
    assert not any(run.is_outdated for run in runs)


def test_metrics_and_layers_are_packed_and_read_again(tmp_path):
    run = write_run(tmp_path / "sweep" / "run")
    (run / "layers.csv").write_text("epoch,quantity,layer,value\n0,gradient_norm,conv1,0.5\n")
    (written,) = publish.publish(tmp_path / "sweep", tmp_path / "docs", {})
    pd.testing.assert_frame_equal(
        read_metrics(RunFolder(written).stored_metrics), read_metrics(RunFolder(run).stored_metrics)
    )
    assert len(read_metrics(RunFolder(written).stored_metrics)) > 0
    RunFolder(written).stored_metrics.write_bytes(RunFolder(written).stored_metrics.read_bytes()[:-20])
    assert read_metrics(RunFolder(written).stored_metrics).empty
    assert read_layers(RunFolder(written).stored_layers)["value"].tolist() == [0.5]
    assert read_layers(RunFolder(run).stored_layers)["value"].tolist() == [0.5]
