"""Files are complete under their final name at any moment."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_lab.checkpoints import AtomicCheckpointIO
from resnet_lab.errors import UserError
from resnet_lab.files import remove_unfinished, write_atomically
from resnet_lab.run_folder import RunFolder, find_runs


def write_config(run: RunFolder, value: int) -> Path:
    run.write_config({"value": value})
    return run.config_file


def write_status(run: RunFolder, value: int) -> Path:
    run.update_status(value=value)
    return run.status_file


def write_checkpoint(run: RunFolder, value: int) -> Path:
    AtomicCheckpointIO().save_checkpoint({"value": torch.full((30_000,), value)}, run.last_checkpoint)
    return run.last_checkpoint


WRITERS = [write_config, write_status, write_checkpoint]


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_fills_up_during_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    run = RunFolder(tmp_path)
    file = write(run, 1)
    before = file.read_bytes()
    opens = io.open

    class Full(io.FileIO):
        """A file on a disk with 4 bytes of free space: the last write that fits is cut short."""

        def write(self, content: Any) -> int:
            if self.tell() == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(content)[: 4 - self.tell()])

    def full(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return io.BufferedRandom(Full(file, "w+")) if "w" in mode else opens(file, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write(run, 2)
    assert caught.value.filename == str(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == [file.name]
    write(run, 2)
    assert file.read_bytes() != before


@pytest.mark.parametrize("write", WRITERS)
def test_a_kill_before_renaming_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    run = RunFolder(tmp_path)
    file = write(run, 1)
    before = file.read_bytes()

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(run, 2)
    assert file.read_bytes() == before


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    file, seen = tmp_path / "file", []

    def sync(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").read_bytes(), file.read_text()))

    file.write_text("old")
    monkeypatch.setattr(os, "fsync", sync)
    write_atomically(file, "new", durable=durable)
    assert seen == ([(b"new", "old")] if durable else [])
    assert file.read_text() == "new"


def test_files_of_a_live_process_are_kept_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda *_: False)  # like macOS, which lacks /proc
    for number in (os.getpid(), 1, 4194305):
        (tmp_path / f".a.csv.{number}").touch()
    remove_unfinished(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([f".a.csv.{os.getpid()}", ".a.csv.1"])


@pytest.mark.parametrize("name", ["metrics.csv", "predictions_test.csv", "train.log", "job.lock"])
def test_a_folder_in_place_of_a_file_is_named_before_the_job(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder"), RunFolder(tmp_path).lock():
        pass


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_file_in_place_of_a_folder_is_named_before_the_job(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with RunFolder(tmp_path).lock():
        pass
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is not a folder"), RunFolder(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be_written_is_named_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with (
        pytest.raises(UserError, match="tensorboard is not a folder, or cannot be written"),
        RunFolder(tmp_path).lock(),
    ):
        pass


def test_a_run_that_ends_during_the_look_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.update_status(state="running")
    assert run.read_status()["state"] == "interrupted"  # no process holds the lock

    def ends(run: RunFolder) -> bool:
        run.status_file.write_text('{"state": "done"}')
        return False

    monkeypatch.setattr(RunFolder, "is_locked", ends)
    assert run.read_status()["state"] == "done"


def test_runs_behind_links_are_found_once(tmp_path: Path) -> None:
    for name in ("all/s0", "elsewhere/s1", "elsewhere/s2"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("config.yaml", "status.json"):
            stored = tmp_path / "store" / f"{name.replace('/', '_')}.{file}"
            stored.parent.mkdir(exist_ok=True)
            stored.write_text("{}")
            (tmp_path / name / file).symlink_to(stored)
    (tmp_path / "all" / "s1").symlink_to(tmp_path / "elsewhere" / "s1")
    (tmp_path / "all" / "again").symlink_to(tmp_path / "elsewhere" / "s1")
    (tmp_path / "all" / "s0" / "up").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "s0" / "further_up").symlink_to(tmp_path)
    found = [run.path.relative_to(tmp_path.resolve()).as_posix() for run in find_runs([tmp_path / "all"])]
    assert found == ["all/s0", "elsewhere/s1"]
    assert [run.path.name for run in find_runs([tmp_path])] == ["s0", "s1", "s2"]
