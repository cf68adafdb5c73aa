"""A job is a process of its own: how it is started, stopped and never left behind (no torch here)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

BUSY = 75  # exit code of a job that another process is running (EX_TEMPFAIL of sysexits.h)
GRACE = 30.0  # seconds that a job has to stop in, before it is killed
PARENT = "RESNET_LAB_PARENT"  # environment: the process whose end is also ours
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asks this process to stop.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.code = 128 + signum  # what a shell calls it


def stop_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM raise `Stopped` in the main thread, once."""
    for signum in SIGNALS:
        signal.signal(signum, _stop)
    sys.unraisablehook = _stop_all_the_same


def _stop(signum: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the way out is not to be disturbed
    raise Stopped(signum)


def _stop_all_the_same(unraisable: sys.UnraisableHookArgs) -> None:
    """Stop where the signal came during a finalizer, in which Python swallows every exception."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    stop_on_signals()
    # soon, as an exception in this hook is lost, too
    again = threading.Timer(0.1, os.kill, (os.getpid(), unraisable.exc_value.signum))
    again.daemon = True
    again.start()


def run_tied(command: Sequence[str]) -> int:
    """Run a command that stops when this process is told to stop, and when it dies; its exit code.

    Raises:
        Stopped: this process was told to stop; the command has ended.
    """
    # a session of its own: Ctrl-C reaches this process alone, which passes it on
    process = subprocess.Popen(command, env=os.environ | {PARENT: str(os.getpid())}, start_new_session=True)
    try:
        return process.wait()
    except BaseException:  # whatever ends us ends it
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def this_is_the_command() -> None:
    """Let the workers that a launcher starts know whose they are."""
    os.environ[PARENT] = str(os.getpid())


def stop_with_command() -> None:
    """In a worker of a launcher on this machine (joblib): stop when the command dies, which its workers survive."""
    if os.environ.get(PARENT) == str(os.getppid()):
        stop_with_parent()


def stop_with_parent(grace: float = GRACE) -> None:
    """Stop when the process that started this one through `run_tied` dies, and let our own children do likewise.

    Args:
        grace: seconds to stop in, where the main thread hangs.
    """
    parent = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    if parent:
        threading.Thread(target=_watch, args=(int(parent), grace), daemon=True).start()


def _watch(parent: int, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)


def describe_death(code: int) -> str:
    """Return what an exit code says about a process without an error message."""
    if code == -signal.SIGKILL:
        return "killed (SIGKILL), most likely out of memory: lower data.batch_size, data.image_size or data.num_workers"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"died with exit code {code}"
