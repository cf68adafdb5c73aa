"""Decodes images for all commands: file → uint8 image."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from resnet_lab.data.check import AT_ONCE, MAX_PIXELS, read_file, too_deep, too_many
from resnet_lab.data.eye import Disc, crop, disc_box, find_disc, shrink, subtract_local_mean
from resnet_lab.data.jpeg import TRUNCATED, lacks_end

JPEG_SCALES = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}


@dataclass(frozen=True)
class Recipe:
    """Steps from a file to the image for training, before augmentation.

    Args:
        image_size: pixels.
        resize: `square` (both sides become `image_size`) or `shorter` (the shorter side does).
        eye_crop: crop the square around the eye's disc first; if none is found, the image is not cropped.
        local_mean: subtract the local mean color (the winner's method of 2015).
    """

    image_size: int
    resize: str
    eye_crop: bool
    local_mean: bool


def read_image(path: str, recipe: Recipe, scaled: bool = True, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one image, decoded at the smallest JPEG scale that suffices.

    Args:
        path: an image in a format of `listing.SUFFIXES`, of any size, with 8 bits per channel.
        recipe: the steps to apply.
        scaled: false decodes every pixel of a JPEG, to measure the effect of smaller scales.
        max_pixels: limit per file; a larger image is not decoded.

    Returns:
        uint8, (H, W, 3), RGB.

    Raises:
        OSError: the file cannot be read, is truncated, or is not an image.
        ValueError: the image has more than 8 bits per channel, or too many pixels.
    """
    data, size = read_file(path), recipe.image_size
    try:
        image, scale = decode(data, size if scaled else math.inf, max_pixels)
        disc = find_disc(image) if recipe.eye_crop else None
        if disc is not None and scale > 1 and 2 * disc.radius < size:  # a small disc in a large picture
            image, scale = decode(data, min(image.shape[:2]) * size / (2 * disc.radius), max_pixels)
            disc = find_disc(image)
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _fit(image, recipe, disc, scale)


def decode(data: bytes, shorter: float, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, int]:
    """Decode the bytes of an image file, turned upright by its EXIF orientation.

    A JPEG (not CMYK) is decoded at 1/8, 1/4 or 1/2 if its shorter side stays at least `shorter` pixels, 5 to 10
    times as fast as decoding and shrinking it. Pillow decodes all other formats.

    Returns:
        uint8 (H, W, 3), RGB; and the divisor of the sides, 1 to 8.

    Raises:
        OSError, ValueError: see `read_image`.
    """
    try:
        with io.BytesIO(data) as stream, Image.open(stream) as file:  # reads only the header
            if reason := too_deep(file):
                raise ValueError(reason)
            if reason := too_many(file.size, max_pixels):
                raise ValueError(reason)
            if file.format != "JPEG" or file.mode not in ("RGB", "L"):
                with AT_ONCE.of(file.width * file.height):
                    return np.array(ImageOps.exif_transpose(file).convert("RGB")), 1
            scale, scan = _jpeg_scale(min(file.size), shorter), stream.tell()
            with AT_ONCE.of(file.width * file.height // scale**2):
                return _upright(_decode_jpeg(data, scan, scale), file.getexif().get(ExifTags.Base.Orientation)), scale
    except UnidentifiedImageError:
        raise OSError("no image of a known format" if data else "the file is empty") from None
    except (SyntaxError, struct.error) as error:
        raise OSError(f"damaged header: {error}") from error


def _jpeg_scale(side: float, least: float) -> int:
    """Return the largest divisor that keeps a side at least `least` pixels long."""
    return next(scale for scale in JPEG_SCALES if scale == 1 or side >= scale * least)


def _decode_jpeg(data: bytes, scan: int, scale: int) -> np.ndarray:
    """Decode a JPEG, with its first scan at byte `scan`, to RGB (H, W, 3); refuse a truncated one."""
    if lacks_end(data, scan):
        raise OSError(TRUNCATED)
    flags = JPEG_SCALES[scale] | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise OSError("image file is damaged: it cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _upright(image: np.ndarray, orientation: object) -> np.ndarray:
    """Rotate and mirror an image by its EXIF orientation (1 to 8; other values are ignored)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def fit(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Apply a recipe to a decoded image (H, W, 3), uint8 RGB, as `read_image` does."""
    return _fit(image, recipe, find_disc(image) if recipe.eye_crop else None, 1)


def _fit(image: np.ndarray, recipe: Recipe, disc: Disc | None, scale: int) -> np.ndarray:
    """Crop, resize, and subtract the local mean; the image was decoded at 1/`scale`."""
    size = recipe.image_size
    if disc is not None:
        # a step of whole pixels at the smallest sufficient scale gives the same box at every decoded scale
        image = crop(image, disc_box(disc, max(1, _jpeg_scale(2 * disc.radius * scale, size) // scale)))
    image = _resize(image, size, recipe.resize)
    return subtract_local_mean(image, min(image.shape[:2]) / 2) if recipe.local_mean else image


def _resize(image: np.ndarray, image_size: int, resize: str) -> np.ndarray:
    """Shrink with antialiasing, then enlarge if necessary."""
    height, width = image.shape[:2]
    scale = image_size / min(height, width)
    target = (image_size, image_size) if resize == "square" else (round(scale * width), round(scale * height))
    if target == (width, height):
        return image
    smaller = shrink(image, min(width, target[0]), min(height, target[1]))
    return cv2.resize(smaller, target, interpolation=cv2.INTER_CUBIC)
