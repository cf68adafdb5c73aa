"""A wheel contains the configuration, and works in any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_works_anywhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    carried = {name.removeprefix("resnet_lab/") for name in names if name.startswith("resnet_lab/conf/")}
    assert carried == {str(file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*.yaml")}
    assert "resnet_lab/report/report.html.j2" in names
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
    )
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "question.yaml").write_text("# @package _global_\nname: question\nmodel:\n  depth: 34\n")
    command = [
        str(target / "bin" / "resnet-lab"),
        "train",
        "--cfg",
        "job",
        "--config-dir",
        "mine",
        "experiment=question",
    ]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    shown = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "depth: 34" in shown.stdout
    keys = subprocess.run(
        [sys.executable, str(target / "bin" / "resnet-lab"), "train", "--keys", "data.batch_size"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert keys.stdout.startswith("data.batch_size\n    images in one batch")
    where = subprocess.run(
        [sys.executable, "-c", "from resnet_lab.schema import conf_dir; print(conf_dir())"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()) == target / "resnet_lab" / "conf"


def test_hydra_stays_below_the_version_that_breaks_every_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (hydra,) = [Requirement(text) for text in project["dependencies"] if text.startswith("hydra-core")]
    found = {text: hydra.specifier.contains(text, prereleases=True) for text in ("1.3.8", "1.4.0rc3", "1.4.0")}
    assert found == {"1.3.8": True, "1.4.0rc3": False, "1.4.0": False}
