"""Loggers: TensorBoard, rows of a CSV file, several at once, none, and external ones by their dotted names."""

from __future__ import annotations

import csv
import importlib
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import composed, with_values
from fake_data import refusal
from lightning.pytorch.loggers import wandb as lightning_wandb
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_lab import evaluate, preflight, trust
from resnet_lab.compatibility import upgraded
from resnet_lab.config import check, config_hash, job_name, words_of_trust
from resnet_lab.loggers import RowLogger
from resnet_lab.module import Classifier
from resnet_lab.report.groups import axes_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.status import command as status
from resnet_lab.sweep import _needs, jobs_of
from resnet_lab.training import guarded, own_parts

Make = Callable[..., RunFolder]
LIGHTNING = "lightning.pytorch.loggers"
OFTEN = ("trainer.log_every_n_steps=1", "data.batch_size=8")  # four steps per epoch
MYLAB = """
import json, pathlib
from lightning.pytorch.loggers import Logger

class Lines(Logger):
    name = version = "lines"
    def __init__(self, save_dir, id, level=1, **others):
        self.given, self.file = {"id": id, "level": level, **others}, pathlib.Path(save_dir) / "lines.txt"
    def log_metrics(self, metrics, step=None):
        with self.file.open("a") as file:
            print(json.dumps({"step": step, **metrics}), file=file)
    def log_hyperparams(self, params, *rest):
        with self.file.open("a") as file:
            print(json.dumps({"given": self.given, "hyperparameters": dict(params)}), file=file)

class NoLogger:
    pass
"""


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write and trust a user's package."""
    (tmp_path / "mylab.py").write_text(MYLAB)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    trust.trust(["mylab"])
    yield
    sys.modules.pop("mylab", None)


def rows_of(run: RunFolder) -> list[dict[str, str]]:
    """Return the rows of the csv logger, each without its empty cells."""
    with (run.path / "csv" / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def timeless(run: RunFolder) -> list[dict[str, str]]:
    """Return the rows without measured times, since a single batch after a kill has none."""
    return [row for row in rows_of(run) if "train/images_per_second" not in row]


def column(run: RunFolder, name: str) -> dict[int, float]:
    """Return step → value."""
    return {int(row["step"]): float(row[name]) for row in rows_of(run) if name in row}


# ---- rows by themselves ----


def text_of(tmp_path: Path) -> str:
    return (tmp_path / "csv" / "metrics.csv").read_text()


def test_rows_are_appended_and_new_columns_are_added(tmp_path: Path) -> None:
    logger = RowLogger(str(tmp_path))
    assert not (tmp_path / "csv").exists()  # the preflight creates nothing
    logger.log_metrics({"b": torch.tensor(0.5), "epoch": 0}, 4)
    assert text_of(tmp_path) == "step,epoch,b\n4,0,0.5\n"
    logger.log_metrics({"b": 1.0, "epoch": 1}, 9)
    logger.log_metrics({"a": float("nan")}, 9)
    logger.log_metrics({"a": "x,y"}, None)
    assert text_of(tmp_path) == 'step,epoch,a,b\n4,0,,0.5\n9,1,,1.0\n9,,nan,\n3,,"x,y",\n'
    assert logger.log_dir == str(tmp_path / "csv")


def test_a_repeated_row_replaces_the_earlier_one(tmp_path: Path) -> None:
    first = RowLogger(str(tmp_path))
    for step in range(3):
        first.log_metrics({"a": step}, step)
        first.log_metrics({"b": step}, step)
    (tmp_path / "csv" / "metrics.csv").write_text(text_of(tmp_path) + "7,,0.12")  # cut by a kill
    second = RowLogger(str(tmp_path))
    second.log_metrics({"a": 1}, 1)
    assert text_of(tmp_path).endswith("7,,0.12")  # the same row is not written again
    second.log_metrics({"b": 5}, 1)
    second.log_metrics({"a": 3}, 3)
    assert text_of(tmp_path) == "step,epoch,a,b\n0,,0,\n0,,,0\n1,,1,\n1,,,5\n2,,2,\n2,,,2\n3,,3,\n"


def test_no_row_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("step,epoch,a\n1,,1\n")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").symlink_to(tmp_path / "precious")
    RowLogger(str(tmp_path)).log_metrics({"a": 2}, 2)
    assert (tmp_path / "precious").read_text() == "step,epoch,a\n1,,1\n"
    assert text_of(tmp_path).endswith("1,,1\n2,,2\n")


def test_hyperparameters_add_up(tmp_path: Path) -> None:
    logger = RowLogger(str(tmp_path))
    logger.log_hyperparams(Namespace(a=1, b=Path("x")))
    logger.log_hyperparams({"a": 2, "c": None})
    assert yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text()) == {"a": 2, "b": "x", "c": None}


# ---- jobs ----


@pytest.mark.slow
def test_the_csv_logger_contains_the_values_of_metrics_csv(make_run: Make) -> None:
    run = make_run("logger=csv", *OFTEN, "follow_layers=true")
    assert guarded(run) == 0
    metrics = pd.read_csv(run.metrics_file)
    for name in metrics.columns.drop(["epoch", "lr"]):
        assert list(column(run, name).values()) == pytest.approx(list(metrics[name]), nan_ok=True)
    assert list(column(run, "val/loss")) == list(column(run, "train/loss")) == [3, 7, 11]
    assert list(column(run, "train/batch_loss")) == list(range(12))
    assert list(column(run, "lr-SGD")) == [0, 4, 8]
    tested = run.read_status()["metrics"]["test/qwk"]
    assert column(run, "final/test/qwk") == {12: pytest.approx(tested)}
    shown = yaml.safe_load((run.path / "csv" / "hparams.yaml").read_text())
    assert (shown["seed"], shown["model.depth"]) == (0, 8)
    assert not any(key.startswith("logger") for key in shown)
    assert not run.tensorboard.exists()
    assert differences_of([read_run(run)]) == []
    assert status([str(run.path)]) in (None, 0)


@pytest.mark.slow
def test_the_logger_does_not_change_the_training(make_run: Make, mylab: None) -> None:
    pairs = {"none": ["logger=none"], "both": ["logger=[tensorboard,csv]", "+logger.mine._target_=mylab.Lines"]}
    runs = {name: make_run(*overrides, "trainer.max_epochs=2", name=name) for name, overrides in pairs.items()}
    assert [guarded(run) for run in runs.values()] == [0, 0]
    none, both = runs["none"], runs["both"]
    assert none.metrics_file.read_bytes() == both.metrics_file.read_bytes()
    assert [file.name for file in none.path.iterdir() if file.is_dir()] == ["checkpoints"]
    events = EventAccumulator(str(both.tensorboard), size_guidance={"scalars": 0, "images": 0}).Reload()
    for name in ("val/loss", "train/loss", "train/images_per_second", "final/test/qwk"):
        shown = [event.value for event in events.Scalars(name.replace("final", "z_final"))]
        assert shown == pytest.approx(list(column(both, name).values()))
    assert [image.step for image in events.Images("z_pictures/val_confusion_matrix")] == [0, 1]
    lines = (both.path / "lines.txt").read_text()
    assert '"val/loss"' in lines
    assert f'"id": "{both.read_status()["id"]}", "level": 1}}, "hyperparameters": {{"seed": 0' in lines
    assert none.read_status()["config_hash"] == both.read_status()["config_hash"]
    assert axes_of([read_run(none), read_run(both)]) == []
    assert "evaluate and predict will need" not in both.log_file.read_text()
    trust._trusted.clear()
    evaluate.command([str(both.path), "split=test", f"out={both.path.parent / 'evaluated'}"])


class Killed(BaseException):
    """Ends a job like kill -9: nothing is written afterward."""


def kill_at(patch: pytest.MonkeyPatch, owner: type, hook: str, epoch: int, number: int | None = None) -> None:
    original = getattr(owner, hook)

    def dies(self, *arguments):
        trainer = self.trainer if isinstance(self, Classifier) else arguments[0]
        if trainer.current_epoch == epoch and number in (None, arguments[-1]):
            raise Killed
        return original(self, *arguments)

    patch.setattr(owner, hook, dies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "minutes"),
    [
        pytest.param("training_step", "1e-9", marks=pytest.mark.slow),
        pytest.param("training_step", "null", marks=pytest.mark.slow),
        ("the end of an epoch", "null"),
        pytest.param("test_step", "null", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_rows_of_an_uninterrupted_one(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, hook: str, minutes: str
) -> None:
    own = ("logger=[csv,tensorboard]", *OFTEN, "trainer.max_epochs=2", f"trainer.checkpoint_minutes={minutes}")
    whole, broken = (make_run(*own, name=name) for name in ("whole", "broken"))
    assert guarded(whole) == 0
    with monkeypatch.context() as patch:
        if hook == "the end of an epoch":  # the checkpoint is written, but Lightning's last values are not logged yet
            patch.setattr("resnet_lab.checkpoints.EpochRows.write", lambda *_: (_ for _ in ()).throw(Killed))
        else:
            kill_at(patch, Classifier, hook, {"training_step": 1}.get(hook, 2), {"training_step": 3}.get(hook))
        with pytest.raises(Killed):
            guarded(broken)
    assert guarded(broken) == 0
    assert "resuming in" in broken.log_file.read_text()
    assert broken.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert timeless(broken) == timeless(whole)
    broken.update_status(state="interrupted")
    assert guarded(broken) == 0  # tests again
    assert timeless(broken) == timeless(whole)


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["[csv,tensorboard]", "none"])
def test_rows_survive_sigkill(make_run: Make, logger: str) -> None:
    own = (f"logger={logger}", *OFTEN, "trainer.max_epochs=6", "trainer.checkpoint_minutes=0.005")
    whole, broken = (make_run(*own, name=name) for name in ("whole", "broken"))
    command = [sys.executable, "-m", "resnet_lab.job"]
    job = subprocess.Popen([*command, str(broken.path)], stdout=subprocess.DEVNULL, start_new_session=True)
    while not (broken.metrics_file.is_file() and len(broken.metrics_file.read_text().splitlines()) > 2):
        assert job.poll() is None
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    for run in (broken, whole):
        subprocess.run([*command, str(run.path)], check=True, stdout=subprocess.DEVNULL)
    assert broken.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    if "csv" in logger:
        assert timeless(broken) == timeless(whole)


def test_a_file_in_place_of_the_rows_is_named(make_run: Make) -> None:
    run = make_run("logger=csv")
    (run.path / "csv").touch()
    assert guarded(run) == 1
    assert f"{run.path / 'csv'} is not a folder, or cannot be written" in run.read_status()["error"]


@pytest.mark.slow
def test_untrained_weights_are_logged_once(make_run: Make) -> None:
    run = make_run("logger=csv", "trainer.max_epochs=0")
    assert guarded(run) == 0
    first = rows_of(run)
    assert {"val/qwk", "final/test/qwk"} <= {name for row in first for name in row}
    run.update_status(state="interrupted")
    assert guarded(run) == 0
    assert rows_of(run) == first


def test_an_older_run_logs_to_tensorboard(make_run: Make) -> None:
    config = make_run().read_config()
    older = {key: value for key, value in config.items() if key != "logger"}
    assert upgraded(older) == config
    assert config_hash(older) == config_hash(config)


# ---- a logger is no part of a training's identity ----


def test_neither_hash_nor_name_of_a_job_depends_on_its_logger() -> None:
    configs = [OmegaConf.to_container(composed(each)) for each in ((), ("logger=csv",), ("logger=none",))]
    assert len({config_hash(each) for each in configs}) == 1
    given = "+logger.w._target_=a.B,+logger.w.tags=[x,y],logger.w.project=p,model.depth=18,seed=0"
    assert job_name(given) == "depth-18_seed-0"
    assert job_name("+logger.w.project=p") == "job"


@pytest.mark.parametrize("axis", ["logger=csv,none", "logger.tensorboard.x=1,2", "+logger.w.project=a,b"])
def test_a_logger_is_not_an_axis_of_a_sweep(axis: str) -> None:
    assert "cannot be swept" in refusal(jobs_of, ["-m", axis])


def test_an_external_logger_is_checked_before_the_first_job() -> None:
    job = OmegaConf.to_container(composed((f"+logger.c._target_={LIGHTNING}.CSVLogger",)), enum_to_str=True)
    assert any("parts" in need for need in _needs(job))
    assert words_of_trust(job) == [f"logger:{LIGHTNING}.CSVLogger"]  # it deletes files in save_dir
    assert words_of_trust(job | {"logger": {"x": {"_target_": "mylab.Lines"}}}) == ["logger:mylab.Lines"]


def test_the_job_sets_folder_and_id_unless_the_user_does(mylab: None) -> None:
    csv_logger = (f"+logger.c._target_={LIGHTNING}.CSVLogger", "+logger.c.save_dir=mine")
    lines = ("+logger.l._target_=mylab.Lines", "+logger.l.id=me", "+logger.l.level=2", "+logger.l.more=3")
    config = composed(("logger=none", *csv_logger, *lines))
    check(config, importing=True)
    trust.trust([f"logger:{LIGHTNING}.CSVLogger"])
    first, second = own_parts(OmegaConf.to_container(config), "logger", save_dir="run", id="of the run").values()
    assert first.save_dir == "mine"
    assert (second.file, second.given) == (Path("run/lines.txt"), {"id": "me", "level": 2, "more": 3})


# ---- bad input ----


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("logger=nothing",),
            "logger=nothing: there is no such choice; choose csv, none, tensorboard",
        ),
        (("logger=null",), "logger=null: name a file of conf/logger/"),
        (("logger=[]",), "logger=[]: name a file of conf/logger/"),
        (("+logger=csv",), "logger has a default already; write logger=csv"),
        (("~logger",), "logger is not set; give logger=…"),
        (("loggers=csv",), "did you mean logger?"),
        (("logger.tensorboard.version=3",), "logger.tensorboard.version: there is no such key"),
        (
            ("+logger.tensorboard.version=3",),
            "logger.tensorboard.version: resnet_lab.loggers.tensorboard takes no such",
        ),
        (("logger=csv", "+logger.csv.save_dir=x"), "logger.csv.save_dir: the job sets it; leave it out"),
        (("logger=csv", "+logger.csv.save_dir=x"), "the job sets it"),
        (("+logger.x.y=1",), "logger.x has no _target_; set logger.x._target_ to the name of a logger"),
        (("logger.tensorboard=5",), "logger.tensorboard"),
        (("+logger.x._target_=5",), "logger.x._target_=5: must be text"),
        (("+logger.x._target_=mylab.NoLogger",), f"returns a NoLogger, not a {LIGHTNING}.Logger; name a logger"),
        (("+logger.x._target_=mylab.Nothing",), "logger.x._target_ mylab.Nothing: mylab has no Nothing"),
        ((f"+logger.x._target_={LIGHTNING}.CSVLogger", "+logger.x.nme=y"), "did you mean logger.x.name?"),
        (
            (f"+logger.w._target_={LIGHTNING}.WandbLogger",),
            f"logger.w._target_ {LIGHTNING}.WandbLogger needs a package that is not installed: ",
        ),
        ((f"+logger.w._target_={LIGHTNING}.WandbLogger",), "; pip install 'resnet-lab[wandb]'"),
    ],
)
def test_bad_loggers_are_named_before_anything_is_trained(
    mylab: None, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], line: str
) -> None:
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", False)

    def look() -> None:
        config = with_values(["data=synthetic", "model=resnet_cifar", "data.image_size=32", *overrides])
        check(config)
        plain = OmegaConf.to_container(config, resolve=True)
        trust.trust(words_of_trust(plain))  # as in the command
        preflight.check_parts(plain)

    assert line in refusal(look)


@pytest.mark.parametrize("target", ["os.system", f"{LIGHTNING}.CSVLogger", "resnet_lab.loggers.boards"])
def test_a_given_run_folder_brings_no_external_logger(make_run: Make, target: str) -> None:
    run = make_run()
    run.write_config(run.read_config() | {"logger": {"mine": {"_target_": target}}})
    assert guarded(run) == 1
    assert f"logger.mine._target_ {target} is not called, as it is not one of" in run.read_status()["error"]
    assert f"add trust=logger:{target} to the command" in run.read_status()["error"]


@pytest.mark.parametrize("logger", [None, 5, [1], {"mine": None}, {"mine": 3}, {"mine": {"_target_": 3}}])
def test_odd_loggers_of_a_given_run_folder_are_named(make_run: Make, logger: object) -> None:
    run = make_run()
    run.write_config(run.read_config() | {"logger": logger})
    assert guarded(run) == 1
    assert "logger" in run.read_status()["error"]
    assert "Traceback" not in run.read_status()["error"]


# ---- external loggers ----


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    trust.trust([f"logger:{LIGHTNING}.WandbLogger"])  # as in the command that names it
    run = make_run(f"+logger.w._target_={LIGHTNING}.WandbLogger", "+logger.w.offline=true", "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        kill_at(patch, Classifier, "training_step", 1, 0)
        with pytest.raises(Killed):
            guarded(run)
    wandb.finish()
    assert guarded(run) == 0
    final = dict(wandb.run.summary)
    wandb.finish()
    assert final["final/test/qwk"] == pytest.approx(run.read_status()["metrics"]["test/qwk"])
    assert final["val/loss"] == pytest.approx(pd.read_csv(run.metrics_file)["val/loss"].iloc[-1])
    starts = list((run.path / "wandb").glob("offline-run-*"))
    assert {each.name.rpartition("-")[2] for each in starts} == {run.read_status()["id"]}  # one run of W&B
    plain = make_run("logger=none", "trainer.max_epochs=2", name="plain")
    assert guarded(plain) == 0
    assert run.metrics_file.read_bytes() == plain.metrics_file.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_sqlite(make_run: Make, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    trust.trust([f"logger:{LIGHTNING}.MLFlowLogger"])
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = make_run(f"+logger.m._target_={LIGHTNING}.MLFlowLogger", f"+logger.m.tracking_uri={place}")
    assert guarded(run) == 0
    client = MlflowClient(place)
    (theirs,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert theirs.info.status == "FINISHED"
    assert theirs.data.params["model.depth"] == "8"
    assert theirs.data.metrics["final/test/qwk"] == pytest.approx(run.read_status()["metrics"]["test/qwk"])
    losses = [each.value for each in client.get_metric_history(theirs.info.run_id, "val/loss")]
    assert losses == pytest.approx(list(pd.read_csv(run.metrics_file)["val/loss"]))
