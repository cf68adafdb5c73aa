"""Files to pixels: identical by every path of the code."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REAL_DATA
from fake_data import pixels
from PIL import Image
from test_eye import fundus

from resnet_lab.data.reader import Recipe, decode, fit, read_image


def recipe(image_size, resize="square", eye_crop=False, local_mean=False):
    return Recipe(image_size, resize, eye_crop, local_mean)


def noise(height=200, width=200):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# pixels


def test_square_and_shorter(save):
    path = save(pixels("a", 60, 40))
    assert read_image(path, recipe(20)).shape == (20, 20, 3)
    assert read_image(path, recipe(20, "shorter")).shape == (20, 30, 3)
    assert read_image(path, recipe(80, "shorter")).shape == (80, 120, 3)
    assert read_image(save(pixels("a", 40, 61)), recipe(20, "shorter")).shape == (30, 20, 3)  # 30.5 to even


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_pixels_are_untouched_at_their_own_size(save, name):
    image = noise(32, 32)
    read = read_image(save(image, name), recipe(32))
    np.testing.assert_array_equal(read, image)
    assert read.dtype == np.uint8
    assert read.flags.writeable


def test_resizing_is_antialiased(save):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = read_image(save(stripes), recipe(16))
    assert np.abs(small[:, 2:-2].astype(int) - 100).max() <= 2


@pytest.mark.parametrize(("side", "scale"), [(20, 8), (38, 4), (76, 2), (151, 1), (400, 1)])
def test_smallest_jpeg_scale_that_suffices(save, side, scale):
    image = pixels("a", 400, 300)
    path = save(image, "image.jpeg", quality=95)
    decoded, found = decode(Path(path).read_bytes(), side)
    assert (found, decoded.shape) == (scale, (300 // scale + (300 % scale > 0), 400 // scale, 3))
    exact = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if side < 300 else cv2.INTER_CUBIC)
    assert np.abs(read_image(path, recipe(side)).astype(int) - exact).mean() < 2.5
    full = read_image(path, recipe(side), scaled=False).astype(int)
    assert np.abs(read_image(path, recipe(side)) - full).mean() < 1.5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_become_rgb(save, mode):
    path = save(Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode))
    np.testing.assert_array_equal(read_image(path, recipe(8)), np.full((8, 8, 3), 255))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_become_rgb(save, mode):
    image = Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode)
    expected = np.array(image.convert("RGB"))[0, 0].astype(int)
    read = read_image(save(image, "image.jpeg", quality=95), recipe(8))
    assert np.abs(read - expected).max() < 6


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("name", ["image.jpeg", "image.png"])
def test_camera_orientation_is_undone_by_both_decoders(save, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels("a", 40, 20))
    path = save(image, name, exif=exif, quality=95)
    upright = {
        0: [], 1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_90],
    }[orientation]  # fmt: skip
    for step in upright:
        image = image.transpose(step)
    read = read_image(path, recipe(20, "shorter"))
    assert read.shape == (image.height, image.width, 3)
    assert np.abs(read.astype(int) - np.asarray(image)).mean() < 4


def test_content_counts_and_not_the_suffix_and_names_may_use_any_script(save, tmp_path):
    image = noise(16, 16)
    path = save(image, "image.png")
    wrong = tmp_path / "зеница 目.jpeg"
    wrong.write_bytes(Path(path).read_bytes())
    np.testing.assert_array_equal(read_image(str(wrong), recipe(16)), image)


# the eye


def test_eye_crop_is_a_square_around_the_disc_that_never_distorts(save):
    path = save(fundus(200, 150, 160, 400, 300), quality=95, name="image.jpeg")  # cut off above and below
    cropped = read_image(path, recipe(80, "shorter", eye_crop=True))
    assert cropped.shape == (80, 80, 3)
    bright = cropped.max(axis=2) > 40
    assert bright[40].mean() > 0.95  # the eye fills the width
    assert bright[:, 40].mean() == pytest.approx(300 / 321, abs=0.03)
    assert cropped[0].max() < 20


def test_a_small_eye_in_a_large_picture_is_decoded_again(save):
    image = fundus(1500, 700, 130, 2400, 1600)
    path = save(image, "image.jpeg", quality=95)
    read, full = (read_image(path, recipe(200, eye_crop=True), scaled) for scaled in (True, False))
    assert np.abs(read.astype(int) - full).mean() < 0.5  # a scale of 1/8 would give 33 pixels


def test_without_a_disc_the_whole_picture_is_taken(save):
    path = save(pixels("a", 60, 40))
    for resize in ("square", "shorter"):
        whole = read_image(path, recipe(20, resize))
        np.testing.assert_array_equal(read_image(path, recipe(20, resize, eye_crop=True)), whole)


def test_local_mean_comes_last(save):
    path = save(fundus(180, 150, 120))
    read = read_image(path, recipe(80, eye_crop=True, local_mean=True))
    assert read[0, 0].tolist() == [128] * 3
    assert abs(np.median(read) - 128) <= 2


def test_arrays_are_fitted_as_files_are(save):
    image = fundus(180, 150, 120)
    path = save(image)
    for eye_crop, local_mean in ((False, False), (True, False), (True, True)):
        wanted = recipe(48, "shorter", eye_crop, local_mean)
        np.testing.assert_array_equal(fit(image, wanted), read_image(path, wanted))


# unreadable files


def truncated(data):
    return data[: len(data) // 2]


def thumbnail_and_half(data):
    """Return half a photograph after a thumbnail with its own end marker, as cameras write it."""
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data + truncated(data[2:])


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (truncated, "image file is truncated"),
        (thumbnail_and_half, "image file is truncated"),
        (lambda data: b"", "the file is empty"),
        (lambda data: b"no image", "no image of a known format"),
        (lambda data: data[:30], "Truncated|truncated|damaged|no image"),
    ],
)
def test_damaged_jpegs(save, tmp_path, spoil, seen):
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(buffer, "jpeg")
    (tmp_path / "bad.jpeg").write_bytes(spoil(buffer.getvalue()))
    with pytest.raises(OSError, match=seen) as caught:
        read_image(str(tmp_path / "bad.jpeg"), recipe(16))
    assert str(tmp_path / "bad.jpeg") in str(caught.value)


def test_bytes_that_cameras_append_do_not_matter(save):
    path = save(noise(40, 40), "image.jpeg")
    expected = read_image(path, recipe(16))
    Path(path).write_bytes(Path(path).read_bytes() + b"\0" * 100 + b"maker's notes")
    np.testing.assert_array_equal(read_image(path, recipe(16)), expected)


def test_half_a_png_and_a_folder(save, tmp_path):
    path = save(noise())
    data = Path(path).read_bytes()
    Path(path).write_bytes(truncated(data))
    for broken, seen in ((path, "truncated"), (str(tmp_path), "directory")):
        with pytest.raises(OSError, match=seen):
            read_image(broken, recipe(16))


def test_sixteen_bits_would_be_clipped_to_white(save):
    path = save(np.full((8, 8), 30_000, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits per pixel; convert it to 8 bits"):
        read_image(path, recipe(8))


def test_a_billion_pixels_are_refused_by_the_header(tmp_path):
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = b""
    for name, content in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    file = tmp_path / "bomb.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(ValueError, match="40000×40000 pixels, more than"):
        read_image(str(file), recipe(8))


# real photographs


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL_DATA / "idrid_fullsize.tar").is_file(), reason="no real photographs in ../shared/data")
def test_scaled_and_full_decode_differ_by_less_than_half_a_gray_level(idrid_fullsize):
    differences = [
        np.abs(read_image(str(file), wanted).astype(int) - read_image(str(file), wanted, scaled=False)).mean()
        for file in sorted((idrid_fullsize / "images").iterdir())
        for wanted in [recipe(512, eye_crop=True)]
    ]
    assert len(differences) == 25
    assert np.mean(differences) < 0.5
