"""The figures: their texts, colors and lines, also with hostile names."""

import io
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from resnet_lab import plots

GRAY = "#e0e0e0"  # a class without images


def drawn(figure: Figure) -> Figure:
    """Save the figure as PNG, and return it."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def cell_texts(figure: Figure) -> dict[tuple[int, int], str]:
    """Return (row, column) → text of the first matrix."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}


def cell_colors(figure: Figure) -> np.ndarray:
    image = figure.axes[0].get_images()[0]
    return image.to_rgba(image.get_array())


def test_cells_show_count_and_share_of_the_true_class():
    figure = drawn(plots.matrices.confusion_matrix(np.array([[30, 10], [0, 20]]), ["healthy", "ill"], "run 1"))
    expected = {(0, 0): "30\n75 %", (0, 1): "10\n25 %", (1, 0): "0", (1, 1): "20\n100 %"}
    assert cell_texts(figure) == expected
    axes = figure.axes[0]
    assert axes.get_title() == "run 1"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["healthy", "ill"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")


def test_darker_is_the_larger_share_not_the_larger_count():
    colors = cell_colors(plots.matrices.confusion_matrix(np.array([[600, 400], [1, 9]]), ["a", "b"]))
    brightness = colors[..., :3].sum(axis=-1)
    assert brightness[1, 1] < brightness[0, 0] < brightness[0, 1] < brightness[1, 0]


def test_text_is_white_on_dark_cells_only():
    figure = plots.matrices.confusion_matrix(np.array([[95, 5], [40, 60]]), ["a", "b"])
    colors = {text.get_text(): to_hex(text.get_color()) for text in figure.axes[0].texts}
    assert colors["95\n95 %"] == "#ffffff"
    assert {colors[text] for text in ("5\n5 %", "40\n40 %", "60\n60 %")} == {"#1a1a1a"}


def test_a_class_without_images_is_gray_with_a_dash():
    figure = drawn(plots.matrices.confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]]), ["a", "b", "c"]))
    texts, colors = cell_texts(figure), cell_colors(figure)
    assert [texts[1, column] for column in range(3)] == ["–"] * 3
    assert {to_hex(color) for color in colors[1]} == {GRAY}
    assert GRAY not in {to_hex(color) for row in (0, 2) for color in colors[row]}


@pytest.mark.parametrize("num_classes", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_every_cell_has_a_text_that_fits(num_classes):
    counts = np.full((num_classes, num_classes), 20655)
    figure = drawn(plots.matrices.confusion_matrix(counts, [f"class {k}" for k in range(num_classes)]))
    box = figure.axes[0].get_window_extent()
    cells = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(cells) == num_classes**2
    assert max(cell.width for cell in cells) < box.width / num_classes
    assert max(cell.height for cell in cells) < box.height / num_classes


def test_102_classes_have_no_text_and_names_that_do_not_overlap():
    names = [f"flower number {k}" for k in range(102)]
    figure = drawn(plots.matrices.confusion_matrix(np.eye(102, dtype=int), names))
    axes = figure.axes[0]
    assert not axes.texts
    shown = [label for label in axes.get_yticklabels() if label.get_text()]
    assert [label.get_text() for label in shown][:2] == ["flower number 0", "flower number 6"]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


@pytest.mark.parametrize("longest", ["ill", "proliferative", "a name that is longer than any name should be"])
def test_nothing_is_cut_off_at_the_borders(longest):
    names = ["a", "b", "c", "d", longest]
    figure = drawn(plots.matrices.confusion_matrix(np.ones((5, 5), int), names, "some title " * 5))
    inside = figure.axes[0].get_tightbbox()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= figure.bbox.width
    assert inside.y1 <= figure.bbox.height


def test_mathematics_in_names_is_text():
    drawn(plots.matrices.confusion_matrix(np.eye(2, dtype=int), ["$\\frac{$", "<b>&"], "$x^$"))
    series = [plots.curves.Series("$\\a$", "$x^$", "val", np.arange(2), np.ones((1, 2)))]
    drawn(plots.curves.by_epoch(series, "accuracy"))
    drawn(plots.samples.images(np.zeros((1, 4, 4, 3), np.uint8), ["$x^$"]))


def test_matrices_stand_side_by_side_in_equal_shares_of_the_picture():
    matrices = [(f"run {k}", (k + 1) * np.eye(2, dtype=int)) for k in range(5)]
    figure = drawn(plots.matrices.confusion_matrices(matrices, ["a", "b"], columns=2))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"run {k}" for k in range(5)]
    for place, axes in enumerate(figure.axes):
        row, column = divmod(place, 2)
        box = axes.get_tightbbox()
        width, height = figure.bbox.width / 2, figure.bbox.height / 3
        assert column * width <= box.x0 < box.x1 <= (column + 1) * width
        assert (2 - row) * height <= box.y0 < box.y1 <= (3 - row) * height


def curve(panel: str, label: str, split: str = "val", values: object = ((70, 80, 90),)) -> plots.curves.Series:
    array = np.array(values, dtype=float)
    return plots.curves.Series(panel, label, split, np.arange(array.shape[1]), array)


def test_one_panel_per_depth_and_one_color_per_label():
    series = [curve(f"depth={d}", f"pretrained={p}", s) for d in (18, 50) for p in "ab" for s in ("train", "val")]
    figure = drawn(plots.curves.by_epoch(series, "accuracy, %", baseline=("test", 73.5)))
    assert [axes.get_title() for axes in figure.axes] == ["depth=18", "depth=50"]
    for axes in figure.axes:
        *lines, baseline = axes.get_lines()
        assert [line.get_linestyle() for line in lines] == ["--", "-", "--", "-"]
        colors = [to_hex(line.get_color()) for line in lines]
        assert colors[0] == colors[1] != colors[2] == colors[3]
        assert baseline.get_linestyle() == ":"
        assert set(baseline.get_ydata()) == {73.5}
    texts = [text.get_text() for text in figure.legends[0].get_texts() if text.get_text().strip()]
    assert texts == ["pretrained=a", "pretrained=b", "train", "val", "majority baseline (test)"]


def test_runs_are_thin_and_the_mean_stops_where_a_run_does():
    figure = drawn(plots.curves.by_epoch([curve("p", "a", values=[[70, 80, 90], [72, 84, np.nan]])], "accuracy"))
    first, second, mean = figure.axes[0].get_lines()
    assert first.get_linewidth() < mean.get_linewidth()
    np.testing.assert_array_equal(second.get_ydata(), [72, 84, np.nan])
    np.testing.assert_array_equal(mean.get_ydata(), [71, 82, np.nan])


def test_a_single_epoch_is_a_point():
    (line,) = drawn(plots.curves.by_epoch([curve("p", "a", values=[[70]])], "accuracy")).axes[0].get_lines()
    assert line.get_marker() == "o"
    assert line.get_xdata().tolist() == [1]  # epochs count from 1 here, and from 0 in metrics.csv


def test_an_incomplete_row_of_panels_hides_its_gap():
    figure = drawn(plots.curves.by_epoch([curve(f"depth={d}", "a") for d in (18, 34, 50)], "accuracy", columns=2))
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["", "epoch", "epoch"]


def test_more_than_ten_labels_keep_their_colors_apart():
    lines = drawn(plots.curves.by_epoch([curve("p", str(k)) for k in range(14)], "accuracy")).axes[0].get_lines()
    assert len({to_hex(line.get_color()) for line in lines}) == 14


def test_images_show_the_batch_with_its_labels():
    batch = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (axes,) = drawn(plots.samples.images(batch, ["no DR", "mild", "severe " * 8], columns=2)).axes
    (sheet,) = (picture.get_array() for picture in axes.get_images())
    assert [text.get_text() for text in axes.texts[:2]] == ["no DR", "mild"]
    assert axes.texts[2].get_text().split() == ["severe"] * 8
    for image, text in zip(batch, axes.texts, strict=True):  # each label is centered above its image
        left, top = (round(place) for place in text.get_position())
        np.testing.assert_array_equal(sheet[top : top + 8, left - 4 : left + 4], image)
    assert not axes.axison


def test_layers_are_logarithmic_and_dead_units_are_percent_from_0():
    profile = {"gradient_norm": np.array([1.0, 0.01]), "activation_variance": np.ones(2), "dead_units": np.zeros(2)}
    doubled = {key: value * 2 for key, value in profile.items()}
    figure = drawn(plots.layers.by_depth({"depth=$20": profile, "depth=56": doubled}))
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "linear"]
    assert figure.axes[2].get_ylim() == pytest.approx((-0.3, 10))
    np.testing.assert_array_equal(figure.axes[0].get_lines()[1].get_ydata(), [2, 0.02])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["depth=$20", "depth=56"]


def test_scores_show_each_run_their_mean_and_the_baseline():
    rows = [
        plots.groups.Scores("a", np.array([70.0, 74.0]), np.array([80.0])),
        plots.groups.Scores("b", np.array([60.0]), np.zeros(0)),
    ]
    axes = drawn(plots.groups.scores(rows, "accuracy, %", ("test", 73.0))).axes[0]
    lines = axes.get_lines()
    spread = np.std([70, 74], ddof=1)
    np.testing.assert_allclose(lines[0].get_xdata(), [72 - spread, 72 + spread])
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "D" and len(line.get_xdata())] == [80]
    assert any(line.get_linestyle() == ":" and line.get_xdata()[0] == 73 for line in lines)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_a_crowded_panel_shows_bands_instead_of_runs():
    def lines_and_bands(labels):
        series = [
            plots.curves.Series("panel", label, "test", np.arange(3), np.array([[place, 2, 3], [place, 4, 6.0]]))
            for place, label in enumerate(labels)
        ]
        axes = drawn(plots.curves.by_epoch(series, "recall")).axes[0]
        return len(axes.get_lines()), len(axes.collections), {line.get_linestyle() for line in axes.get_lines()}

    assert lines_and_bands("abcd") == (4 * (1 + 2), 4, {"-"})  # with one split, its line style is not in the legend
    assert lines_and_bands("abcde") == (5, 5, {"-"})
