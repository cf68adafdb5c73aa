"""The check for unreadable images, and the hash that finds identical ones."""

import io
import json
import logging
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from fake_data import encoded, refusal
from PIL import ExifTags, Image

from resnet_lab.data import check
from resnet_lab.data.check import HASH_DIGITS, PixelBudget, Rules, check_files, digest_of, drop_defects, examine
from resnet_lab.data.prepared import PreparedSet, prepare_photograph
from resnet_lab.data.reader import Recipe, read_image


def defects(paths, cache):
    """Return the defective files with their defects."""
    found = check_files(paths, cache)["defect"]
    return found[found != ""].to_dict()


def noise(height=200, width=200):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fundus(left, top, width, height):
    """Return a flesh-colored ellipse inside this box, on a black frame of 120 × 90 pixels with camera noise."""
    image = np.random.default_rng(0).integers(0, 8, (90, 120, 3), dtype=np.uint8)
    center, axes = (left + (width - 1) / 2, top + (height - 1) / 2), (width / 2, height / 2)
    y, x = np.mgrid[:90, :120]
    image[((x - center[0]) / axes[0]) ** 2 + ((y - center[1]) / axes[1]) ** 2 <= 1] = (180, 90, 40)
    return image


def test_half_a_jpeg_passes_only_a_check_of_its_header(save, tmp_path):
    path = save(noise(), "image.jpeg")
    assert examine(path)[:2] == ("", digest_of((tmp_path / "image.jpeg").read_bytes()))
    data = (tmp_path / "image.jpeg").read_bytes()
    (tmp_path / "image.jpeg").write_bytes(data[: len(data) // 2])
    with Image.open(path) as file:
        file.verify()
    assert examine(path)[0].startswith("image file is truncated")


@pytest.mark.parametrize(
    ("data", "seen"), [(b"", "the file is empty"), (b"\xff\xd8\xff\xe0 text", "Truncated File Read")]
)
def test_other_files_are_not_images(tmp_path, data, seen):
    (tmp_path / "x.jpeg").write_bytes(data)
    assert examine(str(tmp_path / "x.jpeg"))[0].startswith(seen)


def test_half_a_png_and_a_folder_are_defects(save, tmp_path):
    path = save(noise())
    data = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(data[: len(data) // 2])
    assert "truncated" in examine(path)[0]
    assert examine(str(tmp_path)) == ("Is a directory", "", "")


def test_sixteen_bits_would_be_clipped_to_white(save):
    path = save(np.full((8, 8), 30_000, np.uint16))
    assert examine(path)[0] == "mode I;16, which has more than 8 bits per pixel; convert it to 8 bits"


def test_defects_with_their_reasons(save, tmp_path):
    good = save(noise(40, 40), "good.jpeg")
    (tmp_path / "bad.jpeg").write_bytes(b"x")
    found = defects([good, str(tmp_path / "bad.jpeg")], tmp_path / "cache")
    assert found == {str(tmp_path / "bad.jpeg"): "no image of a known format"}


def test_identical_files_have_one_digest(save, tmp_path):
    paths = [save(noise(8, 8), "a.png"), save(noise(8, 8), "b.png"), save(noise(8, 9), "c.png")]
    digests = check_files(paths, tmp_path / "cache")["digest"].tolist()
    assert digests[0] == digests[1] != digests[2]
    assert check_files(paths, tmp_path / "cache")["digest"].tolist() == digests


@pytest.fixture
def checked(monkeypatch):
    """Return the list of paths that are decoded."""
    paths = []

    def count(path, **limit):
        paths.append(path)
        return examine(path, **limit)

    monkeypatch.setattr(check, "examine", count)
    return paths


def test_verdicts_are_cached_until_the_file_changes(save, tmp_path, checked):
    cache, bad = tmp_path / "cache", tmp_path / "b.png"
    paths = [save(noise(8, 8), "a.png"), str(bad)]
    bad.write_bytes(b"x")
    assert list(defects(paths, cache)) == [str(bad)]
    assert sorted(checked) == sorted(paths)
    checked.clear()
    assert list(defects(paths, cache)) == [str(bad)]  # defects are cached too
    assert checked == []
    save(noise(8, 8), "b.png")
    paths.append(save(noise(8, 8), "c.png"))
    assert defects(paths, cache) == {}
    assert sorted(checked) == paths[1:]


def test_same_size_at_another_time_is_another_file(save, tmp_path, checked):
    path = save(noise(8, 8))
    data = (tmp_path / "image.png").read_bytes()
    assert defects([path], tmp_path / "cache") == {}
    (tmp_path / "image.png").write_bytes(bytes(len(data)))
    os.utime(path, ns=(0, Path(path).stat().st_mtime_ns + 1))  # file systems may have coarse clocks
    assert list(defects([path], tmp_path / "cache")) == [path]


def test_an_unwritable_cache_gives_a_warning(save, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert defects([save(noise(8, 8))], tmp_path / "cache") == {}
    assert "cannot cache the check of the images" in caplog.text


@pytest.fixture
def half_bad(save, tmp_path):
    (tmp_path / "bad.jpeg").write_bytes(b"x")
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "jpeg")
    (tmp_path / "half.jpeg").write_bytes(buffer.getvalue()[:9000])
    names = ["bad.jpeg", "good.png", "half.jpeg"]
    save(noise(8, 8), "good.png")
    table = pd.DataFrame({"image": names, "path": [str(tmp_path / name) for name in names]})
    return table.join(check_files(table["path"], tmp_path / "cache"), on="path")


def test_bad_image_is_an_error(half_bad, tmp_path):
    message = refusal(drop_defects, half_bad, "error")
    assert message.startswith(f"{tmp_path / 'bad.jpeg'}: no image of a known format")
    assert "2 of 3 images cannot be read" in message
    assert "data.on_bad_image=drop" in message


def test_bad_images_are_dropped_counted_and_named(half_bad, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        kept, count = drop_defects(half_bad, "drop")
    assert (kept["image"].tolist(), list(kept.index), count) == (["good.png"], [0], 2)
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        f"dropped {tmp_path / 'bad.jpeg'}",
        f"dropped {tmp_path / 'half.jpeg'}",
    ]


@pytest.mark.parametrize("on_bad_image", ["error", "drop"])
def test_good_images_stay(half_bad, tmp_path, on_bad_image):
    kept, count = drop_defects(half_bad.iloc[[1]], on_bad_image)
    assert (kept["image"].tolist(), count) == (["good.png"], 0)


def test_a_dangling_link_is_a_defect_and_a_damaged_cache_costs_only_time(tmp_path):
    link = tmp_path / "gone.jpeg"
    link.symlink_to(tmp_path / "nothing.jpeg")
    cache = tmp_path / "cache"
    assert set(defects([str(link)], cache)) == {str(link)}
    (cache_file,) = cache.iterdir()
    for damaged in ('{"a', '{"a": null}', '{"a": [1]}'):
        cache_file.write_text(damaged)
        assert set(defects([str(link)], cache)) == {str(link)}


def test_the_check_refuses_what_the_reader_refuses(tmp_path):
    path = tmp_path / "padded.jpeg"
    path.write_bytes(encoded("a", ".jpeg")[:-2] + bytes(50))  # zeros replace the end
    found, *_ = examine(str(path))
    assert found == "image file is truncated: it has no end-of-image marker"
    with pytest.raises(OSError, match=found):
        read_image(str(path), Recipe(16, "square", False, False))


def photograph(**options):
    """Return a JPEG of 64 × 64 pixels as bytes."""
    file = io.BytesIO()
    mode = options.pop("mode", "RGB")
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(colors).convert(mode).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def zeroed(data):
    """Return a JPEG with 60 bytes of its compressed data set to 0."""
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    return data[:middle] + bytes(60) + data[middle + 60 :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"subsampling": 0}])
def test_a_jpeg_of_which_the_decoder_warns_is_damaged(tmp_path, options):
    (tmp_path / "image.jpeg").write_bytes(zeroed(photograph(**options)))
    path, cache = str(tmp_path / "image.jpeg"), tmp_path / "cache"
    (found,) = check_files([path], cache)["defect"]
    assert found.startswith("damaged JPEG (")
    assert "\n" not in found
    assert list(check_files([path], cache, Rules(strict=False))["defect"]) == [""]
    assert list(check_files([path], cache)["defect"]) == [found]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"optimize": True}])
@pytest.mark.parametrize("trailer", [b"", bytes(200), b"SEFT" * 50])
def test_bytes_that_cameras_append_are_not_damage(options, trailer):
    assert check.decode(photograph(**options) + trailer)[0] == ""


def test_data_with_only_bad_images_are_refused(tmp_path):
    table = pd.DataFrame({"path": ["a", "b"], "defect": ["the file is empty", "truncated"]})
    assert refusal(drop_defects, table, "drop") == "a: the file is empty; none of the 2 images can be read"
    assert refusal(drop_defects, table[:1], "drop") == "a: the file is empty; it is the only image"


def pixels(path):
    found, _, digest = examine(str(path))
    assert found == ""
    assert len(digest) == HASH_DIGITS
    return digest


def test_pixel_hashes_do_not_depend_on_name_metadata_or_compression(save, tmp_path):
    image = Image.fromarray(noise(90, 60))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "camera"
    lossless = [
        save(image, "a.png"),
        save(image, "b.png", compress_level=0),
        save(image, "c.bmp"),
        save(image, "d.tif"),
    ]
    jpegs = [save(image, "a.jpeg"), save(image, "b.jpeg", exif=exif), save(image, "c.jpeg", optimize=True)]
    assert len({pixels(path) for path in lossless}) == 1
    assert len({pixels(path) for path in jpegs}) == 1
    assert len({digest_of(Path(path).read_bytes()) for path in lossless + jpegs}) == 7


def test_pixel_hashes_differ_if_the_images_do(save):
    image = noise(90, 60)
    changed = image.copy()
    changed[40, 30, 1] ^= 1
    others = [save(changed, "changed.png"), save(image.reshape(60, 90, 3), "shape.png"), save(image, "a.jpeg")]
    others += [save(image, "worse.jpeg", quality=50), save(image[::-1], "turned.png")]
    assert len({pixels(path) for path in [save(image), *others]}) == 6


def test_small_jpegs_that_differ_in_details_have_different_hashes(save):
    image = np.full((16, 16, 3), 128, np.uint8)
    image[::2, ::2] = 255
    image[1::2, 1::2] = 255
    paths = [save(image, "a.jpeg", quality=95), save(np.roll(image, 1, axis=1), "b.jpeg", quality=95)]
    with Image.open(paths[0]) as one, Image.open(paths[1]) as other:
        one.draft("RGB", (2, 2))
        other.draft("RGB", (2, 2))
        assert one.tobytes() == other.tobytes()  # at 1/8 scale
    assert pixels(paths[0]) != pixels(paths[1])


def test_a_cache_of_an_older_version_is_ignored(save, tmp_path, checked):
    path, cache = save(noise(8, 8)), tmp_path / "cache"
    check_files([path], cache)
    (file,) = cache.iterdir()
    older = {key: verdict[:2] for key, verdict in json.loads(file.read_text()).items()}
    file.unlink()
    file.with_name(file.name.replace("checked", "examined")).write_text(json.dumps(older))
    checked.clear()
    assert check_files([path], cache)["decoded"].tolist() == [pixels(path)]
    assert checked == [path]


# ---- endless files, and files that unpack to more than the memory ----


def bomb(file: Path, side: int = 13_300) -> str:
    """Write a small PNG with very many pixels of one bit."""
    Image.new("1", (side, side)).save(file)
    return str(file)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.png"))
        names = [str(tmp_path / f"{name}.png") for name in ("pipe", "zero", "folder", "socket")]
        assert list(check_files(names, tmp_path / "cache")["defect"]) == [
            "not a regular file",
            "not a regular file",
            "Is a directory",
            "not a regular file",
        ]
        for name in (names[0], names[1], names[3]):
            with pytest.raises(OSError, match="not a regular file"):
                read_image(name, Recipe(8, "square", False, False))


def test_an_image_with_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    path, decoded = bomb(tmp_path / "bomb.png"), []
    monkeypatch.setattr(Image.Image, "convert", lambda *_: decoded.append(1))
    assert examine(path)[0] == "13300×13300 pixels, more than data.max_pixels=100000000"
    assert prepare_photograph(PreparedSet(tmp_path, Recipe(8, "square", False, False), tmp_path), path)[0][
        "defect"
    ] == ("13300×13300 pixels, more than data.max_pixels=100000000")
    assert decoded == []


def test_the_limit_of_pixels_is_a_key_and_part_of_the_verdict(tmp_path):
    path = bomb(tmp_path / "image.png", 20)
    for most, defect in ((400, ""), (399, "20×20 pixels, more than data.max_pixels=399"), (400, "")):
        assert list(check_files([path], tmp_path / "cache", Rules(most))["defect"]) == [defect]


def test_threads_decode_no_more_pixels_at_once_than_memory_allows():
    budget, running, most = PixelBudget(10), [], []

    def decode(pixels):
        with budget.of(pixels):
            running.append(pixels)
            most.append(sum(running))
            time.sleep(0.002)
            running.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [4, 5, 6, 25, 3, 3, 4, 9, 1] * 3))
    assert budget.used == 0
    assert max(each for each in most if each != 25) <= 10
    assert 25 in most  # a larger image is decoded alone


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 3), (".png", 4), (".tiff", 3), (".ppm", 3), (".jp2", 3)])
def test_colors_of_sixteen_bits_are_not_cut_to_eight(tmp_path, suffix, channels):
    pixels = np.random.default_rng(0).integers(0, 4096, (80, 96, channels)).astype(np.uint16)  # 12 bits: nearly black
    file = str(tmp_path / f"a{suffix}")
    assert cv2.imwrite(file, pixels)
    assert "more than 8 bits per pixel; convert it to 8 bits" in examine(file)[0]
    with pytest.raises(ValueError, match="more than 8 bits per pixel"):
        read_image(file, Recipe(8, "square", eye_crop=False, local_mean=False))
    assert cv2.imwrite(file, (pixels >> 4).astype(np.uint8))
    assert examine(file)[0] == ""
