"""Each fault during a job gives a one-line error, and costs at most the current epoch."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from resnet_lab import checkpoints, job, training
from resnet_lab.checkpoints import is_whole, resume_point
from resnet_lab.data import datamodule
from resnet_lab.data.datamodule import ImageDataset
from resnet_lab.files import write_atomically
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]
HOURS = 3600.0


def state_of(run: RunFolder, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / name, weights_only=True)["state_dict"]


def same_end(run: RunFolder, other: RunFolder) -> bool:
    """Return whether two runs ended with the same weights, metrics and predictions."""
    one, two = state_of(run), state_of(other)
    files = (run.metrics_file, run.predictions_file("test"))
    others = (other.metrics_file, other.predictions_file("test"))
    return all(torch.equal(one[key], two[key]) for key in one) and all(
        file.read_text() == twin.read_text() for file, twin in zip(files, others, strict=True)
    )


def raising(error: BaseException, call: int, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return `hook` with one call that raises."""
    calls = iter(range(10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise error
        return hook(*args, **kwargs)

    return wrapped


def test_a_nan_loss_stops_the_job_before_a_checkpoint_is_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(self: Classifier, batch: Any, batch_idx: int, step: Any = Classifier.training_step) -> Any:
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if self.current_epoch == 2 else loss

    monkeypatch.setattr(Classifier, "training_step", spoilt)
    run = make_run("trainer.max_epochs=4")
    assert guarded(run) == 1
    status = run.read_status()
    assert status["state"] == "failed"
    assert status["error"].startswith("the loss became nan in epoch 3: lower optim.lr")
    assert status["error"].endswith("; earlier checkpoints are kept")
    assert "Traceback" not in run.log_file.read_text()
    assert list(pd.read_csv(run.metrics_file)["epoch"]) == [0, 1]
    assert (run.checkpoints / "best.ckpt").is_file()
    assert all(torch.isfinite(value).all() for value in state_of(run).values())


@pytest.mark.slow
def test_nan_weights_replace_no_checkpoint(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(self: Classifier, *_: Any) -> None:  # the last step of an epoch, after its loss
        if self.trainer.is_last_batch and self.current_epoch == 2:
            next(self.parameters()).data[:] = float("nan")

    run = make_run("trainer.max_epochs=3", "monitor=val/accuracy")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_end", spoilt, raising=False)
        assert guarded(run) == 1
    assert "became nan in epoch 3" in run.read_status()["error"]
    for file in (run.last_checkpoint, run.best_checkpoint):
        kept = torch.load(file, weights_only=True)
        assert kept["epoch"] < 2
        assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert guarded(run) == 0  # resumes


def test_weights_that_explode_in_the_first_step_fail_the_job(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=1", "data.batch_size=64", "optim.lr=1e30")
    assert guarded(run) == 1
    assert "became" in run.read_status()["error"]
    assert not list(run.checkpoints.glob("*"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("CUDA error: out of memory\nmore"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_one_line_with_advice(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(Classifier, "training_step", raising(error, 2, Classifier.training_step))
    run = make_run()
    assert guarded(run) == 1
    assert run.read_status()["error"].startswith("out of memory (")
    assert run.read_status()["error"].endswith("lower data.batch_size, data.image_size or data.num_workers")
    assert "Traceback" not in run.log_file.read_text()


def test_batch_norm_of_one_value_is_one_line_with_advice(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Classifier, *args: Any) -> None:
        torch.nn.BatchNorm2d(1)(torch.zeros(1, 1, 1, 1))

    monkeypatch.setattr(Classifier, "training_step", step)
    run = make_run()
    assert guarded(run) == 1
    assert "data.batch_size to at least 2" in run.read_status()["error"]
    assert "Traceback" not in run.log_file.read_text()


def test_a_job_whose_packages_cannot_be_imported_has_failed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    error = ImportError("libtorch_cpu.so: failed to map segment\nfrom shared object")
    with run.lock():
        assert job.not_imported(run, error, alone=False) == 1
        assert run.read_status()["state"] == "created"  # another process runs the job
        capsys.readouterr()
        assert job.not_imported(run, error, alone=True) == 1
    assert run.read_status()["state"] == "failed"
    assert "libtorch_cpu.so" in run.read_status()["error"]
    assert capsys.readouterr().err.count("\n") == 1
    run.update_status(state="done")
    job.not_imported(run, error, alone=False)
    assert run.read_status()["state"] == "done"  # the result is not lost


@pytest.mark.slow
def test_workers_that_hang_end_the_job_with_one_line(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodule, "TIMEOUT", 2.0)
    monkeypatch.setattr(ImageDataset, "__getitems__", lambda self, keys: time.sleep(60))
    run = make_run("data.num_workers=1")
    assert guarded(run) == 1
    assert "DataLoader timed out after 2" in run.read_status()["error"]
    assert "--shm-size" in run.read_status()["error"]
    assert "Traceback" not in run.log_file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["last.ckpt", "best.ckpt", "metrics.csv"])
def test_a_full_disk_truncates_no_file_and_the_job_resumes_with_free_space(
    make_run: MakeRun, trained_run: MakeRun, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    whole, broken = trained_run(name="whole"), make_run(name="broken")
    full, written = OSError(errno.ENOSPC, "No space left on device", file), iter(range(10**6))

    def write(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == file and next(written) == 1:
            raise full
        write_atomically(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", write)
        if file == "best.ckpt":
            patch.setattr(checkpoints.RunCheckpoint, "check_monitor_top_k", lambda *args: True)
        assert guarded(broken) == 1
    assert broken.read_status()["state"] == "failed"
    assert broken.read_status()["error"] == (
        f"{file}: No space left on device; free some space and run the same command again; no file was truncated"
    )
    assert all(is_whole(kept) for kept in broken.checkpoints.iterdir())
    assert guarded(broken) == 0
    assert same_end(whole, broken)


def test_a_disk_too_full_for_the_status_is_still_one_line(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("model.depth=9")
    update = RunFolder.update_status

    def no_room(self: RunFolder, **changes: Any) -> None:
        if changes.get("state") == "failed":
            raise OSError(errno.ENOSPC, "No space left on device")
        update(self, **changes)

    monkeypatch.setattr(RunFolder, "update_status", no_room)
    assert guarded(run) == 1
    shown = capsys.readouterr().out
    assert "model.depth=9 is unknown" in shown
    assert "status.json cannot be written: No space left on device" in shown
    assert "Traceback" not in shown


@pytest.fixture
def halfway(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Return a run that died in its third epoch; its first epoch is the best; a worker reads its images."""
    run = make_run("trainer.max_epochs=4", "data.num_workers=1", name="halfway")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", raising(KeyboardInterrupt(), 4, Classifier.training_step))
        patch.setattr(checkpoints.RunCheckpoint, "check_monitor_top_k", lambda self, trainer, *_: _first(trainer))
        with pytest.raises(SystemExit):
            guarded(run)
    assert list(pd.read_csv(run.metrics_file)["epoch"]) == [0, 1]
    return run


def _first(trainer: Any) -> bool:
    return trainer.current_epoch == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "choice"),
    [("cut", "best"), ("flipped", "best"), ("cut", "start"), ("all", "best"), ("another network", "best")],
)
def test_a_damaged_last_checkpoint_is_reported_and_replaced(
    trained_run: MakeRun, halfway: RunFolder, damage: str, choice: str
) -> None:
    whole = trained_run("trainer.max_epochs=4", name="whole")
    data = halfway.last_checkpoint.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    if damage == "another network":
        content = torch.load(halfway.last_checkpoint, weights_only=True)
        content["state_dict"]["model.fc.bias"] = torch.ones(7)
        torch.save(content, halfway.last_checkpoint)
    else:
        halfway.last_checkpoint.write_bytes(flipped if damage == "flipped" else data[:middle])
    kept = halfway.last_checkpoint.read_bytes()
    if damage == "all":
        (halfway.checkpoints / "best.ckpt").write_bytes(b"")
    config = halfway.read_config()
    halfway.write_config(config | {"on_corrupt": choice})
    assert guarded(halfway) == 0
    source = "best.ckpt" if choice == "best" and damage != "all" else "the first epoch"
    assert f"last.ckpt is damaged; resuming from {source}" in halfway.log_file.read_text()
    assert same_end(whole, halfway)  # from either checkpoint
    assert (halfway.checkpoints / "last.ckpt.damaged").read_bytes() == kept


PARTS = {"epoch": 1, "global_step": 2, "state_dict": {"w": torch.ones(1)}, "optimizer_states": [], "lr_schedulers": []}
PARTS |= {"loops": {}, "callbacks": {"a": {}}, "pytorch-lightning_version": "2.5", "resnet_lab": {}}


def keep(run: RunFolder, **parts: Any) -> RunFolder:
    """Write checkpoints without training; `parts` replace those of last.ckpt, and None removes one."""
    run.checkpoints.mkdir(parents=True)
    torch.save(PARTS, run.best_checkpoint)
    content = {key: value for key, value in (PARTS | parts).items() if value is not None}
    torch.save(content, run.last_checkpoint)
    return run


@pytest.mark.parametrize(
    "parts",
    [{"callbacks": None}, {"callbacks": {}}, {"callbacks": []}, {"state_dict": {"w": 1}}, {"state_dict": []}]
    + [{key: None} for key in PARTS],
)
def test_a_checkpoint_without_its_parts_is_damaged(tmp_path: Path, parts: dict[str, Any]) -> None:
    assert resume_point(keep(RunFolder(tmp_path), **parts), "best") == tmp_path / "checkpoints" / "best.ckpt"
    assert resume_point(RunFolder(tmp_path), "start") is None


@pytest.mark.parametrize("content", [[PARTS], {"a": 1}, torch.ones(2), "text", None])
def test_an_invalid_checkpoint_is_moved_aside_before_it_is_replaced(tmp_path: Path, content: Any) -> None:
    run = keep(RunFolder(tmp_path))
    assert resume_point(run, "best") == run.last_checkpoint
    run.last_checkpoint.unlink()
    run.last_checkpoint.mkdir() if content is None else torch.save(content, run.last_checkpoint)
    for suffix in ("", "1"):
        assert resume_point(run, "best") == run.best_checkpoint
        checkpoints.AtomicCheckpointIO().save_checkpoint({"b": suffix}, str(run.last_checkpoint))
        aside = run.checkpoints / f"last.ckpt.damaged{suffix}"
        assert aside.is_dir() if content is None and not suffix else aside.is_file()
    checkpoints.AtomicCheckpointIO().save_checkpoint(PARTS, str(run.last_checkpoint))
    assert resume_point(run, "best") == run.last_checkpoint
    assert not (run.checkpoints / "last.ckpt.damaged2").exists()


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, None])
def test_a_checkpoint_that_is_unreadable_for_now_is_not_changed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, fault: int | None
) -> None:
    run = keep(make_run())
    before = {file.name: file.read_bytes() for file in run.checkpoints.iterdir()}
    error = OSError(fault, os.strerror(fault), "last.ckpt") if fault else MemoryError()
    monkeypatch.setattr(checkpoints.zipfile, "ZipFile", raising(error, 0, len))
    assert guarded(run) == 1
    assert ("last.ckpt cannot be read" if fault else "out of memory") in run.read_status()["error"]
    assert "Traceback" not in run.log_file.read_text()
    assert {file.name: file.read_bytes() for file in run.checkpoints.iterdir()} == before


def test_a_damaged_best_checkpoint_is_reported_and_replaced(halfway: RunFolder) -> None:
    halfway.best_checkpoint.write_bytes(b"")
    assert guarded(halfway) == 0
    assert "best.ckpt is damaged; the best of the following epochs" in halfway.log_file.read_text()
    assert is_whole(halfway.best_checkpoint)
    assert halfway.read_status()["best_value"] == pd.read_csv(halfway.metrics_file)["val/qwk"][2:].max()


@pytest.mark.slow
def test_the_clock_may_be_set_back(make_run: MakeRun, trained_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = trained_run(name="whole"), make_run(name="broken")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", raising(KeyboardInterrupt(), 5, Classifier.training_step))
        with pytest.raises(SystemExit):
            guarded(broken)
    before, now = broken.read_status(), time.time
    monkeypatch.setattr(time, "time", lambda: now() - 5 * HOURS)
    for path in broken.path.rglob("*"):
        os.utime(path, (now() + HOURS, now() + HOURS))  # files from the future
    assert guarded(broken) == 0
    assert same_end(whole, broken)
    assert before["seconds"] < broken.read_status()["seconds"] < HOURS


@pytest.mark.slow
def test_last_checkpoints_are_dropped_on_demand(make_run: MakeRun) -> None:
    run = make_run("keep_last=false", "trainer.max_epochs=1")
    assert guarded(run) == 0
    assert [file.name for file in run.checkpoints.iterdir()] == ["best.ckpt"]
    assert run.read_status()["last_checkpoint"] is None
    alone = make_run("keep_last=false", "trainer.max_epochs=1", "data.val_fraction=0", name="alone")
    assert guarded(alone) == 0
    assert [file.name for file in alone.checkpoints.iterdir()] == ["last.ckpt"]  # the only checkpoint


def test_a_fault_after_training_costs_no_training(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("keep_last=false", "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr(training, "log_hyperparameters", raising(OSError(errno.ENOSPC, "No space left"), 0, len))
        assert guarded(run) == 1
    assert is_whole(run.last_checkpoint)
    assert guarded(run) == 0
    assert "resuming in" in run.log_file.read_text()
    assert run.log_file.read_text().count("epoch 2 ") == 1
    assert not run.last_checkpoint.exists()


@pytest.fixture
def interrupted_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that Ctrl-C stopped after its first epoch."""
    run = make_run()
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", raising(KeyboardInterrupt(), 4, Classifier.training_step))
        with pytest.raises(SystemExit):
            guarded(run)
    return run


def test_a_job_does_not_resume_with_other_labels(interrupted_run: RunFolder, photographs: Path) -> None:
    run = interrupted_run
    labels = photographs / "test_label.csv"
    labels.write_text("\n".join(reversed(labels.read_text().splitlines())))
    before = run.read_status()["split_fingerprint"]["test"]
    assert guarded(run) == 1
    assert run.read_status()["error"].startswith(
        f"the job started with other images or labels in test ({before} then, "
    )
    assert run.read_status()["split_fingerprint"]["test"] == before


def test_a_job_does_not_resume_with_its_training_images_in_another_order(
    interrupted_run: RunFolder, photographs: Path
) -> None:
    run = interrupted_run
    before = run.read_status()
    for name in ("train_img.csv", "train_label.csv"):
        header, *rows = (photographs / name).read_text().splitlines()
        (photographs / name).write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert guarded(run) == 1
    error = f"the job started with the training images in another order ({before['train_order']} then, "
    assert run.read_status()["error"].startswith(error)
    assert run.read_status()["split_fingerprint"] == before["split_fingerprint"]


def test_damage_outside_the_checksums_is_found(trained_run: MakeRun) -> None:
    run = trained_run("trainer.max_epochs=1", "data.val_fraction=0")
    data = run.last_checkpoint.read_bytes()
    assert is_whole(run.last_checkpoint)
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x06\x06"))  # entry of the directory at the end
    for place in (entry + 8, entry + 10, entry + 47):  # flags, method, name
        run.last_checkpoint.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not is_whole(run.last_checkpoint), place


def test_unfinished_files_of_a_killed_process_are_removed(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=1")
    run.checkpoints.mkdir()
    leftover = run.checkpoints / ".last.ckpt.4194305"  # no process has this number
    leftover.write_bytes(b"half")
    assert guarded(run) == 0
    assert not leftover.exists()


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    import faults

    assert len(faults.kills(tmp_path.resolve(), 3, int(time.time()), 40, workers=2)) == 3  # `kills` asserts the rest
