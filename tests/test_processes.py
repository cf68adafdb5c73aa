"""Processes: how they start and stop, and that none is left behind (without jobs, to be fast)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import PATIENCE

from resnet_lab import cgroups, processes
from resnet_lab.processes import describe_death, run_tied

CHILD = """
import sys, time
from resnet_lab.processes import Stopped, stop_on_signals, stop_with_parent
stop_on_signals()
stop_with_parent(grace={grace})
try:
    print("ready", flush=True)
    {work}
except Stopped as stopped:
    open("stopped", "w").write(str(stopped))
    sys.exit(stopped.code)
"""
PARENT = """
import sys
from resnet_lab.processes import Stopped, run_tied, stop_on_signals
stop_on_signals()
try:
    run_tied([sys.executable, "-c", {child!r}])
except Stopped as stopped:
    sys.exit(stopped.code)
"""
SLEEP = "time.sleep(60)"
FINALIZER = "import signal; type('Dying', (), {{'__del__': lambda self: signal.raise_signal({})}})(); time.sleep(60)"
HANG = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); time.sleep(60)"


def start(folder: Path, work: str, grace: float = 30) -> subprocess.Popen[str]:
    """Start a parent with a working child."""
    command = [sys.executable, "-c", PARENT.format(child=CHILD.format(work=work, grace=grace))]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    """Wait until the child has closed the pipe too."""
    assert process.stdout is not None
    process.stdout.read()
    process.stdout.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_parent_and_child(tmp_path: Path, signum: signal.Signals) -> None:
    process = start(tmp_path, SLEEP)
    process.send_signal(signum)
    assert process.wait() == 128 + signum
    assert (tmp_path / "stopped").read_text() == "SIGTERM"  # only the parent sends the child a signal
    ended(process)


def test_a_child_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    process.kill()
    process.wait()
    ended(process)
    assert (tmp_path / "stopped").read_text() == "SIGTERM"


def test_a_hanging_child_is_killed_after_a_grace_period(tmp_path: Path) -> None:
    process = start(tmp_path, HANG, grace=0.2)
    process.kill()
    process.wait()
    ended(process)  # otherwise this would take a minute
    assert not (tmp_path / "stopped").exists()


def test_exit_codes_come_back_and_are_explained() -> None:
    assert run_tied([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    code = run_tied([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"])
    assert code == -signal.SIGKILL
    assert describe_death(code).startswith("killed (SIGKILL): out of memory, or by hand; if out of memory, lower data.")
    assert describe_death(-signal.SIGSEGV) == "ended by SIGSEGV"
    assert describe_death(3) == "exited with code 3"


@pytest.mark.slow
def test_a_job_started_by_hand_has_no_parent_to_follow(tmp_path: Path) -> None:
    code = CHILD.format(work="time.sleep(1.2)", grace=0.1)
    environment = {key: value for key, value in os.environ.items() if key != "RESNET_LAB_PARENT"}
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}])"
    begun = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", starter], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    assert shown.stdout == b"ready\n"
    assert time.monotonic() - begun > 1.2  # its starter has already exited
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_finalizer_is_not_lost(tmp_path: Path, signum: signal.Signals) -> None:
    child = CHILD.format(work=FINALIZER.format(signum), grace=30)
    process = subprocess.run([sys.executable, "-c", child], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (128 + signum, "")
    assert (tmp_path / "stopped").read_text() == signum.name


ENDING = """
import atexit, sys, threading, time
from resnet_lab.processes import end

class Costly:
    def __del__(self):
        print("freed")

kept = Costly()
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("last line")
end(int(sys.argv[1]))
"""


def test_a_process_ends_with_all_lines_and_without_freeing_objects() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, "3"], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout.split("\n")) == (3, ["last line", "thread", "exit function", ""])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
@pytest.mark.parametrize(("code", "expected"), [(0, 1), (3, 3)])
def test_lines_that_cannot_be_written_are_an_error(code: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", ENDING, str(code)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (expected, "error: cannot write the last lines: No space left on device\n")


BACKGROUND = """
import os, signal, threading, time
from resnet_lab import processes
processes.cores = lambda: 2
own = os.getpid()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts a background job without it

def killed():
    if os.getpid() != own:
        os.kill(os.getpid(), signal.SIGKILL)
    return "by hand"

def waiting():
    print("ready", flush=True)
    time.sleep(60)

"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def printed_by(work: str) -> str:
    """Return what a process without other threads prints."""
    command = [sys.executable, "-c", BACKGROUND + work]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


@on_linux
def test_work_in_the_background_runs_in_another_process_at_the_same_time() -> None:
    work = "wait = processes.in_background(lambda: (os.getppid() == own, time.time(), 'a' * 1_000_000))"
    work += "; began = time.time(); time.sleep(0.5); forked, ended, text = wait()"
    work += "; print(forked, ended < began + 0.5, len(text))"
    assert printed_by(work) == "True True 1000000\n"


@on_linux
def test_an_error_in_the_background_comes_back_and_names_its_file() -> None:
    work = "wait = processes.in_background(lambda: open('/nowhere/a.png'))\ntry:\n    wait()\n"
    work += "except FileNotFoundError as error:\n    print(error.filename, 'in <lambda>' in error.__notes__[0])"
    assert printed_by(work) == "/nowhere/a.png True\n"


@on_linux
def test_work_in_the_background_is_done_here_if_its_process_is_killed_or_a_thread_forbids_a_fork() -> None:
    assert printed_by("print(processes.in_background(killed)())") == "by hand\n"
    thread = "threading.Thread(target=time.sleep, args=(0.5,)).start()"
    assert printed_by(f"{thread}; print(processes.in_background(os.getpid)() == own)") == "True\n"
    assert printed_by("processes.cores = lambda: 1; print(processes.in_background(os.getpid)() == own)") == "True\n"


@on_linux
def test_two_processes_share_a_list_and_keep_its_order() -> None:
    shown = "shown = lambda items, each: (print('shown', len(items), each, flush=True), items)[1]\n"
    work = shown + "found = processes.in_two(lambda item: (item, os.getpid() == own), range({items}), shown)\n"
    work += "print([item for item, _ in found], [here for _, here in found])"
    assert printed_by(work.format(items=5)) == "shown 3 2\n[0, 1, 2, 3, 4] [True, True, True, False, False]\n"
    assert printed_by(work.format(items=2)) == "shown 2 1\n[0, 1] [True, True]\n"
    assert printed_by("processes.cores = lambda: 1\n" + work.format(items=4)).startswith("shown 4 1\n")


@on_linux
def test_each_claimed_task_is_done_by_one_of_two_processes() -> None:
    work = "claims = processes.Claims(2048)\n"
    work += "tasks = lambda: [task for task in range(2048) if claims.take() and not time.sleep(1e-5)]\n"
    work += "wait = processes.in_background(tasks)\ntime.sleep(0.05); here, there = tasks(), wait()\n"
    work += "print(bool(here), bool(there), sorted(here + there) == list(range(2048)))"
    assert printed_by(work) == "True True True\n"


@on_linux
def test_other_work_replaces_that_of_a_killed_process() -> None:
    assert printed_by("print(processes.in_background(killed, again=lambda: 'all of it')())") == "all of it\n"


@on_linux
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_work_in_the_background_ends_with_the_process_that_waits(signum: signal.Signals) -> None:
    command = [sys.executable, "-c", BACKGROUND + "processes.in_background(waiting)()"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert (process.stdout.read(), process.wait()) == ("", -signum)  # otherwise this would take a minute
    process.stdout.close()


@on_linux
def test_ctrl_c_ends_work_in_the_background_in_silence() -> None:
    work = (
        "wait = processes.in_background(waiting)\ntry:\n    wait()\nexcept KeyboardInterrupt:\n    processes.end(130)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", BACKGROUND + work], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert (process.stdout.read(), process.wait()) == ("", 130)  # the other process has closed the pipe, too
    process.stdout.close()


@pytest.mark.parametrize(
    ("version", "line", "limits", "most"),
    [
        (2, "0::/job", {}, None),
        (2, "0::/job", {"": "max 100000", "job": "max 100000"}, None),
        (2, "0::/job", {"": "max 100000", "job": "200000 100000"}, 2),
        (2, "0::/pod/job", {"pod": "150000 100000", "pod/job": "400000 100000"}, 2),  # rounded up
        (2, "0::/elsewhere", {"": "5000 100000"}, 1),
        (1, "3:cpuset:/\n4:cpu,cpuacct:/docker/abc\n0::/", {"": "-1 100000", "docker/abc": "300000 100000"}, 3),
        (1, "4:cpu:/docker/abc\n0::/", {"": "-1 100000"}, None),
        (1, "", {"": "50000 0"}, None),
    ],
)
def test_a_container_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, line: str, limits: dict[str, str], most: int | None
) -> None:
    root = tmp_path / "cgroup"
    for name, text in limits.items():
        folder = (root if version == 2 else root / "cpu") / name
        folder.mkdir(parents=True, exist_ok=True)
        files = {"cpu.max": text}
        if version == 1:
            files = dict(zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), text.split(), strict=True))
        for file, content in files.items():
            (folder / file).write_text(f"{content}\n")
    (tmp_path / "own").write_text(line)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    roots = [(name, root / folder.relative_to("/sys/fs/cgroup"), *rest) for name, folder, *rest in cgroups.CPU]
    monkeypatch.setattr(cgroups, "CPU", roots)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert cgroups.most_cores() == most
    assert processes.cores() == (most or 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5})
    assert processes.cores() == 1
