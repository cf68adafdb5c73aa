"""Metrics of one split, from torchmetrics, with explicit averaging."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection, classification
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from resnet_lab import statistics
from resnet_lab.errors import UserError
from resnet_lab.objectives import Objective
from resnet_lab.scores import ALIASES, Predictions, Score, mode_of, stored_scores
from resnet_lab.statistics import MANY_CLASSES


@contextmanager
def counting() -> Iterator[None]:
    """Count as if algorithms need not be deterministic: torchmetrics would compare each row with K² numbers.

    Counts of integers are exact in any order.
    """
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall over the classes in the targets (as in scikit-learn; torchmetrics' macro includes other classes)."""

    def compute(self) -> Tensor:
        """Return a scalar in [0, 1]."""
        counts = super().compute()
        support = counts.sum(1)
        return (counts.diag()[support > 0] / support[support > 0]).mean()


class MacroAUROC(MulticlassAUROC):
    """Mean one-vs-rest AUROC over the classes in the targets (torchmetrics counts an absent class as 0)."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return a scalar in [0, 1]; NaN if fewer than two classes occur."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "no positive samples": the mean below excludes such classes
            by_class = super().compute()
        present = torch.unique(torch.cat(self.target) if isinstance(self.target, list) else self.target)
        return by_class[present].mean() if len(present) > 1 else torch.tensor(torch.nan)


class OfCounts(MulticlassConfusionMatrix):
    """Score computed from the confusion matrix."""

    def __init__(self, num_classes: int, score: Score) -> None:
        super().__init__(num_classes)
        self.score = score

    def compute(self) -> Tensor:
        """Return a scalar."""
        counts = super().compute()
        return torch.tensor(self.score.of_counts(counts.cpu().numpy()), device=counts.device)


class OfAnswers(Metric):
    """Score computed from all predictions, which are stored until the end of the epoch."""

    target: list[Tensor]
    predictions: list[Tensor]
    preds: list[Tensor]

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score
        for name in ("target", "predictions", "preds"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, predictions: Tensor) -> None:
        """Add probabilities (B, K), targets (B,), predicted classes (B,)."""
        self.preds.append(preds)
        self.target.append(target)
        self.predictions.append(predictions)

    def compute(self) -> Tensor:
        """Return a scalar."""
        states = (self.target, self.predictions, self.preds)
        predictions = Predictions(*(dim_zero_cat(state).cpu().numpy() for state in states))
        return torch.tensor(self.score.of(predictions), device=self.device)


def metric_of(score: Score, num_classes: int) -> Metric:
    """Return the metric that computes a score over batches and ranks."""
    if score.torchmetric:
        own = {"BalancedAccuracy": BalancedAccuracy, "MacroAUROC": MacroAUROC}
        known: Mapping[str, Any] = vars(classification) | own
        metric: Metric = known[score.torchmetric](num_classes, **score.options)
        return metric
    return OfAnswers(score) if score.keeps_predictions else OfCounts(num_classes, score)


class SplitMetrics(nn.Module):
    """Loss, scores and confusion matrix of one split over one epoch, summed over ranks.

    Args:
        split: `train`, `val` or `test`.
        num_classes: K.
        ordered: whether to compute quadratic weighted kappa.
        complete: whether to include scores that store every prediction; training does not.
    """

    def __init__(self, split: str, num_classes: int, ordered: bool, complete: bool = True) -> None:
        super().__init__()
        of_classes: dict[str, Metric | MetricCollection] = {}
        of_probabilities: dict[str, Metric | MetricCollection] = {}
        for name, score in stored_scores(num_classes, ordered).items():
            if complete or score.each_epoch:
                (of_probabilities if score.keeps_predictions else of_classes)[name] = metric_of(score, num_classes)
        self.loss = MeanMetric(nan_strategy="disable")  # keeps NaN; the default would exclude it from the mean
        self.loss.set_dtype(torch.float64)  # makes the order of the batches irrelevant
        self.of_classes = MetricCollection(of_classes, prefix=f"{split}/")
        self.of_probabilities = MetricCollection(of_probabilities, prefix=f"{split}/", compute_groups=False)
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.split = split
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []  # of the epoch so far

    def update(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Store losses (B,), outputs (B, M) or (B, V, M), targets (B,) for `compute`: many updates would be slow."""
        self.rows.append((losses.detach(), outputs.detach(), targets))

    def compute(self, objective: Objective, final: bool = False) -> dict[str, Tensor]:
        """Return `<split>/<metric>` → scalar over all ranks, and update `confusion` with the epoch's counts.

        Args:
            objective: what the outputs mean.
            final: whether the classes are those of the objective's final rule, not those of `decide`.
        """
        if any(len(targets) for _, _, targets in self.rows):  # a rank may have had only padding
            losses, outputs, targets = (torch.cat(columns) for columns in zip(*self.rows, strict=True))
            classes = objective.classes(outputs, final)
            self.loss.update(losses.double())
            with counting():
                self.of_classes.update(classes, targets)
                self.confusion.update(classes, targets)
            if self.of_probabilities:
                probabilities = objective.averaged(outputs)
                self.of_probabilities.update(preds=probabilities, target=targets, predictions=classes)
        self.rows.clear()
        loss = self.loss.compute().float()
        values = {f"{self.split}/loss": loss, **self.of_classes.compute(), **self.of_probabilities.compute()}
        if loss.isnan():  # argmax of NaN is the first class, which would look like a valid score
            values = {name: torch.full_like(value, torch.nan, dtype=torch.float) for name, value in values.items()}
        return values | {f"{self.split}/{name}": value for name, value in self._recalls().items()}

    def _recalls(self) -> dict[str, Tensor]:
        """Return `recall_<class>` → recall of the class, NaN if it has no images."""
        counts = self.confusion.compute()
        if len(counts) > MANY_CLASSES:
            return {}
        return {f"recall_{k}": row[k] / row.sum() for k, row in enumerate(counts.float())}

    def reset(self) -> None:
        """Discard the epoch's values."""
        self.rows.clear()
        for metric in (self.loss, self.of_classes, self.of_probabilities, self.confusion):
            metric.reset()


def metric_names(num_classes: int, ordered: bool) -> list[str]:
    """Return the metrics that can be monitored on a split other than train, without prefix."""
    return ["loss", *stored_scores(num_classes, ordered)]


def monitored(
    monitor: str, num_classes: int, ordered: bool, key: str = "monitor", selects: bool = True
) -> tuple[str, Literal["min", "max"]]:
    """Return the metric that selects the best epoch, and its mode.

    Args:
        monitor: `auto` (`val/qwk` if classes are ordered, else `val/accuracy`) or `val/<metric>`.
        num_classes: K.
        ordered: whether the classes are grades.
        key: the configuration key, for errors.
        selects: false for a callback, which does not know `auto`.

    Raises:
        UserError: the metric does not exist, or is of a split other than val.
    """
    name = ("val/qwk" if ordered else "val/accuracy") if monitor == "auto" and selects else monitor
    known = [f"val/{metric}" for metric in metric_names(num_classes, ordered)]
    if name not in known:
        word = monitor.removeprefix("val/").lower()
        meant = f"val/{ALIASES.get(word, word)}"
        note = "; metrics of callbacks cannot select an epoch" if selects else ""
        choices = f"choose {', '.join(['auto'] * selects + known)}{note}"
        hint = f"did you mean {meant}?" if meant in known else choices
        raise UserError(f"{key}={monitor}: no such metric; {hint}")
    return name, mode_of(name)


def is_collapsed(confusion: Tensor) -> bool:
    """Return whether a (K, K) matrix of counts is that of a collapsed model, see `statistics.is_collapsed`."""
    return statistics.is_collapsed(confusion.cpu().numpy())
