"""One GPU for each worker of a launcher on this machine (imports no torch)."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

VARIABLE = "CUDA_VISIBLE_DEVICES"
_own: IO[bytes] | None = None  # lock of the GPU that this worker uses, held as long as it lives


def gpus_here() -> list[str]:
    """Return the names of the GPUs that this process may use, as in `CUDA_VISIBLE_DEVICES`; empty without a driver."""
    if VARIABLE in os.environ:
        return [name for name in os.environ[VARIABLE].split(",") if name.strip() and not name.startswith("-")]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.split()


def place_on_gpu(trainer: Mapping[str, Any]) -> str:
    """Give this worker a GPU that no other worker uses, for all of its jobs; return a line about it, or nothing.

    A lock file for each GPU shows which are used, also by other sweeps of this user on this machine.

    Args:
        trainer: the group of the configuration. Jobs on the CPU, and jobs on several devices, are not placed.
    """
    global _own
    if _own is not None or trainer["accelerator"] in ("cpu", "mps") or trainer["devices"] != 1:
        return ""
    names = gpus_here()
    if len(names) < 2:
        return ""
    folder = Path(tempfile.gettempdir()) / f"resnet_lab_gpus_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for number, name in enumerate(names, 1):
        file = (folder / name.replace("/", "_")).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _own, os.environ[VARIABLE] = file, name
        return f"this worker uses GPU {number} of {len(names)} ({VARIABLE}={name})"
    return f"all {len(names)} GPUs are in use; this worker shares the first (set hydra.launcher.n_jobs={len(names)})"
