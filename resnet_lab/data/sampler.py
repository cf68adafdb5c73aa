"""(seed, epoch, rank) → indices: the order of the images is a function of these alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[tuple[int, int]]):
    """Each epoch a new permutation of all images, dealt to the ranks so that together they draw one global batch.

    Yields `(epoch, index)`, because the augmentation of an image depends on both.

    Args:
        length: number of images.
        seed: of the run.
        rank: of this process.
        world_size: number of processes; the last ranks repeat a few images where it does not divide `length`.
    """

    def __init__(self, length: int, seed: int, rank: int, world_size: int) -> None:
        self.length, self.seed, self.rank, self.world_size = length, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        order = np.resize(order, len(self) * self.world_size)  # repeats from the start
        return ((self.epoch, int(index)) for index in order[self.rank :: self.world_size])

    def __len__(self) -> int:
        return -(-self.length // self.world_size)


class EvaluationSampler(Sampler[int]):
    """Every image once, in order, dealt to the ranks; a rank that has one fewer draws -1, which counts for nothing."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self) -> Iterator[int]:
        indices = range(self.rank, len(self) * self.world_size, self.world_size)
        return (index if index < self.length else -1 for index in indices)

    def __len__(self) -> int:
        return -(-self.length // self.world_size)
