"""A killed run ends with the weights and metrics of one that was not, whatever reads its images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from resnet_lab.data import datamodule
from resnet_lab.job import guarded
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]

AUGMENTED = ("data.rotation=20", "data.horizontal_flip=0.5", "trainer.max_epochs=4", "data.max_images=40")
DROPOUT = {"widths": [4, 8], "hidden": 8, "dropout": 0.5, "activation": "ReLU", "pretrained": "none"}
NETWORKS = {"resnet": None, "dropout": {"_target_": "resnet_lab.models.example_cnn.example_cnn", **DROPOUT}}
# hook of the module, epoch in which it dies
MOMENTS = {
    "first epoch": ("training_step", 0, 1),
    "start of the second epoch": ("training_step", 1, 0),
    "middle epoch": ("training_step", 2, 1),
    "validation of a middle epoch": ("validation_step", 2, 0),
    "last epoch": ("training_step", 3, 1),
    "test": ("test_step", 4, 0),
}
# data.num_workers, data.in_memory, persistent workers
LOADERS = [
    (workers, memory, persistent)
    for workers, memory, persistent in itertools.product((0, 1, 2), (True, False), (True, False))
    if workers or persistent
]


class Killed(BaseException):
    """Ends a job as kill -9 would: nothing is written after it."""


def dying(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Let the next job die at a moment."""
    hook, epoch, number = MOMENTS[moment]
    original = getattr(Classifier, hook)

    def dies(self: Classifier, batch: Any, batch_idx: int, *rest: Any) -> Any:
        if (self.current_epoch, batch_idx) == (epoch, number):
            raise Killed
        return original(self, batch, batch_idx, *rest)

    monkeypatch.setattr(Classifier, hook, dies)


def loading(monkeypatch: pytest.MonkeyPatch, persistent: bool) -> None:
    """Let workers die with their epoch where they are not to be persistent."""
    loader = datamodule.DataLoader

    def make(*args: Any, persistent_workers: bool, **kwargs: Any) -> Any:
        return loader(*args, persistent_workers=persistent_workers and persistent, **kwargs)

    monkeypatch.setattr(datamodule, "DataLoader", make)


def end_of(run: RunFolder) -> tuple[str, str, dict[str, torch.Tensor]]:
    """What a run ends with."""
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    return run.metrics_file.read_text(), run.predictions_file("test").read_text(), weights


def same_end(run: RunFolder, other: RunFolder) -> bool:
    *files, weights = end_of(run)
    *other_files, other_weights = end_of(other)
    return files == other_files and all(torch.equal(weights[key], other_weights[key]) for key in weights)


@pytest.fixture
def make(make_run: MakeRun) -> MakeRun:
    """Lay a run with augmentation and one of `NETWORKS`."""

    def lay(network: str, name: str, *overrides: str) -> RunFolder:
        run = make_run(*AUGMENTED, *overrides, name=name)
        if NETWORKS[network]:
            run.write_config(run.read_config() | {"model": NETWORKS[network]})
        return run

    return lay


@pytest.mark.parametrize(("first", "then"), [pytest.param(2, 0, marks=pytest.mark.slow), (0, 1)])
def test_a_run_goes_on_with_another_number_of_workers(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, first: int, then: int
) -> None:
    whole, broken = make("dropout", "whole"), make("dropout", "broken", f"data.num_workers={first}")
    guarded(whole)
    with monkeypatch.context() as patch:
        dying(patch, "middle epoch")
        with pytest.raises(Killed):
            guarded(broken)
    config = broken.read_config()
    broken.write_config(config | {"data": config["data"] | {"num_workers": then}})
    assert guarded(broken) == 0
    assert "going on" in broken.log_file.read_text()
    assert same_end(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("workers", "memory", "persistent"), LOADERS)
def test_killed_at_any_moment(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, network: str, workers: int, memory: bool, persistent: bool
) -> None:
    whole = make(network, "whole", "data.num_workers=0")
    guarded(whole)
    loading(monkeypatch, persistent)
    differ = []
    for moment in MOMENTS:
        broken = make(network, moment, f"data.num_workers={workers}", f"data.in_memory={memory}")
        with monkeypatch.context() as patch:
            dying(patch, moment)
            with pytest.raises(Killed):
                guarded(broken)
        assert guarded(broken) == 0
        if not same_end(whole, broken):
            differ.append(moment)
    assert differ == []
