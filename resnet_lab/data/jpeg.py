"""Damage inside the compressed data of a JPEG: decoders only warn about it, or fill the picture with something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import simplejpeg
from PIL.ImageFile import ImageFile

TRUNCATED = "image file is truncated: it has no end-of-image marker"
BLANK = bytes(32)  # more than a block of coefficients


def damage_of(file: ImageFile, data: bytes, start: int) -> str:
    """What is wrong inside a gray or color JPEG; empty where nothing is found.

    Args:
        file: opened, nothing decoded.
        data: its content, with an end-of-image marker.
        start: where the compressed data begins.
    """
    if holds_zeros(file, data, start):
        return "damaged JPEG (zeros in place of compressed data)"
    warning = warning_of(data)
    return f"damaged JPEG ({warning})" if warning else ""


def lacks_end(data: bytes, scan: int) -> bool:
    """Whether a JPEG, whose first scan begins at byte `scan`, is cut.

    Compressed data never holds FF D9, the end-of-image marker, so it is missing when the end is (a thumbnail before
    the scan has its own); after it cameras may write what they like.
    """
    return data.rfind(b"\xff\xd9", scan) < 0


def warning_of(data: bytes) -> str:
    """What libjpeg-turbo warns of, such as a wrong number of blocks; empty where of nothing.

    Pillow is silent about it, and OpenCV writes it to the terminal without the file. A decoder cannot find damage that
    leaves the number of blocks as it was.
    """
    gray = partial(simplejpeg.decode_jpeg, data, "GRAY", fastdct=True, fastupsample=True, min_factor=8)
    try:
        gray(strict=True)
    except ValueError as warning:
        with suppress(ValueError):  # an error, of a kind of JPEG that it cannot decode, says nothing of damage
            gray(strict=False)
            return " ".join(str(warning).split())
    return ""


def holds_zeros(file: ImageFile, data: bytes, start: int) -> bool:
    """Whether zero bytes stand where no image has them, as after a fault of a disk or of a transfer.

    Zero bits are the shortest code again and again: nothing but coefficients of -1, unless it is the end of a block, as
    for black borders with Huffman tables made for the image (then nothing is found here, nor in progressive files).
    """
    head = start - 8 - 2 * getattr(file, "layers", 0)  # of the scan's header, if the scan is of all channels
    if data[head : head + 2] != b"\xff\xda" or "progressive" in file.info:
        return False
    table = 0x10 | data[head + 6] & 0x0F  # of the first channel's AC coefficients
    zeros = data.find(BLANK, start, data.find(b"\xff\xd9", start)) >= 0
    return zeros and shortest_code(data, table) not in (None, 0)


def shortest_code(data: bytes, table: int) -> int | None:
    """What the first code of a Huffman table stands for; None where the header has no such table."""
    found = None
    for content in _huffman_tables(data):
        while len(content) > 17:
            if content[0] == table:
                found = content[17]
            content = content[17 + sum(content[1:17]) :]
    return found


def _huffman_tables(data: bytes) -> Iterator[bytes]:
    """The contents of the segments of tables before the first scan."""
    place = 2
    while data[place : place + 1] == b"\xff" and (kind := data[place + 1]) != 0xDA:
        if kind == 0xFF:  # a filler
            place += 1
            continue
        following = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if kind == 0xC4:
            yield data[place + 4 : following]
        place = following
