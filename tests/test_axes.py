"""Axes of a sweep, and the labels that an experiment gives to their values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import TINY
from omegaconf import OmegaConf

from resnet_lab.axes import as_typed, axes_of, axes_of_run, label_of, labels_in, note_jobs, plain, shown_of, texts_of
from resnet_lab.config import check, compose_config, config_hash
from resnet_lab.errors import UserError
from resnet_lab.evaluate import title_of
from resnet_lab.loggers import RowLogger
from resnet_lab.run_folder import RunFolder, is_bookkeeping, list_jobs
from resnet_lab.train import main
from resnet_lab.training import log_hyperparameters

LABELS = {"model.pretrained": {"none": "scratch", "imagenet": "ImageNet"}, "optim.lr": {0.001: "slow"}}
CONSTANT = [f"data.key{number}={number}" for number in range(10)]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep over depth, pretraining and seed with ten constant overrides; no job has started."""
    grid = [(seed, depth, weights) for seed in (0, 1) for depth in (18, 34) for weights in ("none", "imagenet")]
    jobs = {
        f"job{number}": [
            f"model.pretrained={weights}",
            *CONSTANT,
            f"model.depth={depth}",
            f"seed={seed}",
            "start=false",
        ]
        for number, (seed, depth, weights) in enumerate(grid)
    }
    list_jobs(tmp_path, jobs)
    note_jobs(tmp_path, jobs)
    return tmp_path


def begin(folder: Path, *overrides: str, **config: object) -> RunFolder:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, **config}))
    (folder / "status.json").write_text(json.dumps({"state": "created", "overrides": overrides}))
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1e-3", 0.001), ("18", 18), ("null", None), ("True", True), ("[1, 2]", [1, 2]), ("'a b'", "a b"), ("none", None)],
)
def test_values_are_equal_however_they_are_typed(one: object, other: object) -> None:
    assert plain(one) == plain(other)


def test_different_values_stay_different() -> None:
    values = ["none", "imagenet", "1", "2", "true", "false", "[1,2]", "1234567", "1234568"]
    assert len({plain(value) for value in values}) == len(values)


def test_labels_name_what_varies_in_the_order_of_the_command(sweep: Path) -> None:
    found = labels_in(sweep, texts_of(LABELS))
    assert found["job0"] == "scratch depth=18 seed=0"
    assert found["job7"] == "ImageNet depth=34 seed=1"
    assert labels_in(sweep, {})["job7"] == "pretrained=imagenet depth=34 seed=1"
    assert len({*found.values()}) == 8


def test_a_sweep_that_grows_by_an_axis_labels_its_older_jobs(sweep: Path) -> None:
    note_jobs(
        sweep, {"more": ["model.pretrained=none", *CONSTANT, "model.depth=18", "seed=0", "optim.lr=1e-3"]}, ["job7"]
    )
    found = labels_in(sweep, texts_of(LABELS))
    assert found["more"] == "scratch depth=18 seed=0 slow"
    assert found["job0"] == "scratch depth=18 seed=0"
    assert "job7" not in found


@pytest.mark.parametrize("damage", [None, "{", "[]", "[1]", '{"a": 1}'])
def test_jobs_of_an_older_version_have_labels_once_they_have_started(tmp_path: Path, damage: str | None) -> None:
    list_jobs(tmp_path, ["a", "b"])
    first = begin(tmp_path / "a", "model.depth=18", "data.num_workers=0", labels={"model.depth": {18: "small"}})
    begin(tmp_path / "b", "model.depth=34", "data.num_workers=1", "seed=0")
    if damage:
        (tmp_path / "jobs.json").write_text(damage)
    assert labels_in(tmp_path, {}) == {"a": "depth=18", "b": "depth=34 seed=0"}
    assert label_of(first) == "small"
    assert axes_of_run(first) == {"model.depth": "18"}


def test_a_single_job_and_a_single_run_are_named_by_their_folders(tmp_path: Path) -> None:
    alone = begin(tmp_path / "alone", "model.depth=18")
    assert label_of(alone) == "alone"
    assert axes_of_run(alone) == {"model.depth": "18"}
    list_jobs(tmp_path, ["alone"])
    assert label_of(alone) == "alone"
    assert axes_of_run(alone) == {}


def test_equal_values_are_not_an_axis() -> None:
    assert axes_of([{"optim.lr": "1e-3", "seed": "0"}, {"optim.lr": "0.001", "seed": "1"}]) == ["seed"]
    assert axes_of([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("False", "false"),
        (None, "null"),
        ("None", "None"),
        ([None, True, 0.5], "[null, true, 0.5]"),
        ("a$\\{seed\\}", "a${seed}"),
    ],
)
def test_a_value_is_shown_as_typed(value: object, text: str) -> None:
    assert as_typed(value) == text


def test_jobs_of_a_sweep_over_true_and_false_have_labels_as_typed() -> None:
    words = shown_of([{"data.eye_crop": "True"}, {"data.eye_crop": "False"}], {})
    assert [list(each.values()) for each in words] == [["eye_crop=true"], ["eye_crop=false"]]


def test_values_of_configurations_have_labels_too() -> None:
    settings = [{"data.eye_crop": crop, "optim.lr": 0.001, "data.mean": [0.5]} for crop in (True, False)]
    texts = texts_of({"data.eye_crop": {True: "cropped"}, "optim.lr": {"1e-3": "slow"}, "data.mean": {"[0.5]": "gray"}})
    assert [list(each.values()) for each in shown_of(settings, texts)] == [
        ["cropped", "slow", "gray"],
        ["eye_crop=false", "slow", "gray"],
    ]


def checked(**labels: object) -> None:
    config = compose_config(["experiment=dr_depth_pretraining"])
    OmegaConf.set_struct(config, False)
    config.labels = labels.get("labels", {})
    check(config)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"model.depht": {18: "small"}}, "did you mean model.depth?"),
        ({"model.depth": {18: ["small"]}}, "labels: model.depth: 18"),
        ({"model.depth": {18: 5}}, "must be text"),
        ({"model.depth": {18: " "}}, "must be text"),
        ({"model.depth": {18: None}}, "must be text"),
        ({"model.depth": {18: "same", 34: "same"}}, "two values are labeled same"),
        ({"model.depth": "small"}, "must be a mapping"),
        ("small", "must be a mapping"),
        (None, "must be a mapping"),
    ],
)
def test_invalid_labels_are_refused(labels: object, message: str) -> None:
    with pytest.raises(UserError, match="labels") as refused:
        checked(labels=labels)
    assert message.replace("?", "") in str(refused.value)


def test_labels_are_not_part_of_an_experiment() -> None:
    config = compose_config(["experiment=dr_depth_pretraining"])
    assert config.labels["model.pretrained"] == {"none": "scratch", "imagenet": "ImageNet"}
    plainly = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plainly, dict)
    assert config_hash(plainly | {"labels": {}}) == config_hash(plainly)  # type: ignore[arg-type]
    assert is_bookkeeping("labels")
    assert is_bookkeeping("labels.model.pretrained.none")
    checked(labels={"model.widths": {"[8]": "narrow"}})  # the key of another network


def test_a_sweep_shows_its_jobs_by_label_and_ends_with_a_summary(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnet_lab.train.preflight", lambda *_: True)
    labels = "+labels={model.depth:{8:small}}"
    words = ["-m", *(each for each in TINY if "depth" not in each), f"data.root={photographs}", "sweep_dir=sweep"]
    monkeypatch.setattr("sys.argv", ["train", *words, labels, "model.depth=8,14", "seed=0", "start=false"])
    assert main() == 0
    shown = capsys.readouterr().out
    assert "job 1 of 2: small\n" in shown
    assert "job 2 of 2: depth=14\n" in shown
    assert "data.image_size" not in shown  # Hydra's line about a job contains all overrides
    assert "sweep: 2 jobs: 2 created" in shown
    jobs = list_jobs(tmp_path / "sweep")
    assert list(json.loads((tmp_path / "sweep" / "jobs.json").read_text())) == jobs
    assert sorted(file.parent.name for file in tmp_path.glob("sweep/*/config.yaml")) == sorted(jobs)
    assert not any("small" in name or "labels" in name for name in jobs)
    first = RunFolder(tmp_path / "sweep" / jobs[0])
    assert label_of(first) == title_of(first.best_checkpoint) == "small"
    assert title_of(tmp_path / "loose.ckpt") == "loose.ckpt"
    logger = RowLogger(str(tmp_path / "logged"))
    (tmp_path / "logged").mkdir()
    log_hyperparameters(SimpleNamespace(loggers=[logger], global_step=1), first, {"test/qwk": 0.5})  # type: ignore[arg-type]
    assert logger.hyperparameters == {"seed": 0, "label": "small", "model.depth": 8}


def test_a_finished_run_accepts_only_new_labels(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    run.update_status(state="done")
    before = run.read_config()
    make_run("+labels={model.depth:{8:small}}", "figures=[loss]")
    assert run.read_config() == before | {"labels": {"model.depth": {8: "small"}}}
    assert run.read_status()["state"] == "done"
