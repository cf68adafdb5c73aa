"""Pretrained weights: every source, keys that are not loaded are named, and only tensors are unpickled."""

import argparse
import hashlib
import io
import logging
import pickle
from email.message import Message
from pathlib import Path, PosixPath
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from resnet_lab.errors import UserError
from resnet_lab.models.example_cnn import example_cnn
from resnet_lab.models.resnet import resnet
from resnet_lab.training import check_network

NARROW = (4, 8, 16, 32)
BOTTLENECKS = {"depth": 50, "widths": NARROW}


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO)


WEIGHTS18 = torchvision.models.ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty torch's cache of downloads, and block the network."""

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


@pytest.fixture
def cached18(cache, torchvision18, monkeypatch):
    """Return the cached file of torchvision's weights for depth 18, and the hash prefix in its name."""
    buffer = io.BytesIO()
    torch.save(torchvision18.state_dict(), buffer)
    digits = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    monkeypatch.setattr(WEIGHTS18.value, "url", f"https://download.pytorch.org/models/resnet18-{digits}.pth")
    file = cache / f"resnet18-{digits}.pth"
    file.write_bytes(buffer.getvalue())
    return file


def serve(monkeypatch, content):
    """Return this content for each download."""
    response = io.BytesIO(content)
    response.info = Message  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.hub, "urlopen", lambda *arguments, **options: response)


def small(**choices):
    """Return the smallest network of the family, with values that depend on the seed."""
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


def test_imagenet_changes_initial_values_and_nothing_else(cached18, torchvision18, caplog):
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
        "model.pretrained=imagenet: loaded 120 tensors; left as initialized: fc.weight, fc.bias; "
        "in the weights but not used: fc.weight [1000, 512], fc.bias [1000]"
    ]


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT"])
def test_an_enums_name_loads_the_head_too(name, cached18, torchvision18):
    model = resnet(18, num_classes=1000, pretrained=name).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), torchvision18(images), rtol=0, atol=1e-4)


def test_the_hidden_head_keeps_imagenets_layer(cached18, torchvision18, caplog):
    model = resnet(18, hidden_head=True, pretrained="imagenet")
    assert torch.equal(model.fc[0].weight, torchvision18.fc.weight)
    assert torch.equal(model.fc[0].bias, torchvision18.fc.bias)
    assert "left as initialized: fc.2.weight, fc.2.bias; in the weights but not used: none" in caplog.text


def test_weights_that_cannot_be_fetched_name_the_file_and_its_folder(cache):
    message = refusal("imagenet", form="imagenet", depth=18)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert "Name or service not known" in message
    assert f"copy it to {cache / 'resnet18-f37072fd.pth'}" in message
    assert "model.pretrained=PATH" in message


def test_a_download_is_cached_and_a_damaged_one_is_not(cached18, torchvision18, monkeypatch):
    content = cached18.read_bytes()
    cached18.unlink()
    serve(monkeypatch, content[:-1])
    message = refusal("imagenet", form="imagenet", depth=18)
    assert "invalid hash value" in message
    assert not cached18.exists()
    serve(monkeypatch, content)
    assert torch.equal(resnet(18, pretrained="imagenet").conv1.weight, torchvision18.conv1.weight)
    assert cached18.read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "empty", "other weights", "folder"])
def test_a_damaged_copy_in_the_cache_is_to_be_deleted(damage, cached18, torchvision18):
    content = cached18.read_bytes()
    cached18.unlink()
    if damage == "folder":
        cached18.mkdir()
    elif damage == "other weights":
        torch.save({name: 2 * value for name, value in torchvision18.state_dict().items()}, cached18)
    else:
        cached18.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    message = refusal("imagenet", form="imagenet", depth=18)
    assert message.startswith("model.pretrained=imagenet")
    assert f"delete {cached18}" in message


@pytest.mark.parametrize(
    ("source", "choices", "known"),
    [
        ("ResNet18_Weights.IMAGENET1K_V1", {"form": "imagenet", "depth": 50}, "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("IMAGENET1K_V2", {"form": "imagenet", "depth": 18}, "model.depth=18 are: IMAGENET1K_V1"),
        ("VGG16_Weights.IMAGENET1K_V1", {"form": "imagenet", "depth": 18}, "are: IMAGENET1K_V1"),
        (
            "imagenet",
            {"form": "wide", "depth": 20, "widths": NARROW},
            "torchvision has no weights for this network (model.depth=20); give none, or the path of a state dict",
        ),
        ("IMAGENET1K_V2", {}, "torchvision has no weights for this network (model.depth=8); give none, or the path of"),
    ],
)
def test_names_that_torchvision_lacks_for_the_depth_are_refused(source, choices, known, cache):
    assert known in refusal(source, **choices)


# ---- external state dicts ----


def published_logits(state, images):
    """Another implementation of the paper's CIFAR form, depth 8, from a state dict with its names."""

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


@pytest.mark.parametrize("name", ["a.safetensors", "pytorch_model.bin", "A.SAFETENSORS"])
def test_safetensors(tmp_path, name):
    safetensors.torch.save_file(small().state_dict(), tmp_path / name)
    assert equal(resnet(8, 10, form="cifar", pretrained=str(tmp_path / name)), small())


def test_half_precision_files_leave_the_network_in_float32(tmp_path):
    source = saved({name: v.half() for name, v in small().state_dict().items()}, tmp_path / "half.pt")
    model = resnet(8, 10, form="cifar", pretrained=source)
    assert model.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(model.conv1.weight, small().conv1.weight, rtol=1e-3, atol=1e-3)


# ---- files of the usual scripts ----


def state(**choices):
    return small(**choices).state_dict()


def prefixed(prefix, **choices):
    return {f"{prefix}{name}": value for name, value in state(**choices).items()}


def trained_by(script):
    """Return the content that a training script saves, with the weights of `small()`."""
    args = argparse.Namespace(lr=0.1, model="resnet18", milestones=[30, 60], resume=None)
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    scalars = {"epoch": np.int64(3), "best": np.float64(0.5), "loss": np.float32(1.5), "improved": np.bool_(True)}
    moco = {**prefixed("module.encoder_q."), **prefixed("module.encoder_k.", bias=True), "module.queue": torch.ones(2)}
    return {
        "torchvision references": {"model": state(), "optimizer": optimizer, "epoch": 3, "args": args},
        "timm": {"state_dict": state(), "optimizer": optimizer, "args": args, "arch": "resnet18", "metric": 81.0},
        "tutorial": {"model_state_dict": state(), "optimizer_state_dict": optimizer, "loss": 1.0},
        "numbers of numpy": {"net": prefixed("module."), **scalars},
        "beside the tensors": {**state(), **scalars, "optimizer": optimizer},
        "moco": {"state_dict": moco, "arch": "resnet50"},
        "another word": {"network_weights": state(), "history": [0.1, 0.2]},
        "two levels": {"checkpoint": {"model": prefixed("module.net.")}},
        "arrays and paths": {
            "model": state(),
            "args": argparse.Namespace(data=PosixPath("/data")),
            "losses": np.arange(3.0),
            "names": np.array(["a", "b"]),
            "best": np.str_("b"),
        },
        "without data": {"model": state(), "shape": torch.ones(2, device="meta")},
    }[script]


SCRIPTS = ["torchvision references", "timm", "tutorial", "numbers of numpy", "beside the tensors", "moco"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("script", [*SCRIPTS, "another word", "two levels", "arrays and paths", "without data"])
def test_files_of_the_usual_scripts(script, legacy, tmp_path):
    (save_legacy if legacy else save_zip)(trained_by(script), tmp_path / "weights.pth.tar")
    assert equal(resnet(8, 10, form="cifar", pretrained=str(tmp_path / "weights.pth.tar")), small())


def test_numbers_saved_by_numpy_1_are_read(tmp_path, monkeypatch):
    scalar = np.float64(0).__reduce__()[0]
    source = saved({"model": state(), "best": np.float64(0.5)}, tmp_path / "weights.pth")
    written = (tmp_path / "weights.pth").read_bytes()
    monkeypatch.setattr(scalar, "__module__", "numpy.core.multiarray")
    saved({"model": state(), "best": np.float64(0.5)}, tmp_path / "weights.pth")
    assert b"numpy.core.multiarray" in (tmp_path / "weights.pth").read_bytes()
    assert b"numpy._core.multiarray" in written
    assert equal(resnet(8, 10, form="cifar", pretrained=source), small())


PREFIXES = [
    "net.",
    "backbone.",
    "encoder.",
    "model.",
    "module.",
    "module.encoder_q.",
    "module.net.",
    "_orig_mod.",
    "a.b.",
]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_the_names_do_not_matter(prefix, nested, tmp_path, caplog):
    content = {**prefixed(prefix), "criterion.weight": torch.ones(10), "best_score": torch.tensor(0.5)}
    source = saved({"state_dict": content} if nested else content, tmp_path / "weights.pt")
    assert equal(resnet(8, 10, form="cifar", pretrained=source), small())
    place = f"state_dict.{prefix}" if nested else prefix
    assert f"the weights are {place}*; 1 other tensor is not used: " in caplog.text


def body_of(model):
    return nn.Sequential(*list(model.children())[:-1])


@pytest.mark.parametrize("cut", [1, 2, None])
@pytest.mark.parametrize("prefix", ["", "backbone.", "state_dict.module.features."])
def test_numbered_layers_get_their_names(prefix, cut, tmp_path):
    model = resnet(18, 10, form="imagenet", widths=[4, 8, 16, 32])
    body = nn.Sequential(*list(model.children())[: cut and -cut])
    head = {"projection_head.layers.0.weight": torch.ones(2, 2), "projection_head.layers.2.weight": torch.ones(2, 2)}
    content = {f"{prefix}{name}": value for name, value in body.state_dict().items()} | (head if prefix else {})
    source = saved(content, tmp_path / "weights.pt")
    found = resnet(18, 10, form="imagenet", widths=[4, 8, 16, 32], pretrained=source)
    assert "4.0.conv1.weight" in body.state_dict()
    assert equal(found if cut is None else body_of(found), model if cut is None else body_of(model))


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("state_dict.", "state_dict_ema."),
        ("model.", "model_ema.module."),
        ("net.", "net_ema."),
        ("q.", "momentum_encoder."),
    ],
)
def test_a_running_average_is_named_and_not_loaded(plain, average, tmp_path, caplog):
    content = {}
    for place, factor in ((average, 2), (plain, 1)):
        inner = {name: factor * value for name, value in state().items()}
        key, _, rest = place.partition(".")
        content[key] = {f"{rest}{name}": value for name, value in inner.items()}
    source = saved(content, tmp_path / "weights.pt")
    assert equal(resnet(8, 10, form="cifar", pretrained=source), small())
    assert f"using {plain}*, not the running average {average}*" in caplog.text
    del content[plain.partition(".")[0]]
    averaged = resnet(8, 10, form="cifar", pretrained=saved(content, tmp_path / "weights.pt"))
    assert torch.equal(averaged.conv1.weight, 2 * small().conv1.weight)


def test_one_of_several_networks_is_not_guessed(tmp_path):
    content = {"student": prefixed("module."), "teacher": prefixed("")}
    message = refusal(saved(content, tmp_path / "weights.pt"))
    assert "it contains 2 networks (student.module.*, teacher.*)" in message


def test_nan_in_unused_weights_does_not_matter(tmp_path):
    content = {"model": state(), "optimizer": {"state": {0: torch.tensor([float("nan")])}}}
    assert equal(resnet(8, 10, form="cifar", pretrained=saved(content, tmp_path / "weights.pt")), small())


# ---- a folder with a file for each depth ----


def folder_of(tmp_path, files):
    """Write files of weights from name → depth."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name, depth in files.items():
        torch.save(state(depth=depth), folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet8.pth", "resnet14.pth"),
        ("resnet8-5c14de8a.pth", "resnet14-8f8b8c88.pth"),
        ("ResNet-8_epoch_14.pt", "ResNet-14_epoch_8.pt"),
        ("moco_r8_800ep.pth.tar", "moco_r14_800ep.pth.tar"),
        ("depth-8,seed-14.ckpt", "depth-14,seed-8.ckpt"),
        ("depth=8.ckpt", "depth=14.ckpt"),
        ("cifar10_resnet_8.th", "cifar10_resnet_14.th"),
        ("8.pth", "14.pth"),
        ("resnet8.pth", "resnet14_lr8.pth"),
        ("resnet8.pth", "resnet80_14.pth"),
        ("resnet8.pth", "resnet18_14.pth"),
    ],
)
def test_a_folder_gives_the_file_with_the_depth_in_its_name(name, other, tmp_path):
    folder = folder_of(tmp_path, {name: 8, other: 14})
    (folder / "README.md").write_text("resnet8")
    assert equal(resnet(8, 10, form="cifar", pretrained=str(folder)), small())
    if "80_14" not in other and "18_14" not in other:
        assert equal(resnet(14, 10, form="cifar", pretrained=str(folder)), small(depth=14))


def test_a_folder_without_exactly_one_file_of_the_depth_lists_what_is_there(tmp_path):
    folder = folder_of(tmp_path, {"resnet8-a.pth": 8, "r8.pth": 8, "resnet18.pth": 8})
    assert "found r8.pth, resnet8-a.pth; name the file itself" in refusal(folder)
    message = refusal(folder, depth=14)
    assert "one file with depth 14 in its name (such as resnet14.pth)" in message
    assert "found none among r8.pth, resnet18.pth, resnet8-a.pth" in message
    for file in folder.iterdir():
        file.rename(file.with_suffix(".npz"))
    message = refusal(folder)
    assert message.startswith(f"model.pretrained={folder} contains neither runs nor weights")
    assert message.endswith("but r8.npz, resnet18.npz, resnet8-a.npz")


def test_the_check_before_a_sweep_compares_shapes(tmp_path):
    folder = folder_of(tmp_path, {"resnet8.pth": 8, "resnet14.pth": 14})
    model = {"_target_": "resnet_lab.models.resnet.resnet", "form": "cifar", "depth": 8, "pretrained": str(folder)}
    check_network(model)
    check_network(model | {"depth": 14})
    with pytest.raises(UserError, match=r"of a different shape: conv1\.weight"):
        check_network(model | {"widths": [8, 16, 32]})
    (folder / "resnet14.pth").replace(folder / "resnet8.pth")
    with pytest.raises(UserError, match=r"weights \(resnet8\.pth\): weights of depth 14, but model\.depth=8"):
        check_network(model)


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
def test_nan_weights_and_buffers_are_refused(tmp_path, name, value):
    state = small().state_dict()
    state[name].view(-1)[1] = value
    source = saved(state, tmp_path / "weights.pt")
    assert f"{source}: 1 of {len(state)} tensors have NaN or infinite values (first {name})" in refusal(source)


def test_another_number_of_classes_leaves_out_only_the_head(tmp_path, caplog):
    source = checkpoint(small(), tmp_path / "best.ckpt")
    torch.manual_seed(0)
    scratch = resnet(8, 5, form="cifar")
    torch.manual_seed(0)
    model = resnet(8, 5, form="cifar", pretrained=source)
    assert torch.equal(model.fc.weight, scratch.fc.weight)
    assert torch.equal(model.layer3[0].bn2.running_var, small().layer3[0].bn2.running_var)
    assert "left as initialized: fc.weight, fc.bias; in the weights but not used: fc.weight [10, 64]" in caplog.text


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


# ---- weights that do not fit ----


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
        ({"widths": [4, 8, 16]}, {}, ["of a different shape: conv1.weight, bn1.weight, bn1.bias, …", "widths"]),
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
    ("theirs", "without", "ours", "words"),
    [
        (
            {"form": "imagenet", "depth": 18},
            "layer4.",
            {"form": "imagenet", "depth": 18},
            "lack layer4 of model.depth=18",
        ),
        ({"depth": 20}, "layer3.", {"depth": 20}, "lack layer3 of model.depth=20"),  # as many layers as depth 14
        ({"depth": 20}, "layer1.2.", {"depth": 20}, "lack layer1.2 of model.depth=20"),
        (
            {"form": "wide", "depth": 20},
            "fc.",
            {"form": "imagenet", "depth": 18},
            "of depth 20, but model.depth=18; give",
        ),
        ({"form": "wide", "depth": 20}, "fc.", {"form": "wide", "depth": 18}, "set model.depth=20, or give other"),
        (
            {"form": "imagenet", "depth": 34},
            "fc.",
            {"form": "imagenet", "depth": 18},
            "set model.depth=34, or give other",
        ),
    ],
)
def test_only_a_depth_of_the_form_is_a_remedy(theirs, without, ours, words, tmp_path):
    narrow = {"widths": NARROW} if "form" in ours else {}
    weights = {name: value for name, value in small(**theirs, **narrow).state_dict().items() if without not in name}
    message = refusal(saved(weights, tmp_path / "weights.pt"), **ours, **narrow)
    assert words in message
    assert ("set model.depth" in message) == words.startswith("set")


def test_the_small_network_refuses_weights_of_a_resnet(tmp_path):
    source = saved(small().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt: these are not weights of this network; .*missing: 0\.weight"):
        example_cnn(2, [4, 8], 16, 0.5, "ReLU", source)
    with pytest.raises(UserError, match="torchvision has no weights for this network; give none, or the path"):
        example_cnn(2, [4, 8], 16, 0.5, "ReLU", "imagenet")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "a list, not a state dict"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "no tensors, but epoch (int), args (dict)"),
        ({"features.0.weight": torch.ones(3)}, "not weights of a ResNet"),
        ({"fc.weight": torch.ones(10, 64)}, "not weights of a ResNet"),
        ({}, "no tensors, but nothing"),
    ],
)
def test_files_without_a_network_are_refused(content, words, tmp_path):
    assert words in refusal(saved(content, tmp_path / "weights.pt"))


def test_a_missing_file_an_empty_folder_and_null(tmp_path):
    assert f"model.pretrained={tmp_path}/no.pt: no such file" in refusal(tmp_path / "no.pt")
    (tmp_path / "resnet18-own.pth").touch()
    assert f"did you mean {tmp_path}/resnet18-own.pth?" in refusal(tmp_path / "resnet18.pth")
    (tmp_path / "checkpoints").mkdir()
    assert f"{tmp_path / 'checkpoints' / 'best.ckpt'} is missing or not a file" in refusal(tmp_path)
    assert "model.pretrained=None: no such file" in refusal(None)
    assert refusal("imagnet").endswith("did you mean imagenet?")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"no weights\nbut text")
    assert "not readable as plain tensors" in refusal(path)
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "not readable as plain tensors (the file is truncated)" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "it is empty"), (b"<!DOCTYPE html><html>", "it begins with b'<!DOCTYPE html><'"), (b"\x89HDF", "HDF")],
)
def test_files_of_another_kind_show_how_they_begin(content, words, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    assert words in refusal(tmp_path / "weights.pth")


# ---- no code is run ----


class Malice:
    """Pickle that would create a file when it is read."""

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
        assert "(it contains getattr)" in message
    pickle.loads(pickle.dumps(Malice(created)))
    assert created.exists(), "the pickle was harmless, so the test showed nothing"


def test_a_poisoned_cache_is_refused_unread(cache, tmp_path):
    file = cache / Path(WEIGHTS18.url).name
    save_zip({"conv1.weight": Malice(tmp_path / "created")}, file)
    assert f"delete {file}" in refusal("imagenet", form="imagenet", depth=18)
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
    with pytest.raises(UserError, match="must contain one run of depth 20, found none; name the run itself"):
        resnet(20, 3, form="cifar", pretrained=str(tmp_path / "sweep"))
