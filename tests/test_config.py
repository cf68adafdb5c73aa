"""The configuration: every file composes, every misspelled key is found, and jobs get readable names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_data import refusal
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from resnet_lab import trust
from resnet_lab.config import (
    build,
    check,
    check_overrides,
    compose_config,
    config_hash,
    job_name,
    name_unused_folder,
    register,
    signature,
)
from resnet_lab.errors import UserError
from resnet_lab.report.figures import CURVES, PICTURES
from resnet_lab.schema import FIGURES, conf_dir

CONF = conf_dir()
GROUPS = [
    f"{file.parent.name}={file.stem}"
    for file in sorted(CONF.glob("*/*.yaml"))
    if not file.stem.startswith("_") and file.stem != "own" and file.parent.name != "experiment"
]
EXPERIMENTS = sorted(file.stem for file in CONF.glob("experiment/[!_]*.yaml"))


def composed(*overrides: str):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"sweep_dir={Path('unused')}", *overrides])


@pytest.mark.parametrize("choice", GROUPS)
def test_every_group_file_composes_and_fits_its_target(choice: str) -> None:
    roots = ["data.root=somewhere"] if choice.startswith("data=") else []
    config = composed(choice, *roots)
    check(config)
    assert OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "demo" else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_every_experiment_composes_at_every_scale(name: str) -> None:
    scales = {"full": [], "reduced": ["scale=reduced"], "smoke": ["scale=smoke"]}  # full is the default
    configs = {scale: composed(f"experiment={name}", *chosen) for scale, chosen in scales.items()}
    for config in configs.values():
        check(config)
        assert config.name == name
    epochs = {scale: config.trainer.max_epochs for scale, config in configs.items()}
    assert epochs["reduced"] in (8, 10, 40)
    assert epochs["smoke"] == 1


def test_a_misspelled_key_of_a_partial_is_named_with_a_suggestion() -> None:
    config = composed("+optim.momentun=0.5")
    with pytest.raises(UserError, match=r"optim\.momentun: resnet_lab\.optim\.sgd .* did you mean optim\.momentum\?"):
        check(config)


def test_a_key_of_another_choice_names_experiment_files_and_hides_no_misspelled_key() -> None:
    left_over = (
        "model.depth: resnet_lab.models.example_cnn.example_cnn takes no such argument; it is a key of model=resnet, "
        "model=resnet_cifar, model=resnet_wide; if an experiment file sets it, remove it there, or add '~model.depth' "
        "to the command line"
    )
    assert refusal(check, composed("model=example_cnn", "+model.depth=18")) == left_over
    message = refusal(check, composed("model=example_cnn", "+model.depth=18", "+model.hiden=3"))
    misspelled = (
        "model.hiden: resnet_lab.models.example_cnn.example_cnn takes no such argument; did you mean model.hidden?"
    )
    assert message == f"{left_over}; and {misspelled}"
    assert "experiment" not in refusal(check, composed("+model.dpth=18"))
    check(composed("model=example_cnn", "+model.depth=18", "~model.depth"))


def test_a_misspelled_key_in_an_experiment_file_is_named() -> None:
    config = composed()
    with open_dict(config):  # as Hydra merges the file of an experiment
        config.model.dpeth = 18
    with pytest.raises(UserError, match=r"model\.dpeth: .* did you mean model\.depth\?"):
        check(config)


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("+trainer.max_epoch=50", "trainer.max_epoch", "trainer.max_epochs"),
        ("++trainer.anything=4", "trainer.anything", "train --keys"),
        ("+anything=1", "anything", "train --keys"),
        ("+sed=1", "sed", "seed"),
        ("+lr=0.1", "lr", "optim.lr"),
        ("+data.rotaton=1", "data.rotaton", "data.rotation"),
        ("+data.color_jitter=0.2", "data.color_jitter", "data.brightness, data.contrast, data.saturation, data.hue"),
        ("+model.num_classes=7", "model.num_classes", "the job sets it"),
        ("+model.frezee=[fc]", "model.frezee", "model.freeze"),
        ("+optim.backbone_lr_faktor=0.1", "optim.backbone_lr_faktor", "optim.backbone_lr_factor"),
        ("+fast_dev_run=true", "fast_dev_run", "scale=smoke"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run", "scale=smoke"),
    ],
)
def test_an_unused_key_is_refused(override: str, key: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: .*{meant}"):
        check(composed(override))


@pytest.mark.parametrize("override", ["trainer.max_epoch=5", "lr=3", "data.color_jitter=0.1", "model.dpth=3"])
def test_an_unused_key_without_a_plus_is_refused_too(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=f"^{key}: there is no such key; (did you mean|it is now) "):
        compose_config([override])


@pytest.mark.parametrize("override", ["+hydra.foo=1", "++hydra.job.naem=x", "+data=retinopathy", "+experiment=demo"])
def test_keys_that_hydra_would_add_without_effect_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"has no such key|has a default already"):
        check_overrides(["model.depth=18", override])
    check_overrides(["+optim.lr=1", "hydra.run.dir=x", "+hydra.job.env_set.A=1", "-m"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.tta=[flips,dihedral]",
            "trainer.tta=['flips', 'dihedral']: must be none, flips or dihedral; a sweep needs -m and values without "
            "brackets: -m trainer.tta=flips,dihedral",
        ),
        ("trainer.tta={a: 1}", "trainer.tta={'a': 1}: must be none, flips or dihedral"),
        ("on_failed=null", "on_failed=null: must be retry, skip or stop"),
        ("figures={a: 1}", "figures={'a': 1}: must be a list [text, …]"),
        (
            "name=[a]",
            "name=['a']: must be text that is not empty; a sweep needs -m and values without brackets: -m name=a",
        ),
    ],
)
def test_a_value_that_hydra_cannot_merge_names_what_the_key_allows(override: str, message: str) -> None:
    assert refusal(compose_config, [override]) == message


def test_lists_and_null_of_the_right_type_are_merged() -> None:
    check_overrides(["-m", "trainer.tta=none,flips", "trainer.max_epochs=[${seed}]", "data.scale=[1,2]"])
    config = compose_config(["trainer.devices=[0,1]", "figures=[loss,'recall']", "trainer.profiler=null", "figures=[]"])
    assert (config.trainer.devices, config.figures, config.trainer.profiler) == ([0, 1], [], None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels=null", "labels=null: must be a mapping"),
        ("labels={model.depth: null}", "labels: model.depth: null: must be a mapping"),
        ("labels={model.depth: {18: true}}", "labels: model.depth: 18: true: must be text"),
        ("callbacks=null", "callbacks=null: must be a mapping"),
        ("model._target_=true", "model._target_=true: must be text"),
    ],
)
def test_null_and_booleans_are_shown_as_typed(override: str, message: str) -> None:
    key, _, value = override.partition("=")
    config = composed()
    OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    assert refusal(check, config).startswith(message)


@pytest.mark.parametrize("override", ["+data._partial_=true", "+model._partial_=true", "optim._partial_=false"])
def test_partial_is_refused_in_the_wrong_place(override: str) -> None:
    with pytest.raises(UserError, match="_partial_="):
        check(composed(override))


def test_a_folder_of_which_no_file_is_chosen_is_named(tmp_path, capsys) -> None:
    for name in ("data/a.yaml", "experiment/b/mine.yaml", "pictures/c.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "experiment" / "my own.yaml").touch()
    for words in (
        ["data=a"],
        ["data=a.yaml"],
        ["experiment=b/mine"],
        ["experiment=demo,b/mine"],
        ["experiment='my own'"],
    ):
        name_unused_folder(str(tmp_path), words)
    name_unused_folder("", ["seed=1"])
    name_unused_folder(str(tmp_path / "pictures"), ["seed=1"])  # without groups
    assert capsys.readouterr().err == ""
    name_unused_folder(str(tmp_path), ["seed=1", "data=retinopathy"])
    line = f"--config-dir {tmp_path} has no effect because no override chooses one of its files, such as data=a\n"
    assert capsys.readouterr().err == line


def test_a_negative_number_of_epochs_is_refused() -> None:
    check(composed("data.root=x", "trainer.max_epochs=0"))
    with pytest.raises(UserError, match=r"trainer\.max_epochs=-1: must be a whole number from 0"):
        check(composed("data.root=x", "trainer.max_epochs=-1"))


def test_a_removed_top_level_key_is_named() -> None:
    with pytest.raises(UserError, match="seed is missing"):
        check(composed("~seed"))


def test_a_missing_key_is_named() -> None:
    config = composed()
    with open_dict(config):
        del config.optim.lr
    with pytest.raises(UserError, match=r"optim\.lr is missing"):
        check(config)


@pytest.mark.parametrize("key", ["model.freeze", "model.unfreeze_at_epoch", "optim.backbone_lr_factor", "loss.teacher"])
def test_the_job_s_own_keys_of_a_group_exist_for_every_target(key: str) -> None:
    group, _, name = key.partition(".")
    config = composed()
    check(config)
    with open_dict(config):
        del config[group][name]
    with pytest.raises(UserError, match=rf"{group}\.{name} is missing; every run needs it"):
        check(config)


def test_the_job_s_own_keys_do_not_reach_the_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "takes_freeze.py").write_text("def net(num_classes, freeze): ...")
    config = composed("model=example_cnn", "model.freeze=[0]", "model.unfreeze_at_epoch=2")
    model: Any = OmegaConf.to_container(config.model)
    assert build("model", model, num_classes=3)[-1].out_features == 3
    trust.trust(["model:takes_freeze.net"])
    with open_dict(config):
        config.model = {"_target_": "takes_freeze.net", "freeze": None, "unfreeze_at_epoch": None}
    with pytest.raises(UserError, match=r"takes_freeze\.net: the job uses the key freeze; rename that argument"):
        check(config, importing=True)


def test_layers_are_not_followed_in_a_compiled_network() -> None:
    check(composed("trainer.compile=max-autotune"))
    with pytest.raises(UserError, match=r"^follow_layers=true with trainer\.compile"):
        check(composed("trainer.compile=true", "follow_layers=true"))


def test_a_mandatory_key_that_is_not_set_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.root is not set; give data\.root=…"):
        check(composed("data=retinopathy"))


def test_a_target_that_does_not_exist_is_named() -> None:
    config = composed()
    config.model._target_ = "resnet_lab.models.resnet.resnext"
    with pytest.raises(UserError, match=r"resnet_lab\.models\.resnet defines no resnext"):
        check(config)
    config.model._target_ = "resnet_lab.model.resnet"
    with pytest.raises(UserError, match=r"there is no module resnet_lab\.model"):
        check(config)


def test_signature_reads_functions_and_inherited_dataclasses() -> None:
    required, optional = signature("resnet_lab.optim.sgd")
    assert required == {"params", "lr", "momentum", "weight_decay", "nesterov"}
    assert optional == set()
    required, _ = signature("resnet_lab.data.retinopathy.Retinopathy")
    assert {"root", "image_column", "image_size", "val_fraction"} <= required


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys; from resnet_lab.config import signature; signature('resnet_lab.models.resnet.resnet'); "
        "import resnet_lab.train; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_job_names_are_readable_and_do_not_collide() -> None:
    assert job_name("model.depth=18,model.pretrained=none,seed=0") == "depth-18_pretrained-none_seed-0"
    assert job_name("optim.lr=0.1,schedule.lr=2") == "optim.lr-0.1_schedule.lr-2"
    long = job_name("model.pretrained=runs/a/depth-18"), job_name("model.pretrained=runs/b/depth-18")
    assert all(name.startswith("pretrained-depth-18~") for name in long)
    assert long[0] != long[1]
    assert job_name("data.mean=[0.1,0.2,0.3],seed=1").endswith("_seed-1")
    for name in (*long, job_name("data.mean=[0.1,0.2,0.3]"), job_name("loss.x=" + "y" * 300)):
        assert len(name) <= 150
        assert not set(name) & set("=,/[]{} $")


def test_the_hash_ignores_only_paths_and_bookkeeping() -> None:
    def plain(*overrides: str) -> dict:
        return OmegaConf.to_container(composed(*overrides), resolve=True)

    reference = config_hash(plain())
    assert config_hash(plain("name=other", "data.root=elsewhere", "trainer.progress_bar=false")) == reference
    assert config_hash(plain("seed=1")) != reference
    assert config_hash(plain("data.image_size=32")) != reference


def test_the_launcher_of_slurm_queues_a_job_again_and_again() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        launcher = compose("config", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.max_num_timeout, launcher.timeout_min) == (1, 100, 1440)


def test_the_name_of_a_job_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = f"data.root={tmp_path / 'eyes'},seed=0"
    monkeypatch.chdir(tmp_path)
    here = job_name(overrides)
    monkeypatch.chdir("/")
    assert job_name(overrides) == here
    monkeypatch.chdir(tmp_path)
    assert job_name("data.root=eyes/,seed=0") == job_name("data.root='eyes',seed=0") == "root-eyes_seed-0"
    (tmp_path / "sweep" / here).mkdir(parents=True)
    assert job_name("data.root=./eyes,seed=0", str(tmp_path / "sweep")) == here


def test_unknown_pictures_are_refused_before_the_first_job() -> None:
    assert (*CURVES, *PICTURES) == FIGURES
    assert len(FIGURES) == 17
    config = compose_config(["figures=[recal]"])
    with pytest.raises(UserError, match=r"figures: .* recal; did you mean recall"):
        check(config)
