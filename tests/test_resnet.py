"""The network family: torchvision's names and numbers, the paper's table, and every choice of the studies."""

import inspect
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from torch import nn
from torch.nn import functional as F

from resnet_lab.errors import UserError
from resnet_lab.models.pretrained import depth_of
from resnet_lab.models.resnet import ZeroPad, multiply_adds, parameter_count, resnet

CONF = Path(__file__).parent.parent / "conf" / "model"
NARROW = (4, 8, 16, 32)


def randomize(model):
    """Change statistics and affine weights of every batch norm from their defaults, so that none can be missed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def on_meta(**choices):
    with torch.device("meta"):
        return resnet(**choices)


@pytest.mark.parametrize("depth", [18, 50, *(pytest.param(d, marks=pytest.mark.slow) for d in (34, 101, 152))])
def test_torchvisions_weights_give_torchvisions_logits(depth):
    torch.manual_seed(depth)
    theirs = randomize(torchvision.models.get_model(f"resnet{depth}")).eval()
    ours = resnet(depth, num_classes=1000).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("depth", [34, 101, pytest.param(152, marks=pytest.mark.slow)])
def test_names_and_shapes_are_torchvisions(depth):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"resnet{depth}").state_dict()
    ours = on_meta(depth=depth, num_classes=1000).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_a_seed_gives_torchvisions_initial_values_and_gradients():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    torch.manual_seed(0)
    ours = resnet(18, num_classes=7)
    images, targets = torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 6])
    for model in (ours, theirs):
        F.cross_entropy(model(images), targets).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other), name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


CHOICES = [
    *(
        {"form": form, "depth": depth, "shortcut": shortcut}
        for (form, depth), shortcut in product(
            [("imagenet", 18), ("imagenet", 50), ("cifar", 8), ("wide", 20), ("wide", 50)],
            ["projection", "zero_pad", "none"],
        )
    ),
    {"depth": 50, "stride_on": "1x1"},
    {"depth": 18, "last_activation": False, "activation": "SiLU"},
    {"depth": 50, "last_activation": False, "activation": "LeakyReLU"},
    {"depth": 18, "activation": "PReLU", "hidden_head": True},
    {"depth": 18, "stem": "3x3", "bias": True},
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(map(str, choices.values())))
def test_every_parameter_receives_a_gradient(choices):
    torch.manual_seed(0)
    widths = NARROW[:3] if choices.get("form") == "cifar" else NARROW
    model = resnet(num_classes=7, widths=widths, **choices)
    logits = model(torch.randn(4, 3, 64, 64))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # batch norm removes the mean, and with it the bias of the preceding convolution
        if not name.endswith(("conv1.bias", "conv2.bias", "conv3.bias", "downsample.0.bias")):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_of_the_papers_cifar_form(depth, published):
    millions = parameter_count(on_meta(form="cifar", depth=depth, num_classes=10)) / 1e6
    assert round(millions, 1 if depth == 110 else 2) == published


@pytest.mark.parametrize(
    ("depth", "published"),
    [
        (18, 1.8),
        (34, 3.6),
        (50, 3.8),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((101, 7.6), (152, 11.3))),
    ],
)
def test_multiply_adds_of_the_papers_table(depth, published):
    model = on_meta(depth=depth, num_classes=1000, stride_on="1x1")
    assert multiply_adds(model, 224) / 1e9 == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("depth", [18, 50])
def test_multiply_adds_are_torchvisions(depth):
    weights = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
    model = on_meta(depth=depth, num_classes=1000)
    assert multiply_adds(model, 224) / 1e9 == pytest.approx(weights.meta["_ops"], abs=6e-4)
    assert parameter_count(model) == weights.meta["num_params"]


def test_multiply_adds_of_shared_layers_and_of_networks_that_read_values():
    class Odd(nn.Module):
        def __init__(self, reads):
            super().__init__()
            self.reads, self.a, self.c = reads, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b, self.c.weight = self.a, self.a.weight

        def forward(self, images):
            images = images * 2 if self.reads and float(images.sum()) else images
            return self.c(self.b(self.a(images))).mean((2, 3))

    for network in (Odd(reads=False), Odd(reads=True)):
        assert multiply_adds(network, 10) == 3 * 3 * 3 * 100
        assert network.a.weight.device.type == "cpu"
        assert network.c.weight is network.a.weight


@pytest.mark.parametrize("training", [True, False])
def test_multiply_adds_do_not_change_the_model(training):
    model = resnet(18, widths=NARROW).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert multiply_adds(model, 32) > 0
    assert model.training is training
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name]), name
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("inplanes", "planes", "stride", "size"), [(2, 4, 2, 6), (2, 5, 2, 5), (3, 12, 1, 4)])
def test_zero_pad_against_the_pixels(inplanes, planes, stride, size):
    images = np.random.default_rng(0).normal(size=(2, inplanes, size, size)).astype("float32")
    expected = np.zeros((2, planes, -(-size // stride), -(-size // stride)), "float32")
    front = (planes - inplanes) // 2
    for channel, row, column in product(range(inplanes), range(0, size, stride), range(0, size, stride)):
        expected[:, front + channel, row // stride, column // stride] = images[:, channel, row, column]
    padded = ZeroPad(inplanes, planes, stride)(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(padded, expected)


def batch_norm(bn, x):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("shortcut", ["projection", "zero_pad", "none"])
@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "SiLU"])
def test_a_block_is_its_formula(activation, shortcut, last):
    torch.manual_seed(0)
    model = resnet(18, widths=NARROW, activation=activation, shortcut=shortcut, last_activation=last)
    block = randomize(model).eval().layer2[0]
    act = getattr(nn, activation)()
    x = torch.randn(2, 4, 9, 9)
    expected = act(batch_norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    expected = batch_norm(block.bn2, F.conv2d(expected, block.conv2.weight, padding=1))
    if shortcut == "projection":
        projection, bn = block.downsample
        expected = expected + batch_norm(bn, F.conv2d(x, projection.weight, stride=2))
    elif shortcut == "zero_pad":
        expected = expected + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    expected = act(expected) if last else expected
    torch.testing.assert_close(block(x.clone()), expected)


@pytest.mark.parametrize(("stride_on", "strides"), [("3x3", (1, 2)), ("1x1", (2, 1))])
def test_where_the_bottleneck_strides(stride_on, strides):
    model = on_meta(depth=50, stride_on=stride_on)
    for stage in (model.layer2, model.layer3, model.layer4):
        assert (stage[0].conv1.stride[0], stage[0].conv2.stride[0]) == strides
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in stage[1:])
    assert model.layer1[0].conv1.stride == model.layer1[0].conv2.stride == (1, 1)


@pytest.mark.parametrize(
    ("choices", "places"),
    [({}, 1 + 16), ({"last_activation": False}, 1 + 8), ({"hidden_head": True}, 18), ({"depth": 50}, 1 + 48)],
)
def test_the_activation_is_used_everywhere(choices, places):
    model = on_meta(**{"depth": 18, "activation": "SiLU", **choices})
    assert sum(isinstance(module, nn.SiLU) for module in model.modules()) == places
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


def test_plain_networks_have_no_shortcut_at_all():
    model = on_meta(form="wide", depth=20, shortcut="none")
    assert not any("downsample" in name for name in model.state_dict())
    block = resnet(form="cifar", depth=8, shortcut="none").layer1[0].eval()
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(torch.randn(1, 16, 4, 4)), torch.zeros(1, 16, 4, 4))


def test_biases_are_in_blocks_and_shortcuts_but_not_in_the_stem():
    with_bias = {n for n in on_meta(form="wide", depth=20).state_dict() if ".conv" in n or "downsample.0" in n}
    assert {name for name in with_bias if name.endswith(".bias")} == {
        name.replace(".weight", ".bias") for name in with_bias if name.endswith(".weight")
    }
    assert on_meta(form="wide", depth=20).conv1.bias is None
    assert on_meta(form="imagenet", depth=18).layer1[0].conv1.bias is None


def test_the_hidden_head_keeps_imagenets_layer():
    torch.manual_seed(0)
    model = resnet(18, num_classes=5, hidden_head=True, widths=NARROW)
    first, last = model.fc[0], model.fc[2]
    assert (first.weight.shape, last.weight.shape) == ((1000, 32), (5, 1000))
    features = torch.randn(2, 32)
    expected = F.linear(F.linear(features, first.weight, first.bias).relu(), last.weight, last.bias)
    torch.testing.assert_close(model.fc(features), expected)


@pytest.mark.parametrize(("stem", "size"), [("7x7", 8), ("3x3", 32)])
def test_the_stem_sets_the_resolution(stem, size):
    sizes = []
    model = resnet(18, stem=stem, widths=NARROW)
    model.layer1.register_forward_hook(lambda *arguments: sizes.append(arguments[2].shape))
    model(torch.randn(2, 3, 32, 32))
    assert sizes == [(2, 4, size, size)]


@pytest.mark.parametrize(
    ("form", "depth", "layers"),
    [
        ("wide", 18, [2, 2, 2, 2]),
        ("wide", 20, [2, 2, 3, 2]),
        ("wide", 34, [3, 4, 6, 3]),
        ("wide", 50, [3, 4, 6, 3]),
        ("wide", 56, [6, 6, 9, 6]),
        ("wide", 101, [3, 4, 23, 3]),
        ("wide", 110, [9, 16, 20, 9]),
        ("cifar", 8, [1, 1, 1]),
        ("cifar", 56, [9, 9, 9]),
    ],
)
def test_blocks_of_study_d(form, depth, layers):
    model = on_meta(form=form, depth=depth)
    assert [len(getattr(model, f"layer{stage}")) for stage in range(1, len(layers) + 1)] == layers
    assert depth_of(model.state_dict()) == depth
    assert hasattr(model.layer1[0], "conv3") is (form == "wide" and depth in (50, 101))


def test_channels_last_stays_channels_last():
    torch.manual_seed(0)
    model = resnet(form="cifar", depth=8).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
        outputs = []
        model.layer2.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
        logits = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", sorted(CONF.glob("resnet*.yaml")), ids=lambda file: file.stem)
def test_the_yaml_shows_every_argument_with_the_forms_own_values(file):
    choices = {}
    for name in ("_weights", "_resnet", file.stem):
        choices |= yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert choices.pop("defaults") == ["_resnet"]
    assert choices.pop("_target_") == "resnet_lab.models.resnet.resnet"
    assert {*choices, "num_classes"} == set(inspect.signature(resnet).parameters)
    assert str(on_meta(**choices)) == str(on_meta(form=choices["form"], depth=choices["depth"]))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"depth": 20}, "form=imagenet model.depth=20 is unknown; choose one of 18, 34, 50, 101, 152"),
        ({"form": "wide", "depth": 152}, "depth=152 is unknown; choose one of 18, 20, 34, 50, 56, 101, 110"),
        ({"form": "cifar", "depth": 18}, "depth=18 is unknown; choose 6n+2: 20"),
        ({"form": "cifar", "depth": 2}, "depth=2 is unknown"),
        ({"form": "cifar", "depth": "deep"}, "depth=deep is unknown"),
        ({"form": "vit"}, "form=vit is unknown; choose one of imagenet, cifar, wide"),
        ({"shortcut": "A"}, "shortcut=A is unknown; choose one of projection, zero_pad, none"),
        ({"stem": "5x5"}, "stem=5x5 is unknown; choose one of 7x7, 3x3"),
        ({"stem": [7, 7]}, "is unknown; choose one of 7x7, 3x3"),
        ({"stride_on": "first"}, "stride_on=first is unknown; choose one of 3x3, 1x1"),
        ({"activation": "relu"}, "activation=relu is not a suitable activation of torch.nn; try ReLU"),
        ({"activation": "Swish"}, "activation=Swish is not a suitable activation"),
        ({"activation": "Softmax"}, "activation=Softmax is not a suitable activation"),
        ({"activation": "Linear"}, "activation=Linear is not a suitable activation"),
        ({"last_activation": "off"}, "last_activation=off is unknown; choose one of True, False"),
        ({"bias": "no"}, "bias=no is unknown"),
        ({"hidden_head": 1000}, "hidden_head=1000 is unknown"),
        (
            {"form": "cifar", "depth": 20, "widths": [64, 128, 256, 512]},
            "needs 3 positive whole numbers, such as [16, 32, 64]",
        ),
        ({"widths": [64, 128, 256, 0]}, "needs 4 positive whole numbers"),
        ({"widths": 64}, "needs 4 positive whole numbers"),
        ({"num_classes": 0}, "num_classes=0; a network needs at least one class"),
    ],
)
def test_bad_choices_are_one_clear_line(choices, message):
    with pytest.raises(UserError) as error:
        resnet(**choices)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
