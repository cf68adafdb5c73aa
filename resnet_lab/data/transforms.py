"""Training and evaluation transforms side by side: geometry on uint8 as one resampling, normalisation by the batch."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from resnet_lab.data.image_data import ImageData
from resnet_lab.errors import UserError

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

cv2.setNumThreads(0)  # one image is too small to share among threads


def transforms(data: ImageData) -> tuple[Transform, Transform]:
    """The training and the evaluation transform: uint8 (H, W, 3) and a generator → uint8 (S, S, 3).

    S is `data.crop`, or `data.image_size` where that is None. Training flips, rotates and crops at random, composed
    into one affine map so that the image is resampled once; evaluation takes the centre.
    """
    if data.interpolation not in INTERPOLATIONS:
        raise UserError(f"data.interpolation={data.interpolation}: choose {' or '.join(INTERPOLATIONS)}")
    if data.resize not in ("square", "shorter"):
        raise UserError(f"data.resize={data.resize}: choose square or shorter")
    size = data.crop or data.image_size
    free = data.crop is not None  # a random crop only where the studies ask for one

    def train(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        horizontal, vertical = random.random(2) < (data.horizontal_flip, data.vertical_flip)
        angle = random.uniform(-data.rotation, data.rotation)
        room = np.array([width, height]) + 2 * data.padding - size
        offset = random.integers(0, np.maximum(room, 0), endpoint=True) if free else room / 2
        if angle == 0:  # no resampling at all: exact pixels
            flipped = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
            return _window(flipped, offset - data.padding, size)
        matrix = _affine((width, height), angle, horizontal, vertical, offset - data.padding)
        return cv2.warpAffine(image, matrix, (size, size), flags=INTERPOLATIONS[data.interpolation])

    def evaluate(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        return _window(image, (np.array([width, height]) - size) / 2, size)

    return train, evaluate


def _affine(shape: tuple[int, int], angle: float, horizontal: bool, vertical: bool, offset: np.ndarray) -> np.ndarray:
    """Source → target coordinates (2, 3): flips, rotation (degrees) about the centre, window at `offset` (x, y)."""
    centre = (np.array(shape) - 1) / 2
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    linear = np.array([[cosine, sine], [-sine, cosine]]) @ np.diag([-1 if horizontal else 1, -1 if vertical else 1])
    return np.column_stack([linear, centre - offset - linear @ centre])


def _window(image: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
    """The square of `size` pixels at `offset` (x, y); black where it leaves the image."""
    x, y = (int(np.floor(value)) for value in offset)
    height, width = image.shape[:2]
    if x >= 0 and y >= 0 and x + size <= width and y + size <= height:
        return np.ascontiguousarray(image[y : y + size, x : x + size])
    target = np.zeros((size, size, 3), np.uint8)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + size, width), min(y + size, height)
    target[top - y : bottom - y, left - x : right - x] = image[top:bottom, left:right]
    return target


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) with each channel in units of `std` from `mean` (3,), both in [0, 1].

    The result is laid out channels-last in memory, as the images come.
    """
    batch, height, width, channels = images.shape
    # whole rows at once: a broadcast over three channels, innermost, takes ten times as long
    scale, shift = (1 / (255 * std)).repeat(width), (-mean / std).repeat(width)
    rows = images.reshape(batch, height, width * channels).float().mul_(scale).add_(shift)
    return rows.view(images.shape).permute(0, 3, 1, 2)


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """float (B, 3, H, W) → uint8 (B, H, W, 3), the inverse of `normalise`, for pictures."""
    pixels = images.permute(0, 2, 3, 1).float() * std + mean
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
