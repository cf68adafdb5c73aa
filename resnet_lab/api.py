"""Functions for scripts and notebooks, equivalent to the commands: compose, train, read_run, compare, resnet."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config import build, check, compose_config, composed, words_of_trust
from resnet_lab.errors import UserError
from resnet_lab.launch import run_in
from resnet_lab.report import runs
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import Run
from resnet_lab.report.summaries import summary
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import SCORES
from resnet_lab.sweep import preflight
from resnet_lab.trust import trust

if TYPE_CHECKING:
    from torch import nn

__version__ = version("resnet-lab")
IN_PYTHON = {  # what an error tells users of the command line → what it tells users of these functions
    r"--config-dir (DIR) reads": r'config_dir="\1" reads',
    r"did you mean --config-dir '?([^']+?)'? (experiment=\S+)\?": r'did you mean "\2", config_dir="\1"?',
    r"which needs -m: resnet-lab train -m …": "which is a command: resnet-lab train -m …",
    r" on the command line": "",
}
WARNED = (  # kinds of findings
    *("leaking", "selected on test", "suspiciously identical", "duplicate seed", "outdated"),
    *("different test sets", "different class names", "means of different sizes", "different code"),
    *("different data", "different images", "different image files", "different weights", "different patients"),
)
OF_MODEL = {r"^model=(.+) did you mean model=": r"form=\1 did you mean form=", r"\bmodel\.": ""}


@contextmanager
def arguments_named(more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Let errors name arguments of functions in place of flags; `more`: patterns → replacements like IN_PYTHON."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for pattern, replacement in {**IN_PYTHON, **(more or {})}.items():
            text = re.sub(pattern, replacement, text)
        raise UserError(text) from error


@arguments_named()
def compose(*overrides: str, config_dir: str | Path = "") -> DictConfig:
    """Return the configuration of `resnet-lab train OVERRIDES`, and trust the functions that it names.

    Args:
        overrides: such as `model.depth=50` or `experiment=demo`.
        config_dir: folder of your own YAML files: `experiment=mine` reads `config_dir/experiment/mine.yaml`.

    Raises:
        UserError: a key, group, value or folder does not exist.
    """
    config = composed(overrides, config_dir)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    trust(words_of_trust(plain))  # the caller wrote the overrides
    return config


@arguments_named()
def train(*overrides: str, config_dir: str | Path = "") -> Run:
    """Train one run in a separate process, as `resnet-lab train OVERRIDES` does.

    The run folder is `sweep_dir`. If it exists, an interrupted run is resumed, and a finished run is only read.

    Args:
        overrides: as for `compose`.
        config_dir: as for `compose`.

    Raises:
        UserError: a key is wrong, a folder does not exist, the run folder contains a run with another configuration,
            or the training failed.
    """
    config = composed(overrides, config_dir)
    with TemporaryFile("w+", encoding="utf-8") as errors:
        available = preflight([*overrides, *([f"--config-dir={config_dir}"] if config_dir else [])], errors=errors)
        errors.seek(0)
        warnings, _, reason = f"\n{errors.read()}".partition("\nerror: ")
    print(warnings.lstrip(), end="", file=sys.stderr)
    if not available:
        raise UserError(reason.strip() or "the check before the training failed; the lines above show why")
    run = RunFolder(Path(config.sweep_dir).expanduser().absolute())
    plain: Any = OmegaConf.to_container(config, resolve=True)
    run_in(run, config, overrides, words_of_trust(plain), config_dir=str(config_dir))
    return read_run(run.path)


def read_run(folder: str | Path) -> Run:
    """Read a run folder: configuration, status, predictions and scores.

    Raises:
        UserError: it is not a run folder.
    """
    run = RunFolder(Path(folder).expanduser().absolute())
    if not run.config_file.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    return runs.read_run(run)


def compare(folders: str | Path | Sequence[str | Path], metric: str = "") -> pd.DataFrame:
    """Return the leaderboard of the runs in and below folders, equal to summary.csv of `resnet-lab report`.

    Args:
        folders: run folders, or folders that contain some.
        metric: score that ranks the groups; empty: QWK for ordered classes, else accuracy.

    Returns:
        One row per group of runs that differ only in the seed, best first within each test set. A warning names the
        faults of the report because of which scores cannot be compared (`WARNED`).

    Raises:
        UserError: a folder does not exist or contains no run, or the metric is unknown.
    """
    places = [folders] if isinstance(folders, str | Path) else list(folders)
    if not places:
        raise UserError("compare got no folder; give run folders or the folder of a sweep")
    if metric not in SCORES and Path(metric or "-").is_dir():
        raise UserError(
            f"compare got metric={metric}; give several folders as a list: compare([{str(places[0])!r}, …])"
        )
    from resnet_lab.report.findings import findings_of  # imported here because it imports matplotlib

    found = runs.read_runs([str(place) for place in places])
    tables = tables_of(found, metric)
    if faults := [f"{fault.kind}: {fault}" for fault in findings_of(found, tables) if fault.kind in WARNED]:
        warnings.warn("the report on these runs lists:\n" + "\n".join(faults), stacklevel=2)
    return summary(tables, ranked=True)


@arguments_named(OF_MODEL)
def resnet(depth: int, num_classes: int, form: str = "resnet", **keys: Any) -> nn.Module:
    """Build a residual network with initial or pretrained weights.

    Args:
        depth: see conf/model.
        num_classes: K, the length of its last layer.
        form: the file of conf/model with the default keys: `resnet`, `resnet_cifar` or `resnet_wide`.
        keys: other values for keys of that file, such as `pretrained="imagenet"`.

    Returns:
        Images (B, 3, H, W) → logits (B, K), with torchvision's parameter names.

    Raises:
        UserError: a key does not exist, or a value is not allowed.
    """
    if training := sorted({"freeze", "unfreeze_at_epoch"} & {*keys}):
        raise UserError(f"{training[0]}: only jobs freeze parts; set requires_grad of the parameters instead")
    if "zero_init_head" in keys:
        raise UserError("zero_init_head: only jobs set the last layer to zero; use torch.nn.init.zeros_ instead")
    config = compose_config([f"model={form}"])
    OmegaConf.set_struct(config, False)
    config.model.update({"depth": depth, **keys})
    check(config)
    node: Any = OmegaConf.to_container(config.model, resolve=True)
    network: nn.Module = build("model", node, num_classes=num_classes)
    return network
