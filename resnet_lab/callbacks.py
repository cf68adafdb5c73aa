"""What a run keeps and shows by epoch: checkpoints with metrics.csv, log lines, TensorBoard pictures."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from resnet_lab import environment, plots
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.transforms import denormalise
from resnet_lab.metrics import is_collapsed
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder, write_atomically

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """One checkpoint of a run folder, which may be moved between two starts.

    Args:
        run: the folder.
        name: of the file, without its suffix.
        monitor: the metric that selects; None keeps the last epoch.
        mode: `min` or `max`.
    """

    def __init__(self, run: RunFolder, name: str, monitor: str | None = None, mode: str = "min") -> None:
        super().__init__(
            dirpath=run.checkpoints,
            filename=name,
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.run = run

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Of equal epochs the later is kept: a collapsed network scores QWK 0 from its first, untrained epoch on."""
        return super().check_monitor_top_k(trainer, current) or (
            current is not None and current == self.best_model_score
        )

    @property
    def saved(self) -> str | None:
        """The file relative to the run folder, once there is one."""
        return str(Path(self.best_model_path).relative_to(self.run.path)) if self.best_model_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state, with the paths as they are now."""
        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path"):
            state[key] = self._moved(state[key])
        state["best_k_models"] = {self._moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)

    def _moved(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


class LastCheckpoint(RunCheckpoint):
    """`last.ckpt` of every epoch, and `metrics.csv`, whose rows live in it.

    So whichever epoch a resumed run goes on from, the file holds the epochs up to it and no other. (ModelCheckpoint's
    own save_last writes only in epochs that also have a new best.)

    Args:
        run: the folder.
        best: what keeps `best.ckpt`; None where nothing selects.
    """

    def __init__(self, run: RunFolder, best: RunCheckpoint | None) -> None:
        super().__init__(run, "last")
        self.best = best
        status = run.read_status()
        self.before = {name: status.get(name, 0) for name in ("seconds", "core_seconds")}  # earlier starts
        self.started = time.monotonic()
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "/" in name}
        row = {"epoch": trainer.current_epoch, "lr": trainer.optimizers[0].param_groups[0]["lr"], **metrics}
        self.rows.append(row)
        super().on_train_epoch_end(trainer, pl_module)
        cost = self.cost(trainer)
        if trainer.is_global_zero:
            self._write(row, cost)

    def _write(self, row: dict[str, float], cost: dict[str, float]) -> None:
        columns = list(self.rows[0])
        lines = [",".join(columns), *(",".join(repr(kept[name]) for name in columns) for kept in self.rows)]
        write_atomically(self.run.metrics_file, "\n".join(lines) + "\n")
        self.run.update_status(epoch=row["epoch"], **cost, **self.selection())
        shown = {name: value for name, value in row.items() if name.split("/")[-1] in SHOWN}
        log.info("epoch %d  %s", row["epoch"], "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def cost(self, trainer: Trainer) -> dict[str, float]:
        """What the job took so far, in all its starts: seconds, and core seconds of all ranks (asked on each)."""
        cores = trainer.strategy.reduce(
            torch.tensor(environment.core_seconds(), device=trainer.strategy.root_device), reduce_op="sum"
        )
        cost = {"seconds": time.monotonic() - self.started, "core_seconds": float(cores)}
        return {name: round(self.before[name] + value, 1) for name, value in cost.items()}

    def selection(self) -> dict[str, Any]:
        """For status.json: both checkpoints relative to the run folder, and the value that selected the best."""
        score = None if self.best is None else self.best.best_model_score
        return {
            "best_checkpoint": None if self.best is None else self.best.saved,
            "last_checkpoint": self.saved,
            "best_value": None if score is None else float(score),
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        super().load_state_dict(state_dict)


PATIENCE = 0.1  # share of an epoch that may go to waiting for data unsaid
SHOWN = ("lr", "loss", "accuracy", "balanced_accuracy", "qwk")  # in the log line of an epoch


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that a run which was killed between the decision and the end does not forget."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Observer(Callback):
    """Pictures for TensorBoard, the collapse warning, and the speed of training.

    Args:
        class_names: K names.
    """

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names
        self.speeds: list[float] = []  # images per second, by epoch, from the end of the first batch on
        self.waits: list[float] = []  # share of that time in which the loop waited for data
        self._start, self._end, self._waited, self._images = 0.0, 0.0, 0.0, 0  # of the epoch
        self._all_waited, self._all_seconds, self._said = 0.0, 0.0, False  # of all epochs so far

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs, without validation; None where every epoch was a single batch."""
        return median(self.speeds) if self.speeds else None

    @property
    def data_wait(self) -> float | None:
        """Median over the epochs of the share of time that went to waiting for data, or None likewise."""
        return median(self.waits) if self.waits else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._end
        logger, datamodule = trainer.logger, trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_step == 0 and isinstance(logger, TensorBoardLogger) and isinstance(datamodule, DataModule):
            pixels = denormalise(batch["image"][:16], datamodule.mean, datamodule.std)
            names = [self.class_names[target] for target in batch["target"][:16].tolist()]
            logger.experiment.add_figure("train/sample_batch", plots.images(pixels, names), 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:  # warm-up: first kernels, first workers
            self._start, self._waited, self._images = time.perf_counter(), 0.0, 0
        else:
            self._images += len(batch["target"]) * trainer.world_size
        if batch_idx > 0 and trainer.is_last_batch:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._measure(trainer.datamodule, trainer.is_global_zero)  # type: ignore[attr-defined]
        self._end = time.perf_counter()

    def _measure(self, datamodule: DataModule, speaks: bool) -> None:
        """Note the epoch's speed, and say it once when the loop waits for data."""
        seconds = time.perf_counter() - self._start
        self.speeds.append(self._images / seconds)
        self.waits.append(self._waited / seconds)
        self._all_waited, self._all_seconds = self._all_waited + self._waited, self._all_seconds + seconds
        if speaks and not self._said and self._all_waited > max(1.0, PATIENCE * self._all_seconds):
            self._said = True
            # workers read while the network computes, this process reads in between
            reading = seconds if datamodule.num_workers else self._waited
            log.warning(
                "training waits for data %.0f %% of the time: images come at %.0f/s, the network takes %.0f/s; %s",
                100 * self.waits[-1],
                self._images / reading,
                self._images / (seconds - self._waited),
                datamodule.advice(),
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Classifier) or not trainer.is_global_zero:
            return
        for split in pl_module.val_splits:
            counts = pl_module.confusion[split]
            if isinstance(trainer.logger, TensorBoardLogger):
                figure = plots.confusion_matrix(counts.cpu().numpy(), self.class_names)
                trainer.logger.experiment.add_figure(f"{split}/confusion_matrix", figure, trainer.current_epoch)
            if split == "val" and is_collapsed(counts):
                name = self.class_names[int(counts.sum(0).argmax())]
                log.warning("collapsed: at least 98 %% of the validation predictions are '%s'", name)
