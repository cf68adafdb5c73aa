"""Label files: names and grades, in the CSVs that people have."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from resnet_lab.errors import UserError, count

WHOLE_NUMBER = re.compile(r"\s*[+-]?\d{1,100}\s*")


def read_text(path: Path) -> pd.DataFrame:
    """The cells of a CSV as text, first row included; names such as `001` or `NA` stay what they are.

    Raises:
        UserError: the file is missing, empty, not UTF-8 or not a CSV.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        # a blank line is a row whose label is missing: skipping it would shift the rows of one file of a pair
        cells = pd.read_csv(io.StringIO(text), header=None, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check data.root, or name the file in data.train_csv") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; it has to list one image per row") from None
    except (pd.errors.ParserError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not a comma-separated file in UTF-8: {' '.join(str(error).split())}") from None
    return cells.apply(lambda column: column.str.strip())


def read_labels(
    path: Path, image_column: str | None, label_column: str | None, more: Mapping[str, tuple[str, str]] | None = None
) -> pd.DataFrame:
    """One CSV of names and labels → columns `image`, `label` and those of `more`, all text.

    Without column names these are the known ones (`image,level`, `id_code,diagnosis`), or the first two columns of
    a file without header; the first row is data when its label cell is a whole number.

    Args:
        path: the CSV.
        image_column: of the header; None: a known one.
        label_column: of the header; None: a known one.
        more: name of a further column → its name in the header, and the configuration key that says so.
    """
    cells = read_text(path)
    if image_column is None and label_column is None and not more and _starts_with_data(cells):
        return cells.iloc[:, :2].set_axis(["image", "label"], axis=1)
    header, rows = list(cells.iloc[0]), cells.iloc[1:]
    image = _find_column(path, header, image_column, ("image", "id_code"), "data.image_column")
    label = _find_column(path, header, label_column, ("level", "diagnosis", "label"), "data.label_column")
    found = {name: _find_column(path, header, column, (), key) for name, (column, key) in (more or {}).items()}
    columns = {"image": image, "label": label} | found
    return _not_empty(path, pd.DataFrame({name: rows[column] for name, column in columns.items()}))


def read_pair(image_csv: Path, label_csv: Path) -> pd.DataFrame:
    """The studies' layout, two single-column files aligned row by row → columns `image`, `label`, both text.

    The header is optional: the first row is one when its label cell starts with a letter.

    Raises:
        UserError: the two files differ in their number of rows, or hold no row.
    """
    image_cells, label_cells = read_text(image_csv), read_text(label_csv)
    first = 1 if str(label_cells.iloc[0, 0])[:1].isalpha() else 0  # `1.5` or nothing is a bad label, not a header
    images, labels = image_cells.iloc[first:, 0], label_cells.iloc[first:, 0]
    if len(images) != len(labels):
        raise UserError(
            f"{image_csv} has {count(len(images), 'row')} but {label_csv.name} has {len(labels)}; "
            "they must be aligned row by row, both with or both without a header"
        )
    return _not_empty(image_csv, pd.DataFrame({"image": images.to_numpy(), "label": labels.to_numpy()}))


def _starts_with_data(cells: pd.DataFrame) -> bool:
    return cells.shape[1] >= 2 and is_whole(cells.iloc[0, 1])


def is_whole(cell: object) -> bool:
    """Whether the text of a cell is a whole number."""
    return WHOLE_NUMBER.fullmatch(str(cell)) is not None


def _find_column(path: Path, header: list[str], wanted: str | None, known: Sequence[str], key: str) -> int:
    candidates = [wanted] if wanted is not None else known
    for name in candidates:
        if name in header:
            return header.index(name)
    raise UserError(f"{path} has no column {' or '.join(candidates)}; its columns are {', '.join(header)}; set {key}")


def _not_empty(path: Path, labels: pd.DataFrame) -> pd.DataFrame:
    if labels.empty:
        raise UserError(f"{path} lists no image; it has to hold one per row")
    return labels.reset_index(drop=True)


def parse(labels: pd.DataFrame, image_csv: Path, label_csv: Path, num_classes: int) -> pd.DataFrame:
    """Text columns `image`, `label` → `image`, `target` (int), checked row by row; further columns stay.

    Args:
        labels: as `read_labels` and `read_pair` give them.
        image_csv: the file to name in errors of names.
        label_csv: the file to name in errors of labels.
        num_classes: labels must be 0 to `num_classes - 1`.

    Raises:
        UserError: a label is not a whole number or out of range, a name is empty, repeated, absolute or holds `..`.
    """
    whole = labels["label"].map(is_whole)
    _refuse(label_csv, labels[~whole], "label", "labels must be whole numbers")
    targets = labels["label"].map(int)
    _refuse(
        label_csv,
        labels[(targets < 0) | (targets >= num_classes)],
        "label",
        f"labels run from 0 to {num_classes - 1}",
    )
    unsafe = labels["image"].map(
        lambda name: name == "" or PurePosixPath(name).is_absolute() or ".." in Path(name).parts
    )
    _refuse(image_csv, labels[unsafe], "image", "names must be relative paths without '..' inside the image folder")
    _refuse(image_csv, labels[labels["image"].duplicated()], "image", "image names must not repeat")
    if "patient" in labels:
        _refuse(image_csv, labels[labels["patient"] == ""], "patient", "data.patient_column must name one in every row")
    return labels.drop(columns="label").assign(target=targets)


def _refuse(source: Path, rows: pd.DataFrame, column: str, rule: str) -> None:
    if len(rows):
        row, cell = rows.index[0], rows.iloc[0][column]
        more = f" (and {count(len(rows) - 1, 'more row')})" if len(rows) > 1 else ""
        raise UserError(f"{source}: {column} {cell!r} of image row {row + 1}{more}: {rule}")
