"""Batches of images: geometry as one resampling of uint8, on the CPU or on the device; color and normalization."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from resnet_lab.data.augmentation import affine_maps, recolor
from resnet_lab.data.image_data import ImageData

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}

cv2.setNumThreads(0)  # one image is too small to divide among threads


class Geometry:
    """Flips, rotation, scale, translation and crop of uint8 images, composed so that an image is resampled once.

    Images that are not augmented are cropped at the center. The side S of the result is `data.crop`, or
    `data.image_size` if that is None.
    """

    def __init__(self, data: ImageData) -> None:
        self.data, self.size = data, data.crop or data.image_size

    def __call__(self, images: Sequence[np.ndarray], u: np.ndarray, augment: np.ndarray) -> np.ndarray:
        """Transform images (H, W, 3) of any sizes to (B, S, S, 3), with numbers `u` in [0, 1) (B, 8 or more).

        `augment` (B,) selects the images to augment.
        """
        batch = np.empty((len(images), self.size, self.size, 3), np.uint8)
        sizes = np.array([image.shape[1::-1] for image in images])
        flags = INTERPOLATIONS[self.data.interpolation]
        # OpenCV is a third faster with four channels than with three; allocating new memory would cost as much again
        source, result = np.empty((0, 0, 4), np.uint8), np.empty((self.size, self.size, 4), np.uint8)
        for image, target, matrix, exact in zip(images, batch, *affine_maps(self.data, sizes, u, augment), strict=True):
            if exact and image.shape == target.shape and _only_flips(matrix, self.size):
                _mirror(image, matrix, target)
            elif exact:
                cv2.warpAffine(image, matrix, target.shape[:2], dst=target, flags=cv2.INTER_NEAREST)
            else:
                source = source if source.shape[:2] == image.shape[:2] else np.empty((*image.shape[:2], 4), np.uint8)
                cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=source)
                cv2.warpAffine(source, matrix, target.shape[:2], dst=result, flags=flags)
                cv2.cvtColor(result, cv2.COLOR_RGBA2RGB, dst=target)
        return batch


def resample(images: Tensor, maps: Tensor, size: int, interpolation: str) -> Tensor:
    """Transform a batch on its device, as `Geometry` does on the CPU.

    Bilinear results differ by at most 1 gray level from those of OpenCV 5.

    Args:
        images: uint8 (B, H, W, 3); smaller images of the batch are padded with zeros at the right and at the bottom.
        maps: maps from target to source coordinates, float32 (B, 2, 3).
        size: side S of the result.
        interpolation: `bilinear` or `nearest`.

    Returns:
        gray levels, float32 (B, S, S, 3), as a view of (B, 3, S, S).
    """
    sides = images.shape[2], images.shape[1]
    if interpolation == "nearest":
        grid = (_mapped(maps, size) + 0.5).floor_()
        for coordinates, side in zip(grid.unbind(3), sides, strict=True):
            coordinates.mul_(2 / side).add_(1 / side - 1)  # to −1…1
    else:
        maps = maps.clone()
        for row, side in zip(maps.unbind(1), sides, strict=True):  # the maps are smaller than the grid
            row.mul_(2 / side)[:, 2].add_(1 / side - 1)
        grid = _mapped(maps, size)
    pixels = functional.grid_sample(images.permute(0, 3, 1, 2).float(), grid, interpolation, align_corners=False)
    return pixels.round_().permute(0, 2, 3, 1)


def _mapped(maps: Tensor, size: int) -> Tensor:
    """Apply maps (B, 2, 3) to the pixels of a square; return their coordinates x and y, (B, S, S, 2)."""
    place = torch.arange(size, dtype=torch.float32, device=maps.device)
    across, down, start = maps[:, None, None].unbind(4)
    # no matrix product, which may have 10 bits only (TF32)
    return across * place.view(1, 1, size, 1) + (down * place.view(1, size, 1, 1) + start)


def padded(images: Sequence[np.ndarray]) -> Tensor:
    """Stack uint8 images (H, W, 3) of any sizes to one batch, padded with zeros at the right and at the bottom."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    batch = np.zeros((len(images), height, width, 3), np.uint8)
    for image, place in zip(images, batch, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(batch)


def _only_flips(matrix: np.ndarray, size: int) -> bool:
    """Return whether a map of whole pixels (2, 3) maps a square of `size` pixels onto itself."""
    x, y = (size - 1 if matrix[axis, axis] < 0 else 0 for axis in (0, 1))
    return bool(matrix[0, 2] == x and matrix[1, 2] == y)


def _mirror(image: np.ndarray, matrix: np.ndarray, target: np.ndarray) -> None:
    """Apply a map of flips only, ten times as fast as `warpAffine`."""
    x, y = matrix[0, 0] < 0, matrix[1, 1] < 0
    if x or y:
        cv2.flip(image, -1 if x and y else int(x), dst=target)
    else:
        target[:] = image


def renormalization(mean: Tensor, std: Tensor, new_mean: Tensor, new_std: Tensor) -> tuple[Tensor, Tensor]:
    """Return factor and addend of each channel, (…, 3), that turn one normalization of an image into another."""
    return std / new_std, (mean - new_mean) / new_std


def normalize(images: Tensor, mean: Tensor, std: Tensor, color: Tensor | None = None) -> Tensor:
    """Normalize gray levels (B, H, W, 3) to float32 (B, 3, H, W) by `mean` and `std` of each channel (3,), in [0, 1].

    The result is channels-last in memory; `color` (B, 5) recolors the images first.
    """
    if color is None and images.dtype == torch.uint8 and images.device.type == "cpu":
        return _looked_up(images, mean, std)
    batch, height, width, channels = images.shape
    pixels = images.float() if color is None else recolor(images.float() / 255, color)
    scale, shift = 1 / (std if color is not None else 255 * std), -mean / std
    if pixels.is_contiguous():  # entire rows: a broadcast over the innermost three channels takes ten times as long
        rows = pixels.view(batch, height, width * channels)
        own = None if pixels is images else rows  # new memory would take time
        result = torch.addcmul(shift.repeat(width), rows, scale.repeat(width), out=own).view(images.shape)
    else:
        result = torch.empty(images.shape, device=images.device)
        torch.addcmul(shift, pixels, scale, out=result)
    return result.permute(0, 3, 1, 2)


def mixed(images: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Mix normalized images (B, 3, H, W) with their partners in the batch (B,); `share` (B,) is each image's own."""
    return torch.lerp(images[partner], images, share.view(-1, 1, 1, 1))


class _Memory:
    """Memory of the last float32 batch, for the next one if no tensor uses it any more.

    New memory costs as much time as normalizing, because the system clears it first.
    """

    def __init__(self) -> None:
        self.lock, self.flat = threading.Lock(), np.empty(0, np.float32)
        self.user: Callable[[], np.ndarray | None] = lambda: None

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a float32 array of any content."""
        number = math.prod(shape)
        with self.lock:
            if self.user() is not None or len(self.flat) < number:
                self.flat = np.empty(number, np.float32)
            found: np.ndarray = self.flat[:number].reshape(shape)
            self.user = weakref.ref(found)  # a tensor refers to the array that it was made from
        return found


_MEMORY = _Memory()


def _looked_up(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize by a lookup table of all 256 values, in one pass instead of three."""
    values = (torch.arange(256).view(256, 1) / 255 - mean) / std
    batch, height, width, channels = images.shape
    source = images.contiguous().view(batch * height, width, channels).numpy()
    found = _MEMORY.array(source.shape)
    cv2.LUT(source, values.float().view(1, 256, 3).numpy(), dst=found)
    return torch.from_numpy(found).view(images.shape).permute(0, 3, 1, 2)


def denormalize(images: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """Invert `normalize` for pictures: float (B, 3, H, W) → uint8 (B, H, W, 3)."""
    pixels = images.permute(0, 2, 3, 1).float() * std + mean
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
