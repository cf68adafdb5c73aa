"""The inputs of evaluate, predict and load are checked before anything is loaded."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from fake_data import refusal

from resnet_lab.inputs import check_predict, checkpoint_of, warn_of_unfinished
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.verbs import VERBS


def run_of(folder: Path, **status: object) -> RunFolder:
    """Create a run folder with a checkpoint."""
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True)
    run.best_checkpoint.touch()
    run.config_file.write_text("trainer: {max_epochs: 40}")
    run.update_status(**{"state": "done", "best_checkpoint": "checkpoints/best.ckpt"} | status)
    return run


@pytest.mark.parametrize(
    ("monitor", "values", "chosen"),
    [
        ("val/qwk", (0.5, 0.625), "runs/grid/b (the highest val/qwk: 0.625)"),
        ("val/loss", (0.5, 0.625), "runs/grid/a (the lowest val/loss: 0.500)"),
        ("val/qwk", (None, None), "runs/grid/a"),
    ],
)
def test_a_sweep_is_no_model_and_its_best_run_is_named(
    monitor: str, values: tuple[float | None, ...], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in zip("ab", values, strict=True):
        run_of(tmp_path / "runs" / "grid" / name, monitor=monitor, best_value=value)
    list_jobs(Path("runs/grid"), ["a", "b"])
    line = (
        f"is a sweep; choose one of its runs, such as {chosen}; resnet-lab combine makes one model from several seeds"
    )
    assert refusal(checkpoint_of, "runs/grid") == f"runs/grid {line}"
    assert refusal(checkpoint_of, "runs").startswith("runs is not a run but contains some; choose one of its runs")
    assert checkpoint_of("runs/grid/b") == Path("runs/grid/b/checkpoints/best.ckpt")
    list_jobs(Path("empty"), ["a"])
    assert refusal(checkpoint_of, "empty").startswith("empty is a sweep without runs")


def test_what_is_no_model_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(Path("run"))
    Path("eyes").mkdir()
    assert checkpoint_of("run/checkpoints") == Path("run/checkpoints/best.ckpt")
    assert refusal(checkpoint_of, "run/config.yaml").startswith(
        "run/config.yaml is not a checkpoint; give the run folder run, or"
    )
    assert refusal(checkpoint_of, "eyes") == "eyes is neither a run folder nor a checkpoint (it has no config.yaml)"
    swapped = VERBS["predict"]().read(["eyes", "run"])
    assert refusal(check_predict, swapped).endswith("write the model first: resnet-lab predict run IMAGES")


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"state": "running", "epoch": 6}, "is not done (interrupted, 7 of 40 epochs): its model may still improve"),
        ({"state": "failed", "epoch": 0}, "is not done (failed, 1 of 40 epochs)"),
        ({"state": "done", "epoch": 6}, ""),
    ],
)
def test_a_model_of_an_unfinished_run_is_pointed_out(
    status: dict[str, object], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path / "run", **status)
    with caplog.at_level(logging.WARNING):
        warn_of_unfinished(checkpoint_of(str(run.path)))
        warn_of_unfinished(tmp_path / "best.ckpt")
    assert [line in message for message in caplog.messages] == [True] * bool(line)
    run.status_file.write_text("{damaged")
    warn_of_unfinished(run.best_checkpoint)


def test_the_checks_import_no_torch() -> None:
    code = "import sys, resnet_lab.inputs; print(sorted({'torch', 'pandas', 'hydra', 'lightning'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
