"""Reads image names and grades from CSVs in the formats that people use."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_lab.data.cells import WHOLE_NUMBER, is_whole, read_cells, read_text, with_blank_lines
from resnet_lab.data.listing import folded, is_image, splits_of
from resnet_lab.data.patients import LEFT, RIGHT
from resnet_lab.errors import UserError, count, refuse

log = logging.getLogger(__name__)
# in the order of preference, in the form that `plain` returns
IMAGE_COLUMNS = (
    *("image", "id_code", "image_id", "image_name", "img_name", "filename", "file_name", "img", "imageid", "name"),
    *("file", "id", "image_path", "img_path", "path"),
)
LABEL_COLUMNS = (
    *("level", "diagnosis", "label", "retinopathy_grade", "dr_grade", "adjudicated_dr_grade", "dr_level", "grade"),
    *("dr_grading", "retinopathy"),
)
PATIENT_COLUMNS = {
    f"{word}{end}"
    for word in ("patient", "subject", "person", "participant")
    for end in ("", "id", "_id", "_no", "_nr", "_number", "_code")
} | {"pid"}
PATIENTS = "patients"  # key of `DataFrame.attrs`
MOST_SPLITS = 20  # values of a column that may name splits or folds
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold", "usage")
EYES = ("left_eye_dr_level", "right_eye_dr_level")  # DeepDRiD: the column of its eye holds the photograph's grade
# 3_r1, right_4, 5_OD
IS_LEFT, IS_RIGHT = (rf"(?i)(?:.*[_\-. \d])?(?:{'|'.join(eye)})(?:\d*|[_\-. ].*)" for eye in (LEFT, RIGHT))
BAD = -1  # target of a row with an invalid label
TOO_MANY = 0.1  # a larger share of numbers out of range means that a key is wrong, not the rows
SHOWN = 3  # bad rows of each kind that an error names, or values that a log line names


@dataclass(frozen=True)
class Grades:
    """Valid labels of a file: numbers, class names, or the keys of a mapping."""

    class_names: Sequence[str]
    # text → class or its name, ignoring case; nothing else is valid, neither numbers nor names of classes
    labels: Mapping[str, int | str] | None = None
    first: int = 0  # the number of the first class

    def __post_init__(self) -> None:
        """Refuse a mapping to classes that do not exist."""
        for text, target in (self.labels or {}).items():
            if not 0 <= self._class(target) < len(self.class_names):
                raise UserError(
                    f"data.labels: {text!r} is class {target}; classes run from 0 to {len(self.class_names) - 1}, "
                    f"and their names are {', '.join(self.class_names)}"
                )
        words = [plain(text) for text in self.labels or {}]
        if alike := [word for word in words if words.count(word) > 1]:
            raise UserError(f"data.labels: several labels become {alike[0]!r} in lower case; keep one of them")

    @property
    def last(self) -> int:
        """The number of the last class."""
        return self.first + len(self.class_names) - 1

    def targets(self, labels: pd.Series) -> pd.Series:
        """Return the class of each label, or BAD."""
        known = {label: self._target(label) for label in labels.unique()}
        return labels.map(known).astype(int)

    def _target(self, label: str) -> int:
        whole = WHOLE_NUMBER.fullmatch(label)
        number = str(int(whole[1])) if whole else plain(label)
        if self.labels is not None:
            words = {plain(text): self._class(target) for text, target in self.labels.items()}
            return words.get(plain(label), words.get(number, BAD))
        if whole:  # a number is a number, even if class names are numbers
            return int(number) - self.first if self.first <= int(number) <= self.last else BAD
        return self._class(label)

    def _without_mapping(self, label: str) -> int:
        """Return the class of a label without the mapping, or BAD."""
        return Grades(self.class_names, first=self.first)._target(label)

    def _class(self, target: int | str) -> int:
        """Return the number of a class given by number or name, or BAD."""
        if isinstance(target, int):
            return target
        names = [plain(name) for name in self.class_names]
        return names.index(plain(target)) if plain(target) in names else BAD

    def rule(self, label: str) -> str:
        """Return why a label is invalid."""
        if self.labels is not None:
            more = ""
            if (target := self._without_mapping(label)) != BAD:
                text = str(int(whole[1])) if (whole := WHOLE_NUMBER.fullmatch(label)) else label.strip()
                more = f"; data.labels must list every valid label: add {text}: {target}"
            return f"data.labels has no such label; it has {', '.join(map(str, self.labels))}{more}"
        if is_whole(label):
            return f"labels run from {self.first} to {self.last}"
        return (
            f"labels must be whole numbers, class names ({', '.join(self.class_names)}) or keys of data.labels, "
            "such as 'data.labels={none: 0, R1: 1}'; set data.class_names if the data has other classes; data.labels "
            "must list every valid label, including numbers"
        )

    def misread(self, bad: pd.Series, rows: int) -> str:
        """Return why the keys must be wrong, if too many rows have a number that is not valid; else an empty text.

        Args:
            bad: the invalid labels.
            rows: the number of all rows.
        """
        numbers = bad[bad.map(is_whole)]
        if len(numbers) <= TOO_MANY * rows or any(is_whole(str(text)) for text in self.labels or {}):
            return ""
        if self.labels is not None:
            numbers = numbers[[self._without_mapping(label) != BAD for label in numbers]]
            if len(numbers) <= TOO_MANY * rows:  # numbers of no class are left out on purpose
                return ""
            return (
                f"{len(numbers)} of {count(rows, 'row')} have a number as label ({_counted(numbers)}), too many to "
                f"leave out: {self.rule(str(numbers.iloc[0]))}"
            )
        return (
            f"{len(numbers)} of {count(rows, 'row')} have a label out of range ({_counted(numbers)}), too many to "
            f"leave out: labels run from {self.first} to {self.last}; correct data.first_label ({self.first}) or "
            f"data.class_names ({', '.join(self.class_names)}), or name the valid labels in data.labels"
        )

    def swapped(self) -> str:
        """Return which class a number would get whose name is another number; empty if there is none."""
        if self.labels is not None or not all(map(is_whole, self.class_names)):
            return ""
        for number, name in enumerate(self.class_names, self.first):
            if int(re.split("[.,]", name)[0]) != number:
                return (
                    f"the label {number} is the class called {name}, as numbers count the classes from "
                    f"data.first_label={self.first}; correct data.first_label or data.class_names, or give each label "
                    "its class in data.labels"
                )
        return ""

    def shift(self, labels: pd.Series) -> str:
        """Return the key to set if the numbers may run from 1 to the number of classes; else an empty text."""
        found = {int(whole[1]) for label in labels.unique() if (whole := WHOLE_NUMBER.fullmatch(label))}
        without_last = 1 in found and self.last > 1 and max(found) <= self.last
        if self.first != 0 or 0 in {*self.targets(labels)} or not (without_last or self.last + 1 in found):
            return ""
        if any(not is_whole(label) and self._class(label) != BAD for label in labels.unique()):  # a name of a class
            return ""
        words = {plain(str(text)) for text in self.labels or {}}
        if self.labels is not None:
            shown = "no label is 0; if classes run from 1, give each its class in data.labels, such as 1: 0"
            return shown if {"0", "1"} <= words and not {*map(str, found)} <= words else ""
        return f"no label is 0; set data.first_label=1 if classes run from 1 to {self.last + 1}"


def plain(text: str) -> str:
    """Normalize a name for comparison: `folded`, with `_` for spaces and hyphens."""
    return re.sub(r"[\s_-]+", "_", folded(text.strip()))


def lists_labels(path: Path, columns: tuple[str | None, str | None], grades: Grades) -> bool:
    """Return whether the first lines of a file contain names and labels, with or without a header."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            cells = read_cells("".join(line for line, _ in zip(file, range(3), strict=False)).strip())
    except (OSError, ValueError, pd.errors.EmptyDataError, pd.errors.ParserError):
        return False
    if cells.shape[1] < 2:
        return False
    if columns == (None, None) and _starts_with_data(cells, grades):
        # prose may end in a number, and a confusion matrix has class names in its header
        return cells.shape[1] == 2 and (path.suffix.lower() != ".txt" or is_image(str(cells.iloc[0, 0])))
    header = list(cells.iloc[0])
    label = _place(header, columns[1], LABEL_COLUMNS) is not None or _eyes(header) is not None
    return len(cells) > 1 and label and _place(header, columns[0], IMAGE_COLUMNS) is not None


def read_labels(
    path: Path,
    image_column: str | None,
    label_column: str | None,
    grades: Grades,
    more: Mapping[str, tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Read one CSV of names and labels into columns `image`, `label` and the columns of `more`, all text, by line.

    The result's `attrs[PATIENTS]` has name and texts of a column of patients that no key names, if there is one.

    If no columns are named, known ones are used (IMAGE_COLUMNS, LABEL_COLUMNS, ignoring case), or the first two columns
    of a file without a header. The first row is data if its second cell is a label.

    Args:
        path: the CSV.
        image_column: column in the header; None: a known one.
        label_column: column in the header; None: a known one.
        grades: the valid labels.
        more: name of a further column → its name in the header, and the configuration key that names it.
    """
    cells = read_text(path)
    cells = cells[(cells != "").any(axis=1)]
    if image_column is None and label_column is None and not more and _starts_with_data(cells, grades):
        _refuse_several_labels(path, cells, grades)
        return cells.iloc[:, :2].set_axis(["image", "label"], axis=1)
    header, rows = list(cells.iloc[0]), cells.iloc[1:]
    image = _column(path, cells, image_column, IMAGE_COLUMNS, "data.image_column")
    eyes = _eyes(header) if label_column is None else None
    if eyes is not None and _place(header, None, LABEL_COLUMNS) is None:
        label = _of_its_eye(image, rows[eyes[0]], rows[eyes[1]])
    else:
        label = _column(path, cells, label_column, LABEL_COLUMNS, "data.label_column")
        if label_column is None:
            _say_other_labels(path, header, rows, label)
    further = {  # a Mac writes two characters for ü
        name: _column(path, cells, column, (), key).str.normalize("NFC") for name, (column, key) in (more or {}).items()
    }
    used = {column for column, _ in (more or {}).values()}
    unused = {name: place for place, name in enumerate(header) if name not in used}
    _say_unused_splits(path, {name: rows.iloc[:, place] for name, place in unused.items()})
    found = _not_empty(path, pd.DataFrame({"image": image, "label": label} | further))
    if "patient" not in found:
        names = [name for name in unused if plain(name) in PATIENT_COLUMNS]
        for name in names[:1]:
            found.attrs[PATIENTS] = name, rows.iloc[:, unused[name]].tolist()
    return found


def _refuse_several_labels(path: Path, cells: pd.DataFrame, grades: Grades) -> None:
    """Refuse a file without a header if labels are not only in its second column.

    Raises:
        UserError: another column has only labels, too.
    """
    for place in range(2, cells.shape[1]):
        column = cells.iloc[:, place]
        if column.nunique() > 1 and (grades.targets(column) != BAD).all():
            raise UserError(
                f"{path} has no header, and labels may be in column 2 or {place + 1}; add a first line that names the "
                "columns, such as image,patient,level"
            )


def _say_unused_splits(path: Path, columns: Mapping[str, pd.Series]) -> None:
    """Warn about an unused column that seems to name the split of each image."""
    for name, column in columns.items():
        values = {*column} - {""}
        found = [splits_of(value) for value in values] if len(values) <= MOST_SPLITS else []
        named = plain(name) in SPLIT_COLUMNS or all(len(each) == 1 for each in found)
        if 1 < len(found) <= len(column) / 2 and named:
            text = (
                "%s: column %s (%s) is not used, so its splits are ignored; for each split, write a CSV of its own and "
                "name it in data.train_csv, data.val_csv or data.test_csv"
            )
            log.warning(text, path, name, ", ".join(sorted(values)[:SHOWN]) + (", …" if len(values) > SHOWN else ""))


def _say_other_labels(path: Path, header: Sequence[str], rows: pd.DataFrame, label: pd.Series) -> None:
    """Warn about another known column with other labels, which the name of the column alone did not choose."""
    known = {*map(plain, LABEL_COLUMNS)}
    others = [
        name for place, name in enumerate(header) if plain(name) in known and not rows.iloc[:, place].equals(label)
    ]
    if others:
        chosen = header[_place(header, None, LABEL_COLUMNS) or 0]
        text = "%s: the labels are those of column %s; %s differs from it; set data.label_column to choose"
        log.warning(text, path, chosen, " and ".join(others))


def _eyes(header: Sequence[str]) -> tuple[int, int] | None:
    """Return the indices of the columns EYES; None if the header lacks them."""
    names = [plain(name) for name in header]
    return (names.index(EYES[0]), names.index(EYES[1])) if {*EYES} <= {*names} else None


def _of_its_eye(image: pd.Series, left: pd.Series, right: pd.Series) -> pd.Series:
    """Return the grade of the eye in the image's name, or the only grade of a row; empty if neither exists."""
    names = image.str.replace(r"\.\w+$", "", regex=True)
    is_left, is_right = names.str.fullmatch(IS_LEFT), names.str.fullmatch(IS_RIGHT)
    own = right.where(is_right & ~is_left, left.where(is_left & ~is_right, ""))
    only = left.where(right == "", right.where((left == "") | (left == right), ""))
    return own.where(own != "", only)


def read_pair(image_csv: Path, label_csv: Path, grades: Grades) -> pd.DataFrame:
    """Read the studies' layout, two single-column files aligned row by row, into text columns `image` and `label`.

    The index is the line in `image_csv`.

    The header is optional: the first row is a header if its label cell starts with a letter and is not a label. A blank
    line in the labels is a row with a missing label; at either end it counts only if rows are missing.

    Raises:
        UserError: the two files differ in their number of rows, or have no row.
    """
    image_cells = read_text(image_csv, ",")
    label_cells = with_blank_lines(label_csv, read_text(label_csv, ","), len(image_cells))
    word = str(label_cells.iloc[0, 0])  # `1.5` or nothing is a bad label, not a header
    first = 1 if word[:1].isalpha() and grades.targets(pd.Series([word])).iloc[0] == BAD else 0
    images, labels = image_cells.iloc[first:, 0], label_cells.iloc[first:, 0]
    if len(images) != len(labels):
        raise UserError(
            f"{image_csv} has {count(len(images), 'row')} but {label_csv.name} has {len(labels)}; "
            "they must be aligned row by row, both with or both without a header"
        )
    return _not_empty(image_csv, pd.DataFrame({"image": images, "label": labels.to_numpy()}))


def _starts_with_data(cells: pd.DataFrame, grades: Grades) -> bool:
    """Return whether there is no header: the first cell is a file name, or the second a number, a label, or empty."""
    if cells.shape[1] < 2 or plain(str(cells.iloc[0, 0])) in IMAGE_COLUMNS:
        return False
    name, label = map(str, cells.iloc[0, :2])
    return (
        is_image(name)
        or is_whole(label)
        or (name != "" and label == "")
        or grades.targets(cells.iloc[:1, 1]).iloc[0] != BAD
    )


def _place(header: Sequence[str], wanted: str | None, known: Sequence[str]) -> int | None:
    """Return the index of a column, by its exact name or else by its normalized name; None if there is none."""
    names = [plain(name) for name in header]
    for name in [wanted] if wanted is not None else known:
        if name in header:
            return header.index(name)
        if names.count(plain(name)) == 1 or (wanted is None and plain(name) in names):
            return names.index(plain(name))
    return None


def _column(path: Path, cells: pd.DataFrame, wanted: str | None, known: Sequence[str], key: str) -> pd.Series:
    """Return a column without its header; columns of one name are one if they have the same cells.

    Raises:
        UserError: there is no such column, or there are several.
    """
    header, rows = list(cells.iloc[0]), cells.iloc[1:]
    place = _place(header, wanted, known)
    if place is None:
        candidates = [wanted] if wanted is not None else [*known[:3], "…"]
        none = any(is_image(cell) or is_whole(cell) for cell in header)
        remedy = f"its first line must name the columns: {wanted},…" if none and wanted else f"set {key}"
        if len(header) > 1 and sum(cell != "" for cell in header) == 1:  # a title, as in tables of Excel
            remedy = "its first line must name the columns; delete the lines above"
        raise UserError(
            f"{path} has no column {' or '.join(candidates)}; its columns are {', '.join(header)}; {remedy}"
        )
    column: pd.Series = rows.iloc[:, place]
    same = [each for each, name in enumerate(header) if name == header[place]]
    if any(not rows.iloc[:, each].equals(column) for each in same):
        raise UserError(f"{path} has {len(same)} different columns {header[place]!r}; rename or delete all but one")
    return column


def _not_empty(path: Path, labels: pd.DataFrame) -> pd.DataFrame:
    if labels.empty:
        raise UserError(f"{path} lists no image; it must list one per row")
    return labels


def parse(
    labels: pd.DataFrame,
    image_csv: Path,
    label_csv: Path,
    grades: Grades,
    drop: bool = False,
    faults: list[str] | None = None,
) -> pd.DataFrame:
    """Convert text columns `image`, `label` to `image`, `target` (int), checked row by row; index and others stay.

    Args:
        labels: result of `read_labels` or `read_pair`.
        image_csv: the file to name in errors about names.
        label_csv: the file to name in errors about labels.
        grades: the valid labels.
        drop: set the target BAD for invalid labels instead of raising an error.
        faults: gets one text for each kind of bad row, instead of an error; then rows with bad names have target BAD.

    Raises:
        UserError: a label is invalid; a name is empty, repeated, absolute or contains `..`; or `drop` would leave out
            so many rows that a key must be wrong.
    """
    targets = grades.targets(labels["label"])
    bad, shift, found = labels[targets == BAD], grades.shift(labels["label"]), list[str]()
    if len(bad) == len(labels) and drop:
        raise UserError(f"{label_csv}: no row has a valid label; {grades.rule(bad['label'].iloc[0])}")
    if drop and (misread := grades.misread(bad["label"], len(labels))):
        raise UserError("; ".join(filter(None, (f"{label_csv}: {misread}", shift))))
    if len(bad) and not drop:
        rules = {label: grades.rule(label) for label in bad["label"].unique()}
        for rule, rows in bad.groupby(bad["label"].map(rules), sort=False):
            text = "; ".join(filter(None, (str(rule), shift)))
            found += _fault(label_csv, rows, "label", f"{text}; data.on_bad_label=drop leaves such rows out")
    if shift:
        log.warning("%s: %s", label_csv, shift)
    if len(bad) and drop:
        rows_left_out = count(len(bad), "row")
        log.warning("%s: left out %s without a valid label (%s)", label_csv, rows_left_out, _counted(bad["label"]))
    good, names = targets != BAD, labels["image"]
    windows = names.str.contains("\\", regex=False)  # Windows paths; a leading `\` means the folder itself
    names = names.mask(windows, names.str.replace("\\", "/", regex=False).str.lstrip("/"))
    unsafe = names.map(lambda name: name == "" or name.startswith("/") or ".." in name.split("/"))
    used = labels.assign(image=names.mask(unsafe & ~good, ""))[good]
    rule = "names must be relative paths without '..' inside the image folder"
    found += _fault(image_csv, used[unsafe[good]], "image", rule)
    named = used[~unsafe[good]]
    again = named["image"].duplicated()
    rule = "image names must not repeat; delete one of the rows"
    if again.any():
        name = named.loc[again, "image"].iloc[0]
        rows = named[named["image"] == name]
        differ = (
            f", with labels {' and '.join(map(repr, rows['label'].unique()))}" if rows["label"].nunique() > 1 else ""
        )
        rule += f" ({name!r} is in line {rows.index[0]}, too{differ})"
    found += _fault(image_csv, named[again], "image", rule)
    if "patient" in used:
        rule = "data.patient_column must have a value in every row"
        found += _fault(image_csv, used[used["patient"] == ""], "patient", rule)
    if faults is None:
        refuse(found)
    else:
        faults += found
    labels = labels.assign(image=names.mask(unsafe, ""))  # these images are not searched for
    return labels.drop(columns="label").assign(target=targets.mask(unsafe, BAD))


def _counted(labels: pd.Series) -> str:
    """Return how often each label occurs, the most frequent first: `'0': 49, empty: 1`."""
    counts = Counter(labels).most_common()
    shown = [f"{repr(label) if label else 'empty'}: {number}" for label, number in counts[:SHOWN]]
    return ", ".join(shown + ["…"] * (len(counts) > SHOWN))


def _fault(source: Path, rows: pd.DataFrame, column: str, rule: str) -> list[str]:
    """Return a text that counts these rows and names the first of them by line and image; nothing without rows."""
    if rows.empty:
        return []
    shown = []
    for line, row in rows.head(SHOWN).iterrows():
        image = f" (image {row['image']})" if column != "image" and row["image"] else ""
        shown.append(f"{row[column]!r} in line {line}{image}")
    many = f"{', …' if len(rows) > SHOWN else ''} ({len(rows)} rows)" if len(rows) > 1 else ""
    return [f"{source}: {column} {', '.join(shown)}{many}: {rule}"]
