"""A run reads its pixels from one source, and so does a sweep, whatever is prepared, deleted or made anew meanwhile."""

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

from resnet_lab import evaluate
from resnet_lab.callbacks import SamePixels
from resnet_lab.config import build
from resnet_lab.data.check import digest_of
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.prepared import PreparedSet, prepare
from resnet_lab.job import guarded, read_data
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder, list_jobs

MakeRun = Callable[..., RunFolder]


class Killed(BaseException):
    """Ends a job as kill -9 would."""


def prepared(run: RunFolder) -> PreparedSet:
    """Prepare the photographs of a run, with its keys."""
    data: ImageData = build(run.read_config()["data"])
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


def other_jpeg(target: PreparedSet, name: str) -> None:
    """Make a prepared set anew as another version of OpenCV would: one file has other bytes, and the index says so."""
    index = pd.read_csv(target.index_file, dtype=str, keep_default_na=False).set_index("image")
    (target.folder / "images" / name).write_bytes(encoded("another", ".jpeg"))
    index.loc[name, "prepared"] = digest_of(encoded("another", ".jpeg"))
    index.to_csv(target.index_file)


def assert_same(one: RunFolder, other: RunFolder) -> None:
    assert one.metrics_file.read_text() == other.metrics_file.read_text()
    assert one.predictions_file("test").read_text() == other.predictions_file("test").read_text()


@pytest.mark.parametrize("is_prepared", [False, True])
def test_what_is_noted_holds_digests_and_no_path(make_run: MakeRun, tmp_path: Path, is_prepared: bool) -> None:
    run = make_run("trainer.max_epochs=1")
    if is_prepared:
        prepared(run)
    assert guarded(run) == 0
    status = run.read_status()
    assert status["pixels"] == ("prepared" if is_prepared else "originals")
    assert (status["recipe"]["image_size"], "jpeg" in status["recipe"]) == (24, is_prepared)
    assert status["pixel_digests"].keys() == {"train", "val", "test"}
    assert str(tmp_path) not in run.status_file.read_text()
    lines = [line for line in run.log_file.read_text().splitlines() if "images are read from" in line]
    source = f"the prepared set (test {status['pixel_digests']['test']}" if is_prepared else "the originals"
    assert len(lines) == 1
    assert source in lines[0]


def test_a_run_that_began_with_the_originals_goes_on_with_them(make_run: MakeRun) -> None:
    whole, broken = make_run(name="whole"), make_run(name="broken")
    guarded(whole)
    kill(broken)
    prepared(broken)
    assert guarded(broken) == 0
    assert_same(whole, broken)
    assert "the originals, as the job began with them" in broken.log_file.read_text()


@pytest.mark.parametrize("note", [None, "/somewhere/prepared/x_0123456789ab", "absent"])
def test_a_run_of_an_older_version_goes_on_with_what_it_noted(make_run: MakeRun, note: str | None) -> None:
    whole, broken = make_run(name="whole"), make_run(name="broken")
    is_prepared = note not in (None, "absent")
    if is_prepared:
        prepared(broken)
    guarded(whole)
    kill(broken)
    status = json.loads(broken.status_file.read_text())
    for key in ("pixels", "recipe", "pixel_digests"):
        del status[key]
    broken.status_file.write_text(json.dumps(status | ({} if note == "absent" else {"prepared": note})))
    if is_prepared:
        assert guarded(broken) == 0
    else:
        prepared(broken)
        assert guarded(broken) == 0
    assert_same(whole, broken)
    assert "/somewhere" not in broken.status_file.read_text()


def test_a_run_that_began_with_a_prepared_set_waits_for_it(make_run: MakeRun) -> None:
    whole, broken = make_run(name="whole"), make_run(name="broken")
    target = prepared(broken)
    guarded(whole)
    kill(broken)
    before = broken.read_status()
    shutil.rmtree(target.folder)
    assert guarded(broken) == 1
    status = broken.read_status()
    assert f"{target.folder} lacks 64 of 64 photographs; run resnet-lab prepare" in status["error"]
    assert status["pixel_digests"] == before["pixel_digests"]
    prepared(broken)
    assert guarded(broken) == 0
    assert_same(whole, broken)


def test_a_set_that_is_incomplete_now_stops_the_run(make_run: MakeRun, photographs: Path) -> None:
    run = make_run()
    prepared(run)
    kill(run)
    file = photographs / "images" / "train0_left.jpeg"
    file.write_bytes(encoded("another", ".jpeg"))  # its row of the index is of the file before
    assert guarded(run) == 1
    assert "lacks 1 of 64 photographs" in run.read_status()["error"]


def test_a_set_that_was_made_anew_with_other_bytes_stops_the_run(make_run: MakeRun) -> None:
    run = make_run()
    target = prepared(run)
    kill(run)
    before = run.read_status()["pixel_digests"]
    other_jpeg(target, "images/test0_left.jpeg")
    assert guarded(run) == 1
    error = run.read_status()["error"]
    assert f"the job began with other image files (a prepared set of test with digest {before['test']} then" in error
    assert "sweep_dir" in error
    assert "\n" not in error
    assert run.read_status()["pixel_digests"] == before


def test_other_originals_stop_the_run(make_run: MakeRun, photographs: Path) -> None:
    run = make_run()
    kill(run)
    (photographs / "images" / "test0_left.jpeg").write_bytes(encoded("another", ".jpeg"))
    assert guarded(run) == 1
    assert "the originals of test with digest" in run.read_status()["error"]


def test_pixels_of_another_version_of_the_recipe_stop_the_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    kill(run)
    monkeypatch.setattr("resnet_lab.data.prepared.VERSION", 99)
    assert guarded(run) == 1
    assert "version 2 of the recipe then, 99 now" in run.read_status()["error"]


def test_a_run_without_an_epoch_to_show_decides_anew(make_run: MakeRun) -> None:
    run = make_run("trainer.max_epochs=2")
    kill(run, epoch=0)
    assert run.read_status()["pixels"] == "originals"
    prepared(run)
    kill(run)
    assert run.read_status()["pixels"] == "prepared"


def test_arrays_are_noted_and_nothing_is_said_of_files(make_run: MakeRun, tmp_path: Path) -> None:
    labels = {split: [0, 1, 2, 3, 4] * 2 for split in ("train", "val", "test")}
    root = write_medmnist(tmp_path / "arrays" / "retinamnist.npz", labels).parent
    run = make_run("data=retinamnist", f"data.root={root}", "trainer.max_epochs=1")
    assert guarded(run) == 0
    assert run.read_status()["pixel_digests"].keys() == {"train", "val", "test"}
    assert "images are read from" not in run.log_file.read_text()


# sweeps


@pytest.fixture
def make_job(make_run: MakeRun, tmp_path: Path) -> MakeRun:
    """Lay a job of a sweep."""

    def make(name: str, *overrides: str) -> RunFolder:
        run = make_run("trainer.max_epochs=2", *overrides, name=f"sweep/{name}")
        list_jobs(run.path.parent, [name])
        return run

    return make


def test_a_sweep_that_began_with_the_originals_ends_with_them(make_job: MakeRun, make_run: MakeRun) -> None:
    first, second, alone = make_job("a"), make_job("b", "seed=1"), make_run("trainer.max_epochs=1", name="alone")
    assert guarded(first) == 0
    prepared(first)
    assert guarded(second) == 0
    assert (first.read_status()["pixels"], second.read_status()["pixels"]) == ("originals", "originals")
    assert "the originals, as a began with them" in second.log_file.read_text()
    assert guarded(alone) == 0
    assert alone.read_status()["pixels"] == "prepared"


def test_a_sweep_that_began_with_a_prepared_set_ends_with_it(make_job: MakeRun) -> None:
    first, second, third = make_job("a"), make_job("b", "seed=1"), make_job("c", "seed=2")
    target = prepared(first)
    kill(first)  # interrupted, and to be resumed
    shutil.rmtree(target.folder)
    assert guarded(second) == 1
    assert "lacks 64 of 64 photographs; run resnet-lab prepare" in second.read_status()["error"]
    prepared(first)
    assert guarded(second) == 0
    other_jpeg(target, "images/test0_left.jpeg")
    assert guarded(third) == 1
    assert third.read_status()["error"].startswith("a began with other image files (a prepared set of test")


def test_another_recipe_in_the_sweep_takes_the_same_kind_of_files(make_job: MakeRun) -> None:
    first, other, ready = make_job("a"), make_job("b", "data.image_size=16"), make_job("c", "data.image_size=20")
    prepared(first)
    prepared(ready)
    assert guarded(first) == 0
    assert guarded(other) == 1
    assert "lacks 64 of 64 photographs" in other.read_status()["error"]
    assert guarded(ready) == 0
    assert ready.read_status()["pixels"] == "prepared"


def test_what_no_job_has_begun_or_is_of_other_data_binds_nobody(make_job: MakeRun) -> None:
    first, other, last = make_job("a"), make_job("b", "data.name=other"), make_job("c")
    kill(first, epoch=0)
    assert guarded(other) == 0
    prepared(first)
    (first.path.parent / "damaged").mkdir()
    (first.path.parent / "damaged" / "status.json").write_text("{")
    assert guarded(last) == 0
    assert [run.read_status()["pixels"] for run in (first, other, last)] == ["originals", "originals", "prepared"]
    assert guarded(first) == 0
    assert first.read_status()["pixels"] == "prepared"


def test_two_first_jobs_decide_one_after_the_other(make_job: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared files appear after the first job has looked for them and before it has noted what it found."""
    runs, looked, go_on = [make_job("a"), make_job("b", "seed=1")], threading.Event(), threading.Event()
    table = ImageData.table

    def waits(self: ImageData, pixels: str | None = None) -> object:
        found = table(self, pixels)
        if not looked.is_set():
            looked.set()
            go_on.wait(30)
        return found

    def begin(run: RunFolder) -> None:
        with run.lock():
            run.update_status(state="running")
            read_data(run, run.read_config(), resumes=False)
            done.wait(30)  # it runs on

    monkeypatch.setattr(ImageData, "table", waits)
    done = threading.Event()
    threads = [threading.Thread(target=begin, args=(run,)) for run in runs]
    threads[0].start()
    assert looked.wait(30)
    prepared(runs[0])
    threads[1].start()
    threads[1].join(0.5)
    go_on.set()
    while any("pixels" not in run.read_status() for run in runs) and any(thread.is_alive() for thread in threads):
        threads[0].join(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert [run.read_status()["pixels"] for run in runs] == ["originals", "originals"]


def test_ranks_that_read_different_files_stop() -> None:
    def start(first: str, own: str) -> None:
        strategy = SimpleNamespace(broadcast=lambda _: {"pixels": first})
        trainer = SimpleNamespace(strategy=strategy, datamodule=SimpleNamespace(noted={"pixels": own}))
        SamePixels().on_fit_start(trainer, None)  # type: ignore[arg-type]

    start("originals", "originals")
    assert "different files" in refusal(start, "originals", "prepared")


# evaluation


def test_a_model_is_evaluated_on_what_it_was_trained_on(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("trainer.max_epochs=1")
    guarded(run)
    prepared(run)
    evaluate.command([str(run.best_checkpoint), f"out={tmp_path / 'out'}"])
    evaluated = RunFolder(tmp_path / "out").predictions_file("test")
    assert evaluated.read_text() == run.predictions_file("test").read_text()


def test_other_files_than_those_of_the_training_are_said(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run("trainer.max_epochs=1")
    target = prepared(run)
    guarded(run)

    def warned() -> str:
        evaluate.command([str(run.path), f"out={tmp_path / 'out'}"])
        logging.getLogger().addHandler(caplog.handler)  # the command takes the handlers away
        caplog.clear()
        evaluate.answer(model := evaluate.load(str(run.path)), model.origin["config"], "test")
        return caplog.text

    assert "other image files" not in warned()
    other_jpeg(target, "images/test0_left.jpeg")
    assert "trained on other image files: a prepared set of test with digest" in warned()
    shutil.rmtree(target.folder)
    assert "trained on other image files: a prepared set then, the originals now" in warned()
