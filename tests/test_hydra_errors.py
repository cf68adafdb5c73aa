"""An error of Hydra is one line that names the key, group or file, and the remedy."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest
from fake_data import refusal

from resnet_lab.config import check_overrides, compose_config, composed
from resnet_lab.hydra_errors import one_line
from resnet_lab.train import main

OWN = "# @package _global_\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with experiments of a user, photographs in class folders, and photographs with a CSV."""
    monkeypatch.chdir(tmp_path)
    for name in ("my conf/experiment", "photos/healthy", "labeled"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "labeled" / "labels.csv").touch()
    (tmp_path / "my conf" / "experiment" / "mine.yaml").write_text(OWN)
    (tmp_path / "my conf" / "experiment" / "short.yml").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["data=photos"], "did you mean data=class_folders data.root=photos?"),
        (["data=./labeled"], "did you mean data=retinopathy data.root=./labeled?"),
        (["data=nowhere"], "choose cifar10, class_folders, flowers102"),
        (["model=resnet50"], "did you mean model=resnet model.depth=50?"),
        (["model=resnet56"], "did you mean model=resnet_cifar model.depth=56?"),
        (["model=wide_resnet50_2"], "did you mean model=resnet_wide model.depth=50?"),
        (["model=vgg16"], "did you mean model=own model._target_=torchvision.models.vgg16?"),
        (["optim=adam"], "did you mean optim=own optim._target_=torch.optim.Adam?; choose adamw, nadam, own, sgd"),
        (["callbacks=mylab.Norm"], "did you mean +callbacks.mine._target_=mylab.Norm?"),
        (["model=mylab.Net"], "did you mean model=own model._target_=mylab.Net?"),
        (["optim=sdg"], "did you mean optim=sgd?; choose adamw"),
        (["experiment=demo_sorce"], "there is no such choice; did you mean experiment=demo_source?; --config-dir"),
        (["+model.depth=18"], "model.depth: the key exists; write it without the plus sign"),
        (["experiment=mine"], "did you mean --config-dir 'my conf' experiment=mine?"),
        (["experiment=mine.yaml"], "did you mean --config-dir 'my conf' experiment=mine?"),
        (["experiment='my conf/experiment/mine.yaml'"], "did you mean --config-dir 'my conf' experiment=mine?"),
        (["experiment=short"], "did you mean my conf/experiment/short.yml, which needs the suffix .yaml?"),
        (["experiment=other"], "--config-dir DIR reads your own DIR/experiment/other.yaml"),
        (["hydra/launcher=slrm"], "hydra/launcher=slrm: there is no such choice; did you mean hydra/launcher=slurm?"),
    ],
)
def test_a_choice_that_does_not_exist_has_a_hint(overrides: list[str], hint: str, folder: Path) -> None:
    message = refusal(compose_config, overrides)
    assert hint in message
    assert ", _" not in message
    assert "choose _" not in message


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["loss=own", "loss._target_=mylab.Focal", "loss.gamma=1"], "write +loss.gamma=1 to pass it to mylab.Focal"),
        (["loss=own", "loss.gamma=1.0"], "write +loss.gamma=1.0 to pass it to the part"),
        (["loss.gamma=1.0"], "did you mean schedule.gamma?"),
        (["model=own", "model._target_=mylab.Net", "model.width=2"], "write +model.width=2 to pass it to mylab.Net"),
        (["optim=own", "optim._target_=a.B", "optim.x=2", "optim.y=3"], "write +optim.x=2 to pass it to a.B"),
        (["+callbacks.stop._target_=a.B", "callbacks.stop.x=2"], "write +callbacks.stop.x=2 to pass it to a.B"),
        (["callbacks.stop._target_=a.B"], "write +callbacks.stop._target_=a.B to add it"),
        (["model=own", "model._target_=mylab.Net", "model.freezes=stem"], "no such key; did you mean model.freeze?"),
        (["callbacks.ema.decay=0.9"], "it is a key of callbacks=ema"),
    ],
)
def test_a_key_of_a_part_from_outside_needs_a_plus(overrides: list[str], hint: str) -> None:
    message = refusal(compose_config, overrides)
    assert hint in message
    assert message.startswith(f"{overrides[-1].partition('=')[0]}: ") or "optim.x: " in message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("defaults: [override /data: synthetic]\n", "first line must be `# @package _global_`"),
        ("trainer: {max_epochs: 1}\n", "first line must be `# @package _global_`"),
        (f"{OWN}trainer: {{max_epochs: two}}\n", "wrong.yaml: trainer.max_epochs: must be a whole number, not two"),
        (f"{OWN}seed: [1, 2]\n", "a whole number, not [1, 2]; write the values of a sweep in hydra.sweeper.params"),
        (f"{OWN}defaults: [data: retinopathy]\n", "write `override /data: retinopathy`"),
        (f"{OWN}defaults: [/data: retinopathy]\n", "write `override /data: retinopathy`"),
        (f"{OWN}defaults: [override data: retinopathy]\n", "write `override /data: …`"),
        (f"{OWN}defaults: [override /data: eyes]\n", "data=eyes: there is no such choice; choose cifar10"),
        (f"{OWN}defaults: [base]\n", "experiment/wrong.yaml: experiment=base: there is no such choice; "),
        ("# @package _globl_\nname: a\n", "first line must be `# @package _global_`"),
        ("\ufeff# @package _global_\nname: a\n", "my conf/experiment/wrong.yaml: the file is not UTF-8 without BOM"),
        (f"{OWN}- a\n", "experiment/wrong.yaml: it contains a list; write `key: value` lines"),
        (f"{OWN}learning_rate: 1\n", "experiment/wrong.yaml: learning_rate: there is no such key; did you mean"),
        (f"{OWN}optim: {{lr: '${{optim.lrr}}'}}\n", "optim.lr: ${optim.lrr}: optim.lrr: there is no such key; did you"),
        (f"{OWN}optim: {{lr: '${{seed'}}\n", "optim.lr: ${seed: write ${KEY} with a closing brace"),
        (f"{OWN}trainer:\n  max_epochs:3\n", "wrong.yaml: trainer: max_epochs:3: must be a group of keys"),
        (f"{OWN}defaults:\n  override /optim: adamw\n", "experiment/wrong.yaml: defaults must be a list"),
        (f"{OWN}data:\n  root:Photos\n", "experiment/wrong.yaml: data: root:Photos: must be a group of keys"),
        (f"{OWN}data.root: Photos\n", "wrong.yaml: data.root: write `data:`, and below it, indented, `root: Photos`"),
        (
            f"{OWN}model: resnet_cifar\n",
            "wrong.yaml: model: resnet_cifar: a choice belongs in `defaults`; write `- ove",
        ),
        (f"{OWN}data:\n  # root: Photos\n", "experiment/wrong.yaml: data: nothing stands below it; remove the line"),
        (
            f"{OWN}model: resnet18\n",
            "model: resnet18: there is no such choice; did you mean `- override /model: resnet`",
        ),
        (f"{OWN}optim: {{lr: 1,5e-3}}\n", "wrong.yaml: optim.lr: a comma separates keys here; a decimal"),
        (f"{OWN}optim: {{lr: 0,1, momentum: 0.5}}\n", "wrong.yaml: optim.lr: a comma separates keys here; a decimal"),
    ],
)
def test_a_mistake_in_an_experiment_file_has_its_remedy(text: str, hint: str, folder: Path) -> None:
    (folder / "my conf" / "experiment" / "wrong.yaml").write_text(text)
    assert hint in refusal(lambda: composed(["experiment=wrong"], config_dir="my conf"))


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("data.root=bücher/a", """needs its own quotes: 'data.root="bücher/a"'"""),
        ("data.root=a&b", """'data.root="a&b"'"""),
        ("data.class_names=[no DR, mäßig]", """own quotes: 'data.class_names=[no DR, "mäßig"]'"""),
        ("data.splits={train: über}", """own quotes: 'data.splits={train: "über"}'"""),
        ("data.labels={no: 0, mäßig: 2}", "write it in an experiment file: data: {labels: {no: 0, mäßig: 2}}"),
        ("+data.labels={mäßig: 2}", "write it in an experiment file: data: {labels: {mäßig: 2}}"),
        ("data.labels={none=0}", "write a list as [a,b], and a mapping as {a: 0, b: 1}"),
        ('data.labels={"mäßig": 2}', 'write it in an experiment file: data: {labels: {"mäßig": 2}}'),
        ("data.class_names=[no DR", "a bracket is not closed"),
        ("model.depth = 18", "write model.depth=18 without spaces"),
        ("model.depth=18,34,", "the comma at the end has no value after it"),
        ("model.depth", "must be KEY=VALUE"),
        ("shuffle(seed=0,1)", "write seed=shuffle(0,1)"),
    ],
)
def test_an_override_that_cannot_be_read_has_its_remedy(typed: str, hint: str) -> None:
    message = refusal(compose_config, [typed])
    assert message.startswith(f"{typed}: ")
    assert message.endswith(hint)


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        ("seed=abc", "must be a whole number, not abc"),
        ("seed=0..2", "must be a whole number, not 0..2; the values 0, 1, 2 of a sweep are range(0,3), with -m"),
        ("keep_last=maybe", "must be true or false, not maybe"),
        ("name=null", "must not be null"),
        ("figures=accuracy", "must be a list, in brackets"),
    ],
)
def test_a_value_of_a_wrong_type_has_its_rule(typed: str, rule: str) -> None:
    assert refusal(compose_config, [typed]) == f"{typed}: {rule}"


@pytest.mark.parametrize(
    ("text", "overrides", "start"),
    [
        ("data: {imagesize: 3}", [], "experiment/wrong.yaml: data.imagesize: "),
        ("data: {image_size: big}", [], "experiment/wrong.yaml: data.image_size=big: "),
        ("data: {image_size: 8}", ["data.image_size=big"], "data.image_size=big: "),
        ("labels: {model.dept: {a: b}}", [], "experiment/wrong.yaml: labels: model.dept: "),
        ("{seed: 1, figures: [loss]}", ["data.rotation=-1"], "data.rotation=-1: "),
    ],
)
def test_a_wrong_value_of_a_file_is_named_with_it(
    text: str, overrides: list[str], start: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    (folder / "my conf" / "experiment" / "wrong.yaml").write_text(f"{OWN}{text}\n")
    given = ["experiment=wrong", *overrides]
    assert refusal(lambda: composed(given, config_dir="my conf")).startswith(start)
    monkeypatch.setattr(sys, "argv", ["train", "--config-dir", "my conf", *given, "--cfg", "job"])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: {start}")


def test_a_full_disk_is_named_by_the_folder_of_the_command() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert one_line(full, ["seed=1", "sweep_dir=small/new"]) == "small/new: No space left on device; free some space"
    assert one_line(full) == "disk: No space left on device; free some space"


def test_a_value_with_quotes_of_its_own_is_read() -> None:
    assert compose_config(['data.root="bücher/a"']).data.root == "bücher/a"


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["-m", "seed=0", "hydra.sweep.subdir=a"], "hydra.sweep.subdir=a: a job is named by its overrides"),
        (
            ["-m", "experiment=numbered"],
            "experiment/numbered.yaml: hydra.sweep.subdir=${hydra.job.num}: a job is named",
        ),
        (["hydra.job.chdir=True"], "hydra.job.chdir=True: jobs stay in the folder of the command"),
        (["debug=fast"], "debug=fast: there is no such key; for a group of your own YAML files, write +debug=fast"),
        (["experiment=[a,b]"], "experiment=[a,b]: takes one name; a sweep over several is -m experiment=a,b"),
        (["hydra.searchpath=[file://x]"], "hydra.searchpath=[file://x]: --config-dir names a folder, too"),
        (["-m", "experiment=axes", "hydra/launcher=slurm"], "hydra/launcher=slurm: this machine has no srun"),
        (["-m", "experiment=axes", "hydra/sweeper=ax"], "hydra/sweeper=ax: there is no such choice"),
    ],
)
def test_keys_of_hydra_that_have_no_effect_are_refused(
    words: list[str], start: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hydra = {"numbered": 'sweep: {subdir: "${hydra.job.num}"}', "axes": 'sweeper: {params: {seed: "0,1"}}'}
    for name, keys in hydra.items():
        (folder / "my conf" / "experiment" / f"{name}.yaml").write_text(f"{OWN}hydra: {{{keys}}}\n")
    (folder / "my conf" / "debug").mkdir()
    (folder / "my conf" / "debug" / "fast.yaml").write_text(f"{OWN}seed: 1\n")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["train", "--config-dir", "my conf", *words, "start=false"])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: {start}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=1", "data.rotation=5", "data.rotation=5", "seed=2"], "seed=1 has no effect because seed=2 comes later"),
        (["hydra.sweep.dir=a"], "hydra.sweep.dir=a has no effect without a sweep; write sweep_dir=a"),
        (["hydra.run.dir=a", "-m"], "hydra.run.dir=a has no effect in a sweep; write sweep_dir=a"),
        (["hydra.run.dir=a"], ""),
        (["hydra.job.chdir=false"], ""),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib has no effect without a sweep (-m)"),
        (["hydra/launcher=joblib", "--multirun"], ""),
    ],
)
def test_overrides_without_effect_are_named(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_overrides(words)
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == bool(line)


@pytest.mark.parametrize("word", ["launcher=slurm", "hydra.launcher=slurm"])
def test_a_launcher_is_a_group_of_hydra(word: str) -> None:
    assert refusal(compose_config, [word]).endswith("; write hydra/launcher=slurm")
    assert "-p hydra.launcher lists" in refusal(compose_config, ["hydra/launcher=slurm", "hydra.launcher.partiton=gpu"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["model.depth=18,34"], "a list is model.depth=[18,34]"),
        (["model.pretrained=none,imagenet"], "a list is model.pretrained=[none,imagenet]"),
    ],
)
def test_several_values_without_a_sweep_name_the_flag(
    words: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert main() == 2
    shown = f"{words[0]}: several values are a sweep, which needs -m: resnet-lab train -m …; {hint}"
    assert capsys.readouterr().err == f"error: {shown}\n"
    assert "several values are a sweep" in refusal(compose_config, words)


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("name: a: b", 2, "quote a text that contains a colon"),
        ("data:\n  root:photographs\n  name: b", 4, "put a space after the colon of each key"),
        ("trainer:\n\tmax_epochs: 1", 3, "a tab; indent with spaces"),
        ("trainer:\n  max_epochs: 1\n devices: 1", 4, "the indentation differs from the lines above"),
        ("name: 'mine\nseed: 1", 2, "a quote is not closed"),
        ("model: {depth: 18\nseed: 1", 2, "a bracket is not closed; add `}`"),
        ("data: {splits: [1\nseed: 1", 2, "a bracket is not closed; add `]`"),
        ("seed: 1\nname: a\nseed: 2", 4, "the key seed occurs twice; keep one"),
        ("name: @mine", 2, "write the text in 'single quotes'"),
        ("name: *mine", 2, "write the text in 'single quotes'"),
        (r'name: "C:\data"', 2, "write the text in 'single quotes'"),
        ("name: a\n---\nseed: 1", 3, "a line `---` begins a second document; remove it"),
    ],
)
def test_a_yaml_fault_is_named_with_line_and_remedy(text: str, line: int, hint: str, folder: Path) -> None:
    (folder / "my conf" / "experiment" / "wrong.yaml").write_text(f"{OWN}{text}\n")
    message = refusal(lambda: compose_config(["experiment=wrong"], config_dir="my conf"))
    assert message.startswith(f"my conf/experiment/wrong.yaml: line {line}: ")
    assert hint in message
    assert not re.search("block|scalar|scanning|mapping", message)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"name: a\x00\n", "a control character; remove it"),
        ("name: größe\n".encode("latin-1"), "the file is not UTF-8 without BOM; save it so in your editor"),
        ("name: größe\n".encode("utf-16"), "the file is not UTF-8 without BOM; save it so in your editor"),
    ],
)
def test_a_yaml_file_that_is_no_text_is_named(content: bytes, hint: str, folder: Path) -> None:
    (folder / "my conf" / "experiment" / "wrong.yaml").write_bytes(OWN.encode() + content)
    message = refusal(lambda: compose_config(["experiment=wrong"], config_dir="my conf"))
    assert message == f"my conf/experiment/wrong.yaml: {hint}"


def test_a_folder_of_yaml_files_may_have_any_name(folder: Path) -> None:
    (folder / "my conf").rename(folder / "it's, (1)")
    (folder / "it's, (1)" / "experiment" / "mine.yaml").write_text(f"{OWN}seed: 7\n")
    assert compose_config(["experiment=mine"], config_dir="it's, (1)").seed == 7
    assert refusal(lambda: compose_config([], "nowhere")) == "config_dir=nowhere: no such folder"
    assert refusal(compose_config, ["--config-dir=x"]).startswith("--config-dir=x: flags are not overrides")
