"""The optimizer steps and the gathered outputs of the LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from resnet_lab import objectives, optim
from resnet_lab.build import build_datamodule, build_module
from resnet_lab.data import augmentation
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder


@pytest.fixture
def classifier() -> Classifier:
    loss = objectives.cross_entropy(0.0, "none", [1, 1])
    return Classifier(nn.Identity(), loss, torch.optim.SGD, functools.partial(optim.constant), ["a", "b"], False)


@pytest.mark.parametrize(("batches", "accumulate", "steps"), [(10, 1, 10), (10, 3, 4), (9, 3, 3), (2, 5, 1), (0, 1, 1)])
def test_schedules_count_optimizer_steps_and_lightning_counts_batches(
    classifier: Classifier, batches: int, accumulate: int, steps: int
) -> None:
    seen = []

    def schedule(optimizer: torch.optim.Optimizer, steps_per_epoch: int, max_epochs: int, monitor: str) -> Any:
        seen.append((steps_per_epoch, max_epochs))
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)

    classifier.loss = nn.PReLU()  # it has a parameter
    classifier.schedule_factory = functools.partial(schedule, monitor="val/loss")
    datamodule = SimpleNamespace(batches_per_epoch=lambda: batches)
    classifier._trainer = SimpleNamespace(
        max_epochs=7, accumulate_grad_batches=accumulate, datamodule=datamodule, precision="32-true"
    )
    config = classifier.configure_optimizers()["lr_scheduler"]
    assert seen == [(steps, 7)]
    assert (config["interval"], config["frequency"]) == ("step", max(1, batches))


@pytest.mark.parametrize("ranks", [[[3, 0, 4, 1, 2]], [[4, 0, 2], [3, -1, 1]]])  # -1: padding
def test_outputs_are_in_the_order_of_the_table(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, ranks: list[list[int]]
) -> None:
    columns = [[torch.tensor(own), torch.tensor(own)[:, None] * torch.tensor([1.0, 10.0])] for own in ranks]
    stacked = iter([torch.stack(column) for column in zip(*columns, strict=True)])
    # all_gather of several ranks, and of a single rank
    monkeypatch.setattr(classifier, "all_gather", lambda own: next(stacked) if len(ranks) > 1 else own)
    index, outputs = classifier._gather([tuple(column[:2] for column in columns[0]), tuple(c[2:] for c in columns[0])])
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert outputs.tolist() == [[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a GPU without values, inside a `FakeTensorMode`."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="an older torch asks for the driver of the GPU")
@pytest.mark.parametrize(
    "own",
    [("loss=cross_entropy", "data.mixup=0.4", "data.hue=0.1", "data.rotation=9"), ("loss=smooth_l1",), ("loss=corn",)],
)
def test_a_training_step_on_a_gpu_waits_for_no_value(
    make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, own: tuple[str, ...]
) -> None:
    config = make_run("data.in_memory=device", "data.num_workers=0", *own).read_config()
    datamodule = build_datamodule(config)
    batch = next(iter(datamodule.train_dataloader()))
    module = build_module(config, datamodule, pretrained=False)
    # without its cache, which would keep tensors of this mode
    monkeypatch.setattr(augmentation, "_color_matrices", augmentation._color_matrices.__wrapped__)
    monkeypatch.setattr("torch.cuda.Event", lambda enable_timing: SimpleNamespace(record=lambda: None))
    with FakeTensorMode(allow_non_fake_inputs=True):  # raises where a value is read, or where devices meet
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                tensors.update({name: on_gpu(each) for name, each in tensors.items() if each is not None})
        moved = {key: on_gpu(each) if torch.is_tensor(each) else each for key, each in batch.items()}
        pixels = on_gpu(datamodule.resident["train"].pixels)
        datamodule.resident["train"] = datamodule.resident["train"]._replace(pixels=pixels)
        moved = datamodule.on_after_batch_transfer(moved, 0)
        loss = module.training_step(moved, 0)
        module._step(moved, "val")
        with pytest.raises(DataDependentOutputException):
            loss.item()
    assert loss.device.type == "cuda"
    assert module.split_metrics("train").rows[0][1].device.type == "cuda"
