"""Weights in: from torchvision, a file or a run of this project; only plain tensors are ever unpickled."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder, find_runs

logger = logging.getLogger(__name__)

SOURCES = "give none, imagenet, IMAGENET1K_V2, or the path of a state dict, a checkpoint, a run or a folder of runs"


def load_pretrained(model: nn.Module, source: str) -> None:
    """Replace the initial values of a ResNet in place, and log by key what was not replaced.

    A head (`fc`) of another shape (another number of classes) keeps its initial values; all else must fit.

    Args:
        model: a network with the parameter names of torchvision's ResNet.
        source: `imagenet` (torchvision's IMAGENET1K_V1), a name from torchvision's weight enum for this
            depth, or the path of a state dict (torch or safetensors), of a checkpoint or run folder of ours, or
            of a folder of runs of which one has this depth.

    Raises:
        UserError: the weights are not there, cannot be fetched, are more than plain tensors, are NaN or infinite, or do
            not fit.
    """
    content = contents(source, depth_of(model.state_dict()))
    state, own_run = find_state_dict(content, source), "pytorch-lightning_version" in content
    refuse_nan_weights(state, f"model.pretrained={source}")
    insert(model, rename(state, model.state_dict()), source)
    if not own_run and strides_on_first(model):
        logger.warning(
            "model.pretrained=%s: weights trained with the stride on the 3×3 (all of torchvision's) compute "
            "another function with the stride on the first 1×1; set model.stride_on=3x3 for them",
            source,
        )


def contents(source: str, depth: int) -> dict[str, Any]:
    """What `source` names, for a network of `depth` layers: a state dict, or a checkpoint with one in it.

    Raises:
        UserError: as for `load_pretrained`.
    """
    if re.fullmatch(r"imagenet|DEFAULT|IMAGENET\w*|\w+_Weights\.\w+", source):
        return fetch(source, depth)
    try:
        file = find_file(source, depth)
    except UserError as error:
        raise UserError(f"model.pretrained={error}") from None
    return read(file)


def depth_of(names: Collection[str]) -> int:
    """Layers with weights, counted from a state dict's names: stem, head, and two or three in each block."""
    return 2 + sum(re.fullmatch(r"layer\d+\.\d+\.conv\d\.weight", name) is not None for name in names)


def fetch(source: str, depth: int) -> dict[str, Tensor]:
    """Torchvision's ImageNet weights for a ResNet of `depth`, through its own download and cache."""
    resnet, (enum, _, name) = f"resnet{depth}", source.rpartition(".")
    known = get_model_weights(resnet).__members__ if resnet in list_models() else {}
    weights = known.get("IMAGENET1K_V1" if source == "imagenet" else name)
    if weights is None or enum not in ("", f"ResNet{depth}_Weights"):
        names = ", ".join(known) or "none"
        raise UserError(f"model.pretrained={source}: torchvision's for model.depth={depth} are: {names}")
    try:
        # torchvision's default would unpickle whatever a poisoned cache holds
        return weights.get_state_dict(check_hash=True, progress=True, map_location="cpu", weights_only=True)
    except Exception as error:  # network, disk, hash, a broken file in the cache: each raises its own
        raise UserError(
            f"model.pretrained={source}: cannot fetch {weights.url} or read its copy in "
            f"{torch.hub.get_dir()} ({reason(error)}); give a local file through model.pretrained=PATH"
        ) from error


def find_file(source: str, depth: int | None = None) -> Path:
    """The file itself, or the checkpoint of a run folder that its job tested.

    Args:
        source: a file, a run folder, or a folder of runs of which one has this depth (a sweep over depths).
        depth: of the network that wants the weights; None where only a run or a file will do.

    Raises:
        UserError: there is no such file, not exactly one such run, or the run has lost its checkpoint.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{source}: no such file, folder or name; {SOURCES}")
    run = RunFolder(path)
    if depth is not None and not run.config_file.is_file() and not run.checkpoints.is_dir():
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


def find_run(folder: Path, depth: int) -> RunFolder:
    """The one run at or below `folder` whose network has this depth."""
    runs = [run for run in find_runs([folder]) if run.read_config().get("model", {}).get("depth") == depth]
    if len(runs) != 1:
        found = ", ".join(str(run.path) for run in runs) or "none"
        raise UserError(f"{folder}: one run of depth {depth} is needed, found {found}; name the run itself")
    return runs[0]


def read(path: Path) -> dict[str, Any]:
    """The content of a weight file; a pickle with more in it than tensors and plain values is refused."""
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a forbidden object raises UnpicklingError, a damaged file nearly anything
        remedy = "save the weights again with torch.save(model.state_dict(), PATH)"
        last = path.with_name("last.ckpt")
        if path.name == "best.ckpt" and last.is_file():
            remedy = f"to take the last epoch, name {last}"
        raise UserError(f"{path}: not readable as plain tensors ({reason(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, no state dict; save model.state_dict()")
    return content


def reason(error: Exception) -> str:
    """One line of an error; of torch's paragraphs about a forbidden object only the object's name."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"it asks for {forbidden[1]}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def find_state_dict(content: dict[str, Any], source: str) -> dict[str, Tensor]:
    """The tensors by name: the content itself, or what training scripts keep in it beside other things."""
    nested = (content[key] for key in ("state_dict", "model", "net") if isinstance(content.get(key), dict))
    state = next(nested, content)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"model.pretrained={source}: {name} is a {kind}, not a tensor; {SOURCES}")
    return state


def refuse_nan_weights(state: Mapping[str, Any], source: str) -> None:
    """Stop at weights or buffers that are NaN or infinite: argmax of NaN is class 0 for every image.

    Raises:
        UserError: there are some; the message names the source and the first tensor.
    """
    floating = {name: each for name, each in state.items() if isinstance(each, Tensor) and each.is_floating_point()}
    undefined = [name for name, each in floating.items() if not torch.isfinite(each.double()).all()]
    if undefined:
        raise UserError(
            f"{source}: {len(undefined)} of {len(state)} tensors hold NaN or infinite values (first {undefined[0]}), "
            "so its predictions mean nothing; give another checkpoint, or train again with a lower optim.lr"
        )


def rename(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Undo the prefixes of Lightning, DataParallel and torch.compile, and other authors' names of layers."""
    # a LightningModule may hold tensors beside its network, such as the class weights of its loss
    state = {name: value for name, value in state.items() if name.startswith("model.")} or state
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^((model|module|_orig_mod)\.)+", "", name)
        name = re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")
        if "fc.0.weight" in own:
            name = re.sub(r"^fc\.(weight|bias)$", r"fc.0.\1", name)
        renamed[name] = value
    return renamed


def insert(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load what fits; the rest may only belong to the head, or be a count of batches that old files lack."""
    own = model.state_dict()
    fits = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    kept = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    unused = [name for name in state if name not in fits]
    misfits = [name for name in dict.fromkeys(kept + unused) if not name.startswith("fc.")]
    if misfits:
        raise UserError(f"model.pretrained={source}: {explain(misfits, own, state)}")
    model.load_state_dict(own | fits)
    logger.info(
        "model.pretrained=%s: loaded %d tensors; left as initialised: %s; in the weights but not used: %s",
        source,
        len(fits),
        ", ".join(kept) or "none",
        ", ".join(f"{name} {list(state[name].shape)}" for name in unused) or "none",
    )


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
