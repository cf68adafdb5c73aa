"""What the steps of the LightningModule gather."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from resnet_lab import optim
from resnet_lab.module import Classifier

Ranks = list[dict[str, torch.Tensor]]


@pytest.fixture
def classifier() -> Classifier:
    loss = optim.cross_entropy(0.0, "none", [1, 1])
    return Classifier(nn.Identity(), loss, torch.optim.SGD, functools.partial(optim.constant), ["a", "b"], False)


@pytest.fixture
def gather(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Callable[[Ranks], torch.Tensor]:
    """What the first of these ranks makes of its own outputs and those of the others."""

    def first(ranks: Ranks) -> torch.Tensor:
        stacked = {key: torch.stack([rank[key] for rank in ranks]) for key in ranks[0]}
        alone = {key: value[0] for key, value in stacked.items()}  # as Lightning gives those of a single rank
        monkeypatch.setattr(classifier, "all_gather", lambda own: stacked if len(ranks) > 1 else alone)
        return classifier._gather([(ranks[0]["index"], ranks[0]["probabilities"])])

    return first


def test_predictions_are_in_the_order_of_the_table(gather: Callable[[Ranks], torch.Tensor]) -> None:
    index = torch.tensor([3, 0, 4, 1, 2])
    outputs = {"index": index, "probabilities": torch.stack([index, 10 * index], 1).float()}
    expected = torch.tensor([[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]).float()
    assert torch.equal(gather([outputs]), expected)
    # a rank that has one image fewer gives a row that counts for nothing
    ranks = [{"index": torch.tensor(own)} for own in ([4, 0, 2], [3, -1, 1])]
    for rank in ranks:
        rank["probabilities"] = torch.stack([rank["index"], 10 * rank["index"]], 1).float()
    assert torch.equal(gather(ranks), expected)


def test_batches_are_put_together_in_their_order(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "all_gather", lambda own: own)
    batches = [(torch.tensor([2, 1]), torch.eye(2)), (torch.tensor([0]), torch.ones(1, 2))]
    assert classifier._gather(batches).tolist() == [[1, 1], [0, 1], [1, 0]]
