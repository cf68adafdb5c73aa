"""The only code that opens image files: row → uint8 image, and the check that every file can be read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from resnet_lab.errors import UserError
from resnet_lab.run_folder import write_atomically

log = logging.getLogger(__name__)

DARK = 12  # grey level below which a pixel belongs to the black border of a fundus photograph


def read_image(path: str, image_size: int, resize: str, eye_crop: bool) -> np.ndarray:
    """Decode one image at the smallest JPEG scale that suffices, and resize it with antialiasing.

    Args:
        path: a JPEG, PNG or TIFF of any size, with 8 bits a channel.
        image_size: pixels.
        resize: `square` (both sides become `image_size`) or else `shorter` (the shorter side does).
        eye_crop: cut off the black border around the eye first.

    Returns:
        uint8, (H, W, 3), RGB.
    """
    with Image.open(path) as file:
        if not eye_crop:
            # draft() picks a scale of 1/2, 1/4 or 1/8 that is still at least twice the target
            file.draft("RGB", (2 * image_size, 2 * image_size))
        image = ImageOps.exif_transpose(file).convert("RGB")
    if eye_crop:
        image = image.crop(eye_box(np.asarray(image)))
    scale = image_size / min(image.size)
    shorter = (round(scale * image.width), round(scale * image.height))
    size = (image_size, image_size) if resize == "square" else shorter
    return np.array(image.resize(size, Image.Resampling.BILINEAR))


def eye_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not black border; the whole image (H, W, 3) where nothing is.

    A row or column counts as eye when 2 % of its pixels are brighter than the border's noise.
    """
    bright = image.max(axis=2) > DARK
    columns = np.flatnonzero(bright.mean(axis=0) > 0.02)
    rows = np.flatnonzero(bright.mean(axis=1) > 0.02)
    if not len(columns) or not len(rows):
        return 0, 0, image.shape[1], image.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def read_images(paths: Sequence[str], image_size: int, resize: str, eye_crop: bool) -> list[np.ndarray]:
    """`read_image` of many files on all cores (Pillow decodes outside the interpreter's lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda path: read_image(path, image_size, resize, eye_crop), paths))


def defect(path: str) -> str | None:
    """What is wrong with an image file, or None; a decode at 1/8 scale also finds truncated ones."""
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                return f"mode {file.mode}, which has more than 8 bits a pixel; convert it to 8 bits"
            file.draft("RGB", (max(1, file.width // 8), max(1, file.height // 8)))
            ImageOps.exif_transpose(file).convert("RGB")  # all that read_image will do
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        return " ".join(str(error).replace(path, "file").split()) or type(error).__name__
    return None


def find_defects(paths: Iterable[str], cache_dir: Path) -> dict[str, str]:
    """Check every file once; the verdicts are kept by path, size and time of change.

    Args:
        paths: image files.
        cache_dir: where the verdicts are kept; a folder that cannot be written costs only the repetition.

    Returns:
        The bad files, and what is wrong with each.
    """
    keys = {path: _key(path) for path in paths}
    folders = "\n".join(sorted({str(Path(path).parent) for path in keys}))
    cache_file = cache_dir / f"checked_{hashlib.sha256(folders.encode()).hexdigest()[:16]}.json"
    known = _known(cache_file)
    new = [path for path, key in keys.items() if key not in known or key == path]
    if new:
        known |= dict(zip((keys[path] for path in new), _check_all(new), strict=True))
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_file, json.dumps(known, ensure_ascii=False))
        except OSError as error:
            log.warning("cannot keep the check of the images: %s", error)
    return {path: verdict for path, key in keys.items() if (verdict := known[key]) is not None}


def _key(path: str) -> str:
    """Path, size and time of change; of a dangling link the path alone."""
    try:
        stat = Path(path).stat()
    except OSError:
        return path
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _known(cache_file: Path) -> dict[str, str | None]:
    """The verdicts so far; none where the file is missing or damaged."""
    try:
        known = json.loads(cache_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _check_all(paths: list[str]) -> list[str | None]:
    log.info("checking %d image files (once)", len(paths))
    verdicts, start = [], time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for verdict in pool.map(defect, paths):
            verdicts.append(verdict)
            if len(verdicts) % 5000 == 0:
                rate = len(verdicts) / (time.monotonic() - start)
                log.info(
                    "checked %d of %d, %.0f s left",
                    len(verdicts),
                    len(paths),
                    (len(paths) - len(verdicts)) / rate,
                )
    return verdicts


def drop_defects(table: pd.DataFrame, cache_dir: Path, on_bad_image: str) -> tuple[pd.DataFrame, int]:
    """Remove rows whose image cannot be read, or stop at them.

    Args:
        table: rows with `path`.
        cache_dir: see `find_defects`.
        on_bad_image: `error` or `drop`.

    Returns:
        The table without them, and how many they were.

    Raises:
        UserError: there are some and `on_bad_image` is `error`, or `on_bad_image` is neither.
    """
    if on_bad_image not in ("error", "drop"):
        raise UserError(f"data.on_bad_image={on_bad_image}: choose error or drop")
    defects = find_defects(table["path"], cache_dir)
    if defects and on_bad_image == "error":
        path, reason = next(iter(defects.items()))
        raise UserError(
            f"{path}: {reason}; {len(defects)} of {len(table)} images cannot be read; mend them, "
            "or set data.on_bad_image=drop to go on without them"
        )
    for path, reason in list(defects.items())[:10]:
        log.warning("dropped %s: %s", path, reason)
    return table[~table["path"].isin(defects)].reset_index(drop=True), len(defects)
