"""Fixtures: runs on tiny generated data, trained inside the test's own process."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
import pickle
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_data import write_studies
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from resnet_lab import plots, supervisor, trust
from resnet_lab.config import check, check_overrides, compose_config, register
from resnet_lab.launch import create_run
from resnet_lab.run_folder import RunFolder
from resnet_lab.schema import CHOSEN, conf_dir
from resnet_lab.training import guarded

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

PLACEHOLDER = "a-path-of-the-test"
TINY = (  # a network of 20,000 parameters on 24 px
    "model=resnet_cifar",
    "model.depth=8",
    "model.widths=[8,8,16]",
    "data=retinopathy",
    "data.image_size=24",
    "data.batch_size=16",
    "data.val_fraction=0.25",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.progress_bar=false",
    "optim.lr=0.05",
)


TINY_EXPERIMENT = """# @package _global_
defaults: [override /data: retinopathy, override /model: resnet_cifar, override /trainer: cpu]
model: {depth: 8, widths: [8, 8, 16]}
data: {image_size: 24, batch_size: 16, val_fraction: 0.25, root: photographs, cache_dir: cache}
trainer: {max_epochs: 2, progress_bar: false}
optim: {lr: 0.05}
"""


@pytest.fixture(autouse=True, scope="session")
def _files_are_merged_once() -> Iterator[None]:
    """Let Hydra read each file and merge those of equal choices of groups once: nine tenths of a composition."""
    chosen, choose = dict[Any, Any](), config_loader_impl.create_defaults_list

    def choose_once(repo: Any, config_name: str, overrides_list: list[Override], **options: bool) -> Any:
        groups = [each for each in overrides_list if repo.group_exists(each.key_or_group)]
        key = (_files(repo), config_name, *(each.input_line for each in groups), *options.items())
        if key not in chosen:
            chosen[key] = choose(repo, config_name, groups, **options)
        own = [each.input_line for each in chosen[key].config_overrides]  # a mapping of a group's keys
        typed = [each for each in overrides_list if each not in groups or each.input_line in own]
        values = [each for each in typed if not each.is_sweep_override()]
        return dataclasses.replace(chosen[key], config_overrides=values)

    load = _once(ConfigRepository.load_config, lambda repo, config_path: (_files(repo), config_path))
    merge = _once(
        ConfigLoaderImpl._compose_config_from_defaults_list,
        lambda _, defaults, repo: (_files(repo), *map(repr, defaults)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", choose_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge)
        patch.setattr(ConfigRepository, "load_config", load)
        patch.setattr(ConfigStore, "__deepcopy__", lambda store, _: store, raising=False)  # it copies what it returns
        yield


def _once(function: Callable[..., Any], key_of: Callable[..., Any]) -> Callable[..., Any]:
    kept = dict[Any, bytes]()

    def wrapped(*args: Any, **options: Any) -> Any:
        if (key := key_of(*args, **options)) not in kept:
            kept[key] = pickle.dumps(function(*args, **options))
        return pickle.loads(kept[key])  # a copy, in a fifth of the time of deepcopy

    return wrapped


def _files(repo: Any) -> tuple[tuple[str, ...], ...]:
    """Return the folders of a composition, with the texts of those of a test."""
    own = [str(source.path) for source in repo.get_sources() if source.scheme() == "file"]
    texts = [
        f"{file}: {file.read_text(errors='replace')}"
        for folder in own
        if folder != str(conf_dir())
        for file in sorted(Path(folder).rglob("*.yaml"))
    ]
    return tuple(own), tuple(texts)


@pytest.fixture(autouse=True)
def _no_trust_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_trusted", set())
    monkeypatch.setattr(trust, "_used", set())


@pytest.fixture(autouse=True)
def _no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command inside a test's process starts new processes; tests of forks start the command itself."""
    monkeypatch.setattr(supervisor, "begin", lambda: None)


@pytest.fixture
def command_in_this_process() -> Iterator[None]:
    """Restore the signal handlers and the environment, which `train.main` changes."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    environment = dict(os.environ)
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def experiment(tmp_path: Path, photographs: Path) -> None:
    """Write the experiment `tiny` on these photographs, for `--config-dir conf experiment=tiny`."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "tiny.yaml").write_text(TINY_EXPERIMENT)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Return a folder in the studies' layout: 48 training and 16 test images of patients with two eyes."""
    return write_tiny(tmp_path / "photographs")


def write_tiny(root: Path) -> Path:
    """Write the photographs of `photographs`."""
    grades = {"train": [0, 0, 0, 1, 2, 3, 4, 4] * 6, "test": [0, 1, 2, 3, 4, 0, 0, 2] * 2}
    labels = {
        split: {f"{split}{row // 2}_{('left', 'right')[row % 2]}": grade for row, grade in enumerate(column)}
        for split, column in grades.items()
    }
    return write_studies(root, labels["train"], labels["test"])


def _tiny(overrides: tuple[str, ...]) -> list[str]:
    """Return TINY without the keys of groups for which a test brings its own part (`model=own`)."""
    groups = {each.removesuffix("=own") for each in overrides if each.endswith("=own")}
    return [each for each in TINY if each.partition("=")[0].partition(".")[0] not in groups]


@functools.cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    """Return the tiny configuration with overrides (cached, because many tests share them).

    Only choices of groups are composed by Hydra, which takes longer than some trainings.
    """
    own = [f"{key}={PLACEHOLDER}" for key in ("data.root", "data.cache_dir", "sweep_dir")]
    return with_values([*_tiny(overrides), *own, *overrides])


def with_values(words: Sequence[str]) -> DictConfig:
    """Return the configuration of overrides; what cannot be composed is refused as by `compose_config`."""
    register()
    check_overrides(words)
    parsed = dict(zip(words, OverridesParser.create().parse_overrides(words), strict=True))
    values = {word: each for word, each in parsed.items() if each.key_or_group not in CHOSEN and not each.is_delete()}
    try:
        config = copy.deepcopy(_with_groups(tuple(word for word in words if word not in values)))
        for each in values.values():
            OmegaConf.update(config, each.key_or_group, each.value(), force_add=each.is_add() or each.is_force_add())
    except (HydraException, OmegaConfBaseException, ValueError):
        return compose_config(words)
    return config


@functools.cache
def _with_groups(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def make_run(
    tmp_path: Path, photographs: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunFolder]:
    """Create a run folder with the tiny network on the tiny data; keyword `name` is its folder.

    Its jobs draw empty pictures, since drawing takes a third of the time, except in tests marked `pictures`.
    """
    if request.node.get_closest_marker("pictures") is None:
        _draw_nothing(monkeypatch)

    def make(*overrides: str, name: str = "run") -> RunFolder:
        return _new_run(tmp_path / "runs" / name, overrides, photographs, tmp_path / "cache")

    return make


def _new_run(folder: Path, overrides: tuple[str, ...], photographs: Path, cache: Path) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(composed(overrides))
    own = {"data.root": photographs, "data.cache_dir": cache, "sweep_dir": folder}
    for key, path in own.items():
        if OmegaConf.select(config, key) == PLACEHOLDER:
            OmegaConf.update(config, key, str(path))
    check(config)
    create_run(RunFolder(folder), config)
    return RunFolder(folder)


def _draw_nothing(patch: pytest.MonkeyPatch) -> None:
    for module, name in ((plots.matrices, "confusion_matrix"), (plots.samples, "images")):
        patch.setattr(module, name, lambda *_, **__: Figure(figsize=(0.1, 0.1)))


@pytest.fixture
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluations draw empty pictures, as the jobs of `make_run` do."""
    _draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Train a run on photographs of its own; each set of overrides is trained once."""
    base = tmp_path_factory.mktemp("trained")
    photographs = write_tiny(base / "photographs")

    @functools.cache
    def train(overrides: tuple[str, ...]) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            _draw_nothing(patch)
            run = _new_run(tmp_path_factory.mktemp("trained"), overrides, photographs, base / "cache")
            assert guarded(run) == 0
        return run.path

    return train


@pytest.fixture
def trained_run(tmp_path: Path, _trained_once: Callable[[tuple[str, ...]], Path]) -> Callable[..., RunFolder]:
    """Return a run as from `make_run` that is trained; it is a copy, and all such runs share their photographs."""

    def copied(*overrides: str, name: str = "run") -> RunFolder:
        return RunFolder(shutil.copytree(_trained_once(overrides), tmp_path / "runs" / name))

    return copied


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Write an image (an array or a Pillow image), and return its path."""

    def write(image: np.ndarray | Image.Image, name: str = "image.png", **options: object) -> str:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return write


def unpacked(name: str, folder: Path) -> Path:
    """Return a data set of ../shared/data, unpacked below `folder`."""
    with tarfile.open(next(REAL_DATA.glob(f"{name}.tar*"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.fixture(scope="session")
def idrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 516 real fundus photographs of 385 × 256 pixels with the studies' CSVs."""
    return unpacked("idrid_256", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def idrid_fullsize(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 25 of the photographs at camera size."""
    return unpacked("idrid_fullsize", tmp_path_factory.mktemp("real"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reports without pictures, which take most of the time."""
    monkeypatch.setattr("resnet_lab.report.page.pictures", lambda *_: {})


@pytest.fixture
def as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reports only with the pictures that are named."""
    monkeypatch.setattr("resnet_lab.report.page.OF_SECTIONS", ())


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Restore logging, which a job sets up for its whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)
    logging.raiseExceptions = True
    for logger in logging.root.manager.loggerDict.values():  # Hydra disables existing loggers
        if isinstance(logger, logging.Logger):
            logger.disabled = False
