"""The processes of a distributed job: how many there are, and that none outlives the failure of another (no torch)."""

from __future__ import annotations

import os
import threading
import time

from resnet_lab.processes import GRACE
from resnet_lab.run_folder import RunFolder


def stop_with_ranks(run: RunFolder) -> None:
    """Where SLURM or torchrun starts the ranks: stop when another one failed before they all met.

    Later a lost connection tells; Lightning's own launcher ends the others itself.
    """
    if int(os.environ.get("WORLD_SIZE") or slurm_tasks()) > 1:
        status = run.read_status()
        before = status["state"], status.get("starts", 0)
        threading.Thread(target=_watch, args=(run, before), daemon=True).start()


def _watch(run: RunFolder, before: tuple[str, int]) -> None:
    while True:
        time.sleep(1)
        status = run.read_status()
        if status["state"] == "failed" and (status["state"], status.get("starts", 0)) != before:
            time.sleep(GRACE / 6)  # the rank that failed is on its way out
            os._exit(1)


def repeat_failure(run: RunFolder) -> None:
    """Where this rank failed before the first one began, which notes that it runs, note the failure again."""
    error, seen, deadline = run.read_status().get("error"), False, time.monotonic() + GRACE
    while time.monotonic() < deadline and not (seen and not run.is_locked()):
        seen = seen or run.is_locked()
        if seen and run.read_status()["state"] == "running":
            run.update_status(state="failed", error=error)
        time.sleep(0.5)


def slurm_tasks() -> int:
    """How many processes `srun` started as this one; 1 for a process of a batch script, whatever `--ntasks` is."""
    if "SLURM_STEP_ID" not in os.environ:
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
