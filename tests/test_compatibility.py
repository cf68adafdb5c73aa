"""Run folders of older versions: a sweep of commit e53b772 is resumed, evaluated and used to predict."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_data import refusal
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import resnet_lab.train as train
from resnet_lab import compatibility, evaluate, launch, predict
from resnet_lab.compatibility import (
    ADDED,
    CHANGED,
    SCHEMA_VERSION,
    Added,
    upgraded,
    upgraded_status,
    with_older_defaults,
)
from resnet_lab.config import compose_config
from resnet_lab.run_folder import RunFolder, find_runs
from resnet_lab.signatures import defaults_in
from resnet_lab.sweep import jobs_of
from resnet_lab.training import guarded

OLDER = Path(__file__).with_name("older")
EXPERIMENT = """# @package _global_
defaults:
  - override /data: retinopathy
  - override /model: resnet_cifar
  - override /trainer: cpu
  - override /schedule: cosine
model: {depth: 8, widths: [4, 4, 8]}
data:
  {image_size: 24, batch_size: 16, val_fraction: 0.25, root: photographs, cache_dir: cache,
  brightness: 0.1, contrast: 0.1, saturation: 0.1, hue: 0.1}
trainer: {max_epochs: 4, progress_bar: false, precision: 32-true, channels_last: false}
optim: {lr: 0.05}
"""


@pytest.fixture
def sweep(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a sweep of commit e53b772: seed 0 is done, seed 1 was killed after two of four epochs."""
    folder = tmp_path / "sweep"
    shutil.copytree(OLDER / "e53b772", folder)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_command_of_an_older_sweep_is_not_a_changed_one(sweep: Path) -> None:
    command = ["--config-dir", "conf", "-m", "experiment=tiny", "seed=0,1,2", "sweep_dir=sweep"]
    assert len(jobs_of(command)) == 1  # one for all seeds
    changed = Path("conf/experiment/tiny.yaml")
    changed.write_text(changed.read_text().replace("lr: 0.05", "lr: 0.06"))
    assert "different configuration: optim.lr is 0.05 there, 0.06 here; no job" in refusal(jobs_of, command)


@pytest.mark.slow
def test_the_command_of_an_older_sweep_resumes_it(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run_here(module: str, arguments: list[str], fork: bool) -> int:
        run = RunFolder(Path(arguments[0]))
        started.append(run.path.name)
        with run.lock():
            return guarded(run)

    monkeypatch.setattr(launch, "run_module", run_here)
    monkeypatch.setattr(train, "preflight", lambda *_: True)
    command = ["train", "--config-dir", "conf", "-m", "experiment=tiny", "seed=0,1,2", "sweep_dir=sweep"]
    monkeypatch.setattr(sys, "argv", command)
    for again in (False, True):  # the second time, the new job of the older sweep is done too
        GlobalHydra.instance().clear()
        assert train.main() == 0
        assert started == ([] if again else ["experiment-tiny_seed-1", "experiment-tiny_seed-2"])
        started.clear()
    runs = find_runs([sweep])
    assert [run.read_status()["state"] for run in runs] == ["done"] * 3
    assert {run.read_config()["data"]["patient_regex"] for run in runs} == {"(.+)_(?:left|right)"}
    resumed = pd.read_csv(sweep / "experiment-tiny_seed-1" / "metrics.csv")
    uninterrupted = pd.read_csv(sweep / "uninterrupted.csv")
    shared = [column for column in uninterrupted if column in resumed]
    assert "val/loss" in shared
    # another processor rounds differently
    pd.testing.assert_frame_equal(resumed[shared], uninterrupted[shared], atol=1e-3)


@pytest.mark.slow
def test_an_older_run_is_evaluated_and_predicts(sweep: Path, tmp_path: Path) -> None:
    run, before = sweep / "experiment-tiny_seed-0", OLDER / "e53b772" / "experiment-tiny_seed-0"
    evaluate.command([str(run), "split=test", "out=evaluated"])
    columns = [f"p_{grade}" for grade in range(5)]
    stored = pd.read_csv(before / "predictions_test.csv").set_index("image")[columns]
    found = pd.read_csv("evaluated/predictions_test.csv").set_index("image")[columns]
    pd.testing.assert_frame_equal(found, stored, atol=1e-4)
    predict.command([str(run / "checkpoints" / "best.ckpt"), "photographs/images", "out=predictions.csv"])
    assert len(pd.read_csv("predictions.csv")) == 64


def test_keys_are_added_and_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDED, "data.new", Added(1, ("a.B",)))
    monkeypatch.setitem(compatibility.RENAMED, "data.old", ("data.one", "data.two"))
    config = {"seed": 0, "data": {"_target_": "a.B", "old": 0.2, "two": 0.5}, "model": "none"}
    changed = upgraded(config)
    assert {key: changed["data"][key] for key in ("new", "one", "two")} == {"new": 1, "one": 0.2, "two": 0.5}
    assert "old" not in changed["data"]
    assert config["data"] == {"_target_": "a.B", "old": 0.2, "two": 0.5}
    assert "new" not in upgraded({"data": {"_target_": "other.C"}})["data"]


def test_a_changed_default_is_the_older_one_in_older_folders_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "CHANGED", {"data.key": (2, "before", "after")})
    now, before = {"data": {"key": "after"}}, {"data": {"key": "before"}}
    assert with_older_defaults(now, before, 1, ()) == before
    assert with_older_defaults(now, before, 2, ()) == now
    assert with_older_defaults(now, before, 1, {"data.key"}) == now
    assert with_older_defaults({"data": {"key": "third"}}, before, 1, ()) == {"data": {"key": "third"}}


def test_an_older_folder_keeps_its_pattern_of_patients_and_its_splits() -> None:
    older = {"data": {"patient_regex": "(.+)_(?:left|right)"}}
    assert upgraded(older)["data"]["patient_regex"] == "(.+)_(?:left|right)"
    assert upgraded(older)["data"]["all_images"] is None
    assert with_older_defaults({"data": {"patient_regex": "auto"}}, older, 1, ())["data"] == older["data"]


def test_an_added_augmentation_brings_its_value_for_older_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "augmented.py").write_text("class A:\n    rotation: float\n    shear: float = 0.0\n    x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert defaults_in("augmented", "A") == {"shear": 0.0}
    shared = compose_config(["data=synthetic"]).data
    known = defaults_in("resnet_lab.data.augmentation", "Augmentation")
    assert known == {name: shared[name] for name in known}  # none yet; conf/data/_common.yaml has the same values
    assert all(ADDED[f"data.{name}"].value == value for name, value in known.items())


def test_overrides_of_an_older_status_get_their_current_name() -> None:
    assert upgraded_status({"asked": ["seed=1"], "state": "done"}) == {"overrides": ["seed=1"], "state": "done"}


def test_a_first_label_that_had_no_effect_is_gone() -> None:
    data = {"labels": {"none": 0}, "first_label": 1}
    assert upgraded({"data": data})["data"]["first_label"] == 0
    assert upgraded({"data": data | {"labels": None}})["data"]["first_label"] == 1


@pytest.mark.slow
def test_keys_added_with_another_default_keep_it_in_commands_of_older_sweeps() -> None:
    """The default of an added key reproduces older runs, or the table of changes has the version of the change."""
    for key, added in ADDED.items():
        for name in ("synthetic", "retinopathy", "class_folders"):
            default = OmegaConf.select(compose_config([f"data={name}", "data.root=x"]), key, default=added.value)
            default = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
            if added.targets and default != added.value:
                assert CHANGED[key][1:] == (added.value, default)


def test_a_folder_of_a_newer_version_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.update_status(state="done")
    written = run.status_file.read_text()
    newer = written.replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}')
    assert newer != written
    run.status_file.write_text(newer)
    for call in (run.read_status, run.update_status):
        message = refusal(call)
        assert message.startswith(f"{run.status_file}: a newer version of resnet_lab wrote it")
        assert message.endswith(f"up to {SCHEMA_VERSION}); update resnet_lab")
    assert run.status_file.read_text() == newer
