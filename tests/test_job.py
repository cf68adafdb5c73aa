"""One job: its files, resuming, selection, and errors before training."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_data import write_labels, write_photographs
from fake_runs import write_run
from lightning import Trainer
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from resnet_lab import build, job
from resnet_lab.checkpoints import LastCheckpoint
from resnet_lab.metrics import SplitMetrics
from resnet_lab.models.pretrained import names_files
from resnet_lab.models.resnet import resnet
from resnet_lab.module import Classifier
from resnet_lab.objectives import Objective
from resnet_lab.report.findings import findings_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded
from resnet_lab.trust import trust

MakeRun = Callable[..., RunFolder]


class Killed(BaseException):
    """Ends a job like kill -9: nothing is written afterward."""


def state_of(run: RunFolder, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / name, weights_only=True)["state_dict"]


def assert_same_weights(one: RunFolder, other: RunFolder, name: str = "last.ckpt") -> None:
    first, second = state_of(one, name), state_of(other, name)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.pictures
def test_a_folder_of_runs_is_refused_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["job", str(tmp_path)])
    for number, state in enumerate(["done", "failed", "created"]):
        write_run(tmp_path / f"job {number}", state=state)
    assert job.main() == 1
    message = f"error: {tmp_path} is not a run but contains 3 runs; start one of them: python -m resnet_lab.job "
    more = "(or another one of the 2 that are not done)"
    assert capsys.readouterr().err == f"{message}'{tmp_path / 'job 1'}' {more}\n"
    for number in (1, 2):
        RunFolder(tmp_path / f"job {number}").update_status(state="done")
    assert job.main() == 1
    assert capsys.readouterr().err.endswith("contains 3 runs, and all are done\n")


def test_a_run_folder_contains_exactly_its_files(trained_run: MakeRun) -> None:
    run = trained_run()
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    events = {file for file in files if file.startswith("tensorboard/events.out")}
    assert events
    assert files - events == {
        "config.yaml",
        "status.json",
        "metrics.csv",
        "train.log",
        "predictions_val.csv",
        "predictions_test.csv",
        "confusion_matrix_val.csv",
        "confusion_matrix_val.png",
        "confusion_matrix_test.csv",
        "confusion_matrix_test.png",
        "class_report_val.csv",
        "class_report_test.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "job.lock",
        "tensorboard/hparams.yaml",
    }


def test_a_finished_run_has_a_complete_status(trained_run: MakeRun) -> None:
    run = trained_run()
    status = run.read_status()
    assert status.keys() >= {
        "schema_version", "state", "error", "config_hash", "split_fingerprint", "best_checkpoint", "last_checkpoint",
        "epoch", "monitor", "best_value", "collapsed", "skipped_images", "leaks", "seed", "versions", "commit",
        "hardware", "precision", "mean", "std", "num_workers", "parameters", "multiply_adds", "seconds",
        "core_seconds", "images_per_second", "peak_memory_mb",
    }  # fmt: skip
    assert (status["state"], status["error"], status["monitor"], status["epoch"]) == ("done", None, "val/qwk", 2)
    assert 0 < status["seconds"] < status["core_seconds"]  # the process did more than this job
    assert (status["best_checkpoint"], status["last_checkpoint"]) == ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
    metrics = pd.read_csv(run.metrics_file)
    assert list(metrics["epoch"]) == [0, 1, 2]
    assert status["best_value"] == pytest.approx(metrics["val/qwk"].max())
    predictions = pd.read_csv(run.predictions_file("test"), dtype={"image": str, "patient": str})
    assert list(predictions.columns) == ["image", "patient", "target", "prediction", *(f"p_{k}" for k in range(5))]
    assert predictions.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (predictions.filter(like="p_").to_numpy().argmax(1) == predictions["prediction"]).all()
    counts = pd.read_csv(run.confusion_matrix_file("test"), index_col=0).to_numpy()
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (predictions["target"], predictions["prediction"]), 1)
    assert (counts == expected).all()
    kappa = cohen_kappa_score(predictions["target"], predictions["prediction"], weights="quadratic")
    assert status["metrics"]["test/qwk"] == pytest.approx(kappa, abs=1e-6)
    report = pd.read_csv(run.class_report_file("test"))
    assert list(report.columns) == ["class", "precision", "recall", "f1", "support"]
    assert report["support"].sum() == len(predictions)


def test_the_best_checkpoint_is_tested(make_run: MakeRun) -> None:
    run = make_run("optim.lr=0.2")
    guarded(run)
    status, metrics = run.read_status(), pd.read_csv(run.metrics_file)
    best = metrics.loc[metrics["val/qwk"][::-1].idxmax()]  # the later of equal epochs
    assert status["metrics"]["val/qwk"] == pytest.approx(best["val/qwk"], abs=1e-6)
    assert status["metrics"]["val/loss"] == pytest.approx(best["val/loss"], rel=1e-3)


def test_a_finished_run_is_not_changed(trained_run: MakeRun) -> None:
    run = trained_run()
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "train.log"}
    assert guarded(run) == 0
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "train.log"} == before


MOMENTS = ("first epoch", "within an epoch", "validation", "before the last row", "after the last epoch")
QUICK = (0, "within an epoch")


@pytest.mark.parametrize(
    ("schedule", "workers", "moment"),
    [
        pytest.param(schedule, workers, moment, marks=() if (workers, moment) == QUICK else pytest.mark.slow)
        for schedule, workers in (("cosine", 0), ("plateau", 1))
        for moment in MOMENTS
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    make_run: MakeRun, trained_run: MakeRun, monkeypatch: pytest.MonkeyPatch, moment: str, schedule: str, workers: int
) -> None:
    extra = ["schedule.patience=0", "schedule.monitor=val/accuracy"] if schedule == "plateau" else []
    choices = [f"schedule={schedule}", *extra, "follow_test=true", "trainer.max_epochs=4"]
    whole = trained_run(*choices, name="whole")
    broken = make_run(*choices, f"data.num_workers={workers}", name="broken")
    with monkeypatch.context() as patch:
        hook, step = {
            "first epoch": ("training_step", 1),
            "within an epoch": ("training_step", 7),
            "validation": ("validation_step", 4),
            "before the last row": ("_note", 3),  # last.ckpt has the epoch, metrics.csv has not
            "after the last epoch": ("test_step", 0),
        }[moment]
        owner = LastCheckpoint if hook == "_note" else Classifier
        original, calls = getattr(owner, hook), iter(range(10**6))

        def dies(self, *args):
            if next(calls) == step:
                raise Killed
            return original(self, *args)

        patch.setattr(owner, hook, dies)
        with pytest.raises(Killed):
            guarded(broken)
    assert broken.read_status()["state"] == "interrupted"
    assert guarded(broken) == 0
    assert_same_weights(whole, broken)
    assert_same_weights(whole, broken, "best.ckpt")
    assert broken.metrics_file.read_text() == whole.metrics_file.read_text()
    assert broken.predictions_file("test").read_text() == whole.predictions_file("test").read_text()
    for key in ("best_value", "epoch"):
        assert broken.read_status()[key] == whole.read_status()[key]


@pytest.mark.slow
def test_an_interrupted_run_may_be_moved(
    make_run: MakeRun, trained_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = trained_run(name="whole"), make_run(name="broken")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_test_epoch_end", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            guarded(broken)
    moved = RunFolder(broken.path.rename(broken.path.with_name("elsewhere")))
    assert guarded(moved) == 0
    assert_same_weights(whole, moved, "best.ckpt")
    assert moved.read_status()["best_checkpoint"] == "checkpoints/best.ckpt"


@pytest.mark.slow
def test_early_stopping_is_not_forgotten(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ["optim.lr=0", "trainer.early_stopping=2", "trainer.max_epochs=9"]
    whole, broken = make_run(*choices, name="whole"), make_run(*choices, name="broken")
    guarded(whole)
    assert whole.read_status()["epoch"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "test_step", lambda self, *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            guarded(broken)
    guarded(broken)
    assert broken.metrics_file.read_text() == whole.metrics_file.read_text()


@pytest.fixture
def one_class(photographs: Path) -> list[str]:
    """Return the keys of a data set whose validation images are of one class."""
    grades = {f"{patient}_left": patient % 5 for patient in range(20)}
    write_labels(photographs / "train.csv", grades, "image,level")
    write_labels(photographs / "val.csv", dict.fromkeys(("30_left", "31_left"), 0), "image,level")
    write_photographs(photographs / "images", [*grades, "30_left", "31_left"])
    return ["data.train_csv=train.csv", "data.val_csv=val.csv"]


def test_with_an_undefined_monitor_the_last_epoch_is_kept(
    make_run: MakeRun, one_class: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(*one_class, "monitor=val/auroc", "trainer.max_epochs=3", "trainer.early_stopping=3")
    assert guarded(run) == 0
    text = run.status_file.read_text()
    status = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (status["best_checkpoint"], status["best_value"], status["epoch"]) == ("checkpoints/best.ckpt", None, 2)
    assert torch.load(run.best_checkpoint, weights_only=True)["epoch"] == 2
    assert f"{status['monitor']} is undefined with a single class in validation" in capsys.readouterr().out
    assert [finding.kind for finding in findings_of([read_run(run)], [])] == ["undefined monitor"]
    assert differences_of([read_run(run)]) == []


@pytest.mark.slow
def test_a_validation_of_one_class_selects_no_epoch_by_kappa(
    make_run: MakeRun, one_class: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(*one_class)
    values, compute = iter([0.0]), SplitMetrics.compute

    def with_kappa(
        self: SplitMetrics, objective: Objective, final: bool = False
    ) -> dict[str, torch.Tensor]:  # 0 with a wrong prediction, NaN without one
        return compute(self, objective, final) | (
            {"val/qwk": torch.tensor(next(values, torch.nan))} if self.split == "val" else {}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitMetrics, "compute", with_kappa)
        assert guarded(run) == 0
    assert torch.load(run.best_checkpoint, weights_only=True)["epoch"] == 2
    assert run.read_status()["best_value"] is None
    assert capsys.readouterr().out.count("val/qwk is undefined with a single class in validation") == 1


def test_training_images_of_one_class_are_refused(make_run: MakeRun, one_class: list[str], photographs: Path) -> None:
    write_labels(photographs / "train.csv", dict.fromkeys(("1_left", "2_left"), 3), "image,level")
    run = make_run(*one_class)
    assert guarded(run) == 1
    assert "severe is the only label of 2 training images" in run.read_status()["error"]
    assert not run.last_checkpoint.exists()


@pytest.mark.slow
def test_an_epoch_with_a_value_is_better_than_undefined_ones(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=4")
    values, compute = iter([torch.nan, 0.2, torch.nan, 0.1, 0.2]), SplitMetrics.compute

    def with_kappa(self: SplitMetrics, objective: Objective, final: bool = False) -> dict[str, torch.Tensor]:
        return compute(self, objective, final) | (
            {"val/qwk": torch.tensor(next(values))} if self.split == "val" else {}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitMetrics, "compute", with_kappa)
        assert guarded(run) == 0
    assert torch.load(run.best_checkpoint, weights_only=True)["epoch"] == 1
    assert run.read_status()["best_value"] == pytest.approx(0.2)


@pytest.mark.slow
def test_without_validation_the_last_epoch_is_kept(make_run: MakeRun) -> None:
    run = make_run("data.val_fraction=0")
    assert guarded(run) == 0
    status = run.read_status()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.ckpt"]
    assert (status["monitor"], status["best_checkpoint"], status["best_value"]) == (None, None, None)
    assert status["last_checkpoint"] == "checkpoints/last.ckpt"
    assert status["class_counts"]["train"] == [18, 6, 6, 6, 12]
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 2


def test_without_any_evaluation_split_a_run_still_ends(make_run: MakeRun, photographs) -> None:
    for name in ("test_img.csv", "test_label.csv"):
        (photographs / name).unlink()
    run = make_run("data.val_fraction=0", "trainer.max_epochs=1")
    assert guarded(run) == 0
    assert run.read_status()["metrics"] == {}


@pytest.mark.slow
def test_following_test_changes_nothing_but_the_columns(make_run: MakeRun, trained_run: MakeRun) -> None:
    plain, followed = trained_run(name="plain"), make_run("follow_test=true", name="followed")
    guarded(followed)
    assert_same_weights(plain, followed, "best.ckpt")
    columns = pd.read_csv(followed.metrics_file)
    assert columns["test/accuracy"].between(0, 1).all()
    pd.testing.assert_frame_equal(
        columns.drop(columns=[name for name in columns if name.startswith("test/")]), pd.read_csv(plain.metrics_file)
    )


@pytest.mark.slow
def test_one_process_needs_no_sync_batchnorm(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, trainer = [], build.Trainer

    def note(**settings: object) -> object:
        passed.append(settings["sync_batchnorm"])
        return trainer(**settings)

    monkeypatch.setattr(build, "Trainer", note)
    plain = make_run("trainer.max_epochs=1", name="plain")
    synchronized = make_run("trainer.max_epochs=1", "trainer.sync_batchnorm=true", name="synchronized")
    assert (guarded(plain), guarded(synchronized)) == (0, 0)
    assert passed == [False, True]
    assert_same_weights(plain, synchronized)


@pytest.mark.slow
def test_the_seed_changes_the_weights_but_not_the_splits(make_run: MakeRun) -> None:
    one, other = make_run("seed=0", name="0"), make_run("seed=1", name="1")
    guarded(one)
    guarded(other)
    assert not torch.equal(state_of(one)["model.conv1.weight"], state_of(other)["model.conv1.weight"])
    assert one.read_status()["split_fingerprint"] == other.read_status()["split_fingerprint"]


@pytest.mark.slow
def test_the_optimizer_and_its_schedule_get_the_configured_values(make_run: MakeRun) -> None:
    run = make_run("optim.weight_decay=0.01", "optim.momentum=0.7", "schedule=cosine", "schedule.warmup_epochs=0")
    guarded(run)
    (group,) = torch.load(run.last_checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["weight_decay"], group["momentum"]) == (0.05, 0.01, 0.7)
    rates = pd.read_csv(run.metrics_file)["lr"]  # rates at the end of each epoch; the cosine changes in each step
    assert list(rates) == pytest.approx([0.05 * (1 + np.cos(np.pi * epoch / 3)) / 2 for epoch in (1, 2, 3)])
    # the log shows the rates of the last steps; the last one is above 0
    steps = int(torch.load(run.last_checkpoint, weights_only=True)["global_step"])
    shown = [float(rate) for rate in re.findall(r"epoch \d  lr (\S+)", run.log_file.read_text())]
    last = [0.05 * (1 + np.cos(np.pi * (epoch / 3 - 1 / steps))) / 2 for epoch in (1, 2, 3)]
    assert shown == pytest.approx(last, rel=1e-3)


def test_a_run_is_done_when_its_files_are_written(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, noted, update = make_run("trainer.max_epochs=1"), [], RunFolder.update_status

    def files() -> dict[str, int]:
        left_out = ("status.json", "train.log", "job.lock")
        return {str(p): p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file() and p.name not in left_out}

    def note(self: RunFolder, **changes: object) -> None:
        if changes.get("state") == "done":
            noted.append(files())
        update(self, **changes)

    monkeypatch.setattr(RunFolder, "update_status", note)
    guarded(run)
    assert noted == [files()]


def test_files_for_resuming_are_on_the_disk_before_they_are_renamed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, durable, sync, rename = [], set(), os.fsync, Path.replace

    def note_sync(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink())
        sync(file)

    def note_rename(self: Path, target: Path) -> Path:
        durable.update({target.name} if self.resolve() in synced else ())
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    guarded(make_run("trainer.max_epochs=1"))
    assert durable >= {"status.json", "metrics.csv", "best.ckpt", "last.ckpt"}


@pytest.mark.slow
def test_pretraining_from_a_run_starts_at_its_weights(make_run: MakeRun, trained_run: MakeRun) -> None:
    source = trained_run(name="source")
    run = make_run(f"model.pretrained={source.path}", "optim.lr=0", "trainer.max_epochs=1", name="fine")
    guarded(run)
    assert torch.equal(state_of(run)["model.fc.weight"], state_of(source, "best.ckpt")["model.fc.weight"])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_file_called_none_is_no_source_of_weights(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("none", "imagenet", "weights.pth"):
        Path(name).mkdir() if kind == "folder" else Path(name).touch()
    assert names_files("weights.pth")
    assert not any(map(names_files, ("none", "imagenet", "absent.pth")))
    assert "pretrained" not in untrained(make_run).read_status()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Write published weights of the tiny network, with batch norm statistics unlike those of the images."""
    torch.manual_seed(5)
    network = resnet(8, 5, form="cifar", widths=[8, 8, 16])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.num_batches_tracked.fill_(700)  # type: ignore[union-attr]
    torch.save({"model": network.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "published.pth")
    return tmp_path / "published.pth"


def untrained(make_run: MakeRun, *overrides: str, name: str = "run") -> RunFolder:
    run = make_run("trainer.max_epochs=0", *overrides, name=name)
    assert guarded(run) == 0, run.read_status()["error"]
    return run


def test_without_epochs_the_initial_weights_are_evaluated(
    make_run: MakeRun, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", None)
    run = untrained(make_run, f"model.pretrained={published}", "schedule=cosine", "schedule.warmup_epochs=1")
    given = torch.load(published, weights_only=False)["model"]
    for name in ("best.ckpt", "last.ckpt"):
        assert torch.load(run.checkpoints / name, weights_only=True)["epoch"] == -1
        kept = {key.removeprefix("model."): value for key, value in state_of(run, name).items()}
        assert kept.keys() == given.keys()
        assert all(torch.equal(value, given[key]) for key, value in kept.items())
    (header,) = run.metrics_file.read_text().splitlines()
    assert header.startswith("epoch,lr,val/accuracy,")
    status = run.read_status()
    assert (status["state"], status["epoch"], status["images_per_second"]) == ("done", -1, None)
    assert (status["best_checkpoint"], status["last_checkpoint"]) == ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
    assert status["best_value"] == pytest.approx(status["metrics"]["val/qwk"], abs=1e-6)
    assert len(pd.read_csv(run.predictions_file("test"))) == 16
    assert len(pd.read_csv(run.predictions_file("val"))) == 16


@pytest.mark.slow
def test_the_report_finds_nothing_wrong_with_a_run_without_epochs(make_run: MakeRun, published: Path) -> None:
    run = read_run(untrained(make_run, f"model.pretrained={published}"))
    assert run.scores
    assert not run.trained
    assert differences_of([run]) == []
    run.status["best_value"] = None
    assert "undefined monitor" not in {finding.kind for finding in findings_of([run], [])}


@pytest.mark.slow
def test_a_run_without_epochs_is_done_once_and_tests_again(make_run: MakeRun, published: Path) -> None:
    run = untrained(make_run, f"model.pretrained={published}")
    before = run.status_file.read_bytes()
    assert guarded(run) == 0
    assert run.status_file.read_bytes() == before
    predictions = run.predictions_file("test").read_bytes()
    run.predictions_file("test").unlink()
    published.unlink()
    weights = state_of(run)
    assert guarded(run) == 0
    assert run.predictions_file("test").read_bytes() == predictions
    assert run.read_status()["epoch"] == -1
    assert all(torch.equal(value, weights[key]) for key, value in state_of(run).items())
    assert "random initial values" not in run.log_file.read_text()


def test_evaluating_random_weights_gives_a_warning(make_run: MakeRun) -> None:
    run = untrained(make_run, "data.val_fraction=0", "monitor=val/accuracy")
    assert "model.pretrained=none: these weights are random initial values" in run.log_file.read_text()
    assert run.metrics_file.read_text() == "epoch,lr\n"
    assert [file.name for file in run.checkpoints.iterdir()] == ["last.ckpt"]
    assert run.read_status()["best_checkpoint"] is None
    assert differences_of([read_run(run)]) == []


@pytest.mark.slow
def test_a_monitor_without_a_value_selects_nothing_without_epochs(make_run: MakeRun, one_class: list[str]) -> None:
    run = untrained(make_run, *one_class)
    assert run.read_status()["best_value"] is None
    assert (run.checkpoints / "best.ckpt").is_file()


def test_a_collapsed_run_is_marked(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run("optim.lr=0", "data.mean=null", "data.std=null", "trainer.max_epochs=1")
    guarded(run)
    counts = pd.read_csv(run.confusion_matrix_file("val"), index_col=0).to_numpy()
    one_class = counts.sum(0).max() >= 0.98 * counts.sum()
    assert run.read_status()["collapsed"] == one_class
    assert ("at least 98 % of the validation predictions" in run.log_file.read_text()) == one_class
    assert one_class  # an untrained network always predicts one class


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=9", "depth"),
        ("model.activation=Relu6000", "Relu6000"),
        ("monitor=val/kappa", "monitor=val/kappa"),
        ("model.pretrained=nowhere.pt", "nowhere.pt"),
        ("data.root=nowhere", "nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_line_before_training(make_run: MakeRun, override: str, message: str) -> None:
    run = make_run(override)
    assert guarded(run) == 1
    status = run.read_status()
    assert status["state"] == "failed"
    assert message in status["error"]
    log = run.log_file.read_text()
    assert "Traceback" not in log
    assert not run.metrics_file.exists()


def test_a_bad_image_stops_the_job_or_is_dropped(make_run: MakeRun, photographs) -> None:
    file = sorted((photographs / "images").iterdir())[0]
    file.write_bytes(file.read_bytes()[:200])
    run = make_run(name="stops")
    assert guarded(run) == 1
    assert file.name in run.read_status()["error"]
    run = make_run("data.on_bad_image=drop", "trainer.max_epochs=1", name="drops")
    assert guarded(run) == 0
    assert run.read_status()["skipped_images"] == 1
    assert sum(map(sum, run.read_status()["class_counts"].values())) == 63


@pytest.mark.slow
def test_balancing_twice_gives_one_warning(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run("data.sampling=balanced", "loss.class_weights=balanced", "trainer.max_epochs=2")
    assert guarded(run) == 0
    assert run.log_file.read_text().count("both balance the classes") == 1
    once = make_run("data.sampling=balanced", "trainer.max_epochs=1", name="once")
    assert guarded(once) == 0
    assert "both balance" not in once.log_file.read_text()


def test_a_defect_shows_its_traceback_and_marks_the_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "training_step", lambda self, *args: 1 / 0)
    run = make_run()
    assert guarded(run) == 1
    assert run.read_status()["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in run.log_file.read_text()


def test_checkpoints_hold_plain_values_only(trained_run: MakeRun) -> None:
    run = trained_run("trainer.max_epochs=1")
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    origin = checkpoint["resnet_lab"]
    assert json.loads(json.dumps(origin)) == origin
    assert origin["class_names"][0] == "no DR"


def test_images_of_any_size_and_mode_are_read(make_run: MakeRun, photographs) -> None:
    names = sorted((photographs / "images").iterdir())
    Image.open(names[0]).convert("L").save(names[0])
    Image.open(names[1]).resize((90, 31)).save(names[1])
    assert guarded(make_run("trainer.max_epochs=1")) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=plateau", "schedule.monitor=val/acc"], "schedule.monitor=val/acc: no such metric"),
        (["schedule=plateau", "data.val_fraction=0"], "schedule=plateau needs a validation split"),
        (["trainer.early_stopping=2", "data.val_fraction=0"], "trainer.early_stopping needs a validation split"),
        (
            ["trainer.sync_batchnorm=true", "trainer.devices=2", "trainer.strategy=ddp"],
            "trainer.sync_batchnorm=true with 2 ranks on the CPU: SyncBatchNorm needs GPUs",
        ),
    ],
)
def test_choices_that_do_not_fit_stop_before_training(make_run: MakeRun, overrides: list[str], message: str) -> None:
    run = make_run(*overrides)
    assert guarded(run) == 1
    assert message in run.read_status()["error"]
    assert not run.metrics_file.exists()


@pytest.mark.parametrize(("version", "code"), [(1, 0), (2, 1)])
def test_an_unused_key_stops_a_job_unless_an_older_version_wrote_it(
    make_run: MakeRun, version: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("trainer.max_epochs=1")
    config = run.read_config()
    run.write_config(config | {"trainer": config["trainer"] | {"max_epoch": 50}})
    run.update_status(schema_version=version)
    assert guarded(run) == code
    assert "trainer.max_epoch" in capsys.readouterr().out
    if code:
        assert "did you mean trainer.max_epochs?" in run.read_status()["error"]


@pytest.mark.slow
def test_patients_and_a_missing_test_split_are_reported_at_the_start(
    make_run: MakeRun, photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run("trainer.max_epochs=1")
    assert guarded(run) == 0
    patients = run.read_status()["patients"]
    assert (patients["form"], patients["number"], patients["doubt"]) == ("_left/_right", 32, "")
    assert "train0 (train0_left, train0_right)" in patients["summary"]
    log = run.log_file.read_text()
    assert log.count("patients: 32 in 64 images, by the form _left/_right of the file names") == 1
    assert "there is no test split" not in log
    write_labels(
        photographs / "all.csv", {f"train{n // 2}_{('left', 'right')[n % 2]}": n % 5 for n in range(30)}, "image,level"
    )
    run = make_run("data.train_csv=all.csv", "trainer.max_epochs=1", name="one_csv")
    assert guarded(run) == 0
    lines = run.log_file.read_text().splitlines()
    (place,) = [n for n, line in enumerate(lines) if "there is no test split" in line and "data.test_fraction" in line]
    assert place < next(n for n, line in enumerate(lines) if "epoch 1" in line)


@pytest.mark.parametrize("mean", ["train", "[0.5,0.5,0.5]"])
def test_all_images_in_test_cannot_be_trained_on(make_run: MakeRun, mean: str) -> None:
    run = make_run("data.all_images=test", f"data.mean={mean}", f"data.std={mean}")
    assert guarded(run) == 1
    assert "has no split train" in run.read_status()["error"]
    assert "data.all_images=test" in run.read_status()["error"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.depth=19", "model.depth=19"),
        ("model.freeze=layer9", "layer9"),
        ("model.pretrained=absent.pth", "absent.pth"),
        ("trainer.accelerator=gpu", "sees no GPU"),
    ],
)
def test_a_wrong_network_or_device_fails_before_the_images_are_read(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, override: str, named: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("resnet_lab.training.read_data", lambda *_, **__: pytest.fail("the data were read"))
    run = make_run(override)
    assert guarded(run) == 1
    assert named in run.read_status()["error"]


@pytest.mark.slow
def test_the_check_of_initial_weights_logs_nothing_twice(make_run: MakeRun) -> None:
    source, run = make_run("trainer.max_epochs=1"), make_run("trainer.max_epochs=0", name="second")
    assert guarded(source) == 0
    torch.save(torch.load(source.best_checkpoint, weights_only=True) | {"w": torch.ones(2)}, source.best_checkpoint)
    config = run.read_config()
    run.write_config(config | {"model": config["model"] | {"pretrained": str(source.path)}})
    assert guarded(run) == 0
    lines = [line.partition("  ")[2] for line in run.log_file.read_text().splitlines() if "model.pretrained=" in line]
    assert len(lines) == len({*lines}) == 2


def test_a_job_that_tests_again_refuses_nan_weights(trained_run: MakeRun) -> None:
    run = trained_run("trainer.max_epochs=1")
    checkpoint = torch.load(run.best_checkpoint, weights_only=True)
    checkpoint["state_dict"]["model.bn1.running_mean"][0] = torch.inf
    torch.save(checkpoint, run.best_checkpoint)
    run.predictions_file("test").unlink()
    assert guarded(run) == 1
    assert "best.ckpt" in run.read_status()["error"]
    assert not run.predictions_file("test").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("seed", "x"), ("trainer", None), ("data", None), ("on_failed", "never"), ("keep_last", "maybe")]
)
def test_a_value_of_another_type_in_a_handwritten_configuration_is_named(
    make_run: MakeRun, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    run.write_config(run.read_config() | {key: value})
    assert guarded(run) == 1
    said = capsys.readouterr().out
    assert key in run.read_status()["error"]
    assert "Traceback" not in said


OWN_NETWORK = """from torch import nn


class Net(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))
"""


@pytest.mark.slow
def test_an_external_network_without_pretraining_is_resumed(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    trust(["model:own_network.Net"])
    whole, broken = make_run(name="whole"), make_run(name="broken")
    for run in (whole, broken):
        run.write_config(run.read_config() | {"model": {"_target_": "own_network.Net", "width": 4}})
    guarded(whole)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_test_epoch_end", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            guarded(broken)
    assert guarded(broken) == 0
    assert_same_weights(whole, broken)


def test_a_training_that_a_callback_ended_is_not_continued(make_run: MakeRun) -> None:
    stop = ("monitor=val/loss", "patience=1", "mode=max")
    trust(["callbacks:lightning.pytorch.callbacks.EarlyStopping"])
    own = ["trainer.max_epochs=6", "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"]
    run = make_run(*own, *(f"+callbacks.stop.{each}" for each in stop))
    assert guarded(run) == 0
    before = run.metrics_file.read_bytes(), run.predictions_file("test").read_bytes()
    assert 2 <= len(before[0].splitlines()) - 1 < 6
    run.predictions_file("test").unlink()
    assert guarded(run) == 0
    assert (run.metrics_file.read_bytes(), run.predictions_file("test").read_bytes()) == before


def test_a_configuration_that_was_edited_during_the_training_is_refused(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=2")
    assert guarded(run) == 0
    run.update_status(state="interrupted")
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("lr: 0.05", "lr: 0.5"))
    assert guarded(run) == 1
    assert "was edited after last.ckpt was written: optim.lr is 0.05 there, 0.5 here" in run.read_status()["error"]
    run.config_file.write_text(text)
    assert guarded(run) == 0
