"""Train, evaluate and compare residual networks on retinopathy photographs.

Everything that `__all__` names is imported when it is first used, so that `import resnet_lab` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_lab.api import __version__, compare, compose, read_run, resnet, train
    from resnet_lab.data.datamodule import DataModule
    from resnet_lab.errors import UserError
    from resnet_lab.trained import Trained, load

__all__ = [
    "DataModule",
    "Trained",
    "UserError",
    "__version__",
    "compare",
    "compose",
    "load",
    "read_run",
    "resnet",
    "train",
]
_HOMES = {"DataModule": "data.datamodule", "Trained": "trained", "UserError": "errors", "load": "trained"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'resnet_lab' has no attribute {name!r}")
    value = getattr(import_module(f"resnet_lab.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
