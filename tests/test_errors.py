"""Numbers with nouns in messages, and names with control characters."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from resnet_lab.command_line import PrintableFormatter
from resnet_lab.errors import UserError, count, one_line_of, printable, short, size_text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((0, "file"), "0 files"),
        ((1, "file"), "1 file"),
        ((2, "file"), "2 files"),
        ((1, "class has", "classes have"), "1 class has"),
        ((5, "class has", "classes have"), "5 classes have"),
    ],
)
def test_one_is_singular(words, expected: str) -> None:
    assert count(*words) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0.0 kB"), (21_600, "21.6 kB"), (3.5e8, "350.0 MB"), (1e9, "1.0 GB"), (4.2e12, "4200.0 GB")],
)
def test_sizes_have_a_unit_that_shows_them(number: float, expected: str) -> None:
    assert size_text(number) == expected


def test_a_path_below_the_working_folder_is_shown_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short(tmp_path / "runs" / "one") == "runs/one"
    assert short(tmp_path.parent / "other") == str(tmp_path.parent / "other")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no DR 99.5 %, 5,000 images – done\n\tnext", "no DR 99.5 %, 5,000 images – done\n\tnext"),
        ("a\x1b[2Jb.png", "a\\x1b[2Jb.png"),
        ("back\rover\x08\x00\x7f", "back\\rover\\x08\\x00\\x7f"),
        ("left\u202eright", "left\\u202eright"),
        ("\udcff.png", "\\udcff.png"),
        ("ä 眼 é", "ä 眼 é"),
    ],
)
def test_control_characters_in_names_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    assert PrintableFormatter().format(record).endswith("  " + shown.replace("\n", "\\n"))


@pytest.mark.parametrize(
    ("message", "names", "shown"),
    [
        ("%s %s %d", ("a\nb", Path("c\nd.jpg"), 3), "a\\nb c\\nd.jpg 3"),
        ("100 %\ntable", (), "100 %\ntable"),
    ],
)
def test_line_breaks_in_names_are_escaped(message: str, names: tuple[object, ...], shown: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, message, names, None)
    assert PrintableFormatter().format(record).endswith(f"  {shown}")
    assert record.args == names


def test_an_error_is_one_line() -> None:
    assert one_line_of(UserError("1 image is missing (a\nb)")) == "1 image is missing (a\\nb)"
    assert one_line_of(FileNotFoundError(2, "No such file", "a\nb")) == "a\\nb: No such file"
    assert one_line_of(ValueError("a\nb\x1b  c")) == "a b\\x1b c"
