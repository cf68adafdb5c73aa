"""Sweeps under Hydra's launchers, several ranks, two nodes on one machine, and signals, in real processes."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from waiting import PATIENCE, wait_for

from resnet_lab.run_folder import RunFolder, find_runs
from resnet_lab.training import guarded

pytestmark = pytest.mark.slow

DDP = ("trainer.devices=2", "trainer.strategy=ddp")
SWEEP = ("--config-dir", "conf", "-m", "experiment=tiny", "sweep_dir=sweep")
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
# every Python process runs this; only jobs are changed
PATCH = """
import sys
if {{"resnet_lab.job", "resnet_lab.supervisor"}} & {{*sys.orig_argv}}:
    import hashlib, os, pathlib
    from resnet_lab.module import Classifier
    {body}
"""
HASHES = """def on_fit_end(self):
        parameters = b"".join(p.detach().numpy().tobytes() for p in self.parameters())
        name = f"weights_{self.origin['config']['seed']}_{self.global_rank}"
        pathlib.Path(name).write_text(hashlib.sha256(parameters).hexdigest())
    Classifier.on_fit_end = on_fit_end"""
FAILS = """def training_step(self, batch, batch_idx, step=Classifier.training_step):
        if self.global_rank == 1 and self.current_epoch == 1:
            {how}
        return step(self, batch, batch_idx)
    Classifier.training_step = training_step"""

SLOWS = """import time
    def training_step(self, batch, batch_idx, step=Classifier.training_step):
        time.sleep(1)
        return step(self, batch, batch_idx)
    Classifier.training_step = training_step"""

Lab = Callable[..., subprocess.Popen[str]]
MakeRun = Callable[..., RunFolder]


@pytest.fixture
def lab(tmp_path: Path, experiment: None) -> Iterator[Lab]:
    """Start `python -m MODULE …` in a folder with the tiny experiment; leftover processes are killed at the end."""
    (tmp_path / "patch").mkdir()
    processes: list[subprocess.Popen[str]] = []

    def start(*command: str, patch: str = "", environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        (tmp_path / "patch" / "sitecustomize.py").write_text(PATCH.format(body=patch or "pass"))
        paths = [str(tmp_path / "patch"), str(Path(__file__).parents[1])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | dict(environment or {})
        kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        with (tmp_path / f"output_{len(processes)}").open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=tmp_path, env=kept | own, stdout=file, stderr=file, text=True
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def sweep(lab: Lab, *arguments: str, **options: object) -> subprocess.Popen[str]:
    return lab("resnet_lab", "train", *SWEEP, *arguments, **options)


def output(folder: Path, number: int = 0) -> str:
    return (folder / f"output_{number}").read_text()


def said(folder: Path, number: int) -> str:
    """Return the output of a job, without the traceback of its launcher."""
    return "".join(line for line in output(folder, number).splitlines(True) if line[0].isdigit() or "error" in line)


def trains(run: RunFolder) -> bool:
    return run.metrics_file.is_file()


def jobs_alive(folder: Path) -> list[int]:
    """Return the processes of jobs in this folder."""
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            names = (b"resnet_lab.job", b"resnet_lab.supervisor", b"forkserver")  # the last one starts loader workers
            ours = any(name in command for name in names)
            if ours and (process / "cwd").readlink() == folder:
                alive.append(int(process.name))
    return alive


def starts(run: RunFolder) -> int:
    """Return how often its job started or resumed."""
    place = re.compile(rf"(starting|resuming) in (\S*/)?{re.escape(run.path.name)}", re.MULTILINE)
    return len(place.findall(run.log_file.read_text()))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_in_a_sweep_agree_under_each_launcher(tmp_path: Path, lab: Lab, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    process = sweep(lab, *LAUNCHERS[launcher], *DDP, "seed=0,1", patch=HASHES)
    assert process.wait(PATIENCE) == 0, output(tmp_path)
    runs = find_runs([tmp_path / "sweep"])
    assert [run.path.parent for run in runs] == [tmp_path / "sweep"] * 2  # one folder, and no job ran twice
    for seed, run in enumerate(runs):
        assert (run.read_status()["state"], starts(run)) == ("done", 1)
        assert len(run.metrics_file.read_text().splitlines()) == 3
        ranks = [(tmp_path / f"weights_{seed}_{rank}").read_text() for rank in (0, 1)]
        assert ranks[0] == ranks[1]
    assert (tmp_path / "weights_0_0").read_text() != (tmp_path / "weights_1_0").read_text()


def test_parallel_jobs_share_the_threads(tmp_path: Path, lab: Lab) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = sweep(lab, *LAUNCHERS["joblib"], "seed=0,1", environment={"OMP_NUM_THREADS": ""})
    assert process.wait(PATIENCE) == 0, output(tmp_path)
    threads = [run.read_status()["hardware"]["threads"] for run in find_runs([tmp_path / "sweep"])]
    assert threads == [max(1, len(os.sched_getaffinity(0)) // 2)] * 2


def test_a_requeued_job_resumes_in_its_folder(tmp_path: Path, lab: Lab) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = sweep(lab, *LAUNCHERS["submitit_local"], "seed=0", "trainer.max_epochs=60")
    run = RunFolder(tmp_path / "sweep" / "experiment-tiny_seed-0_max_epochs-60")
    wait_for(lambda: trains(run))
    worker = next(
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if str(tmp_path / "sweep").encode() in (entry / "cmdline").read_bytes()
        and b"submitit.core._submit" in (entry / "cmdline").read_bytes()
    )
    os.kill(worker, signal.SIGUSR2)  # what SLURM sends before it takes the node away
    assert process.wait(PATIENCE) == 0, output(tmp_path)
    assert (run.read_status()["state"], starts(run)) == ("done", 2)
    epochs = [int(line.split(",")[0]) for line in run.metrics_file.read_text().splitlines()[1:]]
    assert epochs == list(range(60))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("1 / 0", "rank 1: ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), 9)", "exited without an error message"),
    ],
)
def test_a_rank_that_fails_ends_the_job_and_says_why(tmp_path: Path, lab: Lab, how: str, message: str) -> None:
    process = sweep(lab, *DDP, "seed=0", "trainer.max_epochs=1000", patch=FAILS.format(how=how))
    (run,) = [RunFolder(tmp_path / "sweep" / "experiment-tiny_seed-0_devices-2_max_epochs-1000_strategy-ddp")]
    wait_for(lambda: trains(run))
    assert process.wait(PATIENCE) == 1  # a hang would end after half an hour
    assert run.read_status()["state"] == "failed"
    assert message in run.read_status()["error"]
    wait_for(lambda: not jobs_alive(tmp_path))


@pytest.mark.parametrize(
    ("ranks", "workers", "signum"),
    [
        (1, 0, signal.SIGINT),
        (1, 0, signal.SIGTERM),
        (1, 0, signal.SIGKILL),
        (1, 2, signal.SIGTERM),
        (1, 2, signal.SIGKILL),
        (2, 0, signal.SIGINT),
        (2, 0, signal.SIGKILL),
    ],
)
def test_a_stopped_sweep_leaves_no_process_and_resumes(
    tmp_path: Path, lab: Lab, ranks: int, workers: int, signum: signal.Signals
) -> None:
    epochs = 6
    grid = [*(DDP if ranks == 2 else ()), "seed=0,1", f"trainer.max_epochs={epochs}", f"data.num_workers={workers}"]
    process = sweep(lab, *grid, patch=SLOWS)  # the stop comes before any job ends
    wait_for(lambda: any(path.name == "metrics.csv" for path in tmp_path.glob("sweep/*/metrics.csv")))
    process.send_signal(signum)
    code = process.wait(PATIENCE)
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum)
    wait_for(lambda: not jobs_alive(tmp_path))
    first = find_runs([tmp_path / "sweep"])[0]
    assert first.read_status()["state"] == "interrupted"
    shown = output(tmp_path)
    assert "Traceback" not in shown
    if signum != signal.SIGKILL:
        assert shown.rstrip().splitlines()[-1].endswith(" ".join(["train", *SWEEP, *grid]))  # the command to run next
    assert sweep(lab, *grid, patch=HASHES if ranks == 2 else "").wait(PATIENCE) == 0, output(tmp_path, 1)
    assert [run.read_status()["state"] for run in find_runs([tmp_path / "sweep"])] == ["done", "done"]
    assert starts(first) == 2
    if ranks == 2:
        hashes = [[(tmp_path / f"weights_{seed}_{rank}").read_text() for rank in (0, 1)] for seed in (0, 1)]
        assert [len({*each}) for each in (*hashes, hashes[0] + hashes[1])] == [1, 1, 2]  # ranks agree, seeds differ
    assert len(first.metrics_file.read_text().splitlines()) == epochs + 1


def test_two_sweeps_on_one_folder_share_its_jobs(tmp_path: Path, lab: Lab) -> None:
    grid = ["seed=0,1,2,3", "trainer.max_epochs=20"]
    sweeps = [sweep(lab, *grid), sweep(lab, *grid)]
    assert [process.wait(PATIENCE) for process in sweeps] == [0, 0], output(tmp_path) + output(tmp_path, 1)
    runs = find_runs([tmp_path / "sweep"])
    assert [(run.read_status()["state"], starts(run)) for run in runs] == [("done", 1)] * 4


def test_a_job_that_fails_is_not_run_by_both_sweeps(tmp_path: Path, lab: Lab) -> None:
    sweeps = [sweep(lab, "seed=0,1", "optim.lr=1e30", "on_failed=skip") for _ in range(2)]
    codes = [process.wait(PATIENCE) for process in sweeps]
    assert set(codes) <= {0, 1}
    statuses = [run.read_status() for run in find_runs([tmp_path / "sweep"])]
    assert [(status["state"], status["starts"]) for status in statuses] == [("failed", 1)] * 2


def test_the_death_of_the_command_stops_the_jobs_of_joblib(tmp_path: Path, lab: Lab) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = sweep(lab, *LAUNCHERS["joblib"], "seed=0,1,2", "trainer.max_epochs=1000")
    wait_for(lambda: len(list(tmp_path.glob("sweep/*/metrics.csv"))) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not jobs_alive(tmp_path))
    time.sleep(3)
    assert not jobs_alive(tmp_path)  # the third job does not start either
    assert [run.read_status()["state"] for run in find_runs([tmp_path / "sweep"])] == ["interrupted"] * 2


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def agree(tmp_path: Path) -> bool:
    return (tmp_path / "weights_0_0").read_text() == (tmp_path / "weights_0_1").read_text()


def test_torchrun_starts_two_nodes(tmp_path: Path, lab: Lab, make_run: MakeRun) -> None:
    run = make_run("trainer.num_nodes=2", "trainer.strategy=ddp")
    address = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    job = ("-m", "resnet_lab.job", str(run.path))
    nodes = [lab("torch.distributed.run", *address, f"--node-rank={node}", *job, patch=HASHES) for node in (0, 1)]
    ended = [node.wait(PATIENCE) for node in nodes]
    assert ended == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert run.read_status()["state"] == "done"
    assert agree(tmp_path)


def slurm(task: int, tasks: int, nodes: int, port: int) -> dict[str, str]:
    """Return the environment that `srun` sets for a task."""
    values = {
        "JOB_ID": 1,
        "STEP_ID": 0,
        "JOB_NAME": "tiny",
        "NTASKS": tasks,
        "NTASKS_PER_NODE": tasks // nodes,
        "NNODES": nodes,
    }
    values |= {"PROCID": task, "LOCALID": task % (tasks // nodes), "NODEID": task * nodes // tasks}
    names = {f"SLURM_{name}": str(value) for name, value in values.items()}
    return names | {"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.parametrize("nodes", [1, 2])
def test_slurm_starts_the_tasks(tmp_path: Path, lab: Lab, make_run: MakeRun, nodes: int) -> None:
    run = make_run(f"trainer.num_nodes={nodes}", f"trainer.devices={2 // nodes}", "trainer.strategy=ddp")
    job, port = ("resnet_lab.job", str(run.path)), free_port()
    tasks = [lab(*job, patch=HASHES, environment=slurm(task, 2, nodes, port)) for task in (0, 1)]
    assert [task.wait(PATIENCE) for task in tasks] == [0, 0], output(tmp_path, 0) + output(tmp_path, 1)
    assert run.read_status()["state"] == "done"
    assert agree(tmp_path)


def test_a_task_that_fails_before_the_ranks_connect_ends_the_other(tmp_path: Path, lab: Lab, make_run: MakeRun) -> None:
    run = make_run(*DDP)
    patch = """from resnet_lab.data.datamodule import DataModule
    def missing(self):
        raise FileNotFoundError("a file of this node")
    if os.environ["SLURM_PROCID"] == "1":
        DataModule.read = missing"""
    job, port = ("resnet_lab.job", str(run.path)), free_port()
    tasks = [lab(*job, patch=patch, environment=slurm(task, 2, 1, port)) for task in (0, 1)]
    assert [task.wait(PATIENCE) for task in tasks] == [1, 1], output(tmp_path, 0) + output(tmp_path, 1)
    assert run.read_status()["error"] == "rank 1: FileNotFoundError: a file of this node"
    assert not run.is_locked()


def test_a_stopped_rank_is_not_a_failure(tmp_path: Path, lab: Lab, make_run: MakeRun) -> None:
    run = make_run(*DDP, "trainer.max_epochs=1000")
    job = lab("resnet_lab.job", str(run.path))
    wait_for(lambda: trains(run))
    (other,) = [pid for pid in jobs_alive(tmp_path) if pid != job.pid]
    os.kill(other, signal.SIGTERM)
    assert job.wait(PATIENCE) == 128 + signal.SIGTERM, output(tmp_path)
    assert run.read_status()["state"] == "interrupted"
    assert "memory" not in output(tmp_path)


def test_one_task_of_slurm_starts_its_ranks_itself(tmp_path: Path, lab: Lab, make_run: MakeRun) -> None:
    run = make_run(*DDP)
    task = lab("resnet_lab.job", str(run.path), patch=HASHES, environment=slurm(0, 1, 1, free_port()))
    assert task.wait(PATIENCE) == 0, output(tmp_path)
    assert run.read_status()["state"] == "done"
    assert agree(tmp_path)


def frozen(self, x):
    values = (self.running_mean, self.running_var, self.weight, self.bias)
    return torch.nn.functional.batch_norm(x, *values, False, 0.0, self.eps)


FROZEN = f"""import torch
{textwrap.indent(inspect.getsource(frozen), " " * 4)}
    torch.nn.modules.batchnorm._BatchNorm.forward = frozen"""
PARTS = ("model.freeze=[conv1,layer1]", "model.unfreeze_at_epoch=1", "optim.backbone_lr_factor=0.5")


@pytest.mark.parametrize(
    "choices",
    [
        (),
        ("loss.class_weights=balanced", "schedule=cosine", "follow_layers=true"),
        (*PARTS, "trainer.gradient_clip_val=0.5", "trainer.accumulate_grad_batches=2"),
    ],
)
def test_ranks_train_as_one_process_except_for_batch_norm(
    tmp_path: Path, lab: Lab, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, choices: tuple[str, ...]
) -> None:
    # 36 training images make three batches on one process and on two
    own = ["trainer.precision=32-true", "data.batch_size=12", "trainer.max_epochs=3", "optim.lr=0.01", *choices]
    runs = make_run(*own, name="one"), make_run(*own, *DDP, name="two")
    monkeypatch.setattr(torch.nn.modules.batchnorm._BatchNorm, "forward", frozen)
    assert guarded(runs[0]) == 0
    assert lab("resnet_lab.job", str(runs[1].path), patch=FROZEN).wait(PATIENCE) == 0, output(tmp_path)
    one, two = (pd.read_csv(run.metrics_file) for run in runs)
    pd.testing.assert_frame_equal(one, two, atol=1e-4, rtol=1e-4)
    assert one["train/loss"].nunique() == 3  # they learned


KILLED = """def on_train_batch_start(self, batch, batch_idx):
        if (self.global_rank, self.current_epoch, batch_idx) == (1, {epoch}, 1):
            os.kill(os.getpid(), 9)
    Classifier.on_train_batch_start = on_train_batch_start"""


@pytest.mark.parametrize(
    ("workers", "epoch", "minutes", "choices"),
    [(2, 3, "null", ()), (2, 0, "1e-9", ()), (0, 1, "1e-9", PARTS)],
)
def test_killed_ranks_end_like_uninterrupted_ones(
    tmp_path: Path, lab: Lab, make_run: MakeRun, workers: int, epoch: int, minutes: str, choices: tuple[str, ...]
) -> None:
    own = [*choices, *DDP, "trainer.max_epochs=4", "data.rotation=20", "data.in_memory=false"]
    own.append(f"trainer.checkpoint_minutes={minutes}")
    whole, broken = make_run(*own, name="whole"), make_run(*own, f"data.num_workers={workers}", name="broken")

    def job(run: RunFolder, patch: str = "") -> int:
        return lab("resnet_lab.job", str(run.path), patch=patch).wait(PATIENCE)

    assert job(whole) == 0, output(tmp_path)
    assert job(broken, KILLED.format(epoch=epoch)) == 1
    wait_for(lambda: not jobs_alive(tmp_path))
    assert job(broken) == 0
    assert starts(broken) == 2
    assert "resuming in" in broken.log_file.read_text()
    assert broken.metrics_file.read_text() == whole.metrics_file.read_text()
    weights, others = (torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in (whole, broken))
    assert all(torch.equal(weights[key], others[key]) for key in weights)
