"""The report on made-up runs: rows, and agreement of page, tables and terminal."""

import csv
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run, write_sweep
from PIL import Image

from resnet_lab.errors import UserError
from resnet_lab.report import __main__ as report
from resnet_lab.report import page
from resnet_lab.report.groups import tables_of
from resnet_lab.report.leaderboard import rows_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.summaries import markdown, summary, text_table
from resnet_lab.run_folder import find_runs
from resnet_lab.scores import SCORES


def table_of(*folders):
    (table,) = tables_of([read_run(folder) for folder in find_runs(folders)])
    return table


@pytest.fixture
def undrawn(monkeypatch):
    """Make reports without pictures, which take most of the time."""
    monkeypatch.setattr(page, "pictures", lambda *_: {})


def test_the_baseline_is_the_training_majority_on_these_images(tmp_path):
    write_run(tmp_path / "run", class_counts={"train": [1, 9, 2, 0, 0]})
    targets = pd.read_csv(tmp_path / "run" / "predictions_test.csv")["target"]
    (row,) = [row for row in rows_of(table_of(tmp_path)) if row.kind == "baseline"]
    assert row.label == "majority baseline: always predicting “mild”"
    assert row.cells == ["0.000", f"{100 * np.mean(targets == 1):.2f}", "20.00", "0.500"]
    table = table_of(tmp_path)
    table.scored[0].baseline["qwk"] = -2.220446049250313e-16  # by rounding
    assert str(summary([table])["baseline_qwk"][0]) == "0.0"


def test_missing_runs_of_a_group_are_beside_its_name(tmp_path):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "flat", seed=1, skill=0.0)
    write_run(tmp_path / "failed", seed=2, state="failed", error="boom")
    row = rows_of(table_of(tmp_path))[0]
    assert (row.n, row.remark) == ("2", "1 without a result, 1 collapsed")


def test_no_result_at_all_is_a_table_of_dashes(tmp_path):
    write_run(tmp_path / "run", state="failed", error="boom")
    table = table_of(tmp_path)
    assert table.title == "No run has a result"
    (row,) = rows_of(table)
    assert (row.n, set(row.cells)) == ("0", {"–"})


@pytest.mark.slow
def test_all_files_agree(tmp_path, as_asked, capsys):
    sweep, out = write_sweep(tmp_path / "sweep", seeds=(0, 1)), tmp_path / "out"
    report.command([str(sweep), f"out={out}"])
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
    with Image.open(out / "report_figures" / "accuracy.png") as picture:
        assert picture.width > picture.height  # two panels in a row


def test_pictures_of_an_earlier_report_are_removed(tmp_path, undrawn):
    run = write_run(tmp_path / "run")
    (run / "report_figures").mkdir()
    own = {"mine.png", "accuracy_mine.png", "roc_2024.png", "cost.png.txt"}
    for name in ("accuracy_2.png", "confusion_matrices.png", "cost_1_table2.png", *own):
        (run / "report_figures" / name).touch()
    report.command([str(run)])
    assert {file.name for file in (run / "report_figures").iterdir()} == own


def test_each_table_has_its_pictures(tmp_path, monkeypatch):
    suffixes = []
    monkeypatch.setattr(page, "pictures", lambda table, names, folder, suffix: suffixes.append(suffix) or {})
    for seed, test_set in ((0, "a" * 16), (1, "c" * 16)):
        write_run(tmp_path / str(seed), seed=seed, test_set=test_set)
    report.command([str(tmp_path)])
    report.command([str(tmp_path / "0")])
    assert suffixes == ["_table1", "_table2", ""]


def test_deviation_is_empty_for_a_single_run(tmp_path, undrawn):
    report.command([str(write_run(tmp_path / "run"))])
    with (tmp_path / "run" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["n"], row["accuracy_std"], row["group"]) == ("1", "", "depth=18 pretrained=none")


KILLED = """
import os, sys
from resnet_lab.report import __main__ as report, page
own, picture = os.getpid(), page.picture
def killed(name, table):
    if name == "roc" and os.getpid() != own:
        os.kill(os.getpid(), 9)
    return picture(name, table)
page.picture = killed
report.command(sys.argv[1:], fork=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [["-m", "resnet_lab.report"], ["-c", KILLED]], ids=["two", "killed"])
def test_two_processes_make_the_same_report(tmp_path, program):
    folders = [
        str(write_run(tmp_path / f"{depth}_{seed}", depth, seed=seed)) for seed in range(20) for depth in (18, 34)
    ]
    report.command([*folders, f"out={tmp_path / 'here'}"])
    command = [sys.executable, *program, *folders, f"out={tmp_path / 'beside'}"]
    subprocess.run(command, check=True, capture_output=True)
    files = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in ("here", "beside")
    }
    assert len(files["here"]) > 4
    assert files["here"] == files["beside"]


@pytest.mark.slow
def test_the_page_is_one_file_with_every_picture_and_escaped_names(tmp_path):
    write_run(tmp_path / "<i>a_b", 18, class_names=["<script>alert(1)</script>", "$x^$", "b|c", "d", "e"])
    write_run(tmp_path / "b", 50, state="failed", error="<img src=x>")
    report.command([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<i>" not in page
    assert "<img src=x>" not in page
    panels = page.count('<div class="panels">')
    alts = re.findall(r'alt="([^"]*)"', page)
    assert (panels, len(alts), page.count("data:image/png;base64,")) == (3, 14, 14)  # 1 of curves, 6 + 6 + 1 of panels
    assert re.search(r"ROC: b\|c: .* AUC \d\.\d{3}$", "\n".join(alts), re.MULTILINE)
    assert re.search(r"Reliability: .*: ECE \d\.\d{3}$", "\n".join(alts), re.MULTILINE)
    assert page.count('<ul class="legend">') == 2  # of the curves over groups
    assert not re.search(r'(src|href)="(https?:|/)', page)
    assert "<script" not in (tmp_path / "summary.md").read_text()
    assert "&lt;i&gt;a_<wbr>b" in page


def test_a_mailed_page_links_only_to_itself(tmp_path, undrawn):
    write_run(tmp_path / "sweep" / "a")
    report.command([str(tmp_path / "sweep"), f"out={tmp_path / 'docs' / 'page'}"])
    page = (tmp_path / "docs" / "page" / "report.html").read_text()
    assert {address[:1] for address in re.findall(r'href="([^"]*)"', page)} == {"#"}
    assert str(tmp_path) not in page


def test_the_metric_that_ranks_has_the_first_column(tmp_path):
    for seed, skill in enumerate((1.0, 3.0)):
        write_run(tmp_path / str(skill), 18 + 16 * seed, skill=skill, seed=seed)
    (table,) = tables_of([read_run(folder) for folder in find_runs([tmp_path])], "auroc")
    text = text_table(table)
    assert re.search(r"^group +n +AUROC +QWK ", text, re.MULTILINE)
    for group in table.groups:
        value = SCORES["auroc"].text(*group.mean_and_std("auroc"))
        assert re.search(rf" 1 +{value} ", text, re.MULTILINE)
    assert "| group | n | AUROC | QWK |" in markdown([table], [])


def test_lines_fit_a_terminal(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, pretrained=f"/{name}/" + "very_long_folder_name" * 3 + "/best.ckpt")
    title, *lines = text_table(table_of(tmp_path)).splitlines()
    assert title.startswith("retinopathy, test split")
    assert "QWK" in lines[0]
    assert max(map(len, lines)) == 80
    assert "".join(line.strip() for line in lines).count("very_long_folder_name") == 6


def test_bad_input_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "run")
    for arguments, words in (
        ([], "missing DIR.*resnet-lab report --help"),
        ([f"out={tmp_path}"], "missing DIR"),
        ([str(tmp_path / "absent")], "absent is not a folder"),
        ([str(run), "to=x"], "to=x is not a folder"),
        ([str(tmp_path / "empty")], "no run"),
        ([str(run), f"out={tmp_path / 'file'}"], "name a folder, not a file"),
    ):
        with pytest.raises(UserError, match=words):
            report.command(arguments)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_report_loads_nothing_heavy_and_survives_damage(tmp_path):
    write_run(tmp_path / "fine")
    write_run(tmp_path / "hurt", seed=1)
    (tmp_path / "hurt" / "status.json").write_text("{")
    code = (
        "import sys; from resnet_lab.report import __main__ as report; from resnet_lab.command_line import run_command;"
        "code = run_command(report.command);"
        "heavy = {'torch', 'lightning', 'matplotlib.pyplot', 'hydra', 'omegaconf'};"
        "print('heavy', sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy []"
    assert "depth=18" in done.stdout
    assert "hurt: status.json is damaged" in done.stdout
    assert [line for line in done.stderr.splitlines() if not re.search(r"\d of \d", line)] == []  # only progress lines
