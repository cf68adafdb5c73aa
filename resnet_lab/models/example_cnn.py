"""A small conventional CNN for comparison with residual networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from torch import nn

from resnet_lab.errors import UserError
from resnet_lab.models.pretrained import load_pretrained
from resnet_lab.models.resnet import find_activation
from resnet_lab.values import BelowOne, Text, Widths, Within


def example_cnn(
    num_classes: int,
    widths: Widths,
    hidden: Annotated[int, Within(1, 65_536)],
    dropout: BelowOne,
    activation: Text,
    pretrained: Text = "none",
) -> nn.Sequential:
    """Build a textbook CNN, a substitute for study B's "example" CNN, which the study does not describe.

    For each width: a 3×3 convolution, an activation and a 2×2 max pool. Then: global average pooling (any image size
    works), a hidden layer, dropout and the output layer. No batch norm and no shortcuts. Input: images (B, 3, H, W) of
    at least 2 ** len(widths) pixels a side; output: logits (B, K).

    conf/model/example_cnn.yaml documents the arguments.

    Args:
        num_classes: K.

    Raises:
        UserError: a number is out of range, or the weights do not fit.
    """
    if not widths or min(*widths, hidden) < 1 or not 0 <= dropout < 1:
        raise UserError(
            f"model.widths={list(widths)} model.hidden={hidden} model.dropout={dropout}: "
            "give numbers from 1, and a dropout from 0 to below 1"
        )
    make = find_activation(activation)
    layers: list[nn.Module] = []
    for inplanes, planes in pairwise((3, *widths)):
        layers += [nn.Conv2d(inplanes, planes, 3, padding=1), make(), nn.MaxPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], hidden), make()]
    model = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden, num_classes))
    if pretrained != "none":
        load_pretrained(model, pretrained)
    return model
