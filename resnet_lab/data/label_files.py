"""Finds the label files of a data set by their columns and their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from resnet_lab.data.cells import read_text
from resnet_lab.data.labels import Grades, lists_labels
from resnet_lab.data.listing import is_junk, splits_of
from resnet_lab.errors import UserError

SUFFIXES = (".csv", ".tsv", ".txt")
SHEETS = (".xlsx", ".xls", ".ods")  # spreadsheets, which this program cannot read
SEVERAL = "several"  # in place of a split, for a name with two splits, such as `train_and_val_labels.csv`
ANSWERS = re.compile(r"submission|pred", re.IGNORECASE)  # names of files with a model's predictions
DEEPEST = 3  # levels of folders below the root that are searched


def label_files(root: Path, columns: tuple[str | None, str | None], grades: Grades) -> dict[str, list[Path]]:
    """Return the label files at and below a folder, by the split in their name, or else in their folder's name.

    Args:
        root: the folder.
        columns: `data.image_column` and `data.label_column`.
        grades: the valid labels, for files without a header.

    Returns:
        Split, "" for none, or SEVERAL → files; files directly in `root` come first.
    """
    found: dict[str, list[Path]] = {}
    for path in _tables(root):
        parts = path.relative_to(root).with_suffix("").parts
        named = next((splits for part in reversed(parts) if (splits := splits_of(part))), {""})
        if lists_labels(path, columns, grades):
            found.setdefault(named.pop() if len(named) == 1 else SEVERAL, []).append(path)
    return found


def columns_of_tables(root: Path) -> list[str]:
    """Return `labels.csv has the columns file, stage` for the tables at and below a folder."""
    found = []
    for path in _tables(root):
        with suppress(UserError):  # empty, or no table
            header = ", ".join(map(str, read_text(path).iloc[0]))
            found.append(f"{path.relative_to(root)} has the columns {header}")
    return found


def unreadable(root: Path) -> list[Path]:
    """Return the tables at and below a folder that are not UTF-8 text, such as Excel files."""
    return [path for path in _tables(root, (*SUFFIXES, *SHEETS)) if not is_text(path)]


def is_text(path: Path) -> bool:
    """Return whether a file is UTF-8 text."""
    try:
        path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _tables(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    seen = set[str]()
    for folder, below, names in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        below[:] = sorted(name for name in below if not is_junk(name)) if depth < DEEPEST else []
        if os.path.realpath(folder) in seen:  # visited through another link
            below[:], names = [], []
        seen.add(os.path.realpath(folder))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not is_junk(name) and not ANSWERS.search(name):
                yield Path(folder) / name
