"""Waiting for other processes, on slow machines under load too."""

import time
from collections.abc import Callable

PATIENCE = 600  # seconds; only what hangs reaches it, so what must be ended from outside lasts longer


def wait_for(condition: Callable[[], object]) -> None:
    """Return once a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
