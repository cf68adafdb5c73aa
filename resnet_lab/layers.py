"""Measures gradients, activations and dead units by layer and epoch, to show why deep plain networks fail to train."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import pandas as pd
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resnet_lab import plots
from resnet_lab.files import write_atomically
from resnet_lab.loggers import AFTER_CURVES, boards
from resnet_lab.run_folder import RunFolder

BATCHES = 8  # number of measured batches per epoch, evenly spaced
ACTIVATIONS = tuple(getattr(nn, name) for name in nn.modules.activation.__all__)


class LayerStatistics(Callback):
    """Measures each layer on a few training batches of every epoch, for `layers.csv`, TensorBoard and the report.

    Each quantity is a mean over the measured batches:

    - `gradient_norm`: L2 norm of the gradient of a convolution's or linear layer's weights, before clipping; NaN for a
      layer without gradient, such as a frozen layer;
    - `activation_variance`: variance over a batch after an activation, or after the identity in place of one;
    - `dead_units`: share of the channels there that are positive for no image and no pixel of the batch.

    If gradients are accumulated, a measurement lasts until the optimizer's step. Under DDP, activations are measured on
    the first rank's part of the batch, and gradients on the complete batch.

    Args:
        run: the run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.rows: list[dict[str, Any]] = []  # rows of layers.csv
        self._handles: list[RemovableHandle] = []
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], int] = defaultdict(int)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = max(1, int(trainer.num_training_batches) // BATCHES)
        if self._handles or batch_idx % step or batch_idx >= step * BATCHES:
            return
        assert isinstance(pl_module.model, nn.Module)
        for name, layer in pl_module.model.named_modules():
            if is_activation(name, layer):
                self._handles.append(layer.register_forward_hook(partial(self._measure, name)))

    def _measure(self, name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.detach()
        self._add("activation_variance", name, values.float().var())
        alive = values.amax([axis for axis in range(values.ndim) if axis != 1]) > 0
        self._add("dead_units", name, 1 - alive.float().mean())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        assert isinstance(pl_module.model, nn.Module)
        for name, layer in pl_module.model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gradient = layer.weight.grad
                norm = torch.tensor(torch.nan) if gradient is None else gradient.norm()
                self._add("gradient_norm", name, norm)

    def _add(self, quantity: str, layer: str, value: Tensor) -> None:
        key = (quantity, layer)
        self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._counts[key] += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        for (quantity, layer), total in self._sums.items():
            value = float(total) / self._counts[quantity, layer]
            self.rows.append({"epoch": epoch, "quantity": quantity, "layer": layer, "value": value})
        self._sums.clear()
        self._counts.clear()
        if trainer.is_global_zero:
            frame = pd.DataFrame(self.rows)
            write_atomically(self.run.layers_file, frame.to_csv(index=False))
            for board in boards(trainer):
                figure = plots.layers.by_depth({f"epoch {epoch + 1}": plots.layers.profile_of(frame, epoch)})
                board.experiment.add_figure(f"{AFTER_CURVES}pictures/layers", figure, epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "sums": self._sums, "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._sums = (
            list(state_dict["rows"]),
            dict(state_dict.get("sums", {})),
        )  # absent in older versions
        self._counts.update(state_dict.get("counts", {}))


def is_activation(name: str, layer: nn.Module) -> bool:
    """Return whether a layer is an activation, or the identity in place of one."""
    return isinstance(layer, ACTIVATIONS) or (isinstance(layer, nn.Identity) and name.endswith("activation"))
