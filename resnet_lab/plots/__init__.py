"""Matplotlib figures from arrays; made without pyplot, so no figure stays in memory."""

from resnet_lab.plots import classes, curves, frame, groups, layers, matrices, samples

__all__ = ["classes", "curves", "frame", "groups", "layers", "matrices", "samples"]
