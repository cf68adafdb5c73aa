"""Our combination of torchmetrics, against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from resnet_lab.errors import UserError
from resnet_lab.metrics import SplitMetrics, is_collapsed, monitored
from resnet_lab.objectives import Softmax
from resnet_lab.scores import mode_of

SOFTMAX = Softmax(5, None, 0.0)


def batches(num_classes: int = 5, n: int = 203, absent: int | None = None, seed: int = 0):
    random = np.random.default_rng(seed)
    targets = random.integers(0, num_classes, n)
    if absent is not None:
        targets[targets == absent] = 0
    logits = random.normal(size=(n, num_classes)) + 1.5 * np.eye(num_classes)[targets]
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(targets)


def scored(logits: torch.Tensor, targets: torch.Tensor, split: str = "val") -> tuple[SplitMetrics, dict[str, float]]:
    metrics = SplitMetrics(split, logits.shape[1], ordered=True, complete=split != "train")
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    for rows in torch.arange(len(targets)).split(32):
        metrics.update(losses[rows], logits[rows], targets[rows])
    return metrics, {name: float(value) for name, value in metrics.compute(SOFTMAX).items()}


@pytest.mark.parametrize("absent", [None, 3])
def test_scores_match_scikit_learn_even_without_a_class(absent: int | None) -> None:
    logits, targets = batches(absent=absent)
    metrics, values = scored(logits, targets)
    truth, predicted, probabilities = targets.numpy(), logits.argmax(1).numpy(), logits.softmax(1).numpy()
    present = sorted(set(truth))
    by_class = [sk.roc_auc_score(truth == k, probabilities[:, k]) for k in present]
    expected = {
        "val/accuracy": sk.accuracy_score(truth, predicted),
        "val/qwk": sk.cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(5)),
        "val/auroc": np.mean(by_class),
        "val/f1_weighted": sk.f1_score(truth, predicted, average="weighted"),
        "val/precision_weighted": sk.precision_score(truth, predicted, average="weighted", zero_division=0),
        "val/recall_weighted": sk.recall_score(truth, predicted, average="weighted", zero_division=0),
        "val/loss": sk.log_loss(truth, probabilities, labels=range(5)),
    }
    if absent is None:
        expected["val/balanced_accuracy"] = sk.balanced_accuracy_score(truth, predicted)
        expected["val/f1_macro"] = sk.f1_score(truth, predicted, average="macro")
        expected["val/precision_macro"] = sk.precision_score(truth, predicted, average="macro")
        expected["val/recall_macro"] = sk.recall_score(truth, predicted, average="macro")
    else:  # scikit-learn warns of predictions of an absent class
        recalls = sk.recall_score(truth, predicted, labels=present, average=None)
        expected["val/balanced_accuracy"] = recalls.mean()
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert (metrics.confusion.compute().numpy() == sk.confusion_matrix(truth, predicted, labels=range(5))).all()


def test_counts_need_no_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """If algorithms are deterministic, torchmetrics compares each row with K² numbers, and does not call `bincount`."""
    expected, values = scored(*batches())
    counted, count = [], torch.bincount

    def note(*arguments: Any, **options: Any) -> torch.Tensor:
        counted.append(torch.are_deterministic_algorithms_enabled())
        return count(*arguments, **options)

    monkeypatch.setattr(torch, "bincount", note)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        metrics, same = scored(*batches())
        assert counted and not any(counted)  # noqa: PT018
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(metrics.confusion.compute(), expected.confusion.compute())
    np.testing.assert_equal(same, values)


def test_a_constant_model_scores_like_the_baseline() -> None:
    _, targets = batches()
    values = scored(torch.tensor([[9.0, 0, 0, 0, 0]]).repeat(len(targets), 1), targets)[1]
    assert values["val/accuracy"] == pytest.approx((targets == 0).float().mean().item())
    assert values["val/balanced_accuracy"] == pytest.approx(0.2)
    assert values["val/qwk"] == pytest.approx(0.0, abs=1e-6)
    assert values["val/auroc"] == pytest.approx(0.5)


def test_nan_logits_give_nan_scores() -> None:
    targets = torch.zeros(8, dtype=torch.long)
    values = scored(torch.full((8, 5), torch.nan), targets)[1]
    scores = [value for name, value in values.items() if "recall_" not in name or "macro" in name]
    assert np.isnan(scores).all()


def test_with_one_class_kappa_and_auroc_are_undefined() -> None:
    targets = torch.zeros(8, dtype=torch.long)
    values = scored(torch.tensor([[9.0, 0, 0, 0, 0]]).repeat(8, 1), targets)[1]
    assert values["val/accuracy"] == 1
    assert np.isnan([values["val/qwk"], values["val/auroc"]]).all()


def test_an_empty_batch_has_no_effect_and_reset_discards_values() -> None:
    logits, targets = batches()
    metrics, values = scored(logits, targets)
    metrics.update(torch.zeros(0), torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    assert {name: float(value) for name, value in metrics.compute(SOFTMAX).items()} == values
    metrics.reset()
    metrics.update(torch.ones(1), logits[:1], targets[:1])
    metrics.compute(SOFTMAX)
    assert metrics.confusion.compute().sum() == 1


def test_train_keeps_no_predictions() -> None:
    logits, targets = batches()
    assert set(scored(logits, targets, "train")[1]) == {
        f"train/{name}"
        for name in ("loss", "accuracy", "balanced_accuracy", "f1_weighted", "qwk", *(f"recall_{k}" for k in range(5)))
    }


def test_the_monitor_is_a_metric_of_val_with_its_mode() -> None:
    assert monitored("auto", 5, ordered=True) == ("val/qwk", "max")
    assert monitored("auto", 10, ordered=False) == ("val/accuracy", "max")
    assert monitored("val/loss", 5, ordered=True) == ("val/loss", "min")
    assert mode_of("val/auroc") == "max"
    for wrong, meant in (("val/kappa", "val/qwk"), ("acc", "val/accuracy"), ("auroc", "val/auroc")):
        with pytest.raises(UserError, match=rf"monitor={wrong}: no such metric; did you mean {meant}\?"):
            monitored(wrong, 5, ordered=True)
    for wrong in ("val/cost", "test/accuracy", "train/loss"):
        with pytest.raises(UserError, match=rf"monitor={wrong}: no such metric; choose auto, val/loss"):
            monitored(wrong, 5, ordered=True)
    with pytest.raises(UserError, match="no such metric"):
        monitored("val/qwk", 10, ordered=False)


def test_collapse_begins_at_98_percent() -> None:
    counts = torch.zeros(5, 5, dtype=torch.long)
    counts[:, 0] = 98
    counts[0, 1] = 10
    assert is_collapsed(counts)
    counts[0, 1] = 11
    assert not is_collapsed(counts)


def test_recall_of_each_class_is_known_by_epoch() -> None:
    metrics = SplitMetrics("val", 3, ordered=False)
    targets = torch.tensor([0, 0, 0, 1, 1])
    logits = torch.eye(3)[[0, 0, 1, 1, 1]]
    metrics.update(torch.zeros(5), logits, targets)
    values = metrics.compute(SOFTMAX)
    assert values["val/recall_0"] == pytest.approx(2 / 3)
    assert values["val/recall_1"] == 1
    assert torch.isnan(values["val/recall_2"])  # no image of class 2
    many = SplitMetrics("val", 102, ordered=False)
    many.update(torch.zeros(5), torch.rand(5, 102), targets)
    assert not [name for name in many.compute(SOFTMAX) if "recall_" in name and name.split("_")[-1].isdigit()]
