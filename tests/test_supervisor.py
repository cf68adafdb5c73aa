"""The supervisor forks processes that behave like new ones."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE, wait_for

from resnet_lab import supervisor
from resnet_lab.processes import Stopped, stop_on_signals
from resnet_lab.supervisor import RANKS, Supervisor, forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")

MODULE = f"""
import atexit, json, os, signal, sys, tempfile, time
from pathlib import Path
from resnet_lab import processes

def main():
    what, file = sys.argv[1], Path(sys.argv[2])
    atexit.register(lambda: file.with_suffix(".end").write_text("ended"))
    found = dict(
        pid=os.getpid(), parent=os.getppid(), session=os.getsid(0), folder=os.getcwd(), argv=sys.argv, path=sys.path[0],
        text=sys.stdin.read(), mine=os.environ.get("MINE"), tied=os.environ["RESNET_LAB_PARENT"],
        blas=os.environ.get("OPENBLAS_NUM_THREADS"), started_by=processes.started_by, torch="torch" in sys.modules,
        handlers=[signal.getsignal(each) == default
                  for each, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler))],
    )
    file.write_text(json.dumps(found))
    global temporary
    temporary = tempfile.TemporaryDirectory(dir=".", prefix="of_job")
    if what == "sleep":
        time.sleep({2 * PATIENCE})
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        os.dup2(os.open(file.with_suffix(".err"), os.O_WRONLY | os.O_CREAT), 2)
        raise RuntimeError("boom")
    return int(what)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Supervisor]]:
    """Start a supervisor that imports one empty module, as the imports of a job take seconds."""
    (tmp_path / "task_of_test.py").write_text(MODULE)
    paths = [str(tmp_path), str(Path(__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    (tmp_path / "import_of_test.py").touch()
    (tmp_path / "supervisor_of_test.py").write_text(
        "import sys\n"
        "from resnet_lab import supervisor\n"
        "supervisor.IMPORTS = ('import_of_test',)\n"
        "supervisor.end(supervisor.main())\n"
    )
    monkeypatch.setattr(supervisor, "PROGRAM", "supervisor_of_test")
    monkeypatch.setattr(supervisor, "LAST", PATIENCE)
    monkeypatch.chdir(tmp_path)
    started: list[Supervisor] = []

    def supervise() -> Supervisor:
        started.append(Supervisor())
        return started[-1]

    yield supervise
    for each in started:
        each.close()


@pytest.fixture
def running(start: Callable[[], Supervisor]) -> Supervisor:
    return start()


def result(file: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(file.read_text())
    return found


def test_a_forked_process_is_like_a_new_one(
    running: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert running.can_run()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("MINE", "yes")
    assert running.run("task_of_test", ["3", "a.json"], text="given") == 3
    first = result(Path("a.json"))
    assert Path("a.end").read_text() == "ended"  # functions that are registered for the end run
    folder = str(tmp_path / "folder")
    assert (first["folder"], first["path"], first["text"], first["mine"]) == (folder, folder, "given", "yes")
    assert first["argv"] == [str(tmp_path / "task_of_test.py"), "3", "a.json"]
    assert (first["session"], first["tied"]) == (first["pid"], str(first["parent"]))
    assert (first["blas"], first["started_by"], first["handlers"]) == (None, "fork", [True, True])
    monkeypatch.delenv("MINE")
    assert running.run("task_of_test", ["0", "b.json"]) == 0
    second = result(Path("b.json"))
    assert (second["mine"], second["text"], second["parent"]) == (None, "", first["parent"])


def test_a_safe_path_is_kept(start: Callable[[], Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    running = start()
    assert running.can_run()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert running.run("task_of_test", ["0", "a.json"]) == 0
    assert result(Path("a.json"))["path"] == str(tmp_path)  # the first of PYTHONPATH


def test_how_a_forked_process_ended_is_its_exit_code(running: Supervisor) -> None:
    assert running.can_run()
    assert running.run("task_of_test", ["kill", "a.json"]) == -signal.SIGKILL
    assert running.run("task_of_test", ["raise", "a.json"]) == 1
    assert "RuntimeError: boom" in Path("a.err").read_text()
    assert running.run("task_of_test", ["0", "a.json"]) == 0


def written(file: Path) -> dict[str, object]:
    wait_for(lambda: file.is_file() and file.read_text())
    return result(file)


def is_alive(process: object) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def in_a_thread_kill(file: Path, whom: str, signum: int) -> None:
    def kill() -> None:
        seen = written(file)
        os.kill(os.getpid() if whom == "command" else int(str(seen[whom])), signum)

    threading.Thread(target=kill, daemon=True).start()


def test_a_signal_to_the_command_stops_the_forked_process(running: Supervisor, tmp_path: Path) -> None:
    assert running.can_run()
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    stop_on_signals()
    try:
        in_a_thread_kill(tmp_path / "a.json", "command", signal.SIGINT)
        with pytest.raises(Stopped):
            running.run("task_of_test", ["sleep", "a.json"])
    finally:
        sys.unraisablehook = hook
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert not is_alive(result(tmp_path / "a.json")["pid"])
    assert not running.can_run()


def test_the_death_of_the_supervisor_ends_the_forked_process(running: Supervisor, tmp_path: Path) -> None:
    assert running.can_run()
    in_a_thread_kill(tmp_path / "a.json", "parent", signal.SIGKILL)
    assert running.run("task_of_test", ["sleep", "a.json"]) == -signal.SIGKILL
    ended = result(tmp_path / "a.json")["pid"]
    wait_for(lambda: not is_alive(ended))
    assert not running.can_run()


def test_a_supervisor_ends_with_the_command(running: Supervisor, tmp_path: Path) -> None:
    assert running.can_run()
    running._socket.sendall(
        json.dumps(
            {
                "module": "task_of_test",
                "arguments": ["sleep", "a.json"],
                "text": "",
                "folder": str(tmp_path),
                "environment": dict(os.environ),
            }
        ).encode()
        + b"\n"
    )
    seen = written(tmp_path / "a.json")
    running._answers.close()
    running._socket.close()  # what the death of the command does
    wait_for(lambda: not is_alive(seen["pid"]))
    assert running._process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_variables_that_take_effect_on_import_need_a_new_process(
    running: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert running.can_run()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert not running.can_run()
    monkeypatch.undo()


def test_a_thread_that_an_import_starts_is_named_once(
    start: Callable[[], Supervisor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "import_of_test.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    running = start()
    assert not running.can_run()
    assert not running.can_run()
    line = "jobs start as new processes: a library that PyTorch or pandas loads has started 1 thread"
    assert capsys.readouterr().out.count(line) == 1


@pytest.mark.parametrize("chosen", [None, "background_thread:true"])
def test_pyarrow_starts_no_thread_unless_the_user_wants_it(
    start: Callable[[], Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    if chosen is None:
        monkeypatch.delenv("JE_ARROW_MALLOC_CONF", raising=False)
    else:
        monkeypatch.setenv("JE_ARROW_MALLOC_CONF", chosen)
    (tmp_path / "import_of_test.py").write_text(
        "import os\nfrom pathlib import Path\nPath('seen').write_text(os.environ['JE_ARROW_MALLOC_CONF'])\n"
    )
    assert start().can_run()
    assert Path("seen").read_text() == (chosen or "background_thread:false")


def test_a_new_process_ends_the_supervisor(running: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.can_run()
    monkeypatch.setattr(supervisor, "_own", running)
    assert supervisor.run_module("task_of_test", ["0", "a.json"], fork=False) == 0
    assert supervisor._own is None
    assert running._process.poll() == 0


FOLDERS = """
import atexit, os, tempfile
os.mkdir("at_exit")
atexit.register(os.rmdir, "at_exit")
temporary = tempfile.TemporaryDirectory(dir=".", prefix="of_import")
"""


def test_exit_functions_of_imports_run_once_and_those_of_a_job_at_its_end(
    start: Callable[[], Supervisor], tmp_path: Path
) -> None:
    (tmp_path / "import_of_test.py").write_text(FOLDERS)
    running = start()
    assert running.can_run()
    for _ in range(2):
        assert running.run("task_of_test", ["0", "a.json"]) == 0
        assert Path("a.end").read_text() == "ended"
        assert [Path("at_exit").is_dir(), len([*Path().glob("of_import*")])] == [True, 1]
        assert not [*Path().glob("of_job*")]
        Path("a.end").unlink()
    running.close()
    assert not [*Path().glob("at_exit"), *Path().glob("of_*")]


def test_imports_are_not_waited_for_at_the_end(start: Callable[[], Supervisor], tmp_path: Path) -> None:
    (tmp_path / "import_of_test.py").write_text("import time\ntime.sleep(60)\n")
    running = start()
    running.close()
    assert running._process.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "launched", "forked"),
    [
        ([], False, True),
        (["-m", "seed=0,1"], False, True),
        ([], True, False),
        (["-m", "seed=0,1"], True, True),  # only the check before the jobs
        (["--cfg=job"], False, False),
        (["-m", "--info=config"], False, False),
    ],
)
def test_single_runs_are_forked_too(
    words: list[str], launched: bool, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    train = importlib.import_module("resnet_lab.train")
    for name in ("begin", "stop_on_signals", "this_is_the_command"):
        monkeypatch.setattr(train, name, lambda: None)
    monkeypatch.setattr(train, "checked", lambda given, forks: seen.append(forks))
    monkeypatch.setattr(supervisor, "launched", lambda: launched)
    monkeypatch.setattr(sys, "argv", ["train", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert train.run_command() == 2
    assert seen == [forked]


@pytest.mark.parametrize(
    ("trainer", "forked"),
    [
        ({}, True),
        ({"devices": [1]}, True),
        ({"devices": "auto"}, False),
        ({"devices": 2}, False),
        ({"num_nodes": 2}, False),
        ({"strategy": "ddp"}, False),
    ],
)
def test_jobs_of_one_device_are_forked(
    trainer: dict[str, object], forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    config = {"devices": 1, "num_nodes": 1, "strategy": "auto"} | trainer
    assert forks(config) is forked
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert not forks(config)
