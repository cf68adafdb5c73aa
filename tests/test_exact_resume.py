"""A killed and resumed run ends with the weights and metrics of an uninterrupted run, with any number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from resnet_lab.data import datamodule
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]

AUGMENTED = ("data.rotation=20", "data.horizontal_flip=0.5", "trainer.max_epochs=4", "data.max_images=40")
DROPOUT = {"widths": [4, 8], "hidden": 8, "dropout": 0.5, "activation": "ReLU", "pretrained": "none"}
NETWORKS = {"resnet": None, "dropout": {"_target_": "resnet_lab.models.example_cnn.example_cnn", **DROPOUT}}
# hook of the module, epoch of the kill
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
    """Ends a job like kill -9: nothing is written afterward."""


def dying(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Kill the next job at a given moment."""
    hook, epoch, number = MOMENTS[moment]
    original = getattr(Classifier, hook)

    def dies(self: Classifier, batch: Any, batch_idx: int, *rest: Any) -> Any:
        if (self.current_epoch, batch_idx) == (epoch, number):
            raise Killed
        return original(self, batch, batch_idx, *rest)

    monkeypatch.setattr(Classifier, hook, dies)


def kill_inside(run: RunFolder, monkeypatch: pytest.MonkeyPatch, epoch: int = 1, batch: int = 2) -> None:
    """Run a job until it is killed before a batch of an epoch."""
    with monkeypatch.context() as patch:
        patch.setitem(MOMENTS, "inside", ("training_step", epoch, batch))
        dying(patch, "inside")
        with pytest.raises(Killed):
            guarded(run)


def loading(monkeypatch: pytest.MonkeyPatch, persistent: bool) -> None:
    """End non-persistent workers with their epoch."""
    loader = datamodule.DataLoader

    def make(*args: Any, persistent_workers: bool, **kwargs: Any) -> Any:
        return loader(*args, persistent_workers=persistent_workers and persistent, **kwargs)

    monkeypatch.setattr(datamodule, "DataLoader", make)


def end_of(run: RunFolder) -> tuple[str, str, dict[str, torch.Tensor]]:
    """Return the final results of a run."""
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    return run.metrics_file.read_text(), run.predictions_file("test").read_text(), weights


def trained_batches(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Run the job, and return (epoch, batch) of its training steps."""
    seen, original = [], Classifier.training_step

    def steps(self: Classifier, batch: Any, batch_idx: int) -> Any:
        seen.append((self.current_epoch, batch_idx))
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", steps)
        assert guarded(run) == 0
    return seen


def same_end(run: RunFolder, other: RunFolder) -> bool:
    *files, weights = end_of(run)
    *other_files, other_weights = end_of(other)
    return files == other_files and all(torch.equal(weights[key], other_weights[key]) for key in weights)


@pytest.fixture
def make(make_run: MakeRun) -> MakeRun:
    """Create a run with augmentation and one of `NETWORKS`."""

    def create_run(network: str, name: str, *overrides: str) -> RunFolder:
        run = make_run(*AUGMENTED, *overrides, name=name)
        if NETWORKS[network]:
            run.write_config(run.read_config() | {"model": NETWORKS[network]})
        return run

    return create_run


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 0), (0, 1)])
def test_a_run_resumes_with_another_number_of_workers(
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
    assert "resuming" in broken.log_file.read_text()
    assert same_end(whole, broken)


INSIDE = ("data.batch_size=8", "trainer.checkpoint_minutes=1e-9", "follow_layers=true")  # saves after every batch


@pytest.mark.slow
def test_a_run_resumes_inside_an_epoch(make: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    # small batches, so that LayerStatistics measures before and after the kill
    whole = make("dropout", "whole", *INSIDE, "trainer.checkpoint_minutes=null", "trainer.max_epochs=2")
    broken = make("dropout", "broken", *INSIDE, "trainer.max_epochs=2")
    guarded(whole)
    kill_inside(broken, monkeypatch)
    assert trained_batches(broken, monkeypatch) == [(1, 2), (1, 3)]
    assert same_end(whole, broken)
    assert whole.layers_file.read_text() == broken.layers_file.read_text()


# overrides; batch of the second epoch with the kill; batches of the resumed job
KEYS = {
    "an accumulation that was not stepped is repeated": (["trainer.accumulate_grad_batches=3"], 2, [0, 1, 2, 3]),
    "an accumulation that was stepped is kept": (["trainer.accumulate_grad_batches=3"], 3, [3]),
    "accumulation with layers": (["trainer.accumulate_grad_batches=2", "follow_layers=true"], 3, [2, 3]),
    "the plateau counts epochs": (
        ["trainer.accumulate_grad_batches=3", "schedule=plateau", "schedule.patience=0", "optim.lr=0.5"],
        3,
        [3],
    ),
    "frozen throughout": (['model.freeze=["0"]', "follow_layers=true", "optim=adamw"], 2, [2, 3]),
    "the epoch of the thaw": (
        ["model.freeze=all_but_head", "model.unfreeze_at_epoch=1", "optim.backbone_lr_factor=0.1", "schedule=cosine"],
        2,
        [2, 3],
    ),
    "after the thaw": (["model.freeze=all_but_head", "model.unfreeze_at_epoch=1", "optim=nadam"], 0, [0, 1, 2, 3]),
    "a compiled network": (
        ["trainer.compile=true", "model.freeze=all_but_head", "model.unfreeze_at_epoch=1"],
        3,  # a smaller batch, the first that the resumed job compiles
        [3],
    ),
    "mixtures of images, views": (["data.mixup=0.4", "data.num_workers=1", "trainer.tta=flips"], 2, [2, 3]),
    "limits and clipping": (
        [
            *("trainer.limit_train_batches=0.75", "trainer.limit_val_batches=1", "trainer.gradient_clip_val=0.1"),
            *("schedule=cosine", "trainer.accumulate_grad_batches=2", "data.num_workers=1", "trainer.profiler=simple"),
        ],
        2,
        [2],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KEYS)
def test_every_key_of_the_trainer_resumes_exactly(make: MakeRun, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    overrides, dies_in, goes_on_with = KEYS[case]
    common = ["data.batch_size=8", "trainer.max_epochs=3", *overrides]
    whole = make("dropout", "whole", *common, "trainer.checkpoint_minutes=null")
    broken = make("dropout", "broken", *common, "trainer.checkpoint_minutes=1e-9")
    assert guarded(whole) == 0
    kill_inside(broken, monkeypatch, batch=dies_in)
    torch._dynamo.reset()  # as in a new process
    again = trained_batches(broken, monkeypatch)
    assert [batch for epoch, batch in again if epoch == 1] == goes_on_with
    assert same_end(whole, broken)
    assert not any("_orig_mod" in name for name in end_of(whole)[-1])
    if whole.layers_file.exists():
        assert whole.layers_file.read_text() == broken.layers_file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "memory", "persistent"), LOADERS)
def test_a_run_killed_inside_any_epoch_resumes_exactly(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, workers: int, memory: bool, persistent: bool
) -> None:
    network = "dropout" if memory else "resnet"
    whole = make(network, "whole", "data.batch_size=8", "data.num_workers=0")
    guarded(whole)
    loading(monkeypatch, persistent)
    differ = []
    for epoch, batch in ((0, 1), (2, 2), (3, 3)):
        name = f"epoch {epoch}, batch {batch}"
        broken = make(network, name, *INSIDE, f"data.num_workers={workers}", f"data.in_memory={memory}")
        kill_inside(broken, monkeypatch, epoch, batch)
        if trained_batches(broken, monkeypatch)[0] != (epoch, batch) or not same_end(whole, broken):
            differ.append(name)
    assert differ == []


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "memory", "persistent"), LOADERS)
def test_a_run_killed_at_any_moment_resumes_exactly(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, workers: int, memory: bool, persistent: bool
) -> None:
    network = "resnet" if memory else "dropout"
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
