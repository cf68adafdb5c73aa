"""Says how far a long phase is: every command has a line for each phase that may take minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

SAY_EVERY = 10.0  # seconds between two lines
Item = TypeVar("Item")


def with_progress(items: Iterable[Item], total: int, done: str, each: int = 1) -> Iterator[Item]:
    """Hand the items on, and log every few seconds how many images there were, how fast, and how long it will take.

    Args:
        items: one for `each` images; the last may stand for fewer.
        total: number of images.
        done: what happened to them, as `prepared`.
        each: images per item.
    """
    start = said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now, number = time.monotonic(), min(count * each, total)
        if now - said > SAY_EVERY or number == total:
            rate, said = number / max(now - start, 1e-9), now
            log.info("%s %d of %d, %.1f images/s, %.0f s left", done, number, total, rate, (total - number) / rate)
