"""The speed of training in the log, and the random generators of a step."""

import logging
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import seed_everything
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from resnet_lab import callbacks
from resnet_lab.callbacks import EXPLODED, Ending, FiniteLoss, Observer, StepSeed
from resnet_lab.checkpoints import EpochRows, LastCheckpoint
from resnet_lab.data.datamodule import DataModule
from resnet_lab.errors import UserError
from resnet_lab.processes import Stopped
from resnet_lab.run_folder import RunFolder


class Clock:
    """Clock that the test advances."""

    now = 0.0

    def perf_counter(self):
        return self.now


def epoch(observer, clock, batches, wait, work, workers=0, rank=0, on_gpu=False):
    """Run an epoch of batches of 10 images, each with `wait` s of reading and `work` s of training."""
    datamodule = SimpleNamespace(num_workers=workers, advice=lambda: "ADVICE")
    batch = {"target": OnGpu(range(10)) if on_gpu else range(10)}
    for number in range(batches):
        clock.now += wait
        trainer = SimpleNamespace(
            global_step=1,
            loggers=[],
            datamodule=datamodule,
            world_size=1,
            is_global_zero=rank == 0,
            is_last_batch=number == batches - 1,
        )
        datamodule.arrived = Mark(clock.now) if on_gpu else None
        observer.on_train_batch_start(trainer, None, batch, number)
        clock.now += work
        observer.on_train_batch_end(trainer, None, None, batch, number)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(callbacks, "time", clock)
    return clock


@pytest.mark.parametrize(("workers", "rates"), [(0, "it reads 40 images/s"), (2, "it reads 20 images/s")])
def test_training_that_waits_for_data_warns_once(clock, caplog, workers, rates):
    observer = Observer(["a"])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            epoch(observer, clock, 21, wait=0.25, work=0.25, workers=workers)
    (record,) = caplog.records
    assert record.getMessage() == (f"training waits for data 50 % of the time: {rates}, the network takes 40/s; ADVICE")
    assert observer.images_per_second == pytest.approx(20)
    assert observer.data_wait == pytest.approx(0.5)


class OnGpu(list):
    """Targets of a batch on a GPU."""

    is_cuda = True


class Mark:
    """Event of a GPU, which ends each batch 0.2 s after the loop."""

    def __init__(self, time=None, enable_timing=True):
        self.time = time

    def record(self):
        self.time = callbacks.time.now + 0.2

    def elapsed_time(self, later):
        return 1000 * (later.time - self.time)


def test_a_gpu_waits_from_the_end_of_its_work(clock, monkeypatch):
    monkeypatch.setattr(callbacks.torch, "cuda", SimpleNamespace(Event=Mark, synchronize=lambda: None))
    observer = Observer(["a"])
    for _ in range(2):  # the marks of an epoch do not count in the next one
        epoch(observer, clock, 5, wait=0.25, work=0.25, on_gpu=True)
    assert observer.images_per_second == pytest.approx(20)
    assert observer.data_wait == pytest.approx(4 * 0.05 / 2)


def test_training_that_hardly_waits_does_not_warn(clock, caplog):
    observer = Observer(["a"])
    with caplog.at_level(logging.WARNING):
        epoch(observer, clock, 21, wait=0.01, work=0.25)
        epoch(Observer(["a"]), clock, 5, wait=0.1, work=0.1)  # 0.4 s: too little for a warning
    assert not caplog.records
    assert observer.data_wait == pytest.approx(0.01 / 0.26)


def test_short_epochs_that_wait_warn_when_the_time_adds_up(clock, caplog):
    observer, other = Observer(["a"]), Observer(["a"])
    with caplog.at_level(logging.WARNING):
        for number in range(6):
            epoch(other, clock, 5, wait=0.1, work=0.1, rank=1)  # only the first rank warns
            epoch(observer, clock, 5, wait=0.1, work=0.1)
            assert len(caplog.records) == (number >= 2)  # 0.4 s per epoch


@pytest.mark.parametrize(
    ("in_memory", "pixels", "workers", "ranks", "advice"),
    [
        (False, "originals", 8, 1, "run resnet-lab prepare once with the same keys, then train in another sweep_dir"),
        (False, "prepared", 2, 1, "set data.num_workers=4"),
        (False, "prepared", 1, 2, "set data.num_workers=2"),
        (True, "originals", 0, 1, "set data.num_workers=4"),
        (False, "prepared", 4, 1, "use smaller images (data.image_size), or more cores"),
        (False, "prepared", 2, 2, "use smaller images (data.image_size), or more cores"),
    ],
)
def test_advice_names_the_remaining_options(monkeypatch, in_memory, pixels, workers, ranks, advice):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    datamodule = SimpleNamespace(pixels=pixels, in_memory=in_memory, num_workers=workers, ranks=ranks)
    assert DataModule.advice(datamodule) == advice


def test_the_global_generators_depend_only_on_seed_epoch_and_rank():
    def drawn(seed, epoch, rank):
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeed(seed).on_train_batch_start(trainer, None, None, 0)
        return random.random(), np.random.random(), torch.rand(1).item()

    first = drawn(0, 3, 1)
    others = [drawn(1, 3, 1), drawn(0, 4, 1), drawn(0, 3, 0)]
    assert drawn(0, 3, 1) == first
    assert all(one != other for values in others for one, other in zip(first, values, strict=True))
    sequence = np.random.SeedSequence([0, 3, 0, 1])
    seed_everything(int(sequence.generate_state(1)[0]), verbose=False)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == first


@pytest.mark.parametrize("used", [True, False])
def test_the_generator_of_a_gpu_in_use_is_seeded_too(monkeypatch, used):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    StepSeed(0).on_train_batch_start(SimpleNamespace(current_epoch=3, global_rank=1), None, None, 0)
    assert seeds == [int(np.random.SeedSequence([0, 3, 0, 1]).generate_state(1)[0])] * used


@pytest.mark.parametrize(("accumulate", "saved"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [2, 5]), (9, [])])
def test_a_checkpoint_inside_an_epoch_waits_for_the_optimizer_s_step(tmp_path, accumulate, saved):
    found = []
    last = LastCheckpoint(RunFolder(tmp_path), EpochRows(), None, minutes=0.0)
    for number in range(7):
        trainer = SimpleNamespace(
            is_last_batch=number == 6,
            accumulate_grad_batches=accumulate,
            world_size=1,
            current_epoch=0,
            num_training_batches=7,
            save_checkpoint=lambda _, number=number: found.append(number),
        )
        last.on_train_batch_end(trainer, None, None, None, number)
    assert found == saved


def test_a_metric_that_an_epoch_does_not_log_is_undefined_there(tmp_path):
    """A callback logs `train/extra` in epoch 1 only, and the run is resumed after it."""
    rows, known = EpochRows(), {}
    optimizers = [SimpleNamespace(param_groups=[{"lr": 0.5}])]
    for epoch in range(3):
        if epoch == 2:
            rows, state = EpochRows(), rows.state_dict()
            rows.load_state_dict(state)
            known = {}
        trainer = SimpleNamespace(callback_metrics=known, current_epoch=epoch, optimizers=optimizers)
        rows.on_train_epoch_start(trainer, None)
        known |= {"val/loss": torch.tensor(float(epoch))} | ({"train/extra": torch.tensor(7.0)} if epoch == 1 else {})
        rows.note(trainer, None)
    rows.write(tmp_path / "metrics.csv")
    lines = ["epoch,lr,val/loss,train/extra", "0,0.5,0.0,nan", "1,0.5,1.0,7.0", "2,0.5,2.0,nan"]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == lines
    trainer = SimpleNamespace(callback_metrics=known, current_epoch=3, optimizers=optimizers)
    rows.on_train_epoch_start(trainer, None)
    known["val/loss"] = torch.tensor(3.0)
    rows.note(trainer, None)
    assert rows.rows[-1] == {"epoch": 3, "lr": 0.5, "val/loss": 3.0}


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (torch.tensor([1.0, float("nan"), -2.0]), "nan"),
        (torch.tensor([1.0, float("-inf")]), "inf"),
        (torch.tensor([1e11, 1.0]), "inf"),  # larger than EXPLODED
        (torch.tensor([1.0, float("nan")], dtype=torch.complex64), "nan"),
        (torch.tensor([9e9, -9e9], dtype=torch.bfloat16), ""),
        (torch.tensor([5]), ""),
        (torch.tensor([True]), ""),
        (torch.empty(0), ""),
    ],
)
def test_values_that_are_not_finite_are_found(value, seen):
    trainer = SimpleNamespace(current_epoch=2)
    if not seen:
        FiniteLoss._check("head.weight", value, trainer, EXPLODED)
        return
    with pytest.raises(UserError, match=f"head.weight became {seen} in epoch 3: lower optim.lr"):
        FiniteLoss._check("head.weight", value, trainer, EXPLODED)


@pytest.mark.parametrize(("error", "kills"), [(RuntimeError("Connection closed by peer"), 0), (None, 1)])
def test_the_first_rank_is_not_killed_before_it_stores_that_another_one_died(
    tmp_path, monkeypatch, error: Exception | None, kills: int
):
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher.procs.append(subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]))
    launcher.procs[0].wait()
    observer = _ChildProcessObserver(child_processes=launcher.procs, main_pid=os.getpid())
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, signum: killed.append(process))
    if error:
        trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), is_global_zero=True)
        Ending(RunFolder(tmp_path)).on_exception(trainer, None, error)
    assert observer._run()
    assert killed == [os.getpid()] * kills


def test_the_first_rank_ends_the_others_with_its_own_error(tmp_path):
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher.procs.append(other)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), is_global_zero=True)
    Ending(RunFolder(tmp_path)).on_exception(trainer, None, ValueError("boom"))
    assert other.wait(30) == -9


def test_a_stopped_rank_does_not_hide_why_the_job_failed(tmp_path):
    run = RunFolder(tmp_path)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None), is_global_zero=False, global_rank=1)
    run.update_status(state="running", error=None)
    Ending(run).on_exception(trainer, None, Stopped(15))
    assert run.read_status()["error"] == "rank 1: stopped by SIGTERM"
    run.update_status(state="failed", error="ValueError: boom")
    Ending(run).on_exception(trainer, None, Stopped(15))
    assert run.read_status()["error"] == "ValueError: boom"
