"""Augmentation of batches: geometry as one resampling of uint8 on the CPU, color and normalization on the device."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from resnet_lab.data.image_data import ImageData

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
GEOMETRY = ("horizontal_flip", "vertical_flip", "rotation", "scale", "crop_x", "crop_y", "translate_x", "translate_y")
COLOR = ("brightness", "contrast", "saturation", "hue", "grayscale")
GRAY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in torchvision

cv2.setNumThreads(0)  # one image is too small to divide among threads


def draws(seed: int, epoch: int, index: int, repeat: int) -> np.ndarray:
    """Draw uniform random numbers in [0, 1), one for each of `GEOMETRY` and `COLOR`, determined by the arguments."""
    bits = np.random.Philox(key=[seed, epoch], counter=[0, index, repeat, 0])  # an independent stream per image
    return np.random.Generator(bits).random(len(GEOMETRY) + len(COLOR))


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
        for image, target, matrix, exact in zip(images, batch, *self.matrices(sizes, u, augment), strict=True):
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

    def matrices(self, sizes: np.ndarray, u: np.ndarray, augment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the maps from source to target coordinates (B, 2, 3), and which of them move whole pixels (B,).

        Args:
            sizes: widths and heights, (B, 2).
            u: uniform random numbers, one column for each of `GEOMETRY`.
            augment: which images to augment, (B,).
        """
        data = self.data
        flip = np.where((u[:, :2] < (data.horizontal_flip, data.vertical_flip)) & augment[:, None], -1.0, 1.0)
        angle = np.deg2rad(augment * (2 * u[:, 2] - 1) * data.rotation)
        low, high = data.scale
        scale = np.where(augment, low + (high - low) * u[:, 3], 1.0)
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        linear = np.stack([cosine, sine, -sine, cosine], 1).reshape(-1, 2, 2) * flip[:, None, :]
        offset = self._offset(sizes, u[:, 4:6], augment)
        offset -= augment[:, None] * (2 * u[:, 6:8] - 1) * data.translate * self.size
        exact = (angle == 0) & (scale == 1)
        offset[exact] = np.floor(offset[exact])
        center = (sizes - 1) / 2
        shift = center - offset - np.einsum("bij,bj->bi", linear, center)
        return np.concatenate([linear, shift[:, :, None]], 2), exact

    def _offset(self, sizes: np.ndarray, u: np.ndarray, augment: np.ndarray) -> np.ndarray:
        """Return the window's corner, x and y (B, 2): centered, or random in the padded image for a random crop."""
        center = (sizes - self.size) / 2
        if self.data.crop is None:
            return center
        room = np.maximum(sizes + 2 * self.data.padding - self.size, 0)
        return np.where(augment[:, None], np.floor(u * (room + 1)) - self.data.padding, center)


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


def color_factors(data: ImageData, u: np.ndarray, augment: np.ndarray) -> np.ndarray:
    """Convert numbers in [0, 1) (B, 5) to factors of `COLOR` (B, 5) float32, neutral unless `augment` (B,).

    Brightness, contrast and saturation are factors around 1, hue is in turns around 0, grayscale is 0 or 1.
    """
    neutral = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    margins = np.array([data.brightness, data.contrast, data.saturation, data.hue])
    jitter = margins * (2 * u[:, :4] - 1)
    gray = u[:, 4:5] < data.random_grayscale
    values: np.ndarray = (neutral + augment[:, None] * np.concatenate([jitter, gray], 1)).astype(np.float32)
    return values


def changes_color(data: ImageData) -> bool:
    """Return whether the colors of training images are augmented."""
    return any((data.brightness, data.contrast, data.saturation, data.hue, data.random_grayscale))


def recolor(images: Tensor, factors: Tensor) -> Tensor:
    """Apply color jitter to float images (B, H, W, 3) in [0, 1] by `color_factors` (B, 5), as one linear map per image.

    The order is brightness, contrast, saturation, hue, grayscale (torchvision's is random). Hue rotates the color
    plane of YIQ, as in NVIDIA's DALI; torchvision uses HSV.
    """
    brightness, contrast, saturation, hue, gray = factors.unbind(1)
    luma = torch.tensor(GRAY, device=images.device)
    yiq = torch.tensor([GRAY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], device=images.device)
    cosine, sine = torch.cos(2 * torch.pi * hue), torch.sin(2 * torch.pi * hue)
    one, zero = torch.ones_like(hue), torch.zeros_like(hue)
    turn = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).view(-1, 3, 3)
    to_gray = luma.expand(3, 3)
    saturate = (
        saturation.view(-1, 1, 1) * torch.eye(3, device=images.device) + (1 - saturation).view(-1, 1, 1) * to_gray
    )
    colored = torch.linalg.inv(yiq) @ turn @ yiq @ saturate
    matrix = torch.where(gray.view(-1, 1, 1) > 0, to_gray, colored) * (brightness * contrast).view(-1, 1, 1)
    mean = images.flatten(1, 2).mean(1) @ luma * brightness  # gray of each image after brightness, (B,)
    mapped = images.flatten(1, 2) @ matrix.transpose(1, 2) + ((1 - contrast) * mean).view(-1, 1, 1)
    return mapped.clamp_(0, 1).view(images.shape)


def normalize(images: Tensor, mean: Tensor, std: Tensor, color: Tensor | None = None) -> Tensor:
    """Normalize uint8 (B, H, W, 3) to float32 (B, 3, H, W) by `mean` and `std` of each channel (3,), both in [0, 1].

    The result is channels-last in memory, like the images; `color` (B, 5) recolors them first.
    """
    if color is None and images.device.type == "cpu":
        return _looked_up(images, mean, std)
    batch, height, width, channels = images.shape
    pixels = images.float() if color is None else recolor(images.float() / 255, color) * 255
    # entire rows at once: a broadcast over the innermost three channels takes ten times as long
    scale, shift = (1 / (255 * std)).repeat(width), (-mean / std).repeat(width)
    rows = pixels.view(batch, height, width * channels).mul_(scale).add_(shift)
    return rows.view(images.shape).permute(0, 3, 1, 2)


def _looked_up(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize by a lookup table of all 256 values, in one pass instead of three."""
    values = (torch.arange(256).view(256, 1) / 255 - mean) / std
    batch, height, width, channels = images.shape
    found = cv2.LUT(images.contiguous().view(batch * height, width, channels).numpy(), values.view(1, 256, 3).numpy())
    return torch.from_numpy(found).view(images.shape).permute(0, 3, 1, 2)


def denormalize(images: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """Invert `normalize` for pictures: float (B, 3, H, W) → uint8 (B, H, W, 3)."""
    pixels = images.permute(0, 2, 3, 1).float() * std + mean
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
