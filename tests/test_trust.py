"""Files may name only functions of conf/ or trusted ones, and nothing is written behind a link."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fake_data import refusal
from fake_runs import write_run

import resnet_lab
from resnet_lab import evaluate, job, predict, preflight, trust
from resnet_lab.config import build, named_in_conf, words_of_trust
from resnet_lab.errors import UserError
from resnet_lab.outputs import for_spreadsheets, write_predictions
from resnet_lab.report.__main__ import report
from resnet_lab.run_folder import RunFolder
from resnet_lab.schema import PROVIDED
from resnet_lab.signatures import Arguments
from resnet_lab.training import guarded

OUTSIDE = ("os", "subprocess", "builtins", "shutil", "runpy", "torch.hub", "torch.utils", "numpy", "pandas")
PREFIXES = (
    "torch.nn.parallel.distributed.os.system",
    "torchvision.models._api.importlib.import_module",
    "resnet_lab.processes.run_tied",
    "resnet_lab.prepare.command",
    "resnet_lab.job.os.system",
    "resnet_lab.models.resnet.resnet.__call__",
    "resnet_lab.models.resnet.nn.Linear",
    " resnet_lab.models.resnet.resnet",
    "resnet_lab.optim.sgd.",
    "torch.utils.collect_env.run",
    "numpy.testing.runstring",
    "numpy.savetxt",
    "pandas.read_pickle",
)


def callables(module) -> Iterator[str]:
    return (f"{module.__name__}.{name}" for name in dir(module) if callable(getattr(module, name, None)))


def modules() -> Iterator[str]:
    """Return the modules of the package (without those that run on import) and OUTSIDE."""
    found = (module.name for module in pkgutil.walk_packages(resnet_lab.__path__, "resnet_lab."))
    yield from (name for name in found if "__main__" not in name)
    yield from OUTSIDE


def test_a_file_may_name_only_callables_of_conf(monkeypatch):
    called = []
    monkeypatch.setattr("resnet_lab.config.instantiate", lambda node, **_: called.append(node["_target_"]))
    names = {name for module in modules() for name in callables(importlib.import_module(module))} | {*PREFIXES}
    assert len(names) > 1500
    for group in PROVIDED:
        for name in names - named_in_conf(group):
            message = refusal(build, group, {"_target_": name})
            assert message.startswith(f"{group}._target_ {name} is not called, as it is not one of resnet_lab's")
        for name in named_in_conf(group):
            build(group, {"_target_": name})
    assert len(called) == sum(len(named_in_conf(group)) for group in PROVIDED)


def test_the_names_of_conf_are_exact_and_by_group():
    losses = ("cross_entropy", "mse", "smooth_l1", "corn")
    assert named_in_conf("loss") == {f"resnet_lab.objectives.{name}" for name in losses}
    assert named_in_conf("model") == {"resnet_lab.models.resnet.resnet", "resnet_lab.models.example_cnn.example_cnn"}
    assert "resnet_lab.optim.sgd" in named_in_conf("optim")
    assert "resnet_lab.optim.sgd is not called, as it is not one of" in refusal(
        build, "loss", {"_target_": "resnet_lab.optim.sgd"}
    )


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"label_smoothing": {"_target_": "os.system"}}, "loss.label_smoothing._target_"),
        ({"class_weights": [{"_target_": "os.system"}]}, "loss.class_weights[0]._target_"),
        ({"_args_": ["x"]}, "loss._args_"),
        ({"_recursive_": True}, "loss._recursive_"),
        ({"_convert_": "none"}, "loss._convert_"),
        ({"a": {"b": {"_partial_": True}}}, "loss.a.b._partial_"),
        ({"_partial_": "yes"}, "loss._partial_=yes"),
    ],
)
def test_special_keys_are_allowed_only_at_the_top(node, key):
    assert refusal(build, "loss", {"_target_": "resnet_lab.objectives.cross_entropy"} | node).startswith(f"{key}")


@pytest.mark.parametrize("target", [5, ["os.system"], {"_target_": "os.system"}, True, ""])
def test_a_target_other_than_a_name_is_refused(target):
    assert refusal(build, "model", {"_target_": target}).startswith("model._target_")


def test_words_of_trust(monkeypatch):
    monkeypatch.setattr("resnet_lab.config.instantiate", lambda node, **_: node["_target_"])
    monkeypatch.setattr("resnet_lab.config.arguments_of", lambda *_: Arguments({}, others=True))
    monkeypatch.setattr("resnet_lab.trust.find_spec", lambda name: name)
    trust.trust(["model:lab.Net,optim:lab.Adam", "own.package"])
    assert build("model", {"_target_": "lab.Net"}) == "lab.Net"
    assert build("optim", {"_target_": "lab.Adam"}) == "lab.Adam"
    assert build("data", {"_target_": "own.package.deep.Data"}) == "own.package.deep.Data"
    for word in ("loss:lab.Net", "model:lab.Net2", "model:own.packages.Net", "model:own.Net"):
        group, name = word.split(":")
        assert f"add trust={word} to the command" in refusal(build, group, {"_target_": name})


def test_a_package_covers_what_it_defines_and_not_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reexports.py").write_text(
        "from os import system\nfrom torchvision.models import resnet18 as net\ndef own(num_classes): ...\n"
    )
    trust.trust(["reexports"])
    build("model", {"_target_": "reexports.own"}, num_classes=2)
    for name, home in (("system", "posix"), ("net", "torchvision.models.resnet")):
        message = refusal(build, "model", {"_target_": f"reexports.{name}"})
        assert f"defined in {home}" in message
        assert f"add trust=model:reexports.{name}" in message
    trust.trust(["model:reexports.net"])
    assert build("model", {"_target_": "reexports.net"}, num_classes=2).fc.out_features == 2


def test_words_that_nothing_needed_are_known(monkeypatch):
    monkeypatch.setattr("resnet_lab.config.instantiate", lambda node, **_: node["_target_"])
    monkeypatch.setattr("resnet_lab.config.arguments_of", lambda *_: Arguments({}, others=True))
    monkeypatch.setattr("resnet_lab.trust.find_spec", lambda name: name)
    words = ["model:lab.Net,lab", "other", "optim:lab.Net"]
    trust.trust(words)
    build("model", {"_target_": "lab.Net"})
    assert trust.unused_words(words) == ["other", "optim:lab.Net"]
    assert trust.unused_words(words, ["optim:lab.Net"]) == ["other"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("nolab", "there is no module nolab"),
        ("model:nolab.Net", "there is no module nolab"),
        ("modle:mylab.Net", "modle is not a group; choose one of data, model"),
    ],
)
def test_trust_in_missing_names_is_refused(word, reason):
    assert refusal(trust.trust, [word]).startswith(f"trust={word}: {reason}")


@pytest.mark.parametrize("word", ["", "a b", "model:", "a..b", "x:y:z", "os;system", "../a", "1a"])
def test_invalid_words_of_trust_are_refused(word):
    assert refusal(trust.trust, [word]).startswith(f"trust={word}: give a package")


def test_words_of_trust_match_a_composed_configuration_exactly():
    config = {"model": {"_target_": "lab.Net"}, "optim": {"_target_": "resnet_lab.optim.sgd"}, "seed": 0}
    assert words_of_trust(config) == ["model:lab.Net"]
    assert trust.without_trust(["a=1", "trust=lab", "-m"]) == (["a=1", "-m"], ["lab"])


# ---- every verb ----

WRITES = """import pathlib
def net(path, num_classes=2):
    pathlib.Path(path).touch()
"""


@pytest.fixture
def proof(tmp_path, monkeypatch) -> Path:
    imports = f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
    (tmp_path / "hostile.py").write_text(imports + WRITES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    return tmp_path / "proof"


HOSTILE = {
    "data": {"_target_": "torch.utils.collect_env.run", "command": "touch PROOF"},
    "model": {"_target_": "hostile.net", "path": "PROOF"},
    "optim": {"_target_": "resnet_lab.processes.run_tied", "command": ["touch", "PROOF"]},
    "loss": {"_target_": "numpy.savetxt", "fname": "PROOF", "X": [1]},
    "schedule": {"_target_": "resnet_lab.prepare.command", "arguments": ["out=PROOF"], "_partial_": True},
}


def hostile(group: str, proof: Path) -> dict:
    return json.loads(json.dumps(HOSTILE[group]).replace("PROOF", str(proof)))


@pytest.mark.parametrize("group", HOSTILE)
def test_a_given_run_folder_and_its_checkpoint_call_no_external_function(
    group, make_run, proof, tmp_path, monkeypatch, capsys
):
    run = make_run()
    config = run.read_config()
    run.write_config(config | {group: hostile(group, proof)})
    assert guarded(run) == 1
    assert (
        f"{group}._target_ {HOSTILE[group]['_target_']} is not called, as it is not one of"
        in run.read_status()["error"]
    )
    origin = {"config": config | {group: hostile(group, proof)}, "class_names": ["a", "b"]}
    torch.save({"resnet_lab": origin, "state_dict": {"w": torch.ones(1)}}, tmp_path / "given.ckpt")
    for command in (evaluate.command, predict.command):
        arguments = [str(tmp_path / "given.ckpt"), *([str(tmp_path)] if command is predict.command else [])]
        assert f"{group}._target_" in refusal(command, arguments)
    assert not proof.exists()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("target", ["hostile.net", "os.system", "lightning.pytorch.callbacks.LambdaCallback"])
def test_a_given_run_folder_brings_no_callback(make_run, proof, tmp_path, target):
    run = make_run()
    run.write_config(run.read_config() | {"callbacks": {"mine": {"_target_": target, "path": str(proof)}}})
    assert guarded(run) == 1
    assert f"callbacks.mine._target_ {target} is not called, as it is not one of" in run.read_status()["error"]
    assert f"add trust=callbacks:{target} to the command" in run.read_status()["error"]
    assert not proof.exists()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("callbacks", [None, 5, [1], {"mine": None}, {"mine": 3}, {"mine": {"_target_": 3}}])
def test_odd_callbacks_of_a_given_run_folder_are_named(make_run, callbacks):
    run = make_run()
    run.write_config(run.read_config() | {"callbacks": callbacks})
    assert guarded(run) == 1
    assert "callbacks" in run.read_status()["error"]
    assert "Traceback" not in run.read_status()["error"]


def test_a_command_trusts_what_it_names_and_a_folder_does_not(make_run, proof, tmp_path, monkeypatch):
    run = make_run()
    run.write_config(run.read_config() | {"model": hostile("model", proof)})
    for name in ("stop_on_signals", "stop_with_parent"):
        monkeypatch.setattr(job, name, lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["job", str(run.path), "0"])
    assert job.main() == 1
    assert not (tmp_path / "imported").exists()
    monkeypatch.setattr(sys, "argv", ["job", str(run.path), "1", "trust=model:hostile.net"])
    job.main()  # it fails, since this is no network, but it is called
    assert proof.exists()


def test_the_check_before_a_sweep_takes_the_words_of_its_command(proof, monkeypatch, tmp_path):
    need = [json.dumps({"model": hostile("model", proof) | {"pretrained": "x"}})]
    (tmp_path / "stdin").write_text(json.dumps(need))
    with (tmp_path / "stdin").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert "model._target_ hostile.net is not called, as it is not one of" in refusal(preflight.command, [])


def test_secrets_of_the_environment_are_not_read(make_run, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "s3cr3t")
    run = make_run()
    config = run.read_config()
    run.config_file.write_text(yaml.safe_dump(config | {"data": config["data"] | {"name": "${oc.env:SECRET}"}}))
    assert guarded(run) == 1
    assert "data.name: it contains ${…}" in run.read_status()["error"]
    for origin in ({"class_names": ["${oc.env:SECRET}", "b"]}, {"config": config | {"name": "x ${oc.env:SECRET}"}}):
        whole = {"config": config, "class_names": ["a", "b"]} | origin
        torch.save({"resnet_lab": whole, "state_dict": {"w": torch.ones(1)}}, tmp_path / "given.ckpt")
        assert "it contains ${…}" in refusal(evaluate.command, [str(tmp_path / "given.ckpt")])
    assert not any(b"s3cr3t" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_given_configurations_that_explode_or_nest_are_refused(tmp_path):
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    deep = f"a: {'[' * 40}{']' * 40}\n"
    for text in (aliases, deep, "a: &a {b: *a}\n", "[" * 20_000, "a: 1\n" * 4_000_000):
        (tmp_path / "config.yaml").write_text(text)
        message = refusal(RunFolder(tmp_path).read_config)
        assert message.startswith(str(tmp_path / "config.yaml"))
        assert len(message) < 400
    (tmp_path / "status.json").write_text('{"a":' + "[" * 100_000)
    assert "status.json is damaged" in refusal(RunFolder(tmp_path).read_status)


# ---- links, and cells that a spreadsheet would compute ----


@pytest.mark.parametrize("name", ["train.log", "predictions_test.csv", "job.lock", "status.json", "metrics.csv"])
def test_a_job_writes_through_no_link(name, make_run, tmp_path):
    run, elsewhere = make_run(), tmp_path / "precious"
    elsewhere.write_text("{}")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name} is a link to .*precious"), run.lock():
        pass
    assert elsewhere.read_text() == "{}"


def test_an_evaluation_and_a_report_write_through_no_link(tmp_path, undrawn):
    run, elsewhere = RunFolder(write_run(tmp_path / "run")), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "cost.png").touch()
    (run.path / "report_figures").symlink_to(elsewhere)
    assert "report_figures is a symbolic link" in refusal(report, [str(run.path)], run.path)
    (run.path / "report_figures").unlink()
    (run.path / "summary.csv").symlink_to(elsewhere / "summary.csv")
    report([str(run.path)], run.path)
    assert [file.name for file in elsewhere.iterdir()] == ["cost.png"]
    assert not (run.path / "summary.csv").is_symlink()


def test_cells_of_a_spreadsheet_compute_nothing(tmp_path):
    cells = ["=1+1", "+1", "-x", "@x", "\tx", "\rx", "a=1", "", "'x"]
    table = for_spreadsheets(pd.DataFrame({"=name": cells, "number": np.arange(9) - 4.5}))
    assert list(table.columns) == ["'=name", "number"]
    assert list(table["'=name"]) == ["'=1+1", "'+1", "'-x", "'@x", "'\tx", "'\rx", "a=1", "", "'x"]
    assert list(table["number"]) == list(np.arange(9) - 4.5)
    rows, probabilities = pd.DataFrame({"image": ["=cmd()", "-1"], "target": [0, 1]}), np.eye(2)
    for exact, names in ((True, ["=cmd()", "-1"]), (False, ["'=cmd()", "'-1"])):
        write_predictions(tmp_path / "p.csv", rows, np.arange(2), probabilities, exact=exact)
        assert list(pd.read_csv(tmp_path / "p.csv", dtype=str)["image"]) == names
