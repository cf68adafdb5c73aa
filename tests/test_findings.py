"""Faults in made-up runs are found, and there are no false findings."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_runs import GRADES, change_status, edit_predictions, write_run

from resnet_lab.report.effects import effects_of
from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.page import figures_of
from resnet_lab.report.runs import has_epochs, read_metrics, read_run
from resnet_lab.run_folder import find_runs


def found(folder, metric="") -> dict[str, str]:
    runs = [read_run(run) for run in find_runs([folder])]
    return {finding.kind: str(finding) for finding in findings_of(runs, tables_of(runs, metric))}


def test_sound_runs_have_no_fault(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, skill=3.0, monitor="val/qwk")
    runs = [read_run(run) for run in find_runs([tmp_path])]
    assert not [finding for finding in findings_of(runs, tables_of(runs)) if finding.is_fault]


def test_jobs_that_have_not_begun_limit_the_report(tmp_path):
    write_run(tmp_path / "sweep" / "seed-0")
    jobs = tmp_path / "sweep" / "jobs.txt"
    jobs.write_text("seed-0\n")
    assert "not begun" not in found(tmp_path)
    jobs.write_text("seed-0\nseed-1\nseed-2\n")
    text = found(tmp_path)["not begun"]
    assert text.startswith("2 of 3 jobs of sweep; ")
    assert text.endswith(": seed-1; seed-2")
    write_run(tmp_path / "sweep" / "seed-1", seed=1)
    (tmp_path / "sweep" / "seed-1" / "status.json").unlink()
    assert found(tmp_path)["not begun"] == text
    shutil.rmtree(tmp_path / "sweep" / "seed-1")
    write_run(tmp_path / "sweep" / "seed-1", seed=1)
    (tmp_path / "sweep" / "seed-1" / "config.yaml").unlink()
    limits = found(tmp_path)
    assert limits["not begun"].startswith("1 of 3 jobs of sweep; ")
    assert limits["config.yaml lost"].startswith("1 of 3 jobs of sweep; ")
    assert (limits["not begun"][-6:], limits["config.yaml lost"][-6:]) == ("seed-2", "seed-1")


def test_finished_jobs_that_are_left_out_limit_the_report(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / "sweep" / str(seed), seed=seed)
    write_run(tmp_path / "sweep" / "3", seed=3, state="interrupted")
    (tmp_path / "sweep" / "jobs.txt").write_text("0\n1\n2\n3\n")
    assert "left out" not in found(tmp_path)
    assert found(tmp_path / "sweep" / "0")["left out"] == "2 finished jobs are not in this report (sweep): 1; 2"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_group_trained_on_different_data_is_a_fault(tmp_path, split):
    for seed, digest in enumerate(("a", "a", "b")):
        run = write_run(tmp_path / str(seed), seed=seed)
        status = json.loads((run / "status.json").read_text())
        change_status(run, split_fingerprint=status["split_fingerprint"] | {split: digest})
    text = found(tmp_path)["different data"]
    assert f"different images or labels in {split}" in text
    assert text.endswith(": 2")


@pytest.mark.parametrize("key", ["model.pretrained", "loss.teacher"])
def test_a_group_with_different_weights_is_a_fault(tmp_path, key):
    for seed, digest in enumerate(("a", "a", "b", None)):
        change_status(write_run(tmp_path / str(seed), seed=seed), **{key.partition(".")[2]: digest})
    text = found(tmp_path)["different weights"]
    assert f"different weights of {key}" in text
    assert text.endswith(": 2")


def test_all_seeds_that_occur_twice_are_named_with_their_runs(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 0), ("e", 2)):
        write_run(tmp_path / name, seed=seed)
    text = found(tmp_path)["duplicate seed"]
    assert "seeds 0, 2 occur more than once, so n is too large" in text
    assert text.endswith(": a; c; d; and 1 more")


def test_more_than_three_findings_of_one_kind_share_a_line(tmp_path):
    for depth in range(18, 23):
        for copy in "ab":
            write_run(tmp_path / copy / f"depth{depth}", depth)
    runs = [read_run(run) for run in find_runs([tmp_path])]
    (finding,) = (each for each in findings_of(runs, tables_of(runs)) if each.kind == "duplicate seed")
    assert finding.is_fault
    assert len(finding.names) == 5
    assert {*finding.names} == {f"depth={depth} (a/depth{depth}, b/depth{depth})" for depth in range(18, 23)}
    assert str(finding).startswith("5 times: seed 0 occurs more than once, ")
    assert str(finding).endswith("; and 2 more")
    for copy in "cd":
        write_run(tmp_path / copy / "depth18", 18, seed=1)
    assert found(tmp_path)["duplicate seed"].startswith("5 findings: ")  # other words in one of them


def test_a_job_that_failed_at_the_start_has_its_label_beside_its_folder(tmp_path):
    sweep = tmp_path / "sweep"
    names = [f"batch_size-8_depth-{depth}" for depth in (18, 34)]
    for name, depth, error in zip(names, (18, 34), ("no GPU", ""), strict=True):
        overrides = ["data.batch_size=8", f"model.depth={depth}"]
        state = {"state": "failed", "error": error, "epoch": -1} if error else {}
        write_run(sweep / name, depth, config={"labels": {}}, overrides=overrides, **state)
    (sweep / "jobs.txt").write_text("\n".join(names))
    assert found(sweep)["failed at the start"].endswith(f": depth=18 ({names[0]}): no GPU")


def test_the_tables_of_folds_name_the_command_that_pools_them(tmp_path):
    for fold in range(3):
        config = {"data.folds": 3, "data.fold": fold}
        write_run(tmp_path / str(fold), test_set=f"fold {fold}", config=config)
    assert "resnet-lab combine DIR over=data.fold" in found(tmp_path)["different test sets"]


def test_faults_come_first(tmp_path):
    write_run(tmp_path / "fine")
    write_run(tmp_path / "flat", 50, seed=1, skill=0.0)
    runs = [read_run(run) for run in find_runs([tmp_path])]
    faults = [finding.is_fault for finding in findings_of(runs, tables_of(runs))]
    assert faults == sorted(faults, reverse=True)
    assert set(faults) == {True, False}


def test_notes_on_the_images_are_findings(tmp_path):
    patients = {"doubt": "a, b may belong to one patient"}
    write_run(tmp_path / "a", label_conflicts=2, skipped_labels=1, skipped_images=3, patients=patients)
    notes = found(tmp_path)
    assert notes["conflicting labels"] == "2 images have an identical copy with a different label (1 of 1 run)"
    assert notes["skipped labels"] == "1 row has no valid label (1 of 1 run)"
    assert notes["skipped images"] == "3 images could not be read (1 of 1 run)"
    assert notes["patients in doubt"].startswith("images of one patient may count as several patients")
    assert "a, b" not in notes["patients in doubt"]


def test_jobs_of_a_sweep_with_the_same_note_are_named_by_their_labels(tmp_path):
    for seed in range(5):
        write_run(tmp_path / "sweep" / f"job{seed}", seed=seed, **({"skipped_images": 3} if seed < 4 else {}))
    jobs = {f"job{seed}": ["data=retinopathy", f"seed={seed}"] for seed in range(5)}
    (tmp_path / "sweep" / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "sweep" / "jobs.txt").write_text("\n".join(jobs))
    expected = "3 images could not be read (4 of 5 runs: seed=0; seed=1; seed=2; and 1 more)"
    assert found(tmp_path)["skipped images"] == expected


def test_collapsed_runs_are_named_by_their_seeds_and_combined_ones_are_not(tmp_path):
    for seed in (3, 4):
        write_run(tmp_path / str(seed), seed=seed, skill=0.0)
    assert found(tmp_path)["collapsed"].endswith(": 2 of 2 (seeds 3, 4)")
    means = write_run(tmp_path / "mean", seed=3, skill=0.0, config={"combine.sources": ["../3", "../4"]})
    (tmp_path / "3").rename(tmp_path.with_name("elsewhere_3"))
    (tmp_path / "4").rename(tmp_path.with_name("elsewhere_4"))
    assert found(means)["collapsed"].endswith(": 1 of 1")


def test_grades_in_alphabetical_order_are_named_unless_a_key_gives_their_order(tmp_path):
    names = ["Mild", "moderate", "no_dr", "severe"]
    text = "the grades are in alphabetical order (Mild, moderate, no_dr, severe), as data.class_names is not set"
    for name, config, own, ordered, finding in (
        ("found", {}, names, True, True),
        ("given", {"data.class_names": names}, names, True, False),
        ("numbered", {}, ["0_no_dr", "1_mild"], True, False),
        ("other_order", {}, ["no_dr", "mild"], True, False),
        ("classes", {}, names, False, False),
    ):
        config["data._target_"] = "resnet_lab.data.class_folders.ClassFolders"
        write_run(tmp_path / name, config=config, class_names=own, ordered=ordered)
        texts = found(tmp_path / name).get("alphabetical grades", "")
        assert texts.startswith(text) if finding else not texts, name


def test_a_copied_run_is_suspicious_and_two_collapsed_ones_are_not(tmp_path):
    write_run(tmp_path / "a", 18)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    config = (tmp_path / "b" / "config.yaml").read_text().replace("depth: 18", "depth: 50")
    (tmp_path / "b" / "config.yaml").write_text(config)
    text = found(tmp_path)["suspiciously identical"]
    assert "same 6 digits" in text
    assert text.endswith(": a, b")
    for depth in (18, 50):
        write_run(tmp_path / "flat" / str(depth), depth, skill=0.0)
    assert "suspiciously identical" not in found(tmp_path / "flat")

    def one_class(frame: pd.DataFrame) -> pd.DataFrame:
        shares = np.sort(frame.filter(like="p_").to_numpy(), axis=1)[:, ::-1]  # of each image its own
        return frame.assign(prediction=0, **{f"p_{k}": shares[:, k] for k in range(shares.shape[1])})

    for name in ("a", "b"):
        edit_predictions(tmp_path / name, one_class)
    assert "collapsed" in found(tmp_path)
    assert found(tmp_path)["suspiciously identical"].endswith(": a, b")


def test_selection_on_test_is_found_by_its_metric_or_by_its_images(tmp_path):
    write_run(tmp_path / "a" / "run", monitor="test/accuracy")
    assert found(tmp_path / "a")["selected on test"] == "a test metric selected the epoch (1 of 1 run)"
    run = write_run(tmp_path / "b" / "run", monitor="val/qwk")
    status = json.loads((run / "status.json").read_text())
    status["split_fingerprint"]["val"] = status["split_fingerprint"]["test"]
    (run / "status.json").write_text(json.dumps(status))
    assert found(tmp_path / "b")["selected on test"] == "validation and test images are the same (1 of 1 run)"


def test_training_images_in_test_are_a_leak(tmp_path):
    run = write_run(tmp_path / "run")
    fingerprints = json.loads((run / "status.json").read_text())["split_fingerprint"]
    change_status(run, split_fingerprint=fingerprints | {"train": fingerprints["test"]})
    assert found(tmp_path)["leaking"] == "training and test images are the same (1 of 1 run)"


def test_thresholds_are_not_chosen_on_a_copy_of_the_test_predictions(tmp_path):
    run = write_run(tmp_path / "run")
    shutil.copy(run / "predictions_test.csv", run / "predictions_val.csv")
    assert found(tmp_path)["validation damaged"] == (
        "run: predictions_val.csv contains the test images; this run gets no threshold and no temperature"
    )


def test_runs_that_disagree_on_patients_are_named_and_the_fewest_patients_used(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    assert "different patients" not in found(tmp_path)

    edit_predictions(tmp_path / "0", lambda frame: frame.drop(columns="patient"))
    assert found(tmp_path)["different patients"].startswith("the runs disagree on which images belong to one patient")
    runs = [read_run(run) for run in find_runs([tmp_path])]
    (table,) = tables_of(runs)
    assert len(np.unique(table.patient)) == 200


def test_a_group_whose_interval_includes_the_baseline_is_not_shown_to_be_better(tmp_path):
    for depth, skill in ((18, 0.9), (50, 3.0)):
        write_run(tmp_path / str(depth), depth, skill=skill)
    text = found(tmp_path, "accuracy")["may be no better than always predicting one class"]
    assert text == "the accuracy interval includes the majority baseline: depth=18"


def test_validation_images_are_named_as_selecting_only_if_they_did(tmp_path):
    write_run(tmp_path / "a" / "run", split="val", monitor=None)
    assert found(tmp_path / "a")["no test split"] == "all scores are from validation images"
    assert "(7) in validation: " in found(tmp_path / "a")["few images"]
    write_run(tmp_path / "b" / "run", split="val", monitor="val/qwk")
    assert found(tmp_path / "b")["no test split"].endswith("also selected the checkpoint")
    write_run(tmp_path / "c" / "run", split="val", monitor="val/qwk", epochs=0)
    assert found(tmp_path / "c")["no test split"] == "all scores are from validation images"
    write_run(tmp_path / "d" / "run", split="val", monitor=None, decision="thresholds")
    assert "thresholds were also fitted on them" in found(tmp_path / "d")["no test split"]


def test_each_of_several_tables_is_named(tmp_path):
    for name, images in (("a", 300), ("b", 350)):
        write_run(tmp_path / name, images=images, test_set=name * 16)
    runs = [read_run(run) for run in find_runs([tmp_path])]
    texts = [finding.text for finding in findings_of(runs, tables_of(runs)) if finding.kind == "few images"]
    assert [text.split(":")[0] for text in texts] == ["retinopathy, test split"] * 2
    assert {text.split(",")[1].split(":")[1].split()[0] for text in texts} == {"300", "350"}


def test_a_class_that_no_run_finds_is_named(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / str(seed), seed=seed)
        edit_predictions(run, lambda frame: frame.replace({"prediction": {1: 0, 3: 2}}))
    texts = found(tmp_path)
    assert texts["class never found"] == "none of the 2 runs finds a single image of: mild, severe"
    write_run(tmp_path / "2", seed=2, skill=0.0)
    texts = found(tmp_path)
    assert texts["class never found"].startswith("none of the 2 runs that did not collapse finds a single image of: ")


def test_a_class_without_test_images_is_reported_as_unknown(tmp_path):
    run = write_run(tmp_path / "run")
    edit_predictions(run, lambda frame: frame[frame["target"] != 4])
    texts = found(tmp_path)
    assert texts["class not tested"].startswith("no test image of proliferative: its recall ")
    assert "proliferative" not in texts.get("class never found", "")


def test_a_class_without_training_images_is_named(tmp_path):
    write_run(tmp_path / "0")
    assert "class not trained" not in found(tmp_path)
    counts = json.loads((tmp_path / "0" / "status.json").read_text())["class_counts"]
    change_status(tmp_path / "0", class_counts=counts | {"train": [9, 0, 9, 9, 9]})
    assert found(tmp_path)["class not trained"] == "no training image of mild: no run can learn to find it"
    write_run(tmp_path / "1", seed=1)  # which has some
    assert "class not trained" not in found(tmp_path)


def test_few_images_of_a_class_are_counted(tmp_path):
    targets = pd.read_csv(write_run(tmp_path / "run") / "predictions_test.csv")["target"]
    counts = {name: int(np.sum(targets == k)) for k, name in enumerate(GRADES)}
    few = ", ".join(f"{name} ({count})" for name, count in counts.items() if count < 8)
    assert found(tmp_path)["few images"].startswith(f"{few} in test: ")
    for metric in ("balanced acc.", "AUROC"):
        assert metric in found(tmp_path)["few images"]
    assert "QWK" not in found(tmp_path)["few images"]


def test_few_referable_images_give_no_interval_of_their_auroc(tmp_path):
    run = write_run(tmp_path / "run")
    edit_predictions(run, lambda frame: frame[(frame["target"] < 2) | (frame.index < 12)])
    targets = pd.read_csv(run / "predictions_test.csv")["target"]
    assert 0 < (targets >= 2).sum() < 8
    runs = [read_run(each) for each in find_runs([tmp_path])]
    texts = [finding.text for finding in findings_of(runs, tables_of(runs)) if finding.kind == "few images"]
    few = f"fewer than 8 images ({(targets >= 2).sum()}) are referable"
    assert any("AUROC, referable" in text and few in text for text in texts)


def test_one_error_in_200_images_is_shown_to_be_better_than_the_baseline(tmp_path):
    def one_error(frame):
        frame["prediction"] = frame["target"] = np.arange(len(frame)) % 5
        frame.loc[0, "prediction"] = 4
        return frame

    edit_predictions(write_run(tmp_path / "run", images=200), one_error)
    runs = [read_run(each) for each in find_runs([tmp_path])]
    (table,) = tables_of(runs, "accuracy")
    assert table.scored[0].scores["accuracy"] == 0.995
    assert "may be no better than always predicting one class" not in {each.kind for each in findings_of(runs, [table])}


def test_a_group_below_the_baseline_is_named(tmp_path):
    write_run(tmp_path / "good", 50, skill=3.0)
    bad = write_run(tmp_path / "bad", 18)
    edit_predictions(bad, lambda frame: frame.assign(prediction=4 - frame["target"]))
    expected = "the measured accuracy is not above the majority baseline: depth=18"
    assert found(tmp_path, "accuracy")["no better than always predicting one class"] == expected
    write_run(tmp_path / "constant", 34, skill=0.0)  # named as collapsed
    expected += " (besides 1 collapsed group)"
    assert found(tmp_path, "accuracy")["no better than always predicting one class"] == expected


def test_a_group_below_the_baseline_whose_interval_includes_it_may_be_no_better(tmp_path):
    run = write_run(tmp_path / "run", 18)

    def slightly_worse(frame):
        healthy, moderate = (frame.index[frame["target"] == grade] for grade in (0, 2))
        called = frame.index.isin([*healthy[:12], *moderate[:9]])
        return frame.assign(prediction=np.where(called, 2, 0))

    edit_predictions(run, slightly_worse)
    runs = [read_run(each) for each in find_runs([tmp_path])]
    findings = {each.kind: each for each in findings_of(runs, tables_of(runs, "accuracy"))}
    finding = findings["may be no better than always predicting one class"]
    assert finding.is_fault
    assert finding.text == "the measured accuracy is not above the majority baseline: depth=18 pretrained=none"
    assert "no better than always predicting one class" not in findings


def test_the_same_images_under_other_class_names_share_no_table(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", class_names=["0", "1", "2", "3", "4"])
    runs = [read_run(run) for run in find_runs([tmp_path])]
    assert len(tables_of(runs)) == 2
    texts = found(tmp_path)
    assert "0, 1, 2, 3, 4 against no DR, mild" in texts["different class names"]
    assert "do not compare" in texts["different test sets"]
    assert "combine" not in texts["different test sets"]


def test_runs_with_the_same_error_share_a_line(tmp_path):
    write_run(tmp_path / "fine")
    for number in range(12):
        write_run(tmp_path / f"failed{number:02d}", seed=number, state="failed", error="out of memory")
    assert found(tmp_path)["failed"] == "12 runs: out of memory: failed00; failed01; failed02; and 9 more"


def test_runs_that_failed_at_the_start_share_a_line_with_the_remedy(tmp_path):
    for number, error in enumerate(("no column stage", "no GPU")):
        write_run(tmp_path / f"failed{number}", seed=number, state="failed", error=error, epoch=-1)
    write_run(tmp_path / "late", seed=2, state="failed", error="out of memory")
    notes = found(tmp_path)
    assert notes["failed at the start"] == (
        "2 runs ended with an error before the end of the first epoch; train again, or remove the folders (rm -r) "
        "to leave out such runs: failed0: no column stage; failed1: no GPU"
    )
    assert notes["failed"] == "late: out of memory"


def test_damaged_validation_files_are_reported(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "predictions_val.csv").write_text("image,target\n")
    assert found(tmp_path)["validation damaged"].startswith("run: predictions_val.csv")


def test_nearly_constant_predictions_are_a_collapse(tmp_path):
    def spoil(frame):
        shares = [f"p_{k}" for k in range(5)]
        frame.loc[3:, shares] = [0.8, 0.05, 0.05, 0.05, 0.05]
        frame.loc[3:, "prediction"] = 0
        return frame

    edit_predictions(write_run(tmp_path / "run"), spoil)
    assert "collapsed" in found(tmp_path)


def test_runs_on_originals_and_on_prepared_files_are_a_finding(tmp_path):
    write_run(tmp_path / "a", pixels="originals")
    write_run(tmp_path / "b", seed=1, pixels=None)  # not known yet
    write_run(tmp_path / "c", seed=2, prepared=None)  # an older version
    write_run(tmp_path / "d", seed=3)  # a version without prepared sets
    assert "different image files" not in found(tmp_path)
    write_run(tmp_path / "e", seed=4, prepared="/somewhere/prepared")
    write_run(tmp_path / "f", seed=5, pixels="prepared")
    assert found(tmp_path)["different image files"] == (
        "the runs read the same images from different files: originals (a, c, d); prepared (e, f)"
    )
    for place in "ef":
        shutil.rmtree(tmp_path / place)
    write_run(tmp_path / "other", config={"data.name": "flowers"}, pixels="prepared", seed=6)
    assert "prepared (other)" in found(tmp_path)["different image files"]  # the name of the data is arbitrary


def test_files_of_other_digests_are_a_finding_if_images_and_recipe_are_the_same(tmp_path):
    def write(name, pixels, digest, seed, **recipe):
        noted = {"pixels": pixels, "recipe": {"version": 2, **recipe}, "pixel_digests": {"train": digest}}
        write_run(tmp_path / name, seed=seed, **noted)

    write("a", "prepared", "1" * 16, 0, image_size=512)
    write("b", "prepared", "2" * 16, 1, image_size=256)
    assert "different image files" not in found(tmp_path)
    write("c", "prepared", "3" * 16, 2, image_size=512)
    text = found(tmp_path)["different image files"]
    assert text.endswith(f"prepared of train with digest {'1' * 16} (a); prepared of train with digest {'3' * 16} (c)")
    for place in "abc":
        shutil.rmtree(tmp_path / place)
    write("a", "originals", "1" * 16, 0, image_size=512)
    write("b", "originals", "1" * 16, 1, image_size=256)
    assert "different image files" not in found(tmp_path)
    write("c", "originals", "2" * 16, 2, image_size=128)
    assert "originals of train" in found(tmp_path)["different image files"]


@pytest.mark.parametrize(("target", "differ"), [("digits.Digits", False), ("resnet_lab.data.cifar10.Cifar10", True)])
def test_an_own_key_of_a_data_set_from_outside_may_change_its_images(tmp_path, target, differ):
    for seed, invert in enumerate((True, False)):
        config = {"data._target_": target, "data.invert": invert}
        write_run(tmp_path / str(seed), seed=seed, config=config, pixels="originals", pixel_digests={"test": str(seed)})
    assert ("different image files" in found(tmp_path)) == differ


def test_pixels_of_other_versions_of_the_recipe_are_a_finding(tmp_path):
    for seed in (2, 3):
        write_run(tmp_path / str(seed), seed=seed, pixels="originals", recipe={"version": seed})
    assert found(tmp_path)["different image files"].endswith("version 2 of the recipe (2); version 3 of the recipe (3)")


@pytest.mark.parametrize("figures", [5, ["recal"], [["accuracy"]], "recal,accuracy", None])
def test_unknown_pictures_are_a_finding_and_not_an_error(tmp_path, figures):
    write_run(tmp_path / "fine", seed=0, config={"figures": ["accuracy"]})
    write_run(tmp_path / "odd", seed=1, config={"figures": figures})
    text = found(tmp_path).get("unknown figure", "")
    assert text.endswith("cost") if figures else text == ""
    assert "(1 of 2 runs: odd)" in text if figures else True
    (group,) = tables_of([read_run(run) for run in find_runs([tmp_path])])
    assert "recal" not in figures_of(group)


def test_epochs_missing_in_metrics_csv_are_a_finding(tmp_path):
    run = write_run(tmp_path / "run", epochs=6)
    assert "epochs lost" not in found(tmp_path)
    text = (run / "metrics.csv").read_text()
    for left, lines in ((3, 4), (0, 0)):
        (run / "metrics.csv").write_text("".join(text.splitlines(keepends=True)[:lines]))
        assert found(tmp_path)["epochs lost"].startswith(f"run: metrics.csv has {left} of 6 epochs; ")


@pytest.mark.parametrize(
    ("lines", "epochs"),
    [
        (["epoch,loss", "0,1", "1,2"], 2),
        (["loss,epoch", "1,0", "2,1"], 2),
        (["epoch,loss", "0,1", "1,2", "1,3"], 2),
        (["epoch,loss", "0,1", "1,2,3"], 0),
        (["epoch,loss", "0,1", "one,2"], 1),
        (["epoch,loss", "5,1", "", "6,x"], 2),
        (["loss", "1"], 0),
        ([], 0),
    ],
)
def test_epochs_of_a_file_are_those_that_pandas_reads(tmp_path, lines, epochs):
    file = tmp_path / "metrics.csv"
    file.write_text("".join(f"{line}\n" for line in lines) + "9,9")  # the last line is incomplete
    assert len(read_metrics(file)) == epochs
    assert [has_epochs(file, number) for number in (epochs, epochs + 1)] == [True, False]


@pytest.mark.parametrize(("images", "size"), [(14, "test has 14 images of 7 patients; "), (16, "")])
def test_a_test_set_smaller_than_any_checked_one_is_named(tmp_path, images, size):
    write_run(tmp_path / "run", images=images)
    assert found(tmp_path).get("few patients", "").startswith(size)
    assert ("few patients" in found(tmp_path)) == bool(size)


@pytest.mark.parametrize("split", ["train", "val"])
def test_groups_trained_on_different_data_are_a_fault_and_their_difference_has_another_cause(tmp_path, split):
    for depth in (18, 50):
        for seed in (0, 1):
            run = write_run(
                tmp_path / f"{depth}{seed}", depth, seed=seed, images=900, skill=1.0 if depth == 18 else 3.0
            )
            known = json.loads((run / "status.json").read_text())["split_fingerprint"]
            change_status(run, split_fingerprint=known | {split: f"{depth}" * 8})
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    tables = tables_of(runs)
    found = [each for each in findings_of(runs, tables) if each.kind == "different data"]
    assert [(each.is_fault, set(each.names)) for each in found] == [(True, {"depth=18", "depth=50"})]
    (effect,) = effects_of(tables[0])
    assert f"These groups had different images or labels in {split}, which may cause the difference." in str(effect)
    assert "It raises" not in str(effect)
    for run in tmp_path.glob("50*"):  # other images on purpose
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["max_images"] = 100
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    assert not [each for each in findings_of(runs, tables_of(runs)) if each.kind == "different data"]


def test_a_single_seed_is_estimated_only_from_groups_of_its_table(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"a{seed}", 18, seed=seed, test_set="a" * 16)
    write_run(tmp_path / "b", 50, test_set="b" * 16)
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    (found,) = [each for each in findings_of(runs, tables_of(runs)) if each.kind == "one seed only"]
    assert "estimated" not in found.text
    write_run(tmp_path / "c", 34, test_set="a" * 16)
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    texts = [each.text for each in findings_of(runs, tables_of(runs)) if each.kind == "one seed only"]
    assert ["estimated from the other groups" in text for text in texts] == [False, True]


def test_a_group_with_different_code_of_its_own_is_a_fault(tmp_path):
    for seed, code in enumerate(("a", "a", "b")):
        write_run(tmp_path / str(seed), seed=seed, own_code={"mynet.Focal": code * 16})
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    (found,) = [each for each in findings_of(runs, tables_of(runs)) if each.kind == "different code"]
    assert "its runs had different code of mynet.Focal" in found.text
    assert found.names == ("2",)


def test_predictions_that_do_not_follow_from_their_probabilities_are_a_fault(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, decision="argmax")
    edit_predictions(tmp_path / "1", lambda frame: frame.assign(prediction=frame["target"]))
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    (found,) = [each for each in findings_of(runs, tables_of(runs)) if each.kind == "edited predictions"]
    assert found.names == ("1",)
    frame = pd.read_csv(tmp_path / "1" / "predictions_test.csv")
    wrong = (frame.filter(like="p_").to_numpy().argmax(axis=1) != frame["prediction"]).sum()
    assert f"in {wrong} rows of 1 run" in found.text
