"""TensorBoard's event files of a run and of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from resnet_lab.run_folder import RunFolder
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


def test_every_job_has_its_hyperparameters_and_final_metrics(runs: list[RunFolder]) -> None:
    for run, lr in zip(runs, (0.05, 0.1), strict=True):
        events = events_of(run)
        shown = hyperparameters(events)
        assert shown["optim.lr"] == pytest.approx(lr)
        assert (shown["model.depth"], shown["seed"]) == (8, 0)
        assert scalars(events, "z_final/test/qwk") == pytest.approx([run.read_status()["metrics"]["test/qwk"]])


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
