"""Weights in: from torchvision, a file or a run of this project; only plain tensors are ever unpickled."""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from resnet_lab.errors import UserError, count
from resnet_lab.run_folder import RunFolder, find_runs, flat

logger = logging.getLogger(__name__)

SOURCES = (
    "give none, imagenet, IMAGENET1K_V2, or the path of a state dict, a checkpoint, a run, or a folder with one run or "
    "one file of weights for each depth"
)
SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".tar", ".bin", ".pkl", ".safetensors")  # of files of weights

# rebuild a number and an array of numpy; their module has another name since numpy 2
_scalar, _array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
# what training scripts keep beside the tensors: the arguments of argparse, paths, and numbers and arrays of numpy
HARMLESS: list[Any] = [
    argparse.Namespace,
    *((PosixPath, f"pathlib{module}.PosixPath") for module in ("", "._local")),
    np.dtype,
    np.ndarray,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"},
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
COPIES = re.compile(r"(^|[._])(ema|encoder_k|momentum|target)(?![a-z])", re.IGNORECASE)  # running averages of another


def load_pretrained(model: nn.Module, source: str) -> None:
    """Replace the initial values of a network in place, and log by key what was not replaced.

    A head (`fc`) of another shape (another number of classes) keeps its initial values; all else must fit.

    Args:
        model: a network with the parameter names of torchvision's ResNet.
        source: `imagenet` (torchvision's IMAGENET1K_V1), a name from torchvision's weight enum for this
            depth, or the path of a state dict (torch or safetensors), of a checkpoint or run folder of ours, or
            of a folder with runs or files of weights, of which one has this depth.

    Raises:
        UserError: the weights are not there, cannot be fetched, are more than plain tensors, are NaN or infinite, or do
            not fit.
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
            "model.pretrained=%s: weights trained with the stride on the 3×3 (all of torchvision's) compute "
            "another function with the stride on the first 1×1; set model.stride_on=3x3 for them",
            source,
        )


def load_fitting(model: nn.Module, source: str) -> None:
    """Load into a network from outside, in place, every tensor of a file whose name and shape fit, and log the others.

    Args:
        model: any network.
        source: the path of a state dict (torch or safetensors), of a checkpoint or of a run folder.

    Raises:
        UserError: the weights are not there, are more than plain tensors, or NaN or infinite; or fewer than half of the
            network's tensors are among them.
    """
    own = model.state_dict()
    try:
        content = read(find_file(source))
    except UserError as error:
        raise UserError(f"model.pretrained={error}") from None
    state = find_network(content, own, source)
    refuse_nan_weights(state, f"model.pretrained={source}")
    fits = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    kept = [name for name in names if name not in fits]
    if 2 * len(kept) > len(names):
        others = [name for name in state if name not in fits]
        raise UserError(
            f"model.pretrained={source}: {len(names) - len(kept)} of {len(names)} tensors of the network fit by name "
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
    """The tensors of a file under the names of a network, all of which fit, except for the head.

    Args:
        content: of the file.
        own: the network's state dict; its values may be without data (device `meta`).
        source: for errors.

    Raises:
        UserError: they are none of such a network, NaN or infinite, or of another architecture.
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


def contents(source: str, depth: int) -> tuple[dict[str, Any], str]:
    """What `source` names, for a network of `depth` layers: a state dict, or a checkpoint with one in it.

    Beside it the source for messages, with the file where that is in a folder.

    Raises:
        UserError: as for `load_pretrained`.
    """
    if re.fullmatch(r"imagenet|DEFAULT|IMAGENET\w*|\w+_Weights\.\w+", source):
        return fetch(source, depth), source
    try:
        file = find_file(source, depth)
    except UserError as error:
        raise UserError(f"model.pretrained={error}") from None
    return read(file), source if file == Path(source).expanduser() else f"{source} ({file.name})"


def depth_of(names: Collection[str]) -> int:
    """Layers with weights, counted from a state dict's names: stem, head, and two or three in each block."""
    return 2 + sum(re.fullmatch(r"layer\d+\.\d+\.conv\d\.weight", name) is not None for name in names)


def fetch(source: str, depth: int) -> dict[str, Tensor]:
    """Torchvision's ImageNet weights for a ResNet of `depth`, through its own download and cache."""
    weights = weights_of_torchvision(source, depth)
    if weights is None:
        resnet = f"resnet{depth}"
        known = get_model_weights(resnet).__members__ if resnet in list_models() else {}
        names = ", ".join(known) or "none"
        raise UserError(f"model.pretrained={source}: torchvision's for model.depth={depth} are: {names}")
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    refuse_damaged(file, source)
    try:
        # torchvision's default would unpickle whatever a poisoned cache holds
        options = {"check_hash": True, "progress": True, "map_location": "cpu", "weights_only": True}
        return dict(weights.get_state_dict(**options))
    except Exception as error:  # network, disk, hash: each raises its own
        raise UserError(
            f"model.pretrained={source}: cannot fetch {weights.url} ({reason(error)}); fetch it elsewhere and copy it "
            f"to {file}, or give another file through model.pretrained=PATH"
        ) from error


def weights_of_torchvision(source: str, depth: int) -> Any:
    """The member of torchvision's enumeration of weights that `model.pretrained` names; None: it names none."""
    resnet, (enum, _, name) = f"resnet{depth}", source.rpartition(".")
    known = get_model_weights(resnet).__members__ if resnet in list_models() else {}
    weights = known.get("IMAGENET1K_V1" if source == "imagenet" else name)
    return weights if enum in ("", f"ResNet{depth}_Weights") else None


def refuse_damaged(file: Path, source: str) -> None:
    """Stop at a copy in torch's cache that is not what its name promises; torch checks that while it downloads only.

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
            f"{promised}); delete {file}, and the next start fetches it again, or copy a complete one there"
        )


def find_file(source: str, depth: int | None = None) -> Path:
    """The file itself, or the checkpoint of a run folder that its job tested.

    Args:
        source: a file, a run folder, or a folder with files of weights or with runs, of which one has this depth.
        depth: of the network that takes the weights; None where only a run or a file will do.

    Raises:
        UserError: there is no such file, not exactly one of this depth, or the run has lost its checkpoint.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        remedy = "give a run folder or a checkpoint" if depth is None else SOURCES
        raise UserError(f"{source}: no such file{'' if depth is None else ', folder or name'}; {remedy}")
    run = RunFolder(path)
    if depth is not None and not run.config_file.is_file() and not run.checkpoints.is_dir():
        if files := sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()):
            return file_of_depth(path, files, depth)
        run = find_run(path, depth)
    file = run.last_checkpoint if selects_nothing(run) else run.best_checkpoint
    if not file.is_file():
        other = f"; to take the last epoch, name {run.last_checkpoint}" if run.last_checkpoint.is_file() else ""
        raise UserError(f"{source}: {file} is missing or not a file; give another run or a checkpoint{other}")
    return file


def selects_nothing(run: RunFolder) -> bool:
    """Whether a run keeps its last epoch as no validation split selects one; not where its status cannot be read."""
    try:
        return run.read_status().get("best_checkpoint", "") is None
    except UserError:
        return False


def file_of_depth(folder: Path, files: Iterable[Path], depth: int) -> Path:
    """The one file that has this depth in its name, as in resnet18-f37072fd.pth, ResNet-18.pt, r18.ckpt or 18.pth.

    A number counts only behind such a word, as a name may also hold a hash, an epoch or an image size.
    """
    word = r"(?:resnet|(?<![a-z])(?:res|rn|r|depth)|^(?=\d+\.))"
    pattern = re.compile(rf"{word}(?:[-_=. ]*){depth}(?!\d)", re.IGNORECASE)
    found = [file for file in files if pattern.search(file.name)]
    if len(found) != 1:
        matches = ", ".join(file.name for file in found) or f"none among {', '.join(file.name for file in files)}"
        raise UserError(
            f"{folder}: one file with depth {depth} in its name (as resnet{depth}.pth) is needed, found {matches}; "
            "name the file itself"
        )
    return found[0]


def find_run(folder: Path, depth: int) -> RunFolder:
    """The one run at or below `folder` whose network has this depth."""
    try:
        runs = find_runs([folder])
    except UserError:
        there = ", ".join(sorted(each.name for each in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{folder}: it holds neither runs nor weights ({' '.join(SUFFIXES)}), but {there}") from None
    runs = [run for run in runs if run.read_config().get("model", {}).get("depth") == depth]
    if len(runs) != 1:
        found = ", ".join(str(run.path) for run in runs) or "none"
        raise UserError(f"{folder}: one run of depth {depth} is needed, found {found}; name the run itself")
    return runs[0]


def read(path: Path) -> dict[str, Any]:
    """The content of a weight file; a pickle with more in it than tensors, plain values and `HARMLESS` is refused."""
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
            remedy = f"to take the last epoch, name {last}"
        why = reason(error) if is_pickle(start) else f"it begins with {start!r}" if start else "it is empty"
        raise UserError(f"{path}: not readable as plain tensors ({why}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, no state dict; save model.state_dict()")
    return content


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as one of safetensors does, whatever its suffix: with the length of a JSON object."""
    return start[8:9] == b"{" and not is_pickle(start)


def is_pickle(start: bytes) -> bool:
    """Whether a file begins as one of `torch.save` does: a zip archive, or a pickle in older versions."""
    return start.startswith((b"PK", b"\x80"))


def reason(error: Exception) -> str:
    """One line of an error; of torch's paragraphs about a forbidden object only the object's name."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"it holds {forbidden[1]}"
    text = str(error).rpartition("WeightsUnpickler error:")[2]  # before it torch advises to unpickle anything
    text = text.partition("Check the documentation")[0].partition("In PyTorch 2.6")[0]
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def find_network(content: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of the network in a file, wherever a training script nests it, without what precedes their names.

    Raises:
        UserError: the file holds no tensors, or several networks.
    """
    networks = {key: value for key, value in content.items() if "optim" not in str(key)}
    tensors = with_names({name: value for name, value in flat(networks).items() if is_dense(value)})
    if not tensors:
        kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(content.items())[:5]) or "nothing"
        raise UserError(f"model.pretrained={source}: there are no tensors in it, but {kinds}; {SOURCES}")
    place = place_of_network(tensors, own, source)
    beside = [name for name in tensors if not name.startswith(place)]
    if beside:
        others = count(len(beside), "other tensor is", "other tensors are")
        text = "model.pretrained=%s: the weights are %s*; %s not used: %s%s"
        logger.info(text, source, place, others, ", ".join(beside[:3]), ", …" if beside[3:] else "")
    return {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}


def is_dense(value: object) -> bool:
    """Whether something is a tensor with a number in each place: not sparse, quantized or without data."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def with_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names of layers in place of numbers: 4.0.conv1.weight → layer1.0.conv1.weight.

    `nn.Sequential(*list(resnet.children())[:-1])` numbers layers so, which is how scripts cut off the head.
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
    """What precedes the names of a network's tensors in a file (`state_dict.module.`): its first two layers tell.

    Raises:
        UserError: there are several networks, and not all but one are running averages.
    """
    first, second = [name for name, value in own.items() if value.ndim > 1][:2]
    places = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
    places = [place for place in places if place + second in tensors]
    chosen = [place for place in places if not COPIES.search(place)] or places or [""]
    if len(chosen) > 1:
        found = ", ".join(f"{place}*" for place in chosen)
        raise UserError(f"model.pretrained={source}: it holds {len(chosen)} networks ({found}); save one of them alone")
    if len(places) > 1:
        averages = ", ".join(f"{place}*" for place in places if place != chosen[0])
        text = "model.pretrained=%s: %s* is taken, not the running average %s; save that alone to take it"
        logger.warning(text, source, chosen[0], averages)
    return chosen[0]


def refuse_nan_weights(state: Mapping[str, Any], source: str) -> None:
    """Stop at weights or buffers that are NaN or infinite: argmax of NaN is class 0 for every image.

    Raises:
        UserError: there are some; the message names the source and the first tensor. Or there are no weights at all.
    """
    if not isinstance(state, Mapping):
        raise UserError(
            f"{source}: state_dict holds {type(state).__name__}, not tensors by name; give another checkpoint"
        )
    floating = {name: each for name, each in state.items() if isinstance(each, Tensor) and each.is_floating_point()}
    undefined = [name for name, each in floating.items() if not torch.isfinite(each.double()).all()]
    if undefined:
        raise UserError(
            f"{source}: {len(undefined)} of {len(state)} tensors hold NaN or infinite values (first {undefined[0]}), "
            "so its predictions mean nothing; give another checkpoint, or train again with a lower optim.lr"
        )


def rename(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Undo other authors' names of layers."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")
        if "fc.0.weight" in own:
            name = re.sub(r"^fc\.(weight|bias)$", r"fc.0.\1", name)
        renamed[name] = value
    return renamed


def explain(misfits: list[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The likely cause, and the keys that do not fit (the first three of each kind)."""
    depth, found = depth_of(own), depth_of(state)
    if found == 2:
        cause = "these are no weights of a ResNet"
    elif found != depth:
        cause = f"weights of depth {found}, but model.depth={depth}; set model.depth={found} or give others"
    else:
        cause = "the weights have another form, shortcut, stem, widths or bias; set model.* as they have it"
    groups = {
        "missing": [name for name in misfits if name not in state],
        "unexpected": [name for name in misfits if name not in own],
        "of another shape": [name for name in misfits if name in own and name in state],
    }
    for kind, names in groups.items():
        if names:
            cause += f"; {len(names)} {kind}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
    return cause


def strides_on_first(model: nn.Module) -> bool:
    """Whether a bottleneck halves the resolution on its first 1×1 convolution, as in the paper."""
    first = [module for name, module in model.named_modules() if name.endswith(".conv1")]
    return any(module.kernel_size == (1, 1) and module.stride == (2, 2) for module in first)
