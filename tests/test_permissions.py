"""Unreadable files and folders give one line with the permission and the name, for every data set."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_data import (
    cifar10,
    class_folders,
    flowers102,
    medmnist,
    photographs,
    retinopathy,
    write_cifar10,
    write_class_folders,
    write_flowers102,
    write_kaggle,
    write_medmnist,
    write_studies,
)
from fake_runs import write_run

from resnet_lab.data.check import check_files
from resnet_lab.data.prepared import prepare
from resnet_lab.errors import UserError, one_line_of
from resnet_lab.failures import explained
from resnet_lab.models.pretrained import read
from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.status import states_of

Close = Callable[[Path], None]


@pytest.fixture
def close(monkeypatch: pytest.MonkeyPatch) -> Close:
    """Return a function that removes the permission to read (from root too, which chmod does not stop)."""

    def close(path: Path) -> None:
        def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
            def refusing(name: Any = ".", *arguments: Any, **more: Any) -> Any:
                if not isinstance(name, int) and Path(os.fsdecode(name)).is_relative_to(path):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
                return call(name, *arguments, **more)

            return refusing

        for owner, name in ((builtins, "open"), (io, "open"), (os, "scandir"), (os, "listdir")):
            monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
        access = os.access
        monkeypatch.setattr(os, "access", lambda name, mode: not Path(name).is_relative_to(path) and access(name, mode))

    return close


def write_all(root: Path) -> None:
    write_kaggle(root / "kaggle")
    write_studies(root / "studies")
    write_class_folders(root / "folders", {"train/a": 3, "train/b": 3})
    write_medmnist(root / "medmnist/bloodmnist.npz", {"train": range(8)})
    write_cifar10(root / "cifar")
    write_flowers102(root / "flowers", {"trnid": {1: 1, 2: 2}, "valid": {3: 1}, "tstid": {4: 2}})


@pytest.mark.parametrize(
    ("data", "root", "file", "changes"),
    [
        (retinopathy, "kaggle", "trainLabels.csv", {}),
        (retinopathy, "kaggle", "trainLabels.csv", {"train_csv": "trainLabels.csv"}),
        (retinopathy, "kaggle", "train", {}),
        (retinopathy, "kaggle", "train/7_left.jpeg", {}),
        (retinopathy, "studies", "train_img.csv", {}),
        (retinopathy, "studies", "train_label.csv", {}),
        (retinopathy, "studies", "images", {}),
        (class_folders, "folders", "", {}),
        (class_folders, "folders", "train", {}),
        (class_folders, "folders", "train/b", {}),
        (class_folders, "folders", "train/b", {"all_kinds": False}),
        (class_folders, "folders", "train/b/001.jpeg", {}),
        (photographs, "kaggle/train", "", {}),
        (photographs, "kaggle/train", "7_left.jpeg", {}),
        (photographs, "kaggle/train/7_left.jpeg", "", {}),
        (medmnist, "medmnist", "bloodmnist.npz", {}),
        (cifar10, "cifar", "cifar-10-batches-py", {}),
        (cifar10, "cifar", "cifar-10-batches-py/data_batch_2", {}),
        (flowers102, "flowers", "flowers-102", {}),
        (flowers102, "flowers", "flowers-102/imagelabels.mat", {}),
        (flowers102, "flowers", "flowers-102/jpg", {}),
    ],
)
def test_unreadable_files_and_folders_are_named(
    tmp_path: Path, close: Close, monkeypatch: pytest.MonkeyPatch, data: Any, root: str, file: str, changes: Any
) -> None:
    from torchvision.datasets import CIFAR10

    write_all(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # the files are fake
    described = data(tmp_path / root, **changes)
    closed = tmp_path / root / file
    close(closed)
    with pytest.raises((UserError, PermissionError)) as caught:
        described.table()
    for line in (one_line_of(caught.value), explained(caught.value)):  # messages of a verb and of a job
        assert line.startswith(str(closed)), line
        assert "Permission denied" in line
        assert not any(word in line for word in ("delete", "again", "damaged", "download"))


def test_unreadable_weights_are_named(tmp_path: Path, close: Close) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    close(file)
    with pytest.raises(UserError, match=f"^{file}: Permission denied; make it readable$"):
        read(file)


def test_check_and_report_name_the_permission_of_the_metrics(tmp_path: Path, close: Close) -> None:
    run = read_run(RunFolder(write_run(tmp_path / "run")))
    close(run.folder.stored_metrics)
    assert "run: metrics.csv cannot be read (Permission denied)" in differences_of([run])
    assert "metrics.csv cannot be read (Permission denied); its curves" in "".join(
        finding.text for finding in findings_of([run], tables_of([run]))
    )


def test_status_names_unreadable_folders(tmp_path: Path, close: Close) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    list_jobs(tmp_path, ["a", "b", "c"])
    close(tmp_path / "b")
    states = states_of(tmp_path)
    assert {job.name: job.state for job in states} == {"a": "done", "b": "unreadable", "c": "planned"}
    assert len(states) == 3
    with pytest.raises(UserError, match="b: no permission to read it"):
        states_of(tmp_path / "b")


def test_a_restored_permission_is_noticed(tmp_path: Path, close: Close, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file keeps its size and time, so the verdict on it must not be cached."""
    data = retinopathy(write_kaggle(tmp_path / "data"), on_bad_image="drop")
    file = tmp_path / "data" / "train" / "7_left.jpeg"
    with monkeypatch.context() as closed:
        closed.setattr("resnet_lab.data.check.read_file", lambda path: _refuse(path, file))
        verdict = check_files([str(file)], tmp_path / "cache").loc[str(file)]
        assert verdict["defect"] == "Permission denied"
        paths = data.read_table()["path"].tolist()
        assert (prepare(data.prepared_set, paths, 1)["defect"] != "").sum() == 1
    assert check_files([str(file)], tmp_path / "cache").loc[str(file), "defect"] == ""
    assert data.prepared_set.lookup(data.read_table()) is None  # incomplete, so the originals are read
    assert (prepare(data.prepared_set, paths, 1)["defect"] == "").all()


def _refuse(path: str, closed: Path) -> bytes:
    if path == str(closed):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return Path(path).read_bytes()
