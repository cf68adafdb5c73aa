"""The studies' experiments: every hyperparameter of the write-ups, and the jobs of each grid."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_data import write_class_folders, write_studies
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from resnet_lab.config import compose_config, register
from resnet_lab.data.augmentation import NEUTRAL, Augmentation
from resnet_lab.data.splits import class_counts, limit_classes, limit_rows
from resnet_lab.launch import create_run
from resnet_lab.report import __main__ as report
from resnet_lab.run_folder import RunFolder, find_runs
from resnet_lab.schema import conf_dir
from resnet_lab.supervisor import forks
from resnet_lab.sweep import jobs_of
from resnet_lab.training import guarded

EYEPACS = {"data._target_": "resnet_lab.data.retinopathy.Retinopathy", "data.ordered": True}
EYEPACS |= {"data.horizontal_flip": 0.5, "data.vertical_flip": 0.5, "data.image_size": 512, "data.val_fraction": 0.0}
EYEPACS |= {"data.on_leak": "ignore", "data.sampling": "none", "data.crop": None, "data.folds": None}
EYEPACS |= {
    "data.brightness": 0.0,
    "data.hue": 0.0,
    "data.random_grayscale": 0.0,
    "data.local_mean": False,
    "data.eye_crop": False,
}
EYEPACS |= {"model.form": "imagenet", "model.stride_on": "3x3", "model.shortcut": "projection", "model.stem": "7x7"}
EYEPACS |= {"model.activation": "ReLU", "model.last_activation": True, "model.bias": False, "follow_test": True}
EYEPACS |= {"optim._target_": "resnet_lab.optim.sgd", "optim.lr": 0.001, "optim.momentum": 0.9, "optim.nesterov": False}
EYEPACS |= {"schedule._target_": "resnet_lab.optim.constant", "loss.label_smoothing": 0.0, "loss.class_weights": "none"}
EYEPACS |= {"trainer.early_stopping": None}
A = EYEPACS | {"data.resize": "shorter", "data.rotation": 30.0, "data.interpolation": "nearest"}
A |= {"data.mean": [0.3749, 0.2601, 0.1856], "data.std": [0.2526, 0.1780, 0.1291], "data.augment_classes": "all"}
A |= {"data.batch_size": 16, "optim.weight_decay": 5e-4, "trainer.max_epochs": 20, "model.hidden_head": False}
C = EYEPACS | {"data.rotation": 0.0, "data.mean": None, "data.std": None, "data.batch_size": 8}
C |= {"optim.weight_decay": 0.0, "trainer.max_epochs": 15, "model.hidden_head": True}
C_AUGMENTED = C | {"data.augment_classes": [1, 2, 3, 4], "data.max_per_class": None}
E = EYEPACS | {"data.resize": "square", "data.rotation": 90.0}
E |= {"data.mean": [0.3749, 0.2602, 0.1857], "data.std": [0.2526, 0.1780, 0.1291], "data.batch_size": 32}
E |= {"trainer.devices": 2, "trainer.strategy": "ddp", "optim.weight_decay": 5e-4, "trainer.max_epochs": 10}
B = {"data._target_": "resnet_lab.data.flowers102.Flowers102", "data.resize": "shorter", "data.image_size": 256}
B |= {"data.splits": {"train": "test", "val": "val", "test": "train"}, "data.crop": 224, "data.horizontal_flip": 0.5}
B |= {"data.rotation": 30.0, "data.random_grayscale": 0.1, "data.batch_size": 32}
B |= {f"data.{kind}": 0.2 for kind in ("brightness", "contrast", "saturation", "hue")}
B |= {"data.on_leak": "drop"}  # our choice, not in the write-up
B |= {"data.mean": [0.485, 0.456, 0.406], "data.std": [0.229, 0.224, 0.225], "data.sampling": "none"}
B |= {"optim._target_": "resnet_lab.optim.nadam", "optim.lr": 0.001, "optim.weight_decay": 1e-4, "follow_test": False}
B |= {"schedule._target_": "resnet_lab.optim.plateau", "schedule.monitor": "val/loss", "schedule.factor": 0.1}
B |= {"schedule.patience": 10, "trainer.max_epochs": 200, "trainer.early_stopping": 15, "loss.class_weights": "none"}
B_RESNET = {"model.depth": 50, "model.form": "imagenet", "model.stride_on": "1x1", "model.pretrained": "none"}
D = {"data._target_": "resnet_lab.data.cifar10.CIFAR10", "data.image_size": 32, "data.crop": 32, "data.padding": 4}
D |= {"data.horizontal_flip": 0.5, "data.vertical_flip": 0.0, "data.rotation": 0.0, "data.val_fraction": 0.0}
D |= {"data.mean": [0.4914, 0.4824, 0.4467], "data.std": [0.2471, 0.2435, 0.2616], "data.batch_size": 128}
D |= {"optim._target_": "resnet_lab.optim.sgd", "optim.lr": 0.1, "optim.momentum": 0.9, "optim.weight_decay": 1e-4}
D |= {"schedule._target_": "resnet_lab.optim.multistep", "schedule.milestones": [0.5, 0.75], "schedule.gamma": 0.1}
D |= {"schedule.warmup_epochs": 1.0}  # our choice, not in the write-up
D |= {"trainer.max_epochs": 164, "follow_test": True, "loss.class_weights": "none", "model.stem": "3x3"}
WIDE = {"model.form": "wide", "model.bias": True, "model.widths": [64, 128, 256, 512]}
PAPER = {"model.form": "cifar", "model.bias": False, "model.widths": [16, 32, 64]}

DEPTH_AND_PRETRAINING = {"model.depth": [18, 50], "model.pretrained": ["none", "imagenet"]}
STUDIES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {  # shared values of all jobs, and the grid
    "dr_depth_pretraining": (A, DEPTH_AND_PRETRAINING),
    "dr_normalization": (
        {key: value for key, value in A.items() if key != "data.mean"} | {"model.pretrained": "imagenet"},
        {"model.depth": [18, 50], "model.pretrained": ["imagenet"], "data.mean": [A["data.mean"], None]},
    ),
    "dr_minority_augmentation": (C_AUGMENTED, DEPTH_AND_PRETRAINING),
    "dr_drop_majority": (
        C | {"data.augment_classes": "all"},
        {**DEPTH_AND_PRETRAINING, "data.max_per_class": [None, 4210]},
    ),
    "dr_two_devices": (E | {"data.augment_classes": "all"}, DEPTH_AND_PRETRAINING),
    "dr_augmentation_normalization": (
        {key: value for key, value in E.items() if key != "data.mean"} | {"trainer.max_epochs": 20},
        {
            "model.depth": [50],
            "model.pretrained": ["imagenet"],
            "data.augment_classes": ["all", "none"],
            "data.mean": [E["data.mean"], None],
        },
    ),
    "flowers_activations": (
        B | B_RESNET,
        {"model.activation": ["ReLU", "LeakyReLU", "SiLU"], "model.last_activation": [True, False]},
    ),
    "flowers_example_cnn": (B | {"model._target_": "resnet_lab.models.example_cnn.example_cnn"}, {}),
    "cifar_degradation": (D | WIDE, {"model.depth": [20, 56, 110], "model.shortcut": ["projection", "none"]}),
    "cifar_degradation_paper": (
        D | PAPER,
        {"model.depth": [20, 32, 44, 56, 110], "model.shortcut": ["zero_pad", "none"]},
    ),
}


def composed(*overrides: str) -> tuple[Any, list[list[str]]]:
    """Return the configuration, and the overrides of each job of its grid, as Hydra's sweeper splits them."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["sweep_dir=unused", *overrides], return_hydra_config=True)
        params = config.hydra.sweeper.params or {}
        axes = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
        (jobs,) = BasicSweeper.split_arguments(axes, max_batch_size=None)
    return config, [list(job) for job in jobs]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_each_job_has_the_hyper_parameters_of_its_study(name: str) -> None:
    shared, grid = STUDIES[name]
    _, jobs = composed(f"experiment={name}")
    seen = []
    for job in jobs or [[]]:
        config, _ = composed(f"experiment={name}", *job)
        values = {key: _plain(OmegaConf.select(config, key)) for key in shared}
        assert values == shared
        seen.append(tuple(str(_plain(OmegaConf.select(config, key))) for key in grid))
    expected = {()}
    for axis in grid.values():
        expected = {(*point, str(value)) for point in expected for value in axis}
    assert set(seen) == expected
    assert len(seen) == len(expected)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def test_retinamnist_has_the_published_recipe() -> None:
    config, jobs = composed("experiment=retinamnist")
    expected = {
        "optim._target_": "torch.optim.Adam",
        "optim.lr": 0.001,
        "schedule.milestones": [0.5, 0.75],
        "schedule.gamma": 0.1,
        "trainer.max_epochs": 100,
        "data.batch_size": 128,
        "data.image_size": 28,
        "data.mean": [0.5, 0.5, 0.5],
        "data.std": [0.5, 0.5, 0.5],
        "data.splits": None,
        "model.stem": "3x3",
        "model.depth": 18,
        "model.pretrained": "none",
        "loss._target_": "resnet_lab.objectives.cross_entropy",
        "monitor": "val/auroc",
    }
    assert {key: _plain(OmegaConf.select(config, key)) for key in expected} == expected
    assert [field.name for field in fields(Augmentation) if _plain(config.data[field.name]) not in NEUTRAL] == []
    assert jobs == [["seed=0"], ["seed=1"], ["seed=2"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in conf_dir().glob("experiment/[!_]*.yaml")))
def test_every_job_of_an_experiment_is_allowed(name: str) -> None:
    _, grid = composed(f"experiment={name}")
    assert len(jobs_of(["-m", f"experiment={name}"])) >= len(grid) // 3  # without seeds


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_reduced_has_three_seeds_and_fits_two_cores(name: str) -> None:
    full, full_jobs = composed(f"experiment={name}")
    config, jobs = composed(f"experiment={name}", "scale=reduced")
    assert {override for job in jobs for override in job if override.startswith("seed=")} == {
        "seed=0",
        "seed=1",
        "seed=2",
    }
    assert len(jobs) % 3 == 0
    assert len(jobs) <= 3 * max(1, len(full_jobs))
    assert config.data.image_size <= min(128, full.data.image_size)
    assert config.data.batch_size == full.data.batch_size
    if "patience" in config.schedule:  # in epochs; other schedules have shares of the training
        assert config.schedule.patience < config.trainer.early_stopping < config.trainer.max_epochs
        full.schedule.patience = config.schedule.patience
    assert config.schedule == full.schedule


@pytest.mark.parametrize("scale", ["full", "reduced"])
def test_only_healthy_eyes_are_left_out_of_study_cs_data_at_any_scale(scale: str) -> None:
    grades = np.repeat(range(5), [20656, 1955, 4210, 698, 581])
    rows = pd.DataFrame({"image": np.arange(len(grades)).astype(str), "target": grades, "split": "train"})
    config, jobs = composed("experiment=dr_drop_majority", f"scale={scale}")
    (limit,) = {int(key.partition("=")[2]) for job in jobs for key in job if re.fullmatch(r".*per_class=\d+", key)}
    rows = limit_rows(rows, config.data.max_images, seed=0)
    before, after = (class_counts(limit_classes(rows, most, seed=0), 5)["train"] for most in (None, limit))
    assert (after[0], after[1:]) == (limit, before[1:])
    assert before[0] > 4 * limit


def own_data(name: str, folder: Path) -> list[str]:
    """Write tiny data for an experiment: the retinopathy CSVs, or a folder per class (torchvision checks MD5 sums)."""
    if name.startswith("dr_"):
        return [f"data.root={write_studies(folder)}"]
    splits = ("train", "val", "test")
    write_class_folders(folder, {f"{split}/{kind}": 12 for split in splits for kind in ("rose", "tulip")})
    return ["data=class_folders", f"data.root={folder}"]


def smoke(name: str, tmp_path: Path) -> list[str]:
    """Return the overrides for an experiment on tiny data, at the scale at which every job takes seconds."""
    own = [*own_data(name, tmp_path / "data"), f"data.cache_dir={tmp_path / 'cache'}", "trainer.accelerator=cpu"]
    return [f"experiment={name}", "scale=smoke", *own]


def train(tmp_path: Path, *arguments: str) -> list[RunFolder]:
    """Run an experiment from the command line, and return its runs."""
    command = [sys.executable, "-m", "resnet_lab.train", *arguments, "sweep_dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return find_runs([tmp_path / "sweep"])


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_one_job_of_each_experiment_runs_and_its_pictures_are_drawn(name: str, tmp_path: Path) -> None:
    overrides = [*smoke(name, tmp_path), *(["model.pretrained=none"] if name.startswith("dr_") else [])]
    config = compose_config([*overrides, f"sweep_dir={tmp_path / 'run'}"])
    if forks(config.trainer):
        run = RunFolder(tmp_path / "run")
        create_run(run, config)
        assert guarded(run) == 0
    else:  # the second rank repeats the command of the first
        (run,) = train(tmp_path, *overrides)
    status = run.read_status()
    assert (status["state"], status["epoch"]) == ("done", 0)
    assert run.layers_file.is_file() == (not name.startswith("dr_"))
    asked = run.read_config()["figures"]
    report.command([str(run.path)])
    drawn = {file.stem for file in (run.path / "report_figures").iterdir()}
    assert {name for name in asked if not any(file.startswith(name) for file in drawn)} == set()


@pytest.mark.slow
def test_every_job_of_one_experiment_runs(tmp_path: Path) -> None:
    runs = train(tmp_path, "-m", *smoke("cifar_degradation", tmp_path))
    assert {run.read_status()["state"] for run in runs} == {"done"}
    seen = {(run.read_config()["model"]["depth"], run.read_config()["model"]["shortcut"]) for run in runs}
    assert seen == {(depth, shortcut) for depth in (20, 56) for shortcut in ("projection", "none")}


def test_sizes_belong_to_existing_experiments() -> None:
    sizes = {file.stem for file in conf_dir().glob("size/*/*.yaml")}
    assert sizes <= {file.stem for file in conf_dir().glob("experiment/*.yaml")}
