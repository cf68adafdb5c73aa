"""Charts of thresholds, probabilities and cost, also with hostile names."""

import io
import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from resnet_lab.rendering import png
from resnet_lab.report import charts
from resnet_lab.report.calibration import OperatingPoint, Reliability

X = np.linspace(0, 1, 5)


def drawn(figure: Figure) -> Figure:
    """Save the figure as PNG, and return it."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_curves_are_means_with_bands_and_numbers_in_their_color():
    points = (("high sensitivity", OperatingPoint(0.2, 0.9, 0.6)),)
    lines = [
        charts.Line("$x^$", X, np.stack([X, X**0.5]), "AUC 0.600", points),
        charts.Line("<b>", X, X[None] ** 2, "AUC 0.333"),
    ]
    axes = drawn(charts.unit_curves([("one", lines)], "rate", "found", 2, diagonal=True)).axes[0]
    _, first, mark, second = axes.get_lines()
    np.testing.assert_allclose(first.get_ydata(), (X + X**0.5) / 2)
    np.testing.assert_allclose(second.get_ydata(), X**2)
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((0.4, 0.9))
    assert len(axes.collections) == 1  # several runs have a band
    shown = {text.get_text(): text.get_color() for text in axes.texts}
    assert shown == {"AUC 0.600": first.get_color(), "AUC 0.333": second.get_color()}


@pytest.mark.parametrize(
    ("curve", "corner"), [(np.full(5, 0.9), (0.98, False)), (1 - X, (0.03, False)), (0.1 * X, (0.98, True))]
)
def test_numbers_are_in_a_corner_without_curves(curve, corner):
    axes = drawn(charts.unit_curves([("one", [charts.Line("a", X, curve[None], "AP 0.235")])], "x", "y", 1)).axes[0]
    (text,) = axes.texts
    assert (text.get_position()[0], text.get_position()[1] > 0.5) == corner


def test_reliability_titles_stay_clear_of_the_labels_above():
    bins = Reliability(np.array([0.3, 0.9]), np.array([0.5, 0.6]), np.array([1, 9]))
    figure = charts.reliability([("sampling=balanced depth=34, as trained", bins, 0.2)] * 6, 3)
    figure.draw_without_rendering()
    label, title = figure.axes[0].xaxis.label.get_window_extent(), figure.axes[3].title.get_window_extent()
    assert label.y0 - title.y1 > 0.1 * figure.dpi  # inches
    assert "\n" not in figure.axes[0].get_title()


def test_single_panels_have_one_size_and_the_legend_of_several_is_below_their_labels():
    def curves(titles: list[str], labels: list[str], legend: bool) -> Figure:
        lines = [charts.Line(label, X, X[None]) for label in labels]
        return charts.unit_curves([(title, lines) for title in titles], "x", "y", 3, legend=legend)

    alone = [png(curves([title], ["a"], legend=False)) for title in ("mild", "i" * 46)]
    assert len({struct.unpack(">II", content[16:24]) for content in alone}) == 1
    for labels in (["a"], ["a", "b", "c"], ["a b " * 30] * 4):
        figure = drawn(curves(["mild", "no DR"], labels, legend=True))
        (legend,) = figure.legends
        assert legend.get_window_extent().y1 < figure.axes[0].xaxis.label.get_window_extent().y0
        width, _ = struct.unpack(">II", png(figure)[16:24])
        assert width >= legend.get_window_extent().width  # the picture does not cut it off


def test_panels_that_are_not_needed_are_hidden():
    line = charts.Line("a", X, X[None])
    figure = drawn(charts.unit_curves([(str(k), [line]) for k in range(4)], "x", "y", 3))
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2


def test_reliability_shows_accuracy_as_bars_and_the_gap_to_confidence():
    bins = Reliability(np.array([0.3, np.nan, 0.9]), np.array([0.5, np.nan, 0.6]), np.array([1, 0, 9]))
    axes = drawn(charts.reliability([("group", bins, 0.29)], 2)).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0, 0.6]
    gaps = [line.get_ydata() for line in axes.get_lines() if len(set(line.get_xdata())) == 1]
    assert [list(gap) for gap in gaps] == [[0.5, 0.3], [0.6, 0.9]]
    assert axes.get_title() == "group"
    assert [text.get_text() for text in axes.texts] == ["ECE 0.290"]
    assert axes.patches[0].get_facecolor()[3] < axes.patches[2].get_facecolor()[3]


@pytest.mark.parametrize("values", [(5.0, 5.0), (11.179, 11.177), (1457.0, 1816.0), (0.27, 1700.0)])
def test_cost_stands_against_quality_with_limits(values):
    groups = [charts.Cost(name, 0.5, (0.4, 0.6), {"MB": value}) for name, value in zip("ab", values, strict=True)]
    figure = drawn(charts.cost(groups, "QWK"))
    points = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert [point.get_xdata()[0] for point in points] == pytest.approx(values, rel=0.02)
    assert len({point.get_xdata()[0] for point in points}) == 2  # points do not overlap
    places = [point.get_xdata()[0] for point in points]
    if abs(values[0] / values[1] - 1) > 0.01:
        assert places == list(values)  # only about equal ones move
    else:
        assert places[0] / places[1] == pytest.approx(1.02 if values[0] > values[1] else 1 / 1.02, rel=1e-3)
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [0.4, 0.6]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels
    assert not any("e+" in label for label in labels)
