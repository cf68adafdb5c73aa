"""Self-contained HTML pages from templates, figures and findings."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

DPI = 120
MARGIN = 0.1  # inches around a figure
FEW_NAMES = 3  # names that a finding lists; the page folds further ones away


class Finding(NamedTuple):
    """One warning of a page: a fault, or a limit of the conclusions."""

    kind: str
    text: str
    is_fault: bool = True
    names: tuple[str, ...] = ()  # affected groups or runs, listed after the text

    def __str__(self) -> str:
        """Return the text and the first few names."""
        more = len(self.names) - FEW_NAMES
        listed = "; ".join(self.names[:FEW_NAMES]) + (f"; and {more} more" if more > 0 else "")
        return f"{self.text}: {listed}" if self.names else self.text


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, without margins; if its axes are out of the layout, as it is.

    (`savefig` with a layout or `bbox_inches="tight"` draws everything twice, the first time for the positions alone.)
    """
    figure.set_dpi(DPI)
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine(None)
    measured = any(axes.get_in_layout() for axes in figure.axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, bbox_inches=figure.get_tightbbox().padded(MARGIN) if measured else None)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    """Return bytes as base64 text for a `data:` URL."""
    return base64.b64encode(content).decode()


def breakable(text: object) -> Markup:
    """Return text with optional line breaks after `_`, `,` and `/`, for narrow windows."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_,/])(?=\S)", str(text))))


def render(template: str, **values: Any) -> str:
    """Return a template of this package as HTML, with every value escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(**values)
