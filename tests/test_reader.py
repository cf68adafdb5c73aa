"""Files to pixels, and the check that finds what cannot be read."""

import io
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from fake_data import pixels, refusal
from PIL import Image

from resnet_lab.data import reader
from resnet_lab.data.reader import defect, drop_defects, eye_box, find_defects, read_image, read_images


@pytest.fixture
def save(tmp_path):
    def write(image, name="image.png", **options):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return write


def noise(height=200, width=200):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fundus(left, top, width, height):
    """An ellipse of flesh colour that touches this box, on a black frame of 120 × 90 with camera noise."""
    image = np.random.default_rng(0).integers(0, 8, (90, 120, 3), dtype=np.uint8)
    centre, axes = (left + (width - 1) / 2, top + (height - 1) / 2), (width / 2, height / 2)
    y, x = np.mgrid[:90, :120]
    image[((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 <= 1] = (180, 90, 40)
    return image


# pixels


def test_square_and_shorter(save):
    path = save(pixels("a", 60, 40))
    assert read_image(path, 20, "square", False).shape == (20, 20, 3)
    assert read_image(path, 20, "shorter", False).shape == (20, 30, 3)
    assert read_image(path, 80, "shorter", False).shape == (80, 120, 3)
    assert read_image(save(pixels("a", 40, 61)), 20, "shorter", False).shape == (30, 20, 3)  # 30.5 to even


def test_pixels_are_untouched_at_their_own_size(save):
    image = noise(32, 32)
    read = read_image(save(image), 32, "square", False)
    np.testing.assert_array_equal(read, image)
    assert read.dtype == np.uint8
    assert read.flags.writeable


def test_resizing_is_antialiased(save):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = read_image(save(stripes), 16, "square", False)
    assert np.abs(small[:, 2:-2].astype(int) - 100).max() <= 2


def test_smaller_jpeg_scale_shows_the_same_picture(save):
    image = pixels("a", 400, 300)
    path = save(image, "image.jpeg", quality=95)
    with Image.open(path) as file:
        file.draft("RGB", (40, 40))
        assert file.size == (100, 75)  # so a smaller scale is decoded at 20 px
    exact = cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(read_image(path, 20, "square", False) - exact).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_become_rgb(save, mode):
    path = save(Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode))
    np.testing.assert_array_equal(read_image(path, 8, "square", False), np.full((8, 8, 3), 255))


def test_cmyk_becomes_rgb(save):
    path = save(Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK"), "image.jpeg", quality=95)
    assert np.abs(read_image(path, 8, "square", False) - np.array([200, 100, 50])).max() < 6


def test_camera_orientation_is_undone(save):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: to be shown after a clockwise quarter
    path = save(pixels("a", 40, 20), "image.jpeg", exif=exif, quality=95)
    read = read_image(path, 20, "shorter", False)
    assert read.shape == (40, 20, 3)
    assert np.abs(read.astype(int) - np.rot90(pixels("a", 40, 20), -1)).mean() < 3


def test_many_images_in_order(save):
    paths = [save(pixels(name), f"{name}.png") for name in "abcde"]
    for path, image in zip(paths, read_images(paths, 12, "square", False), strict=True):
        np.testing.assert_array_equal(image, read_image(path, 12, "square", False))


# the black border


@pytest.mark.parametrize("box", [(30, 10, 60, 70), (0, 0, 120, 90), (5, 40, 80, 40), (40, 20, 80, 70)])
def test_eye_box_to_a_few_pixels(box):
    left, top, width, height = box
    found = np.array(eye_box(fundus(*box)))
    assert np.abs(found - (left, top, left + width, top + height)).max() <= 2


def test_eye_box_of_a_rectangle_is_exact():
    image = np.zeros((50, 70, 3), np.uint8)
    image[10:40, 20:65, 1] = 13  # one channel above the border's grey suffices
    assert eye_box(image) == (20, 10, 65, 40)
    assert eye_box(np.full((50, 70, 3), 12, np.uint8)) == (0, 0, 70, 50)


def test_a_few_bright_pixels_are_no_eye():
    image = np.zeros((100, 100, 3), np.uint8)
    image[3, 7] = image[90, 7] = 255  # 2 % of a column
    assert eye_box(image) == (0, 0, 100, 100)
    image[40:60, 30:70] = 200
    assert eye_box(image) == (30, 40, 70, 60)


def test_eye_crop_fills_the_image(save):
    path = save(fundus(30, 10, 60, 70))
    cropped, whole = (read_image(path, 40, "square", crop) for crop in (True, False))
    assert cropped[:, [0, -1]].max() > 100  # the eye touches both sides
    assert whole[:, [0, -1]].max() < 12
    assert cropped[20, 20].tolist() == [180, 90, 40]
    assert read_image(path, 30, "shorter", True).shape[0] in (34, 35, 36)


# the check


def test_half_a_jpeg_passes_a_look_at_its_header_only(save, tmp_path):
    path = save(noise(), "image.jpeg")
    assert defect(path) is None
    data = (tmp_path / "image.jpeg").read_bytes()
    (tmp_path / "image.jpeg").write_bytes(data[: len(data) // 2])
    with Image.open(path) as file:
        file.verify()
    assert defect(path).startswith("image file is truncated")


@pytest.mark.parametrize(
    ("data", "seen"), [(b"", "cannot identify image file 'file'"), (b"\xff\xd8\xff\xe0 text", "Truncated File Read")]
)
def test_what_is_no_image(tmp_path, data, seen):
    (tmp_path / "x.jpeg").write_bytes(data)
    assert defect(str(tmp_path / "x.jpeg")).startswith(seen)


def test_half_a_png_and_a_folder(save, tmp_path):
    path = save(noise())
    data = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(data[: len(data) // 2])
    assert "truncated" in defect(path)
    assert "directory" in defect(str(tmp_path))


def test_sixteen_bits_would_be_clipped_to_white(save):
    path = save(np.full((8, 8), 30_000, np.uint16))
    assert defect(path) == "mode I;16, which has more than 8 bits a pixel; convert it to 8 bits"


def test_defects_with_their_reasons(save, tmp_path):
    good = save(noise(40, 40), "good.jpeg")
    (tmp_path / "bad.jpeg").write_bytes(b"x")
    found = find_defects([good, str(tmp_path / "bad.jpeg")], tmp_path / "cache")
    assert found == {str(tmp_path / "bad.jpeg"): "cannot identify image file 'file'"}


@pytest.fixture
def checked(monkeypatch):
    """The paths that were decoded since it was last cleared."""
    paths = []

    def count(path):
        paths.append(path)
        return defect(path)

    monkeypatch.setattr(reader, "defect", count)
    return paths


def test_verdicts_are_kept_until_the_file_changes(save, tmp_path, checked):
    cache, bad = tmp_path / "cache", tmp_path / "b.png"
    paths = [save(noise(8, 8), "a.png"), str(bad)]
    bad.write_bytes(b"x")
    assert list(find_defects(paths, cache)) == [str(bad)]
    assert sorted(checked) == sorted(paths)
    checked.clear()
    assert list(find_defects(paths, cache)) == [str(bad)]  # the bad verdict is remembered too
    assert checked == []
    save(noise(8, 8), "b.png")
    paths.append(save(noise(8, 8), "c.png"))
    assert find_defects(paths, cache) == {}
    assert sorted(checked) == paths[1:]


def test_same_size_at_another_time_is_another_file(save, tmp_path, checked):
    path = save(noise(8, 8))
    data = (tmp_path / "image.png").read_bytes()
    assert find_defects([path], tmp_path / "cache") == {}
    (tmp_path / "image.png").write_bytes(bytes(len(data)))
    os.utime(path, ns=(0, Path(path).stat().st_mtime_ns + 1))  # the clock of a file system may be coarse
    assert list(find_defects([path], tmp_path / "cache")) == [path]


def test_cache_that_cannot_be_written(save, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert find_defects([save(noise(8, 8))], tmp_path / "cache") == {}
    assert "cannot keep the check of the images" in caplog.text


@pytest.fixture
def half_bad(save, tmp_path):
    (tmp_path / "bad.jpeg").write_bytes(b"x")
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "jpeg")
    (tmp_path / "half.jpeg").write_bytes(buffer.getvalue()[:9000])
    names = ["bad.jpeg", "good.png", "half.jpeg"]
    save(noise(8, 8), "good.png")
    return pd.DataFrame({"image": names, "path": [str(tmp_path / name) for name in names]})


def test_bad_image_is_an_error(half_bad, tmp_path):
    message = refusal(drop_defects, half_bad, tmp_path / "cache", "error")
    assert message.startswith(f"{tmp_path / 'bad.jpeg'}: cannot identify image file")
    assert "2 of 3 images cannot be read" in message
    assert "data.on_bad_image=drop" in message


def test_bad_images_are_dropped_counted_and_named(half_bad, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        kept, count = drop_defects(half_bad, tmp_path / "cache", "drop")
    assert (kept["image"].tolist(), list(kept.index), count) == (["good.png"], [0], 2)
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        f"dropped {tmp_path / 'bad.jpeg'}",
        f"dropped {tmp_path / 'half.jpeg'}",
    ]


@pytest.mark.parametrize("on_bad_image", ["error", "drop"])
def test_good_images_stay(half_bad, tmp_path, on_bad_image):
    kept, count = drop_defects(half_bad.iloc[[1]], tmp_path / "cache", on_bad_image)
    assert (kept["image"].tolist(), count) == (["good.png"], 0)


def test_unknown_rule(half_bad, tmp_path):
    message = refusal(drop_defects, half_bad, tmp_path / "cache", "skip")
    assert message == "data.on_bad_image=skip: choose error or drop"


def test_a_dangling_link_is_a_defect_and_a_damaged_cache_costs_only_time(tmp_path):
    link = tmp_path / "gone.jpeg"
    link.symlink_to(tmp_path / "nothing.jpeg")
    cache = tmp_path / "cache"
    assert set(find_defects([str(link)], cache)) == {str(link)}
    (cache_file,) = cache.iterdir()
    cache_file.write_text('{"a')
    assert set(find_defects([str(link)], cache)) == {str(link)}
