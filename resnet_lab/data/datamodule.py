"""The LightningDataModule around one data set: images in memory or on disk → batches, the same for any rank count."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_lab.data.image_data import ImageData
from resnet_lab.data.reader import read_image, read_images
from resnet_lab.data.sampler import EvaluationSampler, TrainSampler
from resnet_lab.data.table import class_counts, fingerprints
from resnet_lab.data.transforms import Transform, normalise, transforms
from resnet_lab.errors import UserError

log = logging.getLogger(__name__)

MEMORY = 2e9  # bytes of decoded images that data.in_memory=auto keeps
STATISTICS_IMAGES = 2000  # mean and std of a training split that is not in memory come from so many, evenly spaced


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of one split; an item is `image` (S, S, 3) uint8, `target`, and `index` (-1 where it counts for nothing).

    Args:
        rows: the split's part of the table.
        data: how to read an image.
        transform: geometry on uint8.
        seed: of the augmentation, with the epoch and the index.
        images: the decoded images, uint8 (H, W, 3) each; None: they are read when they are needed.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        data: ImageData,
        transform: Transform,
        seed: int,
        images: list[np.ndarray] | None,
    ) -> None:
        self.paths, self.targets = list(rows["path"]), rows["target"].to_numpy(np.int64)
        self.reading = (data.image_size, data.resize, data.eye_crop)
        self.transform, self.seed, self.images = transform, seed, images

    def read(self, index: int) -> np.ndarray:
        """The image before augmentation, uint8 (H, W, 3)."""
        return read_image(self.paths[index], *self.reading) if self.images is None else self.images[index]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = max(index, 0)
        image = self.transform(self.read(row), np.random.default_rng([self.seed, epoch, row]))
        return {"image": torch.from_numpy(image), "target": self.targets[row], "index": index}

    def __len__(self) -> int:
        return len(self.paths)


class DataModule(LightningDataModule):
    """Splits, statistics and loaders of one data set.

    After `setup`: `table`, `class_names`, `mean` and `std` (3,), `dropped`, `fingerprints`, `class_counts`.

    Args:
        data: the data set and its settings.
        seed: of order and augmentation.
        follow_test: also evaluate test after each epoch; nothing is selected by it.
        statistics: mean and std to use in place of those of this data set (for evaluating elsewhere).
    """

    def __init__(
        self,
        data: ImageData,
        seed: int,
        follow_test: bool = False,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.data, self.seed, self.follow_test, self.statistics = data, seed, follow_test, statistics
        self.table: pd.DataFrame | None = None
        self.images: dict[str, list[np.ndarray]] = {}  # split → decoded images, where they are kept in memory
        self.test_splits: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read and check the table, once; every error in the data shows here."""
        if self.table is not None:
            return
        table, self.dropped = self.data.table()
        assert self.data.class_names is not None
        self.class_names = self.data.class_names
        self.fingerprints = fingerprints(table)
        self.class_counts = class_counts(table, len(self.class_names))
        self.in_memory = self._fits_memory(table) if self.data.in_memory == "auto" else bool(self.data.in_memory)
        self.table = table
        self.splits = [split for split in ("train", "val", "test") if split in self.fingerprints]
        self.val_splits = [split for split in self.splits if split == "val" or (split == "test" and self.follow_test)]
        self.test_splits = [split for split in self.splits if split != "train"]
        mean, std = self.statistics or self._mean_and_std()
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.num_workers = self._workers()

    def rows(self, split: str) -> pd.DataFrame:
        """The split's part of the table."""
        assert self.table is not None
        rows = self.table[self.table["split"] == split]
        if rows.empty:
            raise UserError(f"{self.data.name} has no split {split}; choose among {', '.join(self.splits)}")
        return rows.reset_index(drop=True)

    def dataset(self, split: str, augment: bool) -> ImageDataset:
        """The images of one split, decoded at most once, with the training or the evaluation transform."""
        rows, (train, evaluation) = self.rows(split), transforms(self.data)
        if self.in_memory and split not in self.images:
            reading = (self.data.image_size, self.data.resize, self.data.eye_crop)
            self.images[split] = read_images(list(rows["path"]), *reading)
        return ImageDataset(rows, self.data, train if augment else evaluation, self.seed, self.images.get(split))

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the global size divided by the number of ranks; a last batch of one image is left out."""
        dataset = self.dataset("train", augment=True)
        return self._loader(dataset, TrainSampler(len(dataset), self.seed, *self._rank()))

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """One loader for each of `val_splits`."""
        return [self.evaluation_dataloader(split) for split in self.val_splits]

    def test_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """One loader for each of `test_splits`."""
        return [self.evaluation_dataloader(split) for split in self.test_splits]

    def evaluation_dataloader(self, split: str) -> DataLoader[dict[str, Any]]:
        """Every image of a split once, in the order of the table."""
        dataset = self.dataset(split, augment=False)
        return self._loader(dataset, EvaluationSampler(len(dataset), *self._rank()))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalise on the device: `image` (B, S, S, 3) uint8 becomes float32 (B, 3, S, S)."""
        images: Tensor = batch["image"]
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return batch | {"image": normalise(images, self.mean, self.std)}

    def _loader(self, dataset: ImageDataset, sampler: TrainSampler | EvaluationSampler) -> DataLoader[dict[str, Any]]:
        batch_size = self.batch_size_per_rank(self._rank()[1])
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            # batch norm cannot normalise a single value per channel, which small images come down to
            drop_last=isinstance(sampler, TrainSampler) and len(sampler) % batch_size == 1,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def batch_size_per_rank(self, world_size: int) -> int:
        """One rank's part of `data.batch_size`, which must be divisible."""
        if self.data.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.data.batch_size} cannot be shared by {world_size} ranks evenly; "
                f"set a multiple of {world_size}"
            )
        return self.data.batch_size // world_size

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _workers(self) -> int:
        if self.data.num_workers == "auto":
            return 0 if self.in_memory else min(8, len(os.sched_getaffinity(0)))
        return int(self.data.num_workers)

    def _fits_memory(self, table: pd.DataFrame) -> bool:
        # a photograph whose shorter side is image_size is seldom longer than 1.5 of that
        return len(table) * 3 * self.data.image_size**2 * 1.5 < MEMORY

    def _mean_and_std(self) -> tuple[list[float], list[float]]:
        """By channel, in [0, 1]: given, computed from the training split, or 0 and 1."""
        mean, std = self.data.mean, self.data.std
        for key, value in (("mean", mean), ("std", std)):
            if value not in (None, "train") and (isinstance(value, str) or len(value) != 3):
                raise UserError(f"data.{key}={value}: give three numbers, train or null")
        if "train" in (mean, std):
            computed = self._computed_statistics()
            mean, std = (given if given != "train" else own for given, own in zip((mean, std), computed, strict=True))
        return list(mean or (0.0,) * 3), list(std or (1.0,) * 3)  # type: ignore[arg-type]

    def _computed_statistics(self) -> tuple[list[float], list[float]]:
        dataset = self.dataset("train", augment=False)
        step = 1 if self.in_memory else -(-len(dataset) // STATISTICS_IMAGES)
        total, squares, pixels = np.zeros(3), np.zeros(3), 0
        for index in range(0, len(dataset), step):
            image = dataset.read(index).reshape(-1, 3) / 255
            total, squares, pixels = total + image.sum(0), squares + (image**2).sum(0), pixels + len(image)
        mean = total / pixels
        return mean.tolist(), np.sqrt(squares / pixels - mean**2).tolist()
