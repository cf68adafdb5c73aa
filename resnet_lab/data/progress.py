"""Shows the progress of long phases: each of them runs through `with_progress`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from resnet_lab.terminal import Progress, left

log = logging.getLogger(__name__)

FIRST = 2.0  # seconds until the first line
LOG_EVERY = 10.0  # seconds between two lines
SPEED_AFTER = 1.0  # seconds after the first item, which includes the start, until a speed means something …
LEFT_AFTER = 2.0  # … and until the time left does
Item = TypeVar("Item")


def speed_text(rate: float) -> str:
    """Return a speed with at most three significant digits: `0.25`, `902000`."""
    return f"{float(f'{rate:.3g}'):.15g}"


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
    start, progress, first, before = time.monotonic(), Progress(), math.inf, 0
    draws = log.isEnabledFor(logging.INFO) and total > 0
    logged = start + FIRST - LOG_EVERY
    if draws and progress.is_due():
        progress.draw(0, [f"{done} 0 of {total}"])
    try:
        for count, item in enumerate(items, 1):
            yield item
            now, number = time.monotonic(), min(count * each, total)
            if count == 1:
                first, before = now, number
            if number == total:  # the speed of all, with the start
                seconds, since = now - start, number
            else:
                seconds, since = now - first, number - before
            speed = [f"{speed_text(since / max(seconds, 1e-9))} {unit}/s"] if seconds >= SPEED_AFTER else []
            rest = [left((total - number) * seconds / since)] if number < total and seconds >= LEFT_AFTER else []
            if (number == total and end) or (now - logged >= LOG_EVERY and not progress.shown):
                progress.close()
                log.info("%s", ", ".join([f"{done} {number} of {total}", *speed, *rest]))
                logged = now
            elif draws and progress.is_due():
                progress.draw(number / total, [f"{done} {number} of {total}", *rest, *speed])
    finally:
        progress.close()
