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
_own: IO[bytes] | None = None  # lock of the GPU that this worker uses
_before: str | None = None  # value of the variable without it


def gpus_here() -> list[str]:
    """Return the names of the GPUs that this process may use, as in `CUDA_VISIBLE_DEVICES`; empty without a driver."""
    if VARIABLE in os.environ:
        names = (name.strip() for name in os.environ[VARIABLE].split(","))
        return [name for name in names if name and not name.startswith("-")]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.split()


def place_on_gpu(trainer: Mapping[str, Any]) -> str:
    """Give this worker a GPU that no other worker uses, for its jobs on one GPU; return a line about it, or nothing.

    A lock file for each GPU shows which are used, also by other sweeps of this user on this machine.

    Args:
        trainer: the group of the configuration. For jobs on several or on chosen devices, the worker returns its GPU.
    """
    global _own, _before
    if trainer["accelerator"] in ("cpu", "mps"):
        return ""
    if trainer["devices"] != 1:
        _return_gpu()
        return ""
    if _own is not None or len(names := gpus_here()) < 2:
        return ""
    try:
        folder = Path(tempfile.gettempdir()) / f"resnet_lab_gpus_{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        for number, name in enumerate(names, 1):
            file = (folder / name.replace("/", "_")).open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _own, _before, os.environ[VARIABLE] = file, os.environ.get(VARIABLE), name
            return f"this worker uses GPU {number} of {len(names)} ({VARIABLE}={name})"
    except OSError as error:
        why = f"cannot lock one in {error.filename or 'TMPDIR'} ({error.strerror})"
        return f"this worker shares the first of {len(names)} GPUs: {why}; set TMPDIR to a folder that can be written"
    return f"all {len(names)} GPUs are in use; this worker shares the first (set hydra.launcher.n_jobs={len(names)})"


def _return_gpu() -> None:
    global _own
    if _own is None:
        return
    _own.close()
    _own = None
    if _before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = _before
