"""The facts at the head of a report: the training, and the differences between groups."""

import shutil

import pytest
from fake_runs import write_run

from resnet_lab.axes import note_jobs
from resnet_lab.report.costs import started_differently
from resnet_lab.report.groups import tables_of
from resnet_lab.report.recipe import Fact, merged, recipe_of, subject_of
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import find_runs


def facts(folder) -> dict[str, Fact]:
    runs = [read_run(run) for run in find_runs([folder])]
    return {fact.title: fact for fact in recipe_of(runs, tables_of(runs))}


def test_facts_name_data_network_and_recipe(tmp_path):
    for depth in (18, 50):
        for seed in (0, 1):
            noted = {"commit": "0123456789", "finished": "2026-01-02T03:04:05"}
            write_run(tmp_path / f"{depth}-{seed}", depth, seed=seed, **noted)
    found = facts(tmp_path)
    assert (
        found["data"].text
        == "retinopathy in somewhere: 4,000 train, 500 val, 400 test images, 5 classes, test images of 200 patients"
    )
    assert (found["image size"].text, found["resnet_lab commit"].text, found["finished"].text) == (
        "512 px",
        "0123456",
        "2026-01-02",
    )
    assert (found["network"].text, found["network"].varies) == ("ResNet-18; ResNet-50", True)
    assert (found["seeds"].text, found["seeds"].varies) == ("0; 1", False)
    assert (found["optimizer"].text, found["initial weights"].text) == ("sgd lr=0.001", "random")


def test_a_run_that_augments_no_class_shows_no_augmentation(tmp_path):
    for classes in ("all", "none"):
        write_run(tmp_path / classes, config={"data.augment_classes": classes, "data.rotation": 30})
    assert {*facts(tmp_path)["augmentation"].values} == {"rotation=30", "none (augment_classes=none)"}


def test_a_combined_run_shows_the_seeds_of_its_members_and_how_it_was_made(tmp_path):
    config = {"combine.mean_over": "seed", "combine.sources": ["../2", "../5"]}
    for seed in (2, 5):
        write_run(tmp_path / "runs" / str(seed), seed=seed, started_by="fork")
    write_run(tmp_path / "runs" / "mean", seed=2, config=config)
    found = facts(tmp_path / "runs" / "mean")
    assert (found["seeds"].text, found["combined"].text) == ("2; 5", "mean_over=seed of 2 runs")
    found = facts(tmp_path / "runs")
    assert (found["seeds"].text, found["seeds"].varies) == ("2; 5", False)
    assert {*found["combine.mean_over"].values} == {"seed", "none"}
    assert "combined" not in found
    runs = [read_run(run) for run in find_runs([tmp_path / "runs"])]
    assert not started_differently(tables_of(runs)[0])  # no process started the mean
    shutil.rmtree(tmp_path / "runs" / "5")
    assert facts(tmp_path / "runs" / "mean")["seeds"].text == "2"


def test_neither_the_order_of_keys_nor_a_neutral_value_is_a_difference(tmp_path):
    optim = {"_target_": "resnet_lab.optim.sgd", "lr": 0.01, "momentum": 0.9}
    for number, loss in enumerate(({"class_weights": "none", "label_smoothing": 0.0}, {"label_smoothing": 0.0}, {})):
        values = [("optim", optim), ("loss", {"_target_": "resnet_lab.objectives.cross_entropy", **loss})]
        flat = [(f"{group}.{key}", value) for group, keys in values for key, value in keys.items()]
        write_run(tmp_path / str(number), 18 + 16 * number, config=dict(flat if number else reversed(flat)))
    found = facts(tmp_path)
    assert (found["optimizer"].text, found["optimizer"].varies) == ("sgd lr=0.01 momentum=0.9", False)
    assert (found["loss"].text, found["loss"].varies) == ("cross_entropy", False)


def test_a_value_that_turns_something_off_is_listed_beside_the_others(tmp_path):
    for number, sampling in enumerate((None, "none", "balanced")):
        overrides = ["experiment=mine"] if number else ["seed=0"]
        config = {
            "data.sampling": sampling,
            "data.rotation": 15 * number,
            "trainer.tta": ("none", "flips")[number // 2],
            "model.freeze": (None, "all_but_head", ["conv1", "layer1"])[number],
            "model.unfreeze_at_epoch": 2 if number == 2 else None,
            "model.zero_init_head": number == 2,
        }
        write_run(tmp_path / str(number), config=config, overrides=overrides)
    found = facts(tmp_path)
    assert (set(found["sampling"].values), found["sampling"].varies) == ({"none", "balanced"}, True)
    assert set(found["augmentation"].values) == {"none", "rotation=15", "rotation=30"}
    assert set(found["experiment"].values) == {"none", "mine"}
    assert (set(found["test-time augmentation"].values), found["test-time augmentation"].varies) == (
        {"none", "flips"},
        True,
    )
    assert set(found["frozen parts"].values) == {"none", "all_but_head", "conv1, layer1, for 2 epochs"}
    assert {value.partition(",")[2] for value in found["initial weights"].values} == {"", " last layer zero"}
    neutral = {"sampling", "augmentation", "experiment", "test-time augmentation", "frozen parts"}
    assert neutral & {*facts(tmp_path / "0")} == set()


def test_a_run_that_stopped_before_its_data_adds_no_second_value(tmp_path):
    write_run(tmp_path / "done", precision="32-true")
    write_run(tmp_path / "failed", 50, state="failed", error="boom", class_counts=None, class_names=None)
    found = facts(tmp_path)
    assert found["data"].values == [
        "retinopathy in somewhere: 4,000 train, 500 val, 400 test images, 5 classes, test images of 200 patients"
    ]
    assert not found["data"].varies
    assert (found["precision"].text, found["precision"].varies) == ("32-true", False)


def test_the_command_is_built_from_the_overrides(tmp_path):
    for depth in (18, 50):
        overrides = [f"model.depth={depth}", "data.root=x"]
        write_run(tmp_path / "sweep" / str(depth), depth, overrides=overrides)
    (tmp_path / "sweep" / "jobs.txt").touch()
    assert facts(tmp_path)["command"].values == ["resnet-lab train -m model.depth=18,50 data.root=x"]
    assert "command" not in facts(write_run(tmp_path / "older" / "a").parent)


def test_the_command_has_the_order_of_the_jobs_not_of_their_names(tmp_path):
    jobs = [(depth, sampling) for depth in (34, 18) for sampling in ("none", "balanced")]
    for depth, sampling in jobs:
        overrides = [f"model.depth={depth}", f"data.sampling={sampling}"]
        write_run(tmp_path / f"{sampling}-{depth}", depth, config={"data.sampling": sampling}, overrides=overrides)
    (tmp_path / "jobs.txt").write_text("".join(f"{sampling}-{depth}\n" for depth, sampling in jobs))
    found = facts(tmp_path)
    assert found["command"].values == ["resnet-lab train -m model.depth=34,18 data.sampling=none,balanced"]


def test_commands_and_facts_have_the_words_that_users_type(tmp_path):
    for crop in ("True", "False"):  # as Hydra writes the values of a sweep
        overrides = [f"data.eye_crop={crop}", "data.class_names=[no True,True]", "model.pretrained=None"]
        write_run(tmp_path / crop, config={"data.eye_crop": crop == "True"}, overrides=overrides)
    (tmp_path / "jobs.txt").write_text("True\nFalse\n")
    command = "resnet-lab train -m data.eye_crop=true,false 'data.class_names=[no True,true]' model.pretrained=None"
    assert facts(tmp_path)["command"].values == [command]
    assert {*facts(tmp_path)["data.eye_crop"].values} == {"true", "false"}


@pytest.mark.parametrize("sweep", [False, True])
def test_of_a_key_given_twice_the_command_has_the_later_value(tmp_path, sweep):
    jobs = {str(seed): ["trainer.max_epochs=2", f"seed={seed}", "trainer.max_epochs=1"] for seed in (0, 1)}
    for name, overrides in jobs.items():
        write_run(tmp_path / name, seed=int(name), overrides=overrides)
    if sweep:
        note_jobs(tmp_path, jobs)
        (tmp_path / "jobs.txt").write_text("0\n1\n")
    ends = ["-m trainer.max_epochs=1 seed=0,1"] if sweep else [f"trainer.max_epochs=1 seed={seed}" for seed in (0, 1)]
    assert facts(tmp_path)["command"].values == [f"resnet-lab train {words}" for words in ends]


def test_the_command_of_a_run_that_failed_at_the_start_comes_last(tmp_path):
    write_run(tmp_path / "a", state="failed", error="boom", epoch=-1, overrides=["model.depth=50"])
    write_run(tmp_path / "b", overrides=["model.depth=18"])
    assert facts(tmp_path)["command"].values == [f"resnet-lab train model.depth={depth}" for depth in (18, 50)]


def test_trainings_that_stopped_early_are_named(tmp_path):
    write_run(tmp_path / "0", config={"trainer.max_epochs": 8}, epoch=7)
    assert facts(tmp_path)["training"].text.startswith("8 epochs")
    write_run(tmp_path / "1", seed=1, config={"trainer.max_epochs": 8}, epoch=1)
    found = facts(tmp_path)
    assert found["stopped early"].text == "after 2 epochs"
    assert found["training"].text.startswith("8 epochs")
    assert "; at most 8 epochs" in found["training"].text
    patient = {"trainer.max_epochs": 8, "trainer.early_stopping": 3}
    found = facts(write_run(tmp_path / "2" / "a", seed=2, config=patient, epoch=7).parent)
    assert found["training"].text.startswith("at most 8 epochs")
    assert found["training"].text.endswith(", early stopping after 3 epochs without a better one")
    assert "stopped early" not in found


def test_commands_plan_no_job_that_does_not_exist(tmp_path):
    jobs = {f"{depth}-{seed}": [f"model.depth={depth}", f"seed={seed}"] for depth in (18, 50) for seed in (0, 1)}
    later = jobs | {"18-5": ["model.depth=18", "seed=5"]}
    for name, overrides in jobs.items():
        write_run(tmp_path / name, int(name[:2]), seed=int(name[-1]), overrides=overrides)
    (tmp_path / "jobs.txt").write_text("\n".join(later))
    assert facts(tmp_path)["command"].values == ["resnet-lab train -m model.depth=18,50 seed=0,1"]
    note_jobs(tmp_path, later)  # the last one is not trained
    assert facts(tmp_path)["command"].values == ["resnet-lab train -m model.depth=18,50 seed=0,1"]
    write_run(tmp_path / "18-5", 18, seed=5, overrides=later["18-5"])
    two = ["resnet-lab train -m model.depth=18,50 seed=0,1", "resnet-lab train -m model.depth=18 seed=5"]
    assert facts(tmp_path)["command"].values == two
    shutil.rmtree(tmp_path / "50-1")  # planned, but not trained
    assert facts(tmp_path)["command"].values == two
    (tmp_path / "jobs.json").unlink()
    three = ["model.depth=18 seed=0,1", "model.depth=50 seed=0", "model.depth=18 seed=5"]
    assert facts(tmp_path)["command"].values == [f"resnet-lab train -m {words}" for words in three]


def test_each_sweep_and_each_single_run_has_its_own_command(tmp_path):
    for name in ("first", "own"):
        overrides = ["experiment=mine", f"sweep_dir=runs/{name}", "data.class_names=[no DR, DR]"]
        write_run(tmp_path / name, overrides=overrides, config_dir="my conf")
    for depth in (18, 50):
        write_run(tmp_path / "grid" / str(depth), depth, overrides=[f"model.depth={depth}", "sweep_dir=runs/grid"])
    write_run(tmp_path / "grid" / "own", overrides=["loss=own", "model.depth=18", "sweep_dir=runs/grid"])
    (tmp_path / "grid" / "jobs.txt").touch()
    single = "resnet-lab train --config-dir 'my conf' experiment=mine sweep_dir=runs/{} 'data.class_names=[no DR, DR]'"
    assert facts(tmp_path)["command"].values == [
        single.format("first"),
        "resnet-lab train -m model.depth=18,50 sweep_dir=runs/grid",
        "resnet-lab train -m loss=own model.depth=18 sweep_dir=runs/grid",
        single.format("own"),
    ]


def test_the_header_names_experiment_and_folder_of_images(tmp_path):
    write_run(
        tmp_path / "a", overrides=["experiment=mine"], config={"data.root": "my/photographs", "trainer.max_epochs": 1}
    )
    found = facts(tmp_path)
    assert found["experiment"].text == "mine"
    assert found["training"].text == "1 epoch"
    assert found["data"].text.startswith("retinopathy in photographs: ")
    runs = [read_run(run) for run in find_runs([tmp_path])]
    assert subject_of(runs) == ": mine, photographs"
    write_run(tmp_path / "b", config={"data.root": ""})
    assert "experiment" not in facts(tmp_path / "b")
    assert subject_of([read_run(run) for run in find_runs([tmp_path / "b"])]) == ""


def test_values_of_the_same_keys_are_merged():
    assert merged(["sgd lr=0.1 wd=0", "sgd lr=0.01 wd=0"]) == ["sgd lr=0.1, 0.01 wd=0"]
    assert merged([f"sgd lr={number}" for number in range(9)]) == ["sgd lr=0, 1, 2, 3, 4, 5 and 3 more"]
    assert merged(["sgd lr=0.1", "adam lr=0.1"]) == ["sgd lr=0.1", "adam lr=0.1"]
    assert merged(["sgd lr=0.1", "sgd lr=0.1 wd=0"]) == ["sgd lr=0.1", "sgd lr=0.1 wd=0"]


def test_damaged_facts_are_left_out(tmp_path):
    write_run(tmp_path / "a", hardware="fast", versions=[1], overrides="depth=1", finished=None)
    assert {"machine", "versions", "command", "finished"} & {*facts(tmp_path)} == set()


def test_a_run_without_the_key_of_an_axis_has_none(tmp_path):
    write_run(tmp_path / "a", config={"combine.mean_over": "seed"})
    write_run(tmp_path / "b")
    assert {*facts(tmp_path)["combine.mean_over"].values} == {"seed", "none"}


def test_an_axis_without_its_own_fact_becomes_one(tmp_path):
    for last in (True, False):
        write_run(tmp_path / str(last), config={"model.last_activation": last})
    fact = facts(tmp_path)["model.last_activation"]
    assert ({*fact.values}, fact.varies) == ({"true", "false"}, True)
