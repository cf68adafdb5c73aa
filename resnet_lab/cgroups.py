"""Control groups of this process, which limit its memory and cores in a container or a batch job (imports no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

OWN = Path("/proc/self/cgroup")
# versions 2 and 1: controller, folder, files with the microseconds of computing in a period, and with the period
CPU = (
    ("", Path("/sys/fs/cgroup"), "cpu.max", "cpu.max"),
    ("cpu", Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "cpu.cfs_period_us"),
)


def folders(own: Path, controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups from the root to that of this process; some may not exist.

    Args:
        own: the file that names those of this process.
        controller: `memory`, `cpu` or another one of version 1; empty: version 2.
        root: folder of the root. A container may have only this one, which is then its own control group.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    yield from accumulate(paths.get(controller, "/").strip("/").split("/"), Path.joinpath, initial=root)


def most_cores() -> int | None:
    """Return the number of cores whose time this process may use, rounded up; None if nothing limits it."""
    found = []
    for controller, root, quota, period in CPU:
        for folder in folders(OWN, controller, root):
            with suppress(OSError, ValueError, ZeroDivisionError):  # absent, or `max`
                allowed = int((folder / quota).read_text().split()[0])
                every = int((folder / period).read_text().split()[-1])
                if allowed > 0:  # version 1: -1 is no limit
                    found.append(math.ceil(allowed / every))
    return min(found, default=None)
