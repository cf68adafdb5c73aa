"""Callbacks that show progress and pictures, or stop a run (signals, early stopping, NaN loss)."""

from __future__ import annotations

import logging
import random
import signal
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ProgressBar
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from resnet_lab import plots
from resnet_lab.checkpoints import RunCheckpoint, ends_step
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.transforms import denormalize
from resnet_lab.errors import UserError
from resnet_lab.failures import fail, note_stop
from resnet_lab.loggers import AFTER_CURVES, boards, log_to_all
from resnet_lab.metrics import is_collapsed
from resnet_lab.module import Classifier
from resnet_lab.processes import Stopped, stop_on_signals
from resnet_lab.run_folder import RunFolder
from resnet_lab.terminal import Progress, left
from resnet_lab.values import BelowOne

log = logging.getLogger(__name__)


EXPLODED = 1e10  # larger weights are useless (a limit on val/loss would not do: it may overflow in deep networks)
PATIENCE = 0.1  # share of the training time spent waiting for data from which there is a warning


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that survives a kill between its decision and the end of training.

    An epoch with an undefined metric counts as no improvement; Lightning would stop there without a message.
    """

    def __init__(self, monitor: str, patience: int, mode: str) -> None:
        super().__init__(monitor, patience=patience, mode=mode, check_finite=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class StepSeed(Callback):
    """Seeds the global random generators before each step, so that a resumed run draws the same numbers.

    Dropout uses them; order and augmentation have their own generators.

    Args:
        seed: seed of the run; it is combined with epoch, batch and rank.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        seed = int(sequence.generate_state(1)[0])
        # as `seed_everything`, which takes most of its time for devices that this process does not use
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)


class Ending(Callback):
    """Ends all ranks of a job at a signal, and reports the error of the rank that fails.

    Lightning's own handler of SIGTERM would communicate with the other ranks inside the signal handler. It would hang
    if they are in the middle of a step.

    Args:
        run: the run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_signals()  # not earlier: Lightning installs its own handlers after on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_signals()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and not trainer.is_global_zero:
            note_stop(self.run, exception, trainer.global_rank)
        elif isinstance(exception, Stopped) and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        elif isinstance(exception, Exception) and not trainer.is_global_zero:
            # now, because the first rank fails too once this rank is gone
            fail(self.run, exception, trainer.global_rank)
        elif isinstance(exception, Exception) and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
            # Lightning kills this rank up to 5 s after the death of another one, maybe before it has stored the error
            launcher.procs.clear()


class SamePixels(Callback):
    """Stops a job whose ranks read different image files, for example if `prepare` ends while they start."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        datamodule: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        first = trainer.strategy.broadcast(datamodule.noted)
        if first != datamodule.noted:
            raise UserError("this rank and the first rank read their images from different files; restart the job")


class AveragedWeights(EMAWeightAveraging):
    """Keeps an exponential moving average of weights and buffers, which is validated, selected and tested.

    conf/callbacks/ema.yaml documents the argument.
    """

    def __init__(self, decay: BelowOne) -> None:
        super().__init__(decay=decay)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.to(trainer.strategy.root_device)  # Lightning does so later, and the average would stay on the CPU
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning's method would restore the weights without averaging before a test, too
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class FiniteLoss(Callback):
    """Stops a run with NaN or infinite loss or weights before they are saved in a checkpoint.

    Args:
        every: number of batches between checks, since each check makes a GPU wait.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        looks = batch_idx % self.every == 0 or trainer.is_last_batch
        if looks:
            self._check("the loss", outputs["loss"], trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.training:
            return
        for name, value in pl_module.named_buffers():
            self._check(name, value, trainer)
        for name, value in pl_module.named_parameters():  # no loss follows the last step
            self._check(name, value.detach(), trainer, EXPLODED)

    @staticmethod
    def _check(name: str, value: Tensor, trainer: Trainer, most: float = torch.inf) -> None:
        """Raise a `UserError` if a value is NaN or infinite; one larger than `most` counts as infinite."""
        value = value.abs() if value.is_complex() else value
        if not value.is_floating_point() or value.numel() == 0:
            return
        limits = torch.stack(torch.aminmax(value)).abs()  # one pass over the values; NaN if any value is
        if not bool((limits.isfinite() & (limits <= most)).all()):
            value = value.masked_fill(value.abs() > most, torch.inf)
            seen = value[~torch.isfinite(value)].ravel()[0]
            kept = "; earlier checkpoints are kept" if trainer.current_epoch else ""
            raise UserError(
                f"{name} became {float(seen)} in epoch {trainer.current_epoch + 1}: lower optim.lr, warm up "
                f"(schedule.warmup_epochs), or set trainer.precision=32-true{kept}"
            )


class Observer(Callback):
    """Draws pictures for TensorBoard, warns of collapse, and measures the speed of training.

    Args:
        class_names: K names.
    """

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names
        self.speeds: list[float] = []  # images per second of each epoch, without its first batch
        self.waits: list[float] = []  # share of that time spent waiting for data
        self._start: float | None = None  # end of the epoch's first batch
        self._end, self._waited, self._images = 0.0, 0.0, 0
        # in the work of a GPU: the end of the last batch, and for each batch of the epoch that end and its own arrival
        self._mark: torch.cuda.Event | None = None
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._all_waited, self._all_seconds, self._said = 0.0, 0.0, False  # totals over all epochs

    @property
    def images_per_second(self) -> float | None:
        """The median over the epochs, without validation; None if every epoch is a single batch."""
        return median(self.speeds) if self.speeds else None

    @property
    def data_wait(self) -> float | None:
        """The median over the epochs of the share of time spent waiting for data, or None likewise."""
        return median(self.waits) if self.waits else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._end
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if self._mark and getattr(datamodule, "arrived", None):
            self._marks.append((self._mark, datamodule.arrived))
        if trainer.global_step > 0 or not isinstance(datamodule, DataModule):
            return
        for board in boards(trainer):
            pixels = denormalize(batch["image"][:16], datamodule.mean, datamodule.std)
            names = [self.class_names[target] for target in batch["target"][:16].tolist()]
            board.experiment.add_figure(f"{AFTER_CURVES}pictures/sample_batch", plots.samples.images(pixels, names), 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        on_gpu = getattr(batch["target"], "is_cuda", False)
        if self._start is None:  # warm-up of kernels and workers
            self._start, self._waited, self._images = time.perf_counter(), 0.0, 0
            self._marks.clear()
        else:
            self._images += len(batch["target"]) * trainer.world_size
        if trainer.loggers:
            self._log_loss(trainer, outputs["loss"], batch_idx)
        if trainer.is_last_batch:
            if self._images:
                if on_gpu:
                    torch.cuda.synchronize()
                    self._waited = sum(ended.elapsed_time(got) for ended, got in self._marks) / 1000
                self._measure(trainer, time.perf_counter() - self._start)
            self._start = None
        if on_gpu:
            self._mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._mark.record()
        self._end = time.perf_counter()

    def _log_loss(self, trainer: Trainer, loss: Tensor, batch_idx: int) -> None:
        """Log the loss of the last batch of every n-th optimizer step, on the first rank."""
        steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if ends_step(trainer, batch_idx) and trainer.global_step % steps == 0:
            log_to_all(trainer, {"train/batch_loss": float(loss)})

    def _measure(self, trainer: Trainer, seconds: float) -> None:
        """Store the epoch's speed, and warn once if training waits for data."""
        datamodule: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.speeds.append(self._images / seconds)
        self.waits.append(self._waited / seconds)
        if trainer.loggers:
            shown = {"train/images_per_second": self.speeds[-1], "train/data_wait": self.waits[-1]}
            log_to_all(trainer, {**shown, "epoch": trainer.current_epoch})
        self._all_waited, self._all_seconds = self._all_waited + self._waited, self._all_seconds + seconds
        if trainer.is_global_zero and not self._said and self._all_waited > max(1.0, PATIENCE * self._all_seconds):
            self._said = True
            # workers read while the network computes; without workers, this process reads between steps
            reading = seconds if datamodule.num_workers else self._waited
            log.warning(
                "training waits for data %.0f %% of the time: it reads %.0f images/s, the network takes %.0f/s; %s",
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
            for board in boards(trainer):
                figure = plots.matrices.confusion_matrix(counts.cpu().numpy(), self.class_names)
                board.experiment.add_figure(
                    f"{AFTER_CURVES}pictures/{split}_confusion_matrix", figure, trainer.current_epoch
                )
            if split == "val" and is_collapsed(counts):
                name = self.class_names[int(counts.sum(0).argmax())]
                log.warning("collapsed: at least 98 %% of the validation predictions are '%s'", name)


class ProgressLine(ProgressBar):
    """Shows progress on one line: epoch, time left, loss, the monitored metric and its best value, images/s.

    Args:
        best: the callback of the best checkpoint; None without a monitored metric.
    """

    def __init__(self, best: RunCheckpoint | None = None) -> None:
        super().__init__()
        self.best, self.progress, self.enabled = best, Progress(), True
        self._began = self._first = 0.0  # time and epoch at which this process started to train
        self._since, self._images = 0.0, 0  # start of the phase, and its images after the first batch

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._first = time.monotonic(), float(trainer.current_epoch)
        if self.enabled and self.progress.is_due():
            self.progress.draw(0, [self._epoch()])  # the first batch may take a while

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._counts(batch, batch_idx):
            return
        share = (batch_idx + 1) / self.total_train_batches
        epochs = trainer.current_epoch + share - self._first
        rest = (trainer.max_epochs or 0) - self._first - epochs
        seconds = (time.monotonic() - self._began) / epochs * rest
        self._draw(share, [self._epoch(), left(seconds), f"loss {float(outputs['loss']):.3g}"])

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._phase("validating", trainer.num_val_batches, *args)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._phase("testing", trainer.num_test_batches, *args)

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._phase("predicting", trainer.num_predict_batches, *args)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.progress.close()

    def _phase(self, doing: str, totals: list[int | float], *args: Any) -> None:
        """Draw the progress through a split; `args`: module, outputs, batch, batch index, loader index."""
        batch, batch_idx, loader = args[2], args[3], (*args, 0)[4]
        if self._counts(batch, batch_idx):
            share = (batch_idx + 1) / totals[loader]
            seconds = (time.monotonic() - self._since) * (1 - share) / share
            fits = self.trainer.state.fn == TrainerFn.FITTING
            self._draw(share, [f"{self._epoch()}, {doing}"] if fits else [doing, left(seconds)])

    def _counts(self, batch: Any, batch_idx: int) -> bool:
        """Count the images of a batch, and return whether to draw the line."""
        if batch_idx == 0:
            self._since, self._images = time.monotonic(), 0
        else:
            self._images += len(batch["image"]) * self.trainer.world_size
        return self.enabled and self.progress.is_due()

    def _draw(self, share: float, parts: list[str]) -> None:
        speed = self._images / max(time.monotonic() - self._since, 1e-9)
        self.progress.draw(share, [*parts, *self._selected(), *[f"{speed:.0f} images/s"] * bool(self._images)])

    def _epoch(self) -> str:
        return f"epoch {self.trainer.current_epoch + 1}/{self.trainer.max_epochs}"

    def _selected(self) -> list[str]:
        """Return the last and the best value of the monitored metric."""
        if self.best is None or self.best.best_model_score is None or self.trainer.state.fn != TrainerFn.FITTING:
            return []
        name, best = str(self.best.monitor), float(self.best.best_model_score)
        return [f"{name.partition('/')[2]} {float(self.trainer.callback_metrics.get(name, best)):.3f}, best {best:.3f}"]
