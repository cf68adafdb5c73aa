"""Checks that every image file can be read, and hashes its bytes and pixels; each file is opened once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from resnet_lab.data.jpeg import TRUNCATED, decode_strictly, lacks_end
from resnet_lab.data.progress import with_progress
from resnet_lab.errors import UserError, count
from resnet_lab.files import write_atomically
from resnet_lab.processes import cores

MAX_PIXELS = 100_000_000  # default of `data.max_pixels`; more than any fundus camera has
LARGEST = 1 << 30  # bytes of an image file
Image.MAX_IMAGE_PIXELS = None  # disables Pillow's own limit; ours is checked before decoding

log = logging.getLogger(__name__)


class Rules(NamedTuple):
    """Rules for what counts as damage.

    Args:
        max_pixels: limit per image; a larger image is not decoded.
        strict: whether a JPEG counts as damaged if the decoder warns about it but still yields an image.
    """

    max_pixels: int = MAX_PIXELS
    strict: bool = True


RULES = Rules()
DEEP = re.compile(r"(L|LA|RGB|RGBA|RGBX|CMYK);16")  # how Pillow names the bits of such a file

Verdict = tuple[str, str, str]  # defect (may be empty), hash of the bytes, hash of the pixels
HASH_DIGITS = 16  # hexadecimal digits of the hash of an image's pixels
SMALLEST = 64  # pixels a side; at smaller scales, different JPEGs could decode to equal images


def digest_of(data: bytes | memoryview) -> str:
    """Return a hash of bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def image_hash(size: tuple[int, int], data: bytes | memoryview) -> str:
    """Return the hash of an image's pixels, `HASH_DIGITS` digits, which ignores name, metadata and compression.

    Args:
        size: width and height.
        data: the pixels, RGB, row by row.
    """
    found = hashlib.blake2b(repr(size).encode(), digest_size=HASH_DIGITS // 2)
    found.update(data)
    return found.hexdigest()


def read_file(path: str) -> bytes:
    """Return the bytes of a regular file; reading a pipe or a device might never end.

    Raises:
        OSError: the file is not regular, larger than `LARGEST`, or cannot be read.
    """
    status = os.stat(path)  # noqa: PTH116 - a third of the time of a Path
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # reading a folder raises its own error
        raise OSError("not a regular file")
    if status.st_size > LARGEST:
        raise OSError(f"{status.st_size >> 20} MB, which is too large for an image file")
    return Path(path).read_bytes()


class PixelBudget:
    """Limit of the pixels that all threads decode at once; a single image may exceed it.

    Args:
        most: pixels.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used, self.change = most, 0, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait until the budget has room for an image of so many pixels."""
        with self.change:
            self.change.wait_for(lambda: self.used == 0 or self.used + pixels <= self.most)
            self.used += pixels
        try:
            yield
        finally:
            with self.change:
                self.used -= pixels
                self.change.notify_all()


AT_ONCE = PixelBudget(200_000_000)  # some 2 GB
os.register_at_fork(after_in_child=lambda: AT_ONCE.__init__(AT_ONCE.most))  # type: ignore[misc]


def too_many(size: tuple[int, int], most: int) -> str:
    """Return why an image of this width and height is not decoded; empty if it is."""
    width, height = size
    return f"{width}×{height} pixels, more than data.max_pixels={most}" if width * height > most else ""


def _depth_of_ppm(file: Image.Image) -> int:
    tiles: Any = getattr(file, "tile", ())
    largest = [part for *_, args in tiles if isinstance(args, tuple) for part in args if isinstance(part, int)]
    return max(largest, default=255).bit_length()


def _depth_of_tiff(file: Image.Image) -> int:
    bits: Any = getattr(file, "tag_v2", {}).get(258, 8)  # BitsPerSample
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _depth_of_jpeg2000(file: Image.Image) -> int:
    """Return the bits per channel that the header of a JPEG 2000 file gives; 0 if it is not found."""
    stream: Any = getattr(file, "fp")  # noqa: B009 - not in Pillow's types
    place = stream.tell()
    stream.seek(0)
    head = stream.read(4096)
    stream.seek(place)
    start = head.find(b"\xff\x4f\xff\x51")  # ISO/IEC 15444-1: SOC and SIZ, whose 43rd byte is the first depth
    return (head[start + 42] & 127) + 1 if 0 <= start < len(head) - 42 else 0


def too_deep(file: Image.Image) -> str:
    """Return why an image is not read: it has more than 8 bits per channel, and Pillow would drop some; else empty."""
    parts = [
        part for _, _, _, args in getattr(file, "tile", ()) for part in (args if isinstance(args, tuple) else (args,))
    ]
    deep = [file.mode] if file.mode[0] in "IF" else [str(part) for part in parts if DEEP.match(str(part))]
    bits = {"PPM": _depth_of_ppm, "TIFF": _depth_of_tiff, "JPEG2000": _depth_of_jpeg2000}.get(str(file.format))
    if not deep and bits and (depth := bits(file)) > 8:
        deep = [f"{file.mode};{depth}"]
    return f"mode {deep[0]}, which has more than 8 bits per pixel; convert it to 8 bits" if deep else ""


def examine(path: str, rules: Rules = RULES) -> Verdict:
    """Return the defect of an image file (may be empty) and the hashes of its bytes and pixels; reads the file once."""
    try:
        data = read_file(path)
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__, "", ""
    defect, decoded = decode(data, rules)
    return defect, digest_of(data), decoded


def decode(data: bytes, rules: Rules = RULES) -> tuple[str, str]:
    """Return the defect of an encoded image (may be empty) and the hash of its pixels.

    A JPEG is decoded at 1/8 scale if that leaves `SMALLEST` pixels; truncated files are found at this scale, too. The
    hash ignores the EXIF orientation: tools that strip EXIF do not rotate the stored pixels.
    """
    try:
        with io.BytesIO(data) as stream, Image.open(stream) as file:
            if reason := too_deep(file):
                return reason, ""
            if reason := too_many(file.size, rules.max_pixels):
                return reason, ""
            scan = stream.tell()
            if file.format == "JPEG" and lacks_end(data, scan):
                return TRUNCATED, ""
            file.draft("RGB", (max(SMALLEST, file.width // 8), max(SMALLEST, file.height // 8)))
            with AT_ONCE.of(file.width * file.height):
                judged = isinstance(file, JpegImageFile) and rules.strict and file.mode in ("L", "RGB")
                damage, pixels = decode_strictly(file, data, scan) if judged else ("", None)
                if damage:
                    return f"{damage}; data.strict_jpeg=false accepts it", ""
                if pixels is not None:
                    file.getexif()  # its header may be damaged
                    return "", image_hash(file.size, pixels.data)
                image = file.convert("RGB")
                ImageOps.exif_transpose(file)
                return "", image_hash(image.size, image.tobytes())
    except UnidentifiedImageError:
        return ("the file is empty" if not data else "no image of a known format"), ""
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        return " ".join(str(error).split()) or type(error).__name__, ""


def check_files(paths: Iterable[str], cache_dir: Path, rules: Rules = RULES) -> pd.DataFrame:
    """Check every file once; results are cached by path, size and modification time, unless a file was unreadable.

    Args:
        paths: image files.
        cache_dir: folder of the cache; if it is not writable, the check is repeated each time.
        rules: what counts as damage.

    Returns:
        One row per path (the index): `defect` (empty if the file can be read), `digest` (of its bytes) and `decoded`
        (the hash of its decoded pixels; empty if it cannot be read).
    """
    limit = "" if rules.max_pixels == MAX_PIXELS else f"|{rules.max_pixels}"
    keys = {path: _key(path, limit + "|strict" * rules.strict) for path in paths}
    folders = "\n".join(sorted({str(Path(path).parent) for path in keys}))
    cache_file = cache_dir / f"checked_{hashlib.sha256(folders.encode()).hexdigest()[:16]}.json"
    known = _known(cache_file)
    new = [path for path, key in keys.items() if key not in known]
    if new:
        known |= dict(zip((keys[path] for path in new), _examine_all(new, rules), strict=True))
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_file, json.dumps(_of_content(known), ensure_ascii=False))
        except OSError as error:
            log.warning("cannot cache the check of the images: %s", error)
    return pd.DataFrame(
        [known[key] for key in keys.values()], index=list(keys), columns=["defect", "digest", "decoded"]
    )


def _key(path: str, rules: str) -> str:
    """Return path, size, modification time and non-default rules as a cache key; for a dangling link the path."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return path
    depth = "" if path.lower().endswith((".jpg", ".jpeg")) else "|8"  # older versions did not find all 16 bits
    return f"{path}|{status.st_size}|{status.st_mtime_ns}{rules}{depth}"


def _known(cache_file: Path) -> dict[str, Verdict]:
    """Return the cached verdicts; none if the cache file is missing or damaged."""
    try:
        known = json.loads(cache_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return _of_content(known) if isinstance(known, dict) else {}


def _of_content(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """Keep only verdicts on a file's content: permissions or a disk can be repaired without changing the file."""
    return {
        key: each for key, each in verdicts.items() if isinstance(each, list | tuple) and len(each) == 3 and each[1]
    }


def _examine_all(paths: list[str], rules: Rules) -> list[Verdict]:
    log.info("checking %s (once)", count(len(paths), "image file"))
    with ThreadPoolExecutor(cores()) as pool:
        return list(with_progress(pool.map(partial(examine, rules=rules), paths), len(paths), "checked"))


def drop_defects(table: pd.DataFrame, on_bad_image: str) -> tuple[pd.DataFrame, int]:
    """Remove rows with an unreadable image, or refuse them.

    Args:
        table: rows with `path` and `defect`.
        on_bad_image: `error` or `drop`.

    Returns:
        The remaining rows, and the number of removed rows.

    Raises:
        UserError: there are bad images and `on_bad_image` is `error`, or all are bad.
    """
    bad = table[table["defect"] != ""]
    if len(bad) and on_bad_image == "error":
        raise UserError(
            f"{bad.iloc[0]['path']}: {bad.iloc[0]['defect']}; {len(bad)} of {len(table)} images cannot be read; "
            "repair them, or set data.on_bad_image=drop to continue without them"
        )
    if len(bad) == len(table) > 0:
        none = f"none of the {len(bad)} images can be read" if len(bad) > 1 else "it is the only image"
        raise UserError(f"{bad.iloc[0]['path']}: {bad.iloc[0]['defect']}; {none}")
    for path, reason in zip(bad["path"][:10], bad["defect"], strict=False):
        log.warning("dropped %s: %s", path, reason)
    return table[table["defect"] == ""].reset_index(drop=True), len(bad)
