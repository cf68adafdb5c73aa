"""The notebooks run on small generated data and runs, and are stored without outputs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from fake_data import write_studies
from fake_runs import write_run, write_sweep
from nbclient import NotebookClient
from waiting import PATIENCE

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[dict]:
    """Run a notebook in its folder, and return its outputs; a failing cell raises."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=PATIENCE, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute(
        env=dict(os.environ)
    )
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(outputs: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text(outputs: list[dict]) -> str:
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_they_are_stored_without_outputs(file: Path) -> None:
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    assert len(book.cells) - len(code) >= 4  # text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_look_at_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_studies(tmp_path / "data")
    data = f"data=retinopathy data.root={root} data.image_size=24 data.cache_dir={tmp_path / 'cache'}"
    outputs = executed("01_look_at_the_data", tmp_path, monkeypatch, DATA=data)
    assert pictures(outputs) == 3
    assert "in more than one: 0" in text(outputs)
    assert re.search(r"always \S.* +\d+\.\d%( +\d+\.\d%)+\n", text(outputs))  # a share of each split


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compare_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = write_sweep(tmp_path / "sweep", seeds=(0, 1))
    outputs = executed("02_compare_a_sweep", tmp_path, monkeypatch, SWEEP=str(sweep))
    assert pictures(outputs) == 1 + 4 + 1
    assert "depth=18 pretrained=none: 2 of 2" in text(outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_why_plain_networks_degrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for depth in (20, 56):
        run = write_run(tmp_path / "sweep" / str(depth), depth)
        lines = [f"{epoch},gradient_norm,conv{n},{depth * (n + 1)}" for epoch in (0, 1) for n in range(4)]
        (run / "layers.csv").write_text("\n".join(["epoch,quantity,layer,value", *lines]) + "\n")
    outputs = executed("03_why_plain_networks_degrade", tmp_path, monkeypatch, SWEEP=str(tmp_path / "sweep"))
    assert pictures(outputs) == 4
    assert "3.0" in text(outputs)  # the largest norm besides the classifier's is three times the smallest
