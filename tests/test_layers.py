"""Statistics by layer: equal to a computation by hand, and unchanged by a restart."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from resnet_lab.layers import LayerStatistics, is_activation
from resnet_lab.models.resnet import resnet
from resnet_lab.plots.layers import profile_of
from resnet_lab.report.runs import read_layers
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def trained(statistics: LayerStatistics, model: nn.Module, batches: list[torch.Tensor]) -> pd.DataFrame:
    """Run one epoch without an optimizer; the loss is the sum of all outputs."""
    trainer = SimpleNamespace(num_training_batches=len(batches), current_epoch=0, is_global_zero=True, loggers=[])
    module = SimpleNamespace(model=model)
    for number, batch in enumerate(batches):
        statistics.on_train_batch_start(trainer, module, None, number)
        model.zero_grad()
        model(batch).sum().backward()
        statistics.on_before_optimizer_step(trainer, module, None)
    statistics.on_train_epoch_end(trainer, module)
    return read_layers(statistics.run.layers_file)


def test_quantities_match_their_definition(run: RunFolder) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias[1] = -100.0  # a dead unit
    batches = [torch.randn(6, 3, 5, 5) for _ in range(2)]
    frame = trained(LayerStatistics(run), model, batches)
    active = [torch.relu(model[0](batch)) for batch in batches]
    (variance,) = profile_of(frame, 0)["activation_variance"]
    assert variance == pytest.approx(np.mean([values.var().item() for values in active]), rel=1e-5)
    assert profile_of(frame, 0)["dead_units"].tolist() == [0.25]
    norms = []
    for batch in batches:
        model.zero_grad()
        model(batch).sum().backward()
        norms.append([model[0].weight.grad.norm().item(), model[4].weight.grad.norm().item()])
    np.testing.assert_allclose(profile_of(frame, 0)["gradient_norm"], np.mean(norms, axis=0), rtol=1e-5)


def test_hooks_are_gone_after_each_measured_batch(run: RunFolder) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.ReLU())
    statistics = LayerStatistics(run)
    frame = trained(statistics, model, [torch.randn(2, 3) for _ in range(50)])
    assert len(frame) == 3
    assert not any(module._forward_hooks for module in model.modules())


def test_a_frozen_layer_keeps_its_place_in_the_profile(run: RunFolder) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    norms = profile_of(trained(LayerStatistics(run), model, [torch.randn(2, 3)]), 0)["gradient_norm"]
    assert np.isnan(norms).tolist() == [True, False]


def test_an_accumulated_step_is_measured_once(run: RunFolder) -> None:
    model, statistics = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.ReLU()), LayerStatistics(run)
    trainer = SimpleNamespace(num_training_batches=2, current_epoch=0, is_global_zero=True, loggers=[])
    module = SimpleNamespace(model=model)
    for number in (0, 1):
        statistics.on_train_batch_start(trainer, module, None, number)
        model(torch.randn(2, 3)).sum().backward()
    statistics.on_before_optimizer_step(trainer, module, None)
    assert {name: count for (name, _), count in statistics._counts.items()} == {
        "activation_variance": 2,
        "dead_units": 2,
        "gradient_norm": 1,
    }
    assert not any(layer._forward_hooks for layer in model.modules())


def test_an_omitted_last_activation_keeps_its_place() -> None:
    names = [
        [name for name, layer in resnet(18, last_activation=last).named_modules() if is_activation(name, layer)]
        for last in (True, False)
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 17  # the stem, and two in each of 8 blocks


@pytest.mark.slow
def test_a_job_writes_them_for_every_epoch_and_resumes_after_a_kill(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_run("follow_layers=true", "trainer.max_epochs=2", name="whole")
    assert guarded(whole) == 0
    frame = read_layers(whole.layers_file)
    assert frame.groupby("epoch").size().tolist() == [frame.groupby("epoch").size()[0]] * 2
    assert set(frame["quantity"]) == {"gradient_norm", "activation_variance", "dead_units"}
    assert np.isfinite(frame["value"]).all()
    broken = make_run("follow_layers=true", "trainer.max_epochs=2", name="broken")
    ended = LayerStatistics.on_train_epoch_end

    def killed(self: LayerStatistics, trainer, module) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")
        ended(self, trainer, module)

    monkeypatch.setattr(LayerStatistics, "on_train_epoch_end", killed)
    assert guarded(broken) != 0
    assert read_layers(broken.layers_file)["epoch"].unique().tolist() == [0]
    monkeypatch.setattr(LayerStatistics, "on_train_epoch_end", ended)
    assert guarded(broken) == 0
    assert broken.layers_file.read_text() == whole.layers_file.read_text()
