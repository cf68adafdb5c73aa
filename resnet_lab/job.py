"""`python -m resnet_lab.job RUN_DIR`: start a run folder's job, resume it, or find it done (no Hydra here)."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_lab import environment
from resnet_lab.callbacks import Observer, ResumableEarlyStopping, RunCheckpoint
from resnet_lab.data.datamodule import DataModule
from resnet_lab.errors import UserError
from resnet_lab.metrics import is_collapsed, monitored
from resnet_lab.models.resnet import multiply_adds, parameter_count
from resnet_lab.module import Classifier
from resnet_lab.outputs import score_table, write_split
from resnet_lab.run_folder import RunFolder

log = logging.getLogger("resnet_lab")


def run_job(run: RunFolder) -> None:
    """Train, select, test, write: the whole of one job.

    Raises:
        UserError: the configuration, the data or the weights are wrong.
    """
    start, config = time.monotonic(), run.read_config()
    resume_from = run.checkpoints / "last.ckpt"
    resume_from = resume_from if resume_from.is_file() else None
    seed_everything(config["seed"], verbose=False)
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule, pretrained=resume_from is None)
    monitor, mode = monitored(config["monitor"], len(datamodule.class_names), datamodule.data.ordered)
    if "val" not in datamodule.splits:
        monitor = None
    checkpoint = RunCheckpoint(run, monitor, mode)
    observer = Observer(datamodule.class_names)
    trainer, precision, channels_last = build_trainer(run, config, monitor, mode, [checkpoint, observer])
    if channels_last:
        module.model.to(memory_format=torch.channels_last)
    describe(run, config, datamodule, module, monitor, precision, channels_last)

    log.info("%s in %s", "going on" if resume_from else "starting", run.path)
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    kept = checkpoint.selection()  # trainer.test() forgets the path of last.ckpt
    chosen = run.path / (kept["best_checkpoint"] or kept["last_checkpoint"])
    trainer.test(module, datamodule=datamodule, ckpt_path=chosen, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        finish(run, trainer, module, datamodule, kept, observer.images_per_second, time.monotonic() - start)
    trainer.strategy.barrier()


def build_datamodule(config: dict[str, Any]) -> DataModule:
    """The data of a configuration, read and checked."""
    data = build(config["data"])
    datamodule = DataModule(data, config["seed"], config["follow_test"])
    datamodule.setup()
    return datamodule


def build_module(config: dict[str, Any], datamodule: DataModule, pretrained: bool) -> Classifier:
    """The network with its initial values, wrapped; `pretrained=False` where a checkpoint will replace them."""
    num_classes = len(datamodule.class_names)
    model_config = config["model"] if pretrained else config["model"] | {"pretrained": "none"}
    origin = {
        "config": config,
        "class_names": list(datamodule.class_names),
        "ordered": datamodule.data.ordered,
        "mean": datamodule.mean.tolist(),
        "std": datamodule.std.tolist(),
        "class_counts": datamodule.class_counts,
        "split_fingerprint": datamodule.fingerprints,
    }
    return Classifier(
        model=build(model_config, num_classes=num_classes),
        loss=build(config["loss"]),
        optimizer=build(config["optim"]),
        schedule=build(config["schedule"]),
        class_names=datamodule.class_names,
        ordered=datamodule.data.ordered,
        val_splits=datamodule.val_splits,
        test_splits=datamodule.test_splits,
        origin=origin,
    )


def build(node: dict[str, Any], **arguments: Any) -> Any:
    """What a node's `_target_` makes; a UserError in it comes out as it was raised."""
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def build_trainer(
    run: RunFolder, config: dict[str, Any], monitor: str | None, mode: str, callbacks: list[Callback]
) -> tuple[Trainer, str, bool]:
    """The Trainer, and what its `auto` became: precision, channels-last."""
    settings = config["trainer"]
    precision, channels_last = environment.resolve_precision(
        settings["precision"], settings["channels_last"], settings["accelerator"]
    )
    callbacks = [*callbacks, LearningRateMonitor("epoch")]
    if settings["early_stopping"] is not None and monitor is not None:
        callbacks.append(ResumableEarlyStopping(monitor, patience=settings["early_stopping"], mode=mode))
    if settings["progress_bar"] and sys.stdout.isatty():
        callbacks.append(RichProgressBar())
    trainer = Trainer(
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"],
        precision=precision,
        max_epochs=settings["max_epochs"],
        deterministic=settings["deterministic"],
        logger=TensorBoardLogger(run.path, name="", version="tensorboard", default_hp_metric=False),
        callbacks=callbacks,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=settings["progress_bar"] and sys.stdout.isatty(),
        enable_model_summary=False,
    )
    return trainer, str(precision), channels_last


@rank_zero_only
def describe(
    run: RunFolder,
    config: dict[str, Any],
    datamodule: DataModule,
    module: Classifier,
    monitor: str | None,
    precision: str,
    channels_last: bool,
) -> None:
    """Everything about the run that is known before it trains, for status.json and the log."""
    facts = {
        "monitor": monitor,
        "precision": precision,
        "channels_last": channels_last,
        "mean": datamodule.mean.tolist(),
        "std": datamodule.std.tolist(),
        "num_workers": datamodule.num_workers,
        "in_memory": datamodule.in_memory,
        "class_names": list(datamodule.class_names),
        "ordered": datamodule.data.ordered,
        "class_counts": datamodule.class_counts,
        "split_fingerprint": datamodule.fingerprints,
        **datamodule.dropped,
        "parameters": parameter_count(module.model),
        "multiply_adds": multiply_adds(module.model, datamodule.data.crop or datamodule.data.image_size),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "hardware": environment.hardware(),
    }
    run.update_status(**facts)
    log.info(
        "%s: images %s",
        datamodule.data.name,
        "  ".join(f"{k} {v}" for k, v in datamodule.class_counts.items()),
    )
    log.info(
        "%s parameters, %.3g multiply-adds an image; %s%s; selecting by %s",
        f"{facts['parameters']:,}",
        facts["multiply_adds"],
        precision,
        " channels-last" if channels_last else "",
        monitor or "nothing (no validation split): the last epoch is kept",
    )


def finish(
    run: RunFolder,
    trainer: Trainer,
    module: Classifier,
    datamodule: DataModule,
    kept: dict[str, Any],
    images_per_second: float | None,
    seconds: float,
) -> None:
    """Write the files of every evaluated split, the final TensorBoard entry and the last status."""
    assert datamodule.table is not None
    for split in datamodule.test_splits:
        rows = datamodule.table[datamodule.table["split"] == split]
        counts = module.confusion[split].cpu().numpy()
        write_split(run, split, rows, module.predictions[split].numpy(), counts, datamodule.class_names)
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "/" in name}
    metrics = {name: value for name, value in metrics.items() if name.split("/")[0] in datamodule.test_splits}
    judged = "val" if "val" in module.confusion else "test"
    collapsed = judged in module.confusion and is_collapsed(module.confusion[judged])
    log_hyperparameters(trainer, module.origin["config"], metrics)
    run.update_status(
        state="done",
        **kept,
        collapsed=collapsed,
        metrics=metrics,
        seconds=round(run.read_status().get("seconds", 0) + seconds, 1),
        images_per_second=images_per_second,
        peak_memory_mb=round(environment.peak_memory_mb()),
    )
    log.info("done\n%s", score_table(metrics, datamodule.test_splits, datamodule.class_counts))
    log.info("files in %s", run.path)


def log_hyperparameters(trainer: Trainer, config: dict[str, Any], metrics: dict[str, float]) -> None:
    """Flat scalars and final metrics together, or TensorBoard's HPARAMS tab stays empty."""
    assert isinstance(trainer.logger, TensorBoardLogger)
    flat = {"seed": config["seed"]}
    for group in ("model", "data", "loss", "optim", "schedule", "trainer"):
        for key, value in config[group].items():
            if isinstance(value, (int, float, str, bool)) and not key.startswith("_"):
                flat[f"{group}.{key}"] = value
    trainer.logger.log_hyperparams(flat, {f"final/{name}": value for name, value in metrics.items()})
    trainer.logger.finalize("success")


def set_up_logging(run: RunFolder) -> None:
    """Log lines and warnings to the terminal and, from the first rank, to train.log."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if rank_zero_only.rank == 0:
        handlers.append(logging.FileHandler(run.log_file, encoding="utf-8"))
    level = logging.INFO if rank_zero_only.rank == 0 else logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )
    logging.captureWarnings(True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # what Lightning says about itself, and what is so on purpose
    for message in (".*isinstance\\(treespec, LeafSpec\\).*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")


def main() -> int:
    """Take the run folder's lock, run its job, and leave a status that says what became of it."""
    if len(sys.argv) != 2:
        print("usage: python -m resnet_lab.job RUN_DIR", file=sys.stderr)
        return 2
    run = RunFolder(Path(sys.argv[1]).resolve())
    if (
        "LOCAL_RANK" in os.environ and int(os.environ["LOCAL_RANK"]) > 0
    ):  # a child of DDP: its parent holds the lock
        set_up_logging(run)
        run_job(run)
        return 0
    try:
        run.read_config()
        with run.lock():
            return guarded(run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def guarded(run: RunFolder) -> int:
    """Run the job unless it is done; a failure ends in status.json and one line, or a traceback where it is a defect."""
    set_up_logging(run)
    if run.read_status()["state"] == "done":
        log.info("%s is done", run.path)
        return 0
    run.update_status(state="running", error=None)
    try:
        run_job(run)
    except (UserError, MisconfigurationException) as error:
        run.update_status(state="failed", error=" ".join(str(error).split()))
        log.error("error: %s", error)
        return 1
    except Exception as error:
        run.update_status(state="failed", error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        log.error(traceback.format_exc())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
