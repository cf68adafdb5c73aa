"""Images of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure


def images(batch: np.ndarray, labels: Sequence[str], columns: int = 4) -> Figure:
    """Draw a sample of a batch: images (B, H, W, 3), uint8, each with its label above.

    All images share one pair of axes: one pair per image is ten times slower.
    """
    columns = min(columns, len(batch))
    rows = math.ceil(len(batch) / columns)
    texts = [fill(label, 26) for label in labels[: len(batch)]]
    height, width = batch.shape[1:3]
    above = math.ceil(width * (0.06 + 0.09 * max(text.count("\n") + 1 for text in texts)))
    between = math.ceil(0.05 * width)
    sheet = np.full((rows, columns, above + height, width + between, 3), 255, np.uint8)
    figure = Figure(figsize=(1.9 * columns, 1.9 * rows * sheet.shape[2] / sheet.shape[3]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for place, (image, text) in enumerate(zip(batch, texts, strict=True)):
        row, column = divmod(place, columns)
        sheet[row, column, above:, :width] = image
        left, top = column * sheet.shape[3], row * sheet.shape[2]
        axes.text(left + width / 2, top + above, text, ha="center", va="bottom", fontsize=9, parse_math=False)
    axes.imshow(sheet.swapaxes(1, 2).reshape(rows * sheet.shape[2], columns * sheet.shape[3], 3), aspect="auto")
    return figure
