"""Templates, figures and findings in, one self-contained HTML page out."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

FEW_NAMES = 3  # that a finding lists; the page folds the others away


class Finding(NamedTuple):
    """One thing to know before believing a page: a fault, or else a limit to what can be concluded."""

    kind: str
    text: str
    is_fault: bool = True
    names: tuple[str, ...] = ()  # of groups or runs that it is about, where these are listed after the text

    def __str__(self) -> str:
        """The text, and the first few names."""
        more = len(self.names) - FEW_NAMES
        listed = "; ".join(self.names[:FEW_NAMES]) + (f"; and {more} more" if more > 0 else "")
        return f"{self.text}: {listed}" if self.names else self.text


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    return file.getvalue()


def base64_of(content: bytes) -> str:
    """Bytes as the text of a data: address."""
    return base64.b64encode(content).decode()


def breakable(text: object) -> Markup:
    """Text that a narrow window may break within keys, values and paths, after `_`, `,` and `/`."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_,/])(?=\S)", str(text))))


def render(template: str, **values: Any) -> str:
    """A template of this package as HTML, with every value escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(**values)
