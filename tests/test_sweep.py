"""A sweep checks the requirements of all jobs before the first job."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from fake_data import refusal, web, write_studies
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from resnet_lab import preflight as command
from resnet_lab import sweep
from resnet_lab.axes import hashes_in, note_jobs
from resnet_lab.compatibility import SCHEMA_VERSION
from resnet_lab.config import build, compose_config, register
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.prepared import prepare
from resnet_lab.data.splits import fingerprints
from resnet_lab.errors import UserError
from resnet_lab.launch import create_run, refuse_mixture
from resnet_lab.models.resnet import resnet
from resnet_lab.run_folder import Busy, RunFolder, list_jobs
from resnet_lab.schema import conf_dir
from resnet_lab.sweep import jobs_of
from resnet_lab.train import main
from resnet_lab.training import check_network

DATA = ["data=retinopathy", "data.root=somewhere"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def grid(*arguments: str) -> set[tuple[int, str]]:
    return {(job["model"]["depth"], job["model"]["pretrained"]) for job in jobs_of(["-m", *arguments])}


def test_a_sweep_into_the_folder_of_a_run_is_refused_before_it_writes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    message = refusal(jobs_of, ["-m", "model.depth=18,34", f"sweep_dir={tmp_path}"])
    assert message == f"{tmp_path} contains a single run; choose another sweep_dir"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_a_single_run_into_a_folder_of_runs_is_refused(tmp_path: Path) -> None:
    for file in (".hydra/config.yaml", "conf/config.yaml", "first/config.yaml", "first/status.json"):
        refuse_mixture(RunFolder(tmp_path), sweep=False)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    message = refusal(refuse_mixture, RunFolder(tmp_path), False)
    assert message.startswith(f"{tmp_path} contains other runs, such as first; give the command its own folder")
    refuse_mixture(RunFolder(tmp_path / "first"), sweep=False)  # it is resumed


def test_jobs_that_resume_none_of_the_earlier_ones_are_pointed_out(tmp_path: Path) -> None:
    note_jobs(tmp_path, {f"depth-18_seed-{seed}": ["model.depth=18", f"seed={seed}"] for seed in (0, 1)})
    assert sweep._beside({"depth-18_seed-1": ["model.depth=18", "seed=1"]}, tmp_path, []) == ""
    assert sweep._beside({"depth-34_seed-0": ["model.depth=34", "seed=0"]}, tmp_path, []) == ""
    assert sweep._beside({"depth-18": ["model.depth=18", "sweep_dir=x"]}, tmp_path, []) == (
        f"{tmp_path}: 1 new job beside 2 earlier ones: this command does not override seed; "
        "to resume the earlier ones, repeat their command"
    )
    longer = {f"lr-1_depth-18_seed-{seed}": ["optim.lr=1", "model.depth=18", f"seed={seed}"] for seed in (0, 1)}
    assert "2 new jobs beside 2 earlier ones: this command overrides optim.lr; " in sweep._beside(longer, tmp_path, [])
    assert sweep._beside(longer, tmp_path, ["depth-18"]) == ""
    assert sweep._beside(longer, tmp_path / "new", []) == ""


def test_without_slurm_no_sweep_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["-m", "seed=0,1", "hydra/launcher=slurm"]
    assert refusal(jobs_of, words).startswith("hydra/launcher=slurm: this machine has no srun; start the command on a")
    (tmp_path / "srun").touch(mode=0o755)
    assert len(jobs_of(words)) == 1


@pytest.mark.slow
def test_jobs_are_those_of_the_grid_without_seeds() -> None:
    assert jobs_of(["model.depth=18,34"]) == []  # no sweep
    assert len(jobs_of(["model.depth=18,34", "-m", "optim.lr=1,2"])) == 4
    assert jobs_of(["-m", "model.depth=18,34", "--cfg", "job"]) == []
    assert "leave out -m" in refusal(sweep.preflight, ["-m", "model.depth=18,34", "--cfg", "job"])
    assert grid("model.depth=18,34", "model.pretrained=none,imagenet", "seed=0,1,2") == {
        (18, "none"),
        (18, "imagenet"),
        (34, "none"),
        (34, "imagenet"),
    }
    assert len(jobs_of(["-m", "model.depth=18,34", "seed=range(5)"])) == 2


@pytest.mark.slow
def test_the_command_line_wins_over_the_grid_of_the_experiment() -> None:
    experiment = "experiment=dr_depth_pretraining"
    assert grid(experiment) == {(18, "none"), (18, "imagenet"), (50, "none"), (50, "imagenet")}
    assert grid(experiment, "model.pretrained=none") == {(18, "none"), (50, "none")}
    assert grid(experiment, "model.depth=34,18", "model.pretrained=a.pt") == {(34, "a.pt"), (18, "a.pt")}


@pytest.mark.slow
def test_jobs_composed_together_are_those_that_hydra_composes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [
        "-m",
        "sweep_dir=here",
        "optim=sgd,adamw",
        "optim.lr=0.1,0.2",
        "data.scale=[1,1],[0.9,1.1]",
        "model.depth=18",
    ]
    together = jobs_of(grid)
    assert len(together) == 8
    monkeypatch.setattr(sweep, "_compositions", lambda jobs, path: [compose("config", [*job, *path]) for job in jobs])
    assert together == jobs_of(grid)
    assert [(job["optim"]["lr"], job["data"]["scale"]) for job in together[:3]] == [
        (0.1, [1.0, 1.0]),
        (0.1, [0.9, 1.1]),
        (0.2, [1.0, 1.0]),
    ]


def test_a_job_with_a_wrong_value_stops_the_sweep_with_the_name_of_its_key() -> None:
    with pytest.raises(Exception, match=r"optim\.nesterov"):
        jobs_of(["-m", "optim.nesterov=true,perhaps"])
    assert refusal(jobs_of, ["-m", "optim.lr=0.1,-1"]).startswith("optim.lr=-1")


def test_jobs_are_listed_in_the_order_in_which_hydra_starts_them() -> None:
    parsed = OverridesParser.create().parse_overrides(["b=3", "a=1,2"])
    jobs = sweep._grid(parsed, {"a": "7,8", "c": "5,6"})
    assert jobs == [
        tuple(job)
        for job in BasicSweeper.split_arguments(
            OverridesParser.create().parse_overrides(["a=7,8", "c=5,6", "b=3", "a=1,2"]), None
        )[0]
    ]
    assert jobs[0] == ("a=1", "c=5", "b=3")


@pytest.mark.parametrize("key", ["data.num_workers", "keep_last"])
def test_keys_that_do_not_name_a_job_are_not_axes(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} cannot be swept"):
        jobs_of(["-m", f"{key}=0,1", "seed=0"])


def test_a_sweep_has_one_data_set() -> None:
    with pytest.raises(UserError, match=r"data\.root cannot be swept"):
        jobs_of(["-m", "data.root=a,b", "seed=0"])


def test_an_axis_lists_its_values() -> None:
    message = refusal(jobs_of, ["-m", "optim=glob(*,exclude=own)"])
    assert message == "optim: glob(…) is not supported; list the values, as in optim=adamw,nadam,sgd"
    message = refusal(jobs_of, ["-m", "optim.lr=interval(0.1,0.2)"])
    assert message.startswith("optim.lr: Hydra's basic sweeper needs values, not an interval")
    assert len(jobs_of(["-m", "optim=adamw,sgd"])) == 2


def test_user_experiments_are_found(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  depth: 50\n")
    jobs = jobs_of(["--config-dir", str(tmp_path), "-m", "experiment=mine", "optim.lr=0.1,0.2"])
    assert [(job["model"]["depth"], job["optim"]["lr"]) for job in jobs] == [(50, 0.1), (50, 0.2)]


def test_an_experiment_file_edited_after_a_job_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = own_experiment(tmp_path, monkeypatch)
    file.write_text("# @package _global_\nmodel:\n  depth: 34\n")
    arguments = ["--config-dir", "conf", "-m", "experiment=mine", "seed=0,1", "sweep_dir=runs", "hydra/launcher=joblib"]
    (first,) = jobs_of(arguments)
    for seed, state in ((0, "created"), (1, "done")):
        run = RunFolder(Path("runs", f"experiment-mine_seed-{seed}"))
        run.path.mkdir(parents=True)
        run.write_config(first | {"seed": seed, "keep_last": False})
        run.update_status(schema_version=SCHEMA_VERSION, state=state)
    assert jobs_of(arguments) == [first]
    assert len(jobs_of([*arguments, "data.max_images=9"])) == 1  # these are other jobs
    file.write_text("# @package _global_\nmodel:\n  depth: 18\n")
    assert refusal(jobs_of, arguments) == (
        "runs/experiment-mine_seed-1 was trained with a different configuration: model.depth is 34 there, 18 here; "
        "no job is started: restore these values, or choose another sweep_dir"
    )
    assert len(jobs_of([*arguments[:4], "seed=2", *arguments[5:]])) == 1  # older versions store no overrides
    run.update_status(overrides=["experiment=mine", "seed=1"], config_dir=str(tmp_path / "conf"))
    for later in (["seed=2"], ["seed=2", "optim.lr=0.1"]):  # no job of an earlier command
        message = refusal(jobs_of, [*arguments[:4], *later, *arguments[5:]])
        assert message.startswith("runs/experiment-mine_seed-1 was trained with a different configuration: model.depth")
    others = (
        ["seed=2", "model.depth=50"],  # which the edit does not change
        ["seed=2", "experiment=demo", "model.pretrained=none"],  # another experiment
        ["seed=2", "--config-dir", str(shutil.copytree("conf", "copy"))],
    )
    for later in others:
        assert jobs_of([*arguments[:4], *later, *arguments[5:]])
    run.config_file.rename(run.path / "kept")
    assert len(jobs_of(arguments)) == 1  # without its configuration, the job itself names the fault
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        run.update_status(config_hash="another")
        assert "lost its config.yaml, which differed" in refusal(create_run, run, compose("config", []))
    (run.path / "kept").rename(run.config_file)
    run.status_file.write_text("{")
    assert len(jobs_of(arguments)) == 1  # a damaged job names its fault itself, and the others start
    (tmp_path / "runs" / "jobs.txt").touch()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        create_run(RunFolder(Path("runs", "new")), compose("config", []))
    assert RunFolder(Path("runs", "new")).read_status()["schema_version"] == SCHEMA_VERSION


def test_another_number_of_epochs_stops_a_sweep_that_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_experiment(tmp_path, monkeypatch)
    file.write_text("# @package _global_\ntrainer:\n  max_epochs: 2\n")
    arguments = ["--config-dir", "conf", "-m", "experiment=mine", "schedule=constant,cosine", "sweep_dir=runs"]
    for job in jobs_of(arguments):
        run = RunFolder(Path("runs", f"experiment-mine_schedule-{job['schedule']['_target_'].rpartition('.')[2]}"))
        run.checkpoints.mkdir(parents=True)
        run.last_checkpoint.touch()
        run.write_config(job)
        run.update_status(schema_version=SCHEMA_VERSION, state="done")
    assert len(jobs_of(arguments)) == 2
    file.write_text("# @package _global_\ntrainer:\n  max_epochs: 1\n")
    assert "trainer.max_epochs is 2 there, 1 here; restore it" in refusal(jobs_of, arguments)
    file.write_text("# @package _global_\ntrainer:\n  max_epochs: 3\n")
    assert "the schedule cosine over 3 epochs has other learning rates" in refusal(jobs_of, arguments)
    arguments[4] = "schedule=constant"
    assert len(jobs_of(arguments)) == 1


def test_a_misspelled_key_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "-m", "+optim.momentun=0.5,0.9", "sweep_dir=sweep"])
    assert main() == 2
    assert "did you mean optim.momentum?" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_labels_may_be_numbers_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[str]()
    monkeypatch.setattr(sweep, "run_module", lambda *_, text, **__: found.extend(json.loads(text)) or 0)
    labels = "data.labels={0: 0, R1: 1}"
    assert sweep.preflight(["-m", "data=retinopathy", "data.root=.", labels, "model.pretrained=none", "seed=0,1"])
    assert any(json.loads(need).get("data", {}).get("labels") == {"0": 0, "R1": 1} for need in found)


def own_experiment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder, and return the path of the experiment `mine` for `--config-dir conf`."""
    monkeypatch.chdir(folder)
    file = folder / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    return file


def needs(monkeypatch: pytest.MonkeyPatch, *arguments: str, shares_source: bool = False) -> None:
    """Set stdin to the data and weights that a command needs, as a sweep passes them to the process that checks."""
    asked = {json.dumps(need) for job in jobs_of(["-m", *arguments]) for need in sweep._needs(job, shares_source)}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(sorted(asked))))


def stops(line: str) -> None:
    """Check that the sweep is refused with a line, or not at all if it is empty."""
    if line:
        assert line in refusal(command.command, [])
    else:
        command.command([])


def test_a_study_without_its_data_names_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    needs(monkeypatch, "experiment=dr_depth_pretraining", "model.pretrained=none")
    message = refusal(command.command, [])
    assert message.startswith("data/eyepacs is not a folder; set data.root to the folder of the data set")
    assert "kaggle.com/c/diabetic-retinopathy-detection" in message


@pytest.mark.parametrize(
    ("freeze", "part"), [("[layer1,layer9]", "layer9"), ("null,all_but_head,[layr1]", "layr1"), ("[fc,conv1]", "")]
)
def test_parts_that_do_not_exist_stop_the_sweep(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, freeze: str, part: str
) -> None:
    needs(monkeypatch, *DATA[:1], f"data.root={photographs}", f"model.freeze={freeze}")
    stops(f"no part {part} with weights" if part else "")


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        (["monitor=auto,val/kappa"], "monitor=val/kappa: no such metric; did you mean val/qwk?"),
        (["schedule=plateau", "schedule.monitor=val/acc"], "schedule.monitor=val/acc: no such metric"),
        (["schedule=plateau", "data.val_fraction=0.2,0"], "schedule=plateau needs a validation split"),
        (["trainer.early_stopping=2", "data.val_fraction=0"], "trainer.early_stopping needs a validation split"),
        (["monitor=val/loss,val/auroc", "trainer.early_stopping=2"], ""),
    ],
)
def test_a_selection_without_its_metric_stops_the_sweep(
    keys: list[str], refused: str, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(monkeypatch, *DATA[:1], f"data.root={photographs}", "data.val_fraction=0.2", *keys)
    stops(refused)


@pytest.mark.parametrize(
    ("axes", "refused"),
    [
        (["model.depth=18,20"], "model.form=imagenet model.depth=20 is unknown"),
        (["model=resnet,resnet_cifar", "model.depth=18"], "model.form=cifar model.depth=18 is unknown"),
        (["model=resnet_cifar", "model.widths=[16,32,64],[16,32]"], "model.widths"),
        (["model=resnet,example_cnn", "optim.lr=0.1,0.2"], ""),
    ],
)
def test_networks_that_do_not_exist_stop_the_sweep(
    axes: list[str], refused: str, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(monkeypatch, *DATA[:1], f"data.root={photographs}", *axes)
    stops(refused)


def test_training_images_of_one_class_stop_the_sweep(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photographs / "train.csv").write_text("image,level\ntest0_left,3\ntest0_right,3\n")
    own = [*DATA[:1], f"data.root={photographs}", "data.train_csv=train.csv", "data.val_fraction=0"]
    needs(monkeypatch, *own, "model.depth=18")
    stops("severe is the only label of 2 training images")
    needs(monkeypatch, *own, "model.depth=18", "trainer.max_epochs=0")
    assert command.command([]) is None  # initial weights only


def test_each_network_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(sweep, "run_module", lambda *_, text, **__: asked.extend(json.loads(text)) or 0)
    assert sweep.preflight(["-m", "model.depth=18,34", "optim.lr=range(1,6)", "seed=0,1,2"])
    assert [json.loads(need).get("model", {}).get("depth") for need in sorted(asked)] == [None, 18, 34]


def test_weights_that_cannot_be_fetched_stop_the_sweep(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web(monkeypatch, {})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    needs(monkeypatch, *DATA[:1], f"data.root={photographs}", "model.depth=18,50", "model.pretrained=none,imagenet")
    message = refusal(command.command, [])
    assert message.startswith("model.pretrained=imagenet: cannot download https://download.pytorch.org/models/resnet")
    assert "model.pretrained=PATH" in message


def test_weights_of_a_missing_run_stop_the_sweep(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needs(monkeypatch, *DATA[:1], f"data.root={photographs}", "model.pretrained=none,runs/source")
    assert "runs/source: no such file" in refusal(command.command, [])


def test_a_leak_stops_the_sweep_before_its_first_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_studies(tmp_path / "data")
    (root / "images" / "1_left.jpeg").write_bytes((root / "images" / "21_left.jpeg").read_bytes())  # an image of test
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    needs(monkeypatch, *TINY, "data=retinopathy", f"data.root={root}", cache, "model.depth=18,34")
    message = refusal(command.command, [])
    assert message.startswith("2 images of train or val belong to 1 patient")
    assert "data.on_leak=drop" in message
    needs(monkeypatch, *TINY, "data=retinopathy", f"data.root={root}", cache, "data.on_leak=drop,ignore")
    command.command([])
    (root / "images" / "2_left.jpeg").write_bytes(b"x")
    needs(monkeypatch, *TINY, "data=retinopathy", f"data.root={root}", cache, "data.on_leak=drop,ignore")
    assert "2_left.jpeg: no image of a known format" in refusal(command.command, [])


def test_a_sweep_of_which_some_jobs_find_a_prepared_set_is_stopped(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"data.root={photographs}", f"data.cache_dir={tmp_path / 'cache'}", f"sweep_dir={tmp_path / 'sweep'}"]
    settings = [*TINY, *own, "data.image_size=24,32"]
    data: ImageData = build("data", compose_config([*TINY, *own])["data"])
    prepare(data.prepared_set, list(data.listed()["path"]), processes=1)
    needs(monkeypatch, *settings, shares_source=True)
    message = refusal(command.command, [])
    assert "the images are prepared with data.image_size=24, but not with data.image_size=32" in message
    assert "run resnet-lab prepare with data.image_size=32, too" in message
    needs(monkeypatch, *settings)  # all jobs are done
    command.command([])

    # a job that has begun decides
    for name, pixels in (("a", "prepared"), ("b", "originals")):
        list_jobs(tmp_path / "sweep", [name])
        job = RunFolder(tmp_path / "sweep" / name)
        create_run(job, compose_config([*TINY, *own]))
        job.update_status(state="done", pixels=pixels)
        needs(monkeypatch, *settings, shares_source=True)
        if pixels == "prepared":
            assert "prepare with all data keys of this job, such as data.image_size=32" in refusal(command.command, [])
        else:
            command.command([])
        shutil.rmtree(tmp_path / "sweep")


@pytest.mark.slow
def test_labels_that_changed_since_a_job_began_stop_the_sweep(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*TINY, f"data.root={photographs}", f"data.cache_dir={tmp_path / 'cache'}", f"sweep_dir={tmp_path / 'sweep'}"]
    config = compose_config(own)
    data: ImageData = build("data", config["data"])
    job = RunFolder(tmp_path / "sweep" / "first")
    list_jobs(job.path.parent, ["first"])
    create_run(job, config)
    job.update_status(state="done", pixels="originals", split_fingerprint=fingerprints(data.table()[0]))
    needs(monkeypatch, *own, "data.rotation=0,20", shares_source=True)
    command.command([])
    job.update_status(train_order="another")  # a done job is not trained again
    needs(monkeypatch, *own, "data.rotation=0,20", shares_source=True)
    command.command([])
    job.update_status(state="running")  # without a process, it is interrupted
    job.last_checkpoint.parent.mkdir()
    job.last_checkpoint.touch()
    needs(monkeypatch, *own, "data.rotation=0,20", shares_source=True)
    assert refusal(command.command, []).startswith("first started with the training images in another order (another")
    job.last_checkpoint.unlink()
    job.update_status(state="done")
    labels = photographs / "train_label.csv"
    labels.write_text(labels.read_text().replace("4", "3"))
    for trains in (True, False):  # also if all jobs are done
        needs(monkeypatch, *own, "data.rotation=0,20", shares_source=trains)
        assert refusal(command.command, []).startswith("first started with other images or labels in train (")
    needs(monkeypatch, *own, "data.val_fraction=0.5", shares_source=True)  # the splits differ anyway
    command.command([])
    spelled = [word if "data.root" not in word else f"{word}/../{photographs.name}" for word in own]
    needs(monkeypatch, *spelled, "data.rotation=0,20", shares_source=True)
    assert refusal(command.command, []).startswith("first started with other images or labels in train (")


def test_initial_weights_that_changed_since_a_job_began_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    own = [*TINY, "data=synthetic", f"model.pretrained={file}", f"sweep_dir={tmp_path / 'sweep'}"]
    torch.save(resnet(8, 5, form="cifar", widths=[8, 8, 16]).state_dict(), file)
    job = RunFolder(tmp_path / "sweep" / "first")
    list_jobs(job.path.parent, ["first"])
    create_run(job, compose_config(own))
    job.update_status(state="done", pixels="originals", pretrained=check_network(dict(compose_config(own).model)))
    needs(monkeypatch, *own, "optim.lr=0.1,0.2")
    command.command([])
    torch.save(resnet(8, 5, form="cifar", widths=[8, 8, 16]).state_dict(), file)
    needs(monkeypatch, *own, "optim.lr=0.1,0.2")
    assert refusal(command.command, []).startswith(f"model.pretrained={file}: first started with other weights (")


def test_a_folder_of_weights_that_lacks_a_depth_stops_the_sweep(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(resnet(8, 5, form="cifar", widths=[8, 8, 16]).state_dict(), tmp_path / "resnet8.pth")
    settings = [*TINY, f"data.root={photographs}", f"model.pretrained={tmp_path}"]
    needs(monkeypatch, *settings, "model.depth=8,14")
    assert "one file with depth 14 in its name" in refusal(command.command, [])
    needs(monkeypatch, *settings, "model.activation=ReLU,SiLU")
    command.command([])
    needs(monkeypatch, *settings, "model.shortcut=projection,zero_pad")
    assert "missing: layer2.0.downsample.0.weight" in refusal(command.command, [])


@pytest.mark.slow
def test_existing_data_and_weights_pass(
    photographs: Path, make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: RunFolder = make_run()
    run.checkpoints.mkdir()
    run.best_checkpoint.write_bytes(b"")
    needs(monkeypatch, *TINY, f"data.root={photographs}", f"model.pretrained=none,{run.path}")
    with pytest.raises(UserError, match="not readable as plain tensors"):  # the file is found and read
        command.command([])
    needs(monkeypatch, *TINY, f"data.root={photographs}", "model.pretrained=none", "optim.lr=0.1,0.2")
    command.command([])


def test_a_renamed_folder_of_photographs_stops_the_sweep_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_experiment(tmp_path, monkeypatch)
    file.write_text("# @package _global_\ndata: {root: photos}\n")
    arguments = ["--config-dir", "conf", "-m", "experiment=mine", "sweep_dir=runs"]
    (first,) = jobs_of([*arguments, "seed=0"])
    run = RunFolder(Path("runs", "experiment-mine_seed-0"))
    run.path.mkdir(parents=True)
    run.write_config(first)
    overrides = ["experiment=mine", "seed=0"]
    run.update_status(schema_version=SCHEMA_VERSION, state="done", overrides=overrides, config_dir="conf")
    file.write_text("# @package _global_\ndata: {root: photos2}\n")
    for seeds in ("seed=0,1", "seed=1"):
        message = refusal(jobs_of, [*arguments, seeds])
        assert message.startswith(
            "runs/experiment-mine_seed-0 is done with data.root=photos; restore this value (a sym"
        )
    assert jobs_of([*arguments, "seed=1", "data.root=photos"])
    run.update_status(state="interrupted")  # may move its data
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    assert jobs_of([*arguments, "seed=1"])
    run.update_status(state="done")
    (tmp_path / "photos").symlink_to(tmp_path / "photos2")  # the same folder
    assert jobs_of([*arguments, "seed=0,1"])


def test_a_file_that_is_edited_while_the_sweep_runs_stops_its_other_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = own_experiment(tmp_path, monkeypatch)
    file.write_text("# @package _global_\noptim: {lr: 0.1}\nhydra: {sweeper: {params: {data.rotation: '0,20'}}}\n")
    started = []

    def run_and_edit(run: RunFolder, *arguments: object) -> None:
        started.append(run.path.name)
        file.write_text(file.read_text().replace("0.1", "0.2"))

    monkeypatch.setattr(sweep, "run_module", lambda *_, **__: 0)
    monkeypatch.setattr(sys.modules["resnet_lab.train"], "run_in", run_and_edit)
    words = ["--config-dir", "conf", "-m", "experiment=mine", "seed=0,1", "data.root=x", "sweep_dir=runs"]
    monkeypatch.setattr("sys.argv", ["train", *words, "hydra.job.chdir=false"])
    assert main() == 1
    assert started == ["root-x_rotation-0_experiment-mine_seed-0"]
    assert capsys.readouterr().err.count("its configuration has changed since the command began") == 3
    monkeypatch.setattr("sys.argv", ["train", *words])  # a new command takes the file as it is
    assert main() == 0
    assert len(started) == 5


@pytest.mark.parametrize(
    ("line", "words"),
    [("split_seed: '${seed}'", []), pytest.param("", ["data.split_seed=${seed}"], marks=pytest.mark.slow)],
)
def test_a_value_that_depends_on_the_seed_is_no_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: list[str]
) -> None:
    own_experiment(tmp_path, monkeypatch).write_text(f"# @package _global_\ndata: {{root: x, {line}}}\n")
    started = []
    monkeypatch.setattr(sweep, "run_module", lambda *_, **__: 0)
    run_in = lambda run, config, *_: started.append((config.seed, config.data.split_seed))  # noqa: E731
    monkeypatch.setattr(sys.modules["resnet_lab.train"], "run_in", run_in)
    words = ["--config-dir", "conf", "-m", "experiment=mine", "seed=1,2", "optim.lr=0.1,0.2", "sweep_dir=runs", *words]
    monkeypatch.setattr("sys.argv", ["train", *words])
    assert main() == 0
    assert started == [(1, 1), (1, 1), (2, 2), (2, 2)]
    assert len(list_jobs(tmp_path / "runs")) == 4
    assert "" not in hashes_in(tmp_path / "runs").values()


@pytest.mark.slow
def test_a_job_that_another_command_left_unfinished_fails_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "run_module", lambda *_, **__: 0)
    monkeypatch.setattr("sys.argv", ["train", "-m", "seed=1,2", f"sweep_dir={tmp_path}"])
    # no process has the lock of a running job
    for state, busy, code in (("done", True, 0), ("running", False, 0), ("running", True, 1)):

        def run_in(run: RunFolder, config: DictConfig, *_: object, state: str = state, busy: bool = busy) -> None:
            run.path.mkdir(exist_ok=True)
            run.write_config(dict(OmegaConf.to_container(config, resolve=True)))
            run.update_status(state=state)
            if busy:
                raise Busy("another command runs it")

        monkeypatch.setattr(sys.modules["resnet_lab.train"], "run_in", run_in)
        assert main() == code


def test_axes_of_swept_experiments_are_named_where_hydra_ignores_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    for name, axes in (("a", "seed: '0,1', optim.lr: '0.1,0.2'"), ("b", "")):
        text = f"# @package _global_\nhydra: {{sweeper: {{params: {{{axes}}}}}}}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    own = ["--config-dir", str(tmp_path), "-m", f"sweep_dir={tmp_path / 'runs'}"]
    assert len(jobs_of([*own, "experiment=a"])) == 2
    assert capsys.readouterr().err == ""
    assert len(jobs_of([*own, "experiment=a,b", "seed=0,1"])) == 2
    line = "experiment=a: its own axes (optim.lr) are not swept beside other experiments; type them\n"
    assert capsys.readouterr().err == line


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_it_is_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "x\udce9")
    message = refusal(create_run, run, compose_config([*TINY, "data=synthetic"]))
    assert message.endswith("x\\udce9: the path is not UTF-8; choose another sweep_dir or working folder")
    assert not run.path.exists()
