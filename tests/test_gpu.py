"""What runs on a GPU: skipped without one; `RESNET_LAB_GPU_TESTS=cpu pytest -m gpu` rehearses it on the CPU.

Networks are tiny and most jobs run in the test's process, so that the file takes two minutes on an H100.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fake_data import write_class_folders, write_medmnist, write_studies
from matplotlib.figure import Figure
from test_exact_resume import Killed, dying, end_of, kill_inside, same_end
from waiting import PATIENCE, wait_for

from resnet_lab import evaluate, plots, predict
from resnet_lab.build import build_datamodule, build_trainer
from resnet_lab.config import check, compose_config
from resnet_lab.launch import create_run
from resnet_lab.run_folder import RunFolder, find_runs
from resnet_lab.schema import conf_dir
from resnet_lab.training import guarded

DEVICE = os.environ.get("RESNET_LAB_GPU_TESTS", "gpu")  # trainer.accelerator of these tests: gpu, or cpu to rehearse
ON_GPU = f"trainer.accelerator={DEVICE}"
EXACT = ("trainer.precision=32-true", "trainer.deterministic=true")  # two placements or devices then differ by rounding
AUGMENTED = ("data.rotation=20", "data.vertical_flip=0.5", "data.brightness=0.2", "data.hue=0.05")
EXPERIMENTS = sorted(file.stem for file in conf_dir().glob("experiment/[!_]*.yaml"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # hints of torch about this GPU are shown, and fail no test
    pytest.mark.skipif(DEVICE == "gpu" and not torch.cuda.is_available(), reason="there is no GPU"),
]
only_on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="the CPU cannot rehearse this")

MakeRun = Callable[..., RunFolder]


@pytest.fixture(autouse=True)
def _workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what deterministic products need before the first one, as Lightning does in a process of its own."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def scores(run: RunFolder) -> dict[str, float]:
    """Return the final scores of a job that is done; its loss is a number."""
    status = run.read_status()
    assert status["state"] == "done", status["error"]
    assert math.isfinite(status["metrics"]["test/loss"])
    return dict(status["metrics"])


def trained(make_run: MakeRun, *overrides: str, name: str = "run") -> RunFolder:
    """Train a run on the device of these tests."""
    run = make_run(ON_GPU, *overrides, name=name)
    assert guarded(run) == 0, run.read_status()["error"]
    scores(run)
    return run


def assert_close(run: RunFolder, other: RunFolder, tolerance: float) -> None:
    """Compare losses and predictions of two runs."""
    assert scores(run)["test/loss"] == pytest.approx(scores(other)["test/loss"], abs=tolerance)
    one, two = (pd.read_csv(each.predictions_file("test")).filter(like="p_") for each in (run, other))
    np.testing.assert_allclose(one, two, atol=tolerance)


def own_data(name: str, folder: Path) -> list[str]:
    """Write tiny data for an experiment, and return the overrides that it needs on one device."""
    if name.startswith("demo"):
        return [f"data.root={folder}", "data.train_patients=12", "data.test_patients=6", "model.pretrained=none"]
    if name.startswith(("dr_", "idrid_")):
        one = ["trainer.devices=1", "trainer.strategy=auto"]  # study E has two devices
        return [f"data.root={write_studies(folder)}", "model.pretrained=none", *one]
    if name.startswith("retinamnist"):
        labels = {"train": [0, 1, 2, 3, 4] * 4, "val": [0, 1, 2, 3, 4], "test": [0, 1, 2, 3, 4]}
        return [f"data.root={write_medmnist(folder / 'retinamnist.npz', labels).parent}", "model.pretrained=none"]
    splits = ("train", "val", "test")
    write_class_folders(folder, {f"{split}/{kind}": 12 for split in splits for kind in ("rose", "tulip")})
    return ["data=class_folders", f"data.root={folder}"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, picture in ((plots.matrices, "confusion_matrix"), (plots.samples, "images")):
        monkeypatch.setattr(module, picture, lambda *_, **__: Figure(figsize=(0.1, 0.1)))
    run = RunFolder(tmp_path / "run")
    own = [*own_data(name, tmp_path / "data"), f"data.cache_dir={tmp_path / 'cache'}", f"sweep_dir={run.path}"]
    config = compose_config([f"experiment={name}", "scale=smoke", *own, ON_GPU])
    if config.model._target_.startswith("timm"):
        pytest.importorskip("timm")
    check(config)
    run.path.mkdir()
    create_run(run, config)
    assert guarded(run) == 0, run.read_status()["error"]
    scores(run)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", pytest.param("16-mixed", marks=only_on_gpu)])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_every_precision_trains_and_resumes(make_run: MakeRun, precision: str, optim: str) -> None:
    own = (f"trainer.precision={precision}", f"optim={optim}", "optim.lr=0.01", "trainer.gradient_clip_val=1.0")
    run = make_run(ON_GPU, *own)
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, "middle epoch")
        with pytest.raises(Killed):
            guarded(run)
    assert guarded(run) == 0, run.read_status()["error"]
    scores(run)
    state = torch.load(run.last_checkpoint, weights_only=True, map_location="cpu")["optimizer_states"][0]
    assert state["param_groups"][0]["fused"] is (True if DEVICE == "gpu" and precision != "16-mixed" else None)


def test_memory_formats_agree(make_run: MakeRun) -> None:
    runs = [trained(make_run, *EXACT, f"trainer.channels_last={last}", name=last) for last in ("true", "false")]
    assert_close(*runs, tolerance=0.02)


@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])  # the latter uses CUDA graphs
def test_a_compiled_network_agrees_with_an_eager_one(make_run: MakeRun, mode: str) -> None:
    # without validation: every batch shape is compiled separately
    own = (*EXACT, "data.val_fraction=0", "trainer.max_epochs=2", "trainer.channels_last=true")
    compiled, eager = (trained(make_run, *own, f"trainer.compile={each}", name=each) for each in (mode, "false"))
    assert_close(compiled, eager, tolerance=0.02)
    scores_by_epoch = [pd.read_csv(run.metrics_file)["train/loss"] for run in (compiled, eager)]
    np.testing.assert_allclose(*scores_by_epoch, atol=0.02)


def test_frozen_parts_are_unfrozen_under_the_default_optimizer(make_run: MakeRun) -> None:
    trained(make_run, "model.freeze=all_but_head", "model.unfreeze_at_epoch=1", "callbacks=ema")


def test_images_on_the_device_and_streamed_images_give_the_same(make_run: MakeRun) -> None:
    own = (*EXACT, *AUGMENTED, "data.num_workers=1")
    runs = [trained(make_run, *own, f"data.in_memory={place}", name=place) for place in ("device", "false")]
    assert_close(*runs, tolerance=0.02)


def test_mixtures_views_and_a_teacher_agree_wherever_images_are_kept_and_resume(make_run: MakeRun) -> None:
    own = (*EXACT, *AUGMENTED, "data.mixup=0.4", "trainer.tta=dihedral")
    teacher = trained(make_run, *own, "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]", name="teacher")
    own = (*own, f"loss.teacher={teacher.path}", "data.num_workers=1")
    runs = [trained(make_run, *own, f"data.in_memory={place}", name=place) for place in ("device", "false")]
    assert_close(*runs, tolerance=0.02)
    broken = make_run(ON_GPU, *own, "data.in_memory=device", "trainer.checkpoint_minutes=1e-9", name="broken")
    with pytest.MonkeyPatch.context() as patch:
        kill_inside(broken, patch, batch=1)
    assert guarded(broken) == 0, broken.read_status()["error"]
    assert same_end(runs[0], broken)


@pytest.mark.parametrize("place", ["device", "false"])
def test_images_of_the_device_are_within_two_gray_levels_of_the_cpu(make_run: MakeRun, place: str) -> None:
    gray = ["data.mean=[0,0,0]", "data.std=[0.00392156862745098,0.00392156862745098,0.00392156862745098]"]
    config = make_run(ON_GPU, f"data.in_memory={place}", "data.num_workers=0", *gray, *AUGMENTED).read_config()
    found = []
    for accelerator, memory in (("cpu", True), (DEVICE, config["data"]["in_memory"])):
        datamodule = build_datamodule(config | {"data": config["data"] | {"in_memory": memory}})
        settings = config["trainer"] | {"accelerator": accelerator}
        datamodule.trainer = build_trainer(settings, SimpleNamespace(model=torch.nn.Identity(), origin={}))
        device = datamodule.trainer.strategy.root_device
        batches = []
        for loader in (datamodule.train_dataloader(), *datamodule.test_dataloader()):
            for batch in loader:
                moved = {key: each.to(device) if torch.is_tensor(each) else each for key, each in batch.items()}
                batches.append(datamodule.on_after_batch_transfer(moved, 0)["image"].cpu())
        found.append(torch.cat(batches))
    torch.testing.assert_close(*found, atol=2.001, rtol=0)


@pytest.mark.parametrize("form", ["cifar", "imagenet"])
def test_deterministic_training_repeats_bit_for_bit_and_across_a_kill(make_run: MakeRun, form: str) -> None:
    own = ["trainer.deterministic=true", "data.in_memory=device", *AUGMENTED, "trainer.max_epochs=4"]
    if form == "imagenet":  # it has a pooling layer
        own += ["model.stem=7x7"]
    first, second = (trained(make_run, *own, name=name) for name in ("first", "second"))
    assert same_end(first, second)
    broken = make_run(ON_GPU, *own, name="broken")
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, "middle epoch")
        with pytest.raises(Killed):
            guarded(broken)
    assert guarded(broken) == 0, broken.read_status()["error"]
    assert same_end(first, broken)


@pytest.mark.parametrize("places", [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_checkpoint_is_evaluated_on_another_device(
    make_run: MakeRun, photographs: Path, tmp_path: Path, places: tuple[str, str]
) -> None:
    training, other = (f"trainer.accelerator={place}" for place in places)
    run = make_run(training, *EXACT)
    assert guarded(run) == 0, run.read_status()["error"]
    expected = pd.read_csv(run.predictions_file("test")).filter(like="p_")
    evaluate.command([str(run.path), other, f"out={tmp_path / 'out'}"])
    found = pd.read_csv(RunFolder(tmp_path / "out").predictions_file("test")).filter(like="p_")
    np.testing.assert_allclose(found, expected, atol=0.01)
    tables = []
    for number, place in enumerate((training, other)):
        predict.command([str(run.path), str(photographs / "images"), place, f"out={tmp_path / str(number)}.csv"])
        tables.append(pd.read_csv(tmp_path / f"{number}.csv").filter(like="p_"))
    np.testing.assert_allclose(*tables, atol=0.01)


@pytest.mark.parametrize("places", [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_run_resumes_on_another_device(make_run: MakeRun, places: tuple[str, str]) -> None:
    run = make_run(f"trainer.accelerator={places[0]}", "optim=adamw", "optim.lr=0.001", "trainer.max_epochs=4")
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, "middle epoch")
        with pytest.raises(Killed):
            guarded(run)
    config = run.read_config()
    run.write_config(config | {"trainer": config["trainer"] | {"accelerator": places[1]}})
    assert guarded(run) == 0, run.read_status()["error"]
    scores(run)
    assert len(run.metrics_file.read_text().splitlines()) == 5


@only_on_gpu
def test_out_of_memory_is_one_line(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(ON_GPU, "data.num_workers=0", "data.image_size=224", "trainer.max_epochs=1")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        assert guarded(run) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = run.read_status()["error"]
    assert error.startswith("out of memory (CUDA out of memory")
    assert error.endswith("lower data.batch_size, data.image_size or data.num_workers")
    assert "Traceback" not in run.log_file.read_text()
    assert guarded(run) == 0


def lab(folder: Path, *command: str) -> subprocess.Popen[str]:
    """Start `python -m MODULE …` in a folder; its output is in the process's own file."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    output = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=kept | own, stdout=output, stderr=subprocess.STDOUT, text=True
    )


def epochs_of(run: RunFolder) -> int:
    return len(run.metrics_file.read_text().splitlines()) - 1 if run.metrics_file.is_file() else 0


def test_a_killed_job_resumes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(ON_GPU, "trainer.max_epochs=400", "data.num_workers=1", "data.in_memory=false")
    process = lab(tmp_path, "resnet_lab.job", str(run.path))
    wait_for(lambda: process.poll() is not None or epochs_of(run) > 1)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.read_status()["state"] == "interrupted"
    epochs = epochs_of(run)
    config = run.read_config()
    run.write_config(config | {"trainer": config["trainer"] | {"max_epochs": epochs + 3}})
    assert guarded(run) == 0, run.read_status()["error"]
    scores(run)
    assert "resuming" in run.log_file.read_text()
    assert pd.read_csv(run.metrics_file)["epoch"].tolist() == list(range(epochs + 3))


def test_two_commands_share_one_gpu_and_one_sweep(tmp_path: Path, experiment: None) -> None:
    sweep = ("train", "-m", "--config-dir", "conf", "experiment=tiny", "sweep_dir=sweep", "seed=0,1", ON_GPU)
    processes = [lab(tmp_path, "resnet_lab", *sweep) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    runs = find_runs([tmp_path / "sweep"])
    assert len(runs) == 2
    for run in runs:
        scores(run)
        assert run.read_status()["starts"] == 1


def test_one_rank_trains_under_ddp(tmp_path: Path, experiment: None) -> None:
    own = ("experiment=tiny", "sweep_dir=run", "trainer=ddp", "trainer.devices=1", ON_GPU)
    process = lab(tmp_path, "resnet_lab", "train", "--config-dir", "conf", *own)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    run = RunFolder(tmp_path / "run")
    scores(run)
    assert end_of(run)[0].count("\n") == 3  # the header and two epochs
