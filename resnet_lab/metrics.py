"""The metrics of one split, from torchmetrics, with every average spelt out."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCohenKappa,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from resnet_lab.errors import UserError
from resnet_lab.objectives import Objective
from resnet_lab.statistics import COLLAPSED, MANY_CLASSES

NEEDS_TWO_CLASSES = ("val/qwk", "val/auroc")  # which mean nothing where all images are of one class


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall over the classes that occur in the targets (as scikit-learn; torchmetrics' macro counts others)."""

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        counts = super().compute()
        support = counts.sum(1)
        return (counts.diag()[support > 0] / support[support > 0]).mean()


class MacroAUROC(MulticlassAUROC):
    """Mean one-against-rest AUROC over the classes that occur (torchmetrics counts an absent class as 0)."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Scalar in [0, 1]; NaN where fewer than two classes occur."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "no positive samples": such classes leave the mean below
            by_class = super().compute()
        present = torch.unique(torch.cat(self.target) if isinstance(self.target, list) else self.target)
        return by_class[present].mean() if len(present) > 1 else torch.tensor(torch.nan)


def _counting_metrics(num_classes: int, ordered: bool) -> dict[str, Metric | MetricCollection]:
    k = num_classes
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(k, average="micro"),
        "balanced_accuracy": BalancedAccuracy(k),
        "f1_weighted": MulticlassF1Score(k, average="weighted"),
    }
    if ordered:
        metrics["qwk"] = MulticlassCohenKappa(k, weights="quadratic")
    return metrics


def _evaluation_metrics(num_classes: int) -> dict[str, Metric | MetricCollection]:
    k = num_classes
    return {
        "precision_weighted": MulticlassPrecision(k, average="weighted"),
        "precision_macro": MulticlassPrecision(k, average="macro"),
        "recall_weighted": MulticlassRecall(k, average="weighted"),
        "recall_macro": MulticlassRecall(k, average="macro"),
        "f1_macro": MulticlassF1Score(k, average="macro"),
    }


class SplitMetrics(nn.Module):
    """Loss, scores and confusion matrix of one split over one epoch, summed over ranks.

    Args:
        split: `train`, `val` or `test`.
        num_classes: K.
        ordered: whether to compute quadratic weighted kappa.
        complete: whether to compute what has to keep every prediction, too; training does not.
    """

    def __init__(self, split: str, num_classes: int, ordered: bool, complete: bool = True) -> None:
        super().__init__()
        metrics = _counting_metrics(num_classes, ordered)
        if complete:
            metrics |= _evaluation_metrics(num_classes)
        self.loss = MeanMetric(nan_strategy="disable")  # which keeps NaN; by default it would drop out of the mean
        self.loss.set_dtype(torch.float64)  # so that the order of the batches leaves no trace
        self.scores = MetricCollection(metrics, prefix=f"{split}/")  # of classes; the other is of probabilities
        self.auroc: MacroAUROC | None = MacroAUROC(num_classes, average=None) if complete else None
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.split = split
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []  # of the epoch so far

    def update(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add losses (B,), outputs (B, M), targets (B,); counted at the end, as many small counts take long."""
        self.rows.append((losses.detach(), outputs.detach(), targets))

    def compute(self, objective: Objective) -> dict[str, Tensor]:
        """`<split>/<metric>` → scalar, over all ranks; `confusion` has the epoch's counts from then on."""
        if any(len(targets) for _, _, targets in self.rows):  # a rank may have had nothing but padding
            losses, outputs, targets = (torch.cat(columns) for columns in zip(*self.rows, strict=True))
            classes = objective.decide(outputs)
            self.loss.update(losses.double())
            self.scores.update(classes, targets)
            self.confusion.update(classes, targets)
            if self.auroc is not None:
                self.auroc.update(objective.probabilities(outputs), targets)
        self.rows.clear()
        loss = self.loss.compute().float()
        values = {f"{self.split}/loss": loss, **self.scores.compute()}
        if self.auroc is not None:
            values[f"{self.split}/auroc"] = self.auroc.compute()
        if loss.isnan():  # the largest of NaNs is the first class, which would look like a score
            values = {name: torch.full_like(value, torch.nan, dtype=torch.float) for name, value in values.items()}
        return values | {f"{self.split}/{name}": value for name, value in self._recalls().items()}

    def _recalls(self) -> dict[str, Tensor]:
        """`recall_<class>` → share of that class that is found, NaN where there is none."""
        counts = self.confusion.compute()
        if len(counts) > MANY_CLASSES:
            return {}
        return {f"recall_{k}": row[k] / row.sum() for k, row in enumerate(counts.float())}

    def reset(self) -> None:
        """Forget the epoch."""
        self.rows.clear()
        for metric in (self.loss, self.scores, self.confusion):
            metric.reset()
        if self.auroc is not None:
            self.auroc.reset()


def metric_names(num_classes: int, ordered: bool) -> list[str]:
    """What can be monitored on a split other than train, without its prefix."""
    return ["loss", *_counting_metrics(num_classes, ordered), "auroc", *_evaluation_metrics(num_classes)]


def monitored(monitor: str, num_classes: int, ordered: bool, key: str = "monitor") -> tuple[str, Literal["min", "max"]]:
    """The metric that selects, and its mode.

    Args:
        monitor: `auto` (`val/qwk` where grades are ordered, else `val/accuracy`) or `val/<metric>`.
        num_classes: K.
        ordered: whether the classes are grades.
        key: of the configuration, for errors.

    Raises:
        UserError: there is no such metric, or it would select on another split than val.
    """
    name = ("val/qwk" if ordered else "val/accuracy") if monitor == "auto" else monitor
    known = [f"val/{metric}" for metric in metric_names(num_classes, ordered)]
    if name not in known:
        raise UserError(f"{key}={monitor}: no such metric; choose auto, {', '.join(known)}")
    return name, mode_of(name)


def mode_of(metric: str) -> Literal["min", "max"]:
    """Losses are to fall, everything else is to rise."""
    return "min" if metric.endswith("/loss") else "max"


def is_collapsed(confusion: Tensor) -> bool:
    """Whether at least 98 % of the predictions in a (K, K) matrix of counts are one class."""
    predicted = confusion.sum(0)
    return bool(predicted.max() >= COLLAPSED * predicted.sum())
