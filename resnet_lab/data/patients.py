"""Groups images by patient, using their file names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import pandas as pd

from resnet_lab.compatibility import CHANGED
from resnet_lab.data.listing import stem_of
from resnet_lab.errors import UserError, count

AUTO = "auto"
DEFAULTS = CHANGED["data.patient_regex"][1:]  # defaults of earlier versions, and of this one
COLUMN = "data.patient_column"
REGEX = "data.patient_regex"
REMEDY = f"if a patient has several images, set {REGEX}, or {COLUMN} for a CSV"
SHARE = 0.9  # least share of the names that a form must match for `auto` to use it
EXAMPLES = 2  # patients that a log line shows, at most
FEW = 10  # largest plausible average of images per patient: eye_L001 to eye_L400 are not one patient's
# texts in place of a patient, in lower case; so is every text without a letter or digit
UNKNOWN = (
    "na",
    "nan",
    "nat",
    "<na>",
    "n/a",
    "n.a.",
    "#n/a",
    "none",
    "null",
    "missing",
    "unknown",
    "unbekannt",
    "inconnu",
)

SIDES = {
    ("left", "right"): "left|right|links|rechts|gauche|droite",
    ("l", "r"): "l|r",
    ("OD", "OS"): "od|os|oi|og",
    ("LE", "RE"): "le|re",
}
LEFT, RIGHT = ("left", "links", "gauche", "l", "os", "oi", "og", "le"), ("right", "rechts", "droite", "r", "od", "re")
# name of a form → its pattern; a number or a word may follow the side (7_l1, 1_left_2, P3_OD_macula), but only if a
# digit precedes it (not mild_left_1); if the side comes first, numbers may follow side and patient (left1_7, left_7_1)
FORMS = {
    f"_{one}/_{other}": rf"(?=\D*\d.*(?:[_\-. ]|(?<=\d))(?:{sides})|.*[_\-. ](?:{sides})$)"
    rf"(?P<patient>.+?)(?:[_\-. ]|(?<=\d))(?P<side>{sides})(?:[_\-. ]?\d\d?)?(?:[_\-. ]\w{{1,12}})?"
    for (one, other), sides in SIDES.items()
} | {
    f"{one}_/{other}_": rf"(?P<side>{sides})\d?[_\-. ](?P<patient>\d+(?=[_\-. ]\d\d?$)|.+)(?:[_\-. ]\d\d?)?"
    for (one, other), sides in SIDES.items()
}
# a folder per patient, with photographs named only by their side (P001/left.jpg, P001/OD_2.jpg)
FORMS["folder"] = rf"(?P<patient>[^/]+)/(?P<side>{'|'.join(SIDES.values())})(?:[_\-. ]?\d\d?)?(?:[_\-. ]\w{{1,12}})?"
# pattern to propose → names that suggest it: a start with a digit, then a short end (7_1, P12-macula, 7a)
STARTS = {  # not IDRiD_001, image_00001 or 20051019_38557_0100_PP
    r"(.+)[-_. ][^-_. ]+": r"(?P<patient>[^\d]*\d.*)[-_. ](?=\D*\d{0,3}\D*$)[^-_. ]+",
    r"(.*\d)[a-z]\d*": r"(?P<patient>.*\d)[a-z]\d{0,2}",
}
# a date between separators (2019-03-04, 20190304, 4.3.2019), and the patterns to propose for names with one
DATE = r"(?:^|[-_. ]+)(?:(?:19|20)\d\d([-_.]?)[01]\d\1[0-3]\d|[0-3]?\d\.[01]?\d\.(?:19|20)\d\d)(?=[-_. ]|$)"
DATED = (r"[\d._-]{8,10}[-_. ](.+?)[-_. ].*", r"(.+?)[-_. ][\d._-]{8,10}(?:[-_. ].*)?")


@dataclass(frozen=True)
class Patients:
    """Record of how the patients of a table were found."""

    form: str | None  # a form of FORMS, data.patient_regex or data.patient_column; None: each image is a patient
    summary: str  # their number and examples, or that none were found; empty if patients were not searched for
    doubt: str = ""  # in one line, images that may belong to one patient, and what to set


EACH_IMAGE = Patients(None, "")


def patients_of_column(table: pd.DataFrame) -> Patients:
    """Describe the patients of a column; doubt spellings, a text such as `nan`, and images that only names join."""
    doubts = filter(None, (_spellings(table["patient"]), _unknown(table["patient"]), _separated(table)))
    return Patients(COLUMN, summary(table, COLUMN), _with_key(COLUMN, "; ".join(doubts)))


def find_patients(
    table: pd.DataFrame, setting: str | None, root: Path, shared: bool = True
) -> tuple[pd.DataFrame, Patients]:
    """Add `patient` to a table, and return how it was found.

    Args:
        table: rows with `image` and `path`.
        setting: `data.patient_regex`: `auto`, a form's name, a regular expression (see `add_patients`), or None.
        root: folder of the data set, to distinguish images of the same name.
        shared: see `find_form`.
    """
    names = names_of(table)
    splits = table["split"] if "split" in table else pd.Series("train", table.index)
    form = find_form(pd.Series(names, table.index), splits, shared) if setting == AUTO else setting
    pattern = FORMS.get(form, form) if form else None
    table = add_patients(table, pattern, root, names)
    if setting is None:
        return table, EACH_IMAGE
    matched = pattern is not None and any(_matches(names, pattern))
    doubt = _doubt(names, setting, pattern, matched)
    if not doubt and setting == AUTO and not matched and not _are_classes(table, names):
        doubt = _in_folders(names) or _in_folders_of_sides(names)
    if not matched:
        shown = f"file names such as {_without_folder(names[0])} ({REGEX}=auto)"
        none = f"none found in {shown}: each image counts as one patient; {REMEDY}"
        return table, Patients(None, "" if doubt else none, doubt)
    by = f"the form {form} of the file names" if form in FORMS else REGEX
    doubt = doubt or _with_key(REGEX, _spellings(table["patient"]))
    return table, Patients(form if form in FORMS else REGEX, summary(table, by), doubt)


def unused_column(column: str, texts: pd.Series, table: pd.DataFrame) -> str:
    """Describe images that a column of patients joins and the names separate; empty if there are none.

    Args:
        column: its name.
        texts: its text for each row of the table; NaN if a row has none.
        table: rows with `image` and `patient`.
    """
    texts = texts.dropna()
    known = texts[[not _is_unknown(str(text)) for text in texts]]
    if not len(known) or len(known) > FEW * known.nunique():  # a few graders or hospitals
        return ""
    found = table.loc[known.index].groupby(known)["patient"].nunique()
    several = found[found > 1]
    if several.empty:
        return ""
    images = table.loc[known.index[known == several.index[0]], "image"].tolist()
    return (
        f"{', '.join(images[:4])}{', …' if len(images) > 4 else ''} are of one patient by the unused column {column}, "
        f"but count as {several.iloc[0]} patients ({len(several)} such in all); set {COLUMN}={column}"
    )


def _with_key(key: str, doubt: str) -> str:
    return f"{key}: {doubt}" if doubt else ""


def _spelled(patient: str) -> str:
    """Return a patient without case, repeated spaces, leading zeros, and the `.0` that pandas adds to numbers."""
    alike = unicodedata.normalize("NFKC", " ".join(patient.split())).casefold()
    alike = re.sub(r"(?<![\d.,])0+(?=\d)", "", alike)
    return re.sub(r"^(\d+)[.,]0+$", r"\1", alike)


def _spellings(patients: pd.Series) -> str:
    """Describe patients that differ only in their spelling (see `_spelled`); empty if there are none."""
    spelled: dict[str, list[str]] = {}
    for patient in sorted(set(patients)):
        spelled.setdefault(_spelled(patient), []).append(patient)
    several = [names for names in spelled.values() if len(names) > 1]
    if not several:
        return ""
    more = f" (and {len(several) - 1} more such)" if len(several) > 1 else ""
    return (
        f"{' and '.join(map(repr, several[0]))}{more} count as different patients; if they are one, write them in the "
        "same way"
    )


def _is_unknown(patient: str) -> bool:
    """Return whether a text stands for a missing patient: `nan`, `-`."""
    return patient.casefold() in UNKNOWN or not any(map(str.isalnum, patient))


def _unknown(patients: pd.Series) -> str:
    """Describe texts for a missing patient that join several images; empty if there are none."""
    shared = {text: number for text, number in Counter(patients).items() if number > 1 and _is_unknown(text)}
    if not shared:
        return ""
    texts = f"the patient{'s' if len(shared) > 1 else ''} {' and '.join(map(repr, shared))}"
    return f"{sum(shared.values())} images share {texts}; if these are unknown patients, give each one an ID of its own"


def _separated(table: pd.DataFrame) -> str:
    """Describe images that a form of the file names joins and the column separates; empty if there are none.

    If the column separates more groups of the form than it joins, the names do not give the patient, and there is no
    doubt, unless each image has a different patient. Patients count as one if only their spelling differs.
    """
    images, patients = table["image"].tolist(), table["patient"].tolist()
    own = len(patients) == len({*patients})
    splits = table["split"] if "split" in table else pd.Series("train", table.index)
    names = names_of(table)
    form = find_form(pd.Series(names, table.index), splits) if len({*patients}) > 1 else None
    if form is None:
        return ""
    if own:
        return (
            f"each of the {len(table)} images has a different patient, but by the form {form} of the file names, some "
            f"share one; if they do, set {COLUMN} to another column, or leave it out"
        )
    spelled = {patient: _spelled(patient) for patient in {*patients} if not _is_unknown(patient)}
    known = ([row for row in group if patients[row] in spelled] for group in _rows_by_name(table, names, FORMS[form]))
    groups = [group for group in known if len(group) > 1]
    apart = [group for group in groups if len({spelled[patients[row]] for row in group}) > 1]
    if not apart or 2 * len(apart) > len(groups):
        return ""
    several = dict.fromkeys(patients[row] for row in apart[0])
    return (
        f"{', '.join(images[row] for row in apart[0][:4])} may belong to one patient by the form {form} of the file "
        f"names, but count as {len(several)} patients, {' and '.join(map(repr, islice(several, 4)))} ({len(apart)} "
        f"such in all); if they belong to one, write the same patient in their rows, or leave {COLUMN} out"
    )


def _rows_by_name(table: pd.DataFrame, names: Sequence[str], pattern: str) -> list[list[int]]:
    """Return the positions of rows whose names match, one list per patient; per folder if names repeat in folders."""
    repeated = len({*_seen_by(pattern, names)}) < len(names)
    files = table["path" if repeated and "path" in table else "image"].tolist()
    groups: dict[tuple[str, str], list[int]] = {}
    for row, patient in enumerate(_matches(names, pattern)):
        if patient is not None:
            folder = os.path.dirname(files[row]) if repeated else ""  # noqa: PTH120 - a fifth of the time
            groups.setdefault((folder, patient), []).append(row)
    return list(groups.values())


def find_form(names: pd.Series, splits: pd.Series, shared: bool = True) -> str | None:
    """Return the form of FORMS that at least SHARE of the names match and that joins at least two images.

    The names of one split suffice, so that a test split from another data set does not change the patients of train.
    If names repeat in the folders of a split (P1/OD_1, P2/OD_1), only a form with a folder can identify patients.

    Args:
        names: result of `names_of`, (N,).
        splits: splits of the images, (N,).
        shared: false also accepts a form that joins no two images.
    """
    parts = [list(part) for _, part in names.groupby(splits)]
    for form, pattern in FORMS.items():
        if any(len(set(_seen_by(pattern, part))) < SHARE * len(part) for part in parts):
            continue
        for part in (list(names), *parts) if len(parts) > 1 else parts:
            groups = _groups(part, pattern)
            matched = sum(map(len, groups))
            if matched >= SHARE * len(part) and (len(groups) < matched or not shared) and _are_eyes(pattern, groups):
                return form
    return None


def names_of(table: pd.DataFrame) -> list[str]:
    """Return the names of images without suffix, each preceded by its folder: `P001/left`."""
    names = table["image"].tolist()
    files = table["path"].tolist() if "path" in table else names
    folder_of = cache(os.path.basename)
    folders = (folder_of(os.path.dirname(file)) for file in files)  # noqa: PTH120 - a fifth of the time
    return [f"{folder}/{stem_of(name)}" for folder, name in zip(folders, names, strict=True)]


def _without_folder(name: str) -> str:
    return name.rpartition("/")[2]


def _seen_by(pattern: str, names: Iterable[str]) -> Iterator[str]:
    """Return the part of each name that a pattern must match: with the folder if the pattern has one."""
    return iter(names) if "/" in pattern else map(_without_folder, names)


def _groups(names: Sequence[str], pattern: str) -> list[list[str]]:
    """Return the names that match a pattern, one list per patient."""
    groups: dict[str, list[str]] = {}
    for name, match in _fullmatches(names, pattern):
        groups.setdefault(match["patient"], []).append(name)
    return list(groups.values())


def _are_eyes(pattern: str, groups: Sequence[list[str]]) -> bool:
    """Return whether patients have few images each and, if the side comes first (not r1_7), mostly both eyes."""
    several = [group for group in groups if len(group) > 1]
    both = [group for group in several if len({match["side"].lower() for _, match in _fullmatches(group, pattern)}) > 1]
    few = sum(map(len, groups)) <= FEW * len(groups)
    return few and (not pattern.startswith("(?P<side>") or 2 * len(both) >= len(several))


def _fullmatches(names: Sequence[str], pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    matches = map(re.compile(pattern, re.IGNORECASE).fullmatch, _seen_by(pattern, names))
    return ((name, match) for name, match in zip(names, matches, strict=True) if match)


def show_one_eye(images: Sequence[str]) -> bool:
    """Return whether the names of a patient's images name the same eye; false if a name has no side."""
    names = [f"{Path(image).parent.name}/{stem_of(image)}" for image in images]
    for pattern in FORMS.values():
        sides = [match["side"].lower() in LEFT for _, match in _fullmatches(names, pattern)]
        if len(sides) == len(names):
            return len({*sides}) == 1
    return False


def add_patients(
    table: pd.DataFrame, pattern: str | None, root: Path | None = None, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Add `patient`: the first group of `pattern` in a name; an image that does not match is its own patient.

    The suffix of a name is ignored; its folder counts only for a pattern with a slash, `(.+)/.*`, because a patient's
    eyes may be in two folders (of a split or class). An image that does not match is identified by its name, or by its
    path if two files have that name.

    Args:
        table: rows with `image`, and `path` if `root` is given.
        pattern: regular expression for the entire name, ignoring case; None: each image is its own patient.
        root: folder of the data set; paths are relative to it.
        names: result of `names_of`, if already computed.

    Raises:
        UserError: the pattern is not a regular expression with a group.
    """
    own = table["image"] if root is None else distinct_names(table, root)
    found = pd.Series(_matches(names or names_of(table), pattern) if pattern else None, index=table.index, dtype=object)
    return table.assign(patient=found.where(found.notna(), own))


def distinct_names(table: pd.DataFrame, root: Path) -> pd.Series:
    """Return `image`, or the path below `root` if two files have the same name.

    Paths outside `root` are relative to their common folder, so that names contain no folders of a machine.
    """
    names, several = table["image"], table["image"].duplicated(keep=False)
    if not several.any():
        return names
    paths = table.loc[several, "path"].map(os.path.abspath)
    shared = os.path.commonpath(list(paths))
    base = os.path.abspath(root)  # noqa: PTH100 - not resolved: the paths contain links, too
    inside = os.path.commonpath([base, shared]) == base
    return names.mask(several, paths.map(lambda path: os.path.relpath(path, base if inside else shared)))


def _matches(names: Iterable[str], pattern: str) -> list[str | None]:
    """Return the patient of each name, None if the pattern does not match."""
    try:
        expression = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"{REGEX}={pattern}: {error}") from None
    if not expression.groups:
        raise UserError(
            f"{REGEX}={pattern}: put the patient's part in parentheses: (.+)_(?:left|right); or choose a form: "
            f"{AUTO}, {', '.join(FORMS)}"
        )
    group = "patient" if "patient" in expression.groupindex else 1
    found = map(expression.fullmatch, _seen_by(pattern, names))
    return [unicodedata.normalize("NFC", match[group]) if match and match[group] else None for match in found]


def summary(table: pd.DataFrame, by: str) -> str:
    """Describe how many patients a table has, how they were found, and a few with several images."""
    groups: dict[str, list[str]] = {}  # a plain loop: groupby takes a second for 35,000 images
    for patient, image in zip(table["patient"].tolist(), table["image"].tolist(), strict=True):
        groups.setdefault(patient, []).append(image)
    several = islice(((patient, images) for patient, images in groups.items() if len(images) > 1), EXAMPLES)
    shown = [f"{patient} ({', '.join(images[:4])}{', …' if len(images) > 4 else ''})" for patient, images in several]
    examples = f", such as {'; '.join(shown)}" if shown else ""
    return f"{len(groups)} in {len(table)} images, by {by}{examples}"


def _doubt(names: Sequence[str], setting: str, pattern: str | None, matched: bool) -> str:
    """Describe images that may belong to one patient, and the key to set; empty if there is no reason for doubt."""
    found = _matches(names, pattern) if pattern else [None] * len(names)
    labels = sorted({patient or _without_folder(name) for patient, name in zip(found, names, strict=True)})
    better, alike = _alike(labels)
    key = f"{REGEX}={setting}" + ("" if matched else " finds no form" if setting == AUTO else " matches no name")
    if visits := [] if alike else _visits(labels, matched):
        several = [each for each in visits if len(each) > 1]
        of_label = {label: number for number, each in enumerate(visits) for label in each}
        own = [of_label[patient or _without_folder(name)] for patient, name in zip(found, names, strict=True)]
        better = next((each for each in DATED if _are_same(_matches(names, each), own)), "")
        remedy = f"set \"{REGEX}='{better}'\"" if better else f"set {REGEX} or {COLUMN}"
        return (
            f"{', '.join(several[0][:4])} differ only in the date, but count as {count(len(several[0]), 'patient')} "
            f"({key}; {len(several)} such in all); if they are visits of one patient, {remedy}"
        )
    if alike:
        forms = (form for form, each in FORMS.items() if 2 * len(list(_fullmatches(names, each))) > len(names))
        fits = better in FORMS or not matched  # else it matches the patients, not the names
        if not any(_matches(names, FORMS.get(better, better))):
            better = next(forms, "")
            fits = better != ""
        quoted = f"{REGEX}={better}" if better in FORMS else f"\"{REGEX}='{better}'\""  # for shell and Hydra
        remedy = f"set {quoted}" if fits else f"set {REGEX} to a pattern with the patient as first group"
        return (
            f"{', '.join(alike[:4])} may belong to one patient, but count as {len(alike)} patients ({key}); "
            f"if they belong to one, {remedy}"
        )
    if matched or setting == AUTO:
        return ""
    return f"{key} (names such as {_without_folder(names[0])}), so each image counts as one patient; {REMEDY}"


def _are_classes(table: pd.DataFrame, names: Sequence[str]) -> bool:
    """Return whether each folder has the images of one class, and each class one folder (of one name)."""
    targets = table["target"] if "target" in table else range(len(names))
    pairs = {(name.rpartition("/")[0], target) for name, target in zip(names, targets, strict=True)}
    return len({folder for folder, _ in pairs}) == len({target for _, target in pairs}) == len(pairs)


def _in_folders(names: Sequence[str]) -> str:
    """Describe small numbered folders (P001/im1, P001/im2), which may be those of patients; empty if there are none."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    several = [inside for folder, inside in folders.items() if len(inside) > 1 and re.search(r"\d", folder)]
    times = Counter(map(_without_folder, names))
    again = sum(times[_without_folder(name)] > 1 for name in names)
    small = all(len(inside) <= FEW for inside in several)
    if not (
        len(several) > 2
        and len(names) < 2 * sum(map(len, several))
        and len(names) <= FEW * len(folders)
        and (len(names) < 2 * again or small)
    ):
        return ""
    why = "as other folders have these file names" if len(names) < 2 * again else "as they are in one folder"
    return (
        f"{', '.join(several[0][:4])} may belong to one patient, {why}, but count as "
        f"{len(several[0])} patients ({REGEX}={AUTO} finds no form); "
        f"if a folder is one patient, set \"{REGEX}='(.+)/.*'\""
    )


def _in_folders_of_sides(names: Sequence[str]) -> str:
    """Describe the same file names in a folder for each eye (left/1, right/1); empty if there are none."""
    sides: dict[str, dict[str, str]] = {}  # file name → side → name
    for name in names:
        folder = name.rpartition("/")[0].rpartition("/")[2]
        for side in (LEFT, RIGHT):
            words = "|".join(word for word in side if len(word) > 2 or word[0] == "o")  # l and re may be anything
            if re.fullmatch(rf"(?i)(?:.*[_\-. ])?(?:{words})(?:[_\-. ].*)?", folder):
                sides.setdefault(_without_folder(name), {})[side[0]] = name
    both = [[*found.values()] for found in sides.values() if len(found) == 2]
    if len(both) < 2 or len(names) > 4 * len(both):  # at least half of the images
        return ""
    return (
        f"{' and '.join(both[0])} may be the eyes of one patient, but count as 2 patients ({len(both)} such in all); "
        f"if they are, set \"{REGEX}='.*/(.+)'\""
    )


def _visits(labels: Sequence[str], matched: bool) -> list[list[str]]:
    """Return labels grouped by what is left without a date; empty if that may be a counter, a time or a camera.

    Labels of eyes (`matched`) are those of patients. What follows a date must then have a letter and a digit, or five
    digits (20190304_P7, not 20190304_007). Other labels are those of photographs: the date must come last, and most of
    them must be alike.
    """
    groups: dict[str, list[str]] = {}
    ends = re.compile(DATE + "$")
    for label in labels:
        left = re.sub(DATE, "", label).strip("-_. ")
        named = left and (re.search(r"[^\W\d].*\d|\d{5}", left) if matched else False)
        groups.setdefault(left if named or (left and ends.search(label)) else label, []).append(label)
    shared = [each for each in groups.values() if len(each) > 1]
    most = matched or (len(shared) > 2 and 2 * sum(map(len, shared)) > len(labels))
    return list(groups.values()) if shared and most and sum(map(len, shared)) <= FEW * len(shared) else []


def _are_same(found: Sequence[str | None], groups: Sequence[int]) -> bool:
    """Return whether patients and groups of the same images are the same."""
    pairs = {*zip(found, groups, strict=True)}
    return None not in found and len(pairs) == len({*found}) == len({*groups})


def _alike(labels: Sequence[str]) -> tuple[str, list[str]]:
    """Return the setting that would join labels, and the labels of one patient; both empty if none look alike.

    A form counts if it joins at least two groups; a common start counts if most labels share it with a few others.
    """
    for form, pattern in FORMS.items():
        shared = [group for group in _groups(labels, pattern) if len(group) > 1]
        if len(shared) > 1 and _are_eyes(pattern, shared):
            return form, shared[0]
    for proposal, pattern in STARTS.items():
        shared = [group for group in _groups(labels, pattern) if len(group) > 1]
        if len(shared) > 2 and len(labels) / 2 < sum(map(len, shared)) <= FEW * len(shared):
            return proposal, shared[0]
    return "", []
