"""Measure speed and memory in pairs: `python benchmarks/speed.py [--quick] [--out FILE.md]` (`make bench`)."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from page import Row, main, ratios, take_turns

from resnet_lab import environment
from resnet_lab.build import build_datamodule
from resnet_lab.config import build, compose_config
from resnet_lab.data.synthetic import write_synthetic
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import run_job

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fake_runs import write_run

QUESTION = """\
How fast does the program train, compared with a bare loop, and how much memory does it need? The last column shows the
goal, where a row has one."""
METHOD = """
- Images per second are measured from the end of an epoch's first batch to the end of its last batch. The value of a
  training is the median over its epochs.
- "Program" is all of `resnet_lab.job`: augmentation, metrics, callbacks, checkpoints and TensorBoard.
- "Bare loop" has the same network, optimizer, batch size, precision and memory layout. It takes normalized float
  tensors from memory.
- All contestants run in turns in one process. Each one first runs a training that is not counted. The order reverses
  with each turn. A ratio compares two trainings of the same turn.
- "Float32 NCHW" is `trainer.precision=32-true trainer.channels_last=false`. All other settings are the defaults.
- The CIFAR form is trained as in its experiment, which also measures gradients and activations in 8 of its 50 batches.
- CPU seconds are the user and system time of the command and its children.
- Peak memory is the resident memory of one epoch in its own process.
"""


@dataclass(frozen=True)
class Plan:
    """The amount of work of a measurement.

    Args:
        patients: number of drawn training patients with two photographs each; the test set has a tenth as many.
        workloads: image size (pixels) and batch size; float32 and memory use the first one.
        epochs: number of epochs of each timed training.
        repetitions: n of each row.
        small_images: number of 32 px images for the CIFAR form, trained as in its experiment.
        report_images: rows in the predictions file of each reported run.
        overrides: configuration overrides of all trainings.
    """

    patients: int
    workloads: tuple[tuple[int, int], ...]
    epochs: int
    repetitions: int
    small_images: int
    report_images: int
    overrides: tuple[str, ...] = ()


# the studies test 7026 images
FULL = Plan(190, ((128, 32), (64, 64)), epochs=2, repetitions=6, small_images=6400, report_images=7026)
QUICK = Plan(30, ((32, 8),), 1, 1, small_images=300, report_images=50, overrides=("model.widths=[8,8,8,8]",))


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration that `resnet-lab train` writes for these overrides."""
    config: Any = OmegaConf.to_container(compose_config(overrides), resolve=True, enum_to_str=True)
    return config


def program_status(overrides: Sequence[str]) -> dict[str, Any]:
    """Run a job in this process and return its status.json."""
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.config_file.write_text(yaml.safe_dump(configuration(overrides)), encoding="utf-8")
        run_job(run)
        return run.read_status()


def program_speed(overrides: Sequence[str]) -> float:
    """Run a job in this process and return its images per second."""
    speed: float = program_status(overrides)["images_per_second"]
    return speed


def bare_speed(overrides: Sequence[str], images: int, num_classes: int) -> float:
    """Return the images per second of a plain loop over `images` random normalized images in memory."""
    config = configuration(overrides)
    settings, size, batch = config["trainer"], config["data"]["image_size"], config["data"]["batch_size"]
    precision, channels_last = environment.resolve_precision(settings["precision"], settings["channels_last"], "cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build("model", config["model"], num_classes=num_classes).to(memory_format=layout)
    optimizer = build("optim", config["optim"])(model.parameters())
    criterion = torch.nn.CrossEntropyLoss()
    inputs = torch.randn(images, 3, size, size).to(memory_format=layout).split(batch)
    targets = torch.randint(num_classes, (images,)).split(batch)
    speeds = []
    for _ in range(settings["max_epochs"]):
        for number, (x, y) in enumerate(zip(inputs, targets, strict=True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if number == 0:
                start = time.perf_counter()
        speeds.append((images - batch) / (time.perf_counter() - start))
    return median(speeds)


def speed_rows(
    name: str, overrides: Sequence[str], repetitions: int, goal: str = "≥ 0.95", against_float32: bool = False
) -> list[Row]:
    """Compare the program with the bare loop, and optionally with float32."""
    datamodule = build_datamodule(configuration(overrides))
    images, num_classes = len(datamodule.rows("train")), len(datamodule.class_names)
    contestants: dict[str, Callable[[], float]] = {
        "program": partial(program_speed, overrides),
        "bare loop": partial(bare_speed, overrides, images, num_classes),
    }
    goals = {"bare loop": goal}
    if against_float32:
        float32 = [*overrides, "trainer.precision=32-true", "trainer.channels_last=false"]
        contestants["program, float32 NCHW"] = partial(program_speed, float32)
        goals["program, float32 NCHW"] = "≥ 1.7"
    speeds = take_turns(contestants, repetitions)
    prefix = f"{name}, {datamodule.data.image_size} px, batch {datamodule.data.batch_size}:"
    rows = [Row(f"{prefix} {name}", "images/s", values) for name, values in speeds.items()]
    return rows + [
        Row(f"{prefix} program / {other}", "ratio", ratios(speeds["program"], speeds[other]), goal)
        for other, goal in goals.items()
    ]


def write_pictures(folder: Path, number: int) -> Path:
    """Write `number` pictures of 32 px in ten class folders, like those of CIFAR-10."""
    random = np.random.default_rng(0)
    for index in range(number):
        file = folder / "train" / str(index % 10) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return folder


def cpu_seconds(*arguments: str) -> float:
    """Run `resnet-lab ARGUMENTS` and return its user and system time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "resnet_lab", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def command_rows(folder: Path, plan: Plan) -> list[Row]:
    """Measure the CPU time of the commands that do not import torch."""
    for depth in (18, 50):
        for seed in range(5):
            write_run(folder / f"{depth}_{seed}", depth, seed=seed, images=plan.report_images)
    report = f"`resnet-lab report` on ten runs, {plan.report_images} test images"
    commands = {"`resnet-lab --help`": (("--help",), "< 0.5"), report: (("report", str(folder)), "< 5")}
    rows = []
    for name, (arguments, goal) in commands.items():
        seconds = [cpu_seconds(*arguments) for _ in range(plan.repetitions + 1)]
        rows.append(Row(name, "CPU s", seconds[1:], goal))  # the first run may compile bytecode
    return rows


def peak_memory(overrides: Sequence[str]) -> float:
    """Run a job in its own process and return the resident MB from its status.json."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "resnet_lab.train", *overrides, f"sweep_dir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        peak: float = RunFolder(Path(folder)).read_status()["peak_memory_mb"]
    return peak


def memory_rows(overrides: Sequence[str], prefix: str, repetitions: int) -> list[Row]:
    """Measure the peak memory of one epoch with ResNet-18 and ResNet-50."""
    return [
        Row(
            f"ResNet-{depth}, {prefix}: peak memory",
            "MB",
            [peak_memory([*overrides, "trainer.max_epochs=1", f"model.depth={depth}"]) for _ in range(repetitions)],
        )
        for depth in (18, 50)
    ]


def measure(folder: Path, quick: bool) -> list[Row]:
    """Return all rows of the table; photographs and runs are written to `folder`."""
    plan = QUICK if quick else FULL
    size, batch = plan.workloads[0]
    write_synthetic(folder / "data", 0, plan.patients, max(3, plan.patients // 10), size, "studies", processes=1)
    common = ["data=retinopathy", f"data.root={folder / 'data'}", f"data.cache_dir={folder}", "trainer=cpu"]
    common += plan.overrides
    workloads = [[*common, f"data.image_size={size}", f"data.batch_size={batch}"] for size, batch in plan.workloads]
    rows: list[Row] = []
    for workload in workloads:
        overrides = [*workload, f"trainer.max_epochs={plan.epochs}"]
        rows += speed_rows("ResNet-18", overrides, plan.repetitions, against_float32=workload is workloads[0])
    small = ["experiment=cifar_degradation_paper", "data=class_folders", "trainer=cpu", "trainer.max_epochs=1"]
    small += [f"data.root={write_pictures(folder / 'small', plan.small_images)}", f"data.cache_dir={folder}"]
    rows += speed_rows("CIFAR form, ResNet-20", small, plan.repetitions, "≥ 0.9")
    rows += command_rows(folder / "runs", plan)
    return rows + memory_rows(workloads[0], f"{size} px, batch {batch}", min(2, plan.repetitions))


if __name__ == "__main__":
    main(__doc__, "Speed and memory", QUESTION, METHOD, measure)
