"""Duplicates among drawn eyes: edited copies are found, other eyes are not."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
import pytest

from resnet_lab.data import duplicates
from resnet_lab.data.duplicates import COLUMNS, find_duplicates, near_pairs, thumbnail
from resnet_lab.data.fundus import draw_fundus

EYES = 24


@pytest.fixture(scope="module")
def eyes() -> list[np.ndarray]:
    """Return photographs (96, 96, 3), one eye per patient."""
    return [draw_fundus(k % 5, ("left", "right")[k % 2], k, 0, 96)[:, 16:112] for k in range(EYES)]


def rows_of(names, splits="train", targets=0, digests=None) -> pd.DataFrame:
    return pd.DataFrame({"image": names, "split": splits, "target": targets, "digest": digests or names})


def found(images, rows) -> pd.DataFrame:
    firsts = np.flatnonzero(~rows["digest"].duplicated())
    return find_duplicates(rows, near_pairs(np.array([thumbnail(images[place]) for place in firsts])))


def anew(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpeg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], cv2.IMREAD_COLOR)


EDITS = {
    "saved anew": lambda image: anew(image, 50),
    "resized": lambda image: cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
    "darker": lambda image: (image * 0.85).astype(np.uint8),
    "brighter": lambda image: np.minimum(image * 1.15, 255).astype(np.uint8),
    "cropped": lambda image: image[3:, :-3],
    "all of it": lambda image: anew((cv2.resize(image[2:-1, 1:-2], (64, 64)) * 0.9).astype(np.uint8), 70),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_copy_is_near_and_another_eye_is_not(eyes, edit):
    rows = rows_of([f"{kind}{k:02}" for kind in ("copy", "eye") for k in range(EYES)])
    table = found([edit(eye) for eye in eyes] + eyes, rows)
    assert list(table.columns) == COLUMNS
    assert set(table["kind"]) == {"near"}
    pairs = list(zip(table["image_a"], table["image_b"], strict=True))
    assert pairs == [(f"copy{k:02}", f"eye{k:02}") for k in range(EYES)]


def test_a_gray_picture_has_the_same_thumbnail(eyes):
    np.testing.assert_array_equal(thumbnail(cv2.cvtColor(eyes[0], cv2.COLOR_RGB2GRAY)), thumbnail(eyes[0]))


def test_identical_files_are_exact_duplicates_and_not_near_ones(eyes):
    table = found([eyes[0], eyes[1], eyes[0]], rows_of(["a", "b", "c"], digests=["x", "y", "x"]))
    assert table.to_numpy().tolist() == [["a", "train", 0, "c", "train", 0, "exact"]]


def test_no_duplicates_and_no_images_give_an_empty_table(eyes):
    for images in (eyes[:3], eyes[:1]):
        table = found(images, rows_of([f"eye{k}" for k in range(len(images))]))
        assert list(table.columns) == COLUMNS
        assert table.empty
    nothing = find_duplicates(rows_of([]), near_pairs(np.zeros((0, duplicates.SIDE, duplicates.SIDE), np.uint8)))
    assert list(nothing.columns) == COLUMNS
    assert nothing.empty


def test_the_worst_pairs_come_first(eyes):
    names = ["e", "f", "c", "d", "g", "h", "a", "b", "near_f"]
    splits = ["train", "train", "train", "test", "train", "train", "train", "test", "train"]
    targets = [0, 0, 1, 1, 2, 3, 0, 3, 0]
    digests = ["1", "1", "2", "2", "3", "3", "4", "4", "5"]
    images = [eyes[k] for k in (0, 0, 1, 1, 2, 2, 3, 3)] + [EDITS["darker"](eyes[0])]
    table = found(images, rows_of(names, splits, targets, digests))
    assert table[["image_a", "image_b", "kind"]].to_numpy().tolist() == [
        ["a", "b", "exact"],  # across splits, two labels
        ["c", "d", "exact"],  # across splits
        ["g", "h", "exact"],  # two labels
        ["e", "f", "exact"],
        ["e", "near_f", "near"],
        ["f", "near_f", "near"],
    ]
    shuffled = [5, 8, 1, 3, 0, 7, 2, 6, 4]
    rows = rows_of(names, splits, targets, digests).iloc[shuffled]
    pd.testing.assert_frame_equal(found([images[k] for k in shuffled], rows), table)


def test_black_and_flat_pictures_are_not_duplicates():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    light = 1 - ((y - 48) ** 2 + (x - 48) ** 2)[..., None] / 5000  # darker toward the rim
    levels = [0, 2, 4, 8, 12, 90, 180, 240] * 3
    images = [np.clip(level * light + rng.normal(0, 1, (96, 96, 3)), 0, 255).astype(np.uint8) for level in levels]
    assert found(images, rows_of([str(k) for k in range(len(images))])).empty


def test_many_copies_of_one_file_are_listed_with_the_first(eyes):
    names = [f"{k:04}" for k in range(300)]
    table = find_duplicates(rows_of(names, digests=["x"] * 300), [])
    assert table["image_a"].tolist() == ["0000"] * 299
    assert table["image_b"].tolist() == names[1:]
    few = find_duplicates(rows_of(names[:5], digests=["x"] * 5), [])
    assert len(few) == 10


def test_pairs_are_found_across_blocks(eyes, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 5)
    monkeypatch.setattr(duplicates, "WIDTH", 7)
    table = found([*eyes, EDITS["resized"](eyes[3])], rows_of([f"{k:02}" for k in range(EYES + 1)]))
    assert table[["image_a", "image_b"]].to_numpy().tolist() == [["03", f"{EYES:02}"]]


def test_a_pattern_takes_one_byte_a_pixel_and_agrees_as_before(eyes):
    pictures = [thumbnail(eye) for eye in [*eyes, *map(EDITS["darker"], eyes)]]
    with ThreadPoolExecutor(2) as pool:
        stored = duplicates._patterns(pictures, pool)
    exact = np.array([duplicates._pattern(picture) for picture in pictures])
    assert stored.dtype == np.int8
    assert stored.shape == exact.shape == (2 * EYES, 524)
    values = stored.astype(np.float32) / duplicates.STEPS
    assert np.abs(values @ values.T - exact @ exact.T).max() < 0.005
