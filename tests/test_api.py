"""The Python API: its names, its results, and a cheap import."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from fake_data import refusal
from fake_runs import write_run

import resnet_lab
from resnet_lab.api import WARNED
from resnet_lab.report import findings


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, resnet_lab; print(sorted({'torch', 'numpy', 'pandas', 'hydra', 'lightning'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_exports_exactly_these_names() -> None:
    for name in resnet_lab.__all__:
        assert getattr(resnet_lab, name) is not None
    assert {name for name in dir(resnet_lab) if not name.startswith("__")} == {*resnet_lab.__all__} - {"__version__"}
    assert resnet_lab.__version__.count(".") == 2
    assert callable(resnet_lab.train)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        resnet_lab.lod  # noqa: B018
    assert (Path(resnet_lab.__file__).parent / "py.typed").is_file()


def test_compose_returns_the_configuration_of_the_command() -> None:
    config = resnet_lab.compose("model.depth=34", "data=retinopathy", "data.root=photographs")
    assert (config.model.depth, config.data.root) == (34, "photographs")
    assert "model.dpeth" in refusal(resnet_lab.compose, "model.dpeth=34")


def test_a_list_of_overrides_is_refused() -> None:
    message = refusal(resnet_lab.compose, ["model.depth=18", "seed=1"])
    assert message.endswith("give each override as a separate string, such as 'model.depth=18', 'seed=1'")


def test_an_experiment_of_the_caller_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\nstart: false\n")
    assert resnet_lab.compose("experiment=mine", config_dir=tmp_path / "my_conf").seed == 7
    run = resnet_lab.train("experiment=mine", "sweep_dir=one", config_dir="my_conf")
    assert run.status["config_dir"] == "my_conf"
    line = "one is created but not started (start=false); start it with python -m resnet_lab.job one"
    assert line in capsys.readouterr().out
    assert run.config["seed"] == 7
    assert refusal(lambda: resnet_lab.train(config_dir="myconf")) == "config_dir=myconf: no such folder"
    assert "give KEY=VALUE" in refusal(lambda: resnet_lab.train("--config-dir=my_conf", "experiment=mine"))


def test_compare_takes_several_folders_as_a_list(tmp_path: Path) -> None:
    message = refusal(lambda: resnet_lab.compare(tmp_path / "a", str(tmp_path)))
    assert message.endswith(f"give several folders as a list: compare(['{tmp_path / 'a'}', …])")


def test_resnet_builds_a_network_by_its_depth() -> None:
    network = resnet_lab.resnet(18, num_classes=3)
    own = torchvision.models.resnet18(num_classes=3)
    own.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(images), own.eval()(images))
    small = resnet_lab.resnet(20, 10, "resnet_cifar")
    assert sum(each.numel() for each in small.parameters()) == 269_722  # of He et al. (2016): 0.27 million
    assert "depth=19 is unknown" in refusal(resnet_lab.resnet, 19, 3)
    message = refusal(lambda: resnet_lab.resnet(18, 3, steem="3x3"))
    assert message.startswith("steem: ")
    assert message.endswith("did you mean stem?")
    message = refusal(lambda: resnet_lab.resnet(18, 3, "resnt"))
    assert message.startswith("form=resnt: there is no such choice; did you mean form=resnet?")


def test_errors_name_arguments_in_place_of_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(resnet_lab.compose, "experiment=mine").endswith(
        'config_dir="DIR" reads your own DIR/experiment/mine.yaml'
    )
    (tmp_path / "my conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my conf" / "experiment" / "mine.yaml").touch()
    assert 'did you mean "experiment=mine", config_dir="my conf"?' in refusal(resnet_lab.train, "experiment=mine")
    assert "-m" not in refusal(resnet_lab.compose, "model.depth=18,34").partition("command: resnet-lab train")[0]
    assert refusal(resnet_lab.train, "data=retinopathy") == "data.root is not set; give data.root=…"


@pytest.mark.slow
def test_the_reason_of_the_check_is_in_the_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(resnet_lab.train, "model=own", "model._target_=nowhere.net", "sweep_dir=one")
    assert "nowhere" in line
    assert not line.startswith("error")
    assert not (tmp_path / "one").exists()


def test_compare_returns_the_leaderboard_best_first(tmp_path: Path) -> None:
    for depth, skill in ((18, 1.0), (34, 6.0)):
        for seed in (0, 1):
            write_run(tmp_path / "sweep" / f"{depth}_{seed}", depth=depth, skill=skill, seed=seed)
    table = resnet_lab.compare(tmp_path / "sweep")
    assert table["model.depth"].tolist() == [34, 18]
    assert table["mark"].tolist() == ["best", "behind"]
    one = resnet_lab.read_run(tmp_path / "sweep" / "34_0")
    two = resnet_lab.read_run(tmp_path / "sweep" / "34_1")
    assert table["qwk_mean"][0] == pytest.approx((one.scores["qwk"] + two.scores["qwk"]) / 2)
    alone = resnet_lab.compare([tmp_path / "sweep" / "18_0"], metric="matthews")
    assert alone["ranked_by"].tolist() == ["matthews"]
    for metric, meant in (("kappa", "qwk"), ("balanced_acuracy", "balanced_accuracy")):
        line = f"metric={metric} is in no run; did you mean {meant}?"
        assert line in refusal(resnet_lab.compare, tmp_path, metric)
    assert "compare got no folder" in refusal(resnet_lab.compare, [])
    assert "is not a run folder" in refusal(resnet_lab.read_run, tmp_path)


def test_compare_warns_of_the_faults_that_the_report_lists(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, class_names=["healthy", "ill"])
    with warnings.catch_warnings(record=True) as caught:
        resnet_lab.compare(tmp_path)
    assert not caught
    write_run(tmp_path / "again", seed=1, depth=18, skill=3.0, class_names=["healthy", "ill"], leaks=5)
    with pytest.warns(UserWarning, match=r"leaking: 5 images of train[\s\S]*duplicate seed: .*seed 1 occurs") as caught:
        table = resnet_lab.compare(tmp_path)
    assert caught[0].filename == __file__
    source = Path(findings.__file__).read_text("utf-8")
    assert [kind for kind in WARNED if f'"{kind}"' not in source] == []  # each is the kind of a finding
    assert table["n_leaking"].tolist() == [1]


@pytest.mark.slow
def test_train_runs_once_and_then_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("experiment=demo", "scale=smoke", "trainer=cpu", "trainer.max_epochs=1", "model.pretrained=none")
    run = resnet_lab.train(*own, "sweep_dir=runs/one")
    assert run.state == "done"
    again = resnet_lab.train(*own, "sweep_dir=runs/one")
    assert again.status["starts"] == 1
    assert again.scores == run.scores
    assert "different configuration" in refusal(resnet_lab.train, *own, "seed=5", "sweep_dir=runs/one")
