"""Damage inside the compressed data of a JPEG: decoders only warn about it, or fill the picture with something else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from PIL.JpegImagePlugin import JpegImageFile

TRUNCATED = "image file is truncated: it has no end-of-image marker"
LEFT_OVER = "image file is damaged: compressed data is left over after the last row"
ZEROS = "image file is damaged: zeros in place of compressed data"

LOOKAHEAD = b"\xff\x00" * 8  # what a decoder may want to see after the last row: 64 bits that are no codes
BLANK = bytes(32)  # more than a block of coefficients


@dataclass(frozen=True)
class Scan:
    """The compressed data of a JPEG that has all of it in one piece."""

    start: int
    end: int  # of the data: where the end-of-image marker begins
    table: int  # the Huffman table of the first channel's AC coefficients


def look_inside(file: JpegImageFile, stream: io.BytesIO, data: bytes) -> tuple[str, int]:
    """What is wrong with the compressed data of a JPEG, as far as it is seen before decoding.

    Args:
        file: just opened, nothing decoded.
        stream: what `file` reads; it is changed so that decoding shows the rest.
        data: its content.

    Returns:
        The damage, or nothing; and the last byte of the data, without which a good file is not decoded (0: not known).
    """
    if lacks_end(data, stream.tell()):
        return TRUNCATED, 0
    scan = only_scan(file, data, stream.tell())
    if scan is None:
        return "", 0
    if holds_zeros(data, scan):
        return ZEROS, 0
    hold_back_end(file, stream, scan)
    return "", scan.end - 1


def lacks_end(data: bytes, scan: int) -> bool:
    """Whether a JPEG, whose first scan begins at byte `scan`, is cut.

    Compressed data never holds FF D9, the end-of-image marker, so it is missing when the end is (a thumbnail before
    the scan has its own); after it cameras may write what they like.
    """
    return data.rfind(b"\xff\xd9", scan) < 0


def only_scan(file: JpegImageFile, data: bytes, start: int) -> Scan | None:
    """The compressed data of an opened JPEG; None where there are several scans, as in progressive files.

    Args:
        file: just opened.
        data: its content, with an end-of-image marker.
        start: where the compressed data begins.
    """
    head = start - 8 - 2 * file.layers  # of the scan's header, if the scan is of all channels
    if data[head : head + 2] != b"\xff\xda" or "progressive" in file.info:
        return None
    return Scan(start, data.find(b"\xff\xd9", start), 0x10 | data[head + 6] & 0x0F)


def holds_zeros(data: bytes, scan: Scan) -> bool:
    """Whether zero bytes stand where no image has them, as after a fault of a disk or of a transfer.

    Zero bits are the shortest code again and again: nothing but coefficients of -1, unless it is the end of a block, as
    for black borders with Huffman tables made for the image (then nothing is found here).
    """
    return data.find(BLANK, scan.start, scan.end) >= 0 and shortest_code(data, scan.table) not in (None, 0)


def hold_back_end(file: JpegImageFile, stream: io.BytesIO, scan: Scan) -> None:
    """Have Pillow decode without the last byte of the compressed data first, and give it that byte afterwards.

    A good file is not decoded before that byte is there, and needs no more. Damage makes blocks longer or shorter: a
    decoder is done before, or is short of data, which is Pillow's error.
    """
    stream.seek(scan.end)
    stream.truncate()
    stream.write(LOOKAHEAD)
    file.decodermaxblock = scan.end - 1  # what is read at once


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
