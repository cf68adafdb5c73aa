"""CSV text → cells: separators, blank lines, encodings."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from resnet_lab.errors import UserError, count

WHOLE_NUMBER = re.compile(r"\s*([+-]?\d{1,100})(?:[.,]0*)?\s*")  # 2, 2.0 or 2,0
TABLES = (".csv", ".tsv", ".txt")
SEPARATORS = ",;\t|"
EXCEL = re.compile(r"sep=(.)\s*\n")  # Excel's first line that declares the separator
TOO_WIDE = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")  # an error of pandas
LAST_SPACE = r"\s+(?=\S+\s*$)"  # before the last word: `photo 1.jpg 0`


def read_text(path: Path, separators: str = SEPARATORS) -> pd.DataFrame:
    """Return the cells of a CSV as text, first row included; names such as `001` or `NA` are not converted.

    The index is the line in the file, from 1 on.

    Args:
        path: the file.
        separators: characters that may separate columns; if there are several, so may spaces.

    Raises:
        UserError: the file is missing, empty, not UTF-8 or not a CSV.
    """
    before = 0
    try:
        text = path.read_text(encoding="utf-8-sig")
        before = text[: len(text) - len(text.lstrip())].count("\n") + (EXCEL.match(text.strip()) is not None)
        cells = read_cells(text.strip(), separators)
        return cells.set_axis(range(before + 1, before + 1 + len(cells)))
    except FileNotFoundError:
        remedy = "check data.root, or name the file in data.train_csv"
        raise UserError(f"{path} does not exist; {_where(path)}{remedy}") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; it must list one image per row") from None
    except (pd.errors.ParserError, UnicodeDecodeError, IsADirectoryError) as error:
        if wide := TOO_WIDE.search(str(error)):
            raise UserError(f"{path}: {_too_wide(before, *map(int, wide.groups()))}") from None
        remedy = "; in a spreadsheet program, save it as CSV UTF-8" * isinstance(error, UnicodeDecodeError)
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a comma-separated file in UTF-8: {reason}{remedy}") from None


def _too_wide(before: int, expected: int, line: int, fields: int) -> str:
    """Describe a line with more fields than those above it, and the remedy: the first line may be a title.

    Args:
        before: lines of the file that are not parsed.
        expected: the largest number of fields in the lines above.
        line: the parsed line, from 1 on.
        fields: its number of fields.
    """
    above = f"line {before + 1} has" if line == 2 else "the lines above have at most"
    title = ["delete the lines above the header"] if expected == 1 or line == 2 else []
    extra = ["write as many fields as in the header, with quotes around a field that contains the separator"]
    remedy = ", or ".join(title if expected == 1 and line == 2 else title + extra)
    return f"line {before + line} has {count(fields, 'field')}, but {above} {expected}; {remedy}"


def _where(path: Path) -> str:
    """Return where a missing file may be: one folder up, or under a similar name; empty if nothing is found."""
    above = path.parent.parent / path.name
    if above.is_file():
        return f"{above} exists: set data.root={above.parent}; "
    names = sorted(each.name for suffix in TABLES for each in path.parent.glob(f"*{suffix}"))
    return f"this folder has {', '.join(names[:3])}{', …' if len(names) > 3 else ''}; " if names else ""


def read_cells(text: str, separators: str = SEPARATORS) -> pd.DataFrame:
    """Return the cells of a text; blank lines count as rows, and the text may begin with Excel's `sep=`."""
    declared = EXCEL.match(text)
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else _separator(text.splitlines()[:20], separators)
    if len(separator) == 1:
        text = _as_wide_as_its_rows(text, separator)
    # a blank line is a row with a missing label: skipping it would shift the rows of one file of a pair
    cells = pd.read_csv(
        io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False,
        engine="c" if len(separator) == 1 else "python",
    )  # fmt: skip
    frame: pd.DataFrame = cells.fillna("").apply(lambda column: column.str.strip())
    return frame


def _separator(head: Sequence[str], separators: str) -> str:
    """Return the separator that every line has equally often, or else the most frequent one of the first line.

    If the first line has none, return the pattern of the last space.
    """
    lines = [re.sub(r'"[^"]*"', "", line) for line in head if line.strip()]
    first = lines[0] if lines else ""
    even = [each for each in separators if len({line.count(each) for line in lines}) == 1 and first.count(each)]
    if even:
        return even[0]
    most = max(separators, key=first.count)
    if (
        first
        and first.count(most) == 0
        and len(separators) > 1
        and all(re.search(LAST_SPACE, line.strip()) for line in head)
    ):
        return LAST_SPACE
    return most


def _as_wide_as_its_rows(text: str, separator: str) -> str:
    """Add an empty cell to a header with one cell fewer than the rows: for an unnamed index, or a trailing comma."""
    header, row = [*csv.reader(text.splitlines()[:2], delimiter=separator), [], []][:2]
    if len(row) != len(header) + 1:
        return text
    if row[-1] == "":
        return text.replace("\n", f"{separator}\n", 1)
    return text if is_whole(row[1]) and is_whole(row[-1]) else separator + text  # either may be the index


def with_blank_lines(path: Path, cells: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Restore blank lines, first those at the end and then those at the beginning, until there are `rows` rows."""
    text = path.read_text(encoding="utf-8-sig")
    before, after = (text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :])
    last = min(max(rows - len(cells), 0), max(after.count("\n") - 1, 0))
    first = min(max(rows - len(cells) - last, 0), before.count("\n"))
    start = int(cells.index[0])
    return cells.reindex(range(start - first, start + len(cells) + last), fill_value="")


def is_whole(cell: object) -> bool:
    """Return whether the text of a cell is a whole number."""
    return WHOLE_NUMBER.fullmatch(str(cell)) is not None
