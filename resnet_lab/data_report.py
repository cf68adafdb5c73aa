"""Writes what a data set holds and what is wrong with it: one page, and CSVs beside it (no torch)."""

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

# Of the eye, in gray levels. IDRiD: mean 37 to 139, dark share at most 0.03, bright share at most 0.006. RetinaMNIST:
# below 30 lie 6 of 1080, too dark to grade; above 0.05 (the optic disc takes 0.02) lie 5, all with a burnt-out rim
NEAR_BLACK = 30  # mean, below which a photograph is nearly black …
HALF_BLACK = 0.5  # … or the share of pixels below 20, above which it is
OVEREXPOSED = 0.05  # share of pixels above 235, above which a photograph is overexposed

ROWS = 20  # rows of a table and pairs of duplicates on the page, at most; the CSVs hold all
CLASSES = 24  # of the table of classes on the page, at most
PER_CLASS = 6  # photographs of a class on the contact sheet …
PICTURES = 120  # … and of all classes, at most
EXTREMES = 8  # darkest photographs, and brightest
SIDE = 180  # pixels of a picture on the page

KINDS = {"exact": "identical files", "near": "nearly identical photographs"}


@dataclass(frozen=True)
class DataSummary:
    """What the report says beside the tables."""

    name: str
    root: Path
    folder: Path  # of the prepared set
    class_names: Sequence[str]
    mean_and_std: tuple[list[float], list[float]] | None  # (3,), of the training images in [0, 1]; None: there are none
    recipe: Mapping[str, Any]
    patients: Patients = EACH_IMAGE  # how they were found
    split_problem: str = ""  # why the splits that training asks for cannot be cut


class Thumbnail(NamedTuple):
    """One photograph on the page."""

    jpeg: str  # base64
    title: str
    text: str
    alarm: bool = False


def write_data_report(out: Path, facts: pd.DataFrame, duplicates: pd.DataFrame, summary: DataSummary) -> list[Finding]:
    """Write `data_report.html` and the CSVs of `csv_tables` into the folder `out`, and return what is wrong.

    Args:
        out: is made if need be.
        facts: one row per listed image: `image, split, target, patient, path`, `prepared` (a JPEG), `width, height`
            (pixels of the source), `defect` (empty, or why it cannot be read), `brightness` (mean gray of the eye, 0 to
            255), `dark` and `bright` (shares of the eye's pixels below 20 and above 235).
        duplicates: as `find_duplicates` gives them.
        summary: everything else.

    Raises:
        UserError: `out` cannot be written.
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
    """The content of the CSVs by name; all but `unreadable` are about the images that can be read."""
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
    """The rows of the images that can be read."""
    return facts[facts["defect"] == ""]


def leaks_of(good: pd.DataFrame) -> pd.DataFrame:
    """The images of train or val whose patient also stands in a later split, with the patient's other splits."""
    leaks = leaking(good)
    everywhere = good[good["patient"].isin(good.loc[leaks, "patient"])]
    splits = everywhere.groupby("patient")["split"].agg(set).to_dict()
    table = good.loc[leaks, ["image", "split", "patient"]]
    others = [splits[patient] - {split} for patient, split in zip(table["patient"], table["split"], strict=True)]
    return table.assign(other_splits=[" ".join(sorted(other, key=SPLITS.index)) for other in others])


def exposure_of(good: pd.DataFrame) -> pd.DataFrame:
    """The nearly black images, the darkest first, and then the overexposed ones, the brightest first."""
    columns = ["image", "split", "target", "brightness", "dark", "bright"]
    black = good[(good["brightness"] < NEAR_BLACK) | (good["dark"] > HALF_BLACK)].sort_values("brightness")
    white = good[good["bright"] > OVEREXPOSED].sort_values("bright", ascending=False)
    return pd.concat([black[columns].assign(problem="near-black"), white[columns].assign(problem="overexposed")])


def class_counts_of(good: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per class, `target, class`, with its images in each split that there is."""
    counts = pd.crosstab(good["target"], good["split"]).reindex(range(len(class_names)), fill_value=0)
    counts = counts[[split for split in SPLITS if split in counts]]
    splits = list(counts.columns)
    table = counts.rename_axis(columns=None).reset_index(names="target").assign(**{"class": class_names})
    return table[["target", "class", *splits]]


def data_findings(facts: pd.DataFrame, tables: Mapping[str, pd.DataFrame], summary: DataSummary) -> Iterator[Finding]:
    """What is wrong with the data, the worst first."""
    if lost := len(tables["unreadable"]):
        first = tables["unreadable"].iloc[0]
        text = f"{count(lost, 'file')} of {len(facts)} cannot be read, such as {first['image']} ({first['defect']})"
        yield Finding("unreadable", text)
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
    """A share in percent with one decimal; `–` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _duplicate_findings(duplicates: pd.DataFrame, class_names: Sequence[str]) -> Iterator[Finding]:
    """One finding for each kind, by whether splits and labels differ, in the order of the table."""
    crosses = duplicates["split_a"] != duplicates["split_b"]
    conflicts = duplicates["label_a"] != duplicates["label_b"]
    for (across, labels, kind), pairs in duplicates.groupby([crosses, conflicts, "kind"], sort=False):
        where = "across the splits" if across else "in one split"
        what = f"{count(len(pairs), 'pair')} of {KINDS[str(kind)]} {where}" + (
            ", with different labels" if labels else ""
        )
        first = pairs.iloc[0]
        sides = [f"{first[f'image_{s}']} ({first[f'split_{s}']}, {class_names[first[f'label_{s}']]})" for s in "ab"]
        yield Finding("duplicates", f"{what}: {'' if len(pairs) == 1 else 'first '}{' and '.join(sides)}")


def _leak_findings(good: pd.DataFrame, leaks: pd.DataFrame) -> Iterator[Finding]:
    for split, rows in leaks.groupby("split", sort=False):
        total = int((good["split"] == split).sum())
        text = (
            f"{count(len(rows), 'image')} of {split} ({share(len(rows), total)}) whose patient also stands in a later"
        )
        yield Finding("leak", f"{text} split, such as {rows['image'].iloc[0]}, of patient {rows['patient'].iloc[0]}")


def _class_findings(counts: pd.DataFrame) -> Iterator[Finding]:
    for split in counts.columns[2:]:
        absent = counts.loc[counts[split] == 0, "class"].tolist()
        if absent:
            names = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            missing = count(len(absent), "class has", "classes have")
            yield Finding("classes", f"{missing} no image in {split}: {names}")


def _size_findings(sizes: pd.DataFrame, image_size: int | None) -> Iterator[Finding]:
    if image_size is None:
        return
    small = int(sizes.loc[sizes[["width", "height"]].min(axis=1) < image_size, "count"].sum())
    if small:
        are = count(small, "photograph is", "photographs are")
        yield Finding("sizes", f"{are} smaller than the {image_size} pixels that training sees")


def data_page(
    facts: pd.DataFrame, tables: Mapping[str, pd.DataFrame], findings: Sequence[Finding], summary: DataSummary
) -> str:
    """The report as one self-contained HTML page."""
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
        bars=base64_of(png(plots.classes.counts(by_split, summary.class_names))) if by_split else "",
        contact=contact_sheet(good, summary.class_names),
        pairs=duplicate_pairs(good, tables["duplicates"], summary.class_names),
        extremes=extremes(good, tables["exposure"]),
        tables={name: table.head(ROWS).to_dict("records") for name, table in tables.items()},
        totals={name: len(table) for name, table in tables.items()},
        limits={"mean": NEAR_BLACK, "dark": HALF_BLACK, "bright": OVEREXPOSED},
        share=share,
    )


def class_table(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
    """The table of classes: at most CLASSES rows, the largest and the smallest; totals; the majority baseline."""
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
    """A row of the facts (a named tuple) as a picture of at most SIDE pixels."""
    image = read_prepared(row.prepared)
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpeg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 80))
    return Thumbnail(base64_of(jpeg.tobytes()), row.image, text, alarm)


def contact_sheet(good: pd.DataFrame, class_names: Sequence[str]) -> list[tuple[str, int, list[Thumbnail]]]:
    """Class, its images, and some of them, spread evenly over the list; of the first PICTURES classes at most."""
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
    """The first ROWS pairs: what is to be said of each, and its two pictures."""
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
    """The darkest and the brightest photographs; those of the table of exposure are marked."""
    marked = set(zip(exposure["image"], exposure["split"], strict=True))
    order = good.sort_values("brightness", kind="stable")
    chosen = {"The darkest": order.head(EXTREMES), "The brightest": order.tail(EXTREMES)[::-1]}

    def shown(row: Any) -> Thumbnail:
        return thumbnail(row, f"mean {row.brightness:.0f}", (row.image, row.split) in marked)

    return {title: [shown(row) for row in rows.itertuples()] for title, rows in chosen.items()}
