"""A short version of the main job on real photographs: pretrain on CIFAR-10, sweep on IDRiD, report."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL_DATA
from hydra import compose, initialize_config_dir

from resnet_lab.config import check, register
from resnet_lab.launch import create_run
from resnet_lab.report import groups, runs
from resnet_lab.report.__main__ import report
from resnet_lab.run_folder import RunFolder
from resnet_lab.schema import conf_dir
from resnet_lab.training import guarded

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not (REAL_DATA / "idrid_256.tar").is_file(), reason="no real photographs in ../shared/data"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("idrid_256.tar", "cifar10_jpeg_train.tar.gz"):
        with tarfile.open(REAL_DATA / name) as archive:
            archive.extractall(folder, filter="data")
    return folder


def trained(folder: Path, *overrides: str) -> RunFolder:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [*overrides, f"sweep_dir={folder}", "trainer.progress_bar=false"])
    check(config)
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    create_run(run, config)
    assert guarded(run) == 0, run.read_status()["error"]
    return run


def test_depth_and_pretraining_on_idrid(data: Path, tmp_path: Path) -> None:
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    source = trained(
        tmp_path / "source", "experiment=cifar10_source", f"data.root={data / 'cifar10_jpeg'}", cache,
        "data.max_images=1000", "trainer.max_epochs=1", "data.image_size=32",
    )  # fmt: skip
    assert source.read_status()["class_counts"]["train"] == [90] * 10
    sweep = tmp_path / "sweep"
    for pretrained in ("none", str(source.path)):
        for seed in (0, 1):
            trained(
                sweep / f"{Path(pretrained).name}_{seed}", "experiment=idrid_depth_pretraining", f"seed={seed}",
                f"data.root={data / 'idrid_256'}", cache, f"model.pretrained={pretrained}",
                "data.image_size=48", "trainer.max_epochs=1",
            )  # fmt: skip
    status = RunFolder(sweep / "none_0").read_status()
    assert status["class_counts"]["test"] == [34, 5, 32, 19, 13]
    assert sum(status["class_counts"]["train"]) == 412  # train 118 equals test 064, with another grade
    assert status["leaks"] == 1
    assert len(pd.read_csv(RunFolder(sweep / "none_0").predictions_file("test"))) == 103
    shown = report([str(sweep)], sweep)
    assert "31.07" in shown  # baseline: the training majority, grade 2
    (table,) = groups.tables_of([runs.read_run(RunFolder(sweep / name)) for name in ("none_0", "source_0")])
    assert len(table.groups) == 2
    assert (sweep / "report.html").stat().st_size > 10_000
    summary = pd.read_csv(sweep / "summary.csv")
    assert len(summary) == 2
