"""Weights in: every source, what does not load said by key, and nothing but tensors unpickled."""

import logging
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from resnet_lab.errors import UserError
from resnet_lab.models.resnet import resnet

NARROW = (4, 8, 16, 32)
BOTTLENECKS = {"depth": 50, "widths": NARROW}


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Torch's cache of downloads, empty, and no network behind it."""

    def refuse(*arguments, **options):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def torchvision18():
    torch.manual_seed(18)
    return torchvision.models.resnet18().eval()


def cached(cache, model, weights):
    torch.save(model.state_dict(), cache / Path(weights.url).name)


def small(**choices):
    """The smallest network of the family, with values that no other seed gives."""
    torch.manual_seed(8)
    model = resnet(**{"form": "cifar", "depth": 8, "num_classes": 10, **choices})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def saved(content, path):
    torch.save(content, path)
    return str(path)


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def refusal(source, **choices):
    with pytest.raises(UserError) as error:
        resnet(**{"form": "cifar", "depth": 8, **choices}, pretrained=str(source))
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- torchvision's weights ----


def test_imagenet_changes_initial_values_and_nothing_else(cache, torchvision18, caplog):
    cached(cache, torchvision18, torchvision.models.ResNet18_Weights.IMAGENET1K_V1)
    torch.manual_seed(0)
    scratch = resnet(18, num_classes=5)
    torch.manual_seed(0)
    model = resnet(18, num_classes=5, pretrained="imagenet")
    assert str(model) == str(scratch)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        expected = scratch if name.startswith("fc.") else torchvision18
        assert torch.equal(value, expected.state_dict()[name]), name
    assert caplog.messages == [
        "model.pretrained=imagenet: loaded 120 tensors; left as initialised: fc.weight, fc.bias; "
        "in the weights but not used: fc.weight [1000, 512], fc.bias [1000]"
    ]


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT"])
def test_an_enums_name_loads_the_head_too(name, cache, torchvision18):
    cached(cache, torchvision18, torchvision.models.ResNet18_Weights.IMAGENET1K_V1)
    model = resnet(18, num_classes=1000, pretrained=name).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), torchvision18(images), rtol=0, atol=1e-4)


def test_the_hidden_head_keeps_imagenets_layer(cache, torchvision18, caplog):
    cached(cache, torchvision18, torchvision.models.ResNet18_Weights.IMAGENET1K_V1)
    model = resnet(18, hidden_head=True, pretrained="imagenet")
    assert torch.equal(model.fc[0].weight, torchvision18.fc.weight)
    assert torch.equal(model.fc[0].bias, torchvision18.fc.bias)
    assert "left as initialised: fc.2.weight, fc.2.bias; in the weights but not used: none" in caplog.text


def test_weights_that_cannot_be_fetched_name_the_remedy(cache):
    message = refusal("imagenet", form="imagenet", depth=18)
    assert "resnet18-f37072fd.pth" in message
    assert "Name or service not known" in message
    assert "model.pretrained=PATH" in message


@pytest.mark.parametrize(
    ("source", "choices", "known"),
    [
        ("ResNet18_Weights.IMAGENET1K_V1", {"form": "imagenet", "depth": 50}, "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("IMAGENET1K_V2", {"form": "imagenet", "depth": 18}, "model.depth=18 are: IMAGENET1K_V1"),
        ("VGG16_Weights.IMAGENET1K_V1", {"form": "imagenet", "depth": 18}, "are: IMAGENET1K_V1"),
        ("imagenet", {"form": "wide", "depth": 20, "widths": NARROW}, "model.depth=20 are: none"),
    ],
)
def test_names_that_torchvision_does_not_have_for_the_depth(source, choices, known, cache):
    assert known in refusal(source, **choices)


# ---- state dicts of others ----


def published_logits(state, images):
    """The paper's CIFAR form, depth 8, as written by others, from a state dict with their names."""

    def norm(x, name):
        statistics = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *statistics)

    x = F.relu(norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1"))
    for block, planes, stride in (("layer1.0", 16, 1), ("layer2.0", 32, 2), ("layer3.0", 64, 2)):
        y = F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(F.relu(norm(y, f"{block}.bn1")), state[f"{block}.conv2.weight"], padding=1)
        if stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))
        x = F.relu(norm(y, f"{block}.bn2") + x)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def test_published_cifar_weights_give_the_published_function(tmp_path):
    state = {name.replace("fc.", "linear."): value for name, value in small().state_dict().items()}
    state = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    content = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "best_prec1": 91.7}
    source = saved(content, tmp_path / "resnet8.th")
    model = resnet(8, 10, form="cifar", pretrained=source).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images), published_logits(state, images), rtol=1e-4, atol=1e-4)


def test_other_authors_projections_are_called_shortcut(tmp_path):
    theirs = small(shortcut="projection")
    state = {name.replace("downsample", "shortcut"): v for name, v in theirs.state_dict().items()}
    source = saved({"net": state, "epoch": 3}, tmp_path / "ckpt.pth")
    assert equal(resnet(8, 10, form="cifar", shortcut="projection", pretrained=source), theirs)


def test_safetensors(tmp_path):
    safetensors.torch.save_file(small().state_dict(), tmp_path / "small.safetensors")
    assert equal(resnet(8, 10, form="cifar", pretrained=str(tmp_path / "small.safetensors")), small())


def test_half_precision_files_leave_the_network_in_float32(tmp_path):
    source = saved({name: v.half() for name, v in small().state_dict().items()}, tmp_path / "half.pt")
    model = resnet(8, 10, form="cifar", pretrained=source)
    assert model.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(model.conv1.weight, small().conv1.weight, rtol=1e-3, atol=1e-3)


# ---- runs of this project ----


def checkpoint(model, path, prefix="model."):
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    content = {"state_dict": {**state, "loss.weight": torch.ones(10)}, "pytorch-lightning_version": "2.6.6"}
    path.parent.mkdir(parents=True, exist_ok=True)
    return saved(content, path)


@pytest.mark.parametrize("prefix", ["model.", "model._orig_mod.", "model.module."])
def test_a_checkpoint_of_this_project(prefix, tmp_path):
    source = checkpoint(small(), tmp_path / "best.ckpt", prefix)
    assert equal(resnet(8, 10, form="cifar", pretrained=source), small())


def test_a_run_folder_gives_the_checkpoint_that_its_job_tested(tmp_path):
    best, last = small(), resnet(8, 10, form="cifar")
    checkpoint(last, tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "status.json").write_text('{"state": "done", "best_checkpoint": null}')
    assert equal(resnet(8, 10, form="cifar", pretrained=str(tmp_path)), last)
    checkpoint(best, tmp_path / "checkpoints" / "best.ckpt")
    for status in ('{"state": "done", "best_checkpoint": "checkpoints/best.ckpt"}', "{damaged"):
        (tmp_path / "status.json").write_text(status)
        assert equal(resnet(8, 10, form="cifar", pretrained=str(tmp_path)), best)


@pytest.mark.parametrize("loss", ["missing", "folder", "loop"])
def test_a_run_that_lost_its_best_checkpoint_does_not_give_its_last(tmp_path, loss):
    best, last = (tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    checkpoint(small(), last)
    (tmp_path / "status.json").write_text('{"state": "done", "best_checkpoint": "checkpoints/best.ckpt"}')
    if loss == "folder":
        best.mkdir()
    if loss == "loop":
        best.symlink_to(best)
    message = refusal(tmp_path)
    assert message.startswith(f"model.pretrained={tmp_path}: {best} is missing or not a file")
    assert message.endswith(f"name {last}")
    assert equal(resnet(8, 10, form="cifar", pretrained=str(last)), small())


@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_buffers_that_are_undefined_are_refused(tmp_path, name, value):
    state = small().state_dict()
    state[name].view(-1)[1] = value
    source = saved(state, tmp_path / "weights.pt")
    assert f"{source}: 1 of {len(state)} tensors hold NaN or infinite values (first {name})" in refusal(source)


def test_another_number_of_classes_leaves_only_the_head(tmp_path, caplog):
    source = checkpoint(small(), tmp_path / "best.ckpt")
    torch.manual_seed(0)
    scratch = resnet(8, 5, form="cifar")
    torch.manual_seed(0)
    model = resnet(8, 5, form="cifar", pretrained=source)
    assert torch.equal(model.fc.weight, scratch.fc.weight)
    assert torch.equal(model.layer3[0].bn2.running_var, small().layer3[0].bn2.running_var)
    assert "left as initialised: fc.weight, fc.bias; in the weights but not used: fc.weight [10, 64]" in caplog.text


# ---- the stride ----


@pytest.mark.parametrize(
    ("own_run", "choices", "warns"),
    [
        (False, {**BOTTLENECKS, "stride_on": "1x1"}, True),
        (False, {**BOTTLENECKS, "stride_on": "3x3"}, False),
        (False, {"depth": 18, "widths": NARROW, "stride_on": "1x1"}, False),
        (True, {**BOTTLENECKS, "stride_on": "1x1"}, False),
    ],
)
def test_weights_of_the_other_stride_warn(own_run, choices, warns, tmp_path, caplog):
    model = resnet(**choices)
    path = tmp_path / "weights.ckpt"
    source = checkpoint(model, path) if own_run else saved(model.state_dict(), path)
    assert equal(resnet(**choices, pretrained=source), model)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == warns
    assert all("model.stride_on=3x3" in message for message in warnings)


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (
            {"depth": 14},
            {"depth": 8},
            ["weights of depth 14, but model.depth=8; set model.depth=14", "unexpected"],
        ),
        (
            {"depth": 8},
            {"depth": 14},
            ["weights of depth 8, but model.depth=14", "missing: layer1.1.conv1.weight"],
        ),
        ({"form": "imagenet", **BOTTLENECKS}, {"depth": 8}, ["weights of depth 50, but model.depth=8", "…"]),
        ({"widths": [4, 8, 16]}, {}, ["of another shape: conv1.weight, bn1.weight, bn1.bias, …", "widths"]),
        ({"shortcut": "projection"}, {}, ["12 unexpected: layer2.0.downsample.0.weight", "shortcut"]),
        ({}, {"shortcut": "projection"}, ["10 missing: layer2.0.downsample.0.weight", "shortcut"]),
        ({}, {"bias": True}, ["6 missing: layer1.0.conv1.bias", "bias"]),
    ],
)
def test_another_architecture_is_one_clear_error(theirs, ours, words, tmp_path):
    source = saved(small(**theirs).state_dict(), tmp_path / "weights.pt")
    message = refusal(source, **ours)
    assert all(word in message for word in [source, *words]), message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, no state dict"),
        ({"epoch": 3}, "epoch is a int, not a tensor"),
        ({"features.0.weight": torch.ones(3)}, "these are no weights of a ResNet"),
        ({"fc.weight": torch.ones(10, 64)}, "these are no weights of a ResNet"),
        ({}, "these are no weights of a ResNet"),
    ],
)
def test_files_without_a_network(content, words, tmp_path):
    assert words in refusal(saved(content, tmp_path / "weights.pt"))


def test_a_missing_file_an_empty_folder_and_null(tmp_path):
    assert f"model.pretrained={tmp_path}/no.pt: no such file" in refusal(tmp_path / "no.pt")
    (tmp_path / "checkpoints").mkdir()
    assert f"{tmp_path / 'checkpoints' / 'best.ckpt'} is missing or not a file" in refusal(tmp_path)
    assert "model.pretrained=None: no such file" in refusal(None)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"no weights\nbut text")
    assert "not readable as plain tensors" in refusal(path)
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "not readable as plain tensors" in refusal(path)


# ---- nothing is run ----


class Malice:
    """A pickle that would create a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "run/checkpoints/best.ckpt"])
def test_a_malicious_pickle_is_refused_unread(name, save, tmp_path):
    created, path = tmp_path / "created", tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save({"conv1.weight": Malice(created)}, path)
    message = refusal(tmp_path / "run" if "run" in name else path)
    assert not created.exists()
    assert "not readable as plain tensors" in message
    if save is save_zip and "safetensors" not in name:
        assert "it asks for " in message
    pickle.loads(pickle.dumps(Malice(created)))
    assert created.exists(), "the pickle was harmless, so the test showed nothing"


def test_a_poisoned_cache_is_refused_unread(cache, tmp_path):
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    save_zip({"conv1.weight": Malice(tmp_path / "created")}, cache / Path(url).name)
    assert "model.pretrained=PATH" in refusal("imagenet", form="imagenet", depth=18)
    assert not (tmp_path / "created").exists()


def test_a_folder_of_runs_gives_the_run_of_the_same_depth(tmp_path: Path) -> None:
    states = {}
    for depth in (8, 14):
        run = tmp_path / "sweep" / f"depth-{depth}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(f"model:\n  depth: {depth}\n")
        (run / "status.json").write_text('{"state": "done"}')
        states[depth] = resnet(depth, 3, form="cifar").state_dict()
        torch.save(
            {"state_dict": {f"model.{key}": value for key, value in states[depth].items()}},
            run / "checkpoints" / "best.ckpt",
        )
    for depth, state in states.items():
        loaded = resnet(depth, 3, form="cifar", pretrained=str(tmp_path / "sweep")).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    with pytest.raises(UserError, match="one run of depth 20 is needed, found none; name the run itself"):
        resnet(20, 3, form="cifar", pretrained=str(tmp_path / "sweep"))
