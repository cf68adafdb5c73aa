"""Finds duplicate images: identical files, one photograph saved twice, one eye photographed twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations, product

import cv2
import numpy as np
import pandas as pd

from resnet_lab.data.progress import with_progress
from resnet_lab.processes import cores

VERSION = 2  # of the search for near pairs; raise it when the same thumbnails give other pairs
COLUMNS = ["image_a", "split_a", "label_a", "image_b", "split_b", "label_b", "kind"]
SIDE = 64  # pixels of a thumbnail
COARSE = 32  # side in pixels of the patterns for comparing all pictures with all
# Measured on IDRiD's 516 photographs, as correlation of coarse patterns / of aligned pictures: copies (quality 50,
# 60 % of the size, darker, cropped by 3 to 6 %) 0.93 to 1.0 / 0.89 to 1.0; two eyes at most 0.92 / 0.74; one eye 0.98
MIN_COARSE = 0.75  # least correlation of the patterns for aligning a pair …
NEIGHBORS = 5  # … with at most so many neighbors of each picture
MIN_ALIGNED = 0.85  # least correlation for two aligned pictures to be one photograph
MAX_WARP = 0.15  # largest scaling, rotation and shift of the alignment, as shares of the picture
MIN_CONTRAST = 0.1  # below this contrast of the pattern a picture is black or flat and resembles all other flat ones
BLOCK, WIDTH = 256, 2048  # rows and columns of the correlation matrix in memory at a time
STEPS = 500  # a pattern is stored in steps of 1 / STEPS as int8, half a KB a picture
MANY = 20  # above so many copies of one file, not all pairs are listed


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink an image, uint8 (H, W, 3) RGB or (H, W), to the gray thumbnail (SIDE, SIDE), uint8, for `near_pairs`."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def find_duplicates(rows: pd.DataFrame, near: Iterable[Sequence[int]]) -> pd.DataFrame:
    """Return pairs of duplicate images; pairs across splits and with different labels come first.

    `exact`: the files are identical, byte by byte. `near`: one photograph in two files (saved again, resized, brighter
    or darker, slightly cropped), or one eye photographed twice from the same position. Mirrored copies are not found.

    If a file has more than MANY copies, each is paired with the first only.

    Args:
        rows: `image, split, target, digest` (of the file's bytes), one row per readable image.
        near: the `near_pairs` of the first row of each digest.
    """
    copies = [np.asarray(group).tolist() for group in rows.groupby("digest", sort=False).indices.values()]
    exact = [pair for group in copies for pair in _pairs(group)]
    close = [pair for a, b in near for pair in product(copies[a][:MANY], copies[b][:MANY])]
    return _listed(rows, exact + close, ["exact"] * len(exact) + ["near"] * len(close))


def _pairs(group: list[int]) -> Iterable[tuple[int, int]]:
    return combinations(group, 2) if len(group) <= MANY else ((group[0], other) for other in group[1:])


def _listed(rows: pd.DataFrame, pairs: list[tuple[int, int]], kinds: list[str]) -> pd.DataFrame:
    """Return the table of the pairs; the two of a pair, and equally bad pairs, are sorted by name."""
    names = rows["image"].tolist()
    ordered = np.array([sorted(pair, key=names.__getitem__) for pair in pairs], dtype=int).reshape(-1, 2)
    sides = [rows[["image", "split", "target"]].iloc[side].reset_index(drop=True) for side in ordered.T]
    table = pd.concat(sides, axis=1).assign(kind=kinds).set_axis(COLUMNS, axis=1)
    crosses, conflicts = table["split_a"] != table["split_b"], table["label_a"] != table["label_b"]
    table["harm"] = 2 * crosses + conflicts
    order = ["harm", "kind", "image_a", "image_b"]
    return table.sort_values(order, ascending=[False, True, True, True], ignore_index=True)[COLUMNS]


def near_pairs(thumbnails: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return pairs of indices of thumbnails, uint8 (SIDE, SIDE) each, that agree after alignment.

    Each picture is compared with all others as a coarse pattern, then with its nearest neighbors after affine
    alignment (Evangelidis & Psarakis 2008). Only the patterns stay in memory: a sequence may load its thumbnails on
    demand.
    """
    found = list[tuple[int, int]]()
    with ThreadPoolExecutor(cores()) as pool:  # cv2 releases the interpreter's lock
        patterns = _patterns(thumbnails, pool)
        for start in with_progress(range(0, len(patterns), BLOCK), len(patterns), "compared", BLOCK):
            pairs = _candidates(patterns, start)
            needed = sorted({place for pair in pairs for place in pair})
            loaded = dict(zip(needed, pool.map(thumbnails.__getitem__, needed), strict=True))
            agreement = pool.map(lambda pair, loaded=loaded: _agreement(loaded[pair[0]], loaded[pair[1]]), pairs)
            found += [pair for pair, value in zip(pairs, agreement, strict=True) if value >= MIN_ALIGNED]
    return found


def _patterns(thumbnails: Sequence[np.ndarray], pool: ThreadPoolExecutor) -> np.ndarray:
    """Return the patterns of thumbnails, int8 (N, P), in steps of 1 / STEPS."""
    patterns = np.empty((len(thumbnails), np.count_nonzero(_disc(COARSE))), np.int8)
    for start in with_progress(range(0, len(patterns), BLOCK), len(patterns), "loaded", BLOCK):
        block = patterns[start : start + BLOCK]
        places = range(start, start + len(block))
        block[:] = list(pool.map(lambda place: (_pattern(thumbnails[place]) * STEPS).round().clip(-127, 127), places))
    return patterns


def _candidates(patterns: np.ndarray, start: int) -> list[tuple[int, int]]:
    """Pair each of the BLOCK rows from `start` with the NEIGHBORS later rows of the most similar patterns."""
    rows, chunks = patterns[start : start + BLOCK].astype(np.float32) / STEPS**2, list[pd.DataFrame]()
    for left in range(start, len(patterns), WIDTH):
        likeness = rows @ patterns[left : left + WIDTH].T.astype(np.float32)
        alike = np.flatnonzero(likeness >= MIN_COARSE)  # ten times faster than np.nonzero
        first, second = np.divmod(alike, likeness.shape[1])
        found = pd.DataFrame({"a": start + first, "b": left + second, "likeness": likeness.ravel()[alike]})
        chunks.append(_nearest(found.query("a < b")))
    nearest = _nearest(pd.concat(chunks))
    return list(zip(nearest["a"].tolist(), nearest["b"].tolist(), strict=True))


def _nearest(found: pd.DataFrame) -> pd.DataFrame:
    """Return the NEIGHBORS rows of the largest `likeness` for each `a`."""
    return found.sort_values("likeness", ascending=False, kind="stable").groupby("a").head(NEIGHBORS)


def _pattern(picture: np.ndarray) -> np.ndarray:
    """Return a thumbnail as a vector of length 1, blurred to tolerate small shifts; 0 if it is flat."""
    coarse = cv2.resize(picture, (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    inside = cv2.GaussianBlur(_flattened(coarse), (0, 0), 1)[_disc(COARSE) > 0]
    inside -= inside.mean()
    length = np.linalg.norm(inside)
    return inside / length if length > MIN_CONTRAST * np.sqrt(inside.size) else np.zeros_like(inside)


def _flattened(picture: np.ndarray) -> np.ndarray:
    """Normalize a picture by local mean and local standard deviation, float32.

    Exposure and illumination cancel out; vessels count as much as the optic disc.
    """
    sigma, noise = 2, 2  # pixels, gray levels
    gray = picture.astype(np.float32)
    away = gray - cv2.GaussianBlur(gray, (0, 0), sigma)
    values: np.ndarray = away / (np.sqrt(cv2.GaussianBlur(away * away, (0, 0), sigma)) + noise)
    return values


@cache
def _disc(side: int) -> np.ndarray:
    """Return the mask (side, side), uint8, for comparing pictures: without the rim of the eye, alike in all of them."""
    away = (np.arange(side) - (side - 1) / 2) / (side / 2)
    values: np.ndarray = (np.hypot(away[:, None], away) < 0.8).astype(np.uint8)
    return values


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two thumbnails after the best small affine alignment; -1 if there is none."""
    still: np.ndarray = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-3)
    pictures = _flattened(one), _flattened(other)
    try:
        value, warp = cv2.findTransformECC(*pictures, still.copy(), cv2.MOTION_AFFINE, stop, _disc(SIDE), 3)
    except cv2.error:  # no convergence
        return -1.0
    moved = np.abs(warp - still) / (1, 1, SIDE)
    return value if moved.max() < MAX_WARP else -1.0
