"""What the steps of the LightningModule gather."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from resnet_lab import objectives, optim
from resnet_lab.module import Classifier


@pytest.fixture
def classifier() -> Classifier:
    loss = objectives.cross_entropy(0.0, "none", [1, 1])
    return Classifier(nn.Identity(), loss, torch.optim.SGD, functools.partial(optim.constant), ["a", "b"], False)


@pytest.mark.parametrize("ranks", [[[3, 0, 4, 1, 2]], [[4, 0, 2], [3, -1, 1]]])  # -1 counts for nothing
def test_outputs_are_in_the_order_of_the_table(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, ranks: list[list[int]]
) -> None:
    columns = [[torch.tensor(own), torch.tensor(own)[:, None] * torch.tensor([1.0, 10.0])] for own in ranks]
    stacked = iter([torch.stack(column) for column in zip(*columns, strict=True)])
    # as Lightning gives those of several ranks, and of a single one
    monkeypatch.setattr(classifier, "all_gather", lambda own: next(stacked) if len(ranks) > 1 else own)
    index, outputs = classifier._gather([tuple(column[:2] for column in columns[0]), tuple(c[2:] for c in columns[0])])
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert outputs.tolist() == [[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]
