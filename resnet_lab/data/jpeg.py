"""Detects damage inside the compressed data of a JPEG, which decoders only warn about or hide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import simplejpeg
from PIL.ImageFile import ImageFile

TRUNCATED = "image file is truncated: it has no end-of-image marker"
BLANK = bytes(32)  # more than a block of coefficients


def decode_strictly(file: ImageFile, data: bytes, start: int) -> tuple[str, np.ndarray | None]:
    """Decode a gray or color JPEG once, for the damage inside it and for its pixels.

    Pillow hides the warnings of libjpeg-turbo, such as a wrong number of blocks, and OpenCV prints them without the
    file name. A decoder cannot find damage that leaves the number of blocks unchanged.

    Args:
        file: the opened image, not yet decoded; `draft` has set its size.
        data: its content, with an end-of-image marker.
        start: offset of the compressed data.

    Returns:
        The damage, empty if none is found; and the pixels that Pillow would decode, RGB (H, W, 3), or None if the image
        is damaged or of an unsupported kind.
    """
    if holds_zeros(file, data, start):
        return "damaged JPEG (zeros in place of compressed data)", None
    exact: dict[str, Any] = {
        "fastdct": False,
        "fastupsample": False,
        "min_width": file.width,
        "min_height": file.height,
    }
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", **exact, strict=True)
        return "", pixels if pixels.shape[1::-1] == file.size else None
    except ValueError as warning:
        with suppress(ValueError):  # an error means an unsupported kind of JPEG, not damage
            simplejpeg.decode_jpeg(data, "RGB", **exact, strict=False)
            return f"damaged JPEG ({' '.join(str(warning).split())})", None
    return "", None


def lacks_end(data: bytes, scan: int) -> bool:
    """Return whether a JPEG, with its first scan at byte `scan`, is truncated.

    Compressed data never contains FF D9, the end-of-image marker, so a truncated file lacks the marker. (A thumbnail
    before the scan has its own; cameras may append data after the marker.)
    """
    return data.rfind(b"\xff\xd9", scan) < 0


def holds_zeros(file: ImageFile, data: bytes, start: int) -> bool:
    """Return whether a run of zero bytes replaces compressed data, as after a disk or transfer error.

    Zero bits decode to the shortest code, repeated: a run of coefficients of -1, which no image has. If the shortest
    code is the end of a block (black borders with optimized Huffman tables), or the file is progressive, nothing is
    found.
    """
    head = start - 8 - 2 * getattr(file, "layers", 0)  # offset of the scan's header, if the scan has all channels
    if data[head : head + 2] != b"\xff\xda" or "progressive" in file.info:
        return False
    table = 0x10 | data[head + 6] & 0x0F  # table of the first channel's AC coefficients
    zeros = data.find(BLANK, start, data.find(b"\xff\xd9", start)) >= 0
    return zeros and shortest_code(data, table) not in (None, 0)


def shortest_code(data: bytes, table: int) -> int | None:
    """Return the symbol of the first code of a Huffman table; None if the header has no such table."""
    found = None
    for content in _huffman_tables(data):
        while len(content) > 17:
            if content[0] == table:
                found = content[17]
            content = content[17 + sum(content[1:17]) :]
    return found


def _huffman_tables(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the Huffman table segments before the first scan."""
    place = 2
    while data[place : place + 1] == b"\xff" and (kind := data[place + 1]) != 0xDA:
        if kind == 0xFF:  # a filler
            place += 1
            continue
        following = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if kind == 0xC4:
            yield data[place + 4 : following]
        place = following
