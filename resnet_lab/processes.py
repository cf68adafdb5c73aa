"""Start and stop the process of a job, so that none is left running (imports no torch)."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from resnet_lab import cgroups

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BUSY = 75  # exit code: another process is running the job (EX_TEMPFAIL in sysexits.h)
WORTH_A_FORK = 4  # items; fewer are done sooner than a process is forked
GRACE = 30.0  # seconds for a job to stop before it is killed
DATA_SHOWN = "RESNET_LAB_DATA_SHOWN"  # environment variable: not empty if an earlier job described the same data
PARENT = "RESNET_LAB_PARENT"  # environment variable: ID of the process with which this one stops
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Item = TypeVar("Item")
Result = TypeVar("Result")
began = time.time()  # when this process began, before PyTorch is imported
tied = False  # whether this process stops with the one that started it
started_by = "process"  # how this process began: as a new process, or by a fork of `resnet_lab.supervisor`


class Stopped(BaseException):
    """This process received a signal to stop.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.code = 128 + signum  # exit code, as in a shell


def end(code: int) -> NoReturn:
    """End this process as `sys.exit` does, without freeing its objects one by one, which takes a second with PyTorch.

    Args:
        code: exit code; 0 becomes 1 if the last lines cannot be written.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()  # logging.shutdown and those of multiprocessing are among them
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream and not stream.closed:
                stream.flush()
    except OSError as error:
        os.write(2, f"error: cannot write the last lines: {error.strerror}\n".encode())
        code = code or 1
    os._exit(code)


def stop_on_signals() -> None:
    """Make Ctrl-C and SIGTERM raise `Stopped` in the main thread; later signals are ignored."""
    for signum in SIGNALS:
        signal.signal(signum, _stop)
    sys.unraisablehook = _stop_all_the_same


def _stop(signum: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    raise Stopped(signum)


def _stop_all_the_same(unraisable: sys.UnraisableHookArgs) -> None:
    """Stop although the signal arrived in a finalizer, where Python discards every exception."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    stop_on_signals()
    # a new signal, as Python discards an exception of this hook, too
    again = threading.Timer(0.1, os.kill, (os.getpid(), unraisable.exc_value.signum))
    again.daemon = True
    again.start()


def run_tied(command: Sequence[str], text: str = "", errors: IO[str] | None = None) -> int:
    """Run `command`, stop it when this process stops or dies, and return its exit code.

    Args:
        command: program and arguments.
        text: its standard input; empty: that of this process.
        errors: file for its standard error; None: that of this process.

    Raises:
        Stopped: this process received a signal; the command has ended.
    """
    # in a new session, so that Ctrl-C reaches only this process, which then stops the command
    environment, stdin = os.environ | {PARENT: str(os.getpid())}, subprocess.PIPE if text else None
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdin=stdin, stderr=errors, text=True)
    try:
        process.communicate(text or None)
        return process.returncode
    except BaseException:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the limit of its container or job."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, cgroups.most_cores() or usable)


def in_background(work: Callable[[], Result], again: Callable[[], Result] | None = None) -> Callable[[], Result]:
    """Start `work` in a forked process, and return a function that waits for its result or raises its error.

    The process shares the memory of this one. Where a fork is not safe (threads, other systems than Linux) or useless
    (one core), `work` itself is returned.

    Args:
        work: a function whose result can be pickled, and which starts no thread.
        again: does the work here if the process was killed; None: `work`.
    """
    if sys.platform != "linux" or threading.active_count() > 1 or cores() < 2:
        return work
    import multiprocessing  # only a report needs it

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    gc.freeze()  # otherwise the process copies the memory that its garbage collector looks at
    process = context.Process(target=_send_result, args=(work, sender, os.getpid()), daemon=True)
    process.start()
    sender.close()

    def result() -> Result:
        try:
            found, error = receiver.recv()
        except EOFError:
            return (again or work)()
        process.join()
        if error is not None:
            raise error
        done: Result = found
        return done

    return result


def in_two(
    work: Callable[[Item], Result], items: Sequence[Item], shown: Callable[[Sequence[Item], int], Iterable[Item]]
) -> list[Result]:
    """Return the result of each item; a forked process works on the second half at the same time.

    Args:
        work: see `in_background`.
        items: any number of them; fewer than `WORTH_A_FORK` stay in this process.
        shown: yields its first argument and shows the progress; its second argument is how many items are done when
            this process has done one.
    """
    half = (len(items) + 1) // 2
    others = partial(_each, work, items[half:])
    wait = others if len(items) < WORTH_A_FORK else in_background(others)
    if wait is others:
        return _each(work, shown(items, 1))
    return [*_each(work, shown(items[:half], 2)), *wait()]


def _each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    return [work(item) for item in items]


class Claims:
    """Numbered tasks that this process shares with those forked from it: each task is done by one of them.

    All go through the tasks in the same order. A task that a killed process has claimed is done by none.

    Args:
        tasks: number of tasks, at most `MOST`.
    """

    MOST = 2048  # their numbers always fit in a pipe

    def __init__(self, tasks: int) -> None:
        self._numbers, numbers = os.pipe()  # reads from a pipe are atomic, and a killed reader leaves no lock
        os.write(numbers, b"".join(number.to_bytes(2, "big") for number in range(tasks)))
        os.close(numbers)
        self._mine, self._next = -1, 0

    def take(self) -> bool:
        """Return whether this process does the next task."""
        while self._mine < self._next and (number := os.read(self._numbers, 2)):
            self._mine = int.from_bytes(number, "big")
        self._next += 1
        return self._mine == self._next - 1


def _send_result(work: Callable[[], Any], sender: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that waits, and this one ends with it
    threading.Thread(target=_watch, args=(parent, 0.0), daemon=True).start()
    answer: tuple[Any, Exception | None]
    try:
        answer = work(), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        answer = None, error
    with suppress(BrokenPipeError):  # the other process was killed
        sender.send(answer)


def this_is_the_command() -> None:
    """Store the ID of this process in the environment, for the workers that a launcher starts."""
    os.environ[PARENT] = str(os.getpid())


def stop_with_command() -> None:
    """Stop a worker of a local launcher (joblib) when the command dies; otherwise workers survive it."""
    if os.environ.get(PARENT) == str(os.getppid()):
        stop_with_parent()


def stop_with_parent(grace: float = GRACE) -> None:
    """Stop this process when the one that started it through `run_tied` dies; its own children do the same.

    Args:
        grace: seconds to stop before this process is killed, in case the main thread hangs.
    """
    global tied
    parent = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    tied = bool(parent)
    if parent:
        threading.Thread(target=_watch, args=(int(parent), grace), daemon=True).start()


def _watch(parent: int, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)


def describe_death(code: int) -> str:
    """Return how a process ended that printed no error message.

    Args:
        code: exit code; negative: the signal that ended the process.
    """
    if code == -signal.SIGKILL:
        remedy = "lower data.batch_size, data.image_size or data.num_workers"
        return f"killed (SIGKILL): out of memory, or by hand; if out of memory, {remedy}"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
