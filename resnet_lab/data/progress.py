"""Shows the progress of long phases: each of them runs through `with_progress`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from resnet_lab.terminal import Progress, left

log = logging.getLogger(__name__)

FIRST = 2.0  # seconds until the first line
LOG_EVERY = 10.0  # seconds between two lines
Item = TypeVar("Item")


def with_progress(
    items: Iterable[Item],
    total: int,
    done: str,
    each: int = 1,
    unit: str = "images",
    end: bool = True,
) -> Iterator[Item]:
    """Yield the items, and show the number of images, images/s and the time left.

    A terminal shows a bar. Without a terminal, a line is logged after two seconds and then every ten seconds.

    Args:
        items: one item per `each` images; the last may represent fewer.
        total: number of images.
        done: what is done with them, such as `prepared`.
        each: images per item.
        unit: name of what is counted.
        end: whether to log a line at the end.
    """
    start, progress = time.monotonic(), Progress()
    draws = log.isEnabledFor(logging.INFO) and total > 0
    logged = start + FIRST - LOG_EVERY
    if draws and progress.is_due():
        progress.draw(0, [f"{done} 0 of {total}"])
    try:
        for count, item in enumerate(items, 1):
            yield item
            now, number = time.monotonic(), min(count * each, total)
            rate = number / max(now - start, 1e-9)
            if (number == total and end) or (now - logged >= LOG_EVERY and not progress.shown):
                progress.close()
                rest = f", {left((total - number) / rate)}" if number < total else ""
                log.info("%s %d of %d, %.1f %s/s%s", done, number, total, rate, unit, rest)
                logged = now
            elif draws and progress.is_due():
                parts = [f"{done} {number} of {total}", left((total - number) / rate), f"{rate:.1f} {unit}/s"]
                progress.draw(number / total, parts)
    finally:
        progress.close()
