"""The environment that starts the ranks, the checks of a checkpoint, and the Trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import composed
from fake_data import refusal
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from resnet_lab import launch
from resnet_lab.build import build_profiler, build_trainer, compile_network, plugins, set_up_logging
from resnet_lab.checkpoints import EpochRows, LastCheckpoint
from resnet_lab.compatibility import SCHEMA_VERSION
from resnet_lab.errors import UserError
from resnet_lab.models.pretrained import refuse_nan_weights
from resnet_lab.module import Classifier
from resnet_lab.objectives import cross_entropy
from resnet_lab.origin import origin_of
from resnet_lab.run_folder import RunFolder


@pytest.mark.parametrize(("job", "hints"), [(None, 0), ("17", 1)])
def test_srun_is_mentioned_only_in_slurm_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job, hints) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up_logging()
        logging.captureWarnings(False)
        SLURMEnvironment._validate_srun_used()
    assert sum("`srun` command is available" in str(warning.message) for warning in caught) == hints


def test_torch_s_warning_of_many_workers_is_replaced_by_a_line_of_ours() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up_logging()
        logging.captureWarnings(False)
        DataLoader([0], num_workers=500)
    assert caught == []


@pytest.mark.parametrize("shown", ["", "1"])
def test_the_terminal_repeats_no_description_of_data(tmp_path: Path, monkeypatch, capsys, shown: str) -> None:
    monkeypatch.setenv("RESNET_LAB_DATA_SHOWN", shown)
    set_up_logging(tmp_path / "train.log")
    logging.captureWarnings(False)
    lines = {
        "data.check": "dropped a.jpeg",
        "data.progress": "checked 9 of 9",
        "data.prepared": "waiting",
        "x": "epoch",
    }
    for name, line in lines.items():
        logging.getLogger(f"resnet_lab.{name}").info("%s", line)
    assert [line[10:] for line in (tmp_path / "train.log").read_text().splitlines()] == list(lines.values())
    assert [line[10:] for line in capsys.readouterr().out.splitlines()] == list(lines.values())[1 if shown else 0 :]


def test_a_sweep_knows_which_data_it_has_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SHOWN", set())
    monkeypatch.setenv("RESNET_LAB_DATA_SHOWN", "")
    told = list[str]()
    data: dict[str, Any] = {"root": "a", "labels": {0: 0, "R1": 1}}
    for settings, fails in ((data, True), (data, False), (data | {"root": "b"}, False), (data, False)):
        with suppress(UserError), launch.described_once(settings):
            told.append(os.environ["RESNET_LAB_DATA_SHOWN"])
            if fails:  # perhaps before it described its data
                raise UserError("no memory")
    assert told == ["", "", "", "1"]


@pytest.mark.parametrize(
    ("values", "environment"),
    [
        ({}, None),  # Lightning chooses
        ({"SLURM_NTASKS": "1"}, LightningEnvironment),
        ({"SLURM_NTASKS": "4"}, LightningEnvironment),  # a single process of a batch script
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_ID": "0"}, SLURMEnvironment),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, LightningEnvironment),
    ],
)
def test_ranks_are_slurm_s_if_srun_started_them(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], environment: type | None
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = [each for each in plugins() if isinstance(each, ClusterEnvironment)]
    assert [type(each) for each in found] == ([environment] if environment else [])


def test_tasks_that_lightning_cannot_place_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    assert "--ntasks-per-node=4" in refusal(plugins)


ORIGIN: dict[str, Any] = {"config": {"data": {}}, "class_names": ["a", "b"], "ordered": False, "schema_version": 2}
ORIGIN |= {"mean": [0.5] * 3, "std": [0.2] * 3, "class_counts": {"train": [3, 4]}, "pixels": None}


@pytest.mark.parametrize("key", ["config", "class_names", "ordered", "mean", "std", "class_counts"])
@pytest.mark.parametrize("value", [..., None, 5, "x", [], [[1]], float("nan")])
def test_the_metadata_of_a_checkpoint_are_checked_by_key(key: str, value: object) -> None:
    origin = {name: each for name, each in (ORIGIN | {key: value}).items() if each is not ...}
    assert f"resnet_lab.{key}" in refusal(origin_of, {"resnet_lab": origin}, Path("odd.ckpt"))


@pytest.mark.parametrize(("key", "value"), [("pixels", 5), ("recipe", "x"), ("pixel_digests", [1]), ("std", [0.1])])
def test_optional_metadata_of_a_checkpoint_are_checked_if_present(key: str, value: object) -> None:
    assert origin_of({"resnet_lab": ORIGIN}, Path("good.ckpt"))["class_names"] == ["a", "b"]
    assert f"odd.ckpt: resnet_lab.{key}=" in refusal(origin_of, {"resnet_lab": ORIGIN | {key: value}}, Path("odd.ckpt"))


def test_a_checkpoint_of_a_newer_version_is_refused() -> None:
    message = refusal(origin_of, {"resnet_lab": ORIGIN | {"schema_version": SCHEMA_VERSION + 1}}, Path("new.ckpt"))
    assert message.startswith("new.ckpt: a newer version of resnet_lab wrote it")


def test_a_checkpoint_without_the_class_counts_of_train_is_refused() -> None:
    message = refusal(origin_of, {"resnet_lab": ORIGIN | {"class_counts": {"val": [1, 2]}}}, Path("odd.ckpt"))
    assert "resnet_lab.class_counts.train is missing" in message


@pytest.mark.parametrize("origin", [None, 5, "x", [], {}])
def test_a_checkpoint_without_metadata_is_refused(origin: object) -> None:
    assert "odd.ckpt: resnet_lab.config is missing" in refusal(origin_of, {"resnet_lab": origin}, Path("odd.ckpt"))


@pytest.mark.parametrize("state", [None, 5, "x", []])
def test_weights_other_than_named_tensors_are_refused(state: Any) -> None:
    assert "odd.ckpt: state_dict is of type" in refusal(refuse_nan_weights, state, "odd.ckpt")


def test_torch_without_a_compiler_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: none found\n  more lines")

    monkeypatch.setattr(torch, "compile", lambda _: fails)
    module, device = SimpleNamespace(model=torch.nn.Identity(), origin={}), torch.device("cpu")
    message = refusal(compile_network, "reduce-overhead", module, device)
    assert message.startswith("trainer.compile=reduce-overhead: torch cannot compile here (InvalidCxxCompiler: none")
    assert refusal(compile_network, True, module, device).startswith("trainer.compile=true: ")
    compile_network(False, module, device)
    assert module.model._compiled_call_impl is None


@pytest.mark.parametrize(
    ("mode", "device", "copies"),
    [
        ("reduce-overhead", "cuda", True),
        ("max-autotune", "cuda", True),
        (True, "cuda", False),
        ("reduce-overhead", "cpu", False),
    ],
)
def test_outputs_of_cuda_graphs_are_copied(
    monkeypatch: pytest.MonkeyPatch, mode: bool | str, device: str, copies: bool
) -> None:
    module = Classifier(torch.nn.Identity(), cross_entropy(0.0, "none", [1, 1]), None, None, ["a", "b"], ordered=False)
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda _: None)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    settings = {"accumulate_grad_batches": 1}
    module.origin = {"config": {"trainer": settings}}
    compile_network(mode, module, torch.device(device))
    images = torch.ones(1, 3, 2, 2)
    assert (module(images).data_ptr() != images.data_ptr()) is copies
    settings["accumulate_grad_batches"] = 2
    if copies:
        message = refusal(compile_network, mode, module, torch.device(device))
        assert message.startswith(f"trainer.compile={mode} uses CUDA graphs")
        assert "trainer.accumulate_grad_batches" in message
    else:
        compile_network(mode, module, torch.device(device))


@pytest.mark.parametrize("name", ["simple", "advanced"])
def test_a_profiler_writes_into_the_run_folder(tmp_path: Path, name: str) -> None:
    assert build_profiler(None, RunFolder(tmp_path)) is None
    profiler = build_profiler(name, RunFolder(tmp_path))
    profiler.setup("fit")
    with profiler.profile("a step of the training"):
        pass
    profiler.describe()
    assert "a step of the training" in (tmp_path / "fit-profile.txt").read_text()


def test_the_trainer_gets_its_keys_and_tests_all_images() -> None:
    given = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 3, "log_every_n_steps": 7}
    given |= {"limit_train_batches": 0.5, "limit_val_batches": 2}
    config = composed(tuple(f"trainer.{key}={value}" for key, value in given.items()))
    settings: Any = OmegaConf.to_container(config.trainer)
    trainer: Any = build_trainer(settings, SimpleNamespace(model=torch.nn.Identity(), origin={}))  # type: ignore[arg-type]
    assert {key: getattr(trainer, key) for key in given} == given
    assert trainer.limit_test_batches == 1.0


def test_callbacks_without_a_folder_write_into_the_run(tmp_path: Path) -> None:
    settings: Any = OmegaConf.to_container(composed(()).trainer)
    last = LastCheckpoint(RunFolder(tmp_path), EpochRows(), None)
    module: Any = SimpleNamespace(model=torch.nn.Identity(), origin={})
    trainer = build_trainer(settings, module, callbacks=[last])
    assert trainer.default_root_dir == str(tmp_path)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Make `build_trainer` believe that there is a CUDA GPU; return the arguments of its Trainer."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("resnet_lab.environment.uses_cuda", lambda accelerator: accelerator != "cpu")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("resnet_lab.build.Trainer", lambda **arguments: seen.update(arguments))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # restored at the end
    yield seen
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("precision", "deterministic", "tf32"),
    [("32-true", False, True), ("32-true", True, False), ("bf16-mixed", False, False), ("auto", False, False)],
)
def test_float32_training_on_cuda_uses_tf32_unless_it_must_be_deterministic(
    on_cuda: dict[str, Any], precision: str, deterministic: bool, tf32: bool
) -> None:
    config = composed((f"trainer.precision={precision}", f"trainer.deterministic={deterministic}"))
    settings: Any = OmegaConf.to_container(config.trainer)
    module: Any = SimpleNamespace(model=torch.nn.Identity(), origin={})
    build_trainer(settings | {"accelerator": "auto"}, module)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert on_cuda["benchmark"] is not deterministic


def test_training_on_the_cpu_changes_neither_products_nor_cudnn(on_cuda: dict[str, Any]) -> None:
    before = torch.backends.cudnn.allow_tf32
    config = composed(("trainer.precision=32-true",))
    settings: Any = OmegaConf.to_container(config.trainer)
    build_trainer(settings, SimpleNamespace(model=torch.nn.Identity(), origin={}))  # type: ignore[arg-type]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", before)
    assert on_cuda["benchmark"] is None
