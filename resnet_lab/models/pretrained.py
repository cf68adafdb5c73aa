"""Loads weights from torchvision, a file or a run of this project; unpickles nothing but plain tensors."""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from resnet_lab.errors import UserError, count
from resnet_lab.inputs import checkpoint_of, tested_checkpoint
from resnet_lab.run_folder import RunFolder, find_runs, flat

logger = logging.getLogger(__name__)

PATHS = "the path of a state dict, a checkpoint, a run, or a folder with one run or one file of weights for each depth"
SOURCES = f"give none, imagenet, IMAGENET1K_V2, or {PATHS}"
NAMES = ("none", "imagenet", "IMAGENET1K_V1", "IMAGENET1K_V2")
WORD = re.compile(r"imagenet|DEFAULT|IMAGENET\w*|\w+_Weights\.\w+")  # names weights of torchvision
NO_BLOCKS = 2  # depth of a network that is no ResNet, see `depth_of`
SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".tar", ".bin", ".pkl", ".safetensors")  # of weight files

# functions that rebuild a number and an array of numpy; numpy 2 renamed their module
_scalar, _array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
# objects that training scripts save beside the tensors: arguments of argparse, paths, numbers and arrays of numpy
HARMLESS: list[Any] = [
    argparse.Namespace,
    *((PosixPath, f"pathlib{module}.PosixPath") for module in ("", "._local")),
    np.dtype,
    np.ndarray,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"},
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
COPIES = re.compile(r"(^|[._])(ema|encoder_k|momentum|target)(?![a-z])", re.IGNORECASE)  # running averages


def load_pretrained(model: nn.Module, source: str) -> None:
    """Load pretrained weights into a network in place, and log the keys that were not replaced.

    A head (`fc`) of another shape (another number of classes) keeps its initial values; everything else must fit.

    Args:
        model: a network with the parameter names of torchvision's ResNet.
        source: `imagenet` (torchvision's IMAGENET1K_V1), a name from torchvision's weight enum for this depth, or a
            path. The path is a state dict (torch or safetensors), a checkpoint, a run folder, or a folder with runs or
            weight files, exactly one of this depth.

    Raises:
        UserError: the weights are missing, cannot be downloaded, contain more than plain tensors, are NaN or infinite,
            or do not fit.
    """
    own = model.state_dict()
    content, source = contents(source, depth_of(own))
    state = fitting(content, own, source)
    fits = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(own | fits)
    kept = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    unused = [f"{name} {list(value.shape)}" for name, value in state.items() if name not in fits]
    logger.info(
        "model.pretrained=%s: loaded %d tensors; left as initialized: %s; in the weights but not used: %s",
        source,
        len(fits),
        ", ".join(kept) or "none",
        ", ".join(unused) or "none",
    )
    if "pytorch-lightning_version" not in content and strides_on_first(model):
        logger.warning(
            "model.pretrained=%s: weights trained with the stride on the 3×3 convolution (all of torchvision's) give "
            "wrong results with the stride on the first 1×1; set model.stride_on=3x3 for them",
            source,
        )


def load_fitting(model: nn.Module, source: str) -> None:
    """Load every tensor of a file with a matching name and shape into an external network, and log the others.

    Args:
        model: any network, changed in place.
        source: the path of a state dict (torch or safetensors), a checkpoint or a run folder.

    Raises:
        UserError: the weights are missing, contain more than plain tensors, or are NaN or infinite; or fewer than half
            of the network's tensors match.
    """
    own = model.state_dict()
    try:
        content = read(checkpoint_of(source))
    except UserError as error:
        raise UserError(f"model.pretrained={error}") from None
    state = find_network(content, own, source)
    refuse_nan_weights(state, f"model.pretrained={source}")
    fits = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    variables = model.state_dict(keep_vars=True)  # a shared tensor is one object under several names
    loaded = {id(variables[name]) for name in fits}
    kept = [name for name in names if id(variables[name]) not in loaded]
    if 2 * len(kept) > len(names):
        others = [name for name in state if name not in fits]
        raise UserError(
            f"model.pretrained={source}: {len(names) - len(kept)} of {len(names)} tensors of the network match by name "
            f"and shape (it has {', '.join(kept[:3])} …; the file has {', '.join(others[:3]) or 'none'} …); give "
            "weights of this network"
        )
    model.load_state_dict(own | fits)
    unused = [f"{name} {list(value.shape)}" for name, value in state.items() if name not in fits]
    text = "model.pretrained=%s: loaded %d of %d tensors; left as initialized: %s; in the weights but not used: %s"
    logger.info(
        text, source, len(names) - len(kept), len(names), ", ".join(kept) or "none", ", ".join(unused) or "none"
    )


def fitting(content: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of a network; all but the head must fit.

    Args:
        content: content of the file.
        own: the network's state dict; its values may be without data (device `meta`).
        source: source of the weights, for errors.

    Raises:
        UserError: the tensors are not of such a network, are NaN or infinite, or of another architecture.
    """
    state = rename(find_network(content, own, source), own)
    refuse_nan_weights(state, f"model.pretrained={source}")
    names = [name for name in own if not name.endswith("num_batches_tracked")]  # which old files lack
    shapes = {name: value.shape for name, value in own.items()}
    body = [name for name in dict.fromkeys([*names, *state]) if not name.startswith("fc.")]
    misfits = [name for name in body if name not in state or shapes.get(name) != state[name].shape]
    if misfits:
        raise UserError(f"model.pretrained={source}: {explain(misfits, own, state)}")
    return state


def digest_of(*states: Mapping[str, Any]) -> str:
    """Return a hash of the names and values of weights."""
    found = hashlib.sha256()
    for state in states:
        for name, value in state.items():
            found.update(name.encode())
            found.update(value.cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def names_files(source: object) -> bool:
    """Return whether this value of `model.pretrained` names an existing file or folder; words come first."""
    text = str(source)
    return text != "none" and not WORD.fullmatch(text) and Path(text).expanduser().exists()


def contents(source: str, depth: int) -> tuple[dict[str, Any], str]:
    """Return the state dict or checkpoint that `source` names, for a network of `depth` layers.

    The second value is the source for messages, with the file name if `source` is a folder.

    Raises:
        UserError: see `load_pretrained`.
    """
    if WORD.fullmatch(source):
        return fetch(source, depth), source
    try:
        file = find_file(source, depth)
    except UserError as error:
        raise UserError(f"model.pretrained={error}") from None
    return read(file), source if file == Path(source).expanduser() else f"{source} ({file.name})"


def depth_of(names: Collection[str]) -> int:
    """Count the layers with weights from a state dict's names: stem, head, and two or three in each block."""
    return NO_BLOCKS + sum(re.fullmatch(r"layer\d+\.\d+\.conv\d\.weight", name) is not None for name in names)


def fetch(source: str, depth: int) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights for a ResNet of `depth`, through its own download and cache."""
    weights = weights_of_torchvision(source, depth)
    if weights is None:
        resnet = f"resnet{depth}"
        known = get_model_weights(resnet).__members__ if resnet in list_models() else {}
        if not known:
            network = f"this network{f' (model.depth={depth})' if depth > NO_BLOCKS else ''}"
            remedy = f"give none, or {PATHS}"
            raise UserError(f"model.pretrained={source}: torchvision has no weights for {network}; {remedy}")
        names = ", ".join(known)
        raise UserError(f"model.pretrained={source}: torchvision's weights for model.depth={depth} are: {names}")
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    refuse_damaged(file, source)
    try:
        # torchvision's default would unpickle anything in a manipulated cache
        options = {"check_hash": True, "progress": True, "map_location": "cpu", "weights_only": True}
        return dict(weights.get_state_dict(**options))
    except Exception as error:  # network, disk and hash raise different types
        raise UserError(
            f"model.pretrained={source}: cannot download {weights.url} ({reason(error)}); download it elsewhere and "
            f"copy it to {file}, or give another file with model.pretrained=PATH"
        ) from error


def weights_of_torchvision(source: str, depth: int) -> Any:
    """Return the member of torchvision's weight enum that `model.pretrained` names; None if there is none."""
    resnet, (enum, _, name) = f"resnet{depth}", source.rpartition(".")
    known = get_model_weights(resnet).__members__ if resnet in list_models() else {}
    weights = known.get("IMAGENET1K_V1" if source == "imagenet" else name)
    return weights if enum in ("", f"ResNet{depth}_Weights") else None


def refuse_damaged(file: Path, source: str) -> None:
    """Refuse a damaged file in torch's cache; torch itself checks hashes only while downloading.

    Raises:
        UserError: the hash of the file does not begin with the digits in its name.
    """
    promised = file.stem.rpartition("-")[2]
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"model.pretrained={source}: {file} cannot be read ({error.strerror}); delete {file}"
        ) from error
    if not found.startswith(promised):
        raise UserError(
            f"model.pretrained={source}: {file} is damaged (its SHA-256 begins with {found[: len(promised)]}, not with "
            f"{promised}); delete {file} to download it again, or copy a complete file there"
        )


def find_file(source: str, depth: int) -> Path:
    """Return the file itself, the checkpoint that the job of a run folder tested, or the only one of a depth.

    Args:
        source: a file, a run folder, or a folder with weight files or runs, exactly one of this depth.
        depth: depth of the network that gets the weights.

    Raises:
        UserError: there is no such file, not exactly one of this depth, or the run's checkpoint is missing.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() and "/" in str(source) else []
        close = get_close_matches(path.name, names or NAMES, n=1)
        meant = f"did you mean {path.with_name(close[0])}?" if close else SOURCES
        raise UserError(f"{source}: no such file, folder or name; {meant}")
    run = RunFolder(path)
    if not run.config_file.is_file() and not run.checkpoints.is_dir():
        if files := sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()):
            return file_of_depth(path, files, depth)
        run = find_run(path, depth)
    return tested_checkpoint(run, source)


def file_of_depth(folder: Path, files: Iterable[Path], depth: int) -> Path:
    """Return the one file with this depth in its name: resnet18-f37072fd.pth, ResNet-18.pt, r18.ckpt or 18.pth.

    A number counts only after such a word, because a name may also contain a hash, an epoch or an image size.
    """
    word = r"(?:resnet|(?<![a-z])(?:res|rn|r|depth)|^(?=\d+\.))"
    pattern = re.compile(rf"{word}(?:[-_=. ]*){depth}(?!\d)", re.IGNORECASE)
    found = [file for file in files if pattern.search(file.name)]
    if len(found) != 1:
        matches = ", ".join(file.name for file in found) or f"none among {', '.join(file.name for file in files)}"
        raise UserError(
            f"{folder} must contain one file with depth {depth} in its name (such as resnet{depth}.pth), found "
            f"{matches}; name the file itself"
        )
    return found[0]


def find_run(folder: Path, depth: int) -> RunFolder:
    """Return the one run at or below `folder` with a network of this depth."""
    try:
        runs = find_runs([folder])
    except UserError:
        there = ", ".join(sorted(each.name for each in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{folder} contains neither runs nor weights ({' '.join(SUFFIXES)}), but {there}") from None
    runs = [run for run in runs if run.read_config().get("model", {}).get("depth") == depth]
    if len(runs) != 1:
        found = ", ".join(str(run.path) for run in runs) or "none"
        raise UserError(f"{folder} must contain one run of depth {depth}, found {found}; name the run itself")
    return runs[0]


def read(path: Path) -> dict[str, Any]:
    """Read a weight file; refuse a pickle with anything but tensors, plain values and `HARMLESS` objects."""
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable") from error
    try:
        if is_safetensors(start):
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a forbidden object raises UnpicklingError, a damaged file nearly anything
        remedy = "save the weights again with torch.save(model.state_dict(), PATH)"
        last = path.with_name("last.ckpt")
        if path.name == "best.ckpt" and last.is_file():
            remedy = f"to use the last epoch, name {last}"
        why = reason(error) if is_pickle(start) else f"it begins with {start!r}" if start else "it is empty"
        if start.startswith(b"PK") and not zipfile.is_zipfile(path):  # whose directory is at its end
            why = "the file is truncated"
        raise UserError(f"{path}: not readable as plain tensors ({why}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}, not a state dict; save model.state_dict()")
    return content


def is_safetensors(start: bytes) -> bool:
    """Return whether a file begins like a safetensors file (with the length of a JSON object), ignoring its suffix."""
    return start[8:9] == b"{" and not is_pickle(start)


def is_pickle(start: bytes) -> bool:
    """Return whether a file begins like one of `torch.save`: a zip archive, or a pickle in older versions."""
    return start.startswith((b"PK", b"\x80"))


def reason(error: Exception) -> str:
    """Shorten an error to one line; torch's paragraphs about a forbidden object become the object's name."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"it contains {forbidden[1]}"
    text = str(error).rpartition("WeightsUnpickler error:")[2]  # removes torch's advice to unpickle anything
    text = text.partition("Check the documentation")[0].partition("In PyTorch 2.6")[0]
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def find_network(content: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors of the network in a file, at any nesting, without the prefix of their names.

    Raises:
        UserError: the file contains no tensors, or several networks.
    """
    networks = {key: value for key, value in content.items() if "optim" not in str(key)}
    if "state_dict" in networks:  # of a run that averaged its weights, these are the average
        networks.pop("current_model_state", None)
    tensors = with_names({name: value for name, value in flat(networks).items() if is_dense(value)})
    if not tensors:
        kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(content.items())[:5]) or "nothing"
        raise UserError(f"model.pretrained={source}: it contains no tensors, but {kinds}; {SOURCES}")
    place = place_of_network(tensors, own, source)
    # single numbers are scores
    beside = [name for name, value in tensors.items() if value.ndim and not name.startswith(place)]
    if beside:
        others = count(len(beside), "other tensor is", "other tensors are")
        named = ", ".join(beside[:3]) + (", …" if beside[3:] else "")
        _log_once(f"model.pretrained={source}: the weights are {place}*; {others} not used: {named}")
    return {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}


@cache
def _log_once(text: str) -> None:
    """Log a line, unless the check before the training has logged it."""
    logger.info("%s", text)


def is_dense(value: object) -> bool:
    """Return whether a value is a dense tensor: not sparse, quantized or without data."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def with_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace layer numbers by layer names: 4.0.conv1.weight → layer1.0.conv1.weight.

    `nn.Sequential(*list(resnet.children())[:-1])`, the usual way to cut off the head, numbers the layers.
    """
    blocks = [re.fullmatch(r"((?:.*?\.)?)(\d+)\.\d+\.conv1\.weight", name) for name in tensors]
    stages = {(block[1], int(block[2])) for block in blocks if block and f"{block[1]}0.weight" in tensors}
    for place in {place for place, _ in stages}:
        numbers = sorted(number for each, number in stages if each == place)
        layers = {0: "conv1", 1: "bn1"} | {number: f"layer{k}" for k, number in enumerate(numbers, start=1)}
        of_layer = re.compile(rf"{re.escape(place)}(\d+)\.(.+)")
        found = {name: of_layer.fullmatch(name) for name in tensors}
        tensors = {
            f"{place}{layers.get(int(layer[1]), 'fc')}.{layer[2]}" if (layer := found[name]) else name: value
            for name, value in tensors.items()
        }
    return tensors


def place_of_network(tensors: Collection[str], own: Mapping[str, Tensor], source: str) -> str:
    """Return the prefix of a network's tensor names in a file (`state_dict.module.`), found by its first two layers.

    Raises:
        UserError: there are several networks besides running averages.
    """
    first, second = [name for name, value in own.items() if value.ndim > 1][:2]
    places = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
    places = [place for place in places if place + second in tensors]
    chosen = [place for place in places if not COPIES.search(place)] or places or [""]
    if len(chosen) > 1:
        found = ", ".join(f"{place}*" for place in chosen)
        raise UserError(f"model.pretrained={source}: it contains {len(chosen)} networks ({found}); save only one")
    if len(places) > 1:
        averages = ", ".join(f"{place}*" for place in places if place != chosen[0])
        text = "model.pretrained=%s: using %s*, not the running average %s; to use the average, save it alone"
        logger.warning(text, source, chosen[0], averages)
    return chosen[0]


def refuse_nan_weights(state: Mapping[str, Any], source: str) -> None:
    """Refuse weights or buffers that are NaN or infinite: argmax of NaN is class 0 for every image.

    Raises:
        UserError: there are such values (the message names the source and the first tensor), or no weights at all.
    """
    if not isinstance(state, Mapping):
        raise UserError(
            f"{source}: state_dict is of type {type(state).__name__}, not a mapping of names to tensors; give another "
            "checkpoint"
        )
    floating = {name: each for name, each in state.items() if isinstance(each, Tensor) and each.is_floating_point()}
    undefined = [name for name, each in floating.items() if not torch.isfinite(each.double()).all()]
    if undefined:
        raise UserError(
            f"{source}: {len(undefined)} of {len(state)} tensors have NaN or infinite values (first {undefined[0]}), "
            "so its predictions are invalid; give another checkpoint, or train again with a lower optim.lr"
        )


def rename(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Rename layers from other authors' conventions to torchvision's."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")
        if "fc.0.weight" in own:
            name = re.sub(r"^fc\.(weight|bias)$", r"fc.0.\1", name)
        renamed[name] = value
    return renamed


def explain(misfits: list[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe the likely cause, and the keys that do not fit (the first three of each kind)."""
    depth, found = depth_of(own), depth_of(state)
    if depth == NO_BLOCKS:
        cause = "these are not weights of this network; set model.* to match them, or give other weights"
    elif found == NO_BLOCKS:
        cause = "these are not weights of a ResNet"
    elif found != depth and _is_depth(found, own, state):
        cause = f"weights of depth {found}, but model.depth={depth}; set model.depth={found}, or give other weights"
    elif found != depth and (lacking := _lacking_parts(own, state)):
        parts = ", ".join(lacking[:3]) + (", …" if lacking[3:] else "")
        cause = f"the weights lack {parts} of model.depth={depth}; give complete weights of this form and depth"
    elif found != depth:
        cause = f"weights of depth {found}, but model.depth={depth}; give weights of this form and depth"
    else:
        cause = "the weights have a different form, shortcut, stem, widths or bias; set model.* to match them"
    groups = {
        "missing": [name for name in misfits if name not in state],
        "unexpected": [name for name in misfits if name not in own],
        "of a different shape": [name for name in misfits if name in own and name in state],
    }
    for kind, names in groups.items():
        if names:
            cause += f"; {len(names)} {kind}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
    return cause


def _is_depth(depth: int, own: Mapping[str, Tensor], state: Collection[str]) -> bool:
    """Return whether the form of a network has this depth, with as many blocks in each stage as the weights."""
    from resnet_lab.models.resnet import FORMS, STEMS, find_layers  # it imports this module

    def has(form: str, names: Collection[str], depth: int) -> bool:
        with suppress(UserError):
            return list(find_layers(form, depth)[1]) == _blocks(names)
        return False

    forms = [name for name in FORMS if has(name, own, depth_of(own))]  # several, as their stems and biases are keys
    parts = own["conv1.weight"].shape[-1], "layer1.0.conv1.bias" in own
    usual = [name for name in forms if (STEMS[FORMS[name].stem].kernel, FORMS[name].bias) == parts]
    return bool(forms) and all(has(name, state, depth) for name in usual or forms)


def _blocks(names: Collection[str]) -> list[int]:
    """Return the number of blocks in each stage, from a state dict's names."""
    stages = [block[1] for name in names if (block := re.fullmatch(r"layer(\d+)\.\d+\.conv1\.weight", name))]
    return [stages.count(stage) for stage in sorted({*stages}, key=int)]


def _lacking_parts(own: Collection[str], state: Collection[str]) -> list[str]:
    """Return the stages of a network that weights lack, and the blocks that they lack in other stages."""
    there = {part for name in state for part in (name.partition(".")[0], ".".join(name.split(".")[:2]))}
    parts = [name.split(".")[:2] for name in own if name.startswith("layer")]
    found = (stage if stage not in there else f"{stage}.{block}" for stage, block in parts)
    return [part for part in dict.fromkeys(found) if part not in there]


def strides_on_first(model: nn.Module) -> bool:
    """Return whether a bottleneck halves the resolution on its first 1×1 convolution, as in the paper."""
    first = [module for name, module in model.named_modules() if name.endswith(".conv1")]
    return any(module.kernel_size == (1, 1) and module.stride == (2, 2) for module in first)
