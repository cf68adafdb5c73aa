"""Numbers of things in messages."""

from __future__ import annotations

import pytest

from resnet_lab.errors import count


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
