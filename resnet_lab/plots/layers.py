"""Gradients, activations and dead units from the first layer to the last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_lab.plots.frame import LEGEND_WIDTH, Color, add_legend, legend_height, palette

QUANTITIES = {  # of layers.csv → title, factor
    "gradient_norm": ("gradient norm of the weights", 1),
    "activation_variance": ("variance of the activations", 1),
    "dead_units": ("dead units, %", 100),
}


def profile_of(rows: pd.DataFrame, epoch: int) -> dict[str, np.ndarray]:
    """Return the values of one epoch of layers.csv by quantity, from the first layer to the last."""
    rows = rows[rows["epoch"] == epoch]
    return {str(quantity): part["value"].to_numpy() for quantity, part in rows.groupby("quantity", sort=False)}


def by_depth(
    profiles: Mapping[str, Mapping[str, np.ndarray]], columns: int = 3, colors: Mapping[str, Color] | None = None
) -> Figure:
    """Draw gradient norm, activation variance and dead units from a network's first layer (0) to its last (1).

    Args:
        profiles: one value per layer, by label and quantity.
        columns: panels per row.
        colors: label → color; None: one color per label.
    """
    shades = colors or palette(profiles)
    rows = math.ceil(len(QUANTITIES) / columns)
    figure = Figure(figsize=(max(3.2 * columns, 5.5), 2.9 * rows + legend_height(profiles)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (quantity, (title, factor)) in zip(grid, QUANTITIES.items(), strict=True):
        for label, profile in profiles.items():
            values = factor * profile.get(quantity, np.zeros(0))
            axes.plot(np.linspace(0, 1, len(values)), values, color=shades[label], linewidth=1.5)
        if factor == 1 and any(np.any(profile.get(quantity, 0) > 0) for profile in profiles.values()):
            axes.set_yscale("log")
        elif factor != 1:
            top = max(10.0, 1.05 * axes.get_ylim()[1])
            axes.set_ylim(-0.03 * top, top)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("position in the network", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=shades[label], linewidth=1.8, label=fill(label, LEGEND_WIDTH)) for label in profiles]
    add_legend(figure, lines, min(columns, 2))
    return figure
