"""Quick imports leave everything as usual ones do."""

import gc
import importlib
import subprocess
import sys

import pytest

from resnet_lab.quick_imports import LATER, quick_imports


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget `scipy.signal`, if a test before has imported it."""
    for name in [*sys.modules]:
        if name.startswith(LATER):
            monkeypatch.delitem(sys.modules, name)


@pytest.fixture(autouse=True)
def _nothing_stays_frozen():
    yield
    gc.unfreeze()


def test_a_module_that_only_torchmetrics_looks_at_is_not_imported():
    code = (
        "import gc, sys\n"
        "from resnet_lab.quick_imports import quick_imports\n"
        "with quick_imports():\n"
        "    import torchmetrics\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "assert not [name for name in sys.modules if name.startswith('scipy.signal')]\n"
        "import scipy.signal\n"
        "assert scipy.signal.windows.hann(3).tolist() == [0, 1, 0]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["from scipy.signal import windows", "import scipy.signal.windows as windows"])
def test_a_name_of_it_that_is_used_is_imported(absent: None, code: str):
    found = {}
    with quick_imports():
        exec(code, found)
    assert found["windows"].hann(3).tolist() == [0, 1, 0]
    assert sys.modules[LATER].windows is sys.modules[f"{LATER}.windows"]


def test_an_imported_module_stays(absent: None):
    before = importlib.import_module(LATER)
    with quick_imports():
        assert sys.modules[LATER] is before
    assert sys.modules[LATER] is before


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_collection_is_as_before_after_an_error_too(collects: bool):
    def broken() -> None:
        assert not gc.isenabled()
        raise ImportError("broken")

    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(ImportError, match="broken"), quick_imports():
            broken()
        assert gc.isenabled() == collects
    finally:
        gc.enable()
