"""The pictures of a report on made-up runs; absent data give no picture."""

import json

import numpy as np
import pandas as pd
import pytest
from fake_runs import edit_predictions, write_run, write_sweep
from sklearn.metrics import precision_recall_fscore_support

from resnet_lab import plots
from resnet_lab.errors import UserError
from resnet_lab.rendering import png
from resnet_lab.report import __main__ as report
from resnet_lab.report import figures
from resnet_lab.report.drawing import colors_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.page import FIGURES
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import find_runs


def table_of(*folders):
    (table,) = tables_of([read_run(folder) for folder in find_runs(folders)])
    return table


def texts(figure) -> str:
    """Return all titles, axis labels and legends."""
    found = [axes.get_title(loc) for axes in figure.axes for loc in ("left", "center", "right")]
    found += [label.get_text() for axes in figure.axes for label in (*axes.get_yticklabels(), *axes.get_xticklabels())]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " | ".join([*found, figure.get_suptitle()])


def test_curves_show_the_baseline_of_their_split(tmp_path):
    counts = {"train": [1, 9, 2, 0, 0], "val": [2, 2, 0, 0, 0], "test": [1, 3, 0, 0, 0]}
    write_run(tmp_path / "run", class_counts=counts)
    table = table_of(tmp_path)
    assert figures.baseline_of(table, {"train", "val"}) == ("val", 50)
    assert figures.baseline_of(table, {"train", "val", "test"}) == ("test", 75)
    assert figures.baseline_of(table, {"train"}) is None


def test_curves_are_in_percent_and_of_counted_runs_only(tmp_path):
    for seed, state in ((0, "done"), (1, "done"), (2, "failed")):
        write_run(tmp_path / str(seed), seed=seed, state=state)
    write_run(tmp_path / "deep", depth=50, epochs=3)
    series = list(figures.series_of(table_of(tmp_path)))
    assert [(s.panel, s.label, s.split) for s in series] == [
        ("", f"depth={depth}", split) for depth in (18, 50) for split in ("train", "val")
    ]
    assert series[0].values.shape == (2, 6)
    assert series[2].epochs.tolist() == [0, 1, 2]
    first = pd.read_csv(tmp_path / "0" / "metrics.csv")
    np.testing.assert_allclose(series[0].values[0], 100 * first["train/accuracy"])


def test_curves_are_described_by_their_first_and_last_means(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, epochs=3)
    frames = [pd.read_csv(tmp_path / str(seed) / "metrics.csv") for seed in (0, 1)]
    first, last = (50 * sum(frame["val/accuracy"][row] for frame in frames) for row in (0, 2))
    (label,) = (group.label for group in table_of(tmp_path).groups)
    train, val = figures.picture("accuracy", table_of(tmp_path)).values
    assert val == f"{label}, val: {first:.3g} at epoch 1, {last:.3g} at epoch 3"
    assert train.startswith(f"{label}, train: ")


def test_each_depth_has_its_panel_where_more_than_the_depth_differs(tmp_path):
    series = list(figures.series_of(table_of(write_sweep(tmp_path / "sweep", seeds=(0,)))))
    assert [(s.panel, s.label) for s in series if s.split == "val"] == [
        (f"depth={depth}", f"depth={depth} pretrained={pretrained}")
        for depth in (18, 50)
        for pretrained in ("IMAGENET1K_V1", "none")  # the better group first, as in every picture
    ]


def test_a_followed_test_split_has_its_curve(tmp_path):
    file = write_run(tmp_path / "run") / "metrics.csv"
    rows = pd.read_csv(file)
    rows.rename(columns=lambda name: name.replace("val/", "test/")).to_csv(file, index=False)
    train, test = figures.series_of(table_of(tmp_path))
    assert (train.split, test.split) == ("train", "test")
    np.testing.assert_allclose(test.values[0], 100 * rows["val/accuracy"])


def test_a_curve_of_training_images_is_labeled(tmp_path):
    file = write_run(tmp_path / "run") / "metrics.csv"
    assert "alone" not in figures.picture("accuracy", table_of(tmp_path)).note
    rows = pd.read_csv(file)
    rows.drop(columns=["val/loss", "val/accuracy"]).to_csv(file, index=False)
    assert "Only training is shown" in figures.picture("accuracy", table_of(tmp_path)).note


def follow(run, **columns):
    """Add columns to a run's metrics.csv; `split__metric` names a column."""
    rows = pd.read_csv(run / "metrics.csv")
    rows.assign(**{name.replace("__", "/"): value for name, value in columns.items()}).to_csv(
        run / "metrics.csv", index=False
    )


def test_the_error_is_of_test_if_followed_and_of_val_otherwise(tmp_path):
    run = write_run(tmp_path / "run")
    (line,) = figures.series_of(table_of(tmp_path), figures.CURVES["error"])
    assert line.split == "val"
    follow(run, test__accuracy=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    (line,) = figures.series_of(table_of(tmp_path), figures.CURVES["error"])
    assert line.split == "test"
    np.testing.assert_allclose(line.values[0], [50, 40, 30, 20, 10, 0])


def test_the_training_loss_covers_all_runs(tmp_path):
    write_sweep(tmp_path / "sweep", seeds=(0,))
    series = list(figures.series_of(table_of(tmp_path), figures.CURVES["train_loss"]))
    assert {line.panel for line in series} == {""}
    assert {line.split for line in series} == {"train"}
    assert len(series) == 4


def test_scores_show_runs_and_the_best_epoch_on_test(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    (drawing,) = figures.picture("scores", table_of(tmp_path)).shown
    assert "Diamonds" not in figures.picture("scores", table_of(tmp_path)).note
    expected = [read_run(folder).scores["accuracy"] for folder in find_runs([tmp_path])]
    dots = next(line for line in drawing.wide.axes[0].get_lines() if line.get_marker() == "o")
    np.testing.assert_allclose(sorted(dots.get_xdata()), sorted(100 * np.array(expected)))
    for seed in (0, 1):
        follow(tmp_path / str(seed), test__accuracy=[0.1, 0.9 + seed / 100, 0.2, 0.3, 0.4, 0.5])
    picture = figures.picture("scores", table_of(tmp_path))
    best = next(line for line in picture.shown[0].wide.axes[0].get_lines() if line.get_marker() == "D")
    assert sorted(best.get_xdata()) == [90, 91]
    assert "Diamonds" in picture.note


def test_recall_has_a_panel_for_each_group_and_a_line_for_each_class(tmp_path):
    for depth in (18, 50):
        run = write_run(tmp_path / str(depth), depth)
        follow(run, **{f"val__recall_{k}": 0.1 * k for k in range(5)})
    (drawing,) = figures.picture("recall", table_of(tmp_path)).shown
    assert [axes.get_title() for axes in drawing.wide.axes] == ["depth=18", "depth=50"]
    assert "proliferative" in texts(drawing.wide)
    values = sorted(line.get_ydata()[0] for line in drawing.wide.axes[0].get_lines())
    np.testing.assert_allclose(values, [0, 10, 20, 30, 40])


def test_gap_is_in_points(tmp_path):
    run = write_run(tmp_path / "run")
    follow(run, train__accuracy=0.9, test__accuracy=0.75)
    (drawing,) = figures.picture("gap", table_of(tmp_path)).shown
    (line,) = drawing.wide.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), 15)


def test_layers_show_the_first_epoch_and_the_last(tmp_path):
    run = write_run(tmp_path / "run")
    rows = [(epoch, "gradient_norm", layer, 10.0**epoch) for epoch in (0, 1, 2) for layer in ("conv1", "fc")]
    pd.DataFrame(rows, columns=["epoch", "quantity", "layer", "value"]).to_csv(run / "layers.csv", index=False)
    shown = figures.picture("layers", table_of(tmp_path)).shown
    assert [drawing.wide.axes[0].get_lines()[0].get_ydata().tolist() for drawing in shown] == [[1, 1], [100, 100]]
    assert len(shown[0].wide.axes) == len(shown[0].narrow.axes) == 3
    (run / "layers.csv").write_text("damaged")
    assert figures.picture("layers", table_of(tmp_path)) is None


def test_scores_by_class_name_the_classes_below_the_pass_mark(tmp_path):
    names = [f"flower {k}" for k in range(102)]
    write_run(tmp_path / "run", class_names=names, images=1020, skill=9.0)
    table = table_of(tmp_path)
    (drawing,) = figures.picture("class_scores", table).shown
    values = figures.mean_class_scores(table.groups[0])
    below = int((np.nan_to_num(values[1]) < figures.PASS).sum())
    assert f"{below} of 102 below 0.7" in texts(drawing.wide)
    predictions = pd.read_csv(tmp_path / "run" / "predictions_test.csv")
    expected = precision_recall_fscore_support(
        predictions["target"], predictions["prediction"], labels=range(102), zero_division=0
    )[:3]
    np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose(figures.band_shares(values).sum(axis=1), 1)


def test_a_class_that_one_run_never_predicts_has_half_the_precision_of_the_other(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, skill=6.0)

    def never_mild(frame):
        frame.loc[frame["p_1"] > 0, "p_1"] = 0.0
        probabilities = [name for name in frame if name.startswith("p_")]
        frame[probabilities] = frame[probabilities].div(frame[probabilities].sum(axis=1), axis=0)
        return frame.assign(prediction=frame[probabilities].to_numpy().argmax(axis=1))

    whole = figures.mean_class_scores(table_of(tmp_path / "0").groups[0])
    edit_predictions(tmp_path / "1", never_mild)
    np.testing.assert_allclose(figures.mean_class_scores(table_of(tmp_path).groups[0])[0, 1], whole[0, 1] / 2)


@pytest.mark.slow
def test_classes_below_the_mark_are_named_or_the_others_if_those_are_fewer(tmp_path):
    names = [f"flower {k}" for k in range(102)]
    for few, caption in (
        (3, "3 of 102 below 0.7: flower 0, flower 1, flower 2"),
        (100, "100 of 102 below 0.7, all but flower 100, flower 101"),
    ):
        values = np.where(np.arange(102) < few, 0.1, 0.9) * np.ones((3, 1))
        assert caption in texts(plots.classes.scores(values, names, 0.7)).replace("\n", " ")
    values = np.where(np.arange(102) < 50, 0.1, 0.9) * np.ones((3, 1))
    assert "flower 19 and 30 more" in texts(plots.classes.scores(values, names, 0.7)).replace("\n", " ")


def test_counts_that_differ_between_groups_are_all_shown(tmp_path):
    counts = {None: [60, 20, 30, 10, 10], 30: [30, 20, 30, 10, 10]}
    for most, train in counts.items():
        for pretrained in (None, "imagenet"):
            status = {"class_counts": {"train": train, "test": [6, 2, 3, 1, 1]}}
            write_run(
                tmp_path / f"{most}{pretrained}", pretrained=pretrained, config={"data.max_per_class": most}, **status
            )
    shown = figures.picture("class_counts", table_of(tmp_path)).shown
    assert [drawing.wide.get_suptitle() for drawing in shown] == ["max_per_class=none", "max_per_class=30"]
    widths = [[bar.get_width() for bar in drawing.wide.axes[0].patches] for drawing in shown]
    assert widths == list(counts.values())
    write_run(tmp_path / "other", seed=1, config={"data.max_per_class": 30}, class_counts={"train": [9, 9, 9, 9, 9]})
    shown = figures.picture("class_counts", table_of(tmp_path)).shown
    assert [drawing.wide.get_suptitle() for drawing in shown] == [
        "max_per_class=none",
        "max_per_class=30",
        "pretrained=none max_per_class=30 seed=1",
    ]
    (drawing,) = figures.picture("class_counts", table_of(tmp_path / "NoneNone")).shown
    assert drawing.wide.get_suptitle() == ""


def test_a_loss_far_above_the_others_makes_the_axis_logarithmic(tmp_path):
    run = write_run(tmp_path / "run")
    assert figures.picture("loss", table_of(tmp_path)).shown[0].wide.axes[0].get_yscale() == "linear"
    follow(run, val__loss=[1.6, 1250.0, 1.5, 1.5, 1.4, 1.4])
    picture = figures.picture("loss", table_of(tmp_path))
    assert picture.shown[0].wide.axes[0].get_yscale() == "log"
    assert "logarithmic" in picture.note
    follow(run, val__loss=[1.6, np.inf, 1.5, 1.5, 1.4, 1.4])
    assert figures.picture("loss", table_of(tmp_path)).shown[0].wide.axes[0].get_yscale() == "linear"


def test_bands_include_their_lower_edge_and_the_last_band_its_upper_one():
    values = np.array([[0.0, 0.5, 0.7, 1.0], [np.nan, 0.69, 0.95, 0.9], [0.1, 0.2, 0.3, 0.4]])
    assert figures.band_shares(values).tolist() == [
        [0.25, 0.25, 0, 0.25, 0, 0.25],
        [0.25, 0, 0.25, 0, 0, 0.5],
        [1, 0, 0, 0, 0, 0],
    ]


def test_bands_leave_out_classes_without_an_image(tmp_path, monkeypatch):
    edit_predictions(write_run(tmp_path / "run", skill=9.0), lambda frame: frame[frame["target"] < 3])
    drawn, bands = [], plots.classes.bands
    monkeypatch.setattr(plots.classes, "bands", lambda shares, edges: drawn.append(shares) or bands(shares, edges))
    assert figures.picture("score_bands", table_of(tmp_path)).note.endswith("2 classes have no image and no share.")
    ((shares,),) = (each.values() for each in drawn)
    assert shares[1].tolist() == [0, 0, 0, 0, 0, 1]  # recall of the three


@pytest.mark.slow
@pytest.mark.parametrize("name", [*figures.CURVES, *figures.PICTURES])
def test_every_picture_is_drawn_or_left_out(name, tmp_path):
    names = ["$x^$", "<b>", *(f"flower {k}" for k in range(100))]
    write_run(tmp_path / "done", class_names=names)
    write_run(tmp_path / "flat", 50, seed=1, class_names=names, skill=0.0, parameters=23_518_277)
    write_run(tmp_path / "failed", seed=2, state="failed", error="boom")
    table = table_of(tmp_path / "done", tmp_path / "flat", tmp_path / "failed")
    drawn = figures.picture(name, table)
    if name in ("layers", "recall"):
        assert drawn is None  # there are no measurements
    else:
        assert all(png(figure) for drawing in drawn.shown for figure in drawing if figure)
    write_run(tmp_path / "alone" / "run", state="failed", error="boom", epochs=0)
    assert figures.picture(name, table_of(tmp_path / "alone")) is None


@pytest.mark.parametrize("name", [*figures.CURVES, "gap"])
def test_runs_without_epochs_have_no_curve(name, tmp_path):
    write_run(tmp_path / "untrained", pretrained="weights.pth", epochs=0)
    assert figures.picture(name, table_of(tmp_path)) is None
    write_run(tmp_path / "trained")
    drawn = figures.picture(name, table_of(tmp_path))
    assert all(png(figure) for drawing in drawn.shown for figure in drawing if figure)


@pytest.mark.slow
def test_runs_choose_their_pictures_and_the_command_line_wins(tmp_path, as_asked, capsys):
    run = write_run(tmp_path / "run", config={"figures": ["loss", "class_counts"]})
    report.command([str(run)])
    assert sorted(file.name for file in (run / "report_figures").iterdir()) == ["class_counts.png", "loss.png"]
    report.command([str(run), "figures=scores,gap"])
    assert sorted(file.name for file in (run / "report_figures").iterdir()) == ["gap.png", "scores.png"]
    with pytest.raises(UserError, match="no figure is named nothing; choose among accuracy"):
        report.command([str(run), "figures=nothing"])
    # a typing mistake leaves the report as it is
    assert sorted(file.name for file in (run / "report_figures").iterdir()) == ["gap.png", "scores.png"]


def test_experiments_name_existing_pictures():
    import yaml

    from resnet_lab.schema import conf_dir

    files = [conf_dir() / "config.yaml", *conf_dir().glob("experiment/*.yaml")]
    asked = {name for file in files for name in yaml.safe_load(file.read_text()).get("figures", [])}
    assert json.dumps(sorted(asked - {*figures.CURVES, *figures.PICTURES})) == "[]"
    assert set(FIGURES) <= asked


def test_many_groups_are_drawn_by_the_best_and_the_named_ones(tmp_path):
    for number in range(12):
        write_run(tmp_path / str(number), config={"optim.lr": number}, skill=1 + 0.2 * number)
    table = table_of(tmp_path)
    table.named = ("lr=0", "lr=5")
    drawn = [group.label for group in table.drawn]
    assert drawn == [group.label for group in table.ranked[:10]] + ["lr=0"]
    assert "11 of 12 groups" in figures.picture("accuracy", table).note
    colors = colors_of(table)
    assert len({*colors.values()}) == 11
    series = list(figures.series_of(table))
    assert {line.label for line in series} == {*drawn}
