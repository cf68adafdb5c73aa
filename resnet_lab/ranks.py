"""Processes (ranks) of a distributed job: count them, and stop all when one fails (imports no torch)."""

from __future__ import annotations

import os
import threading
import time

from resnet_lab.processes import GRACE
from resnet_lab.run_folder import RunFolder


def stop_with_ranks(run: RunFolder) -> None:
    """Stop this rank when another one fails before the process group exists, if SLURM or torchrun starts the ranks.

    Afterwards a lost connection stops the others. Lightning's own launcher stops its ranks itself.

    Args:
        run: run folder of the job.
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
            time.sleep(GRACE / 6)  # time for the failed rank to exit
            os._exit(1)


def repeat_failure(run: RunFolder) -> None:
    """Write the failure of this rank again if the first rank starts later and overwrites it with `running`.

    Args:
        run: run folder of the job.
    """
    error, seen, deadline = run.read_status().get("error"), False, time.monotonic() + GRACE
    while time.monotonic() < deadline and not (seen and not run.is_locked()):
        seen = seen or run.is_locked()
        if seen and run.read_status()["state"] == "running":
            run.update_status(state="failed", error=error)
        time.sleep(0.5)


def is_alone() -> bool:
    """Return whether no launcher started this process as one of several ranks."""
    ranks = any(key in os.environ for key in ("RANK", "LOCAL_RANK", "JSM_NAMESPACE_RANK"))
    return not ranks and int(os.environ.get("WORLD_SIZE") or slurm_tasks()) == 1


def slurm_tasks() -> int:
    """Return the number of processes that `srun` started; 1 in a batch script, whatever its `--ntasks` is."""
    if "SLURM_STEP_ID" not in os.environ:
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
