"""Fetches and checks what the jobs of a sweep need (a command of `resnet_lab.sweep`; needs on standard input)."""

from __future__ import annotations

import json
import logging
import sys

from resnet_lab.command_line import run_command
from resnet_lab.config import build
from resnet_lab.data import progress
from resnet_lab.models.pretrained import contents


def command(arguments: list[str]) -> None:
    """Read the table of every data set, so that leaks and bad images show, and see that all weights are there."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(logging.Filter(progress.__name__))  # the jobs log the rest
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", handlers=[handler])
    for text in json.load(sys.stdin):
        need = json.loads(text)
        if "data" in need:
            build(need["data"]).table()
        else:
            contents(str(need["model"]["pretrained"]), need["model"].get("depth"))


if __name__ == "__main__":
    sys.exit(run_command(command))
