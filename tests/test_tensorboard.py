"""TensorBoard's event files of a run and of a sweep."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_data import refusal
from fake_runs import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from waiting import wait_for

from resnet_lab.axes import note_jobs
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.tensorboard import link, names_of, refuse_used_port
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]
pytestmark = pytest.mark.pictures


def events_of(run: RunFolder) -> EventAccumulator:
    """Read all event files of a run completely."""
    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def hyperparameters(events: EventAccumulator) -> dict[str, object]:
    """Return a run's values in the HPARAMS tab."""
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


def scalars(events: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in events.Scalars(tag)]


@pytest.fixture
def runs(make_run: MakeRun) -> Iterator[list[RunFolder]]:
    """Return two jobs of a sweep."""
    own = ("trainer.max_epochs=2", "trainer.log_every_n_steps=2")
    folders = [make_run(f"optim.lr={lr}", *own, name=str(lr)) for lr in (0.05, 0.1)]
    for run in folders:
        assert guarded(run) == 0
    return folders


@pytest.mark.slow
def test_every_job_has_its_hyperparameters_and_final_metrics(runs: list[RunFolder]) -> None:
    for run, lr in zip(runs, (0.05, 0.1), strict=True):
        events = events_of(run)
        shown = hyperparameters(events)
        assert shown["optim.lr"] == pytest.approx(lr)
        assert (shown["model.depth"], shown["seed"]) == (8, 0)
        assert scalars(events, "z_final/test/qwk") == pytest.approx([run.read_status()["metrics"]["test/qwk"]])


@pytest.mark.slow
def test_a_single_run_shows_its_overrides(make_run: MakeRun) -> None:
    run = make_run("optim.lr=0.1", "trainer.max_epochs=1")
    run.update_status(overrides=["optim.lr=0.1", "model=resnet_cifar", "data.cache_dir=cache", "+data.more=0.1"])
    assert guarded(run) == 0
    shown = hyperparameters(events_of(run))
    assert shown == {"label": "run", "seed": 0, "optim.lr": 0.1, "model": "resnet_cifar", "data.more": "0.1"}


def test_scalars_and_pictures_by_epoch(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=2", "trainer.log_every_n_steps=2")
    assert guarded(run) == 0
    events, metrics = events_of(run), pd.read_csv(run.metrics_file)
    assert scalars(events, "val/loss") == pytest.approx(list(metrics["val/loss"]))
    assert scalars(events, "train/loss") == pytest.approx(list(metrics["train/loss"]))
    assert [event.step for event in events.Scalars("train/batch_loss")] == [1, 3]  # two batches per epoch
    assert scalars(events, "z_lr-SGD") == pytest.approx([0.05, 0.05])
    assert "epoch" not in events.Tags()["scalars"]  # the first cards are curves
    assert np.all(np.array(scalars(events, "train/images_per_second")) > 0)
    assert len(scalars(events, "train/images_per_second")) == 2
    assert [image.step for image in events.Images("z_pictures/val_confusion_matrix")] == [0, 1]
    assert [image.step for image in events.Images("z_pictures/sample_batch")] == [0]
    assert events.Images("z_pictures/sample_batch")[0].encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_resumed_run_continues_its_curves(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=2")
    guarded(run)
    config = run.read_config()
    config["trainer"]["max_epochs"] = 4
    run.write_config(config)
    run.update_status(state="interrupted")
    guarded(run)
    events = events_of(run)
    assert len(events.Images("z_pictures/val_confusion_matrix")) == 4
    losses = list(pd.read_csv(run.metrics_file)["val/loss"])
    assert scalars(events, "val/loss") == pytest.approx(losses)
    assert len(events.Images("z_pictures/sample_batch")) == 1


def sweep_of(folder: Path, jobs: dict[str, list[str]]) -> Path:
    """Write a sweep whose jobs have begun to log."""
    for name in jobs:
        (write_run(folder / name) / "tensorboard").mkdir()
    list_jobs(folder, jobs)
    note_jobs(folder, jobs)
    return folder


def test_a_used_port_and_an_unknown_host_are_refused() -> None:
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        message = refusal(refuse_used_port, "localhost", port)
        assert message.startswith(f"port={port} of localhost: ")
    refuse_used_port("localhost", port)
    refuse_used_port("localhost", 0)
    assert refusal(refuse_used_port, "no such host", 0) == "host=no such host: there is no such host"


def test_runs_are_linked_by_their_labels(tmp_path: Path) -> None:
    jobs = {f"pretrained-a-b-{depth}": [f"model.depth={depth}", "model.pretrained=a/b"] for depth in (18, 34)}
    one = sweep_of(tmp_path / "x" / "one", jobs | {"none": ["model.depth=18", "model.pretrained=none"]})
    names = names_of([str(one)])
    assert {*names} == {"depth=18 pretrained=a_b", "depth=34 pretrained=a_b", "depth=18 pretrained=none"}
    assert names["depth=34 pretrained=a_b"] == one / "pretrained-a-b-34" / "tensorboard"
    (write_run(tmp_path / "x" / "single") / "tensorboard").mkdir()
    write_run(tmp_path / "x" / "not_yet")
    (write_run(tmp_path / "x" / "more" / "one") / "tensorboard").mkdir()
    others = {"single", "more/one"}  # the last one is named like the sweep
    assert {*names_of([str(tmp_path / "x")])} == {f"x/one/{name}" for name in names} | others
    assert {*names_of([str(tmp_path / "x" / "single")])} == {"single"}
    with pytest.raises(UserError, match="no run"):
        names_of([str(tmp_path / "x" / "single" / "tensorboard")])


def test_links_follow_a_sweep_that_grows(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    sweep = sweep_of(tmp_path / "sweep", {"a": ["seed=0", "optim.lr=0.1"], "b": ["seed=1", "optim.lr=0.1"]})
    link(names_of([str(sweep)]), shown)
    assert {each.name: each.readlink() for each in shown.iterdir()} == {
        "seed=0": sweep / "a" / "tensorboard",
        "seed=1": sweep / "b" / "tensorboard",
    }
    sweep_of(sweep, {"c": ["seed=1", "optim.lr=0.2"]})  # the learning rate becomes an axis
    link(names_of([str(sweep)]), shown)
    assert {each.name: each.readlink().parent.name for each in shown.iterdir()} == {
        "seed=0 lr=0.1": "a",
        "seed=1 lr=0.1": "b",
        "seed=1 lr=0.2": "c",
    }
    before = {each.name: each.lstat().st_mtime_ns for each in shown.iterdir()}
    link(names_of([str(sweep)]), shown)
    assert {each.name: each.lstat().st_mtime_ns for each in shown.iterdir()} == before


@pytest.mark.slow
def test_tensorboard_shows_the_labels_and_ends_with_the_command(runs: list[RunFolder], tmp_path: Path) -> None:
    sweep = runs[0].path.parent
    jobs = {run.path.name: [f"optim.lr={run.path.name}"] for run in runs}
    list_jobs(sweep, jobs)
    note_jobs(sweep, jobs)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "resnet_lab", "tensorboard", str(sweep), f"port={port}"]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        try:
            wait_for(lambda: shown_at(port) == {"lr=0.05", "lr=0.1"})
        finally:
            process.terminate()
    assert process.returncode == 0
    assert shown_at(port) == set()
    assert not list(tmp_path.glob("tensorboard_*"))


def shown_at(port: int) -> set[str]:
    """Return the names of the runs that TensorBoard shows; empty if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/data/runs", timeout=2) as page:
            return {*json.load(page)}
    except OSError:
        return set()
