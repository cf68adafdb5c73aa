"""The keys of augmentation; `transforms.py` applies them to training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from resnet_lab.values import Count, Share, Within

NEUTRAL = (0, None, [1.0, 1.0], "all")  # values of a key that change no image


@dataclass(kw_only=True)
class Augmentation:
    """Settings of augmentation. The fields are keys of `conf/data/_common.yaml`, which documents them."""

    horizontal_flip: Share
    vertical_flip: Share
    rotation: Annotated[float, Within(0, 360)]
    scale: list[float]
    translate: Share
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, Within(0, 0.5)]
    random_grayscale: Share
    augment_classes: Literal["all", "none"] | list[Count]
