"""Test-time augmentation (`trainer.tta`): the views of an image, whose probabilities an objective averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

FLIPS = ((), (-1,), (-2,), (-2, -1))  # dimensions that are reversed: none, horizontal, vertical, both
VIEWS = {"none": 1, "flips": len(FLIPS), "dihedral": 2 * len(FLIPS)}  # `trainer.tta` → number of views


def views(images: Tensor, kind: str) -> Iterator[Tensor]:
    """Yield the views of images (B, C, S, S), each of the same shape; the first is the images as they are.

    Flips and transposed flips are the eight symmetries of a square, so no pixel is interpolated.

    Args:
        images: the images.
        kind: `trainer.tta`, a key of `VIEWS`.
    """
    for turned in (images, images.transpose(-2, -1)) if kind == "dihedral" else (images,):
        for dimensions in FLIPS if kind != "none" else FLIPS[:1]:
            yield turned.flip(dimensions) if dimensions else turned


def outputs_of(network: Callable[[Tensor], Tensor], images: Tensor, kind: str) -> Tensor:
    """Return outputs (B, M) of images (B, C, S, S), or those of their V views, (B, V, M), one view after another."""
    found = [network(view) for view in views(images, kind)]
    return found[0] if len(found) == 1 else torch.stack(found, 1)


def plain(outputs: Tensor) -> Tensor:
    """Return the outputs (B, M) of the images as they are, from `outputs_of`."""
    return outputs[:, 0] if outputs.ndim == 3 else outputs
