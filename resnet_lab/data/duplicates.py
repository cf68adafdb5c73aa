"""Finds pictures that are listed twice: the same file, the same photograph saved anew, the same eye taken twice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations, product

import cv2
import numpy as np
import pandas as pd

from resnet_lab.data.progress import with_progress

VERSION = 1  # of the search for near pairs; raise it when the same thumbnails give others
COLUMNS = ["image_a", "split_a", "label_a", "image_b", "split_b", "label_b", "kind"]
SIDE = 64  # pixels of a thumbnail
COARSE = 32  # pixels at which all pictures are compared with all
# Of IDRiD's 516 photographs copies (quality 50, 60 % of the size, darker, cropped by 3 to 6 %) reach 0.93 to 1.0 as
# coarse patterns and 0.89 to 1.0 aligned; pairs of two eyes at most 0.92 and 0.74; two photographs of one eye 0.98
MIN_COARSE = 0.75  # correlation of the patterns from which a pair is looked at closely …
NEIGHBORS = 5  # … at most so many of each picture
MIN_ALIGNED = 0.85  # correlation from which two aligned pictures are one photograph
MAX_WARP = 0.15  # how far the alignment may scale, turn and move, in shares of the picture
MIN_CONTRAST = 0.1  # of a pattern, below which a picture is black or flat, and like all others that are
BLOCK = 256  # rows of the matrix of correlations that exist at a time
MANY = 20  # copies of one file up to which all pairs are listed


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The gray picture (SIDE, SIDE), uint8, by which `near_pairs` knows an image, uint8 (H, W, 3) RGB or (H, W)."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def find_duplicates(rows: pd.DataFrame, near: Iterable[Sequence[int]]) -> pd.DataFrame:
    """Pairs of images that show the same: first those across splits and with two labels, then with one of these.

    `exact`: the files are the same, byte by byte. `near`: one photograph in two files (saved anew, resized, made
    brighter or darker, cropped a little), or one eye taken twice from the same place. Mirrored copies are not found.

    Of more than MANY copies of one file each is listed with the first alone.

    Args:
        rows: `image, split, target, digest` (of the file's bytes), one row per image that can be read.
        near: the `near_pairs` of the first rows of each digest.
    """
    copies = [np.asarray(group).tolist() for group in rows.groupby("digest", sort=False).indices.values()]
    exact = [pair for group in copies for pair in _pairs(group)]
    close = [pair for a, b in near for pair in product(copies[a][:MANY], copies[b][:MANY])]
    return _listed(rows, exact + close, ["exact"] * len(exact) + ["near"] * len(close))


def _pairs(group: list[int]) -> Iterable[tuple[int, int]]:
    return combinations(group, 2) if len(group) <= MANY else ((group[0], other) for other in group[1:])


def _listed(rows: pd.DataFrame, pairs: list[tuple[int, int]], kinds: list[str]) -> pd.DataFrame:
    """The table of the pairs; within a pair, and among equally bad pairs, the names decide."""
    names = rows["image"].tolist()
    ordered = np.array([sorted(pair, key=names.__getitem__) for pair in pairs], dtype=int).reshape(-1, 2)
    sides = [rows[["image", "split", "target"]].iloc[side].reset_index(drop=True) for side in ordered.T]
    table = pd.concat(sides, axis=1).assign(kind=kinds).set_axis(COLUMNS, axis=1)
    crosses, conflicts = table["split_a"] != table["split_b"], table["label_a"] != table["label_b"]
    table["harm"] = 2 * crosses + conflicts
    order = ["harm", "kind", "image_a", "image_b"]
    return table.sort_values(order, ascending=[False, True, True, True], ignore_index=True)[COLUMNS]


def near_pairs(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of places whose thumbnails, uint8 (N, SIDE, SIDE), agree once they are aligned.

    Each picture is compared with all others as a coarse pattern, and with its nearest ones after an affine alignment
    (Evangelidis & Psarakis 2008).
    """
    patterns = np.array([_pattern(picture) for picture in thumbnails], dtype=np.float32)
    starts, found = range(0, len(patterns), BLOCK), list[tuple[int, int]]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # cv2 works outside the interpreter's lock
        for start in with_progress(starts, len(patterns), "compared", BLOCK):
            pairs = _candidates(patterns, start)
            agreement = pool.map(lambda pair: _agreement(*thumbnails[list(pair)]), pairs)
            found += [pair for pair, value in zip(pairs, agreement, strict=True) if value >= MIN_ALIGNED]
    return found


def _candidates(patterns: np.ndarray, start: int) -> list[tuple[int, int]]:
    """For each of the BLOCK rows from `start` the NEIGHBORS later rows whose patterns resemble it most."""
    likeness = patterns[start : start + BLOCK] @ patterns[start:].T
    alike = np.flatnonzero(likeness >= MIN_COARSE)  # ten times faster than np.nonzero
    first, second = np.divmod(alike, likeness.shape[1])
    found = pd.DataFrame({"a": first, "b": second, "likeness": likeness[first, second]}).query("a < b")
    nearest = found.sort_values("likeness", ascending=False, kind="stable").groupby("a").head(NEIGHBORS)
    return list(zip((start + nearest["a"]).tolist(), (start + nearest["b"]).tolist(), strict=True))


def _pattern(picture: np.ndarray) -> np.ndarray:
    """A thumbnail as a vector of length 1, blurred so that small shifts matter little; 0 where it is flat."""
    coarse = cv2.resize(picture, (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    inside = cv2.GaussianBlur(_flattened(coarse), (0, 0), 1)[_disc(COARSE) > 0]
    inside -= inside.mean()
    length = np.linalg.norm(inside)
    return inside / length if length > MIN_CONTRAST * np.sqrt(inside.size) else np.zeros_like(inside)


def _flattened(picture: np.ndarray) -> np.ndarray:
    """What differs from its surroundings, float32, in units of how much the pixels there differ.

    Exposure and the camera's light cancel out; vessels count as much as the optic disc.
    """
    sigma, noise = 2, 2  # pixels, gray levels
    gray = picture.astype(np.float32)
    away = gray - cv2.GaussianBlur(gray, (0, 0), sigma)
    values: np.ndarray = away / (np.sqrt(cv2.GaussianBlur(away * away, (0, 0), sigma)) + noise)
    return values


@cache
def _disc(side: int) -> np.ndarray:
    """Where a picture (side, side) is compared, uint8: not near the rim of the eye, which looks alike in all."""
    away = (np.arange(side) - (side - 1) / 2) / (side / 2)
    values: np.ndarray = (np.hypot(away[:, None], away) < 0.8).astype(np.uint8)
    return values


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two thumbnails after the best small affine alignment; -1 where there is none."""
    still: np.ndarray = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-3)
    pictures = _flattened(one), _flattened(other)
    try:
        value, warp = cv2.findTransformECC(*pictures, still.copy(), cv2.MOTION_AFFINE, stop, _disc(SIDE), 3)
    except cv2.error:  # no convergence
        return -1.0
    moved = np.abs(warp - still) / (1, 1, SIDE)
    return value if moved.max() < MAX_WARP else -1.0
