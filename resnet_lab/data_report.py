"""Writes a report on the content and the defects of a data set: one page, and CSVs beside it (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from resnet_lab import plots
from resnet_lab.data.patients import EACH_IMAGE, Patients
from resnet_lab.data.prepared import read_prepared
from resnet_lab.data.splits import NO_TEST, SPLITS, leaking
from resnet_lab.errors import UserError, count
from resnet_lab.files import write_atomically
from resnet_lab.rendering import Finding, base64_of, png, render
from resnet_lab.report.intervals import FEWEST

# Limits in gray levels of the eye. IDRiD: mean 37 to 139, dark share at most 0.03, bright share at most 0.006.
# RetinaMNIST: 6 of 1080 have a mean below 30 and are too dark to grade; 5 have a bright share above 0.05, all with a
# burnt-out rim (the optic disc has 0.02).
NEAR_BLACK = 30  # a photograph with a mean below this is nearly black …
HALF_BLACK = 0.5  # … or with more than this share of pixels below 20
OVEREXPOSED = 0.05  # a photograph with more than this share of pixels above 235 is overexposed

ROWS = 20  # at most so many rows of a table and pairs of duplicates on the page; the CSVs contain all
CLASSES = 24  # at most so many rows in the table of classes
PER_CLASS = 6  # photographs per class on the contact sheet …
PICTURES = 120  # … and at most so many of all classes
EXTREMES = 8  # number of darkest photographs, and of brightest
SIDE = 180  # pixels of a picture on the page

KINDS = {"exact": "identical files", "near": "nearly identical photographs"}


@dataclass(frozen=True)
class DataSummary:
    """Content of the report beside the tables."""

    name: str
    root: Path
    folder: Path  # of the prepared set
    class_names: Sequence[str]
    mean_and_std: tuple[list[float], list[float]] | None  # (3,), of the training images in [0, 1]; None without any
    recipe: Mapping[str, Any]
    patients: Patients = EACH_IMAGE  # how they were found
    merged: str = ""  # patients that share identical photographs
    split_problem: str = ""  # why the configured splits cannot be cut
    bad_labels: int = 0  # rows left out because they have no valid label


class Thumbnail(NamedTuple):
    """One photograph on the page."""

    jpeg: str  # base64
    title: str
    text: str
    alarm: bool = False


def write_data_report(out: Path, facts: pd.DataFrame, duplicates: pd.DataFrame, summary: DataSummary) -> list[Finding]:
    """Write `data_report.html` and the CSVs of `csv_tables` into the folder `out`, and return the findings.

    Args:
        out: the folder; it is created if necessary.
        facts: one row per listed image: `image, split, target, patient, path`, `prepared` (a JPEG), `width, height`
            (pixels of the source), `defect` (empty, or why it cannot be read), `brightness` (mean gray of the eye, 0 to
            255), `dark` and `bright` (shares of the eye's pixels below 20 and above 235).
        duplicates: result of `find_duplicates`.
        summary: everything else.

    Raises:
        UserError: `out` is not writable.
    """
    tables = csv_tables(facts, duplicates, summary.class_names)
    findings = list(data_findings(facts, tables, summary))
    content = data_page(facts, tables, findings, summary)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_atomically(out / f"{name}.csv", table.to_csv(index=False))
        write_atomically(out / "data_report.html", content)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}); choose another folder") from error
    return findings


def csv_tables(facts: pd.DataFrame, duplicates: pd.DataFrame, class_names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the content of the CSVs by name; all but `unreadable` cover only readable images."""
    good = readable(facts)
    sizes = good.groupby(["width", "height"]).size().rename("count").reset_index()
    return {
        "unreadable": facts.loc[facts["defect"] != "", ["image", "split", "target", "path", "defect"]],
        "duplicates": duplicates,
        "leaks": leaks_of(good),
        "exposure": exposure_of(good),
        "class_counts": class_counts_of(good, class_names),
        "sizes": sizes.sort_values(["count", "width", "height"], ascending=[False, True, True]),
    }


def readable(facts: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of readable images."""
    return facts[facts["defect"] == ""]


def leaks_of(good: pd.DataFrame) -> pd.DataFrame:
    """Return the images of train or val with a patient who is also in a later split, and the patient's other splits."""
    leaks = leaking(good)
    everywhere = good[good["patient"].isin(good.loc[leaks, "patient"])]
    splits = everywhere.groupby("patient")["split"].agg(set).to_dict()
    table = good.loc[leaks, ["image", "split", "patient"]]
    others = [splits[patient] - {split} for patient, split in zip(table["patient"], table["split"], strict=True)]
    return table.assign(other_splits=[" ".join(sorted(other, key=SPLITS.index)) for other in others])


def exposure_of(good: pd.DataFrame) -> pd.DataFrame:
    """Return the nearly black images, darkest first, then the overexposed images, brightest first."""
    columns = ["image", "split", "target", "brightness", "dark", "bright"]
    black = good[(good["brightness"] < NEAR_BLACK) | (good["dark"] > HALF_BLACK)].sort_values("brightness")
    white = good[good["bright"] > OVEREXPOSED].sort_values("bright", ascending=False)
    return pd.concat([black[columns].assign(problem="near-black"), white[columns].assign(problem="overexposed")])


def class_counts_of(good: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Return one row per class, `target, class`, with its number of images in each existing split."""
    counts = pd.crosstab(good["target"], good["split"]).reindex(range(len(class_names)), fill_value=0)
    counts = counts[[split for split in SPLITS if split in counts]]
    splits = list(counts.columns)
    table = counts.rename_axis(columns=None).reset_index(names="target").assign(**{"class": class_names})
    return table[["target", "class", *splits]]


def data_findings(facts: pd.DataFrame, tables: Mapping[str, pd.DataFrame], summary: DataSummary) -> Iterator[Finding]:
    """Yield the findings about the data, worst first."""
    if lost := len(tables["unreadable"]):
        first = tables["unreadable"].iloc[0]
        example = f"{first['image']} ({first['defect']})"
        yield Finding("unreadable", f"{lost} of {len(facts)} files missing or unreadable, such as {example}")
    if summary.bad_labels:
        left_out = count(summary.bad_labels, "row is", "rows are")
        yield Finding("labels", f"{left_out} left out, without a valid label (data.on_bad_label=drop)")
    if summary.split_problem:
        yield Finding("splits", summary.split_problem)
    elif "train" in tables["class_counts"] and "test" not in tables["class_counts"]:
        yield Finding("splits", NO_TEST)
    if summary.patients.doubt:
        yield Finding("patients", summary.patients.doubt)
    yield from _duplicate_findings(tables["duplicates"], summary.class_names)
    yield from _leak_findings(readable(facts), tables["leaks"])
    yield from _class_findings(tables["class_counts"])
    for problem, rows in tables["exposure"].groupby("problem"):
        kind = {"near-black": "nearly black", "overexposed": "overexposed"}[str(problem)]
        are = count(len(rows), "photograph is", "photographs are")
        text = f"{are} {kind}, such as {rows['image'].iloc[0]}"
        yield Finding("exposure", text)
    yield from _size_findings(tables["sizes"], summary.recipe.get("image_size"))


def share(part: int, whole: int) -> str:
    """Format a share in percent with one decimal; `–` if the total is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _duplicate_findings(duplicates: pd.DataFrame, class_names: Sequence[str]) -> Iterator[Finding]:
    """Yield one finding per kind and per difference of splits and labels, in the order of the table."""
    crosses = duplicates["split_a"] != duplicates["split_b"]
    conflicts = duplicates["label_a"] != duplicates["label_b"]
    for (across, labels, kind), pairs in duplicates.groupby([crosses, conflicts, "kind"], sort=False):
        where = "across the splits" if across else "in one split"
        what = f"{count(len(pairs), 'pair')} of {KINDS[str(kind)]} {where}" + (
            ", with different labels" if labels else ""
        )
        first = pairs.iloc[0]
        sides = [f"{first[f'image_{s}']} ({first[f'split_{s}']}, {class_names[first[f'label_{s}']]})" for s in "ab"]
        remedy = "" if across or labels else "; they count twice, so delete one of each pair"
        yield Finding("duplicates", f"{what}: {'' if len(pairs) == 1 else 'first '}{' and '.join(sides)}{remedy}")


def _leak_findings(good: pd.DataFrame, leaks: pd.DataFrame) -> Iterator[Finding]:
    for split, rows in leaks.groupby("split", sort=False):
        total = int((good["split"] == split).sum())
        images = f"{count(len(rows), 'image')} of {split} ({share(len(rows), total)})"
        belong = "belongs to a patient who is" if len(rows) == 1 else "belong to patients who are"
        first = f"{rows['image'].iloc[0]} of patient {rows['patient'].iloc[0]}"
        yield Finding("leak", f"{images} {belong} also in a later split, such as {first}")


def _class_findings(counts: pd.DataFrame) -> Iterator[Finding]:
    for split in counts.columns[2:]:
        absent = counts.loc[counts[split] == 0, "class"].tolist()
        if absent:
            names = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            missing = count(len(absent), "class has", "classes have")
            yield Finding("classes", f"{missing} no image in {split}: {names}")
    few = counts[counts["test"].between(1, FEWEST - 1)] if "test" in counts else counts[:0]
    if len(few):
        names = ", ".join(f"{row['class']} ({row['test']})" for row in few.head(3).to_dict("records"))
        which = f"{names}{', …' if len(few) > 3 else ''}"
        text = f"fewer than {FEWEST} test images of {which}: too few for intervals of balanced accuracy and AUROC"
        yield Finding("classes", text, False)


def _size_findings(sizes: pd.DataFrame, image_size: int | None) -> Iterator[Finding]:
    if image_size is None:
        return
    small = int(sizes.loc[sizes[["width", "height"]].min(axis=1) < image_size, "count"].sum())
    if small:
        are = count(small, "photograph is", "photographs are")
        yield Finding("sizes", f"{are} smaller than the {image_size} pixels used for training")


def data_page(
    facts: pd.DataFrame, tables: Mapping[str, pd.DataFrame], findings: Sequence[Finding], summary: DataSummary
) -> str:
    """Return the report as one self-contained HTML page."""
    good, counts = readable(facts), tables["class_counts"]
    by_split = {split: counts[split].to_numpy() for split in counts.columns[2:]}
    return render(
        "data_report.html.j2",
        summary=summary,
        findings=findings,
        listed=count(len(facts), "listed photograph"),
        read=len(good),
        patients=count(good["patient"].nunique(), "patient"),
        counts=class_table(by_split, summary.class_names),
        splits=list(by_split),
        bars=[
            base64_of(png(plots.classes.counts(by_split, summary.class_names, stacked=stacked)))
            for stacked in ((False, True) if by_split else ())
        ],
        contact=contact_sheet(good, summary.class_names),
        pairs=duplicate_pairs(good, tables["duplicates"], summary.class_names),
        extremes=extremes(good, tables["exposure"]),
        tables={name: table.head(ROWS).to_dict("records") for name, table in tables.items()},
        totals={name: len(table) for name, table in tables.items()},
        limits={"mean": NEAR_BLACK, "dark": HALF_BLACK, "bright": OVEREXPOSED},
        share=share,
    )


def class_table(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the table of classes (the largest and the smallest, at most CLASSES), totals, the majority baseline."""
    totals = {split: int(images.sum()) for split, images in counts.items()}
    overall = np.sum([*counts.values()], axis=0) if counts else np.zeros(len(class_names))
    order = np.argsort(-overall, kind="stable")
    shown = sorted([*order[: CLASSES // 2], *order[CLASSES // 2 :][-CLASSES // 2 :]])
    majority = int(np.argmax(counts["train"])) if "train" in counts else int(order[0])
    rows = [(class_names[k], [(int(images[k]), totals[split]) for split, images in counts.items()]) for k in shown]
    return {
        "rows": rows,
        "hidden": len(class_names) - len(shown),
        "totals": list(totals.values()),
        "majority": class_names[majority],
        "baseline": [share(int(images[majority]), totals[split]) for split, images in counts.items()],
    }


def thumbnail(row: Any, text: str, alarm: bool = False) -> Thumbnail:
    """Make a picture of at most SIDE pixels from a row of the facts (a named tuple)."""
    image = read_prepared(row.prepared)
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpeg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 80))
    return Thumbnail(base64_of(jpeg.tobytes()), row.image, text, alarm)


def contact_sheet(good: pd.DataFrame, class_names: Sequence[str]) -> list[tuple[str, int, list[Thumbnail]]]:
    """Return class, number of images, and evenly spaced examples, for as many classes as PICTURES allows."""
    each = min(PER_CLASS, max(1, PICTURES // len(class_names)))
    sheet: list[tuple[str, int, list[Thumbnail]]] = []
    for target, rows in good.groupby("target"):
        if len(sheet) * each < PICTURES:
            chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, each).astype(int))]
            pictures = [thumbnail(row, str(row.split)) for row in chosen.itertuples()]
            sheet.append((class_names[int(str(target))], len(rows), pictures))
    return sheet


def duplicate_pairs(
    good: pd.DataFrame, duplicates: pd.DataFrame, class_names: Sequence[str]
) -> list[tuple[list[str], list[Thumbnail]]]:
    """Return the first ROWS pairs: a description of each, and its two pictures."""
    pairs, shown = duplicates.head(ROWS), []
    named = good["image"].isin([*pairs["image_a"], *pairs["image_b"]])
    rows = {(row.image, row.split): row for row in good[named].itertuples()}
    for pair in pairs.to_dict("records"):
        words = [KINDS[pair["kind"]]] + ["across splits"] * (pair["split_a"] != pair["split_b"])
        words += ["different labels"] * (pair["label_a"] != pair["label_b"])
        sides = [(pair[f"image_{side}"], pair[f"split_{side}"], pair[f"label_{side}"]) for side in "ab"]
        shown.append((words, [thumbnail(rows[i, s], f"{s}, {class_names[k]}") for i, s, k in sides]))
    return shown


def extremes(good: pd.DataFrame, exposure: pd.DataFrame) -> dict[str, list[Thumbnail]]:
    """Return the darkest and the brightest photographs; photographs in the table of exposure are marked."""
    marked = set(zip(exposure["image"], exposure["split"], strict=True))
    order = good.sort_values("brightness", kind="stable")
    chosen = {"The darkest": order.head(EXTREMES), "The brightest": order.tail(EXTREMES)[::-1]}

    def shown(row: Any) -> Thumbnail:
        return thumbnail(row, f"mean {row.brightness:.0f}", (row.image, row.split) in marked)

    return {title: [shown(row) for row in rows.itertuples()] for title, rows in chosen.items()}
