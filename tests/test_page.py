"""The page of a report: its sections, and messages instead of a crash for bad input."""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import change_status, edit_predictions, write_run, write_sweep
from matplotlib.colors import to_rgb
from waiting import PATIENCE

from resnet_lab.errors import UserError
from resnet_lab.report import __main__ as report
from resnet_lab.report import page
from resnet_lab.report.drawing import Picture
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import read_predictions, read_run
from resnet_lab.run_folder import find_runs


def page_of(folder, *options) -> str:
    report.command([str(folder), *options])
    return (folder / "report.html").read_text()


def words(text: str) -> str:
    """Return the visible text in one line."""
    visible = re.sub(r"<(style|script)\b.*?</\1>", "", text.replace("<wbr>", ""), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", visible)).split())


def difference_of(text: str) -> dict:
    """Return the data of the script that compares two runs."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_the_contents_lead_to_every_section(tmp_path, undrawn):
    for sweep in ("a", "b"):
        write_sweep(tmp_path / sweep, seeds=(0,))
    text = page_of(tmp_path)
    targets = re.findall(r'href="#([^"]+)"', text)
    assert len(targets) >= 10
    assert [name for name in targets if f'id="{name}"' not in text] == []


def test_tied_and_behind_are_words_of_the_page_and_of_the_summary(tmp_path, undrawn):
    for depth, skill in ((18, 1.0), (34, 3.0), (50, 3.0)):
        write_run(tmp_path / str(depth), depth, skill=skill)
    text = page_of(tmp_path)
    assert 'badge behind">behind</span>' in text
    assert "1 of the other 2 may be as good; 1 is behind." in words(text)
    assert "behind These runs show that the group is worse than the best." in words(text)
    assert "| behind, −" in (tmp_path / "summary.md").read_text()
    assert "the images that are not referable, mild ones included" in words(text)


def test_a_temperature_of_few_validation_images_has_a_caution(tmp_path, undrawn):
    run = write_run(tmp_path / "run")
    frame = pd.read_csv(run / "predictions_test.csv", dtype={"image": str})
    frame.iloc[:14].assign(image=[f"val_{n}" for n in range(14)]).to_csv(run / "predictions_val.csv", index=False)
    change_status(run, split_fingerprint={"test": read_predictions(run / "predictions_test.csv").fingerprint})
    text = page_of(tmp_path)
    assert '<td data-title="validation images">14</td>' in text
    assert "With fewer than 100 validation images, the temperature is uncertain" in words(text)


def test_findings_come_before_any_number(tmp_path, undrawn):
    write_sweep(tmp_path / "sweep", seeds=(0,))
    text = page_of(tmp_path / "sweep")
    assert text.index("What is wrong") < text.index("What limits these numbers") < text.index("Leaderboard by")


def test_the_difference_has_the_counts_of_every_group_and_run(tmp_path, undrawn):
    write_sweep(tmp_path / "sweep", seeds=(0, 1))
    data = difference_of(page_of(tmp_path / "sweep"))
    runs = [read_run(run) for run in find_runs([tmp_path / "sweep"])]
    assert [side["label"] for side in data["sides"]][3:6] == [
        "depth=18 pretrained=none",  # the groups and their runs have the order of the leaderboard
        "depth=50 pretrained=IMAGENET1K_V1, seed 0",
        "depth=50 pretrained=IMAGENET1K_V1, seed 1",
    ]
    assert data["sides"][10]["counts"] == next(run for run in runs if run.collapsed).counts.tolist()
    assert np.sum([side["counts"] for side in data["sides"]], axis=(1, 2)).tolist() == [800] * 4 + [400] * 8


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (3, 3), (4, 4), (5, 3), (6, 3), (9, 3)])
def test_matrices_fill_their_rows_about_equally(number, columns):
    assert page.columns_of(number, room=4) == columns


def test_matrices_have_the_order_of_the_leaderboard(tmp_path, undrawn):
    for depth, skill in ((18, 1.0), (34, 4.0), (50, 2.0)):
        write_run(tmp_path / str(depth), depth, skill=skill)
    text = words(page_of(tmp_path))
    captions = [f"depth={depth} no DR mild" for depth in (34, 50, 18)]
    places = [text.index(caption) for caption in captions]
    assert places == sorted(places)


def test_the_note_says_how_intervals_are_made(tmp_path, undrawn):
    assert page.method_of("accuracy") == "Wilson's score method"
    for depth in (18, 50):
        write_run(tmp_path / str(depth), depth)
    text = words(page_of(tmp_path))
    assert "The 95 % intervals use Wilson's score method on QWK rescaled from −1…1 to 0…1; they cover" in text
    brackets = (
        "Brackets: 95 % limits of the difference. They hold for all pairs of groups at once, so they can be wider"
    )
    assert brackets in text
    assert brackets not in words(page_of(tmp_path / "18"))


def test_bars_share_a_scale_with_the_baseline(tmp_path):
    bars = page._bars([(0.2, 0.3, 0.4), (np.nan, 0.6, np.nan)], mark=0.1)
    assert [bar.mark for bar in bars] == [3, 3]
    assert bars[1].middle == 97
    assert bars[0].low == pytest.approx(3 + 94 * 0.2)
    assert np.isnan([bars[1].low, bars[1].high]).all()


def test_differences_between_sweeps_are_stated(tmp_path, undrawn):
    for sweep, lr in (("old", 0.1), ("new", 0.01)):
        for depth in (18, 50):
            write_run(tmp_path / sweep / str(depth), depth, config={"optim.lr": lr})
    assert "Differences between the sweeps 1 key: optim.lr key new (2 runs) old (2 runs) optim.lr 0.01 0.1" in words(
        page_of(tmp_path)
    )
    assert "Differences between the sweeps" not in page_of(tmp_path / "old")


def test_another_metric_ranks_and_an_unlogged_metric_is_named(tmp_path, undrawn):
    write_run(tmp_path / "grades" / "0")
    write_run(tmp_path / "birds" / "0", class_names=["duck", "goose", "swan"])
    assert "F1, macro" not in words(page_of(tmp_path / "grades"))
    assert "Leaderboard by AUROC" in page_of(tmp_path / "grades", "metric=auroc")
    assert "Leaderboard by F1, macro" in page_of(tmp_path / "grades", "metric=f1_macro")
    assert "f1_macro_low" in (tmp_path / "grades" / "summary.csv").read_text()
    with pytest.raises(
        UserError, match="metric=charm is in no run; choose among qwk, accuracy, balanced_accuracy, auroc, f1_macro"
    ):
        report.command([str(tmp_path / "grades"), "metric=charm"])
    with pytest.raises(UserError, match="metric=qwk needs classes with an order; choose among accuracy"):
        report.command([str(tmp_path / "birds"), "metric=qwk"])


def test_half_written_files_of_a_killed_run_do_not_affect_the_others(tmp_path, undrawn):
    write_run(tmp_path / "fine")
    killed = write_run(tmp_path / "killed", 50, state="running")
    hurt = write_run(tmp_path / "hurt", 34)
    for run in (killed, hurt):
        for name in ("predictions_test.csv", "metrics.csv"):
            content = (run / name).read_text()
            (run / name).write_text(content[: len(content) // 2 - 3])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("")
    (tmp_path / "empty" / "status.json").write_text("")
    text = words(page_of(tmp_path))
    assert "interrupted: killed: no result, last epoch: 6" in text
    assert "no result: hurt: predictions_test.csv: line 2" in text
    assert "unreadable: empty: " in text
    assert "depth=34 1 without a result" in text
    assert "Report on 4 runs" in text


def test_missing_predictions_are_reported(tmp_path, undrawn):
    write_run(tmp_path / "fine")
    (write_run(tmp_path / "bare", 50) / "predictions_test.csv").unlink()
    assert "no result: bare: no predictions_test.csv; remove its folder and train the run again" in words(
        page_of(tmp_path)
    )


def test_no_result_at_all_is_a_page_too(tmp_path):
    write_run(tmp_path / "run", state="failed", error="boom", epochs=0)
    text = words(page_of(tmp_path))
    assert "failed at the start: 1 run ended with an error before the end of the first epoch" in text
    assert "run: boom" in text
    assert "No run has a result" in text


def test_different_class_names_are_never_ranked_together(tmp_path, undrawn):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", class_names=["0", "1", "2", "3", "4"])
    text = page_of(tmp_path)
    assert text.count("Leaderboard by QWK") == 2
    assert "different class names" in text
    assert "badge" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)  # no group is best or tied


def test_a_class_that_the_test_split_lacks_is_a_dash(tmp_path, undrawn):
    run = write_run(tmp_path / "run")
    edit_predictions(run, lambda frame: frame[frame["target"] != 3])
    text = page_of(tmp_path)
    assert text.count('<td class="empty">–</td>') == 5
    assert "class not tested" in text
    assert re.search(r"severe 0 (–|0\.\d\d 0\.\d\d to \S+) – –", words(text))


def test_one_run_is_a_page_without_comparisons(tmp_path, undrawn):
    text = page_of(write_run(tmp_path / "run"))
    assert "Report on 1 run: somewhere<" in text
    for absent in ("What each setting changes", "Difference of any two", "nan", "None"):
        assert absent not in words(text)


def test_one_seed_has_no_deviation_and_a_note(tmp_path, undrawn):
    for depth in (18, 50):
        write_run(tmp_path / str(depth), depth)
    text = words(page_of(tmp_path))
    assert "one seed only: how much results vary between trainings is unknown for every group" in text
    assert "With one seed each" in text
    assert "nan" not in text


def test_html_in_names_and_paths_is_text(tmp_path, undrawn):
    bad = "<img src=x onerror=alert(1)>"
    for seed in (0, 1):
        write_run(tmp_path / f"<b>&'\"{seed}", seed=seed, class_names=[bad, "</script><script>alert(2)", "c", "d", "e"])
    write_run(tmp_path / "lost", 50, pretrained="<u>web", state="failed", error="<i>boom</i>")
    text = page_of(tmp_path)
    for forbidden in ("<img src=x", "<script>alert", "<b>&", "<u>web", "<i>boom"):
        assert forbidden not in text
    assert difference_of(text)["names"][:2] == [bad, "</script><script>alert(2)"]
    assert bad in html.unescape(text)


@pytest.fixture
def elsewhere():
    """Return a folder that any user can access, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for each in folder.rglob("*"):
        if each.is_dir():
            each.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def nobody():
    """Drop root, which may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_without_read_permission_is_named(elsewhere, undrawn, request):
    write_run(elsewhere / "sweep" / "fine")
    write_run(elsewhere / "sweep" / "locked", 50).chmod(0)
    write_run(elsewhere / "alone" / "run").parent.chmod(0)
    write_run(elsewhere / "more" / "closed" / "run").parent.chmod(0)
    (elsewhere / "out").mkdir()
    (elsewhere / "out").chmod(0o777)
    report.report([str(elsewhere / "sweep" / "fine")], elsewhere / "first")  # loads modules as root
    request.getfixturevalue("nobody")
    shown = report.report([str(elsewhere / "sweep")], elsewhere / "out")
    assert f"unreadable: {elsewhere / 'sweep' / 'locked'}: no permission to read it" in shown
    assert "depth=18" in shown
    with pytest.raises(UserError, match="alone: no permission to read it"):
        report.report([str(elsewhere / "alone")], elsewhere / "out")
    with pytest.raises(UserError, match=r"no run .*; no permission to read .*closed"):
        report.report([str(elsewhere / "more")], elsewhere / "out")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
const cells = document.querySelectorAll(".difference tbody td");
const broken = [...document.images].filter((image) => !image.complete || !image.naturalWidth).length;
const beyond = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = `${innerWidth} px, ${beyond} beyond, ${broken} broken, ${cells.length} cells, ${cells[0].textContent}`;
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page_without_console_messages(tmp_path, width):
    names = ["no DR", "a name that is longer than any name should be", "moderate", "severe", "proliferative"]
    for depth in (18, 50):
        for seed in (0, 1):
            weights = "/long/path/" + "very_long_folder_name" * 4 + "/best.ckpt" if depth == 50 else None
            run = write_run(
                tmp_path / f"a_very_long_name_of_a_run_{depth}_{seed}", depth, weights, seed, class_names=names
            )
    shutil.copy(run / "predictions_test.csv", run / "predictions_val.csv")
    text = page_of(tmp_path)
    frame = tmp_path / "frame.html"  # a browser window cannot be as narrow as a phone
    (tmp_path / "probed.html").write_text(text.replace("</body>", PROBE + "</body>"))
    frame.write_text(
        f'<iframe id="f" src="probed.html" style="width:{width}px;height:900px;border:0"></iframe>'
        '<script>addEventListener("load", () => { document.body.dataset.found = f.contentDocument.title; });</script>'
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--allow-file-access-from-files", "--disable-background-networking", "--disable-component-update",
         f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr", "--window-size=1400,1000",
         "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    found = re.search(r'data-found="([^"]*)"', done.stdout)[1]
    counts = [
        np.sum([read_run(run).counts for run in find_runs([tmp_path]) if f"_{depth}_" in run.path.name], axis=0)
        for depth in (18, 50)
    ]
    shares = [100 * each[0, 0] / each[0].sum() for each in counts]
    first = f"{shares[1] - shares[0]:+.1f}".replace("-", "−")
    assert found == f"{width} px, 0 beyond, 0 broken, 25 cells, {first}"
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
def test_with_many_classes_confusions_are_listed_and_single_classes_folded(tmp_path):
    write_run(tmp_path / "run", class_names=[f"flower {k}" for k in range(22)])
    text = page_of(tmp_path).replace("<wbr>", "")
    assert "most frequent confusions" in text
    assert re.search(r"<li>\d+ % of flower \d+ predicted as flower \d+ \(\d+\)</li>", text)
    summary = r"\s*<summary>\s*<i [^>]*></i>depth=18 pretrained=none\s*</summary>"
    assert re.search(r'<details class="of-group">' + summary, text)
    assert "<details open>" in text  # the confusions
    assert "classes with the lowest recall come first" in words(text)
    write_run(tmp_path / "five" / "run")
    five = page_of(tmp_path / "five").replace("<wbr>", "")
    assert "most frequent confusions" not in five
    assert re.search(r'<details class="of-group" open>' + summary, five)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the WCAG contrast ratio of two colors."""
    levels = np.array([one[:3], other[:3]])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme):
    css = (Path(page.__file__).parents[1] / "page.css").read_text()
    variables = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[scheme]
    colors = {name: to_rgb(value) for name, value in re.findall(r"--(\w+): (#\w+)", variables)}
    texts = {
        "paper": ("ink", "soft", "blue", "alarm"),
        "shade": ("ink", "soft", "alarm"),
        "wrong": ("ink", "alarm"),
        "limits": ("ink", "amber"),
    }
    assert min(contrast(colors[text], colors[ground]) for ground, some in texts.items() for text in some) >= 4.5
    template = Path(page.__file__).with_name("report.html.j2").read_text()
    found = re.search(r'rgba\((\d+), (\d+), (\d+), \{\{ "%.2f"\|format\((\S+) \* part', template)
    *blue, darkest = map(float, found.groups())
    cell = darkest * np.array(blue) / 255 + (1 - darkest) * np.array(colors["paper"])
    assert contrast(colors["ink"], cell) >= 4.5


def test_alternative_texts_name_the_groups_of_a_picture(tmp_path):
    write_sweep(tmp_path, seeds=(0,))
    (table,) = tables_of([read_run(run) for run in find_runs([tmp_path])])
    labels = [group.label for group in table.drawn]
    cost, f1, layers = (Picture(title, "", []) for title in ("Cost", "F1", "Layers"))
    assert page._alts(table, cost, 1) == [f"Cost: {'; '.join(labels)}"]
    assert page._alts(table, f1, 4) == [f"F1: {label}" for label in labels]
    assert page._alts(table, layers, 2)[1] == f"Layers, 2 of 2: {'; '.join(labels)}"


def test_alternative_texts_give_the_values_of_a_picture():
    lines = tuple(f"line {number}: 1 at epoch 1" for number in range(14))
    assert page._alts(None, Picture("Loss", "", [], values=lines[:2]), 1) == [f"Loss: {lines[0]}; {lines[1]}"]
    (many,) = page._alts(None, Picture("Loss", "", [], values=lines), 1)
    assert many.endswith("line 11: 1 at epoch 1; and 2 more")
    assert page._alts(None, Picture("ROC", "", [], values=("no DR: a", "mild: b")), 2) == [
        "ROC: no DR: a",
        "ROC: mild: b",
    ]
