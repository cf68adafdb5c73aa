"""Describes why a job failed in one line, with advice if the cause is not a defect of the program."""

from __future__ import annotations

import errno
import logging
import traceback

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from resnet_lab.errors import NO_ROOM, UserError
from resnet_lab.processes import Stopped
from resnet_lab.run_folder import RunFolder

OUT_OF_MEMORY = (
    *("can't allocate memory", "Cannot allocate memory", "is killed by signal: Killed"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
NO_BATCH = ("DataLoader timed out", "is killed by signal: Bus error", "unable to write to file </torch_")
ONE_VALUE = "Expected more than 1 value per channel when training"
VIEWED = "view size is not compatible with input tensor's size and stride"
LOST = ("Connection closed by peer", "Connection reset by peer")  # gloo's messages when another rank has exited
STOPPED = "stopped by "

log = logging.getLogger(__name__)


def fail(run: RunFolder, error: Exception, rank: int) -> None:
    """Report why a job failed, on the terminal and in its status; an earlier report of another rank stays.

    Args:
        run: the run folder.
        error: the error that ended the job.
        rank: rank of this process.
    """
    message, place = explained(error), f"rank {rank}: " if rank else ""
    if rank and str(run.read_status().get("error")).startswith(place):
        return  # already reported by `Ending`
    if isinstance(error, UserError | MisconfigurationException) or message != plain(error):
        log.error("error: %s", message)
    else:
        log.error(traceback.format_exc())
    if rank and any(sign in str(error) for sign in LOST):
        return  # the first rank exited, for a reason unknown here
    try:
        if isinstance(error, UserError) or run.read_status()["state"] != "failed":
            run.update_status(state="failed", error=place + " ".join(message.split()))
    except OSError as full:
        log.error("error: %s cannot be written: %s", run.status_file, full.strerror)


def note_stop(run: RunFolder, stopped: Stopped, rank: int) -> None:
    """Write to the status that this rank was stopped, since the first rank sees only a lost connection."""
    if run.read_status()["state"] != "failed":
        run.update_status(error=f"rank {rank}: {STOPPED}{stopped}")


def stopped_elsewhere(run: RunFolder, error: Exception) -> bool:
    """Return whether this rank failed because another rank was stopped."""
    return any(sign in str(error) for sign in LOST) and STOPPED in str(run.read_status().get("error"))


def plain(error: Exception) -> str:
    """Return the message of an error, with its type unless the message is meant for users."""
    user = isinstance(error, UserError | MisconfigurationException)
    return str(error) if user else f"{type(error).__name__}: {error}"


def explained(error: Exception) -> str:
    """Return the message of an error, with advice if the cause is not a defect of the program."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        return f"out of memory ({first}): lower data.batch_size, data.image_size or data.num_workers"
    if ONE_VALUE in text:
        return (
            "batch norm got a single value per channel: set data.batch_size to at least 2 on each rank, or enlarge "
            "data.image_size"
        )
    if VIEWED in text:
        return f"{VIEWED}: set trainer.channels_last=false, or use reshape in place of view in your own code"
    if any(sign in text for sign in NO_BATCH):
        return (
            f"the workers return no images ({text.strip().splitlines()[0]}): the disk hangs, or shared memory "
            "is full; enlarge it (docker run --shm-size=1g), or set data.num_workers=0"
        )
    if any(sign in text for sign in LOST):
        reason = "another rank exited without an error message, most likely out of memory"
        return f"{reason}: lower data.batch_size or data.image_size"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        remedy = "free some space and run the same command again; no file was truncated"
        return f"{error.filename or 'disk'}: {error.strerror}; {remedy}"
    if isinstance(error, OSError) and error.filename:
        remedy = "make it readable and writable, then " if error.errno in (errno.EACCES, errno.EPERM) else ""
        return f"{error.filename}: {error.strerror}; {remedy}rerun the same command"
    return plain(error)
