"""Logs the progress of phases that may take minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

LOG_EVERY = 10.0  # seconds between two lines
Item = TypeVar("Item")


def with_progress(items: Iterable[Item], total: int, done: str, each: int = 1) -> Iterator[Item]:
    """Yield the items, and log every few seconds the number of images, images/s and the time left.

    Args:
        items: one item per `each` images; the last may represent fewer.
        total: number of images.
        done: what is done with them, such as `prepared`.
        each: images per item.
    """
    start = logged = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now, number = time.monotonic(), min(count * each, total)
        if now - logged > LOG_EVERY or number == total:
            rate, logged = number / max(now - start, 1e-9), now
            log.info("%s %d of %d, %.1f images/s, %.0f s left", done, number, total, rate, (total - number) / rate)
