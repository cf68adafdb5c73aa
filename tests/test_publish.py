"""Published runs: small, without a machine's paths, and the same report comes out of them."""

import importlib.util
from pathlib import Path

import numpy as np
from fake_runs import write_run

from resnet_lab.report.comparison import tables_of
from resnet_lab.report.leaderboard import rows_of
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import find_runs

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "publish.py"
SPEC = importlib.util.spec_from_file_location("publish", FILE)
publish = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(publish)


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
    assert files == {"config.yaml", "status.json", "metrics.csv", "predictions_test.csv.gz"}
    assert "root: data/eyes" in (written[0] / "config.yaml").read_text()
    assert not any(b"somebody" in file.read_bytes() for file in out.rglob("*") if file.is_file())
    first = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    publish.publish(tmp_path / "sweep", out, {"/disk/somebody/": ""})
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == first
    np.testing.assert_array_equal(read_run(find_runs([out])[0]).counts.sum(), 400)
