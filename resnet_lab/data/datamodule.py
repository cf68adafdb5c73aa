"""The LightningDataModule around one data set: images in memory or on disk → batches, the same for any rank count."""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from lightning import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_lab import environment, processes
from resnet_lab.config import build
from resnet_lab.data.augmentation import (
    COLOR,
    GEOMETRY,
    affine_maps,
    changes_color,
    color_factors,
    draws,
    inverted,
    mixture,
)
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.prepared import read_prepared
from resnet_lab.data.sampler import EvaluationSampler, Sampling, TrainSampler
from resnet_lab.data.splits import class_counts, fingerprints, label_conflicts
from resnet_lab.data.transforms import Geometry, mixed, normalize, padded, resample
from resnet_lab.errors import UserError, count, size_text

log = logging.getLogger(__name__)

HOST_SHARE = 0.25  # share of the free memory that data.in_memory=auto uses at most …
DEVICE_SHARE = 0.5  # … and of the free memory of a GPU
ASPECT = 1.5  # the longer side of a photograph is seldom a larger multiple of the shorter, which is image_size
MOVED = 256  # images that move to the device at once
PACKED, LAYOUT = "packed", "layout"  # keys of a batch whose small tensors are one
SOURCES = {"originals": "the originals", "prepared": "a prepared set"}  # sources of pixels, for messages
NUMBERS = 100  # at most so many bytes for an image on the device in a batch: index, target, map, factors, mixture
MAP_WORKERS = 4  # at most, if they only make random numbers and maps: one may be slower than a GPU
PREFETCH = 2  # batches per worker that wait in shared memory …
IN_USE = 2  # … and batches on their way to the device
EVALUATION_FACTOR = 2  # on CUDA, evaluation batches are so many times larger: they keep no activations for gradients
TIMEOUT = 600.0  # seconds without a batch from the workers before the job fails
CHANNELS = ("red", "green", "blue")
CONSTANT = 1e-4  # a smaller std of a channel, in [0, 1], counts as 0; sums over many images have rounding errors
STATISTICS_IMAGES = 2000  # above so many training images, mean and std use only every n-th, wherever the images are


Batches = DataLoader[dict[str, Tensor]]


class ImageDataset(Dataset[dict[str, Tensor]]):
    """Images of one split, returned in batches: `image` (B, S, S, 3) uint8, `target` and `index` (B,).

    `target` is absent if the rows have none. `index` is -1 for padding, which does not count; with padding, there is
    `padded` (True). If colors are augmented, `color` (B, 5) holds the factors, which the device applies. With mixup,
    `partner` and `share` (B,) are those of `mixture`; the device mixes the images, and the training step the losses.

    If the device transforms, `image` holds the images before that, (B, H, W, 3), and `map` (B, 2, 3) what `resample`
    needs, unless no image moves. If the images are on the device already, `split` replaces `image`. Loaders for CUDA
    yield what `packed` makes of a batch; `on_after_batch_transfer` unpacks it.

    Args:
        rows: the split's rows of the table.
        data: how to read and augment an image.
        augment: whether to augment.
        seed: seed of the augmentation, beside epoch and index.
        images: the decoded images, uint8 (H, W, 3) each; None: each is read on demand.
        on_device: whether the device transforms.
        sizes: widths and heights (N, 2) of images that are on the device already.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        data: ImageData,
        augment: bool,
        seed: int,
        images: Sequence[np.ndarray] | None,
        on_device: bool = False,
        sizes: np.ndarray | None = None,
    ) -> None:
        self.split, self.on_device, self.sizes = str(rows["split"].iloc[0]), on_device, sizes
        self.paths, self.prepared = list(rows["path"]), list(rows["prepared"])
        self.targets = rows["target"].to_numpy(np.int64) if "target" in rows else None
        self.data, self.seed, self.images, self.geometry = data, seed, images, Geometry(data)
        chosen = data.augment_classes
        self.augmented = np.full(len(rows), augment and chosen == "all")
        if augment and not isinstance(chosen, str) and self.targets is not None:
            self.augmented = np.isin(self.targets, chosen)
        self.colors, self.mixes = augment and changes_color(data), augment and data.mixup > 0

    def read(self, index: int) -> np.ndarray:
        """Return the image before augmentation, uint8 (H, W, 3)."""
        if self.images is not None:
            return self.images[index]
        prepared = self.prepared[index]
        return read_prepared(prepared) if prepared else self.data.read_as_trained(self.paths[index])

    def read_all(self) -> list[np.ndarray]:
        """Read all images before augmentation, on all cores (decoding releases the interpreter's lock)."""
        with ThreadPoolExecutor(processes.cores()) as pool:
            images = pool.map(self.read, range(len(self)))
            return [np.require(image, requirements="W") for image in images]  # copies what is mapped from a file

    def __getitems__(self, keys: Sequence[int | tuple[int, int, int]]) -> dict[str, Tensor]:
        """Return the batch of these keys, `index` or `(epoch, index, repeat)`; DataLoader calls it once per batch."""
        epochs, indices, repeats = np.array([key if isinstance(key, tuple) else (0, key, 0) for key in keys]).T
        rows = np.maximum(indices, 0)
        augment = self.augmented[rows]
        u, images = np.zeros((len(rows), len(GEOMETRY) + len(COLOR))), np.stack([epochs, rows, repeats], 1)
        u[augment] = draws(self.seed, images[augment])
        batch: dict[str, Any] = {"index": torch.from_numpy(indices)} | self._images(rows, u, augment)
        if (indices < 0).any():
            batch["padded"] = True
        if self.targets is not None:
            batch["target"] = torch.from_numpy(self.targets[rows])
        if self.colors:
            batch["color"] = torch.from_numpy(color_factors(self.data, u[:, len(GEOMETRY) :], augment))
        if self.mixes:
            batch["partner"], batch["share"] = map(torch.from_numpy, mixture(self.seed, images, self.data.mixup))
        return batch

    def _images(self, rows: np.ndarray, u: np.ndarray, augment: np.ndarray) -> dict[str, Any]:
        """Return the images of a batch, transformed or with their maps; `u` (B, 13) are random numbers."""
        images = [self.read(row) for row in rows] if self.sizes is None else []
        if not self.on_device:
            return {"image": torch.from_numpy(self.geometry(images, u, augment))}
        sizes = np.array([image.shape[1::-1] for image in images]) if self.sizes is None else self.sizes[rows]
        maps, _ = affine_maps(self.data, sizes, u, augment)
        found: dict[str, Any] = {"image": padded(images)} if images else {"split": self.split}
        # images on the device are padded to the largest of their split, which this batch may not contain
        padded_sizes = sizes if self.sizes is None else self.sizes
        if (maps != np.eye(2, 3)).any() or (padded_sizes != self.geometry.size).any():
            found["map"] = torch.from_numpy(inverted(maps).astype(np.float32))
        return found

    def __len__(self) -> int:
        return len(self.paths)


class Resident(NamedTuple):
    """All images of a split, on the device."""

    pixels: Tensor  # uint8 (N, H, W, 3); smaller images are padded with zeros
    sizes: np.ndarray  # widths and heights (N, 2), on the CPU


def whole(batch: Any) -> Any:
    """Return the batch unchanged, as collate function: the data set has already collated it."""
    return batch


def packed(batch: Any) -> dict[str, Any]:
    """Return a batch with its small tensors as one, as collate function; `unpacked` is the inverse.

    Each tensor that a worker sends costs the main process a handshake and a copy to the device.
    """
    small = {name: each for name, each in batch.items() if torch.is_tensor(each) and name != "image"}
    names = sorted(small, key=lambda name: -small[name].element_size())  # a view needs aligned numbers
    parts = [small[name].contiguous().view(-1).view(torch.uint8) for name in names]
    layout = [(name, small[name].dtype, [*small[name].shape]) for name in names]
    return {name: each for name, each in batch.items() if name not in small} | {
        PACKED: torch.cat(parts),
        LAYOUT: layout,
    }


def unpacked(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as it was before `packed`; its small tensors share one memory."""
    if PACKED not in batch:
        return batch
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in batch[LAYOUT]]
    parts = zip(batch[LAYOUT], batch[PACKED].split(sizes), strict=True)
    small = {name: part.view(dtype).view(shape) for (name, dtype, shape), part in parts}
    return {name: each for name, each in batch.items() if name not in (PACKED, LAYOUT)} | small


def _cores(ranks: int) -> int:
    """Return the number of cores of each of the ranks on this machine."""
    return max(1, processes.cores() // ranks)


def stop_in_silence(worker: int) -> None:
    """Let a worker print no traceback if its rank stops while it takes a batch; the rank prints the reason."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            usual(kind, error, trace)

    sys.excepthook = hook


def end_with_rank(worker: int) -> None:
    """Exit when the rank dies, in a worker started by a fork server.

    (torch's workers watch their own parent, which is the server; and the server waits for its workers.)
    """
    stop_in_silence(worker)
    environment.keep_freed_memory()  # the server is a new process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class DataModule(LightningDataModule):
    """Splits, statistics and loaders of one data set.

    After `read`: `table`, `class_names`, `dropped`, `patients`, `fingerprints`, `class_counts`, `label_conflicts`,
    `pixels`. After `setup`
    also: `mean` and `std` (3,), `in_memory`, `num_workers`.

    Args:
        data: the data set and its settings.
        seed: seed of order and augmentation.
        follow_test: also evaluate test after each epoch; it selects nothing.
        statistics: mean and std to use in place of this data set's own (to evaluate on other data).
        pixels: `originals` or `prepared`: what to read; None: the prepared set if it is complete.
        accelerator: `trainer.accelerator`; `setup` places the images before there is a Trainer.
        gpus: the GPUs that a list in `trainer.devices` names; empty: the first ones.
        ranks: number of ranks on this machine, which share its cores and its memory.
    """

    def __init__(
        self,
        data: ImageData,
        seed: int,
        follow_test: bool = False,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
        pixels: str | None = None,
        accelerator: str = "cpu",
        gpus: Sequence[int] = (),
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.seed, self.follow_test, self.statistics = data, seed, follow_test, statistics
        self.pixels, self.is_set_up = pixels, False
        self.accelerator, self.gpus, self.ranks = accelerator, gpus, ranks
        self.table: pd.DataFrame | None = None
        self.images: dict[str, Sequence[np.ndarray]] = {}  # split → decoded images, if kept in memory
        self.resident: dict[str, Resident] = {}  # split → decoded images, if kept on the device
        self.arrived: torch.cuda.Event | None = None  # in the work of a GPU, when it got the last batch
        self.copies: torch.cuda.Stream | None = None  # of batches to a GPU
        self.test_splits: list[str] = []

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | DictConfig,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
        pixels: str | None = None,
        as_prepared: bool = False,
    ) -> DataModule:
        """Build the data of a configuration from `resnet_lab.compose` or a run folder.

        Args:
            config: configuration with `data`, `seed`, `follow_test` and, for `data.in_memory=auto`, `trainer`.
            statistics: see the class.
            pixels: see the class.
            as_prepared: whether originals are read as prepared JPEGs, for a network that was trained on those.

        Raises:
            UserError: a key of data is invalid.
        """
        plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
        trainer = plain.get("trainer", {})
        accelerator, devices = trainer.get("accelerator", "cpu"), trainer.get("devices", 1)
        data: ImageData = build("data", plain["data"])
        data.as_prepared = as_prepared
        gpus = devices if isinstance(devices, list) else []
        ranks = environment.ranks_here(accelerator, devices)
        return cls(data, plain["seed"], plain["follow_test"], statistics, pixels, accelerator, gpus, ranks)

    def read(self) -> None:
        """Read and check the table, once."""
        if self.table is not None:
            return
        table, self.dropped = self.data.table(self.pixels)
        assert self.data.class_names is not None
        self.class_names = self.data.class_names
        if len(self.class_names) < 2:
            raise UserError(f"{self.data.root} has one class, {self.class_names[0]}; at least two are needed")
        found = self.data.patients
        self.patients = {"number": int(table["patient"].nunique()), **asdict(found)}
        labeled = "target" in table
        self.fingerprints = fingerprints(table, "target" if labeled else "image")
        self.pixel_digests = fingerprints(table, "pixels")
        self.class_counts = class_counts(table, len(self.class_names)) if labeled else {}
        self.label_conflicts = label_conflicts(table, self.class_names) if labeled else 0
        self.pixels = "prepared" if (table["prepared"] != "").any() else "originals"
        self.table = table
        self.splits = [split for split in ("train", "val", "test") if split in self.fingerprints]
        self.val_splits = [split for split in self.splits if split == "val" or (split == "test" and self.follow_test)]
        self.test_splits = [split for split in self.splits if split != "train"]

    def setup(self, stage: str | None = None) -> None:
        """Do everything that precedes the first batch, once; every error in the data is raised here.

        Before a training, Lightning calls it again with the stage `fit`.
        """
        if self.is_set_up:
            if stage == "fit":
                self._say_left_out()
            return
        self.read()
        assert self.table is not None
        self.in_memory = self._placement(self.table)
        mean, std = self.statistics or self._mean_and_std()
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        chosen = self.data.augment_classes
        if unknown := (set() if isinstance(chosen, str) else set(chosen) - set(range(len(self.class_names)))):
            classes = f"0 to {len(self.class_names) - 1}"
            raise UserError(f"data.augment_classes: there is no class {min(unknown)}; choose among {classes}")
        self.num_workers = self._workers()
        self.is_set_up = True

    def rows(self, split: str) -> pd.DataFrame:
        """Return the split's rows of the table."""
        assert self.table is not None
        rows = self.table[self.table["split"] == split]
        if rows.empty:
            chosen = self.data.all_images
            hint = f" (data.all_images={chosen})" if chosen else ""
            if split == "test" and not chosen:
                hint = ", or set data.all_images=test to evaluate on all images"
            raise UserError(f"{self.data.name} has no split {split}; choose among {', '.join(self.splits)}{hint}")
        return rows.reset_index(drop=True)

    @property
    def train_images(self) -> str:
        """The hashes of the training images' pixels, each once, concatenated."""
        assert self.table is not None
        return "".join(sorted(set(self.table.loc[self.table["split"] == "train", "decoded"])))

    def dataset(self, split: str, augment: bool) -> ImageDataset:
        """Return the images of one split, decoded at most once, with the training or the evaluation transform."""
        images, on_device = self.images.get(split), self._transforms_on_device()
        dataset = ImageDataset(self.rows(split), self.data, augment, self.seed, images, on_device)
        if self.in_memory and dataset.images is None and split not in self.resident:
            dataset.images = self.images[split] = dataset.read_all()
        return dataset

    def _move_to_device(self, dataset: ImageDataset) -> None:
        """Move the images of a data set to the device, once; with `data.in_memory=auto` they stay if they do not fit.

        Raises:
            UserError: they do not fit, and `data.in_memory=device` is set.
        """
        if dataset.split not in self.resident:
            images, device = self.images[dataset.split], self._device()
            sizes = np.array([image.shape[1::-1] for image in images])
            width, height = sizes.max(0).tolist()
            need = 3 * len(images) * width * height
            auto = self.data.in_memory == "auto"
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
            if need > (DEVICE_SHARE if auto else 1) * free:
                needs = f"the images of {dataset.split} need {size_text(need)}"
                text = f"{needs}, and the GPU has {size_text(free)} free"
                if auto:
                    log.info("%s, half of which they may use; images stay in the memory of the machine", text)
                    self.in_memory = True
                    self.num_workers = self._workers()
                    return
                raise UserError(f"data.in_memory=device: {text}; set data.in_memory=auto")
            pixels = torch.zeros((len(images), height, width, 3), dtype=torch.uint8, device=device)
            for start in range(0, len(images), MOVED):  # a copy of all images may not fit beside them
                part = padded(images[start : start + MOVED])
                pixels[start : start + len(part), : part.shape[1], : part.shape[2]] = part.to(device)
            self.resident[dataset.split] = Resident(pixels, sizes)
            dataset.images = None
            del self.images[dataset.split]
            del images
            environment.return_freed_memory()
        dataset.images, dataset.sizes = None, self.resident[dataset.split].sizes

    def _transforms_on_device(self) -> bool:
        return self.in_memory == "device" or self._device().type == "cuda"

    def _device(self) -> torch.device:
        device: torch.device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return device

    def _on_cuda(self) -> bool:
        """Return whether the training uses a CUDA GPU; before there is a Trainer, whether it will."""
        return self._device().type == "cuda" if self.trainer else environment.uses_cuda(self.accelerator)

    def train_dataloader(self) -> Batches:
        """Return the loader of train, global batches divided among the ranks; a last batch of one image is dropped."""
        dataset, data = self.dataset("train", augment=True), self.data
        assert dataset.targets is not None
        sampling = Sampling(dataset.targets, data.sampling, data.sampling_decay, data.sampling_final)
        sampler = TrainSampler(sampling, self.seed, *self._rank())
        if self.trainer:  # workers fetch the first batches before Lightning sets the epoch of the sampler
            sampler.go_on(*self._begun())
        return self._loader(dataset, sampler)

    def _begun(self) -> tuple[int, int]:
        """Return the epoch that training resumes in, and how many of its images this rank has trained on."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        inside = epochs.ready > epochs.processed  # the checkpoint was saved before the epoch's end
        batches = loop.epoch_loop.batch_progress.current.ready if inside else 0
        return epochs.processed, batches * self.batch_size_per_rank(self._rank()[1])

    def _say_left_out(self) -> None:
        """Log that each epoch leaves out a last batch of a single image, if the Trainer would reach that batch."""
        loader, (_, ranks) = self.train_dataloader(), self._rank()
        limit = getattr(self.trainer, "limit_train_batches", 1.0)
        if not loader.drop_last or (limit <= len(loader) if isinstance(limit, int) else limit < 1):
            return
        assert isinstance(loader.sampler, TrainSampler)
        images, size = len(loader.sampler), int(loader.batch_size or 1)
        larger = next((each for each in range(size + 1, images + 1) if images % each != 1), images)
        log.info(
            "data.batch_size=%d: the last batch of an epoch of %d images has one image%s, which batch norm cannot use; "
            "each epoch leaves out %s; data.batch_size=%d uses all images",
            self.data.batch_size,
            loader.sampler.length,
            f" on each of {ranks} ranks" if ranks > 1 else "",
            count(ranks, "image"),
            larger * ranks,
        )

    def batches_per_epoch(self) -> int:
        """Return the number of batches in one epoch on each rank.

        (Lightning's `estimated_stepping_batches` would start the training loader before the epoch is known.)
        """
        return self._limited("limit_train_batches", self.train_dataloader())

    def _limited(self, key: str, loader: Batches) -> int:
        """Return how many batches of a loader the Trainer uses in an epoch.

        Raises:
            UserError: the loader has batches, but the Trainer would use none.
        """
        batches, limit = len(loader), getattr(self.trainer, key, 1.0)
        taken = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if batches and not taken:
            raise UserError(
                f"trainer.{key}={limit}: this share of {count(batches, 'batch', 'batches')} is less than one batch; "
                "set a larger share, or a number of batches"
            )
        return taken

    def val_dataloader(self) -> list[Batches]:
        """Return one loader for each of `val_splits`."""
        loaders = [self.evaluation_dataloader(split) for split in self.val_splits]
        for loader in loaders:
            self._limited("limit_val_batches", loader)
        return loaders

    def test_dataloader(self) -> list[Batches]:
        """Return one loader for each of `test_splits`."""
        return [self.evaluation_dataloader(split) for split in self.test_splits]

    def predict_dataloader(self) -> Batches:
        """Return the loader of the images without targets."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> Batches:
        """Return a loader of every image of a split, once, in the order of the table."""
        dataset = self.dataset(split, augment=False)
        larger = EVALUATION_FACTOR if self._device().type == "cuda" else 1
        return self._loader(dataset, EvaluationSampler(len(dataset), *self._rank()), larger)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch to its device; to a GPU in a stream of its own, while the GPU computes the last batch."""
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self.copies = self.copies or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.copies):
            moved: dict[str, Any] = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self.copies)
        for each in filter(torch.is_tensor, moved.values()):
            each.record_stream(computing)  # otherwise the next copy may reuse its memory too early
        return moved

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Transform, color, normalize and mix on the device: `image` becomes float32 (B, 3, S, S)."""
        batch = unpacked(batch)
        if batch["index"].is_cuda:
            self.arrived = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.arrived.record()
        resident = self.resident.get(batch.get("split", ""))
        images: Tensor = batch["image"] if resident is None else resident.pixels[batch["index"].clamp(min=0)]
        if "map" in batch:
            images = resample(images, batch["map"], self.data.crop or self.data.image_size, self.data.interpolation)
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        images = normalize(images, self.mean, self.std, batch.get("color"))
        return batch | {"image": mixed(images, batch["partner"], batch["share"]) if "partner" in batch else images}

    def _loader(self, dataset: ImageDataset, sampler: TrainSampler | EvaluationSampler, factor: int = 1) -> Batches:
        batch_size = factor * self.batch_size_per_rank(self._rank()[1])
        if self.in_memory == "device" or dataset.split in self.resident:
            self._move_to_device(dataset)
        context, pins = self._context() if self.num_workers else None, self._device().type == "cuda"
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=packed if pins else whole,
            # batch norm cannot normalize a single value per channel, which small images are reduced to
            drop_last=isinstance(sampler, TrainSampler) and len(sampler) % batch_size == 1,
            num_workers=self.num_workers,
            multiprocessing_context=context,
            worker_init_fn=end_with_rank if context else stop_in_silence,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=PREFETCH if self.num_workers else None,
            timeout=TIMEOUT if self.num_workers else 0,
            generator=torch.Generator(),  # each pass draws a number; dropout's generator must not be touched
            pin_memory=pins,
        )

    def batch_size_per_rank(self, world_size: int) -> int:
        """Return one rank's share of `data.batch_size`, which must be divisible."""
        if self.data.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.data.batch_size} cannot be divided evenly among {world_size} ranks; "
                f"set a multiple of {world_size}"
            )
        return self.data.batch_size // world_size

    def refuse_lone_images(self, world_size: int) -> None:
        """Refuse `data.mixup` with one image per batch and rank, which has no partner.

        Raises:
            UserError: the message names both keys.
        """
        if self.data.mixup and self.data.batch_size == world_size:
            ranks = f" on {world_size} ranks" if world_size > 1 else ""
            raise UserError(
                f"data.mixup={self.data.mixup}: data.batch_size={self.data.batch_size}{ranks} leaves an image without "
                f"a partner; set data.batch_size={2 * world_size} or more, or data.mixup=0"
            )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def noted(self) -> dict[str, Any]:
        """Source of the pixels, for status.json and checkpoints: recipe and digests, never paths."""
        assert self.pixels is not None
        recipe = self.data.prepared_set.noted(self.pixels)
        return {"pixels": self.pixels, "recipe": recipe, "pixel_digests": self.pixel_digests}

    def difference(self, before: Mapping[str, Any]) -> str:
        """Describe how the pixels differ from those recorded in a status.json or a checkpoint; empty if they do not.

        Digests are compared for splits with the same images, and for prepared files only under the same recipe.
        """
        now, recipe, images = self.noted, before.get("recipe") or {}, before.get("split_fingerprint") or {}
        source = before.get("pixels") or self.pixels
        if source != self.pixels and "raw" not in (recipe if source == "prepared" else now["recipe"]):
            return f"{SOURCES[before['pixels']]} then, {SOURCES[now['pixels']]} now"
        if recipe.get("version", now["recipe"]["version"]) != now["recipe"]["version"]:
            return f"version {recipe['version']} of the recipe then, {now['recipe']['version']} now"
        if source != self.pixels:  # uncompressed pixels are those of the originals
            return ""
        if self.pixels == "prepared" and recipe != now["recipe"]:
            return ""
        for split, digest in (before.get("pixel_digests") or {}).items():
            found = self.pixel_digests.get(split)
            if images.get(split) == self.fingerprints.get(split) and digest != found:
                return f"{SOURCES[now['pixels']]} of {split} with digest {digest} then, {found} now"
        return ""

    def advice(self) -> str:
        """Return advice that speeds up image loading, for a training that waits for images."""
        cores = _cores(self.ranks)
        if not self.in_memory and self.pixels == "originals":
            return "run resnet-lab prepare once with the same keys, then train in another sweep_dir"
        if self.num_workers < cores and not (self.in_memory and cores == 1):
            return f"set data.num_workers={cores}"
        return "use smaller images (data.image_size), or more cores"

    def _workers(self) -> int:
        """Return the number of workers: the given one, or as many as are useful and fit into shared memory (`auto`).

        Raises:
            UserError: the batches that the ranks of a machine prefetch do not fit into shared memory.
        """
        chosen, free = self.data.num_workers, environment.shared_memory()
        cores = _cores(self.ranks)
        if chosen == "auto" and self.in_memory:
            # with images on a GPU, workers make only random numbers and maps
            workers = min(cores - 1, MAP_WORKERS) if self.in_memory == "device" and self._on_cuda() else 0
        else:
            workers = cores if chosen == "auto" else int(chosen)
        factor = EVALUATION_FACTOR if self._on_cuda() else 1
        image: float = 3 * (self.data.crop or self.data.image_size) ** 2
        if self.in_memory == "device":
            image = NUMBERS
        elif self._on_cuda():  # whole images, padded to the width and the height of the largest of the batch
            image = 3 * (self.data.image_size * (1 if self.data.resize == "square" else ASPECT)) ** 2
        batch = factor * self.data.batch_size * image
        fitting = workers if free is None else max(0, int(free / batch - IN_USE) // PREFETCH)
        if workers <= fitting:
            if chosen != "auto" and workers > (usable := _cores(self.ranks)):
                text = (
                    "data.num_workers=%d, but this process can use %s; more are seldom faster: set data.num_workers=%d"
                )
                log.info(text, workers, count(usable, "core"), usable)
            return workers
        need = f"{workers} workers need {(workers * PREFETCH + IN_USE) * batch / 1e6:.0f} MB of shared memory"
        text = f"{need}, and /dev/shm has {(free or 0) / 1e6:.0f} MB free"
        if chosen != "auto":
            raise UserError(
                f"data.num_workers={workers}: {text}; set data.num_workers={fitting}, or start the container with "
                "more (docker run --shm-size=1g)"
            )
        log.warning("%s: using %d; start the container with more (docker run --shm-size=1g)", text, fitting)
        return fitting

    def _context(self) -> BaseContext | None:
        """Return how workers start; None: torch's default.

        Before Python 3.12 a forked process can hang from the start if a thread of torch.distributed enters Python
        during the fork (python/cpython#112275).
        """
        if sys.version_info >= (3, 12) or self._rank()[1] == 1:
            return None
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # saves each worker the import
        return context

    def _placement(self, table: pd.DataFrame) -> bool | Literal["device"]:
        """Return where decoded images stay: on the device, in memory (True), or nowhere (False)."""
        if self.data.in_memory != "auto":
            return self.data.in_memory
        need = len(table) * 3 * self.data.image_size**2 * ASPECT
        if need > HOST_SHARE * environment.free_memory() / self.ranks:
            return False
        if not self._on_cuda():
            return True
        rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        device = self.gpus[rank % len(self.gpus)] if self.gpus else rank % max(1, torch.cuda.device_count())
        return "device" if need < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] else True

    def _mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return mean and std by channel, in [0, 1]: given, computed from the training split, or 0 and 1."""
        mean, std = self.data.mean, self.data.std
        if mean is None:
            return [0.0] * 3, [1.0] * 3
        if mean == "model":
            raise UserError("data.mean=model: there is no network here; set data.mean=train, or three numbers")
        if "train" in (mean, std):
            computed = self._computed_statistics()
            mean, std = (given if given != "train" else own for given, own in zip((mean, std), computed, strict=True))
        return list(mean), list(std or (1.0,) * 3)  # type: ignore[arg-type]

    def _computed_statistics(self) -> tuple[list[float], list[float]]:
        dataset = self.dataset("train", augment=False)
        step = -(-len(dataset) // STATISTICS_IMAGES)

        def moments(index: int) -> np.ndarray:  # pixels, and their sums and sums of squares by channel, (3, 3)
            image = dataset.read(index)
            mean, std = (each[:, 0] / 255 for each in cv2.meanStdDev(image))
            return np.stack([np.ones(3), mean, std**2 + mean**2]) * image[..., 0].size

        with ThreadPoolExecutor(_cores(self.ranks)) as pool:  # cv2 releases the interpreter's lock
            pixels, total, squares = np.sum(list(pool.map(moments, range(0, len(dataset), step))), axis=0)
        mean = total / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        constant = std < CONSTANT
        for name in itertools.compress(CHANNELS, constant) if self.data.std == "train" else ():
            log.warning("the color channel %s has one value in all training images; its values are not scaled", name)
        return mean.tolist(), np.where(constant, 1, std).tolist()
