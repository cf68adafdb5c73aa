"""The report on made-up runs: what it groups, computes, warns of and writes, and that damage is not fatal."""

import csv
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run, write_sweep
from PIL import Image
from sklearn import metrics

from resnet_lab import report
from resnet_lab.run_folder import RunFolder, find_runs


def compare(*folders, out=None):
    """What `main` reads, without drawing anything."""
    runs = [report.read_run(folder) for folder in find_runs(folders)]
    tables = report.tables_of(runs)
    return runs, tables, report.findings_of(runs, tables, out or folders[0])


def kinds(findings) -> list[str]:
    return [finding.kind for finding in findings]


def labels(table) -> list[str]:
    return [group.label for group in table.groups]


def test_numbers_come_from_the_stored_predictions(tmp_path):
    run = report.read_run(RunFolder(write_run(tmp_path / "run", metrics={"test/accuracy": 0.1})))
    stored = pd.read_csv(tmp_path / "run" / "predictions_test.csv")
    assert run.scores["accuracy"] == pytest.approx(np.mean(stored["target"] == stored["prediction"]))
    kappa = metrics.cohen_kappa_score(stored["target"], stored["prediction"], weights="quadratic")
    assert run.scores["qwk"] == pytest.approx(kappa)
    assert run.counts.sum() == 400


def test_seeds_make_a_group_with_mean_and_sample_deviation(tmp_path):
    _, (table,), findings = compare(write_sweep(tmp_path / "sweep"))
    assert labels(table) == [
        "depth=18 pretrained=none",
        "depth=18 pretrained=IMAGENET1K_V1",
        "depth=50 pretrained=none",
        "depth=50 pretrained=IMAGENET1K_V1",
    ]
    group = table.groups[1]
    values = [run.scores["auroc"] for run in group.runs]
    assert group.mean_and_std("auroc") == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert kinds(findings) == ["collapsed"]
    assert findings[0].text == "depth=18 pretrained=none: 3 of 3 answer one class (seed 0, 1, 2)"


def test_groups_are_sorted_by_number_not_by_text(tmp_path):
    for lr in (0.1, 0.01, 5, 10):
        write_run(tmp_path / str(lr), config={"optim.lr": lr})
    (table,) = compare(tmp_path)[1]
    assert labels(table) == ["lr=0.01", "lr=0.1", "lr=5", "lr=10"]


def test_axes_leave_out_seeds_and_paths_and_keep_names_short_but_unique(tmp_path):
    write_run(tmp_path / "a", seed=0, config={"sweep_dir": "x", "name": "x", "optim.lr": 0.1, "head.lr": 1})
    write_run(tmp_path / "b", seed=1, config={"sweep_dir": "y", "name": "y", "optim.lr": 0.2, "head.lr": 2})
    _, (table,), _ = compare(tmp_path)
    assert list(table.groups[0].values) == ["optim.lr", "head.lr"]
    assert labels(table) == ["optim.lr=0.1 head.lr=1", "optim.lr=0.2 head.lr=2"]


def test_targets_are_named_by_their_last_part_and_missing_keys_left_out(tmp_path):
    write_run(tmp_path / "a", config={"optim": {"_target_": "resnet_lab.optim.sgd", "momentum": 0.9}})
    write_run(tmp_path / "b", config={"optim": {"_target_": "resnet_lab.optim.nadam"}})
    assert labels(compare(tmp_path)[1][0]) == ["optim=nadam", "optim=sgd momentum=0.9"]


def test_checkpoint_paths_are_as_short_as_tells_them_apart(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, pretrained=f"/long/path/runs/{name}/checkpoints/best.ckpt")
    write_run(tmp_path / "c", pretrained="/elsewhere/weights/resnet.pt")
    assert labels(compare(tmp_path)[1][0]) == [
        "pretrained=weights/resnet.pt",
        "pretrained=a/checkpoints/best.ckpt",
        "pretrained=b/checkpoints/best.ckpt",
    ]


def test_different_test_sets_never_share_a_table(tmp_path):
    for seed, test_set in ((0, "a" * 16), (1, "a" * 16), (2, "c" * 16)):
        write_run(tmp_path / str(seed), seed=seed, test_set=test_set)
    _, tables, findings = compare(tmp_path)
    assert [[len(group.scored) for group in table.groups] for table in tables] == [[2], [1]]
    assert "aaaaaaaa" in tables[0].title
    assert "cccccccc" in tables[1].title
    assert "different test sets" in kinds(findings)


def test_the_baseline_is_the_training_majority_on_these_images(tmp_path):
    write_run(tmp_path / "run", class_counts={"train": [1, 9, 2, 0, 0], "val": [2, 2, 0, 0, 0]})
    targets = pd.read_csv(tmp_path / "run" / "predictions_test.csv")["target"]
    _, (table,), _ = compare(tmp_path)
    row = report.rows_of(table)[-1]
    assert row.label == "majority baseline: always “mild”"
    assert row.cells == [f"{100 * np.mean(targets == 1):.2f}", "20.00", "0.000", "0.500"]
    assert report._val_baseline(table) == 50


def test_the_largest_class_stands_in_where_training_counts_are_unknown(tmp_path):
    write_run(tmp_path / "run", class_counts=None)
    assert report.read_run(RunFolder(tmp_path / "run")).majority == "no DR"


def test_kappa_is_shown_for_ordered_classes_only(tmp_path):
    write_run(tmp_path / "grades" / "0")
    write_run(tmp_path / "birds" / "0", class_names=["duck", "goose", "swan"])
    shown = [compare(tmp_path / name)[1][0].metrics for name in ("grades", "birds")]
    assert ["qwk" in names for names in shown] == [True, False]


def test_without_a_test_split_validation_stands_in_and_says_so(tmp_path):
    write_run(tmp_path / "run", split="val")
    _, (table,), findings = compare(tmp_path)
    assert table.title.startswith("retinopathy, val split: 400 images")
    assert "no test split" in kinds(findings)


def test_what_is_wrong_is_said(tmp_path):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "failed", seed=1, state="failed", error="OutOfMemoryError: 6 GB\nTraceback")
    write_run(tmp_path / "killed", seed=2, state="running", epoch=3)
    write_run(tmp_path / "leaky", seed=3, leaks=5618, skipped_images=2)
    write_run(tmp_path / "dropped", seed=4, leaks=5618, config={"data.on_leak": "drop"})
    write_run(tmp_path / "again", seed=0)
    found = dict(compare(tmp_path)[2])
    assert found["failed"] == "failed: OutOfMemoryError: 6 GB"
    assert found["interrupted"] == "killed: no result, epoch 3"
    assert found["leaking"] == "5618 training images share a patient with another split (1 of 6 runs)"
    assert found["skipped images"] == "2 images could not be read (1 of 6 runs)"
    assert found["seed twice"] == "on_leak=ignore: seed 0 counts more than once; n is too large"
    assert found["one seed only"] == "no spread is known of on_leak=drop"


def test_one_answer_to_everything_is_a_collapse_whatever_the_status_says(tmp_path):
    write_run(tmp_path / "run", skill=0.0, collapsed=False)
    assert kinds(compare(tmp_path)[2]) == ["collapsed", "one seed only"]


def test_runs_without_a_result_count_in_their_group_but_not_in_its_mean(tmp_path):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "stale", seed=1, state="failed", error="late", skill=0.0)
    write_run(tmp_path / "bare", seed=2)
    (tmp_path / "bare" / "predictions_test.csv").unlink()
    runs, (table,), findings = compare(tmp_path)
    (group,) = table.groups
    assert (len(group.runs), len(group.scored)) == (3, 1)
    assert report.rows_of(table)[0].remark == "2 without result"
    assert ("no result", "bare: no predictions_test.csv; evaluate the run") in findings
    assert not {run.folder.path.name: run.scores for run in runs}["stale"]


def test_no_result_at_all_is_a_table_of_dashes(tmp_path):
    write_run(tmp_path / "run", state="failed", error="boom")
    _, (table,), _ = compare(tmp_path)
    assert table.title == "No run has a result"
    (row,) = report.rows_of(table)
    assert (row.n, set(row.cells)) == ("0", {"–"})


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("status.json", '{"state": "do', "status.json is damaged"),
        ("status.json", "[]", "status.json is damaged"),
        ("config.yaml", "model: {depth: 18", "config.yaml is damaged"),
        ("config.yaml", "", "config.yaml holds NoneType, not keys"),
        ("predictions_test.csv", "", "predictions_test.csv is damaged"),
        ("predictions_test.csv", "image,patient\na,b\n", "predictions_test.csv is damaged"),
        ("predictions_test.csv", "image,patient,target,prediction,p_0\n", "has no rows"),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,1,.5,.5\nb,1,0,.5\n", "line 3 lacks"),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,2,.5,.5\n", "line 2 lacks a class"),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,1,nan,nan\n", "line 2 lacks"),
        ("predictions_test.csv", "image,target,prediction,p_0,p_1\na,0,1,.5,.5\n", "5 class_names, the predictions 2"),
    ],
)
def test_damaged_files_are_listed_and_the_others_still_compared(tmp_path, file, content, problem):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "hurt", seed=1)
    (tmp_path / "hurt" / file).write_text(content)
    _, (table,), findings = compare(tmp_path)
    (text,) = [finding.text for finding in findings if finding.text.startswith("hurt: ")]
    assert problem in text
    assert "\n" not in text
    assert [run.folder.path.name for run in table.scored] == ["fine"]


def test_names_of_images_are_text(tmp_path):
    file = tmp_path / "predictions_test.csv"
    file.write_text("image,patient,target,prediction,p_0,p_1\nNA,007,0,1,.25,.75\nnull,,1,1,.5,.5\n")
    targets, predictions, probabilities = report.read_predictions(file)
    assert (targets.tolist(), predictions.tolist()) == ([0, 1], [1, 1])
    assert probabilities.tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_half_a_row_of_metrics_is_left_out_and_a_repeated_epoch_counts_once(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,val/accuracy\n0,0.5\n1,0.6\n1,0.61\n2,0.7")
    assert report.read_metrics(file)["val/accuracy"].to_dict() == {0: 0.5, 1: 0.61}
    file.write_text("")
    assert report.read_metrics(file).empty
    assert report.read_metrics(tmp_path / "absent.csv").empty


def test_curves_are_in_percent_by_depth_and_of_the_runs_that_count(tmp_path):
    for seed, state in ((0, "done"), (1, "done"), (2, "failed")):
        write_run(tmp_path / str(seed), seed=seed, state=state)
    write_run(tmp_path / "deep", depth=50, epochs=3)
    _, (table,), _ = compare(tmp_path)
    series = [line for group in table.groups for line in report._series(group)]
    assert [(s.panel, s.label, s.split) for s in series] == [
        (f"depth={depth}", "all runs", split) for depth in (18, 50) for split in ("train", "val")
    ]
    assert series[0].values.shape == (2, 6)
    assert series[2].epochs.tolist() == [0, 1, 2]
    first = pd.read_csv(tmp_path / "0" / "metrics.csv")
    np.testing.assert_allclose(series[0].values[0], 100 * first["train/accuracy"])


def test_the_files_say_the_same(tmp_path, capsys):
    sweep, out = write_sweep(tmp_path / "sweep", seeds=(0, 1)), tmp_path / "out"
    assert report.main([str(sweep), f"out={out}"]) == 0
    shown = capsys.readouterr().out
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model.depth"] for row in rows] == ["18", "18", "50", "50"]
    assert [row["model.pretrained"] for row in rows] == ["none", "IMAGENET1K_V1"] * 2
    assert [row["n_collapsed"] for row in rows] == ["2", "0", "0", "0"]
    best = rows[3]
    text = f"{100 * float(best['accuracy_mean']):.2f} ± {100 * float(best['accuracy_std']):.2f}"
    for document in (shown, (out / "report.html").read_text(), (out / "summary.md").read_text()):
        assert text in document
        assert f"{100 * float(best['baseline_accuracy']):.2f}" in document
    assert (best["split"], best["images"], best["baseline_class"]) == ("test", "400", "no DR")
    for name in ("report.html", "summary.csv", "summary.md", "report_figures/confusion_matrices.png"):
        assert str(out / name) in shown
    assert not list(sweep.glob("*.html"))
    with Image.open(out / "report_figures" / "curves.png") as picture:
        assert picture.width > picture.height  # two panels in a row


def test_deviation_is_empty_for_a_single_run(tmp_path):
    assert report.main([str(write_run(tmp_path / "run"))]) == 0
    with (tmp_path / "run" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["n"], row["accuracy_std"], row["group"]) == ("1", "", "depth=18 pretrained=none")


def test_the_page_is_one_file_with_every_picture_and_escaped_names(tmp_path):
    write_run(tmp_path / "<i>a", 18, class_names=["<script>alert(1)</script>", "$x^$", "b|c", "d", "e"])
    write_run(tmp_path / "b", 50, state="failed", error="<img src=x>")
    assert report.main([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page
    assert "<img src=x>" not in page
    assert page.count("data:image/png;base64,") == 3  # curves wide and narrow, one matrix
    assert not re.search(r'(src|href)="(https?:|/)', page)
    assert "<script" not in (tmp_path / "summary.md").read_text()
    assert 'href="./%3Ci%3Ea/"' in page


def test_lines_fit_a_terminal(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, pretrained=f"/{name}/" + "very_long_folder_name" * 3 + "/best.ckpt")
    title, *lines = report.text_table(compare(tmp_path)[1][0]).splitlines()
    assert title.startswith("retinopathy, test split")
    assert "QWK" in lines[0]
    assert max(map(len, lines)) == 110
    assert "".join(line[:43].strip() for line in lines).count("very_long_folder_name") == 6


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "run")
    for arguments, words in (
        ([str(tmp_path / "absent")], "absent is not a folder"),
        ([str(tmp_path / "empty")], "no run"),
        ([str(run), f"out={tmp_path / 'file'}"], "cannot be written"),
    ):
        assert report.main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert words in shown.err
        assert shown.err.count("\n") == 1
    assert report.main([]) == 2
    assert report.main(["--help"]) == 0


def test_the_report_loads_nothing_heavy_and_survives_damage(tmp_path):
    write_run(tmp_path / "fine")
    write_run(tmp_path / "hurt", seed=1)
    (tmp_path / "hurt" / "status.json").write_text("{")
    code = (
        "import sys; from resnet_lab import report; code = report.main(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'sklearn', 'scipy', 'matplotlib.pyplot', 'hydra'} & set(sys.modules);"
        "print('heavy', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy []"
    assert "depth=18" in done.stdout
    assert "hurt: status.json is damaged" in done.stdout
    assert done.stderr == ""
