"""The progress lines of a long phase: every few seconds and at its end, with the time left."""

from __future__ import annotations

import logging

import pytest

from resnet_lab.data import progress
from resnet_lab.data.progress import speed_text, with_progress


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Return the lines of a phase whose items take 4 seconds each."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))

    def of(items, total: int, *more) -> list[str]:
        with caplog.at_level(logging.INFO):
            assert list(with_progress(items, total, "prepared", *more)) == list(items)
        return caplog.messages

    return of


def test_a_line_after_two_seconds_then_every_ten_and_one_at_the_end(lines) -> None:
    assert lines("abcdefg", 7) == [
        "prepared 1 of 7",  # the first item includes the start, so that its speed means nothing
        "prepared 4 of 7, 0.25 images/s, 12 s left",
        "prepared 7 of 7, 0.25 images/s",
    ]


def test_an_item_may_stand_for_several_images(lines) -> None:
    assert lines("abc", 250, 100) == [
        "prepared 100 of 250",
        "prepared 250 of 250, 20.8 images/s",
    ]


def test_a_phase_of_less_than_a_second_has_no_speed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        list(with_progress(range(119), 119, "looked up"))
    assert caplog.messages == ["looked up 119 of 119"]


@pytest.mark.parametrize(
    ("rate", "text"), [(901856.8, "902000"), (0.0512, "0.0512"), (20.83, "20.8"), (1e7, "10000000")]
)
def test_a_speed_has_at_most_three_digits(rate: float, text: str) -> None:
    assert speed_text(rate) == text


def test_nothing_to_do_has_no_line(lines) -> None:
    assert lines("", 0) == []
