"""Detects damage inside the compressed data of a JPEG, which decoders only warn about or hide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import simplejpeg
from PIL.ImageFile import ImageFile

TRUNCATED = "image file is truncated: it has no end-of-image marker"
BLANK = bytes(32)  # more than a block of coefficients


def damage_of(file: ImageFile, data: bytes, start: int) -> str:
    """Describe the damage inside a gray or color JPEG; empty if none is found.

    Args:
        file: the opened image, not yet decoded.
        data: its content, with an end-of-image marker.
        start: offset of the compressed data.
    """
    if holds_zeros(file, data, start):
        return "damaged JPEG (zeros in place of compressed data)"
    warning = warning_of(data)
    return f"damaged JPEG ({warning})" if warning else ""


def lacks_end(data: bytes, scan: int) -> bool:
    """Return whether a JPEG, with its first scan at byte `scan`, is truncated.

    Compressed data never contains FF D9, the end-of-image marker, so a truncated file lacks the marker. (A thumbnail
    before the scan has its own; cameras may append data after the marker.)
    """
    return data.rfind(b"\xff\xd9", scan) < 0


def warning_of(data: bytes) -> str:
    """Return the warning of libjpeg-turbo, such as a wrong number of blocks; empty if there is none.

    Pillow hides the warning, and OpenCV prints it without the file name. A decoder cannot find damage that leaves the
    number of blocks unchanged.
    """
    gray = partial(simplejpeg.decode_jpeg, data, "GRAY", fastdct=True, fastupsample=True, min_factor=8)
    try:
        gray(strict=True)
    except ValueError as warning:
        with suppress(ValueError):  # an error means an unsupported kind of JPEG, not damage
            gray(strict=False)
            return " ".join(str(warning).split())
    return ""


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
