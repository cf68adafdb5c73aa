"""Fetches and lists what the jobs of a sweep need (a command of `resnet_lab.sweep`; needs on standard input)."""

from __future__ import annotations

import json
import sys

from resnet_lab.command_line import run_command
from resnet_lab.config import build
from resnet_lab.models.pretrained import contents


def command(arguments: list[str]) -> None:
    """List every data set, and see that every file of weights is there."""
    for text in json.load(sys.stdin):
        need = json.loads(text)
        if "data" in need:
            build(need["data"]).listed()
        else:
            contents(str(need["model"]["pretrained"]), need["model"].get("depth"))


if __name__ == "__main__":
    sys.exit(run_command(command))
