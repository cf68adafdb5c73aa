"""Damage inside a JPEG's compressed data is found, and good files pass."""

import io
import itertools

import numpy as np
import pytest
import simplejpeg
from fake_data import photographs, refusal, retinopathy, write_kaggle
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from resnet_lab.data.check import HASH_DIGITS, RULES, decode, image_hash
from resnet_lab.data.jpeg import shortest_code
from resnet_lab.data.prepared import prepare_photograph

PLAIN = {"quality": 90}
REMEDY = "data.strict_jpeg=false accepts it"


def photograph(size=(160, 200), seed=0):
    """Return an eye with noise on a black background."""
    rows, columns = np.mgrid[: size[0], : size[1]] - np.array(size)[:, None, None] / 2
    noise = np.random.default_rng(seed).normal(110, 20, (*size, 3))
    return np.where(np.hypot(rows, columns)[..., None] < 0.45 * min(size), noise, 0).clip(0, 255).astype(np.uint8)


def jpeg(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **{**PLAIN, **options})
    return buffer.getvalue()


def zeroed(data, place, length=60):
    """Return a JPEG with zeros at a relative position of the compressed data."""
    first = data.index(b"\xff\xda") + 14
    start = first + int(place * (len(data) - 2 - length - first))
    return data[:start] + bytes(length) + data[start + length :]


PLACES = [0.0, 0.2, 0.37, 0.5, 0.71, 0.9, 1.0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("mode", "options"), [("RGB", {}), ("L", {}), ("RGB", {"restart_marker_rows": 1})])
def test_zeros_in_the_compressed_data_are_damage(place, mode, options):
    data = jpeg(photograph(), mode, **options)
    assert decode(data)[0] == ""
    assert decode(zeroed(data, place)) == (f"damaged JPEG (zeros in place of compressed data); {REMEDY}", "")


@pytest.mark.parametrize("size", [(523, 901), (512, 512), (300, 217), (131, 150), (40, 64)])
@pytest.mark.parametrize(
    ("mode", "options"), [("RGB", {}), ("L", {}), ("RGB", {"subsampling": 0}), ("RGB", {"progressive": True})]
)
def test_a_strict_check_decodes_once_to_the_pixels_of_pillow(monkeypatch, size, mode, options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data, decoded = jpeg(photograph(size), mode, exif=exif, **options), []
    expected = decode(data, RULES._replace(strict=False))
    assert (expected[0], len(expected[1])) == ("", HASH_DIGITS)
    once = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *own, **keys: decoded.append(keys["strict"]) or once(*own, **keys)
    )
    monkeypatch.setattr(JpegImageFile, "load", lambda _: decoded.append("Pillow"))
    assert decode(data) == expected
    assert decoded == [True]


def test_a_jpeg_that_the_strict_decoder_does_not_support_is_decoded_by_pillow(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("arithmetic coding")

    data = jpeg(photograph())
    expected = decode(data)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert decode(data) == expected
    assert expected[0] == ""


@pytest.mark.parametrize("lost", [30, 300])
def test_bytes_that_are_missing_or_too_many_are_damage(lost):
    data = jpeg(photograph())
    middle = len(data) // 2
    assert decode(data[:middle] + data[middle + lost :])[0].startswith("damaged JPEG (")
    assert decode(data[:middle] + data[middle - lost : middle] + data[middle:])[0].startswith("damaged JPEG (")


OPTIONS = [
    {}, {"quality": 5}, {"quality": 100}, {"optimize": True}, {"progressive": True}, {"subsampling": 0},
    {"restart_marker_blocks": 3}, {"comment": b"eye"},
]  # fmt: skip
SIZES = [(1, 1), (8, 8), (17, 33), (64, 50), (160, 200)]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_good_files_are_not_damaged(mode, options):
    for size, pixels in itertools.product(SIZES, (photograph, lambda size: np.zeros((*size, 3), np.uint8))):
        data = jpeg(pixels(size), mode, **options)
        with Image.open(io.BytesIO(data)) as file:
            file.draft("RGB", (max(64, file.width // 8), max(64, file.height // 8)))
            image = file.convert("RGB")
        for after in (b"", bytes(100), b"\xff\xd9\xff\xd8trailer"):  # what cameras write after the image
            assert decode(data + after) == ("", image_hash(image.size, image.tobytes())), (size, after)


def test_train_prepare_and_predict_find_it(tmp_path):
    root = write_kaggle(tmp_path / "data")
    file = root / "train" / "7_left.jpeg"
    file.write_bytes(zeroed(jpeg(photograph()), 0.4))
    words = f"7_left.jpeg: damaged JPEG (zeros in place of compressed data); {REMEDY}; "
    assert words in refusal(retinopathy(root).table)
    assert words in refusal(photographs(root / "train").table)
    dropping = retinopathy(root, on_bad_image="drop")
    assert dropping.table()[1]["skipped_images"] == 1
    assert "zeros in place" in prepare_photograph(dropping.prepared_set, str(file))[0]["defect"]


def test_the_shortest_code_of_each_table_is_found():
    def table(number, symbols):  # one code of 2 bits, the others of 3
        return bytes([number, 0, 1, len(symbols) - 1, *[0] * 13, *symbols])

    def segment(marker, content):
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content

    two = segment(0xC4, table(0x00, [7, 8, 9]) + table(0x10, [1, 2]))
    comment = segment(0xFE, table(0x11, [66]))  # no table, whatever it contains
    later = segment(0xDA, b"") + segment(0xC4, table(0x12, [5]))
    data = b"\xff\xd8" + comment + two + b"\xff\xff" + segment(0xC4, table(0x11, [3, 4])) + later
    assert [shortest_code(data, each) for each in (0x00, 0x10, 0x11, 0x12)] == [7, 1, 3, None]
