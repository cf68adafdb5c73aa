"""`callbacks=ema`: the averaged weights are validated, selected, tested and loaded, and a resumed run is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from resnet_lab.callbacks import AveragedWeights, Observer
from resnet_lab.models.pretrained import load_pretrained
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.trained import load
from resnet_lab.training import guarded

Make = Callable[..., RunFolder]
EMA = ("callbacks=ema", "callbacks.ema.decay=0.8", "trainer.precision=32-true")


def checkpoint(run: RunFolder) -> dict:
    return torch.load(run.last_checkpoint, weights_only=True)


def test_the_average_is_on_the_device_of_training() -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    callback = AveragedWeights(0.9)
    callback.setup(trainer, LightningModule(), "validate")
    module = LightningModule()
    module.fc = nn.Linear(2, 2)
    callback.setup(trainer, module, "fit")
    assert callback._average_model.module.fc.weight.is_meta


def test_the_average_is_tested_and_loaded(make_run: Make, monkeypatch: pytest.MonkeyPatch, photographs: Path) -> None:
    weights: list[torch.Tensor] = []  # weights of the head after each step
    end = Observer.on_train_batch_end

    def note(self, trainer, pl_module, *rest) -> None:
        weights.append(pl_module.model.fc.weight.detach().clone())
        end(self, trainer, pl_module, *rest)

    monkeypatch.setattr(Observer, "on_train_batch_end", note)
    run = make_run(*EMA, "data.val_fraction=0")
    assert guarded(run) == 0
    average = weights[0]
    for each in weights[1:]:
        average = 0.8 * average + 0.2 * each
    torch.testing.assert_close(checkpoint(run)["state_dict"]["model.fc.weight"], average)
    torch.testing.assert_close(checkpoint(run)["current_model_state"]["model.fc.weight"], weights[-1])
    model = load(run.path)
    torch.testing.assert_close(model.network.fc.weight.detach(), average)
    for place in (str(run.path), str(run.last_checkpoint)):  # as `model.pretrained` of another run
        nn.init.zeros_(model.network.fc.weight)
        load_pretrained(model.network, place)
        torch.testing.assert_close(model.network.fc.weight.detach(), average)
    tested = pd.read_csv(run.predictions_file("test")).set_index("image").filter(like="p_")
    again = model(sorted((photographs / "images").glob("test*")))
    again.index = [Path(name).stem for name in again.index]
    np.testing.assert_allclose(tested, again.loc[tested.index, model.class_names], atol=1e-5)
    assert not torch.allclose(average, weights[-1], atol=1e-4)
    assert differences_of([read_run(run)]) == []  # the stored metrics follow from the predictions


@pytest.mark.slow
def test_validation_selects_by_the_average(make_run: Make) -> None:
    plain, ema = make_run("trainer.precision=32-true", name="plain"), make_run(*EMA, name="ema")
    assert guarded(plain) == guarded(ema) == 0
    one, other = (pd.read_csv(run.metrics_file) for run in (plain, ema))
    pd.testing.assert_series_equal(one["train/loss"], other["train/loss"])  # the training is the same
    assert not one["val/loss"].equals(other["val/loss"])
    best = torch.load(ema.best_checkpoint, weights_only=True)
    assert set(best["state_dict"]) == set(torch.load(plain.best_checkpoint, weights_only=True)["state_dict"])
    assert differences_of([read_run(ema)]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "loss"),
    [
        ("1e-9", "cross_entropy"),
        pytest.param("null", "cross_entropy", marks=pytest.mark.slow),
        pytest.param("null", "mse", marks=pytest.mark.slow),
        pytest.param("1e-9", "mse", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_average_is_exact(make_run: Make, monkeypatch: pytest.MonkeyPatch, minutes: str, loss: str) -> None:
    own = (*EMA, f"trainer.checkpoint_minutes={minutes}", f"loss={loss}")
    whole, broken = (make_run(*own, name=name) for name in ("whole", "broken"))
    assert guarded(whole) == 0
    update = EMAWeightAveraging.on_train_batch_end

    def stop(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise RuntimeError("stopped by a test")
        update(self, trainer, pl_module, outputs, batch, batch_idx)

    monkeypatch.setattr(EMAWeightAveraging, "on_train_batch_end", stop)
    assert guarded(broken) == 1
    monkeypatch.setattr(EMAWeightAveraging, "on_train_batch_end", update)
    assert guarded(broken) == 0
    assert Path(broken.metrics_file).read_bytes() == Path(whole.metrics_file).read_bytes()
    for key in ("state_dict", "current_model_state", "averaging_state"):
        one, other = checkpoint(whole)[key], checkpoint(broken)[key]
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert broken.predictions_file("test").read_bytes() == whole.predictions_file("test").read_bytes()
