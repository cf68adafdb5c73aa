"""Write `best.ckpt`, `last.ckpt` and metrics.csv of a run atomically, and choose the checkpoint to resume from."""

from __future__ import annotations

import errno
import io
import logging
import math
import pickle
import time
import zipfile
from collections.abc import Collection, Iterable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from resnet_lab import environment
from resnet_lab.errors import UserError, reason_of
from resnet_lab.files import write_atomically
from resnet_lab.models.pretrained import HARMLESS
from resnet_lab.module import Classifier
from resnet_lab.origin import CHECKPOINT_KEY
from resnet_lab.run_folder import UNTRAINED, RunFolder
from resnet_lab.scores import SCORES

SHOWN = {"lr", "loss", *(name for name, score in SCORES.items() if "log" in score.shown)}  # in the log line of an epoch

log = logging.getLogger(__name__)

# content of a job's checkpoint
PARTS = {"epoch": int, "global_step": int, "state_dict": dict, "optimizer_states": list, "lr_schedulers": list}
PARTS |= {"loops": dict, "callbacks": dict, "pytorch-lightning_version": str, CHECKPOINT_KEY: dict}
ENDED = "ended_after"  # of status.json: the epochs of a training that a callback ended before `trainer.max_epochs`

_damaged: set[Path] = set()  # damaged files, renamed before they are overwritten


def real(file: Path) -> Path:
    """Return the path of a file with links in its folder resolved."""
    return file.parent.resolve() / file.name


def free_name(file: Path) -> Path:
    """Return the name for a damaged file: `last.ckpt.damaged`, or the first free `last.ckpt.damaged1`, `…2`."""
    names = (file.with_name(f"{file.name}.damaged{number or ''}") for number in count(0))
    return next(name for name in names if not name.exists())


def load_plain(file: Any, mmap: bool = False) -> Any:
    """Unpickle a checkpoint on the CPU; only tensors, plain values and `HARMLESS` objects are allowed."""
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def save(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint, or refuse it if no later start could load it, and name the part that stores an object.

    Args:
        checkpoint: what a job saves.
        file: open for writing and reading.

    Raises:
        UserError: it contains anything but tensors, plain values and `HARMLESS` objects.
    """
    found = _objects_in(checkpoint, file)
    if not found:
        return
    parts = {f"the callback {name}": state for name, state in checkpoint.get("callbacks", {}).items()}
    parts |= {"the optimizer": checkpoint.get("optimizer_states"), "the schedule": checkpoint.get("lr_schedulers")}
    owner = "the network"
    for name, state in parts.items():
        if own := _objects_in(state, io.BytesIO()):
            owner, found = name, own
            break
    raise UserError(_stores(owner, found[0]))


def refuse_objects(callbacks: Iterable[Callback]) -> None:
    """Refuse a callback whose state, as far as it has one before training, `save` would refuse after an epoch.

    Raises:
        UserError: it contains anything but tensors, plain values and `HARMLESS` objects.
    """
    for callback in callbacks:
        try:
            state = callback.state_dict()
        except Exception:  # it has a state during training only
            continue
        if found := _objects_in(state, io.BytesIO()):
            raise UserError(_stores(f"the callback {callback.state_key}", found[0]))


def _stores(owner: str, kind: str) -> str:
    return (
        f"{owner} stores an object of {kind} in the checkpoint, from which no run could resume; let its state_dict() "
        "return tensors, arrays, numbers and text"
    )


def _objects_in(state: object, file: BinaryIO) -> list[str]:
    """Write a state, and return the names of the objects in it that `load_plain` would refuse."""
    try:
        torch.save(state, file)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return [f"another kind ({reason_of(error)})"]
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # a write was cut short, as on a full disk
            raise error.__context__ from error
        raise
    file.seek(0)
    with torch.serialization.safe_globals(HARMLESS):
        return torch.serialization.get_unsafe_globals_in_checkpoint(file)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write each checkpoint to a temporary file in the same folder and rename it.

    Lightning's own class writes to the system's temporary folder first. If that is on another disk, and this one is
    full, copying the file truncates the existing checkpoint.
    """

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.serialization.safe_globals(HARMLESS):
            return super().load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if real(Path(path)) in _damaged:  # kept, as parts of it may be recoverable
            _damaged.discard(real(Path(path)))
            Path(path).replace(free_name(Path(path)))
        write_atomically(Path(path), partial(save, checkpoint), durable=True)


def resume_point(run: RunFolder, on_corrupt: str, misfits: Collection[Path] = ()) -> Path | None:
    """Return the checkpoint to resume from; None: start from the first epoch.

    A damaged checkpoint is logged, and renamed before its name is used again.

    Args:
        run: run folder.
        on_corrupt: if `last.ckpt` is damaged, `best` resumes from `best.ckpt` if it is undamaged; `start` starts over.
        misfits: checkpoints that do not fit this job's network.

    Raises:
        UserError: a file cannot be read now and may be undamaged.
    """

    def usable(file: Path) -> bool:
        complete = file not in misfits and is_whole(file)
        if not complete and file.exists():
            _damaged.add(real(file))
        return complete

    if not run.last_checkpoint.exists():
        return None
    if usable(run.last_checkpoint):
        return run.last_checkpoint
    best = run.best_checkpoint if on_corrupt == "best" and usable(run.best_checkpoint) else None
    log.warning("last.ckpt is damaged; resuming from %s", best.name if best else "the first epoch")
    return best


def is_whole(file: Path) -> bool:
    """Return whether a checkpoint exists, its checksums are right, and it contains all parts that a job needs.

    Raises:
        UserError: permission is missing, or the disk fails.
        MemoryError: the file does not fit into memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            intact = archive.testzip() is None
        # also checks the names of the archive, which have no checksum
        content = load_plain(file, mmap=True)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno in (None, errno.ENOENT, errno.EISDIR, errno.EINVAL):  # EINVAL: zipfile found invalid offsets
            return False
        raise UserError(
            f"{file} cannot be read ({error.strerror}), but may be undamaged; make it readable, then rerun the command"
        ) from error
    except Exception as error:  # damage raises many types of exceptions
        if "allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        return False
    return intact and _is_of_a_job(content)


def _is_of_a_job(content: object) -> bool:
    """Return whether a checkpoint has all parts that a job writes."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in PARTS.items()):
        return False
    return bool(content["callbacks"]) and all(isinstance(each, Tensor) for each in content["state_dict"].values())


def fits(file: Path, module: LightningModule) -> bool:
    """Return whether an undamaged checkpoint has the same names and shapes as a network."""
    state = load_plain(file, mmap=True)["state_dict"]
    return {name: each.shape for name, each in state.items()} == {
        name: each.shape for name, each in module.state_dict().items()
    }


def put_objective(file: Path, module: Classifier) -> None:
    """Replace the values of the objective in a checkpoint by those that were fitted with its weights."""
    content = load_plain(file)
    fitted = {name: value.cpu() for name, value in module.state_dict().items() if name.startswith("loss.")}
    AtomicCheckpointIO().save_checkpoint(content | {"state_dict": content["state_dict"] | fitted}, file)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether the optimizer steps after a batch, instead of accumulating gradients of the next one."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def of_split(name: str) -> bool:
    """Return whether a logged value is a metric of a split (`val/loss`), not a learning rate (`lr-SGD/head`)."""
    return name.partition("/")[0] in ("train", "val", "test")


class EpochRows(Callback):
    """Rows of metrics.csv, stored in the checkpoints.

    A resumed run thus has the rows of the epochs before its checkpoint, and no others. A metric that was not logged in
    an epoch is NaN there (Lightning keeps its last value, which a resumed run would lack).

    Column `lr` is the rate after the epoch. The log shows the rate of the last step, as a schedule may end at 0.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.rate: float | None = None  # of the last step
        self._before: dict[str, Tensor] = {}  # metrics that were logged before this epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = dict(trainer.callback_metrics)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rate = optimizer.param_groups[0]["lr"]

    def note(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of this epoch, once; call it when checkpoints are written, as the metrics are complete then."""
        if not self.rows or self.rows[-1]["epoch"] < trainer.current_epoch:
            found = sorted(trainer.callback_metrics.items())
            new = [(name, value) for name, value in found if value is not self._before.get(name)]
            metrics = {name: float(value) for name, value in new if of_split(name)}
            if isinstance(pl_module, Classifier):
                pl_module.refuse_replaced(metrics)
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.rows.append({"epoch": trainer.current_epoch, "lr": lr, **metrics})

    def write(self, file: Path, metrics: Iterable[str] = ()) -> None:
        """Write the file and log the last row; without rows, write a header with these metrics."""
        write_atomically(file, self.text(metrics), durable=True)
        if not self.rows:
            return
        shown = {name: value for name, value in self.rows[-1].items() if name.split("/")[-1] in SHOWN}
        shown |= {} if self.rate is None else {"lr": self.rate}
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info("epoch %d  %s", self.rows[-1]["epoch"] + 1, text)

    def text(self, metrics: Iterable[str] = ()) -> str:
        """Return the content of the file (see `write`)."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["epoch", "lr", *sorted(metrics)]
        lines = [",".join(columns), *(",".join(repr(row.get(name, math.nan)) for name in columns) for row in self.rows)]
        return "\n".join(lines) + "\n"

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class RunCheckpoint(ModelCheckpoint):
    """One checkpoint file of a run folder; the folder may be moved between two starts.

    Args:
        run: run folder.
        rows: rows of metrics.csv so far.
        name: file name without suffix.
        monitor: metric that selects the epoch; None: the last epoch.
        mode: `min` or `max`.
        undefined: whether the metric is meaningless on this validation split; its values are ignored.
    """

    def __init__(
        self,
        run: RunFolder,
        rows: EpochRows,
        name: str,
        monitor: str | None = None,
        mode: str = "min",
        undefined: bool = False,
    ) -> None:
        super().__init__(
            dirpath=run.checkpoints,
            filename=name,
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.run, self.rows, self.undefined, self._warned = run, rows, undefined, False

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        found = super()._monitor_candidates(trainer)
        if self.undefined and self.monitor in found:
            found[self.monitor] = torch.full_like(found[self.monitor], torch.nan)
        return found

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows.note(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether to save this epoch: it is at least as good as the best (a collapsed network always has QWK 0).

        NaN is worse than every number. If all epochs have NaN, the last one is kept.
        """
        if current is not None and current.isnan():
            if not self._warned and not self.undefined and trainer.is_global_zero:
                text = "%s is undefined in epoch %d; undefined epochs are not selected as best"
                log.warning(text, self.monitor, trainer.current_epoch + 1)
                self._warned = True
            current = torch.full_like(current, torch.inf if self.mode == "min" else -torch.inf)
        return super().check_monitor_top_k(trainer, current) or (
            current is not None and current == self.best_model_score
        )

    def keep_untrained(self, trainer: Trainer) -> None:
        """Save the initial weights, validated but not trained (`trainer.max_epochs=0`)."""
        self.best_model_path = str(self.run.checkpoints / f"{self.filename}.ckpt")
        self.best_model_score = self._monitor_candidates(trainer).get(self.monitor) if self.monitor else None
        trainer.save_checkpoint(self.best_model_path)

    @property
    def saved(self) -> str | None:
        """The checkpoint's path relative to the run folder; None before the first save."""
        return str(Path(self.best_model_path).relative_to(self.run.path)) if self.best_model_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state with current paths; a damaged best checkpoint is ignored."""
        best = self._moved(state_dict["best_model_path"])
        if self.monitor and best and not is_whole(Path(best)):
            _damaged.add(real(Path(best)))
            log.warning("%s is damaged; the best of the following epochs replaces it", Path(best).name)
            return
        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path"):
            state[key] = self._moved(state[key])
        state["best_k_models"] = {self._moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)

    def _moved(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


class LastCheckpoint(RunCheckpoint):
    """Write `last.ckpt` and `metrics.csv` after every epoch; ModelCheckpoint's `save_last` needs a new best epoch.

    Args:
        run: run folder.
        rows: rows of metrics.csv so far.
        best: callback that writes `best.ckpt`; None if no metric selects an epoch.
        minutes: interval for saving `last.ckpt` within an epoch, too; None: never.
    """

    def __init__(
        self, run: RunFolder, rows: EpochRows, best: RunCheckpoint | None, minutes: float | None = None
    ) -> None:
        super().__init__(run, rows, "last")
        self.best, self.minutes = best, minutes
        status = run.read_status()
        self.before = {name: status.get(name, 0) for name in ("seconds", "core_seconds")}  # earlier starts
        self.started = self.saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the training had ended before max_epochs, as only predictions may be missing."""
        super().on_train_start(trainer, pl_module)
        if self.rows.rows and self.run.read_status().get(ENDED) == len(self.rows.rows):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.minutes is None or trainer.is_last_batch:  # the end of the epoch saves it
            return
        if not ends_step(trainer, batch_idx):  # a checkpoint contains no accumulated gradients
            return
        due = time.monotonic() - self.saved_at >= 60 * self.minutes
        if trainer.world_size > 1:  # all ranks must save together
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            trainer.save_checkpoint(self.run.last_checkpoint)
            self.saved_at = time.monotonic()
            text = "saved in epoch %d after batch %d of %d"
            log.info(text, trainer.current_epoch + 1, batch_idx + 1, trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.saved_at = time.monotonic()
        self._note(trainer, trainer.current_epoch)

    def catch_up(self, trainer: Trainer) -> None:
        """Note the last epoch if an earlier start was killed between its checkpoint and metrics.csv."""
        file, rows = self.run.metrics_file, self.rows.rows
        if not trainer.is_global_zero or not rows:
            return
        text = self.rows.text()
        if not file.is_file() or file.read_text() != text:
            write_atomically(file, text, durable=True)
        self.run.update_status(epoch=int(rows[-1]["epoch"]))

    def keep_untrained(self, trainer: Trainer) -> None:
        super().keep_untrained(trainer)
        self._note(trainer, UNTRAINED)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.max_epochs == 0:
            checkpoint["epoch"] = UNTRAINED

    def _note(self, trainer: Trainer, epoch: int) -> None:
        """Write metrics.csv, and the progress of the job into status.json."""
        cost = self.cost(trainer)
        if trainer.is_global_zero:
            self.rows.write(self.run.metrics_file, filter(of_split, trainer.callback_metrics))
            self.run.update_status(epoch=epoch, **cost, **self.selection())

    def cost(self, trainer: Trainer) -> dict[str, float]:
        """Return `seconds` and `core_seconds` (of all ranks) of the job over all starts; every rank must call it."""
        cores = trainer.strategy.reduce(
            torch.tensor(environment.core_seconds(), device=trainer.strategy.root_device), reduce_op="sum"
        )
        cost = {"seconds": time.monotonic() - self.started, "core_seconds": float(cores)}
        return {name: round(self.before[name] + value, 1) for name, value in cost.items()}

    def selection(self) -> dict[str, Any]:
        """Return the paths of both checkpoints and the value that selected the best one, for status.json."""
        score = None if self.best is None else self.best.best_model_score
        return {
            "best_checkpoint": None if self.best is None else self.best.saved,
            "last_checkpoint": self.saved,
            "best_value": None if score is None or not score.isfinite() else float(score),
        }
