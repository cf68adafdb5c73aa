"""Residual networks and their initial weights."""
