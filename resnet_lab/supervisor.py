"""`Supervisor`: a process that imports PyTorch once and forks every job of a local command (Linux).

The command starts `python -m resnet_lab.supervisor FD` and sends it one request at a time through a socket. A forked
process has its own session, environment and folder, and ends like a new one. It imports configurations and parts of
users itself, so nothing of one job reaches the next.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import IO, Any, TextIO
from weakref import finalize

from resnet_lab import processes
from resnet_lab.command_line import show
from resnet_lab.errors import count
from resnet_lab.processes import GRACE, PARENT, SIGNALS, Stopped, end, run_tied, stop_on_signals
from resnet_lab.quick_imports import quick_imports

# what every job imports; a module that starts threads must not be among them
IMPORTS = (
    "resnet_lab.job",
    "resnet_lab.preflight",
    "resnet_lab.training",
    "resnet_lab.models.resnet",
    "resnet_lab.data.retinopathy",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
)
# variables that take effect on import: a job with other values needs a new process
ON_IMPORT = ("OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "LD_", "PYTHON", "PYTORCH_", "TORCH_", "MPL")
RANKS = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK")  # of jobs with several processes
PROGRAM = "resnet_lab.supervisor"
POLL = 0.02  # seconds between two checks of a forked process
READY = 0.5  # seconds that imports may take without a line
LAST = 1.0  # seconds for the functions that imports have registered for the end of the process


class Supervisor:
    """The command's side: starts the process, lets it run modules, and stops it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._answers: TextIO = self._socket.makefile("r")
        self._environment = _on_import(os.environ)
        command = [sys.executable, "-m", PROGRAM, str(theirs.fileno())]
        # in a new session, so that Ctrl-C reaches only this process
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self._threads: int | None = None

    def can_run(self) -> bool:
        """Return whether a forked process would be the same as a new one; the first call waits for the imports."""
        if _on_import(os.environ) != self._environment:
            return False
        if self._threads is None:
            if not select.select([self._socket], [], [], READY)[0]:
                show(f"{time.strftime('%H:%M:%S')}  loading PyTorch")
            self._threads = self._answer().get("threads", 0)
            if (more := self._threads - 1) > 0:
                text = f"a library that PyTorch or pandas loads has started {count(more, 'thread')}"
                show(f"{time.strftime('%H:%M:%S')}  jobs start as new processes: {text}")
        return self._threads == 1 and self._process.poll() is None

    def run(self, module: str, arguments: Sequence[str], text: str = "") -> int:
        """Run `python -m MODULE ARGUMENTS` in a forked process, and return its exit code (negative: its signal).

        Args:
            module: a module of this package with a function `main`.
            arguments: its arguments.
            text: its standard input.

        Raises:
            Stopped: this process received a signal; the forked process has ended.
        """
        request = {"module": module, "arguments": [*arguments], "text": text, "folder": str(Path.cwd())}
        answer = dict[str, int]()
        try:
            with suppress(OSError):  # the process died, and the answers are empty
                self._socket.sendall(json.dumps(request | {"environment": dict(os.environ)}).encode() + b"\n")
                answer = self._answer()
                answer |= self._answer()
        except BaseException:
            self.stop()
            raise
        if "code" in answer:
            return answer["code"]
        if "process" in answer:
            with suppress(ProcessLookupError):
                os.killpg(answer["process"], signal.SIGKILL)
        return self._process.wait()

    def stop(self) -> None:
        """Stop the process, and the one that it forked."""
        self._process.terminate()
        try:
            self._process.wait(GRACE + 5)  # it grants the forked process `GRACE`
        except subprocess.TimeoutExpired:
            self.close()

    def close(self) -> None:
        """End the process while it runs nothing; its imports are not waited for."""
        ended = self._process.poll() is not None
        ready = ended or self._threads is not None or bool(select.select([self._socket], [], [], 0)[0])
        self._answers.close()
        self._socket.close()  # which ends the process
        try:
            self._process.wait(LAST if ready else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, int]:
        line = self._answers.readline()
        found: dict[str, int] = json.loads(line) if line else {}
        return found


def _on_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(ON_IMPORT)}


_own: Supervisor | None = None


def begin() -> Supervisor | None:
    """Return the supervisor of this process, which the first call starts; None on systems without a safe fork."""
    global _own
    if _own is None and sys.platform == "linux":
        _own = Supervisor()
    return _own


def close() -> None:
    """End the supervisor of this process, if it has one."""
    global _own
    if _own is not None:
        _own.close()
    _own = None


def run_module(module: str, arguments: Sequence[str], fork: bool, text: str = "", errors: IO[str] | None = None) -> int:
    """Run `python -m MODULE ARGUMENTS`, stop it when this process stops or dies, and return its exit code.

    Args:
        module: a module of this package with a function `main`.
        arguments: its arguments.
        fork: whether to fork it where that is possible; otherwise it is a new process.
        text: its standard input.
        errors: file for the standard error of a new process; None: that of this process.

    Raises:
        Stopped: this process received a signal; the other one has ended.
    """
    if not fork:
        close()  # its imports would be useless
    elif (own := begin()) is not None and own.can_run():
        return own.run(module, arguments, text)
    return run_tied([sys.executable, "-m", module, *arguments], text, errors)


def forks(trainer: Mapping[str, Any]) -> bool:
    """Return whether a job may be forked: one device, and no launcher of ranks."""
    devices = trainer["devices"]
    one = devices == 1 or (isinstance(devices, list) and len(devices) == 1)
    ranks = trainer["num_nodes"] != 1 or trainer["strategy"] != "auto" or launched()
    return one and not ranks


def launched() -> bool:
    """Return whether SLURM or torchrun started this process."""
    return any(key in os.environ for key in RANKS)


def serves(given: Namespace) -> bool:
    """Return whether a command `train` forks its jobs, where that is possible; `given` is its parsed command line."""
    prints = given.cfg or given.info or given.hydra_help
    return not prints and (given.multirun or not launched())


def serve(connection: socket.socket) -> None:
    """Import, then fork a process for every request, until the command closes the connection.

    Args:
        connection: to the command.

    Raises:
        Stopped: the command died, or this process received a signal; the forked process has ended.
    """
    stop_on_signals()
    # a fork needs a process with one thread, so numpy's BLAS starts none, and CUDA stays uninitialized
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # pyarrow, which pandas 3 imports
    with quick_imports():  # otherwise each fork would also copy the memory that its garbage collector looks at
        for module in IMPORTS:
            importlib.import_module(module)
    requests = connection.makefile("r")
    _send(connection, {"threads": len(list(Path("/proc/self/task").iterdir()))})
    for line in requests:
        process = os.fork()
        if process == 0:
            requests.close()
            connection.close()
            end(_forked(**json.loads(line)))
        _send(connection, {"process": process})
        _send(connection, {"code": _wait(process, connection)})


def _send(connection: socket.socket, answer: Mapping[str, int]) -> None:
    with suppress(OSError):  # the command died, which the next read shows
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _wait(process: int, connection: socket.socket) -> int:
    """Return the exit code of a forked process; stop it when the command dies or this process receives a signal."""
    try:
        while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
            if select.select([connection], [], [], POLL)[0]:  # no request comes now, so the command is gone
                raise Stopped(signal.SIGTERM)
    except Stopped:
        _stop(process)
        raise
    return os.waitstatus_to_exitcode(ended[1])


def _stop(process: int) -> None:
    deadline = time.monotonic() + GRACE
    os.kill(process, signal.SIGTERM)
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return
        time.sleep(POLL)


def _forked(module: str, arguments: list[str], text: str, folder: str, environment: dict[str, str]) -> int:
    """Make this process what `python -m MODULE ARGUMENTS` would be, and return its exit code."""
    _forget_exit_functions()
    os.setsid()
    for signum in SIGNALS:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment | {PARENT: str(os.getppid())})
    os.chdir(folder)
    if not sys.flags.safe_path:  # otherwise the first entry is another one
        sys.path[0] = folder
    if text:
        sys.stdin = StringIO(text)
    processes.began, processes.started_by = time.time(), "fork"
    main = importlib.import_module(module)
    sys.argv = [str(main.__file__), *arguments]
    try:
        code: int = main.main()
    except Stopped as stopped:
        return stopped.code
    except Exception:
        traceback.print_exc()
        return 1
    return code


def _forget_exit_functions() -> None:
    """Leave the exit functions of imports to the supervisor: all jobs share what they remove (matplotlib's folder)."""
    atexit._clear()
    finalizers: Any = finalize  # the types of its private names are unknown
    for each in [*finalizers._registry]:
        each.atexit = False
    of_workers = importlib.import_module("multiprocessing.util")._exit_function
    for function in (logging.shutdown, of_workers, finalizers._exitfunc):  # a job needs them, too
        atexit.register(function)


def main() -> int:
    """Serve the command whose socket is the first argument, and return the exit code."""
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except Stopped as stopped:
        return stopped.code
    return 0


if __name__ == "__main__":
    end(main())
