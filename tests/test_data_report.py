"""The data report: findings, counts, pictures, and a self-contained page."""

from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from fake_data import pixels, refusal

from resnet_lab.data.duplicates import COLUMNS
from resnet_lab.data.patients import Patients
from resnet_lab.data_report import CLASSES, PICTURES, ROWS, DataSummary, csv_tables, data_findings, write_data_report

NAMES = ("healthy", "ill")


def facts_of(folder: Path, rows: list[tuple]) -> pd.DataFrame:
    """Return facts of one readable image per `image, split, target, patient`, all with one small picture."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "picture.jpeg"
    cv2.imwrite(str(picture), pixels("a"))
    facts = pd.DataFrame(rows, columns=["image", "split", "target", "patient"])
    values = {"width": 640, "height": 480, "defect": "", "brightness": 90.0, "dark": 0.0, "bright": 0.0}
    return facts.assign(path=facts["image"], prepared=str(picture), **values)


def summary_of(folder: Path, names=NAMES, **changes) -> DataSummary:
    given = {"name": "data", "root": folder, "folder": folder, "class_names": names}
    given |= {"mean_and_std": ([0.5, 0.25, 0.125], [0.1, 0.2, 0.3]), "recipe": {"image_size": 64}}
    return DataSummary(**given | changes)


def listed(n: int, split: str = "train", classes: int = 2) -> list[tuple]:
    return [(f"{split}_{k}", split, k % classes, f"{split}_{k}") for k in range(n)]


def test_rows_without_a_label_are_counted(tmp_path):
    facts = facts_of(tmp_path, [*listed(20), *listed(20, "test")])
    whole = texts(facts, NO_PAIRS, summary_of(tmp_path))
    found = texts(facts, NO_PAIRS, summary_of(tmp_path, bad_labels=2))
    assert [text for text in found if text not in whole] == [
        "2 rows are left out, without a valid label (data.on_bad_label=drop)"
    ]


NO_PAIRS = pd.DataFrame(columns=COLUMNS)


def pairs_of(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def texts(facts, duplicates, summary) -> list[str]:
    return [
        finding.text for finding in data_findings(facts, csv_tables(facts, duplicates, summary.class_names), summary)
    ]


class Page(HTMLParser):
    """Collects the tags of a page and the addresses that they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]


def written(folder: Path, facts, duplicates=NO_PAIRS, **changes) -> tuple[str, Page]:
    write_data_report(folder / "out", facts, duplicates, summary_of(folder, **changes))
    text = (folder / "out" / "data_report.html").read_text()
    return text, Page(text)


def test_sound_data_have_no_findings(tmp_path):
    facts = facts_of(tmp_path, listed(8) + listed(16, "test"))
    assert texts(facts, NO_PAIRS, summary_of(tmp_path)) == []
    text, _ = written(tmp_path, facts)
    assert "Nothing wrong was found" in text
    assert "The patients are unknown" in text
    assert "no patient is in two splits" not in text
    assert "What is wrong" not in text
    assert "What limits the results" not in text
    assert "24 of 24 listed photographs can be read" in text
    assert "data.mean=[0.5,0.25,0.125]" in text


@pytest.mark.slow
def test_few_images_of_a_class_are_a_limit_and_no_fault(tmp_path):
    text, _ = written(tmp_path, facts_of(tmp_path, listed(8) + listed(4, "test")))
    assert "Nothing wrong was found" in text
    assert text.index("What limits the results") < text.index("fewer than 8 test images of healthy (2), ill (2)")


def test_all_defects_are_findings_the_worst_first(tmp_path):
    facts = facts_of(tmp_path, [*listed(8), *listed(4, "test"), ("bad", "train", 0, "bad")])
    facts.loc[12, ["defect", "prepared"]] = ["the file is empty", ""]
    facts.loc[0, "brightness"] = 12
    facts.loc[1, "bright"] = 0.2
    facts.loc[2, ["width", "height"]] = [50, 100]
    facts.loc[3, "patient"] = "test_0"
    pairs = pairs_of(
        ("test_1", "test", 1, "train_1", "train", 1, "exact"),
        ("train_4", "train", 0, "train_5", "train", 1, "near"),
        ("train_6", "train", 0, "train_7", "train", 1, "near"),
    )
    assert texts(facts, pairs, summary_of(tmp_path, split_problem="data.folds=9: too many")) == [
        "1 of 13 files missing or unreadable, such as bad (the file is empty)",
        "data.folds=9: too many",
        "1 pair of identical files across the splits: test_1 (test, ill) and train_1 (train, ill)",
        "2 pairs of nearly identical photographs in one split, with different labels: "
        "first train_4 (train, healthy) and train_5 (train, ill)",
        "1 image of train (12.5 %) belongs to a patient who is also in a later split, "
        "such as train_3 of patient test_0",
        "fewer than 8 test images of healthy (2), ill (2): too few for intervals of balanced accuracy and AUROC",
        "1 photograph is nearly black, such as train_0",
        "1 photograph is overexposed, such as train_1",
        "1 photograph is smaller than the 64 pixels used for training",
    ]


def test_the_csvs_contain_what_the_page_shows(tmp_path):
    facts = facts_of(tmp_path, listed(5) + listed(3, "val") + listed(4, "test"))
    facts.loc[0, "patient"] = facts.loc[5, "patient"] = facts.loc[8, "patient"] = "p"
    text, _ = written(tmp_path, facts)

    def table(name: str) -> list[list]:
        return pd.read_csv(tmp_path / "out" / f"{name}.csv").to_numpy().tolist()

    assert table("class_counts") == [[0, "healthy", 3, 2, 2], [1, "ill", 2, 1, 2]]
    assert table("leaks") == [["train_0", "train", "p", "val test"], ["val_0", "val", "p", "train test"]]
    assert table("sizes") == [[640, 480, 12]]
    assert table("duplicates") == table("unreadable") == table("exposure") == []
    assert "60.0 %" in text  # always `healthy` on train: 3 of 5


def test_a_class_without_images_in_a_split_is_named(tmp_path):
    facts = facts_of(tmp_path, [*listed(4), ("t", "test", 0, "t")])
    few, *others = texts(facts, NO_PAIRS, summary_of(tmp_path))
    assert few == "1 class has no image in test: ill"
    assert [text.partition(":")[0] for text in others] == ["fewer than 8 test images of healthy (1)"]


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    facts = facts_of(tmp_path, [(evil, "train", 0, evil), (f"{evil}2", "test", 0, evil), ("bad", "train", 1, "bad")])
    facts.loc[2, ["defect", "prepared"]] = [evil, ""]
    pairs = pairs_of((evil, "train", 0, f"{evil}2", "test", 0, "exact"))
    text, page = written(tmp_path, facts, pairs, names=(evil, "ill"), name=evil, recipe={"image_size": 8, evil: evil})
    assert "script" not in page.tags
    assert text.count("&lt;script&gt;") > 8


def test_the_page_is_self_contained(tmp_path):
    _, page = written(tmp_path, facts_of(tmp_path, listed(8) + listed(4, "test")))
    assert "img" in page.tags
    assert {address.split(":")[0] for address in page.loads if not address.startswith("./")} == {"data"}
    assert all((tmp_path / "out" / address).is_file() for address in page.loads if address.startswith("./"))


@pytest.mark.slow
def test_a_large_set_of_many_classes_stays_a_short_page(tmp_path):
    names = tuple(f"class {k}" for k in range(102))
    facts = facts_of(tmp_path, listed(90_000, classes=102) + listed(10_000, "test", classes=102))
    facts["defect"] = np.where(np.arange(len(facts)) % 1000 == 1, "broken", "")
    facts["patient"] = facts["image"].str.replace("test", "train")
    pairs = pairs_of(*((f"train_{k}", "train", 0, f"train_{k + 2}", "train", 0, "near") for k in range(2, 900, 2)))
    text, page = written(tmp_path, facts, pairs, names=names)
    assert page.tags.count("figure") <= PICTURES + 2 * ROWS + 16
    assert page.tags.count("tr") <= 4 + CLASSES + 3 * ROWS + 12
    assert "78 between them are left out" in text
    assert len(pd.read_csv(tmp_path / "out" / "class_counts.csv")) == 102
    assert len(pd.read_csv(tmp_path / "out" / "leaks.csv")) == 9990  # ten are unreadable
    assert len(text) < 2_000_000


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    facts = facts_of(tmp_path, listed(4))
    message = refusal(write_data_report, tmp_path / "out", facts, NO_PAIRS, summary_of(tmp_path))
    assert message == f"out={tmp_path / 'out'} cannot be written (File exists); choose another folder"


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_alone_is_enough(tmp_path, split):
    text, _ = written(tmp_path, facts_of(tmp_path, listed(4, split)), mean_and_std=None)
    assert "data.mean" not in text
    assert f">{split}</th>" in text


def test_patients_are_shown_and_doubts_are_a_finding(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, listed(4) + listed(16, "test"))
    found = Patients("_l/_r", "4 in 8 images, by the form _l/_r, such as 7 (7_l1, 7_r1)")
    write_data_report(tmp_path / "out", facts, NO_PAIRS, summary_of(tmp_path, patients=found))
    text = (tmp_path / "out" / "data_report.html").read_text()
    assert "Patients: 4 in 8 images, by the form _l/_r, such as 7 (7_l1, 7_r1)." in text
    assert "Nothing wrong was found" in text
    assert "no patient is in two splits" in text
    assert "The patients are unknown" not in text
    doubtful = Patients(None, "", "7_l1, 7_l2 may belong to one patient")
    assert texts(facts, NO_PAIRS, summary_of(tmp_path, patients=doubtful)) == ["7_l1, 7_l2 may belong to one patient"]


def test_no_test_split_is_a_finding(tmp_path: Path) -> None:
    (text,) = texts(facts_of(tmp_path, listed(4) + listed(4, "val")), NO_PAIRS, summary_of(tmp_path))
    assert text.startswith("there is no test split; set data.test_fraction")
    assert texts(facts_of(tmp_path, listed(16, "test")), NO_PAIRS, summary_of(tmp_path)) == []
