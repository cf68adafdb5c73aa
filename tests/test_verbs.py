"""The verbs: one declaration reads the command line and writes the help."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from fake_data import refusal

import resnet_lab.__main__ as lab
from resnet_lab.keys import TOPICS, all_keys, choices_of, known_keys
from resnet_lab.schema import CHOSEN
from resnet_lab.train import arguments_of_hydra
from resnet_lab.verbs import TASKS, VERBS, job

ALL = {**VERBS, "job": job}
MODULES = {"report": "report.__main__"}


def run(monkeypatch: pytest.MonkeyPatch, module: str, *words: str) -> int:
    """Run `python -m resnet_lab.MODULE …` in this process, and return its exit code."""
    found = importlib.import_module(f"resnet_lab.{MODULES.get(module, module)}")
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.setattr("resnet_lab.command_line.begin", lambda: None)
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("another program would take the place of the tests"))
    try:
        return found.main() if hasattr(found, "main") else found.run_command(found.command)
    except SystemExit as ended:
        return ended.code or 0


@pytest.mark.parametrize("name", ALL)
def test_a_help_shows_what_is_declared_in_80_columns(name: str) -> None:
    verb = ALL[name]()
    text = verb.format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"usage: {verb.prog} ")
    assert all(part in text for part in ("\nfiles written:\n  ", "\nexamples:\n  ", *verb.shape))
    assert all(action.help for action in verb._actions)


@pytest.mark.parametrize("name", ALL)
def test_python_m_shows_the_same_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert capsys.readouterr().out == f"{ALL[name]().format_help()}\n"


@pytest.mark.parametrize("name", ALL)
def test_the_examples_of_a_help_are_understood(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_conf").mkdir()
    verb = ALL[name]()
    for example in "\n".join(verb.examples).replace("\\\n", " ").splitlines():
        words = shlex.split(example.partition(verb.prog.removeprefix("python "))[2])
        other = shlex.split(example)[1:]  # the next command of an example may be of another verb
        if "--keys" not in words:
            given = verb.read(words) if words else VERBS[other[0]]().read(other[1:])
            keys = {word.partition("=")[0] for word in getattr(given, "overrides", [])}
            assert keys <= known_keys()


@pytest.mark.parametrize(
    ("name", "words", "facts"),
    [
        ("evaluate", [], ["missing RUN_OR_CKPT ("]),
        ("evaluate", ["run", "overwrite=yes"], ["overwrite=yes: choose true or false"]),
        ("prepare", ["processes=0"], ["processes=0", "from 1"]),
        ("evaluate", ["split=val"], ["missing RUN_OR_CKPT"]),
        ("evaluate", ["run", "split=val", "split=test"], ["split= is given twice"]),
        ("combine", ["runs", "out="], ["out= has no value; write out=DIR, or leave it out"]),
        ("combine", ["runs", "out=new", "over="], ["over= has no value; write over=KEY,…, or leave it out"]),
        ("evaluate", ["run", "spilt=val"], ["spilt=val", "did you mean split=NAME?"]),
        ("evaluate", ["run", "--spilt=val"], ["--spilt", "did you mean split=NAME?"]),
        ("evaluate", ["run", "other"], ["other", "KEY=VALUE"]),
        ("evaluate", ["run", "--verbose"], ["--verbose", "no such option"]),
        ("predict", ["run"], ["missing IMAGE_OR_FOLDER"]),
        ("predict", ["run", "eyes", "overwrte=true"], ["did you mean overwrite=true?"]),
        ("predict", ["run", "eyes", "more"], ["more", "KEY=VALUE"]),
        ("predict", ["run", "/", "/tmp"], ["/tmp: must be KEY=VALUE, and one image or folder is read"]),
        ("prepare", ["proceses=2"], ["did you mean processes=N?"]),
        ("prepare", ["data"], ["data: must be KEY=VALUE"]),
        ("prepare", ["/"], ["/: must be KEY=VALUE; write data.root=/"]),
        ("prepare", ["out=x.html"], ["out=x.html: name a folder, not a file"]),
        ("report", ["runs", f"out={__file__}"], ["name a folder, not a file"]),
        ("evaluate", ["run", "split=validation"], ["split=validation: did you mean split=val?"]),
        ("evaluate", ["run", "split=dev"], ["split=dev: choose train, val or test"]),
        ("evaluate", ["run", "val"], ["val: must be KEY=VALUE; write split=val"]),
        ("train", ["seed", "=", "3"], ["seed: must be KEY=VALUE; write seed=3 without spaces"]),
        ("train", ["seed", "=3"], ["write seed=3 without spaces"]),
        ("train", ["seed=", "3"], ["write seed=3 without a space"]),
        ("train", ["seed=1,", "2"], ["write seed=1,2 without a space"]),
        ("train", ["data.labels={none:", "0,", "R1:", "1}", "seed=1"], ["write 'data.labels={none: 0, R1: 1}'"]),
        ("train", ["data.labels={none:", "0"], ["close the brace, and quote it"]),
        ("train", ["--epochs", "3"], ["--epochs: there is no such option; did you mean trainer.max_epochs?"]),
        ("train", ["--model.depth=34"], ["keys have no dashes: model.depth=34"]),
        ("train", ["--seed", "3"], ["keys have no dashes: seed=…"]),
        ("train", ["--experiment", "mine"], ["keys have no dashes: experiment=…"]),
        ("train", ["-m", "model.depth=18", "34"], ["write model.depth=18,34"]),
        ("train", ["model.depth", "18"], ["write model.depth=18"]),
        ("status", [], ["missing DIR"]),
        ("status", ["-x"], ["-x", "no such option"]),
        ("report", ["runs", "metrc=qwk"], ["did you mean metric=NAME?"]),
        ("report", ["runs", "--chek"], ["did you mean --check?"]),
        ("train", ["--multrun"], ["did you mean --multirun?"]),
        ("train", ["--tust=x"], ["did you mean trust=PACKAGE?"]),
        ("train", ["--key"], ["did you mean --keys?"]),
        ("train", ["model"], ["model: must be KEY=VALUE"]),
        ("train", ["--config-dir"], ["expected one argument"]),
        ("train", ["seed=1", "--config-dir", "myconf"], ["--config-dir myconf: no such folder"]),
        ("prepare", ["-cd", __file__], [f"--config-dir {__file__}: not a folder"]),
        ("predict", ["run", "a.jpg", "b.jpg"], ["b.jpg: must be", "put the images into one folder"]),
        ("train", ["--config-name", "mine"], ["--config-name: mine", "--config-dir DIR experiment=NAME"]),
        ("train", ["-cp=conf"], ["--config-path: conf", "--config-dir DIR experiment=NAME"]),
        ("train", ["--info", "seed=1"], ["invalid choice: 'seed=1'"]),
        ("train", ["--cfg", "jobs"], ["invalid choice: 'jobs'"]),
        ("job", [], ["missing RUN_DIR"]),
        ("job", ["run", "another"], ["another", "one RUN_DIR"]),
        ("job", ["run", "tust=mylab"], ["did you mean trust=PACKAGE?"]),
    ],
)
def test_wrong_usage_names_the_problem_and_the_help(name: str, words: list[str], facts: list[str]) -> None:
    message = refusal(ALL[name]().read, words)
    assert f"{ALL[name]().prog} --help" in message
    assert all(fact in message for fact in facts), message


@pytest.mark.parametrize(("file", "key"), [("config.yaml", "sweep_dir"), ("jobs.txt", "sweep_dir"), ("a", "data.root")])
def test_a_folder_alone_is_a_run_a_sweep_or_a_data_set(file: str, key: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    assert f"; write {key}={tmp_path} (" in refusal(VERBS["train"]().read, [str(tmp_path)])


@pytest.mark.parametrize("name", ALL)
def test_wrong_usage_is_exit_code_2(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, "--wrong") == 2
    assert capsys.readouterr().err.startswith("error: --wrong: ")


@pytest.mark.parametrize("words", [["run", "split=val", "data.root=x"], ["--split", "val", "run", "data.root=x"]])
def test_keys_with_values_are_options_or_overrides(words: list[str]) -> None:
    given = VERBS["evaluate"]().read(words)
    assert (given.RUN_OR_CKPT, given.split, given.overrides) == ("run", "val", ["data.root=x"])
    assert (given.out, given.overwrite, given.trust) == (None, False, [])


def test_values_keep_their_signs_and_words_their_order() -> None:
    given = VERBS["train"]().read(
        ["+a.b=c=d", "-m", "~data", "trust=x", "seed=0,1", "trust=y", "-cd", "conf", "model=own"]
    )
    assert given.overrides == ["+a.b=c=d", "~data", "seed=0,1", "model=own"]
    assert (given.multirun, given.config_dir, given.trust) == (True, "conf", ["x", "y"])


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["a=1", "-m", "b=2,3", "trust=x", "c=4"], ["a=1", "b=2,3", "c=4", "trust=x", "--multirun"]),
        (["a=1", "-cd", "conf", "--trust", "x", "~b"], ["a=1", "~b", "trust=x", "--config-dir=conf"]),
        (["--cfg", "job", "a=1", "--resolve"], ["a=1", "--cfg=job", "--resolve"]),
        (["a=1", "--info"], ["a=1", "--info=all"]),
    ],
)
def test_hydra_is_given_the_overrides_first_and_the_flags_last(words: list[str], arguments: list[str]) -> None:
    assert arguments_of_hydra(VERBS["train"]().read(words)) == arguments


def test_a_folder_may_be_named_like_an_option(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics=qwk").mkdir()
    assert VERBS["report"]().read(["metrics=qwk"]).DIR == ["metrics=qwk"]
    assert VERBS["evaluate"]().read(["runs/split=1/a"]).RUN_OR_CKPT == "runs/split=1/a"


def test_the_overview_has_every_verb_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert [name for names in TASKS.values() for name in names] == [*VERBS]
    for words in ([], ["--help"], ["help"]):
        lab.command(words)
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in VERBS)
        assert max(map(len, shown.splitlines())) <= 80


def test_help_takes_a_verb_or_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    lab.command(["help", "evaluate"])
    assert capsys.readouterr().out == f"{VERBS['evaluate']().format_help()}\n"
    lab.command(["help", "optim.lr"])
    assert capsys.readouterr().out.startswith("optim.lr\n")


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["qwk"], ["qwk", "    Quadratic weighted kappa: agreement beyond chance; far errors cost more (1:"]),
        (["metric"], ["metric=NAME of report", "qwk", "matthews", "referable_auroc"]),
        (["f1", "optim.lr"], ["F1", "    The harmonic mean of precision and recall.", "optim.lr"]),
        (["split"], ["split=NAME of evaluate", "data.split_seed"]),
        (["metric", "seed"], ["metric=NAME of report", "seed"]),
        (["kappa"], ["qwk"]),
        (["confidence", "interval"], ["95 %"]),
        (["majority", "baseline"], ["majority baseline"]),
        (["balanced", "accuracy"], ["balanced_accuracy"]),
        (["temperature", "scaling"], ["temperature"]),
        (["learning", "rate"], ["optim.lr", "    learning rate"]),
        (["mirror"], ["trainer.tta"]),
        (["planned"], ["planned (state of a job)", "    it belongs to the sweep, and has no folder yet"]),
        (["joblib"], ["hydra/launcher", "    joblib, slurm: run several jobs of a sweep in parallel"]),
    ],
)
def test_help_takes_a_score_a_term_or_an_option(
    words: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lab.command(["help", *words])
    shown = capsys.readouterr().out.splitlines()
    assert {*lines} <= {*shown}
    assert max(map(len, shown)) <= 80
    message = refusal(lab.command, ["help", "qwk", "nonsense"])
    assert message.startswith("nonsense: there is no such key, score or term")
    message = refusal(lab.command, ["help", "cross-validation"])
    assert message.endswith("did you mean data.folds?")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("data augmentation", {"data.rotation", "data.hue", "data.mixup"}),
        ("augment", {"data.rotation", "data.augment_classes"}),
        ("imbalance", {"data.sampling", "loss.class_weights"}),
        ("Early Stopping", {"trainer.early_stopping", "schedule.patience"}),
        ("fine-tuning", {"model.pretrained", "model.freeze"}),
    ],
)
def test_help_knows_topics(words: str, names: set[str]) -> None:
    for given in (words.split(), [words]):
        text = lab.help_on(given)
        assert names <= {line for line in text.splitlines() if not line.startswith(" ")}
        assert "data.balance" not in text


def test_topics_name_keys() -> None:
    assert {key for keys in TOPICS.values() for key in keys} <= {key.name for key in all_keys()}


def test_help_on_one_letter_does_not_list_all_keys_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    lab.command(["help", "n"])
    assert capsys.readouterr().out == "n\n    The number of runs (seeds) in a group.\n"


@pytest.mark.parametrize("words", [["--version"], ["report", "--version"]])
def test_the_version(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "__main__", *words) == 0
    assert capsys.readouterr().out == f"resnet-lab {version('resnet-lab')}\n"


def test_an_unknown_verb_is_one_line_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "__main__", "tarin", "seed=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no verb 'tarin'; did you mean train?" in line
    assert run(monkeypatch, "__main__", "job", "runs/one") == 2
    assert capsys.readouterr().err == "error: no verb 'job'; write python -m resnet_lab.job runs/one\n"


def test_a_verb_replaces_the_process_once_its_words_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.execv", lambda _, command: started.append(command[1:]))
    (tmp_path / "best.ckpt").touch()
    lab.command(["evaluate", "best.ckpt", "split=val"])
    assert "missing" in refusal(lab.command, ["evaluate"])
    assert "run: no such file" in refusal(lab.command, ["evaluate", "run"])
    assert "eyes does not exist" in refusal(lab.command, ["predict", "best.ckpt", "eyes"])
    (tmp_path / "predictions.csv").touch()
    assert "out=predictions.csv exists" in refusal(lab.command, ["predict", "best.ckpt", "."])
    assert started == [["-m", "resnet_lab.evaluate", "best.ckpt", "split=val"]]


@pytest.mark.parametrize(("watched", "shown"), [("out", "out"), ("err", "err"), ("out err", "out"), ("", "")])
def test_a_verb_with_long_imports_tells_a_terminal(
    watched: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.execv", lambda *_: None)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("out", "err"):
        monkeypatch.setattr(getattr(sys, f"std{name}"), "isatty", lambda name=name: name in watched)
    lab.command(["report", "runs"])
    printed = capsys.readouterr()
    assert [name for name in ("out", "err") if "loading the program" in getattr(printed, name)] == shown.split()


@pytest.mark.parametrize(("words", "begins"), [(["seed=1"], True), (["--cfg", "job"], False)])
def test_the_supervisor_of_train_begins_before_hydra_is_imported(
    words: list[str], begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["resnet-lab", "train", *words])
    monkeypatch.setattr(sys, "path", ["bin", *sys.path[1:]])
    monkeypatch.setattr("resnet_lab.supervisor.begin", lambda: done.append("supervisor"))
    monkeypatch.setattr("runpy.run_module", lambda module, **_: done.append((module, sys.argv[1:], sys.path[0])))
    lab.command(["train", *words])
    assert done == ["supervisor"] * begins + [("resnet_lab.train", words, str(tmp_path))]


def test_the_help_of_train_has_groups_and_defaults() -> None:
    text = VERBS["train"]().format_help()
    assert all(choice in text for group in CHOSEN for choice in choices_of(group))
    assert "(default: data/synthetic)" in text  # default of the default data set
    for option in ("--multirun", "--keys", "trust=PACKAGE", "sweep_dir"):
        assert option in text


def test_help_and_keys_import_nothing_heavy() -> None:
    code = (
        "import sys; from resnet_lab.__main__ import command; command(['help', 'train']); command(['help', 'data']);"
        "print(sorted({'torch', 'lightning', 'hydra', 'omegaconf', 'pandas', 'numpy', 'yaml'} & {*sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
