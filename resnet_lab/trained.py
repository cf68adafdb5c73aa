"""Loads a trained network without its data set, `load("runs/x")`, and predicts images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from resnet_lab import environment
from resnet_lab import trust as trusting
from resnet_lab.config import PHOTOGRAPHS, build, changed_keys, differences
from resnet_lab.continuation import EPOCHS
from resnet_lab.data.arrays import ArrayData
from resnet_lab.data.augmentation import GEOMETRY
from resnet_lab.data.check import HASH_DIGITS
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.listing import list_images
from resnet_lab.data.photographs import Photographs
from resnet_lab.data.prepared import JPEG, as_stored
from resnet_lab.data.reader import fit
from resnet_lab.data.transforms import Geometry, normalize
from resnet_lab.ensemble import Ensemble, LogProbabilities
from resnet_lab.errors import UserError, count
from resnet_lab.inputs import EYES, SEEING, checkpoint_of, sources_of, warn_of_unfinished
from resnet_lab.models.pretrained import read, refuse_nan_weights
from resnet_lab.objectives import Objective
from resnet_lab.origin import TRAIN_IMAGES, origin_of
from resnet_lab.parts import build_network, build_objective, head_of, without_weights
from resnet_lab.processes import cores
from resnet_lab.report.runs import OUTDATED, Run
from resnet_lab.run_folder import RunFolder, flat
from resnet_lab.signatures import is_ours
from resnet_lab.statistics import DECISIONS, OWN_RULE, midpoints
from resnet_lab.tta import outputs_of

log = logging.getLogger("resnet_lab")

One: TypeAlias = str | Path | np.ndarray | Image.Image
Images: TypeAlias = One | Sequence[One] | Tensor

POOLS = "pools"  # key of `Trained.origin`: whether the networks were trained on different images, as those of folds
MEMBERS = "members"  # in place of a file name, for the networks of a derived run
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # type of computation by Lightning's precision


def place_of(file: str | Path) -> Path:
    """Return the name of a model in messages: its checkpoint, or the folder of a derived run."""
    place = Path(file)
    return place.parent if place.name == MEMBERS else place


class Trained:
    """Trained network with its objective and its image preprocessing.

    Attributes:
        file: the checkpoint.
        network: normalized images (B, 3, S, S) → outputs (B, M), in evaluation mode.
        objective: outputs (B, M) → probabilities (B, K) and classes (B,).
        origin: metadata of the checkpoint: configuration, class names, mean and std.
        tta: views of each image that are averaged, as in the run's own test: `none`, `flips` or `dihedral`.
    """

    def __init__(self, file: Path, network: nn.Module, objective: Objective, origin: dict[str, Any]) -> None:
        self.file, self.network, self.objective, self.origin = file, network.eval(), objective.eval(), origin
        self.tta: str = origin["config"]["trainer"]["tta"]
        config = photographs(origin["config"], str(file), self.class_names)
        self._data: Photographs = build("data", config["data"])
        self._data.like, self._data.as_prepared = own_reader(origin["config"]), saw_jpegs(origin)
        self._geometry = Geometry(self._data)

    def __repr__(self) -> str:
        """Return file, network and classes: `Trained(runs/one/…/best.ckpt: ResNet, 224 px, 5 classes)`."""
        network = type(self.network).__name__
        classes = count(len(self.class_names), "class", "classes")
        return f"Trained({place_of(self.file)}: {network}, {self.size} px, {classes})"

    @property
    def class_names(self) -> list[str]:
        """The K class names, in the order of the probabilities."""
        names: list[str] = self.origin["class_names"]
        return list(names)

    @property
    def size(self) -> int:
        """The side S in pixels of the network's input images."""
        return self._geometry.size

    def to(self, device: str | torch.device) -> Trained:
        """Move network and objective to a device, in place."""
        self.network.to(device)
        self.objective.to(device)
        return self

    def __call__(self, images: Images) -> pd.DataFrame:
        """Predict the classes of images.

        Args:
            images: a file, a folder (every image in and below it), an array (H, W, 3) uint8 RGB, a Pillow image, or
                a list of those; or a tensor (3, S, S) or (N, 3, S, S) of the network's size, uint8, or float in [0, 1].

        Returns:
            One row per image. The index is the file or the position in the list; `prediction` is a class name; one
            column per class name contains the probability.

        Raises:
            UserError: an image cannot be read, its probabilities are not finite, or a tensor has the wrong size or
                type.
        """
        names, batches = self._seen(images)
        outputs = torch.cat([outputs_of(self._outputs, batch, self.tta) for batch in batches])
        probabilities = self.objective.averaged(outputs).cpu().numpy()
        if len(undefined := np.flatnonzero(~np.isfinite(probabilities).all(axis=1))):
            raise UserError(f"{place_of(self.file)} has no finite probabilities for {names[undefined[0]]}; train again")
        classes = self.objective.classes(outputs).cpu().numpy()
        table = pd.DataFrame(probabilities, index=pd.Index(names, name="image"), columns=self.class_names)
        table.insert(0, "prediction", np.array(self.class_names)[classes], allow_duplicates=True)
        return table

    def features(self, images: Images) -> np.ndarray:
        """Return the input of the head, (N, F) float32; for a ResNet the pooled features.

        If the head is a convolution, its input is averaged over the positions.

        Args:
            images: see `__call__`.

        Raises:
            UserError: see `__call__`; the network has no head (see `head_of`), or is an ensemble.
        """
        if isinstance(self.network, Ensemble):
            raise UserError(
                f"{place_of(self.file)} contains several networks, each with its own features; load one of its members"
            )
        head = self.network.get_submodule(head_of(self.network, f"features of {place_of(self.file)}"))
        found: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: found.append(_pooled(inputs[0].float().cpu())))
        try:
            for batch in self._seen(images)[1]:
                self._outputs(batch)
        finally:
            hook.remove()
        features: np.ndarray = torch.cat(found).numpy()
        return features

    def _outputs(self, images: Tensor) -> Tensor:
        """Return outputs (B, M) float32 of normalized images (B, 3, S, S), at the precision of the run's evaluation."""
        device = next(self.network.parameters()).device
        trainer = self.origin["config"]["trainer"]
        precision, _ = environment.resolve_precision(trainer["precision"], trainer["channels_last"], device.type)
        lower = torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()
        with torch.inference_mode(), lower:
            outputs: Tensor = self.network(images.to(device))
        return outputs.float()

    def _seen(self, images: Images) -> tuple[list[str], Iterator[Tensor]]:
        """Return the names of images, and their batches as input for the network."""
        if isinstance(images, Tensor):
            pixels = self._pixels(images)
            names = [str(number) for number in range(len(pixels))]
            return names, self._normalized(torch.split(pixels, self._batch_size))
        names, sources = _listed(images)
        chunks = (sources[start : start + self._batch_size] for start in range(0, len(sources), self._batch_size))
        return names, self._normalized(self._decoded(chunk) for chunk in chunks)

    @property
    def _batch_size(self) -> int:
        size: int = self.origin["config"]["data"]["batch_size"]
        return size

    def _pixels(self, images: Tensor) -> Tensor:
        """Convert a tensor of the network's size to uint8 (N, S, S, 3)."""
        images = images[None] if images.ndim == 3 else images
        if not len(images):
            raise UserError("a tensor without images: give at least one image")
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            raise UserError(
                f"a tensor of shape {tuple(images.shape)}: give (N, 3, {self.size}, {self.size}), or arrays (H, W, 3) "
                "of any size"
            )
        if images.is_floating_point():
            if not (images.numel() and float(images.min()) >= 0 and float(images.max()) <= 1):
                raise UserError("a tensor of floats: give values in [0, 1], not normalized, of at least one image")
            images = (images * 255).round()
        elif images.dtype != torch.uint8:
            raise UserError(f"a tensor of {images.dtype}: give uint8, or float in [0, 1]")
        return images.to("cpu", torch.uint8).permute(0, 2, 3, 1)

    def _decoded(self, sources: Sequence[One]) -> Tensor:
        """Read and crop images of any kind to uint8 (B, S, S, 3)."""
        with ThreadPoolExecutor(cores()) as pool:
            images = list(pool.map(self._read, sources))
        nothing = np.zeros((len(images), len(GEOMETRY)))
        return torch.from_numpy(self._geometry(images, nothing, np.zeros(len(images), bool)))

    def _read(self, source: One) -> np.ndarray:
        """Return one image before augmentation, uint8 (H, W, 3)."""
        if isinstance(source, str | Path):
            try:
                return self._data.read_as_trained(str(source))
            except (OSError, ValueError) as error:
                # its text may repeat the file
                reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{source}: ")
                raise UserError(f"{source} cannot be read: {reason}") from error
        if isinstance(source, Image.Image):
            if source.mode[0] in "IF":
                raise UserError(f"a Pillow image of mode {source.mode}: it has more than 8 bits; convert it to 8 bits")
            source = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))  # upright, as if read from a file
        array = np.asarray(source)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            remedy = "give uint8 (H, W, 3), RGB; several images are a list of them"
            raise UserError(f"an array of {array.dtype} and shape {array.shape}: {remedy}")
        image = fit(array, self._data.recipe)
        return as_stored(image) if self._data.as_prepared else image

    def _normalized(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        mean, std = torch.tensor(self.origin["mean"]), torch.tensor(self.origin["std"])
        return (normalize(batch, mean, std) for batch in batches)


def load(source: str | Path, trust: str | Sequence[str] = ()) -> Trained:
    """Read a trained network, or the networks of a derived run.

    Args:
        source: a checkpoint, or a run folder (the checkpoint that its job tested is used). A folder made by
            `resnet-lab combine` gives an ensemble.
        trust: packages, or `GROUP:dotted.name`; the checkpoint may call their functions.

    Raises:
        UserError: there is no checkpoint, it contains more than plain values or is not of this project, it names
            functions that are neither ours nor trusted, or its weights are NaN, infinite, or of another network.
    """
    trusting.trust([trust] if isinstance(trust, str) else trust)
    run = RunFolder(Path(source).expanduser())
    members = sources_of(run)
    return load_derived(run, members) if members else load_checkpoint(str(source))


def load_derived(run: RunFolder, folders: Sequence[Path]) -> Trained:
    """Read the networks of a derived run; several become one whose probabilities are their mean.

    Args:
        run: its folder.
        folders: the folders of its members.

    Raises:
        UserError: the folder of a member is missing, members prepare images differently, or as for `load`.
    """
    made = Run(run, flat(run.read_config()), run.read_status())
    if f"combine.{EYES}" in made.config:
        raise UserError(f"{run.path} grades the two eyes of a patient together; load one of its members: {folders[0]}")
    if made.is_outdated:
        log.warning("%s was %s; until then, its networks are not those of its scores", run.path, OUTDATED)
    members = [load(folder) for folder in folders]
    first = members[0]
    for member in members:
        if member.tta != first.tta:
            raise UserError(
                f"{run.path}: its members average different views (trainer.tta={first.tta} and {member.tta}), so they "
                "are not one network; predict with each of them, and average the probabilities"
            )
        if different := [key for key in SEEING if _seeing(member, key) != _seeing(first, key)]:
            raise UserError(
                f"{run.path}: its members prepare images differently (data.{different[0]}), so they are not one "
                "network; predict with each of them, and average the probabilities"
            )
    hashes = [str(member.origin[TRAIN_IMAGES]) for member in members if member.origin.get(TRAIN_IMAGES)]
    known = "".join(hashes) if len(hashes) == len(members) else None  # those of some would hide the others
    rule, thresholds = _rule_of(run, len(first.class_names))
    pools = len({*hashes}) > 1 or any(each.origin.get(POOLS) for each in members)
    origin = first.origin | {TRAIN_IMAGES: known, "decision": rule, POOLS: pools}
    network, objective = first.network, first.objective
    if len(members) > 1:
        parts = [(each.network, each.objective, each.origin["mean"], each.origin["std"]) for each in members]
        network, objective = Ensemble(*zip(*parts, strict=True)), LogProbabilities(len(first.class_names))
    objective.choose(rule, len(first.class_names))
    if objective.limits is not None:
        objective.limits.copy_(torch.tensor(thresholds))
    return Trained(run.path / MEMBERS, network, objective, origin)


def _rule_of(run: RunFolder, num_classes: int) -> tuple[str, list[float]]:
    """Return the decision rule of a derived run, and its thresholds (empty for other rules).

    Raises:
        UserError: status.json is damaged.
    """
    status = run.read_status()
    rule, thresholds = status.get("decision"), status.get("thresholds") or []
    if rule not in (*DECISIONS, OWN_RULE):
        raise UserError(f"{run.path}: the decision rule {rule!r} of status.json is unknown; make the run again")
    numbers = isinstance(thresholds, list) and all(isinstance(each, int | float) for each in thresholds)
    if rule == "thresholds" and not (numbers and len(thresholds) == num_classes - 1):
        raise UserError(f"{run.path}: status.json has no thresholds between the classes; make the run again")
    return rule, thresholds


def _seeing(model: Trained, key: str) -> Any:
    """Return how a model prepares images; an ensemble converts between means."""
    return None if key in ("mean", "std", "batch_size") else model.origin["config"]["data"][key]


def load_checkpoint(source: str) -> Trained:
    """Read the network of a checkpoint or of the run folder that contains it; for the errors see `load`."""
    file = checkpoint_of(source)
    warn_of_unfinished(file)
    checkpoint = read(file)
    origin, state = origin_of(checkpoint, file), checkpoint.get("state_dict", {})
    refuse_nan_weights(state, str(file))
    config = origin["config"]
    warn_of_other_run(file, config)
    objective = build_objective(config["loss"], origin["class_counts"]["train"])
    network = build_network(without_weights(config["model"]), objective.num_outputs)
    try:
        nn.ModuleDict({"model": network, "loss": objective}).load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file}: its weights do not fit the network that it names; {reason}") from error
    unfitted = midpoints(len(origin["class_counts"]["train"])).tolist()
    if objective.thresholds == unfitted and file != RunFolder(file.parent.parent).best_checkpoint:
        log.warning("%s has no fitted thresholds: only the checkpoint that its job tested has them", file)
    return Trained(file, network, objective, origin)


def warn_of_other_run(file: Path, config: dict[str, Any]) -> None:
    """Warn that a checkpoint in a run folder has other settings than the run, as after a copy into the wrong folder.

    Args:
        file: the checkpoint.
        config: its configuration; more epochs are no difference, as a run can be extended.
    """
    run = RunFolder(file.resolve().parent.parent)
    if file.parent.name != run.checkpoints.name or not run.config_file.is_file():
        return
    with suppress(UserError):  # of a damaged folder; the checkpoint contains all that is needed
        own = run.read_config()
        both = flat(own).keys() & flat(config).keys()  # versions have different keys
        if (changed_keys(config, own) & both) - {EPOCHS}:
            text = "%s seems to be from another run, as its settings differ from those of its folder: %s"
            log.warning(text, file, "; ".join(differences(config, own)))


def match_classes(model: Trained, class_names: Sequence[str], data: str, remedy: str) -> None:
    """Check that data has the classes of a model, and warn about other names.

    Args:
        model: the loaded model.
        class_names: class names of the data.
        data: name of the data, for the message.
        remedy: what to do about another number of classes, for the message.

    Raises:
        UserError: the data has another number of classes, or has some of the classes in another order.
    """
    names = model.class_names
    place = place_of(model.file)
    if len(class_names) != len(names):
        raise UserError(
            f"{data} has {count(len(class_names), 'class', 'classes')} but {place} was trained for {len(names)} "
            f"({', '.join(names)}); {remedy}"
        )
    if list(class_names) != names:
        if sorted(class_names) == sorted(names):
            raise UserError(
                f"data.class_names=[{','.join(class_names)}] are the classes of {place} in another order; its "
                f"order is [{','.join(names)}]"
            )
        pairs = [(own, name) for own, name in zip(class_names, names, strict=True) if own != name]
        numbered = all(name.isdecimal() for name in (*class_names, *names))  # 0 to 4, and 1 to 5
        if not numbered and (moved := [f"{own} would count as {name}" for own, name in pairs if own in names]):
            raise UserError(
                f"data.class_names=[{','.join(class_names)}]: {place} has other classes ({', '.join(names)}), "
                f"and {moved[0]}; use data with these classes"
            )
        log.warning("classes are matched by order: %s", ", ".join(f"{own} counts as {name}" for own, name in pairs))


def count_training_images(model: Trained, rows: pd.DataFrame, kind: str = "") -> int:
    """Count the images that a model was trained on, found by equal pixels, and warn: scores on them are too high.

    Args:
        model: the loaded model.
        rows: rows of a table, with `decoded`.
        kind: the kind of images, for the message, such as `test `.

    Returns:
        Their number; 0 if it is unknown.
    """
    known = model.origin.get(TRAIN_IMAGES)
    if not isinstance(known, str):
        text = "%s has no hashes of its training images (older version), so copies of them are not counted"
        log.warning(text, place_of(model.file))
        return 0
    return warn_of_training_images(known, str(place_of(model.file)), rows, kind)


def warn_of_training_images(known: str, name: str, rows: pd.DataFrame, kind: str = "") -> int:
    """Count the images whose pixels are those of training images, and warn about them.

    Args:
        known: the concatenated hashes of the training images' pixels.
        name: what was trained on them, for the message.
        rows: as for `count_training_images`.
        kind: likewise.
    """
    hashes = {known[start : start + HASH_DIGITS] for start in range(0, len(known), HASH_DIGITS)}
    found = int(rows["decoded"].isin(hashes).sum())
    if found:
        which = f"{found} of the {len(rows)} {kind}images" if len(rows) > 1 else f"the {kind}image"
        are = "is a training image" if found == 1 else "are training images"
        log.warning("%s %s of %s (equal pixels)", which, are, name)
    return found


def photographs(config: dict[str, Any], root: str, class_names: list[str]) -> dict[str, Any]:
    """Return the configuration of a run with the photographs at `root` as data and the same preprocessing."""
    shared = {field.name: config["data"][field.name] for field in fields(ImageData)}
    data = shared | {
        "_target_": PHOTOGRAPHS,
        "name": root,
        "root": root,
        "class_names": class_names,
        **dict.fromkeys(("splits", "folds", "all_images", "max_images", "max_per_class")),  # None: nothing is left out
        "fold": 0,  # without folds there is only one
        "val_fraction": 0.0,
        "test_fraction": 0.0,
    }
    return config | {"data": data}


def saw_jpegs(origin: Mapping[str, Any]) -> bool:
    """Return whether a network was trained on the JPEGs of a prepared set, as this version writes them."""
    return bool((origin.get("recipe") or {}).get("jpeg") == list(JPEG))


def say_compression(origin: Mapping[str, Any], verb: str) -> None:
    """Log how a verb reads originals for a network that was trained on the JPEGs of a prepared set."""
    if (origin.get("recipe") or {}).get("jpeg"):
        how = "with the same compression" if saw_jpegs(origin) else "without their compression, so probabilities differ"
        log.info("the model was trained on a prepared set (JPEG), and %s reads the originals %s", verb, how)


def own_reader(config: dict[str, Any]) -> ImageData | None:
    """Return the data set of a run if it is external and defines its own `read` for files; else None."""
    if is_ours(str(config["data"]["_target_"])):
        return None
    data: ImageData = build("data", config["data"])
    return data if data.reads_itself and not isinstance(data, ArrayData) else None


def _listed(images: One | Sequence[One]) -> tuple[list[str], list[One]]:
    """Return the names of images and where to read them; a folder becomes the images in it."""
    if isinstance(images, str | Path) and Path(images).expanduser().is_dir():
        folder = Path(images).expanduser()
        names = list_images(folder).images
        sources: list[One] = [folder / name for name in names]
    else:
        several = [images] if isinstance(images, str | Path | np.ndarray | Image.Image) else images
        if not isinstance(several, list | tuple):
            kind = type(images).__name__
            raise UserError(f"{kind} is not an image: give a file, a folder, an array, or a list of them")
        sources = list(several)
        names = [str(each) if isinstance(each, str | Path) else str(place) for place, each in enumerate(sources)]
    if not sources:
        raise UserError(f"{images} contains no image")
    return names, [Path(each).expanduser() if isinstance(each, str) else each for each in sources]


def _pooled(features: Tensor) -> Tensor:
    """Average features (B, F, H, W) over the positions; features (B, F) stay as they are."""
    return features.flatten(2).mean(2) if features.ndim == 4 else features
