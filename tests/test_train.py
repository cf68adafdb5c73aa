"""The command line for users: one line per error, one folder per job, and no torch where it is not needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from waiting import PATIENCE

import resnet_lab.train as train
from resnet_lab.data.sampler import Sampling
from resnet_lab.run_folder import RunFolder, find_runs

QUICK = [item for item in TINY if not item.startswith("trainer.max_epochs")]


def lab(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"resnet_lab.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def one_error(result: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that an error may show."""
    assert result.returncode != 0
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith("loading PyTorch")]
    assert len(lines) == 1, lines
    assert "error: " in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["data.rooot=x"], ["data.rooot", "rooot"]),
        pytest.param(["model=resnext"], ["resnext", "resnet_cifar"], marks=pytest.mark.slow),
        pytest.param(["trainer.max_epoch=3"], ["max_epoch"], marks=pytest.mark.slow),
        pytest.param(["trainer.max_epochs=many"], ["many", "trainer.max_epochs"], marks=pytest.mark.slow),
        pytest.param(["experiment=nothing"], ["experiment/nothing"], marks=pytest.mark.slow),
        pytest.param(["+optim.momentun=0.9"], ["did you mean optim.momentum?"], marks=pytest.mark.slow),
        (["data=retinopathy"], ["data.root is not set"]),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    line = one_error(lab("train", *arguments, cwd=tmp_path))
    for part in parts:
        assert part in line


@pytest.mark.slow
def test_a_misspelled_key_in_a_users_experiment_file_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\noptim:\n  momentun: 0.9\n")
    line = one_error(lab("train", "--config-dir", "mine", "experiment=typo", cwd=tmp_path))
    assert "did you mean optim.momentum?" in line
    (folder / "typo.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 3\n")
    assert "epochs" in one_error(lab("train", "--config-dir", "mine", "experiment=typo", cwd=tmp_path))


@pytest.mark.parametrize("shown", [("--cfg", "job"), ("--info", "defaults")])
def test_unknown_keys_of_a_configuration_that_is_only_printed_are_refused(
    shown: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndata: {image_col: x}\n")
    for words, error in (
        (["+optim.learning_rate=0.1"], "did you mean optim.lr?"),
        (["experiment=mine", "--config-dir", str(tmp_path), "seed=1"], "did you mean data.image_column?"),
        (["data=retinopathy", "+optim.learning_rate=0.1"], "did you mean optim.lr?"),  # data.root is not set
        (["trainer.max_epochs=-1"], "trainer.max_epochs=-1"),
    ):
        monkeypatch.setattr(sys, "argv", ["train", *words, *shown])
        assert train.main() == 2
        printed = capsys.readouterr()
        assert (printed.out, error in printed.err) == ("", True), printed


def test_keys_that_are_not_set_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "data=own", "--cfg", "job", "loss=own", "-p", "data"])
    assert train.main() == 0
    assert "_target_: ???" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = one_error(lab("train", "sweep_dir=file/run", cwd=tmp_path))
    assert "choose a sweep_dir that can be written" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    line = one_error(lab("train", "sweep_dir=locked/run", cwd=tmp_path))
    assert "Permission denied" in line


def test_a_verb_runs_in_its_own_process(tmp_path: Path) -> None:
    assert "nowhere" in one_error(lab("__main__", "status", "nowhere", cwd=tmp_path))


@pytest.mark.parametrize(("module", "shown"), [("joblib.externals.loky", True), ("submitit.core", True), ("os", False)])
def test_a_dead_process_of_a_launcher_is_one_line(
    module: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies() -> None:
        raise type("Terminated", (Exception,), {"__module__": module})("a worker is gone\nmore")

    for name, value in (("train", dies), ("stop_on_signals", lambda: None), ("this_is_the_command", lambda: None)):
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(sys, "argv", ["train"])
    if not shown:
        with pytest.raises(Exception, match="a worker is gone"):
            train.main()
        return
    assert train.main() == 1
    line = "error: a process of the launcher died (a worker is gone); resume with the same command\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("launchers", "handed"), [([], False), (["joblib"], False), (["slurm"], True), (["slurm", "basic"], False)]
)
def test_launchers_of_a_cluster_are_recognized(launchers: list[str], handed: bool) -> None:
    assert train._hands_over(["train", *(f"hydra/launcher={name}" for name in launchers)]) == handed


def test_light_commands_do_not_import_torch() -> None:
    modules = ["run_folder", "__main__", "job", "train", "report.__main__"]
    heavy = "{'torch', 'lightning'} & {*sys.modules}"
    imported = "".join(f"import resnet_lab.{module}; print('{module}', *{heavy})\n" for module in modules)
    code = [sys.executable, "-c", f"import sys\n{imported}"]
    assert subprocess.run(code, capture_output=True, text=True, check=True).stdout.splitlines() == modules


@pytest.mark.slow
def test_a_sweep_survives_a_failing_job(tmp_path: Path, photographs: Path) -> None:
    own = [f"data.root={photographs}", f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_epochs=1"]
    grid = ["optim.lr=1e30,0.01", "seed=0", "sweep_dir=sweep"]
    result = lab("train", "-m", *QUICK, *own, *grid, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    runs = {run.read_config()["optim"]["lr"]: run for run in find_runs([tmp_path / "sweep"])}
    failed, done = runs[1e30], runs[0.01]
    assert (failed.read_status()["state"], done.read_status()["state"]) == ("failed", "done")
    shown = result.stdout + result.stderr
    assert shown.index("lower optim.lr") < shown.index("done")  # at once, not at the end
    assert "lower optim.lr" in failed.read_status()["error"]
    assert "lr-1e" in failed.path.name
    assert (done.path / ".hydra").is_dir()


@pytest.mark.slow
def test_a_killed_job_is_recognized_and_resumes(tmp_path: Path, photographs: Path) -> None:
    own = [f"data.root={photographs}", f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_epochs=2000"]
    command = [sys.executable, "-m", "resnet_lab.train", *QUICK, *own, "sweep_dir=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    run = RunFolder(tmp_path / "run")
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 2 " in line:
            break
    assert run.read_status()["state"] == "running"
    second = lab("job", "run", cwd=tmp_path)
    assert "another process is running this job" in one_error(second)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), 9)
    process.wait()
    process.stdout.close()
    assert process.returncode == 1
    assert run.read_status()["state"] == "failed"
    assert "killed (SIGKILL): out of memory, or by hand" in run.read_status()["error"]
    config, reached = run.config_file.read_text(), run.read_status()["epoch"]
    run.config_file.write_text(config.replace("max_epochs: 2000", f"max_epochs: {reached + 3}"))
    assert lab("job", "run", cwd=tmp_path).returncode == 0
    assert run.read_status()["state"] == "done"
    assert "resuming" in run.log_file.read_text()
    epochs = [int(line.split(",")[0]) for line in run.metrics_file.read_text().splitlines()[1:]]
    assert epochs == list(range(reached + 3))


DDP = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]


@pytest.mark.slow
def test_two_processes_evaluate_and_train_as_one(tmp_path: Path, photographs: Path) -> None:
    own = [f"data.root={photographs}", f"data.cache_dir={tmp_path / 'cache'}", "trainer.precision=32-true"]
    more = ["trainer.max_epochs=2", "data.max_images=39"]  # odd, so that one rank has padding
    # an evaluation has no SyncBatchNorm, so two CPU processes can evaluate a run with it
    alone = ["trainer.sync_batchnorm=true", "sweep_dir=one"]
    assert lab("train", *QUICK, *own, *more, *alone, cwd=tmp_path).returncode == 0
    for devices, out in (([], "alone"), (DDP, "pair")):
        result = lab("evaluate", "one", f"out={out}", "split=train", *devices, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    alone, pair = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "pair")
    for file in ("confusion_matrix_train.csv", "class_report_train.csv"):
        assert (alone.path / file).read_text() == (pair.path / file).read_text()
    first, second = (
        [line.split(",") for line in run.predictions_file("train").read_text().splitlines()[1:]]
        for run in (alone, pair)
    )
    assert [row[:4] for row in first] == [row[:4] for row in second]
    for row, other in zip(first, second, strict=True):
        assert [float(cell) for cell in row[4:]] == pytest.approx([float(cell) for cell in other[4:]], abs=1e-6)

    result = lab("train", *QUICK, *own, *more, *DDP, "sweep_dir=two", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    one = RunFolder(tmp_path / "one").read_status()
    status = RunFolder(tmp_path / "two").read_status()
    assert status["state"] == "done"
    assert status["core_seconds"] > one["core_seconds"]  # the starts of both ranks
    assert sum(status["class_counts"]["test"]) == len(
        RunFolder(tmp_path / "two").predictions_file("test").read_text().splitlines()[1:]
    )
    torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_two_ranks_have_identical_weights_and_share_one_sample(tmp_path: Path, photographs: Path) -> None:
    """Each rank writes a hash of its weights and its number of images per class at the end of training."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import hashlib, json, pathlib, sys\n"
        "from resnet_lab import job\n"
        "from resnet_lab.module import Classifier\n"
        "def on_fit_end(self):\n"
        "    bytes_ = b''.join(p.detach().numpy().tobytes() for p in self.parameters())\n"
        "    pathlib.Path(f'weights_{self.global_rank}').write_text(hashlib.sha256(bytes_).hexdigest())\n"
        "    pathlib.Path(f'classes_{self.global_rank}').write_text(json.dumps(drawn))\n"
        "drawn = [0] * 5\n"
        "def training_step(self, batch, batch_idx, step=Classifier.training_step):\n"
        "    for target in batch['target'].tolist():\n"
        "        drawn[target] += 1\n"
        "    return step(self, batch, batch_idx)\n"
        "Classifier.on_fit_end, Classifier.training_step = on_fit_end, training_step\n"
        "sys.exit(job.main())\n"
    )
    own = [f"data.root={photographs}", f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_epochs=2", *DDP]
    own += ["data.sampling=balanced", "data.val_fraction=0"]
    printed = lab("train", "--cfg", "job", "--resolve", *QUICK, *own, "sweep_dir=run", cwd=tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(printed.stdout)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script), "run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    hashes = {(tmp_path / f"weights_{rank}").read_text() for rank in (0, 1)}
    assert len(hashes) == 1
    drawn = np.sum([json.loads((tmp_path / f"classes_{rank}").read_text()) for rank in (0, 1)], axis=0)
    training = np.repeat(np.arange(5), [18, 6, 6, 6, 12])  # the photographs of conftest.py
    assert drawn.tolist() == (2 * Sampling(training, "balanced", 0.975, 2.0).counts(0)).tolist()
    assert np.ptp(drawn) <= 2
    untouched = json.loads((tmp_path / "run" / "status.json").read_text())
    assert untouched["state"] == "done"


def test_a_stopped_sweep_waits_until_its_jobs_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = RunFolder(tmp_path / "sweep" / "seed-0")
    job.path.mkdir(parents=True)
    monkeypatch.setattr(train, "SWEPT", {job.path.parent: ["planned", "seed-0"]})
    free = threading.Event()
    with job.lock():
        waited = threading.Thread(target=lambda: (train.wait_for_workers(2 * PATIENCE), free.set()))
        waited.start()
        assert not free.wait(0.2)
        began = time.monotonic()
        train.wait_for_workers(0.1)
        assert time.monotonic() - began >= 0.1  # and it returns, although the job still runs
    assert free.wait(PATIENCE)
    waited.join()
