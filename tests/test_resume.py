"""A sweep command on existing run folders; its jobs run in this process."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import resnet_lab.train as train
from resnet_lab import job, launch, prepare
from resnet_lab.axes import labels_in
from resnet_lab.config import differences
from resnet_lab.errors import UserError
from resnet_lab.module import Classifier
from resnet_lab.processes import BUSY
from resnet_lab.run_folder import BOOKKEEPING, Busy, RunFolder, find_runs, list_jobs
from resnet_lab.schema import conf_dir
from resnet_lab.status import states_of
from resnet_lab.training import guarded

pytestmark = pytest.mark.usefixtures("empty_pictures", "command_in_this_process")

Sweep = Callable[..., int]


@pytest.fixture
def started() -> list[str]:
    """Return the names of the started jobs, in order."""
    return []


@pytest.fixture
def sweep(tmp_path: Path, experiment: None, monkeypatch: pytest.MonkeyPatch, started: list[str]) -> Sweep:
    """Return a function that runs a sweep in the folder `sweep` and returns its exit code."""

    def run_here(module: str, arguments: Sequence[str], fork: bool) -> int:
        run = RunFolder(Path(arguments[0]))
        if run.is_locked():
            return BUSY
        started.append(run.path.name)
        with run.lock():
            return guarded(run)

    def run(*arguments: str, multirun: bool = True) -> int:
        GlobalHydra.instance().clear()
        train.FAILED.clear()
        started.clear()
        flags = ["--config-dir", "conf", *(["-m"] if multirun else [])]
        monkeypatch.setattr(sys, "argv", ["train", *flags, "experiment=tiny", "sweep_dir=sweep", *arguments])
        return train.main()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run_module", run_here)
    monkeypatch.setattr(train, "preflight", lambda *_: True)
    return run


def jobs() -> dict[str, str]:
    """Return name → state."""
    return {job.name: job.state for job in states_of(Path("sweep"))}


@pytest.mark.slow
def test_the_same_command_runs_nothing_again_and_a_larger_grid_adds(sweep: Sweep, started: list[str]) -> None:
    assert sweep("optim.lr=0.1,0.2", "seed=0") == 0
    assert started == ["experiment-tiny_lr-0.1_seed-0", "experiment-tiny_lr-0.2_seed-0"]
    assert sweep("seed=0", "optim.lr=0.1,0.2") == 0
    assert started == []
    assert sweep("seed=1,0", "optim.lr=0.2,0.1", "data.num_workers=0", "figures=[scores]") == 0
    assert started == ["experiment-tiny_lr-0.2_seed-1", "experiment-tiny_lr-0.1_seed-1"]
    assert sorted(list_jobs(Path("sweep"))) == sorted(run.path.name for run in find_runs(["sweep"]))
    assert list(jobs().values()) == ["done"] * 4


@pytest.mark.slow
def test_a_failed_job_is_repeated_left_or_stops_the_sweep(
    sweep: Sweep, started: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Classifier.training_step

    def fails(self: Classifier, batch: object, batch_idx: int) -> object:
        if self.origin["config"]["seed"] == 1:
            raise MemoryError
        return step(self, batch, batch_idx)

    grid = ["seed=0,1,2"]
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", fails)
        assert sweep(*grid, "on_failed=stop") == 1
        assert list(jobs().values()) == ["done", "failed", "created"]
        assert capsys.readouterr().err.count("not started because experiment-tiny_seed-1 failed") == 1
        assert sweep(*grid, "on_failed=stop") == 1
        said = capsys.readouterr().err
        assert "experiment-tiny_seed-0: not started" not in said  # it is done
        assert "experiment-tiny_seed-1: not started because an earlier attempt failed" in said
        assert sweep(*grid, "on_failed=skip") == 0
        assert list(jobs().values()) == ["done", "failed", "done"]
        assert "(on_failed=skip): out of memory" in capsys.readouterr().out
        assert sweep(*grid) == 1  # repeated without success
    assert sweep(*grid, "on_failed=stop") == 1
    assert started == []
    assert sweep(*grid) == 0
    assert set(jobs().values()) == {"done"}


@pytest.mark.slow
def test_a_sweep_reads_its_pixels_from_one_source(sweep: Sweep) -> None:
    assert sweep("seed=0") == 0
    prepare.command(["data=retinopathy", "data.root=photographs", "data.cache_dir=cache", "data.image_size=24"])
    assert sweep("seed=0,1") == 0
    assert [run.read_status()["pixels"] for run in find_runs(["sweep"])] == ["originals", "originals"]


@pytest.mark.slow
def test_a_folder_is_a_run_or_a_sweep(sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=0,1", "start=false") == 0
    assert sweep("seed=0", multirun=False) == 1
    assert "contains a sweep; choose another sweep_dir for a single run" in capsys.readouterr().err
    assert sweep("seed=0,1", "sweep_dir=sweep/experiment-tiny_seed-0") == 1
    assert "contains a single run; choose another sweep_dir" in capsys.readouterr().err
    assert started == []


@pytest.mark.slow
def test_a_full_disk_is_reported_for_each_job(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_config", full)
    assert sweep("seed=0,1") == 1
    lines = [f"error: experiment-tiny_seed-{seed}: disk: No space left on device; free some space" for seed in (0, 1)]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")] == lines


@pytest.mark.slow
def test_a_refused_command_does_not_change_the_overrides(sweep: Sweep) -> None:
    assert sweep("optim.lr=0.1", "trainer.max_epochs=1", multirun=False) == 0
    assert sweep("optim.lr=0.2", "schedule=cosine", multirun=False) == 1
    overrides = {"experiment": "tiny", "optim.lr": "0.1", "trainer.max_epochs": "1"}
    assert RunFolder(Path("sweep")).overrides() == overrides


@pytest.mark.slow
def test_a_job_that_another_process_runs_is_left_to_it(
    sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("seed=0,1", "start=false") == 0
    assert started == []
    runs = find_runs(["sweep"])
    assert [run.read_status()["state"] for run in runs] == ["created", "created"]
    with runs[0].lock():
        assert sweep("seed=0,1") == 0
        assert started == [runs[1].path.name]
        assert "another process is running this job" in capsys.readouterr().err
    assert sweep("seed=0,1") == 0
    assert [run.read_status()["state"] for run in runs] == ["done", "done"]


@pytest.mark.slow
def test_the_same_command_tests_a_run_again_that_lost_its_predictions(
    sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = "trainer.max_epochs=1"
    assert sweep(own, multirun=False) == 0
    file = RunFolder(Path("sweep")).predictions_file("test")
    before = file.read_bytes()
    file.unlink()
    assert sweep(own, multirun=False) == 0
    assert (started, file.read_bytes()) == (["sweep"], before)
    assert "epoch 2" not in capsys.readouterr().out
    assert sweep(own, multirun=False) == 0
    assert started == []


def test_a_folder_of_another_configuration_is_refused_by_its_keys(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("trainer.max_epochs=1", multirun=False) == 0
    more = ("trainer.max_epochs=1", "start=false")
    assert sweep("optim.lr=0.3", "data.image_size=32", *more, multirun=False) == 1
    error = capsys.readouterr().err
    assert "data.image_size is 24 there, 32 here; optim.lr is 0.05 there, 0.3 here; choose another sweep_dir" in error


@pytest.mark.slow
def test_a_folder_without_an_epoch_accepts_a_corrected_configuration(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("start=false", multirun=False) == 0
    before = RunFolder(Path("sweep")).read_status()["config_hash"]
    assert RunFolder(Path("sweep")).read_status()["config_dir"] == "conf"  # for the command in the report
    assert sweep("data.num_workers=0", "keep_last=false", "start=false", multirun=False) == 0
    assert RunFolder(Path("sweep")).read_config()["keep_last"] is False
    capsys.readouterr()
    assert sweep("data.image_size=32", "start=false", multirun=False) == 0
    assert "the new configuration is used (data.image_size is 24 there, 32 here)" in capsys.readouterr().out
    assert RunFolder(Path("sweep")).read_config()["data"]["image_size"] == 32
    assert RunFolder(Path("sweep")).read_status()["config_hash"] != before


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", pytest.param("plateau", marks=pytest.mark.slow)])
def test_more_epochs_continue_a_run_as_if_set_from_the_start(
    sweep: Sweep, started: list[str], schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (f"schedule={schedule}", "optim.lr=0.02")
    assert sweep(*own, "trainer.max_epochs=4", "sweep_dir=whole", multirun=False) == 0
    assert sweep(*own, "trainer.max_epochs=2", multirun=False) == 0
    Path("sweep/evaluation_best_val").mkdir()
    capsys.readouterr()
    assert sweep(*own, "trainer.max_epochs=4", multirun=False) == 0
    out = capsys.readouterr().out
    assert "trainer.max_epochs was 2, is now 4" in out
    assert "evaluation_best_val will be outdated" in out
    whole, longer = RunFolder(Path("whole")), RunFolder(Path("sweep"))
    assert longer.read_status()["state"] == "done"
    for file in ("metrics.csv", "predictions_test.csv", "predictions_val.csv"):
        assert (longer.path / file).read_text() == (whole.path / file).read_text()
    assert longer.read_status()["config_hash"] == whole.read_status()["config_hash"]
    started.clear()
    assert sweep(*own, "trainer.max_epochs=4", multirun=False) == 0
    assert started == []


@pytest.mark.slow
def test_the_jobs_of_a_sweep_continue_with_more_epochs(
    sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("schedule=constant", "seed=0")
    assert sweep(*own, "trainer.max_epochs=1") == 0
    capsys.readouterr()
    assert sweep(*own, "trainer.max_epochs=2") == 0
    longer = "experiment-tiny_schedule-constant_seed-0_max_epochs-2"
    assert started == [longer]
    assert f"{longer.replace('epochs-2', 'epochs-1')} is renamed to {longer}" in capsys.readouterr().out
    (run,) = find_runs([Path("sweep")])
    assert [run.path.name] == list_jobs(Path("sweep")) == [longer]
    assert run.read_status()["starts"] == 2
    assert len(run.metrics_file.read_text().splitlines()) == 3
    assert sweep(*own, "trainer.max_epochs=3,4", "start=false") == 0  # an axis: no job is resumed
    assert len(find_runs([Path("sweep")])) == 3


@pytest.mark.slow
def test_an_override_that_repeats_a_value_trains_no_job_again(
    sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("trainer.max_epochs=1", "seed=0")
    assert sweep(*own) == 0
    (first,) = started
    weights = (Path("sweep") / first / "checkpoints" / "best.ckpt").read_bytes()
    capsys.readouterr()
    started.clear()
    assert sweep(*own, "optim.lr=0.05,0.1") == 0  # 0.05 is the value of the experiment
    (second,) = started
    out = capsys.readouterr().out
    assert "1 of 2 jobs have the settings of earlier ones" in out
    assert "new job" not in out
    assert jobs() == {first: "done", second: "done"}
    assert {each.name for each in Path("sweep").iterdir() if each.is_dir()} == {first, second}
    assert sorted(labels_in(Path("sweep"), {}).values()) == ["lr=0.05", "lr=0.1"]
    assert (Path("sweep") / first / "checkpoints" / "best.ckpt").read_bytes() == weights
    shutil.copytree("photographs", "others")
    assert sweep(*own, "optim.lr=0.05", "data.root=others", "start=false") == 0  # other data, another job
    assert len(jobs()) == 3


@pytest.mark.slow
def test_a_job_with_another_schedule_is_trained_from_scratch(
    sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs in (1, 2):
        assert sweep("schedule=cosine", "seed=0", f"trainer.max_epochs={epochs}") == 0
    assert "starts at the first epoch" in capsys.readouterr().out
    assert len(find_runs([Path("sweep")])) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (
            ("schedule=cosine",),
            ("schedule=cosine", "trainer.max_epochs=3"),
            "cosine over 3 epochs has other learning rates",
        ),
        (
            ("schedule=multistep",),
            ("schedule=multistep", "trainer.max_epochs=3"),
            "with model.pretrained=",
        ),
        (("schedule=constant",), ("schedule=constant", "trainer.max_epochs=1"), "max_epochs is 2 there, 1 here"),
        (("schedule=constant", "trainer.max_epochs=0"), ("schedule=constant",), "trainer.max_epochs=0"),
        (
            ("schedule=constant", "keep_last=false"),
            ("schedule=constant", "trainer.max_epochs=3"),
            "last.ckpt is missing",
        ),
    ],
)
def test_other_numbers_of_epochs_are_refused_with_a_remedy(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], first: tuple[str, ...], then: tuple[str, ...], said: str
) -> None:
    assert sweep(*first, multirun=False) == 0
    before = RunFolder(Path("sweep")).read_status()
    assert sweep(*then, multirun=False) == 1
    assert said in capsys.readouterr().err
    assert RunFolder(Path("sweep")).read_status() == before


@pytest.mark.slow
def test_a_run_that_stopped_early_is_done_with_more_epochs_too(
    sweep: Sweep, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("schedule=constant", "optim.lr=0.0", "trainer.early_stopping=1")
    assert sweep(*own, "trainer.max_epochs=4", multirun=False) == 0
    assert RunFolder(Path("sweep")).read_status()["epoch"] < 3
    started.clear()
    assert sweep(*own, "trainer.max_epochs=9", multirun=False) == 0
    assert "stopped early" in capsys.readouterr().out
    assert started == []
    assert RunFolder(Path("sweep")).read_config()["trainer"]["max_epochs"] == 9


@pytest.mark.slow
def test_the_root_of_the_data_may_be_typed_differently(sweep: Sweep, started: list[str]) -> None:
    assert sweep("data.root=photographs", "trainer.max_epochs=1") == 0
    (name,) = started
    started.clear()
    for root in ("photographs/", str(Path("photographs").absolute())):
        assert sweep(f"data.root={root}", "trainer.max_epochs=1") == 0
    assert started == []
    assert sorted(list_jobs(Path("sweep"))) == [name]


def test_differences_name_a_few_keys() -> None:
    before, overrides = {"a": 1, "data": {"root": "x", "b": 2}}, {"a": 1, "data": {"root": "y", "c": None}}
    assert differences(before, overrides) == ["data.b is 2 there, absent here", "data.c is absent there, null here"]
    many = {str(number): number for number in range(9)}
    assert differences({}, many, most=2)[-1] == "and 7 more keys"


def test_names_of_jobs_leave_out_bookkeeping() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys = compose("config", return_hydra_config=True).hydra.job.config.override_dirname.exclude_keys
    assert set(keys) == set(BOOKKEEPING) - {"data.root"}  # two folders of images may be an axis


def test_choices_that_do_not_exist_are_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("on_failed=again") == 1
    assert "again" in (error := capsys.readouterr().err)
    assert "retry" in error


@pytest.mark.slow
def test_a_job_without_its_first_status_gets_it(sweep: Sweep) -> None:
    assert sweep("seed=0", "start=false") == 0
    (run,) = find_runs(["sweep"])
    run.status_file.unlink()  # as after a kill between the two files
    assert sweep("seed=0", "start=false") == 0
    status = run.read_status()
    assert (status["state"], status["seed"], len(status["config_hash"])) == ("created", 0, 16)


@pytest.mark.parametrize("file", ["config.yaml", "status.json"])
def test_a_broken_file_of_a_job_is_named(sweep: Sweep, capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert sweep("start=false", multirun=False) == 0
    Path("sweep", file).write_text("")
    assert sweep("start=false", multirun=False) == 1
    error = capsys.readouterr().err
    assert f"sweep/{file} " in error
    assert "remove its folder and train the run again" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_death_of_a_waiting_process_is_not_that_of_the_job(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep("seed=0", "start=false") == 0
    (run,) = find_runs(["sweep"])
    monkeypatch.setattr(launch, "run_module", lambda *_: -signal.SIGKILL)
    monkeypatch.setattr(launch, "PATIENCE", 0.1)
    with run.lock():
        run.update_status(state="running")
        with pytest.raises(Busy):
            launch.start(run)
        assert run.read_status()["state"] == "running"
    with pytest.raises(UserError, match="out of memory, or by hand"):
        launch.start(run)
    assert run.read_status()["state"] == "failed"


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_a_job_does_not_train_what_another_command_has_changed_before_it_starts(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rate: float
) -> None:
    def load(module: str, arguments: Sequence[str], fork: bool) -> int:
        """Let another command create the same run while this one loads PyTorch; then begin its job."""
        words = sys.argv
        assert sweep(f"optim.lr={rate}", "start=false", multirun=False) == 0
        monkeypatch.setattr(sys, "argv", ["job", *arguments])
        code = job.main()
        monkeypatch.setattr(sys, "argv", words)
        return code

    trained = []
    monkeypatch.setattr("resnet_lab.training.guarded", lambda run: trained.append(run) or 0)
    monkeypatch.setattr(job, "stop_with_parent", lambda *_: None)
    monkeypatch.setattr(launch, "run_module", load)
    changed = rate != 0.5
    assert sweep("optim.lr=0.5", multirun=False) == int(changed)
    assert ("changed its configuration, in the meantime" in capsys.readouterr().err) == changed
    assert len(trained) == int(not changed)


@pytest.mark.slow
def test_more_epochs_on_other_data_leave_a_done_run_alone(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("schedule=constant", "trainer.max_epochs=1", multirun=False) == 0
    before = RunFolder(Path("sweep")).config_file.read_bytes()
    assert sweep("schedule=constant", "trainer.max_epochs=2", "data.root=elsewhere", multirun=False) == 1
    assert "is done with data.root=" in capsys.readouterr().err
    assert RunFolder(Path("sweep")).config_file.read_bytes() == before
    assert RunFolder(Path("sweep")).read_status()["state"] == "done"


def test_a_job_that_exits_before_its_end_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `sys.exit()` in a network of a user."""
    run = RunFolder(tmp_path)
    run.update_status(state="running")
    monkeypatch.setattr(launch, "run_module", lambda *_: 0)
    with pytest.raises(UserError, match="exited with code 0 before it was done; resume with python"):
        launch.start(run)
    assert run.read_status()["error"] == "exited with code 0 before it was done"
    run.update_status(state="done")
    launch.start(run)
