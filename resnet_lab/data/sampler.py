"""Samplers: (seed, epoch, rank) → indices of images in order, a function of these alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Sampling:
    """Number of images that an epoch draws from each class, by the keys `data.sampling*`.

    Args:
        targets: class of each training image, (N,).
        kind: `none`: each image once | `balanced`: N images, equally many of each class | `undersample`: as many of
            each class as the rarest has, drawn anew each epoch | `progressive`: N images, from balanced to `final`.
        decay: r of the progressive law (2nd place, Kaggle 2015): weights r^t w_0 + (1 − r^t) w_f in epoch t, where
            w_0 balances the classes.
        final: w_f of all classes but the largest, which has 1.
    """

    targets: np.ndarray
    kind: str
    decay: float
    final: float

    def counts(self, epoch: int) -> np.ndarray:
        """Return the number of images to draw of each class, (K,); 0 for classes without images."""
        own = np.bincount(self.targets)
        present = own > 0
        if self.kind == "none":
            return own
        if self.kind == "undersample":
            return np.where(present, own[present].min(), 0)
        kept = 0.0 if self.kind == "balanced" else 1 - self.decay**epoch
        final = np.where(np.arange(len(own)) == own.argmax(), 1.0, self.final)
        weights = (1 - kept) * len(self.targets) / np.maximum(own, 1) + kept * final
        return _shares(len(self.targets), own * weights)

    def draw(self, seed: int, epoch: int) -> np.ndarray:
        """Draw the indices of an epoch in order; an image repeats only after all others of its class."""
        random = np.random.default_rng([seed, epoch])
        drawn = []
        for target, count in enumerate(self.counts(epoch)):
            members = np.flatnonzero(self.targets == target)
            rounds = -(-count // max(1, len(members)))
            drawn.append(np.concatenate([random.permutation(members) for _ in range(rounds)] or [members])[:count])
        return random.permutation(np.concatenate(drawn))


def _shares(total: int, weights: np.ndarray) -> np.ndarray:
    """Return whole numbers proportional to `weights` (K,) that add up to `total`, by largest remainder."""
    exact = total * weights / weights.sum()
    counts: np.ndarray = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _repeats(indices: np.ndarray) -> np.ndarray:
    """Return how often each index occurs earlier in `indices`, (M,) → (M,)."""
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    repeats = np.empty_like(order)
    repeats[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return repeats


class TrainSampler(Sampler[tuple[int, int, int]]):
    """Sampler with a new order each epoch, dealt to the ranks so that together they draw one global batch.

    Yields `(epoch, index, repeat)`, which determine the augmentation of an image; `repeat` distinguishes the draws of
    one image in one epoch.

    Args:
        sampling: number of images per class and epoch.
        seed: seed of the run.
        rank: rank of this process.
        world_size: number of processes; if it does not divide the epoch, the last ranks repeat a few images.
    """

    def __init__(self, sampling: Sampling, seed: int, rank: int, world_size: int) -> None:
        self.sampling, self.seed, self.rank, self.world_size = sampling, seed, rank, world_size
        self.length = int(sampling.counts(0).sum())
        self.epoch = 0
        self.begun = (0, 0)  # an epoch, and the number of its indices that this rank drew before a restart

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch."""
        self.epoch = epoch

    def go_on(self, epoch: int, drawn: int) -> None:
        """Resume in this epoch, without its first `drawn` indices."""
        self.epoch, self.begun = epoch, (epoch, drawn)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        order = self.sampling.draw(self.seed, self.epoch)
        order = np.resize(order, len(self) * self.world_size)  # repeats from the start
        drawn = self.begun[1] if self.epoch == self.begun[0] else 0
        mine = slice(self.rank + drawn * self.world_size, None, self.world_size)
        pairs = zip(order[mine].tolist(), _repeats(order)[mine].tolist(), strict=True)
        return ((self.epoch, index, repeat) for index, repeat in pairs)

    def __len__(self) -> int:
        return -(-self.length // self.world_size)


class EvaluationSampler(Sampler[int]):
    """Sampler of every image once, in order, dealt to the ranks; a rank with one fewer draws -1 as padding."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self) -> Iterator[int]:
        indices = range(self.rank, len(self) * self.world_size, self.world_size)
        return (index if index < self.length else -1 for index in indices)

    def __len__(self) -> int:
        return -(-self.length // self.world_size)
