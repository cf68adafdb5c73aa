"""A run and a sweep read their pixels from one source, whatever is prepared, deleted or rebuilt meanwhile."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fake_data import encoded, refusal, write_medmnist
from waiting import PATIENCE

from resnet_lab import evaluate, training
from resnet_lab.callbacks import SamePixels
from resnet_lab.config import build
from resnet_lab.data.check import digest_of
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.prepared import PreparedSet, prepare
from resnet_lab.errors import UserError
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder, jobs_file, list_jobs
from resnet_lab.sweep import ListJobs
from resnet_lab.trained import load
from resnet_lab.training import guarded, read_data

MakeRun = Callable[..., RunFolder]


class Killed(BaseException):
    """Ends a job like kill -9."""


def prepared(run: RunFolder) -> PreparedSet:
    """Prepare the photographs of a run with its keys."""
    data: ImageData = build("data", run.read_config()["data"])
    prepare(data.prepared_set, list(data.listed()["path"]), processes=1)
    return data.prepared_set


def kill(run: RunFolder, epoch: int = 1) -> None:
    """Run the job until an epoch begins."""

    def dies(self: Classifier) -> None:
        if self.current_epoch == epoch:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", dies, raising=False)
        with pytest.raises(Killed):
            guarded(run)


def begin(run: RunFolder) -> str:
    """Start a job up to its first checkpoint; return its source of pixels, or the error."""
    try:
        with run.lock():
            run.update_status(state="running")
            read_data(run, run.read_config(), resumes=run.last_checkpoint.is_file())
            run.checkpoints.mkdir(exist_ok=True)
            run.last_checkpoint.touch()
    except UserError as error:
        return str(error)
    return str(run.read_status()["pixels"])


def other_jpeg(target: PreparedSet, name: str) -> None:
    """Rebuild a prepared set as another version of OpenCV would: one file and its index entry change."""
    index = pd.read_csv(target.index_file, dtype=str, keep_default_na=False).set_index("image")
    (target.folder / "images" / name).write_bytes(encoded("another", ".jpeg"))
    index.loc[name, "prepared"] = digest_of(encoded("another", ".jpeg"))
    index.to_csv(target.index_file)


@pytest.mark.parametrize("pixels", ["originals", "prepared"])
def test_status_and_log_contain_digests(make_run: MakeRun, caplog: pytest.LogCaptureFixture, pixels: str) -> None:
    run = make_run()
    if pixels == "prepared":
        prepared(run)
    with caplog.at_level(logging.INFO):
        assert begin(run) == pixels
    status = run.read_status()
    assert (status["recipe"]["image_size"], "jpeg" in status["recipe"]) == (24, pixels == "prepared")
    assert status["pixel_digests"].keys() == {"train", "val", "test"}
    (line,) = [line for line in caplog.messages if "images are read from" in line]
    digests = f"the prepared set (test {status['pixel_digests']['test']}"
    assert (digests if pixels == "prepared" else "the originals") in line


@pytest.mark.slow
def test_a_run_that_started_with_the_originals_resumes_with_them(make_run: MakeRun, tmp_path: Path) -> None:
    keys = ("trainer.max_epochs=2", "trainer.precision=32-true")
    whole, broken = make_run(*keys, name="whole"), make_run(*keys, name="broken")
    guarded(whole)
    kill(broken)
    prepared(broken)
    assert guarded(broken) == 0
    assert broken.metrics_file.read_text() == whole.metrics_file.read_text()
    assert broken.predictions_file("test").read_text() == whole.predictions_file("test").read_text()
    assert "the originals, the source that the job started with" in broken.log_file.read_text()
    evaluate.command([str(whole.best_checkpoint), f"out={tmp_path / 'out'}"])
    evaluated = RunFolder(tmp_path / "out").predictions_file("test")
    assert evaluated.read_text() == whole.predictions_file("test").read_text()


@pytest.mark.slow
def test_a_run_that_started_with_a_prepared_set_waits_for_it(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ("trainer.max_epochs=2", "trainer.precision=32-true")
    whole, broken = make_run(*keys, name="whole"), make_run(*keys, name="broken")
    target = prepared(broken)
    guarded(whole)
    kill(broken)
    before = broken.read_status()
    shutil.rmtree(target.folder)
    assert guarded(broken) == 1
    status = broken.read_status()
    assert f"{target.folder} lacks 64 of 64 photographs; run resnet-lab prepare" in status["error"]
    assert status["pixel_digests"] == before["pixel_digests"]
    assert str(tmp_path / "cache") not in whole.status_file.read_text()
    prepared(broken)
    assert guarded(broken) == 0
    assert broken.metrics_file.read_text() == whole.metrics_file.read_text()

    def warned() -> str:
        logging.getLogger().addHandler(caplog.handler)  # a job removes the handlers
        caplog.clear()
        evaluate.evaluate_split(model := load(str(whole.path)), model.origin["config"], "test")
        return caplog.text

    assert "other image files" not in warned()
    other_jpeg(target, "images/test0_left.jpeg")
    assert "trained on other image files: a prepared set of test with digest" in warned()
    evaluate.command([str(whole.path)])
    shutil.rmtree(target.folder)
    evaluate.command([str(whole.path)])
    folders = sorted(whole.path.glob("evaluation_*"))
    assert [folder.name.partition("~")[0] for folder in folders] == [
        "evaluation_best_test",
        "evaluation_best_test_pixels-originals",
    ]
    other, originals = (folder / "predictions_test.csv" for folder in folders)
    assert originals.read_bytes() == whole.predictions_file("test").read_bytes() != other.read_bytes()
    assert "trained on other image files: a prepared set then, the originals now" in warned()


@pytest.mark.slow
def test_a_run_without_a_finished_epoch_chooses_again(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=1")
    kill(run, epoch=0)
    assert run.read_status()["pixels"] == "originals"
    prepared(run)
    kill(run, epoch=0)
    assert run.read_status()["pixels"] == "prepared"


@pytest.mark.parametrize(
    ("note", "pixels"), [({"prepared": None}, "originals"), ({}, "originals"), ({"prepared": "/a/b"}, "prepared")]
)
def test_a_run_of_an_older_version_resumes_with_its_stored_source(
    make_run: MakeRun, note: dict[str, str | None], pixels: str
) -> None:
    run = make_run()
    begin(run)
    target = prepared(run)
    status = json.loads(run.status_file.read_text())
    for key in ("pixels", "recipe", "pixel_digests"):
        del status[key]
    run.status_file.write_text(json.dumps(status | note))
    assert begin(run) == pixels
    assert "/a/b" not in run.status_file.read_text()
    shutil.rmtree(target.folder)
    assert (begin(run) == "originals") == (pixels == "originals")


def test_a_set_that_became_incomplete_stops_the_run(make_run: MakeRun, photographs: Path) -> None:
    run = make_run()
    prepared(run)
    assert begin(run) == "prepared"
    file = photographs / "images" / "train0_left.jpeg"
    file.write_bytes(encoded("another", ".jpeg"))  # its row of the index is outdated
    shown = "lacks 1 of 64 photographs (changed after it was made: images/train0_left.jpeg); run resnet-lab prepare"
    assert shown in begin(run)


def test_a_set_that_was_rebuilt_with_other_bytes_stops_the_run(make_run: MakeRun) -> None:
    run = make_run()
    target = prepared(run)
    begin(run)
    before = run.read_status()["pixel_digests"]
    other_jpeg(target, "images/test0_left.jpeg")
    error = begin(run)
    assert "\n" not in error
    assert "choose another sweep_dir" in error
    assert f"the job started with other image files (a prepared set of test with digest {before['test']} then" in error
    assert run.read_status()["pixel_digests"] == before


def test_other_originals_stop_the_run(make_run: MakeRun, photographs: Path) -> None:
    run = make_run()
    begin(run)
    (photographs / "images" / "test0_left.jpeg").write_bytes(encoded("another", ".jpeg"))
    assert "the originals of test with digest" in begin(run)


def test_pixels_of_another_version_of_the_recipe_stop_the_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    begin(run)
    monkeypatch.setattr("resnet_lab.data.prepared.VERSION", 99)
    assert "version 2 of the recipe then, 99 now" in begin(run)


@pytest.mark.slow
def test_a_done_run_that_cannot_be_tested_again_stays_done(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=1")
    target = prepared(run)
    assert guarded(run) == 0
    before = run.read_status()
    shutil.rmtree(target.folder)
    run.stored_predictions("val").unlink()
    assert guarded(run) == 1
    after = run.read_status()
    assert (after["state"], after["metrics"]) == ("done", before["metrics"])
    assert "prepared" in after["error"]
    prepared(run)
    assert guarded(run) == 0
    assert run.stored_predictions("val").is_file()


def test_arrays_are_stored_as_the_source_without_a_log_line(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {split: [0, 1, 2, 3, 4] * 2 for split in ("train", "val", "test")}
    root = write_medmnist(tmp_path / "arrays" / "retinamnist.npz", labels).parent
    run = make_run("data=retinamnist", f"data.root={root}")
    with caplog.at_level(logging.INFO):
        assert begin(run) == "originals"
    assert run.read_status()["pixel_digests"].keys() == {"train", "val", "test"}
    assert "images are read from" not in caplog.text


# sweeps


@pytest.fixture
def make_job(make_run: MakeRun) -> MakeRun:
    """Create a job of a sweep."""

    def make(name: str, *overrides: str) -> RunFolder:
        run = make_run(*overrides, name=f"sweep/{name}")
        list_jobs(run.path.parent, [name])
        return run

    return make


@pytest.mark.slow
def test_a_sweep_that_started_with_the_originals_ends_with_them(
    make_job: MakeRun, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_job("a")
    assert begin(first) == "originals"
    prepared(first)
    with caplog.at_level(logging.INFO):
        assert begin(make_job("b", "seed=1")) == "originals"
    assert "the originals, the source that the sweep started with" in caplog.text
    assert begin(make_run("seed=2")) == "prepared"


def test_a_job_does_not_start_with_other_labels_than_its_sweep(make_job: MakeRun, photographs: Path) -> None:
    assert begin(make_job("first", "seed=0")) == "originals"
    labels = photographs / "train_label.csv"
    labels.write_text(labels.read_text().replace("4", "3"))
    assert begin(make_job("second", "seed=1")).startswith("first started with other images or labels in train (")
    assert begin(make_job("third", "data.val_fraction=0.5")) == "originals"


@pytest.mark.slow
def test_a_sweep_that_started_with_a_prepared_set_ends_with_it(make_job: MakeRun) -> None:
    first, second, third = make_job("a"), make_job("b", "seed=1"), make_job("c", "seed=2")
    target = prepared(first)
    assert begin(first) == "prepared"
    shutil.rmtree(target.folder)
    assert "lacks 64 of 64 photographs; run resnet-lab prepare" in begin(second)
    prepared(first)
    assert begin(second) == "prepared"
    other_jpeg(target, "images/test0_left.jpeg")
    assert begin(third).startswith("a started with other image files (a prepared set of test")


def test_another_recipe_in_the_sweep_takes_the_same_kind_of_files(make_job: MakeRun) -> None:
    first, other, ready = make_job("a"), make_job("b", "data.image_size=16"), make_job("c", "data.image_size=20")
    prepared(first)
    prepared(ready)
    assert begin(first) == "prepared"
    assert "lacks 64 of 64 photographs" in begin(other)
    assert begin(ready) == "prepared"


def test_originals_do_not_depend_on_the_recipe_of_the_job(make_job: MakeRun, photographs: Path) -> None:
    assert begin(make_job("a")) == "originals"
    assert begin(make_job("b", "data.image_size=16")) == "originals"
    (photographs / "images" / "test0_left.jpeg").write_bytes(encoded("another", ".jpeg"))
    assert "the originals of test with digest" in begin(make_job("c", "data.image_size=20"))


def test_other_splits_of_the_same_files_may_be_swept(make_job: MakeRun) -> None:
    first = make_job("a")
    prepared(first)
    assert begin(first) == "prepared"
    assert begin(make_job("b", "data.split_seed=1", "data.max_images=20")) == "prepared"


@pytest.mark.slow
def test_jobs_without_an_epoch_and_jobs_on_other_data_do_not_count(make_job: MakeRun, photographs: Path) -> None:
    others = shutil.copytree(photographs, photographs.with_name("others"))
    first, other, last = make_job("a"), make_job("b", f"data.root={others}"), make_job("c", "data.name=free")
    assert (begin(first), begin(other)) == ("originals", "originals")
    first.last_checkpoint.unlink()  # as after a stop in the first epoch
    prepared(first)
    (first.path.parent / "damaged").mkdir()
    (first.path.parent / "damaged" / "status.json").write_text("{")
    assert (begin(last), begin(first), begin(other)) == ("prepared", "prepared", "originals")


@pytest.mark.parametrize("state", ["done", "running"])
def test_a_done_or_running_job_decides_even_without_a_last_checkpoint(make_job: MakeRun, state: str) -> None:
    first = make_job("a")
    begin(first)
    first.last_checkpoint.unlink()
    first.update_status(state=state)
    prepared(first)
    with first.lock():
        assert begin(make_job("b")) == "originals"


def test_the_former_source_of_a_job_that_has_to_choose_again_does_not_count(
    make_job: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, seen = make_job("a"), []

    def stops(run: RunFolder, config: object, resumes: bool) -> None:
        seen.append(run.read_status()["pixels"])
        raise UserError("as far as this")

    begin(first)
    monkeypatch.setattr(training, "read_data", stops)
    guarded(first)
    first.last_checkpoint.unlink()
    guarded(first)
    assert seen == ["originals", None]


def test_the_folder_of_another_sweeper_is_that_of_a_sweep_too(tmp_path: Path) -> None:
    runtime = SimpleNamespace(choices={"hydra/sweeper": "optuna"})
    hydra = SimpleNamespace(runtime=runtime, sweep=SimpleNamespace(dir=str(tmp_path / "sweep")))
    ListJobs().on_multirun_start(SimpleNamespace(hydra=hydra))  # type: ignore[arg-type]
    assert jobs_file(tmp_path / "sweep").read_text() == ""


@pytest.mark.slow
def test_two_first_jobs_decide_one_after_the_other(make_job: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared files appear after the first job has looked for them and before it stores the result."""
    runs, looked, go_on = [make_job("a"), make_job("b", "seed=1")], threading.Event(), threading.Event()
    table = ImageData.table

    def waits(self: ImageData, pixels: str | None = None) -> object:
        found = table(self, pixels)
        if not looked.is_set():
            looked.set()
            go_on.wait(PATIENCE)
        return found

    monkeypatch.setattr(ImageData, "table", waits)
    threads = [threading.Thread(target=begin, args=(run,)) for run in runs]
    threads[0].start()
    assert looked.wait(PATIENCE)
    prepared(runs[0])
    threads[1].start()
    threads[1].join(1)
    assert "pixels" not in runs[1].read_status()
    go_on.set()
    for thread in threads:
        thread.join()
    assert [run.read_status()["pixels"] for run in runs] == ["originals", "originals"]


def test_ranks_that_read_different_files_stop() -> None:
    def start(first: str, own: str) -> None:
        strategy = SimpleNamespace(broadcast=lambda _: {"pixels": first})
        trainer = SimpleNamespace(strategy=strategy, datamodule=SimpleNamespace(noted={"pixels": own}))
        SamePixels().setup(trainer, None, "fit")  # type: ignore[arg-type]

    start("originals", "originals")
    assert "different files" in refusal(start, "originals", "prepared")


def test_a_resumed_job_normalizes_as_it_began(make_run: MakeRun) -> None:
    run = make_run()
    assert begin(run) == "originals"
    run.update_status(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])  # of an older version
    found = [read_data(run, run.read_config(), resumes=resumes) for resumes in (True, False)]
    assert [each.mean.tolist() == pytest.approx([0.1, 0.2, 0.3]) for each in found] == [True, False]
    assert found[0].std.tolist() == pytest.approx([0.4, 0.5, 0.6])
    run.update_status(mean=[0.1, "x"])
    message = refusal(read_data, run, run.read_config(), True)
    assert message.startswith(f"{run.status_file}: mean=")
