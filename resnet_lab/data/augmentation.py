"""Augmentation: its settings, its random numbers, and what they do to an image (no torch until colors change).

A new augmentation of single images is a field here whose default changes no image (older runs get it), its part of
`affine_maps` or of `color_factors` and `recolor`, and its key in `conf/data/_common.yaml`. If it draws a number, its
name goes to the end of `COLOR`: another in `GEOMETRY` would change the numbers of all runs that augment colors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from resnet_lab.values import Count, Share, Within

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from resnet_lab.data.image_data import ImageData

NEUTRAL = (0, None, [1.0, 1.0], "all")  # values of a key that change no image

GEOMETRY = ("horizontal_flip", "vertical_flip", "rotation", "scale", "crop_x", "crop_y", "translate_x", "translate_y")
COLOR = ("brightness", "contrast", "saturation", "hue", "grayscale")
GRAY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in torchvision
# constants of Philox4x64-10: the factors of a round, and what is added to the key after it
FACTORS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], np.uint64)[:, None, None]
STEPS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64)[:, None, None]
ROUNDS, HALF, LOW = 10, np.uint64(32), np.uint64(2**32 - 1)  # half a word, and its lower half


@dataclass(kw_only=True)
class Augmentation:
    """Settings of augmentation. The fields are keys of `conf/data/_common.yaml`, which documents them."""

    horizontal_flip: Share
    vertical_flip: Share
    rotation: Annotated[float, Within(0, 360)]
    scale: list[float]
    translate: Share
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, Within(0, 0.5)]
    random_grayscale: Share
    augment_classes: Literal["all", "none"] | list[Count]
    mixup: Annotated[float, Within(0, 100)]


def _generators(seed: int, keys: np.ndarray, use: int) -> Iterator[np.random.Generator]:
    """Yield a generator for each image, (B, 3) epoch, index and repeat; another `use` has independent numbers."""
    bits = np.random.Philox(key=[seed, 0])
    generator, state = np.random.Generator(bits), bits.state
    for epoch, index, repeat in keys:
        # an independent stream per image; to set the state takes a third of the time of a new generator
        state["state"]["key"][1], state["state"]["counter"][:], state["buffer_pos"] = epoch, (0, index, repeat, use), 4
        bits.state = state
        yield generator


def draws(seed: int, keys: np.ndarray) -> np.ndarray:
    """Draw uniform random numbers in [0, 1), one for each of `GEOMETRY` and `COLOR`, (B, 13).

    They are those of `_generators`, for all images at once (Philox4x64-10, Salmon et al. 2011), since numpy generates
    one stream at a time.

    Args:
        seed: seed of the augmentation.
        keys: epoch, index and repeat of each image, (B, 3); with the seed they determine its numbers.
    """
    columns = len(GEOMETRY) + len(COLOR)
    epoch, index, repeat = keys.astype(np.uint64).T[:, :, None]
    blocks = np.arange(1, -(-columns // 4) + 1, dtype=np.uint64)  # a counter gives four numbers; the first is 1
    words = np.stack(np.broadcast_arrays(blocks, index, repeat, np.uint64(0)))
    key = np.stack(np.broadcast_arrays(np.uint64(seed), epoch))
    for _ in range(ROUNDS):
        high, low = _products(words[::2])
        mixed = high[::-1] ^ words[1::2] ^ key
        words, key = np.stack([mixed[0], low[1], mixed[1], low[0]]), key + STEPS
    drawn = np.stack(list(words), 2).reshape(len(keys), 4 * len(blocks))[:, :columns]
    numbers: np.ndarray = (drawn >> np.uint64(11)) * 2.0**-53
    return numbers


def _products(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and the low words of the products of 64-bit words (2, B, blocks) with the two factors."""
    low, high, factor_low, factor_high = words & LOW, words >> HALF, FACTORS & LOW, FACTORS >> HALF
    middle = high * factor_low
    carry = (low * factor_low >> HALF) + (middle & LOW) + low * factor_high
    return high * factor_high + (middle >> HALF) + (carry >> HALF), words * FACTORS


def mixture(seed: int, keys: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return with which image of its batch each image is mixed, and its own share, (B,) each (Zhang et al. 2018).

    The share is Beta(alpha, alpha), or its complement if that is larger, so that the image itself dominates. The
    partner is the next image by a random number, cyclically. Neither depends on the order of the batch.

    Args:
        seed: seed of the augmentation.
        keys: epoch, index and repeat of each image, (B, 3).
        alpha: `data.mixup`, above 0.
    """
    drawn = np.array([(each.random(), each.beta(alpha, alpha)) for each in _generators(seed, keys, use=1)])
    order = np.argsort(drawn[:, 0], kind="stable")
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -1)
    return partner, np.maximum(drawn[:, 1], 1 - drawn[:, 1]).astype(np.float32)


def affine_maps(
    data: ImageData, sizes: np.ndarray, u: np.ndarray, augment: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps from source to target coordinates (B, 2, 3), and which of them move whole pixels (B,).

    Args:
        data: the settings.
        sizes: widths and heights, (B, 2).
        u: uniform random numbers, one column for each of `GEOMETRY`.
        augment: which images to augment, (B,).
    """
    size = data.crop or data.image_size
    flip = np.where((u[:, :2] < (data.horizontal_flip, data.vertical_flip)) & augment[:, None], -1.0, 1.0)
    angle = np.deg2rad(augment * (2 * u[:, 2] - 1) * data.rotation)
    low, high = data.scale
    scale = np.where(augment, low + (high - low) * u[:, 3], 1.0)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.stack([cosine, sine, -sine, cosine], 1).reshape(-1, 2, 2) * flip[:, None, :]
    offset = _offset(data, size, sizes, u[:, 4:6], augment)
    offset -= augment[:, None] * (2 * u[:, 6:8] - 1) * data.translate * size
    exact = (angle == 0) & (scale == 1)
    offset[exact] = np.floor(offset[exact])
    center = (sizes - 1) / 2
    shift = center - offset - np.einsum("bij,bj->bi", linear, center)
    return np.concatenate([linear, shift[:, :, None]], 2), exact


def inverted(maps: np.ndarray) -> np.ndarray:
    """Return the maps from target to source coordinates (B, 2, 3) for maps from source to target."""
    linear = np.linalg.inv(maps[:, :, :2])
    return np.concatenate([linear, -linear @ maps[:, :, 2:]], 2)


def _offset(data: ImageData, size: int, sizes: np.ndarray, u: np.ndarray, augment: np.ndarray) -> np.ndarray:
    """Return the window's corner, x and y (B, 2): centered, or random in the padded image for a random crop."""
    center = (sizes - size) / 2
    if data.crop is None:
        return center
    room = np.maximum(sizes + 2 * data.padding - size, 0)
    return np.where(augment[:, None], np.floor(u * (room + 1)) - data.padding, center)


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


@functools.cache
def _color_matrices(device: torch.device) -> tuple[Tensor, ...]:
    """Return luma (3,), RGB to YIQ, its inverse, and the identity (3, 3); once, as a copy to a GPU waits for it."""
    import torch  # `prepare` and the launcher read the settings without it

    yiq = torch.tensor([GRAY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    return tuple(each.to(device) for each in (yiq[0].clone(), yiq, torch.linalg.inv(yiq), torch.eye(3)))


def recolor(images: Tensor, factors: Tensor) -> Tensor:
    """Apply color jitter to float images (B, H, W, 3) in [0, 1] by `color_factors` (B, 5), as one linear map per image.

    The order is brightness, contrast, saturation, hue, grayscale (torchvision's is random). Hue rotates the color
    plane of YIQ, as in NVIDIA's DALI; torchvision uses HSV.
    """
    import torch

    brightness, contrast, saturation, hue, gray = factors.unbind(1)
    luma, yiq, from_yiq, identity = _color_matrices(images.device)
    cosine, sine = torch.cos(2 * torch.pi * hue), torch.sin(2 * torch.pi * hue)
    one, zero = torch.ones_like(hue), torch.zeros_like(hue)
    turn = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).view(-1, 3, 3)
    to_gray = luma.expand(3, 3)
    saturate = saturation.view(-1, 1, 1) * identity + (1 - saturation).view(-1, 1, 1) * to_gray
    colored = from_yiq @ turn @ yiq @ saturate
    matrix = torch.where(gray.view(-1, 1, 1) > 0, to_gray, colored) * (brightness * contrast).view(-1, 1, 1)
    mean = images.flatten(1, 2).mean(1) @ luma * brightness  # gray of each image after brightness, (B,)
    mapped = images.flatten(1, 2) @ matrix.transpose(1, 2) + ((1 - contrast) * mean).view(-1, 1, 1)
    return mapped.clamp_(0, 1).view(images.shape)
