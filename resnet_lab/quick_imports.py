"""`quick_imports`: import PyTorch and the packages around it in less time (imports nothing heavy)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

LATER = "scipy.signal"  # torchmetrics imports it, to see whether it still has the name `hamming`


class _Later(ModuleType):
    """A module that is imported when a name of it is used; `hamming` does not count."""

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what looks through all modules asks for these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, and without `scipy.signal`; what was imported is never collected afterwards.

    Imports create hundreds of thousands of objects that stay, and Python would look through them again and again.
    `scipy.signal` takes a sixth of the time of all imports.
    """
    collects, later = gc.isenabled(), _Later(LATER)
    gc.disable()
    sys.modules.setdefault(LATER, later)
    try:
        yield
    finally:
        if sys.modules[LATER] is later:
            del sys.modules[LATER]
        gc.freeze()
        if collects:
            gc.enable()
