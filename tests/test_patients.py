"""Patients from file names: what is found, what is not, and the messages."""

import shlex
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from fake_data import refusal
from hydra.core.override_parser.overrides_parser import OverridesParser

from resnet_lab.data.patients import FORMS, add_patients, find_patients, patients_of_column, unused_column

N = range(1, 41)
HEX = np.random.default_rng(0).integers(0, 256, (400, 16), dtype=np.uint8)
OLD = r"(.+)_(?:left|right)"


def found(names, setting="auto", root="/data", **more):
    table = pd.DataFrame({"image": names, "path": [f"{root}/{name}" for name in names]})
    rows, patients = find_patients(table, setting, Path(root), **more)
    return rows["patient"].tolist(), patients


def eyes(pattern, sides, fields=("",)):
    return [pattern.format(p=p, side=side, f=field) for p in N for side in sides for field in fields]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("_left/_right", eyes("{p}_{side}.jpeg", ("left", "right"))),
        ("_left/_right", eyes("{p}_{side}_{f}.Jpeg", ("left", "RIGHT"), (1, 2))),
        ("_left/_right", eyes("train/0/{p}-{side}{f}.webp", ("Left", "Right"), (1, 2))),
        ("_l/_r", eyes("{p}_{side}{f}", "lr", (1, 2))),
        ("_l/_r", eyes("{p}_{side}", "LR")),
        ("_l/_r", eyes("{p}{side}", "LR")),
        ("_l/_r", eyes("{p} {side} {f}", "LR", (1, 12))),
        ("_OD/_OS", eyes("{p}_{side}_{f}", ("OD", "OS"), (1, 2, 3))),
        ("_OD/_OS", eyes("{p}-{side}", ("od", "os"))),
        ("_OD/_OS", eyes("{p}_{side}", ("OD", "OG"))),
        ("_left/_right", eyes("{p}_{side}_{f}", ("links", "rechts"), (1, 2))),
        ("left_/right_", eyes("{side}_{p}", ("Gauche", "Droite"))),
        ("_LE/_RE", eyes("{p}_{side}", ("LE", "RE"))),
        ("left_/right_", eyes("{side}_{p}", ("left", "right"))),
        ("left_/right_", eyes("{side}_{p}_{f}", ("left", "right"), (1, 2))),
        ("left_/right_", eyes("{side}{f}-{p}", ("left", "right"), (1, 2))),
        ("OD_/OS_", eyes("{side}_{p}", ("OD", "OS"))),
        ("_OD/_OS", eyes("{p}_{side}_{f}", ("OD", "OS"), ("macula", "disc"))),
        ("_left/_right", eyes("{p}_{side}_{f}", ("left", "right"), ("600x600",))),
        ("folder", eyes("{p}/{side}{f}.jpg", ("left", "right"), ("", "_2"))),
        ("folder", eyes("train/mild/{p}/{side}.PNG", ("OD", "OS"))),
    ],
)
def test_forms(form, names):
    patients, how = found(names)
    each = len(names) // len(N)
    assert patients == [str(p) for p in N for _ in range(each)]
    assert (how.form, how.doubt) == (form, "")
    assert how.summary.startswith(f"40 in {len(names)} images, by the form {form} of the file names, such as 1 (")
    assert found(names, form)[0] == patients


NO_PATIENTS = {
    "IDRiD": [f"IDRiD_{n:03d}" for n in N],
    "IM": [f"IM{n:04d}" for n in N],
    "train": [f"train_{n:03d}" for n in N],
    "hex": [row[:6].tobytes().hex() for row in HEX],
    "short hex": [row[:2].tobytes().hex() for row in np.unique(HEX[:, :2], axis=0)],
    "counted hex": [f"{n:012x}" for n in range(300)],
    "uuid": [str(UUID(bytes=row.tobytes())) for row in HEX],
    "numbers": [str(n) for n in N],
    "words behind": [f"{n:04d}_{('mild', 'severe')[n % 2]}" for n in N],
    "Messidor": [f"20051019_{38557 + 17 * n}_0100_PP.tif" for n in N],
    "Messidor-2": [f"20051020_{43808 + 24 * n}_0100_PP.png" for n in N] + [f"IM{n:06d}.JPG" for n in N],
    "Messidor-2 seconds": ["20051020_57761_0100_PP", "20051214_57761_0100_PP"]
    + [f"20051021_{n}_0100_PP" for n in range(40000, 40010)],
    "days": [f"2019{m:02d}04_{n:03d}" for m in (1, 2, 3) for n in N[:20]],
    "dates": [f"IMG_2019{m:02d}{d:02d}" for m in (1, 2, 3) for d in (1, 2, 3)],
    "counters": [f"IMG-2019{m:02d}01-WA{n:04d}" for m in (1, 2, 3) for n in N[:5]],
    "times": [f"20190{m}04_12300{n}" for m in (1, 2, 3) for n in range(3)],
    "devices": [f"{name}_2019010{d}" for name in ("OCT", "Fundus") for d in (1, 2, 3)],
    "DDR": [f"007-{n:04d}-000.jpg" for n in N],
    "flowers": [f"image_{n:05d}.jpg" for n in N],
    "folders": [f"{split}/{name}/{n}.jpg" for split in ("train", "test") for name in "lr" for n in N],
    "classes": [f"{name}_{n}.jpg" for name in ("cat", "dog", "owl", "left") for n in range(4)],
    "numbered r": [f"scan_r{n:03d}" for n in N],
    "camera": [f"IMG_2023{1 + n // 10:02d}01_{1234 * n:06d}" for n in N],
    "batches": [f"batch{n // 100}_{n % 100}" for n in range(300)],
    "two classes": [f"{k}_{n}" for k in (1, 2) for n in range(4)],
    "one eye each": [f"{n}_left" for n in N],
    "counted sides": [f"eye_{side}{n:03d}" for side in "LR" for n in N],
    "counted words": [f"retina_{side}_{n:03d}" for side in ("left", "right") for n in N],
    "classes and sides": [f"{name}_{side}_{n}" for name in ("mild", "no") for side in ("left", "right") for n in N[:8]],
    "releases": [f"r{release}_Im{n:03d}" for release in (1, 2) for n in N],
    "one side a class": [f"{grade}/left_{n}.jpg" for grade in range(5) for n in N],
}


@pytest.mark.parametrize("names", NO_PATIENTS.values(), ids=NO_PATIENTS)
def test_other_names_are_not_patients_and_raise_no_doubt(names):
    patients, how = found(names)
    assert patients == names
    assert (how.form, how.doubt) == (None, "")
    assert how.summary.startswith("none found in file names such as ")
    assert "set data.patient_regex" in how.summary


@pytest.mark.parametrize(
    ("names", "setting", "seen", "remedy"),
    [
        (eyes("{p}_{side}{f}", "lr", (1, 2)), OLD, "matches no name", "set data.patient_regex=_l/_r"),
        (eyes("{p}_{side}{f}", "lr", (1, 2)), r"(\d+_\w)\d", "count as 2 patients", "set data.patient_regex=_l/_r"),
        (eyes("{p}_{side}", ("left", "right")) + NO_PATIENTS["IDRiD"], "auto", "10_left, 10_right", "=_left/_right"),
        (
            eyes("{p}_{side}", ("left", "right")) + eyes("a{p}_{side}", ("OD", "OS"))[:4],
            "auto",
            "a1_OD, a1_OS",
            "=_OD/_OS",
        ),
        (eyes("P{p}-{f}", " ", (1, 2)), "auto", "P1-1, P1-2", "set \"data.patient_regex='(.+)[-_. ][^-_. ]+'\""),
        (eyes("{p}{f}", " ", "ab"), "auto", "10a, 10b", "set \"data.patient_regex='(.*\\d)[a-z]\\d*'\""),
        (eyes("{p}_{f}_{side}", "lr", (1, 2)), "auto", "10_1, 10_2", "set data.patient_regex to a pattern"),
        (
            [f"2019-0{visit}-04_PID{p}_{side}_1.jpg" for p in N for visit in (1, 2) for side in "RL"],
            "auto",
            "2019-01-04_PID1, 2019-02-04_PID1 differ only in the date, but count as 2 patients (",
            "set \"data.patient_regex='[\\d._-]{8,10}[-_. ](.+?)[-_. ].*'\"",
        ),
        (
            [*eyes("P{p}_04.03.2019_{side}.jpg", ("OD", "OS")), "P7_05.03.2019_OD.jpg"],
            "auto",
            "P7_04.03.2019, P7_05.03.2019 differ only in the date",
            "set \"data.patient_regex='(.+?)[-_. ][\\d._-]{8,10}(?:[-_. ].*)?'\"",
        ),
        (
            ["Ida 20190304", "Ida 20200304", "Bo 20190304", "Bo 20190405", "Eva 20190304", "Eva 20190405"],
            "auto",
            "Bo 20190304, Bo 20190405 differ only",
            "set \"data.patient_regex='(.+?)[-_. ][\\d._-]{8,10}(?:[-_. ].*)?'\"",
        ),
        (NO_PATIENTS["IDRiD"], OLD, "matches no name (names such as IDRiD_001)", "set data.patient_regex"),
    ],
)
def test_a_pattern_that_misses_patients_is_reported_with_a_remedy(names, setting, seen, remedy):
    doubt = found(names, setting)[1].doubt
    assert seen in doubt
    assert remedy in doubt
    assert f"data.patient_regex={setting}" in doubt
    assert "\n" not in doubt


@pytest.mark.parametrize("pattern", [r"(.+)[-_. ][^-_. ]+", r"(.*\d)[a-z]\d*"])
def test_the_proposed_patterns_join_what_they_are_proposed_for(pattern):
    names = eyes("P{p}-{f}", " ", (1, 2)) if "." in pattern[4:] else eyes("{p}{f}", " ", "ab")
    patients, how = found(names, pattern)
    assert (len(set(patients)), how.form, how.doubt) == (40, "data.patient_regex", "")


def test_a_pattern_with_a_slash_matches_the_folder():
    names = [f"P{p}/{view}.jpg" for p in N for view in ("first", "second")]
    assert found(names)[1].form is None
    assert found(names, "(.+)/.*")[0] == [f"P{p}" for p in N for _ in range(2)]


def test_numbers_of_a_day_are_not_visits_of_one_patient():
    names = [f"2019{month:02d}04_{n:03d}_{side}" for month in (1, 2, 3) for n in N for side in "LR"]
    assert found(names)[1].doubt == ""


def test_null_makes_each_image_a_patient_without_doubt():
    names = eyes("{p}_{side}", ("left", "right"))
    patients, how = found(names, None)
    assert (patients, how.form, how.summary, how.doubt) == (names, None, "", "")


def test_auto_needs_nine_of_ten_names_and_two_images_of_a_patient():
    others = [f"x{n:04d}" for n in range(9)]
    names = eyes("{p}_{side}", ("left", "right"))
    assert found(names + others[:8])[1].form == "_left/_right"  # 80 of 88
    assert found(names + others)[1].form is None  # 80 of 89
    assert found(["10_left"])[0] == ["10_left"]
    assert found(["10_left"], shared=False)[0] == ["10"]
    assert found(["10_left", "10_right"])[0] == ["10", "10"]


def test_names_of_two_files_become_paths_unless_the_pattern_matches():
    names = [
        "a. Training/IDRiD_1",
        "b. Testing/IDRiD_1",
        "b. Testing/IDRiD_2",
        "b. Testing/7_left",
        "a. Training/7_left",
    ]
    table = pd.DataFrame(
        {"image": [name.split("/")[1] for name in names], "path": [f"/d/{name}.jpg" for name in names]}
    )
    patients = add_patients(table, OLD, Path("/d"))["patient"].tolist()
    assert patients == ["a. Training/IDRiD_1.jpg", "b. Testing/IDRiD_1.jpg", "IDRiD_2", "7", "7"]
    assert add_patients(table, None, Path("/d"))["patient"].tolist()[3:] == [
        "b. Testing/7_left.jpg",
        "a. Training/7_left.jpg",
    ]
    below = add_patients(table, OLD, Path("/"))["patient"].tolist()
    assert below[:3] == ["d/a. Training/IDRiD_1.jpg", "d/b. Testing/IDRiD_1.jpg", "IDRiD_2"]
    outside = add_patients(table, OLD, Path("/elsewhere"))["patient"].tolist()
    assert outside[:2] == ["a. Training/IDRiD_1.jpg", "b. Testing/IDRiD_1.jpg"]  # no absolute path


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [
        (r"(\d+)-.*", ["17", "17", "ü-1", "x"]),
        (None, ["17-a", "17-b.PNG", "ü-1", "x"]),
        (r"(\w)-\d", ["17-a", "17-b.PNG", "ü", "x"]),
        (r"(\d+)?.*", ["17", "17", "ü-1", "x"]),  # a group without a match
    ],
)
def test_patients_are_found_by_a_custom_pattern(pattern, patients):
    table = add_patients(pd.DataFrame({"image": ["17-a", "17-b.PNG", "ü-1", "x"]}), pattern)
    assert table["patient"].tolist() == patients


@pytest.mark.parametrize(("pattern", "seen"), [("(", "missing )"), (r"\d+", "put the patient's part in parentheses")])
def test_a_pattern_that_names_no_patient_is_refused(pattern, seen):
    assert seen in refusal(add_patients, pd.DataFrame({"image": ["a"]}), pattern)


def test_patients():
    names = ["10_left", "10_right.jpeg", "train/0/10_LEFT.png", "10", "a_b_right", "_left", "x_left_2", "7left"]
    patients = add_patients(pd.DataFrame({"image": names}), OLD)["patient"].tolist()
    assert patients == ["10", "10", "10", "10", "a_b", "_left", "x_left_2", "7left"]


@pytest.mark.parametrize(
    ("patients", "named"),
    [
        (["P001", "p001", "P2"], "'P001' and 'p001' count"),
        (["001", "1", "2", "02"], "'001' and '1' (and 1 more such) count"),
        (["A 1", "A  1", "B1"], "'A  1' and 'A 1' count"),
        (["4", "4.0", "5.0", "6"], "'4' and '4.0' count"),  # pandas writes 4.0 if a value of the column is missing
        (["004.0", "4", "10", "10,0"], "'004.0' and '4' (and 1 more such) count"),
        (["P10", "P1", "P100", "P01x", "1.05", "1.5", "1 2", "12"], ""),
        (["1", "1.1", "1.10", "4.5", "4", "04.5x", "P4.0", "P4", "100", "10"], ""),
    ],
)
def test_patients_that_differ_only_in_spelling_are_doubted(patients: list[str], named: str) -> None:
    names = [f"{number:03d}" for number, _ in enumerate(patients * 2)]
    table = pd.DataFrame({"image": names, "path": names, "patient": patients * 2})
    doubt = patients_of_column(table).doubt
    assert named in doubt
    assert bool(named) == bool(doubt)


def test_patients_of_names_that_differ_only_in_case_are_doubted() -> None:
    names = [f"{patient}_{side}" for patient in ("P1", "p1", "P2", "P3") for side in ("left", "right")]
    assert "'P1' and 'p1' count as different patients" in found(names)[1].doubt


def test_a_column_of_images_is_doubted() -> None:
    names = [f"{number}_{side}" for number in range(10) for side in ("left", "right")]
    table = pd.DataFrame({"image": names, "patient": names})
    assert (
        "each of the 20 images has a different patient, but by the form _left/_right" in patients_of_column(table).doubt
    )
    assert patients_of_column(table.assign(patient=[name.partition("_")[0] for name in names])).doubt == ""
    assert patients_of_column(table.iloc[::2]).doubt == ""


def of_column(patients: list[str], images: list[str], **more: list[str]) -> str:
    """Return the doubt about a column of patients."""
    paths = [f"/data/images/{image}" for image in images]
    return patients_of_column(pd.DataFrame({"image": images, "path": paths, "patient": patients, **more})).doubt


def test_a_column_with_a_patient_for_each_eye_of_some_patients_is_doubted() -> None:
    images = [f"{number:03d}_{side}.jpg" for number in range(1, 13) for side in ("left", "right")]
    patients = [image[:7].strip("_") if number % 8 < 4 else image[:3] for number, image in enumerate(images)]
    assert of_column(patients, images) == (
        "data.patient_column: 001_left.jpg, 001_right.jpg may belong to one patient by the form _left/_right of the "
        "file names, but count as 2 patients, '001_lef' and '001_rig' (6 such in all); if they belong to one, write "
        "the same patient in their rows, or leave data.patient_column out"
    )
    splits = ["test" if number % 4 == 2 else "train" for number, _ in enumerate(images)]
    patients = [("P-" if split == "test" else "P") + image[:3] for image, split in zip(images, splits, strict=True)]
    assert of_column(["P" + image[:3] for image in images], images, split=splits) == ""
    doubt = of_column(patients, images, split=splits)
    assert "002_left.jpg, 002_right.jpg may belong to one patient" in doubt
    assert "count as 2 patients, 'P-002' and 'P002' (6 such in all)" in doubt


@pytest.mark.parametrize("own", [7, 12])
def test_names_that_the_column_mostly_separates_are_not_patients(own: int) -> None:
    images = [f"{number:03d}_{side}.jpg" for number in range(12) for side in ("left", "right")]
    shared = [image[:3] if number >= 2 * own else f"{number // 3}x" for number, image in enumerate(images)]
    patients = [f"{number}y" if number < 2 * own and number % 2 else each for number, each in enumerate(shared)]
    assert of_column(patients, images) == ""


def test_one_wrong_patient_is_doubted_and_unknown_ones_are_not_counted() -> None:
    images = [f"{number:03d}_{side}.jpg" for number in range(12) for side in ("left", "right")]
    patients = ["nan" if number % 10 == 0 else image[:3] for number, image in enumerate(images)]
    assert of_column(patients, images).endswith("give each one an ID of its own")
    assert "may belong" not in of_column(patients, images)
    patients[7] = "99"
    doubt = of_column(patients, images)
    assert "3 images share the patient 'nan'" in doubt
    assert "; 003_left.jpg, 003_right.jpg may belong to one patient" in doubt
    assert "'003' and '99' (1 such in all)" in doubt


def test_folders_that_repeat_names_have_patients_of_their_own() -> None:
    images = [
        f"{clinic}/{n:03d}_{side}.jpg" for clinic, most in (("a", 40), ("b", 15)) for n in range(most) for side in "lr"
    ]
    splits = ["train" if image.startswith("a") else "test" for image in images]
    assert of_column([image[:5] for image in images], images, split=splits) == ""
    patients = ["b/x" if image == "b/003_r.jpg" else image[:5] for image in images]
    doubt = of_column(patients, images, split=splits)
    assert doubt.startswith("data.patient_column: b/003_l.jpg, b/003_r.jpg may belong to one patient by the form _l/_r")
    assert "'b/003' and 'b/x' (1 such in all)" in doubt
    folders = [
        f"{clinic}/P{n}/{side}.jpg" for clinic in "ab" for n in range(20 if clinic == "a" else 9) for side in "lr"
    ]
    splits = ["train" if image.startswith("a") else "test" for image in folders]
    assert of_column([image.rpartition("/")[0] for image in folders], folders, split=splits) == ""


def test_spellings_of_every_patient_are_named_beside_the_column_of_images() -> None:
    images = [f"{number:03d}_{side}.jpg" for number in range(1, 10) for side in ("left", "right")]
    patients = [image[:3] if "left" in image else image[:3].lstrip("0") for image in images]
    doubt = of_column(patients, images)
    assert doubt.startswith("data.patient_column: '001' and '1' (and 8 more such) count as different patients; if they")
    assert "; each of the 18 images has a different patient, but by the form _left/_right" in doubt
    assert "may belong" not in of_column([*patients[:8], *(image[:3] for image in images[8:])], images)


@pytest.mark.parametrize(
    "text", ["nan", "NaN", "None", "null", "NA", "n/a", "NaT", "<NA>", "-", "--", "?", "unknown", "."]
)
def test_a_text_for_a_missing_patient_is_doubted(text: str) -> None:
    images = [f"IMG_{number}" for number in range(20)]
    patients = [text if number % 3 == 0 else f"P{number // 2}" for number, _ in enumerate(images)]
    assert of_column(patients, images) == (
        f"data.patient_column: 7 images share the patient {text!r}; if these are unknown patients, give each one an "
        "ID of its own"
    )
    assert of_column([text, *patients[1:3]], images[:3]) == ""  # one image


def test_texts_for_missing_patients_are_named_together() -> None:
    patients = ["nan", "-", "Nancy", "-", "nan", "nan", "Nancy", "0", "0", "Na 1", "Na 1", "?"]
    doubt = of_column(patients, [f"IMG_{number}" for number, _ in enumerate(patients)])
    assert doubt.startswith("data.patient_column: 5 images share the patients 'nan' and '-'; if")


def test_every_form_finds_what_the_older_default_found():
    names = ["10_left", "10_right.jpeg", "a_b_right", "a__left", "a b_left"]
    assert (
        add_patients(pd.DataFrame({"image": names}), FORMS["_left/_right"])["patient"].tolist()
        == add_patients(pd.DataFrame({"image": names}), OLD)["patient"].tolist()
    )


def test_the_names_of_one_split_suffice() -> None:
    eyes_of_train, others = eyes("{p}_{side}", ("left", "right")), NO_PATIENTS["hex"][:40]
    names = eyes_of_train + others
    table = pd.DataFrame({"image": names, "path": names, "split": ["train"] * 80 + ["test"] * 40})
    rows, how = find_patients(table, "auto", Path("/"))
    assert how.form == "_left/_right"
    assert rows["patient"].nunique() == 40 + 40
    assert find_patients(table.assign(split="train"), "auto", Path("/"))[1].form is None


def test_a_proposed_pattern_passes_the_shell_and_hydra() -> None:
    doubt = found(eyes("P{p}-{f}", " ", (1, 2)))[1].doubt
    (override,) = shlex.split(doubt[doubt.index("set ") + 4 :])
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == "data.patient_regex"
    patients, how = found(eyes("P{p}-{f}", " ", (1, 2)), parsed.value())
    assert (len(set(patients)), how.doubt) == (40, "")


def test_numbered_folders_with_the_same_names_may_be_patients(tmp_path):
    def doubt(names):
        table = pd.DataFrame({"image": names, "path": [str(tmp_path / name) for name in names]})
        return find_patients(table, "auto", tmp_path)[1].doubt

    shown = doubt([f"P{folder:03}/im{number}.jpeg" for folder in range(5) for number in (1, 2)])
    assert shown.startswith("P000/im1, P000/im2 may belong to one patient")
    assert shown.endswith("set \"data.patient_regex='(.+)/.*'\"")
    assert doubt([f"{name}/im{number}.jpeg" for name in ("no", "mild", "severe") for number in (1, 2)]) == ""  # classes
    assert doubt([f"P{folder:03}/a{folder}{'xy'[number]}b.jpeg" for folder in range(5) for number in (0, 1)]) != shown
    classes = pd.DataFrame({"image": [f"grade{grade}/im{number}.png" for grade in range(5) for number in (1, 2)]})
    classes = classes.assign(path=classes["image"], target=np.repeat(range(5), 2))
    assert find_patients(classes, "auto", tmp_path)[1].doubt == ""
    assert doubt([f"batch{folder}/im{number}.jpeg" for folder in range(3) for number in range(40)]) == ""


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([f"{side}/{n}.jpg" for n in N for side in ("left", "right")], "left/"),
        ([f"images_{side}/{n}.jpg" for n in N for side in ("OD", "OS")], "images_OD/"),
        ([f"P{n}/im{n}{k}.jpg" for n in N for k in (1, 2)], "P"),
    ],
)
def test_folders_of_eyes_or_patients_raise_a_doubt(names, shown):
    _, how = found(names)
    assert how.form is None
    assert how.doubt.startswith(shown)
    setting = how.doubt.partition("data.patient_regex='")[2].partition("'")[0]
    patients, _ = found(names, setting)
    assert len({*patients}) == len(names) / 2


def test_a_column_that_joins_images_raises_a_doubt():
    table = pd.DataFrame({"image": ["a", "b", "c", "d"], "patient": ["a", "b", "c", "d"]})
    doubt = unused_column("patient_id", pd.Series(["1", "1", "2", "3"]), table)
    assert doubt.startswith("a, b are of one patient by the unused column patient_id, but count as 2 patients")
    assert doubt.endswith("set data.patient_column=patient_id")
    assert unused_column("patient_id", pd.Series(["1", "1", "2", "3"]), table.assign(patient=list("xxyz"))) == ""
    assert unused_column("patient_id", pd.Series(["nan", "nan", "2", None]), table) == ""
    many = pd.DataFrame({"image": [*map(str, range(100))], "patient": [*map(str, range(100))]})
    assert unused_column("person", pd.Series(["reader 1", "reader 2"] * 50), many) == ""
