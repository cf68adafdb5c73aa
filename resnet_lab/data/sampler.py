"""(seed, epoch, rank) → indices: which images, in which order, is a function of these alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Sampling:
    """How often an epoch draws each class: the keys `data.sampling*` and the classes of the training images.

    Args:
        targets: class of each training image, (N,).
        kind: `none`: each image once | `balanced`: N images, equally many of each class | `undersample`: of each class
            as many as the rarest has, others each epoch | `progressive`: N images, from balanced towards `final`.
        decay: r of the progressive law (2nd place, Kaggle 2015): weights r^t w_0 + (1 − r^t) w_f in epoch t, where
            w_0 balances the classes.
        final: w_f of all classes but the largest, whose own is 1.
    """

    targets: np.ndarray
    kind: str
    decay: float
    final: float

    def counts(self, epoch: int) -> np.ndarray:
        """Images to draw of each class, (K,); classes that no image has get none."""
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
        """Indices of an epoch in order; no image comes again before all others of its class did."""
        random = np.random.default_rng([seed, epoch])
        drawn = []
        for target, count in enumerate(self.counts(epoch)):
            members = np.flatnonzero(self.targets == target)
            rounds = -(-count // max(1, len(members)))
            drawn.append(np.concatenate([random.permutation(members) for _ in range(rounds)] or [members])[:count])
        return random.permutation(np.concatenate(drawn))


def _shares(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to `weights` (K,) that add up to `total`, by largest remainder."""
    exact = total * weights / weights.sum()
    counts: np.ndarray = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _repeats(indices: np.ndarray) -> np.ndarray:
    """How often each index stood earlier in `indices`, (M,) → (M,)."""
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    repeats = np.empty_like(order)
    repeats[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return repeats


class TrainSampler(Sampler[tuple[int, int, int]]):
    """Each epoch a new order, dealt to the ranks so that together they draw one global batch.

    Yields `(epoch, index, repeat)`, on which the augmentation of an image depends; `repeat` tells the draws of one
    image in one epoch apart.

    Args:
        sampling: which images an epoch draws.
        seed: of the run.
        rank: of this process.
        world_size: number of processes; the last ranks repeat a few images where it does not divide the epoch.
    """

    def __init__(self, sampling: Sampling, seed: int, rank: int, world_size: int) -> None:
        self.sampling, self.seed, self.rank, self.world_size = sampling, seed, rank, world_size
        self.length = int(sampling.counts(0).sum())
        self.epoch = 0
        self.begun = (0, 0)  # an epoch, and how many of its indices an earlier start has drawn on this rank

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def go_on(self, epoch: int, drawn: int) -> None:
        """Begin with this epoch, without its first `drawn` indices."""
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
    """Every image once, in order, dealt to the ranks; a rank that has one fewer draws -1, which counts for nothing."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self) -> Iterator[int]:
        indices = range(self.rank, len(self) * self.world_size, self.world_size)
        return (index if index < self.length else -1 for index in indices)

    def __len__(self) -> int:
        return -(-self.length // self.world_size)
