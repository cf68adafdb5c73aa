"""Builds the objects of a configuration: datamodule, module, Trainer; sets up logging."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from resnet_lab import environment
from resnet_lab.callbacks import ProgressLine
from resnet_lab.checkpoints import AtomicCheckpointIO, RunCheckpoint
from resnet_lab.command_line import log_to
from resnet_lab.compatibility import SCHEMA_VERSION
from resnet_lab.config import build
from resnet_lab.data.datamodule import DataModule
from resnet_lab.errors import UserError
from resnet_lab.module import Classifier
from resnet_lab.origin import TRAIN_IMAGES
from resnet_lab.parts import (
    build_network,
    build_objective,
    refuse_decision,
    refuse_misfit,
    refuse_unmixable,
    takes_channels_last,
    without_weights,
)
from resnet_lab.processes import DATA_SHOWN
from resnet_lab.ranks import slurm_tasks
from resnet_lab.run_folder import RunFolder
from resnet_lab.terminal import Lines, is_terminal
from resnet_lab.tta import VIEWS

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that use them

log = logging.getLogger(__name__)


def build_datamodule(
    config: dict[str, Any],
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    pixels: str | None = None,
    as_prepared: bool = False,
) -> DataModule:
    """Build, read and check the data of a configuration.

    Args:
        config: the configuration.
        statistics: mean and std (3,) in place of those of the data.
        pixels: see `DataModule`.
        as_prepared: see `DataModule.from_config`.
    """
    datamodule = DataModule.from_config(config, statistics, pixels, as_prepared)
    datamodule.setup()
    return datamodule


def build_module(config: dict[str, Any], datamodule: DataModule, pretrained: bool) -> Classifier:
    """Build the module with the initial weights of its network.

    Args:
        config: configuration of a run.
        datamodule: its data, after `setup`.
        pretrained: whether to load pretrained weights; False if a checkpoint replaces the weights anyway.

    Raises:
        UserError: the data has no split train, or a part cannot be built or does not fit the others.
    """
    if "train" not in datamodule.splits:
        one = datamodule.data.all_images
        remedy = (
            f"data.all_images={one}; set it to null to train"
            if one
            else "to train on another split, name it, as in data.splits={train: val}"
        )
        raise UserError(f"{datamodule.data.name} has no split train, only {' and '.join(datamodule.splits)}; {remedy}")
    refuse_decision(config["loss"]["decision"], datamodule.splits)
    objective = build_objective(config["loss"], datamodule.class_counts["train"])
    refuse_unmixable(objective, config["loss"], datamodule.data.mixup)
    model = config["model"] if pretrained else without_weights(config["model"])
    network, size = build_network(model, objective.num_outputs), datamodule.data.crop or datamodule.data.image_size
    refuse_misfit(network, objective.num_outputs, size, str(model["_target_"]))
    origin = {
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "class_names": list(datamodule.class_names),
        "ordered": datamodule.data.ordered,
        "mean": datamodule.mean.tolist(),
        "std": datamodule.std.tolist(),
        "decision": objective.rule,
        "class_counts": datamodule.class_counts,
        "split_fingerprint": datamodule.fingerprints,
        TRAIN_IMAGES: datamodule.train_images,
        **datamodule.noted,
    }
    return Classifier(
        model=network,
        loss=objective,
        optimizer=build("optim", config["optim"]),
        schedule=build("schedule", config["schedule"]),
        class_names=datamodule.class_names,
        ordered=datamodule.data.ordered,
        val_splits=datamodule.val_splits,
        test_splits=datamodule.test_splits,
        origin=origin,
        backbone_lr_factor=config["optim"]["backbone_lr_factor"],
    )


def build_trainer(
    settings: dict[str, Any],
    module: Classifier,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    profiler: Profiler | None = None,
) -> Trainer:
    """Build the Trainer from the keys of conf/trainer, and set the network's memory format and the module's views.

    It also sets torch's number of threads, and on CUDA cuDNN's choice of algorithms, and whether float32 products are
    rounded to TF32.

    Raises:
        UserError: there is no GPU, or `devices` lists some but none is used.
    """
    precision, channels_last = environment.resolve_precision(
        settings["precision"], settings["channels_last"], settings["accelerator"]
    )
    if channels_last and settings["channels_last"] == "auto" and "config" in module.origin:
        channels_last = takes_channels_last(module.model, module.origin["config"])
    module.memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module.model.to(memory_format=module.memory_format)
    module.tta = settings["tta"]
    if VIEWS[module.tta] > 1:
        log.info(
            "trainer.tta=%s: outside training, the network sees each image %d times", *(module.tta, VIEWS[module.tta])
        )
    show_progress = settings["progress_bar"] and is_terminal()
    best = next((each for each in callbacks if isinstance(each, RunCheckpoint) and each.monitor), None)
    refuse_no_gpu(settings)
    accelerator = settings["accelerator"]
    on_cuda = environment.uses_cuda(accelerator)
    environment.limit_threads()
    if on_cuda:
        use_tf32(str(precision) in ("32-true", "32") and not settings["deterministic"])
    return Trainer(
        accelerator=accelerator,
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"],
        precision=precision,
        max_epochs=settings["max_epochs"],
        sync_batchnorm=settings["sync_batchnorm"],  # Lightning converts the network for training only
        deterministic=settings["deterministic"],
        benchmark=not settings["deterministic"] if on_cuda else None,  # None: torch's default, which the CPU ignores
        gradient_clip_val=settings["gradient_clip_val"],
        accumulate_grad_batches=settings["accumulate_grad_batches"],
        limit_train_batches=settings["limit_train_batches"],
        limit_val_batches=settings["limit_val_batches"],
        log_every_n_steps=settings["log_every_n_steps"],
        profiler=profiler,
        logger=loggers,
        callbacks=[*callbacks, *([ProgressLine(best)] if show_progress else [])],
        enable_checkpointing=bool(callbacks),
        # where callbacks of Lightning write that are given no folder
        default_root_dir=next((each.run.path for each in callbacks if isinstance(each, RunCheckpoint)), None),
        plugins=plugins(),
        enable_progress_bar=show_progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our samplers split the data over the ranks
    )


def refuse_no_gpu(settings: dict[str, Any]) -> None:
    """Refuse keys of conf/trainer that need a GPU where PyTorch sees none.

    Raises:
        UserError: there is no GPU, or `devices` lists some but none is used.
    """
    accelerator = settings["accelerator"]
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: PyTorch sees no GPU here; set trainer.accelerator=auto")
    if isinstance(settings["devices"], list) and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise UserError(f"trainer.devices={settings['devices']}: a list names GPUs; give the number of processes")


def use_tf32(allowed: bool) -> None:
    """Set whether CUDA rounds the factors of float32 products and convolutions to TF32, which is faster."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def build_profiler(name: str | None, run: RunFolder) -> Profiler | None:
    """Build the profiler of `trainer.profiler`, which writes into the run folder."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if name is None else kinds[name](dirpath=run.path, filename="profile")


def compile_network(mode: bool | str, module: Classifier, device: torch.device) -> None:
    """Compile the network in place, so that its weights keep their names.

    Each batch shape is compiled separately: a graph for all shapes would depend on the first shape, and a resumed run
    would round differently.

    Args:
        mode: `trainer.compile`.
        module: the module with the network.
        device: device of the training.

    Raises:
        UserError: torch cannot compile here, or `mode` cannot accumulate gradients.
    """
    if mode is False:
        return
    module.copies_outputs = device.type == "cuda" and mode in CUDA_GRAPHS
    if module.copies_outputs and module.origin["config"]["trainer"]["accumulate_grad_batches"] > 1:
        raise UserError(
            f"trainer.compile={mode} uses CUDA graphs, which cannot accumulate gradients "
            "(trainer.accumulate_grad_batches); set trainer.compile=true or max-autotune-no-cudagraphs"
        )
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"trainer.compile={str(mode).lower()}: torch cannot compile here ({reason}); install a C++ compiler, or "
            "set trainer.compile=false"
        ) from error
    torch._dynamo.config.recompile_limit = 64  # shapes, frozen parts and splits; beyond it torch does not compile
    module.model.compile(mode="default" if mode is True else mode, dynamic=False)
    if module.distillation is not None:
        module.distillation.network.compile(dynamic=False)  # without CUDA graphs


def plugins() -> list[Any]:
    """Return the plugins that write checkpoints and start ranks; Lightning starts them unless SLURM or torchrun did."""
    if "SLURM_NTASKS" not in os.environ or TorchElasticEnvironment.detect():
        return [AtomicCheckpointIO()]
    try:
        several = slurm_tasks() > 1 and SLURMEnvironment.detect()  # false in an interactive shell
        return [AtomicCheckpointIO(), SLURMEnvironment(auto_requeue=False) if several else LightningEnvironment()]
    except RuntimeError as error:
        raise UserError(" ".join(str(error).split())) from None


def rank() -> int:
    """Return the DDP rank of this process, from torchrun, SLURM or Lightning; 0 for a single process."""
    return getattr(rank_zero_only, "rank", 0)


def is_news(record: logging.LogRecord) -> bool:
    """Return whether a log line does more than describe the data, as progress and the wait for a prepared set do."""
    return not record.name.startswith("resnet_lab.data.") or record.name.endswith((".progress", ".prepared"))


def set_up_logging(file: Path | None = None) -> None:
    """Send log lines and warnings to the terminal and, on the first rank, to `file`.

    In a sweep, only the first of the jobs with the same data describes them on the terminal.
    """
    handlers: list[logging.Handler] = [Lines()]
    if os.environ.get(DATA_SHOWN):
        handlers[0].addFilter(is_news)
    if rank() == 0 and file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8", errors="backslashreplace"))
    level = logging.INFO if rank() == 0 else logging.WARNING
    log_to(handlers, level, alone=True)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk must give one error line, not one for each log line
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # warnings about Lightning's internals, and about intended behavior
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        ".*smaller than the logging interval.*",
        ".*GPU available but not used.*",  # trainer=cpu
        ".*but have no logger configured.*",  # logger=none
        ".*does not have many workers.*",
        ".*This DataLoader will create.*",  # more workers than cores, which `DataModule` logs
        ".*exists and is not empty.*",  # a resumed run
        ".*your dataloader is not resumable.*",  # its sampler skips the batches already used
        ".*sync_dist=True.*",  # torchmetrics already sums over the ranks
        ".*all_gather.* is deprecated.*",
        ".*Total length of `list` across ranks is zero.*",  # no validation split
        *([] if "SLURM_JOB_ID" in os.environ else [".*`srun` command is available on your system but is not used.*"]),
    ):
        warnings.filterwarnings("ignore", message)
