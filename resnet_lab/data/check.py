"""The check that every image file can be read, and what identifies its bytes and pixels; each file is opened once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from resnet_lab.data.jpeg import TRUNCATED, damage_of, lacks_end
from resnet_lab.data.progress import with_progress
from resnet_lab.errors import UserError, count
from resnet_lab.files import write_atomically

MAX_PIXELS = 100_000_000  # of an image, unless `data.max_pixels` says otherwise; more than any fundus camera has
LARGEST = 1 << 30  # bytes of an image file
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit; ours is looked at before anything is decoded

log = logging.getLogger(__name__)


class Rules(NamedTuple):
    """What counts as damage.

    Args:
        max_pixels: of an image; one with more is not decoded.
        strict: whether a JPEG of which the decoder warns is damaged, although it yields an image.
    """

    max_pixels: int = MAX_PIXELS
    strict: bool = True


RULES = Rules()

Verdict = tuple[str, str, str]  # what is wrong with a file, or nothing; the hashes of its bytes and of its pixels
HASH_DIGITS = 16  # hexadecimal digits of the hash of an image's pixels
SMALLEST = 64  # pixels: below, different JPEGs of a small size could decode to equal ones


def digest_of(data: bytes) -> str:
    """What tells one content from another, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def image_hash(size: tuple[int, int], data: bytes) -> str:
    """The hash of an image's pixels, `HASH_DIGITS` digits; equal for files whose names, metadata or packing differ.

    Args:
        size: width and height.
        data: the pixels, RGB, row by row.
    """
    found = hashlib.blake2b(repr(size).encode(), digest_size=HASH_DIGITS // 2)
    found.update(data)
    return found.hexdigest()


def read_file(path: str) -> bytes:
    """The bytes of a regular file: a pipe among the images would never end, and a device neither.

    Raises:
        OSError: it is no such file, larger than `LARGEST`, or cannot be read.
    """
    status = os.stat(path)  # noqa: PTH116 - a third of the time of a Path
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # reading a folder fails by itself
        raise OSError("not a regular file")
    if status.st_size > LARGEST:
        raise OSError(f"{status.st_size >> 20} MB, which is too large for an image file")
    return Path(path).read_bytes()


class PixelBudget:
    """Lets threads decode so many pixels at once; one image alone may have more.

    Args:
        most: pixels.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used, self.change = most, 0, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image."""
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
    """Why an image of this width and height is not decoded; empty where it is."""
    width, height = size
    return f"{width}×{height} pixels, more than data.max_pixels={most}" if width * height > most else ""


def examine(path: str, rules: Rules = RULES) -> Verdict:
    """What is wrong with an image file, or nothing, and the hashes of its bytes and pixels; the file is read once."""
    try:
        data = read_file(path)
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__, "", ""
    defect, decoded = decode(data, rules)
    return defect, digest_of(data), decoded


def decode(data: bytes, rules: Rules = RULES) -> tuple[str, str]:
    """What is wrong with the bytes of an image, or nothing, and the hash of its pixels.

    A JPEG is decoded at 1/8 scale where that leaves `SMALLEST` pixels, which also finds truncated ones. The pixels are
    those that are stored, whatever the EXIF orientation says, as tools that strip EXIF leave them alone.
    """
    try:
        with io.BytesIO(data) as stream, Image.open(stream) as file:
            if file.mode[0] in "IF":
                return f"mode {file.mode}, which has more than 8 bits a pixel; convert it to 8 bits", ""
            if reason := too_many(file.size, rules.max_pixels):
                return reason, ""
            scan = stream.tell()
            if file.format == "JPEG" and lacks_end(data, scan):
                return TRUNCATED, ""
            file.draft("RGB", (max(SMALLEST, file.width // 8), max(SMALLEST, file.height // 8)))
            with AT_ONCE.of(file.width * file.height):
                judged = isinstance(file, JpegImageFile) and rules.strict and file.mode in ("L", "RGB")
                if damage := damage_of(file, data, scan) if judged else "":
                    return f"{damage}; data.strict_jpeg=false takes it as it is", ""
                image = file.convert("RGB")
                ImageOps.exif_transpose(file)
                return "", image_hash(image.size, image.tobytes())
    except UnidentifiedImageError:
        return ("the file is empty" if not data else "no image of a known format"), ""
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        return " ".join(str(error).split()) or type(error).__name__, ""


def check_files(paths: Iterable[str], cache_dir: Path, rules: Rules = RULES) -> pd.DataFrame:
    """Check every file once; the verdicts are kept by path, size and time of change, except of files not read at all.

    Args:
        paths: image files.
        cache_dir: where the verdicts are kept; a folder that cannot be written costs only the repetition.
        rules: what counts as damage.

    Returns:
        One row per path, its index: `defect` (empty where the file can be read), `digest` (of its bytes) and `decoded`
        (the hash of its decoded pixels; empty where it cannot be read).
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
            log.warning("cannot keep the check of the images: %s", error)
    return pd.DataFrame(
        [known[key] for key in keys.values()], index=list(keys), columns=["defect", "digest", "decoded"]
    )


def _key(path: str, rules: str) -> str:
    """Path, size, time of change, and rules other than those of the first version; of a dangling link the path."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return path
    return f"{path}|{status.st_size}|{status.st_mtime_ns}{rules}"


def _known(cache_file: Path) -> dict[str, Verdict]:
    """The verdicts so far; none where the file is missing or damaged."""
    try:
        known = json.loads(cache_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return _of_content(known) if isinstance(known, dict) else {}


def _of_content(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts on what files hold; a permission or a disk may be mended without a change of the file."""
    return {
        key: each for key, each in verdicts.items() if isinstance(each, list | tuple) and len(each) == 3 and each[1]
    }


def _examine_all(paths: list[str], rules: Rules) -> list[Verdict]:
    log.info("checking %s (once)", count(len(paths), "image file"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(with_progress(pool.map(partial(examine, rules=rules), paths), len(paths), "checked"))


def drop_defects(table: pd.DataFrame, on_bad_image: str) -> tuple[pd.DataFrame, int]:
    """Remove rows whose image cannot be read, or stop at them.

    Args:
        table: rows with `path` and `defect`.
        on_bad_image: `error` or `drop`.

    Returns:
        The table without them, and how many they were.

    Raises:
        UserError: there are some and `on_bad_image` is `error`, or all are bad.
    """
    bad = table[table["defect"] != ""]
    if len(bad) and on_bad_image == "error":
        raise UserError(
            f"{bad.iloc[0]['path']}: {bad.iloc[0]['defect']}; {len(bad)} of {len(table)} images cannot be read; "
            "mend them, or set data.on_bad_image=drop to go on without them"
        )
    if len(bad) == len(table) > 0:
        raise UserError(
            f"{bad.iloc[0]['path']}: {bad.iloc[0]['defect']}; none of the {count(len(bad), 'image')} can be read"
        )
    for path, reason in zip(bad["path"][:10], bad["defect"], strict=False):
        log.warning("dropped %s: %s", path, reason)
    return table[table["defect"] == ""].reset_index(drop=True), len(bad)
