"""Reading one run folder: scores come from the stored predictions, and damage is reported, not raised."""

import numpy as np
import pandas as pd
import pytest
from fake_runs import change_status, write_run
from sklearn import metrics

from resnet_lab.report.__main__ import report
from resnet_lab.report.runs import read_layers, read_metrics, read_predictions, read_run
from resnet_lab.run_folder import RunFolder, find_runs


def test_numbers_come_from_the_stored_predictions(tmp_path):
    run = read_run(RunFolder(write_run(tmp_path / "run", metrics={"test/accuracy": 0.1})))
    stored = pd.read_csv(tmp_path / "run" / "predictions_test.csv")
    assert run.scores["accuracy"] == pytest.approx(np.mean(stored["target"] == stored["prediction"]))
    kappa = metrics.cohen_kappa_score(stored["target"], stored["prediction"], weights="quadratic")
    assert run.scores["qwk"] == pytest.approx(kappa)
    assert run.counts.sum() == 400
    assert run.config["model.depth"] == 18


def test_a_printed_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = read_run(RunFolder(write_run(tmp_path / "runs" / "one")))
    qwk, accuracy = run.scores["qwk"], 100 * run.scores["accuracy"]
    assert str(run).startswith(f"Run(runs/one: done, test QWK {qwk:.3f}, accuracy {accuracy:.2f} %, ")
    assert len(str(run)) < 120
    failed = read_run(RunFolder(write_run(tmp_path / "two", state="failed", error="no memory")))
    assert repr([failed]) == "[Run(two: failed, no memory)]"


def test_a_run_that_lost_its_test_predictions_is_not_scored_on_validation(tmp_path):
    folder = write_run(tmp_path / "run", split="val", metrics={"test/accuracy": 0.5, "val/accuracy": 0.6})
    lost = read_run(RunFolder(folder))
    assert lost.problem == "predictions_test.csv is missing; remove its folder and train the run again"
    assert (lost.scores, lost.validation, lost.validation_problem) == ({}, None, "")
    (folder / "checkpoints").mkdir()
    RunFolder(folder).last_checkpoint.touch()
    tests_again = "predictions_test.csv is missing; repeat the command that trained it: it tests again"
    assert read_run(RunFolder(folder)).problem == tests_again
    change_status(folder, metrics={"val/accuracy": 0.6})
    assert read_run(RunFolder(folder)).split == "val"


def test_damaged_test_predictions_do_not_blame_those_of_validation(tmp_path):
    folder = write_run(tmp_path / "run", split="val")
    (folder / "predictions_test.csv").write_bytes((folder / "predictions_val.csv").read_bytes()[:300])
    run = read_run(RunFolder(folder))
    assert run.problem.startswith("predictions_test.csv: line ")
    assert run.validation_problem == ""


def test_runs_on_the_same_images_share_them_in_any_order_of_rows(tmp_path):
    runs = [write_run(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    one, other = (read_predictions(run / "predictions_test.csv") for run in runs)
    assert one.split is other.split
    rows = pd.read_csv(runs[0] / "predictions_test.csv", dtype={"image": str})
    rows.iloc[::-1].to_csv(runs[0] / "predictions_test.csv", index=False)
    reversed_rows = read_predictions(runs[0] / "predictions_test.csv")
    assert reversed_rows.fingerprint == one.fingerprint
    np.testing.assert_array_equal(reversed_rows.images, one.images)
    np.testing.assert_array_equal(reversed_rows.labeled.probabilities, one.labeled.probabilities)


def test_test_is_scored_before_validation(tmp_path):
    folder = write_run(tmp_path / "run", split="val")
    assert read_run(RunFolder(folder)).split == "val"
    (folder / "predictions_test.csv").write_bytes((folder / "predictions_val.csv").read_bytes())
    assert read_run(RunFolder(folder)).split == "test"


@pytest.mark.parametrize(("counts", "majority"), [({"train": [1, 9, 2, 0, 0]}, 1), (None, 0)])
def test_the_majority_is_that_of_training_or_if_unknown_of_these_images(tmp_path, counts, majority):
    run = read_run(RunFolder(write_run(tmp_path / "run", class_counts=counts)))
    targets = pd.read_csv(tmp_path / "run" / "predictions_test.csv")["target"]
    assert run.majority == majority
    assert run.baseline["accuracy"] == pytest.approx(np.mean(targets == majority))


@pytest.mark.parametrize(
    ("status", "state", "problem"),
    [
        ({"state": "failed", "error": "OutOfMemoryError: 6 GB\nTraceback"}, "failed", "OutOfMemoryError: 6 GB"),
        ({"state": "running", "epoch": 3}, "interrupted", "no result, last epoch: 4"),
    ],
)
def test_a_run_that_is_not_done_has_no_scores_whatever_it_stored(tmp_path, status, state, problem):
    run = read_run(RunFolder(write_run(tmp_path / "run", **status)))
    assert (run.state, run.problem, run.scores) == (state, problem, {})


def test_a_run_that_never_started_has_no_epoch(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "status.json").unlink()
    run = read_run(RunFolder(folder))
    assert (run.state, run.problem) == ("created", "not started")


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("status.json", '{"state": "do', "status.json is damaged"),
        ("status.json", "[]", "status.json contains list, not keys"),
        ("config.yaml", "model: {depth: 18", "config.yaml is damaged"),
        ("config.yaml", "", "config.yaml contains NoneType, not keys"),
        ("predictions_test.csv", "", "predictions_test.csv is damaged"),
        ("predictions_test.csv", "image,patient\na,b\n", "predictions_test.csv is damaged"),
        ("predictions_test.csv", "image,patient,target,prediction,p_0\n", "has no rows"),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,1,.5,.5\nb,1,0,.5\n", "line 3 "),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,2,.5,.5\n", "line 2 has no class"),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,1,nan,nan\n", "line 2 "),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,1,.5,.5\n", "5 class_names, the predictions 2"),
    ],
)
def test_damage_becomes_the_problem_of_the_run_in_one_line(tmp_path, file, content, problem):
    folder = write_run(tmp_path / "hurt")
    (folder / file).write_text(content)
    run = read_run(RunFolder(folder))
    assert problem in run.problem
    assert "\n" not in run.problem
    assert run.scores == {}


def test_names_of_images_are_text(tmp_path):
    file = tmp_path / "predictions_test.csv"
    file.write_text("image,patient,target,prediction,p_0,p_1\nNA,007,0,1,.25,.75\nnull,,1,1,.5,.5\n")
    found = read_predictions(file)
    assert (found.images.tolist(), found.patients.tolist()) == (["NA", "null"], ["007", "null"])
    targets, predictions, probabilities = found.labeled
    assert (targets.tolist(), predictions.tolist()) == ([0, 1], [1, 1])
    assert probabilities.tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_layers_named_by_numbers_are_text(tmp_path):
    (tmp_path / "layers.csv").write_text("epoch,quantity,layer,value\n0,gradient_norm,3,0.5\n")
    assert read_layers(tmp_path / "layers.csv")["layer"].tolist() == ["3"]


def test_half_a_row_of_metrics_is_left_out_and_a_repeated_epoch_counts_once(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,val/accuracy\n0,0.5\n1,0.6\n1,0.61\n2,0.7")
    assert read_metrics(file)["val/accuracy"].to_dict() == {0: 0.5, 1: 0.61}
    file.write_text("")
    assert read_metrics(file).empty
    assert read_metrics(tmp_path / "absent.csv").empty


@pytest.mark.parametrize(
    "damage",
    [
        {"split_fingerprint": "abc"},
        {"class_counts": {"train": "many"}},
        {"class_counts": {"test": [1, "two"]}},
        {"class_counts": "x"},
        {"class_names": "healthy"},
        {"leaks": "some"},
    ],
)
def test_entries_of_another_type_are_named_and_do_not_affect_other_runs(tmp_path, undrawn, damage):
    write_run(tmp_path / "fine", seed=0)
    change_status(write_run(tmp_path / "hurt", seed=1), **damage)
    assert report([str(tmp_path)], tmp_path / "out").count("depth=18") == 1
    hurt, fine = sorted((read_run(run) for run in find_runs([tmp_path])), key=lambda run: bool(run.scores))
    assert fine.scores
    (key,) = damage
    assert hurt.problem.startswith(f"status.json: {key} is ")
    assert "train the run again" in hurt.problem


def test_an_invalid_seed_and_invalid_pictures_do_not_stop_a_report(tmp_path, as_asked):
    write_run(tmp_path / "fine", seed=0, config={"figures": "scores,recall"})
    write_run(tmp_path / "hurt", config={"seed": [1, 2]})
    report([str(tmp_path)], tmp_path / "out")
    assert (tmp_path / "out" / "report_figures" / "scores.png").is_file()
    problems = [run.problem for run in map(read_run, find_runs([tmp_path]))]
    assert problems == ["", "config.yaml: seed is [1, 2], not a number; correct it, or remove the folder"]


def test_an_interrupted_run_without_an_epoch_is_labeled(tmp_path):
    write_run(tmp_path / "run", state="interrupted", epoch=-1)
    assert read_run(RunFolder(tmp_path / "run")).problem == "no result, no epoch is finished"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda text: text.replace(",", ";"),
            "it has no column image, target, prediction, p_0, its header is image;patient",
        ),
        (
            lambda text: text.replace("target", "Target", 1),
            "it has no column target, its header is image,patient,Target",
        ),
        (
            lambda text: text.replace("patient", "Patient", 1),
            "it has no column patient, its header is image,Patient,target",
        ),
    ],
)
def test_predictions_that_another_program_saved_are_told_from_damage(tmp_path, change, words):
    file = write_run(tmp_path / "run") / "predictions_test.csv"
    file.write_text(change(file.read_text()))
    assert words in read_run(RunFolder(file.parent)).problem
