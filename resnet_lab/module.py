"""The LightningModule, with one step method for train, val and test."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from resnet_lab.config import build
from resnet_lab.distillation import Distillation
from resnet_lab.errors import UserError
from resnet_lab.freezing import Freezing
from resnet_lab.loggers import log_to_all
from resnet_lab.metrics import SplitMetrics
from resnet_lab.objectives import Objective
from resnet_lab.optim import (
    keep_products_on_cpu,
    naming,
    optimizer_of,
    refuse_lost_factor,
    refuse_no_schedule,
    use_fused,
)
from resnet_lab.origin import CHECKPOINT_KEY, add_train_images
from resnet_lab.trained import Trained, load
from resnet_lab.tta import outputs_of, plain

EPOCH_KEY = "resnet_lab_epoch"  # key of the losses, outputs and targets of an unfinished epoch, of all ranks


class Outputs(NamedTuple):
    """Predictions of a model for N images."""

    probabilities: np.ndarray  # (N, K)
    classes: np.ndarray  # (N,)


class Classifier(LightningModule):
    """Network with its objective, optimizer, schedule and metrics.

    Args:
        model: images (B, 3, H, W) → outputs (B, M).
        loss: the objective: loss, probabilities and classes of the outputs.
        optimizer: parameters → optimizer; None without training.
        schedule: optimizer, steps_per_epoch, max_epochs → scheduler; None without training.
        class_names: K names.
        ordered: whether the classes are grades.
        val_splits: the split of each validation loader (`val`, and `test` if it is evaluated after each epoch).
        test_splits: the split of each test loader.
        origin: metadata for checkpoints (see `resnet_lab.origin`).
        backbone_lr_factor: see `resnet_lab.optim.optimizer_of`.

    Attributes:
        fit_split: the split on which the objective is fitted after each epoch and, with the selected checkpoint, before
            the test; None: not fitted before a training, which then sets it.
        freezing: keeps parts of a loaded network as they are, if its run did; None: all is trained.
        tta: views of each image outside training, see `resnet_lab.tta`.
        distillation: the teacher; None: only the labels are learned.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Objective,
        optimizer: Callable[..., Optimizer] | None,
        schedule: functools.partial[Any] | None,
        class_names: Sequence[str],
        ordered: bool,
        val_splits: Sequence[str] = (),
        test_splits: Sequence[str] = (),
        origin: dict[str, Any] | None = None,
        backbone_lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.optimizer_factory, self.schedule_factory = optimizer, schedule
        self.backbone_lr_factor = backbone_lr_factor
        self.val_splits, self.test_splits, self.origin = list(val_splits), list(test_splits), origin or {}
        complete = {"train": "train" in self.test_splits, "val": True, "test": True}
        # the suffix is needed: ModuleDict has a method `train`, so a key cannot have this name
        self.metrics = nn.ModuleDict(
            {f"{split}_metrics": SplitMetrics(split, len(class_names), ordered, complete[split]) for split in complete}
        )
        self.memory_format = torch.contiguous_format
        self.copies_outputs = False  # with CUDA graphs, which write the outputs of the next batch to the same memory
        self._begun: list[Tensor] | None = None  # rows of an unfinished epoch, from a checkpoint
        self._counted = (-1, -1)  # epoch and number of the last training batch in the metrics
        self.fit_split: str | None = None
        self.tta = "none"
        self.distillation: Distillation | None = None
        self.freezing: Freezing | None = None
        self.outputs: dict[str, list[tuple[Tensor, ...]]] = {}  # split → index (B,), outputs of `_step`, targets (B,)
        self.confusion: dict[str, Tensor] = {}  # split → counts (K, K) of the last epoch
        self.computed: dict[str, float] = {}  # last values of all metrics
        self.predictions: dict[str, Outputs] = {}  # split → predictions of the last test

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        self.val_splits = self.val_splits or list(getattr(datamodule, "val_splits", []))
        self.test_splits = self.test_splits or list(getattr(datamodule, "test_splits", []))
        if stage == "fit" and self.fit_split is None:
            self.fit_split = "val" if "val" in getattr(datamodule, "splits", []) else "train"

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.freezing is None else [self.freezing]

    def on_fit_start(self) -> None:
        # training cannot use the inference tensors of an earlier evaluation
        for split in ("train", "val", "test"):
            self.split_metrics(split).reset()
        if self.distillation is not None:
            self.distillation.to(self.device, self.memory_format)

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs (B, M) of images (B, 3, H, W)."""
        result: Tensor = self.model(images.contiguous(memory_format=self.memory_format))
        return result.clone() if self.copies_outputs else result

    def _step(
        self, batch: dict[str, Any], split: str, trains: bool = False, counts: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss without padding rows and all outputs, and update the metrics of `split` if it `counts`.

        `trains` is true in a training step; the images of train may also be evaluated.

        Outputs are (B, M), or outside training those of the views of each image, (B, V, M). The loss is that of the
        images as they are. In training, it is that of both images of a mixture (mixup), and of labels and teacher; the
        other metrics compare with the class of the image with the larger share.
        """
        outputs, targets = outputs_of(self, batch["image"], "none" if trains else self.tta), batch["target"]
        # without padding, a mask would only make a GPU wait
        rows = batch["index"] >= 0 if batch.get("padded") else slice(None)
        losses = self.loss.losses(plain(outputs[rows]).float(), targets[rows])
        if "partner" in batch:  # mixup; only training has it
            others = self.loss.losses(outputs.float(), targets[batch["partner"]])
            losses = torch.lerp(others, losses, batch["share"])
        if trains and self.distillation is not None:
            losses = self.distillation.losses(losses, outputs, batch["image"])
        if counts:
            self.split_metrics(split).update(losses, outputs[rows], targets[rows])
        return losses.mean(), outputs

    def _keep(self, batch: dict[str, Any], split: str, outputs: Tensor) -> None:
        self.outputs.setdefault(split, []).append((batch["index"], outputs.float(), batch["target"]))

    def split_metrics(self, split: str) -> SplitMetrics:
        """Return the metrics of one split."""
        metrics = self.metrics[f"{split}_metrics"]
        assert isinstance(metrics, SplitMetrics)
        return metrics

    def _end_epoch(self, split: str) -> None:
        metrics = self.split_metrics(split)
        # the final test is not a point of the curves by epoch; `log_hyperparameters` logs its values
        values = metrics.compute(self.loss, final=bool(self.trainer.testing))
        logged = split != "train" and not self.trainer.testing
        self.log_dict(values, prog_bar=split == "val", logger=logged, sync_dist=False)
        numbers = {name: float(value) for name, value in values.items()}
        self.computed |= numbers
        if split == "train":  # Lightning logs these only after the epoch's checkpoint, so a kill could lose them
            log_to_all(self.trainer, {**numbers, "epoch": self.current_epoch})
        self.confusion[split] = metrics.confusion.compute()
        metrics.reset()

    def refuse_replaced(self, metrics: Mapping[str, float]) -> None:
        """Refuse logged metrics that a callback has replaced.

        Raises:
            UserError: a value is not the one that was computed for its name.
        """
        for name, value in metrics.items():
            own = self.computed.get(name, value)
            if not (math.isclose(value, own, rel_tol=1e-6) or (math.isnan(value) and math.isnan(own))):
                raise UserError(
                    f"{name} is logged as {value:.6g} by a callback, but the run itself computed {own:.6g}; let the "
                    "callback log another name"
                )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        step = (self.current_epoch, batch_idx)
        before, self._counted = self._counted, step  # LBFGS repeats the step of a batch
        return self._step(batch, "train", trains=True, counts=step != before)[0]

    def on_train_epoch_end(self) -> None:
        self._counted = (-1, -1)  # another `fit` counts from 0 again
        rows = self.split_metrics("train").rows
        if self.fit_split == "train" and self.loss.fitted:
            _, outputs, targets = (self._all_ranks(torch.cat(column)) for column in zip(*rows, strict=True))
            self.loss.fit(outputs.double(), targets)
        self._end_epoch("train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        split = self.val_splits[dataloader_idx]
        _, outputs = self._step(batch, split)
        if split == self.fit_split and self.loss.fitted:
            self._keep(batch, split, outputs)

    def on_validation_epoch_end(self) -> None:
        if self.fit_split in self.outputs:
            _, outputs, targets = self._gather(self.outputs.pop(self.fit_split))
            self.loss.fit(plain(outputs).double(), targets)
        for split in self.val_splits:
            self._end_epoch(split)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        split = self.test_splits[dataloader_idx]
        _, outputs = self._step(batch, split)
        self._keep(batch, split, outputs)

    def on_test_epoch_end(self) -> None:
        found = {split: self._gather(self.outputs.pop(split)) for split in self.test_splits}
        if self.fit_split in found:
            _, outputs, targets = found[self.fit_split]
            if self.loss.fitted:
                self.loss.fit(plain(outputs).double(), targets)
            self.loss.fit_thresholds(outputs, targets)
        for split, (_, outputs, _) in found.items():
            self._end_epoch(split)
            self.predictions[split] = self._predictions(outputs)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        outputs = outputs_of(self, batch["image"], self.tta).float()
        self.outputs.setdefault("predict", []).append((batch["index"], outputs))
        return outputs

    def on_predict_epoch_end(self) -> None:
        _, outputs = self._gather(self.outputs.pop("predict"))
        self.predictions["predict"] = self._predictions(outputs)

    def _predictions(self, outputs: Tensor) -> Outputs:
        """Return the predictions for outputs (N, M) or (N, V, M)."""
        probabilities, classes = self.loss.averaged(outputs), self.loss.classes(outputs)
        return Outputs(probabilities.cpu().numpy(), classes.cpu().numpy())

    def _gather(self, kept: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return stored columns (the index first) of all ranks, without padding, in the order of the table."""
        columns = [self._all_ranks(torch.cat(column)) for column in zip(*kept, strict=True)]
        order = columns[0].argsort()[int((columns[0] < 0).sum()) :]  # without the padding
        return tuple(column[order] for column in columns)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, trust: Sequence[str] = (), **_: Any
    ) -> Classifier:
        """Load the module of a checkpoint or run folder, for evaluation or further training.

        Training has the optimizer, schedule, fit of the objective, and frozen parts of the run.

        Args:
            checkpoint_path: see `resnet_lab.trained.load`, also for the errors.
            map_location: the device of the weights; None: the CPU.
            trust: see `resnet_lab.trained.load`.
        """
        trained = load(checkpoint_path, trust)
        config = trained.origin["config"]
        optimizer, schedule = build("optim", config["optim"]), build("schedule", config["schedule"])
        module = cls.of(trained, optimizer, schedule)
        module.backbone_lr_factor = float(config["optim"].get("backbone_lr_factor", 1.0))
        if config["model"]["freeze"]:
            module.freezing = Freezing(module.model, config["model"]["freeze"], config["model"]["unfreeze_at_epoch"])
        module.train()  # the mode of any new module; a Trainer switches modes itself
        return module.to(map_location) if map_location is not None else module

    @classmethod
    def of(
        cls,
        trained: Trained,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: functools.partial[Any] | None = None,
        test_splits: Sequence[str] = (),
    ) -> Classifier:
        """Build a module from a trained network."""
        origin = trained.origin
        splits: dict[str, Any] = {"test_splits": test_splits, "origin": origin}
        names = origin["class_names"]
        module = cls(trained.network, trained.objective, optimizer, schedule, names, origin["ordered"], **splits)
        module.tta = trained.tta
        return module

    def configure_optimizers(self) -> Any:
        assert self.optimizer_factory is not None and self.schedule_factory is not None  # noqa: PT018
        run = self.origin.get("config")
        with naming("optim", run):
            optimizer = optimizer_of(self.optimizer_factory, self, self.model, self.backbone_lr_factor)
        use_fused(optimizer, str(self.trainer.precision))
        epochs = int(self.trainer.max_epochs or 0)
        batches = max(1, self.trainer.datamodule.batches_per_epoch())  # type: ignore[attr-defined]
        steps = -(-batches // self.trainer.accumulate_grad_batches)
        known = {"steps_per_epoch": steps, "max_epochs": epochs, "epochs": epochs}
        known["total_steps"] = steps * max(epochs, 1)
        takes = inspect.signature(self.schedule_factory).parameters
        given = {name: value for name, value in known.items() if name in takes}
        with naming("schedule", run):
            scheduler = self.schedule_factory(optimizer, **given)
        refuse_no_schedule(scheduler)
        refuse_lost_factor(optimizer, self.backbone_lr_factor)
        # with interval "epoch", Lightning updates a plateau after writing the checkpoint, and a resumed run would miss
        # that; at the last step of the epoch, the update comes after validation and before the checkpoint
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        chosen = run["schedule"] if run else self.schedule_factory.keywords
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning counts the frequency in batches, even if gradients are accumulated
            config |= {"monitor": chosen["monitor"], "frequency": batches}
        elif chosen.get("interval") == "epoch":
            config |= {"frequency": batches}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self.origin
        if rows := self.split_metrics("train").rows:
            checkpoint[EPOCH_KEY] = [self._all_ranks(torch.cat(column)).cpu() for column in zip(*rows, strict=True)]

    def _all_ranks(self, values: Tensor) -> Tensor:
        """Concatenate values (n, …) of each rank to (n · ranks, …); those of a rank are `[rank::ranks]`."""
        ranks = self.all_gather(values)
        assert isinstance(ranks, Tensor)
        return ranks.reshape(-1, *values.shape).transpose(0, 1).flatten(0, 1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._begun = checkpoint.get(EPOCH_KEY)
        add_train_images(self.origin, checkpoint.get(CHECKPOINT_KEY))  # with those of its initial weights

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            keep_products_on_cpu(optimizer)
        if self._begun is not None:
            own = slice(self.global_rank, None, self.trainer.world_size)
            losses, logits, targets = (column[own].to(self.device) for column in self._begun)
            self.split_metrics("train").rows.append((losses, logits, targets))
            self._begun = None
