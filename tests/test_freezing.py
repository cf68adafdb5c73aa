"""Frozen parts of a network, and the learning rate of the backbone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_data import refusal
from torch import nn
from torchvision import models

from resnet_lab import optim
from resnet_lab.freezing import Freezing, idle_keys, names_in
from resnet_lab.models.example_cnn import example_cnn
from resnet_lab.models.resnet import resnet
from resnet_lab.optim import optimizer_of, refuse_lost_factor
from resnet_lab.parts import head_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]

TOP = {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}  # of the CIFAR form


def small(**options: Any) -> nn.Module:
    return resnet(8, 5, form="cifar", widths=[4, 4, 8], **options)


def state_of(run: RunFolder, file: str) -> dict[str, torch.Tensor]:
    content = torch.load(run.checkpoints / file, weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in content.items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        (None, TOP),
        ([], TOP),
        ("all_but_head", {"fc"}),
        (["conv1", "layer1"], TOP - {"conv1", "layer1"}),
        ("layer1", TOP - {"layer1"}),
        (["fc"], TOP - {"fc"}),
        (["layer1.0"], TOP - {"layer1"}),
        (["layer2.0.conv1.weight"], TOP),
    ],
)
def test_frozen_parts_have_no_gradient(freeze: Any, trained: set[str]) -> None:
    network = small()
    Freezing(network, freeze, None)
    found = {name.partition(".")[0] for name, each in network.named_parameters() if each.requires_grad}
    assert found == trained


class Shared(nn.Module):
    """A network with a layer in two places, a weight in two layers, and two names of its head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
        self.b, self.c, self.fc = self.a, nn.Conv2d(3, 3, 3), nn.Linear(3, 2)
        self.c.weight, self.head = self.a[0].weight, self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.c(self.b(self.a(images))).mean((2, 3)))
        return found


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("b", {"c.bias", "fc.weight", "fc.bias"}),
        ("c", {"a.0.bias", "a.1.weight", "a.1.bias", "fc.weight", "fc.bias"}),
        ("all_but_head", {"fc.weight", "fc.bias"}),
    ],
)
def test_shared_layers_and_weights_are_frozen_by_any_of_their_names(freeze: str, trained: set[str]) -> None:
    network = Shared()
    freezing = Freezing(network, freeze, until=None)
    assert {name for name, each in network.named_parameters() if each.requires_grad} == trained
    network.train()
    freezing._begin(0)
    assert network.a[1].training == (freeze == "c")


def test_a_prefix_ends_at_a_dot() -> None:
    network = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("layer1", "layer10")})
    assert names_in(network, ["layer1"]) == {"layer1", "layer1.weight", "layer1.bias"}


def test_the_head_is_the_last_linear_layer() -> None:
    cnn = example_cnn(3, [4], 8, 0.5, "ReLU")
    assert {name for name, _ in cnn.named_parameters()} - names_in(cnn, "all_but_head") == {"8.weight", "8.bias"}
    assert "7" in names_in(cnn, "all_but_head")  # dropout
    hidden = small(hidden_head=True)
    left = {name for name, _ in hidden.named_parameters()} - names_in(hidden, "all_but_head")
    (layer,) = {name.rpartition(".")[0] for name in left}
    assert hidden.get_submodule(layer).out_features == 5
    nested = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(), nn.Linear(3, 2)))
    assert names_in(nested, "all_but_head") == {"0", "0.weight", "0.bias", "1.0"}


def test_the_last_convolution_is_the_head_of_a_network_without_linear_layers() -> None:
    squeezenet = models.squeezenet1_1(num_classes=5)
    left = {name for name, _ in squeezenet.named_parameters()} - names_in(squeezenet, "all_but_head")
    assert left == {"classifier.1.weight", "classifier.1.bias"}


def test_numbers_are_names_of_layers_too() -> None:
    assert names_in(example_cnn(3, [4], 8, 0.5, "ReLU"), [0]) == {"0", "0.weight", "0.bias"}  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("network", "freeze", "words"),
    [
        (small(), ["layer9"], ["layer9", "conv1, bn1, layer1, layer2, layer3, fc"]),
        (small(), ["layer1", "layer"], [" layer "]),
        (small(), "none", ["none"]),
        (small(), [""], ["no part"]),
        (small(), ["activation"], ["activation with weights"]),
        (small(), [*TOP], ["nothing is left"]),
        (nn.Sequential(nn.BatchNorm2d(3)), "all_but_head", ["no linear layer and no convolution"]),
    ],
)
def test_a_part_that_cannot_be_frozen_is_refused(network: nn.Module, freeze: Any, words: Sequence[str]) -> None:
    message = refusal(Freezing, network, freeze, None)
    assert message.startswith("model.freeze")
    assert all(word in message for word in words)


@pytest.mark.parametrize(("epoch", "trains"), [(0, False), (1, False), (2, True), (3, True)])
@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_start"])
def test_parts_are_unfrozen_at_their_epoch(hook: str, epoch: int, trains: bool) -> None:
    network = small()
    freezing = Freezing(network, ["layer1", "conv1.weight"], 2)
    getattr(freezing, hook)(SimpleNamespace(current_epoch=epoch), None)
    assert {layer.training for layer in network.layer1.modules()} == {trains}
    assert network.layer2.training
    assert network.bn1.training
    assert {each.requires_grad for each in (network.conv1.weight, *network.layer1.parameters())} == {trains}


@pytest.mark.parametrize(
    ("freeze", "until", "factor", "epochs", "words"),
    [
        (None, None, 0.1, 3, []),
        ("layer1", 2, 0.1, 3, []),
        ("all_but_head", 2, 0.1, 3, []),
        (None, 2, 1, 3, ["unfreeze_at_epoch=2 has no effect"]),
        ("layer1", 3, 1, 3, ["unfreeze_at_epoch=3 is not reached: trainer.max_epochs=3"]),
        ("layer1", 3, 1, 0, []),
        ("all_but_head", None, 0.1, 3, ["backbone_lr_factor=0.1 has no effect"]),
        ("all_but_head", 5, 0.1, 3, ["is not reached", "backbone_lr_factor=0.1 has no effect"]),
    ],
)
def test_keys_without_effect_are_reported(
    freeze: Any, until: int | None, factor: float, epochs: int, words: list[str]
) -> None:
    config = {"trainer": {"max_epochs": epochs}, "optim": {"backbone_lr_factor": factor}}
    said = idle_keys(config, Freezing(small(), freeze, until))
    assert [word in text for word, text in zip(words, said, strict=True)] == [True] * len(words)


def test_a_factor_without_a_head_is_refused() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    config = {"trainer": {"max_epochs": 1}, "optim": {"backbone_lr_factor": 0.5}}
    assert refusal(idle_keys, config, Freezing(network, None, None)).startswith("optim.backbone_lr_factor=0.5")


@pytest.mark.parametrize("make", [functools.partial(torch.optim.SGD, lr=0.1), torch.optim.Adam])
def test_the_backbone_has_its_own_learning_rate(make: Any) -> None:
    module = nn.ModuleDict({"model": small(), "loss": nn.PReLU()})
    optimizer = optimizer_of(make, module, module["model"], 0.01)
    head, backbone = optimizer.param_groups
    assert backbone["lr"] == pytest.approx(0.01 * head["lr"])
    own = [*module["model"].fc.parameters(), *module["loss"].parameters()]
    assert {id(each) for each in head["params"]} == {id(each) for each in own}
    assert len(backbone["params"]) + len(own) == len([*module.parameters()])


@pytest.mark.parametrize(
    ("schedule", "lost"),
    [
        (functools.partial(optim.cosine, steps_per_epoch=3, max_epochs=4, warmup_epochs=1.0, warmup_factor=0.1), False),
        (functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=5), True),
        (functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=[0.1, 0.02], total_steps=5), False),
    ],
)
def test_a_schedule_that_loses_the_factor_is_refused(schedule: Any, lost: bool) -> None:
    network = small()
    optimizer = optimizer_of(functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), network, network, 0.2)
    schedule(optimizer)
    if lost:
        assert refusal(refuse_lost_factor, optimizer, 0.2).startswith("optim.backbone_lr_factor=0.2")
    else:
        refuse_lost_factor(optimizer, 0.2)


@pytest.mark.slow
def test_linear_probing_changes_only_the_head(make_run: MakeRun) -> None:
    settings = ("data.batch_size=8", "optim.momentum=0.9", "optim.weight_decay=0.1")
    first = make_run("trainer.max_epochs=0", name="first")
    probe = make_run("model.freeze=all_but_head", "trainer.max_epochs=1", *settings, name="probe")
    for run in (first, probe):
        assert guarded(run) == 0
    assert changed(state_of(first, "last.ckpt"), state_of(probe, "last.ckpt")) == {"fc.weight", "fc.bias"}
    status = probe.read_status()
    assert status["trainable_parameters"] == 16 * 5 + 5 < status["parameters"]
    assert "(85 trained)" in probe.log_file.read_text()


@pytest.mark.slow
def test_a_run_unfreezes_parts_and_its_backbone_learns_less(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_run("trainer.max_epochs=0", name="first")
    settings = ("model.freeze=[bn1,layer1]", "model.unfreeze_at_epoch=1", "optim.backbone_lr_factor=0.5")
    frozen = make_run("trainer.max_epochs=1", *settings, name="frozen")
    thawed = make_run("trainer.max_epochs=2", *settings, name="thawed")
    for run in (first, frozen, thawed):
        assert guarded(run) == 0
    before, one, two = (state_of(run, "last.ckpt") for run in (first, frozen, thawed))
    inside = {name for name in before if name.startswith(("bn1.", "layer1."))}
    assert changed(before, one) == {*before} - inside
    assert changed(one, two) == {*before}
    assert "is not reached" in frozen.log_file.read_text()
    assert "epoch 2  the frozen parts are trained from now on" in thawed.log_file.read_text()
    groups = torch.load(thawed.last_checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.05, 0.025]


@pytest.mark.slow
def test_a_layer_that_does_not_exist_fails_before_training(make_run: MakeRun) -> None:
    run = make_run("model.freeze=[layer9]")
    assert guarded(run) == 1
    assert "no part layer9" in run.read_status()["error"]
    assert not run.last_checkpoint.exists()


class HeadFirst(nn.Module):
    """Network with a head that is defined before the body, whose last layer is also linear."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(8, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.body(images)))


def test_the_head_is_the_layer_that_images_reach_last() -> None:
    network = HeadFirst()
    before, state = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    assert head_of(network, "key") == "head"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert network.body[1].training
    assert torch.equal(torch.get_rng_state(), state)
    trained = set(network.state_dict()) - names_in(network, "all_but_head")
    assert trained == {"head.weight", "head.bias"}
    with torch.device("meta"):
        assert head_of(HeadFirst(), "key") == "head"
    assert head_of(nn.Sequential(nn.Flatten(), nn.Linear(27, 4), nn.Linear(4, 2)), "key") == "2"  # not 96 inputs


def test_frozen_random_values_are_named() -> None:
    config = {"trainer": {"max_epochs": 3}, "optim": {"backbone_lr_factor": 1}, "model": {"pretrained": "none"}}
    words = "model.freeze keeps random initial values, as model.pretrained=none"
    assert idle_keys(config, Freezing(small(), "all_but_head", None)) == [words]
    assert idle_keys(config, Freezing(small(), "all_but_head", 1)) == []
    assert idle_keys(config | {"model": {"pretrained": "imagenet"}}, Freezing(small(), "all_but_head", None)) == []
