"""Label files, and the images that they name: text in, tables out."""

import logging
import unicodedata

import pandas as pd
import pytest
from fake_data import refusal

from resnet_lab.data import listing
from resnet_lab.data.label_files import label_files
from resnet_lab.data.labels import BAD, Grades, parse, read_labels, read_pair
from resnet_lab.data.listing import find_images, refuse_undecodable
from resnet_lab.data.patients import add_patients
from resnet_lab.data.splits import class_counts, cut_split
from resnet_lab.errors import UserError, refuse

EYES = r"(.+)_(?:left|right)"


@pytest.fixture
def file(tmp_path):
    def write(text, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def cells(frame):
    return [tuple(row) for row in frame.itertuples(index=False)]


GRADES = Grades(["no DR", "mild", "moderate", "severe", "proliferative"])


def parse_file(path, grades=GRADES, **more):
    return parse(read_labels(path, None, None, grades), path, path, grades, **more)


def located(table, folder, split="train"):
    table = table if "target" in table else table.assign(target=0)
    return find_images(table, [folder], [], (folder, folder), split)


@pytest.mark.parametrize(
    "text",
    [
        "001,0\nNA,4\nnull,2\n",
        "image,level\n001,0\nNA,4\nnull,2\n",
        "id_code,diagnosis\n001,0\nNA,4\nnull,2",
        "\ufeffimage,level\r\n001,0\r\nNA,4\r\nnull,2\r\n\r\n",
        "eye,label,age,image\nleft,0,51,001\nleft,4,,NA\nright, 2 ,7, null\n",
    ],
)
def test_header_is_optional_and_names_stay_text(file, text):
    assert cells(parse_file(file(text))) == [("001", 0), ("NA", 4), ("null", 2)]


def test_named_columns_win_over_known_ones(file):
    path = file("image,level,file,grade\na,0,x,1\nb,0,y,2\n")
    assert cells(read_labels(path, "file", "grade", GRADES)) == [("x", "1"), ("y", "2")]
    assert cells(read_labels(path, None, "grade", GRADES)) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize("header", [("", ""), ("image\n", "level\n"), ("0\n", "x\n")])
def test_pair_keeps_its_first_row_with_and_without_header(file, header):
    images, labels = file(f"{header[0]}007\n10_left\n", "train_img.csv"), file(f"{header[1]}3\n0\n", "train_label.csv")
    assert cells(read_pair(images, labels, GRADES)) == [("007", "3"), ("10_left", "0")]


@pytest.mark.parametrize(
    ("images", "labels", "seen"),
    [
        ("a\nb\nc\n", "0\n1\n", "train_img.csv has 3 rows but train_label.csv has 2"),
        ("a\nb\n", "level\n0\n1\n", "train_img.csv has 1 row but train_label.csv has 2"),
        ("image\na\nb\n", "0\n1\n", "train_img.csv has 3 rows but train_label.csv has 2"),
    ],
)
def test_pair_of_unequal_length(file, images, labels, seen):
    message = refusal(read_pair, file(images, "train_img.csv"), file(labels, "train_label.csv"), GRADES)
    assert seen in message
    assert "both with or both without a header" in message


def test_blank_line_in_a_pair_does_not_shift_the_rows(file):
    images, labels = file("a\nb\n\nc\n", "train_img.csv"), file("0\n\n1\n2\n", "train_label.csv")
    message = refusal(parse, read_pair(images, labels, GRADES), images, labels, GRADES)
    assert f"{labels}: label '' in line 2 (image b): labels must be whole numbers" in message


@pytest.mark.parametrize("first", ["1.5", "-", ""])
def test_a_bad_first_label_of_a_pair_is_not_a_header(file, first):
    images, labels = file("a\nb\nc\n", "train_img.csv"), file(f'"{first}"\n1\n2\n', "train_label.csv")
    assert " in line 1 (image a)" in refusal(parse, read_pair(images, labels, GRADES), images, labels, GRADES)


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_empty_file(file, text):
    path = file(text)
    assert refusal(read_labels, path, None, None, GRADES).startswith(f"{path} is empty; ")


def test_header_without_rows(file):
    assert "labels.csv lists no image" in refusal(read_labels, file("image,level\n"), None, None, GRADES)
    pair = file("image\n", "train_img.csv"), file("level\n", "train_label.csv")
    assert "train_img.csv lists no image" in refusal(read_pair, *pair, GRADES)


def test_missing_file_names_itself_and_the_key(tmp_path):
    message = refusal(read_labels, tmp_path / "none.csv", None, None, GRADES)
    assert f"{tmp_path / 'none.csv'} does not exist" in message
    assert "data.train_csv" in message
    (tmp_path / "labels.csv").touch()
    (tmp_path / "images").mkdir()
    assert "this folder has labels.csv; " in refusal(read_labels, tmp_path / "label.csv", None, None, GRADES)
    message = refusal(read_labels, tmp_path / "images" / "labels.csv", None, None, GRADES)
    assert f"{tmp_path / 'labels.csv'} exists: set data.root={tmp_path}; " in message


def test_named_columns_need_a_header(file):
    message = refusal(read_labels, file("1_left.jpg,0\n1_right.jpg,2\n"), "file", "stage", GRADES)
    assert "no column file; its columns are 1_left.jpg, 0; its first line must name the columns: file,…" in message


@pytest.mark.parametrize("text", [b"\xff\xfe\x00a", 'a,0\nb,1\n"c,2\n'])
def test_no_csv(file, text):
    assert "labels.csv is not a comma-separated file in UTF-8: " in refusal(read_labels, file(text), None, None, GRADES)


TITLE = "delete the lines above the header"
EXTRA = "write as many fields as in the header, with quotes around a field that contains the separator"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("My clinic\nfile,stage,person\na,0,1\n", f"line 2 has 3 fields, but line 1 has 1; {TITLE}"),
        ("\nMy clinic\nfile,stage,person\na,0,1\n", f"line 3 has 3 fields, but line 2 has 1; {TITLE}"),
        ("sep=,\nMy clinic\nfile,stage,eye\na,0,L\n", f"line 3 has 3 fields, but line 2 has 1; {TITLE}"),
        (
            "My clinic\n2024\nfile,stage\na,0\n",
            f"line 3 has 2 fields, but the lines above have at most 1; {TITLE}, or {EXTRA}",
        ),
        ("Clinic, 2024\na,0,1,2\n", f"line 2 has 4 fields, but line 1 has 2; {TITLE}, or {EXTRA}"),
        (
            "file,stage,person\na,0,1\nb,0,1,blurry\n",
            f"line 3 has 4 fields, but the lines above have at most 3; {EXTRA}",
        ),
        ("file;stage\na;0\n\nb;0;x\n", f"line 4 has 3 fields, but the lines above have at most 2; {EXTRA}"),
    ],
)
def test_a_line_with_more_fields_than_those_above(file, text, seen):
    path = file(text)
    assert refusal(read_labels, path, "file", "stage", GRADES) == f"{path}: {seen}"


def test_a_file_that_is_not_utf8_names_the_remedy(file):
    message = refusal(read_labels, file("image,level\ngröße.jpg,0\n".encode("latin-1")), None, None, GRADES)
    assert message.endswith("; in a spreadsheet program, save it as CSV UTF-8")


def test_folder_in_place_of_a_file(tmp_path):
    assert "is not a comma-separated file" in refusal(read_labels, tmp_path, None, None, GRADES)


@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        (
            (None, None),
            "no column image or id_code or image_id or …; its columns are photo, level; set data.image_",
        ),
        (("photo", "grade"), "no column grade; its columns are photo, level; set data.label_column"),
        (("Names", None), "no column Names; its columns are photo, level; set data.image_column"),
    ],
)
def test_missing_column(file, columns, seen):
    path = file("photo,level\na,0\n")
    assert refusal(read_labels, path, *columns, GRADES).startswith(f"{path} has {seen}")


def test_a_title_above_the_columns(file):
    path = file("Findings 2025;;;\nphoto;level;eye;patient\na;0;L;1\n")
    message = refusal(read_labels, path, "photo", "level", GRADES)
    assert message.endswith("its first line must name the columns; delete the lines above")
    path = file("Findings 2025\nphoto,level\na,0\n")
    assert refusal(read_labels, path, "photo", "level", GRADES) == (
        f"{path} has no column photo; its columns are , Findings 2025; its first line must name the columns; delete "
        "the lines above"
    )


def test_a_repeated_column_is_refused_if_it_is_read(file):
    path = file("file,stage,person,stage,eye,eye\na,0,1,3,L,L\n")
    message = refusal(read_labels, path, "file", "stage", GRADES)
    assert message == f"{path} has 2 different columns 'stage'; rename or delete all but one"
    assert cells(read_labels(path, "file", "person", GRADES)) == [("a", "1")]
    path, eye = file("image,eye,eye,level,eye\na,L,L,0,R\n"), {"patient": ("eye", "data.patient_column")}
    assert "3 different columns 'eye'" in refusal(read_labels, path, None, None, GRADES, eye)
    assert "2 different columns 'level'" in refusal(parse_file, file("image,level,level\na,0,0\nb,,1\n"))
    assert cells(parse_file(file("image,level,level\na,0,0\nb,1,1\n"))) == [("a", 0), ("b", 1)]
    assert cells(read_labels(file("file,Stage,stage\na,0,1\n"), "file", "stage", GRADES)) == [("a", "1")]


# parsing


@pytest.mark.parametrize("header", ["", "image,level\n"])
@pytest.mark.parametrize(
    ("cell", "seen", "rule"),
    [
        ("1.5", "'1.5'", "labels must be whole numbers"),
        ("x", "'x'", "labels must be whole numbers"),
        ("", "''", "labels must be whole numbers"),
        ("nan", "'nan'", "labels must be whole numbers"),
        ("5", "'5'", "labels run from 0 to 4"),
        ("-1", "'-1'", "labels run from 0 to 4"),
        ("99999999999999999999", "'99999999999999999999'", "labels run from 0 to 4"),
    ],
)
def test_bad_label_is_named_by_its_line_and_image(file, header, cell, seen, rule):
    path = file(f"{header}a,0\nb,4\nc,{cell}\nd,1\n")
    message = refusal(parse_file, path)
    assert message.startswith(f"{path}: label {seen} in line {4 if header else 3} (image c): {rule}")
    assert "data.on_bad_label=drop" in message


def test_more_bad_labels_are_counted(file):
    message = refusal(parse_file, file("\nsep=,\na,0\nb,7\n\nc,8\nd,9\ne,6\n"))
    shown = "label '7' in line 4 (image b), '8' in line 6 (image c), '9' in line 7 (image d), … (4 rows): labels run"
    assert shown in message


def test_all_kinds_of_bad_rows_are_in_one_error(file, tmp_path):
    path = file("image,level\na,0\nb,\nc,9\n../d,1\na,2\ne,x\nf,1\n")
    faults = []
    table = parse(read_labels(path, None, None, GRADES), path, path, GRADES, faults=faults)
    assert [fault.removeprefix(f"{path}: ").split(": ")[0] for fault in faults] == [
        "label '' in line 3 (image b), 'x' in line 7 (image e) (2 rows)",
        "label '9' in line 4 (image c)",
        "image '../d' in line 5",
        "image 'a' in line 6",
    ]
    assert table["target"].tolist() == [0, BAD, BAD, BAD, 2, BAD, 1]
    (tmp_path / "a.jpeg").touch()
    find_images(table, [tmp_path], [], (tmp_path, tmp_path), "train", faults=faults)
    assert faults[4].startswith(f"{tmp_path}: 1 of 7 listed images is missing (f)")
    message = refusal(refuse, faults)
    assert [f"({number}) {path}" in message for number in range(1, 5)] == [True] * 4
    assert "(5) " in message


@pytest.mark.parametrize(
    ("grades", "rejected"),
    [
        (Grades(["a", "b"]), "'2': 2, '4': 1"),
        (Grades(["b", "c", "d", "e"], first=1), "'0': 3"),
        (Grades(["a", "b"], {"0": 0, "1": 1}), ""),  # the user named the valid labels
    ],
)
def test_too_many_numbers_out_of_range_mean_a_wrong_key(file, caplog, grades, rejected):
    path = file("image,level\n" + "".join(f"{n},{label}\n" for n, label in enumerate([0, 0, 0, 1, 1, 2, 2, 4, ""])))
    if rejected:
        message = refusal(lambda: parse_file(path, grades, drop=True))
        assert f"3 of 9 rows have a label out of range ({rejected})" in message
        assert "correct data.first_label" in message
    else:
        parse_file(path, grades, drop=True)
        assert "left out 4 rows without a valid label ('2': 2, '4': 1, empty: 1)" in caplog.text


def test_few_numbers_out_of_range_are_left_out(file, caplog):
    path = file("image,level\n" + "".join(f"{n},{n % 5}\n" for n in range(19)) + "x,9\ny,\nz,\n")
    assert parse_file(path, drop=True)["target"].tolist()[-3:] == [BAD] * 3
    assert "left out 3 rows without a valid label (empty: 2, '9': 1)" in caplog.text


@pytest.mark.parametrize("name", ["../a", "x/../../a", "/etc/a", ""])
def test_names_stay_inside_the_folder(file, name):
    images, labels = file(f'ok\n"{name}"\n', "train_img.csv"), file("0\n1\n", "train_label.csv")
    message = refusal(parse, read_pair(images, labels, GRADES), images, labels, GRADES)
    assert message.startswith(f"{images}: image {name!r} in line 2: names must be relative paths")


def test_names_may_contain_dots_and_folders(file):
    assert cells(parse_file(file("a..b,0\nx/c.d,1\n"))) == [("a..b", 0), ("x/c.d", 1)]


def test_repeated_name(file):
    message = refusal(parse_file, file("a,0\nb,1\nc,1\nb,1\n"))
    assert "image 'b' in line 4: image names must not repeat; delete one of the rows ('b' is in line 2, too)" in message
    message = refusal(parse_file, file("a,0\nb,1\nb,0\n"))
    assert "delete one of the rows ('b' is in line 2, too, with labels '1' and '0')" in message


@pytest.mark.slow
def test_hundred_thousand_rows(file, monkeypatch, tmp_path):
    names = [f"{n // 2}_{'left' if n % 2 else 'right'}" for n in range(100_000)]
    path = file("".join(f"{name},{n % 5}\n" for n, name in enumerate(names)))
    monkeypatch.setattr(listing, "_list", lambda folder: {f"{name}.jpeg" for name in names})
    rows = add_patients(located(parse_file(path), tmp_path).assign(split="train"), EYES)
    assert class_counts(rows, 5) == {"train": [20_000] * 5}
    last = rows.iloc[-1]
    assert (last["image"], last["target"], last["patient"]) == ("49999_left", 4, "49999")
    assert last["path"] == str(tmp_path / "49999_left.jpeg")
    assert cut_split(rows, "val", 0.1, 0, "data.val_fraction")["split"].eq("val").sum() == 10_000


# habits


@pytest.mark.parametrize(
    "text",
    [
        "image,level\nx 1.jpg,0\nb.jpg,2\n",
        "image;level\nx 1.jpg;0\nb.jpg;2\n",
        "image\tlevel\nx 1.jpg\t0\nb.jpg\t2\n",
        "x 1.jpg 0\nb.jpg 2\n",
        "x 1.jpg   0  \nb.jpg\t2\n",
        "x 1.jpg;0\nb.jpg;2\n",
        "sep=;\r\nimage;level\r\nx 1.jpg;0\r\nb.jpg;2\r\n",
        "image|level\nx 1.jpg|0\nb.jpg|2\n",
        "image,level,,\nx 1.jpg,0,,\n,,,\n\nb.jpg,2,,\n,,,\n",
        ",image,level\n0,x 1.jpg,0\n1,b.jpg,2\n",
        "image,level\n0,x 1.jpg,0\n1,b.jpg,2\n",  # R's write.table: the header lacks a cell for the index
        "image,level\nx 1.jpg,0,\nb.jpg,2,\n",
        '\ufeff"image","level"\r\n"x 1.jpg","0"\r\n"b.jpg","2"\r\n',
        "IMAGE , Level\nx 1.jpg,0.0\nb.jpg,2.0\n",
        "Image name;DR grade\nx 1.jpg;0,0\nb.jpg;2,0\n",
        "id-code,Retinopathy_grade\nx 1.jpg,No DR\nb.jpg,MODERATE\n",
        "x 1.jpg,no_dr\nb.jpg,moderate\n",
    ],
)
def test_separators_headers_numbers_and_words(file, text):
    assert cells(parse_file(file(text))) == [("x 1.jpg", 0), ("b.jpg", 2)]


@pytest.mark.parametrize(
    ("grades", "given", "expected"),
    [
        (Grades(["a", "b"], {"none": 0, "R1": 1, "R2": 1}), "None,r1,R2", [0, 1, 1]),
        (Grades(["healthy", "ill"], {"0": 0, "1": 0, "2": 1, "3": 1, "4": 1}), "0,1.0,2,4,3", [0, 0, 1, 1, 1]),
        (Grades(["no DR", "DR"], {"none": 0, "R1": "dr", "R2": "DR", "2": "no_dr"}), "none,r1,R2,2", [0, 1, 1, 0]),
        (Grades(["a", "b", "c"], first=1), "1,2,3.0,b", [0, 1, 2, 1]),
    ],
)
def test_labels_may_use_a_mapping_or_start_at_another_number(file, grades, given, expected):
    path = file("image,level\n" + "".join(f"{n},{label}\n" for n, label in enumerate(given.split(","))))
    assert parse_file(path, grades)["target"].tolist() == expected


@pytest.mark.parametrize(
    ("grades", "label", "rule"),
    [
        (Grades(["a", "b"], {"none": 0, "R1": 1}), "1", "data.labels has no such label; it has none, R1"),
        (Grades(["a", "b"], first=1), "0", "labels run from 1 to 2"),
        (
            Grades(["a", "b"]),
            "c",
            "labels must be whole numbers, class names (a, b) or keys of data.labels, such as "
            "'data.labels={none: 0, R1: 1}'; set data.class_names if the data has other classes",
        ),
        (Grades(["a", "b"]), "1.5", "labels must be whole numbers"),
    ],
)
def test_invalid_labels_are_refused_or_dropped(file, grades, label, rule):
    first = "none" if grades.labels else str(grades.first)
    path = file(f"image,level\nx,{first}\ny,{label}\nz,\n")
    message = refusal(parse_file, path, grades)
    assert f"label {label!r} in line 3 (image y)" in message
    assert f": {rule}" in message
    path.write_text(path.read_text() + "".join(f"v{n},{first}\n" for n in range(10)))
    assert parse_file(path, grades, drop=True)["target"].tolist() == [0, BAD, BAD, *[0] * 10]
    none = file(f"image,level\ny,{label}\n")
    with pytest.raises(UserError, match="no row has a valid label"):
        parse_file(none, grades, drop=True)


@pytest.mark.parametrize(
    ("grades", "given", "said"),
    [
        (Grades(["a", "b"]), "1,2", True),
        (Grades(["a", "b"]), "1.0,2.0,", True),
        (Grades(["a", "b"]), "0,1,2", False),
        (Grades(["a", "b"]), "1,1", False),
        (Grades(["a", "b"]), "1,3", False),
        (Grades(["a", "b"], first=1), "1,2", False),
        (Grades(["a", "b"], {"1": 0, "2": 1}), "1,2", False),
    ],
)
def test_grades_from_1_on_are_reported(file, caplog, grades, given, said):
    path = file("image,level\n" + "".join(f"{n},{label}\n" for n, label in enumerate(given.split(","))))
    hint = "no label is 0; set data.first_label=1 if classes run from 1 to 2"
    messages = []
    for drop in (True, False):
        try:
            parse_file(path, grades, drop=drop)
        except UserError as error:
            messages.append(str(error))
    assert (hint in caplog.text) is said
    assert all((hint in message) is said for message in messages)
    assert len(messages) == 2 or not said


@pytest.mark.parametrize(
    ("grades", "given", "hint"),
    [
        (Grades(["a", "b", "c"]), "1,2", "no label is 0; set data.first_label=1 if classes run from 1 to 3"),
        (Grades(["a", "b", "c"]), "1,1", "no label is 0; set data.first_label=1 if classes run from 1 to 3"),
        (Grades(["a", "b", "c"]), "2,2", ""),
        (Grades(["a", "b", "c"]), "A,1,2", ""),
        (
            Grades(["a", "b", "c"], {"0": 0, "1": 1, "2": 2}),
            "1,2,3",
            "no label is 0; if classes run from 1, give each its",
        ),
        (Grades(["a", "b", "c"], {"0": 0, "1": 1, "2": 2}), "1,2", ""),  # all are named
        (Grades(["a", "b", "c"]), "b,1", ""),
        (Grades(["a", "b", "c"], {"none": 0, "1": 1, "2": 2}), "1,2", ""),
    ],
)
def test_grades_from_1_on_may_lack_the_last_class(file, caplog, grades, given, hint):
    path = file("image,level\n" + "".join(f"{n},{label}\n" for n, label in enumerate(given.split(","))))
    parse_file(path, grades, drop=True)
    assert ("no label is 0" in caplog.text) == (hint != "")
    assert hint in caplog.text


def test_a_mapping_lists_numbers_too(file):
    grades = Grades(["a", "b"], {"none": 0, "R1": 1})
    path = file("image,level\nx,none\ny,1\nz,0\nv,b\n")
    message = refusal(parse_file, path, grades)
    assert "data.labels must list every valid label: add 1: 1" in message
    assert "every valid label: add b: 1" in message
    message = refusal(lambda: parse_file(path, grades, drop=True))  # two of four rows
    assert "2 of 4 rows have a number as label ('1': 1, '0': 1), too many to leave out: data.labels has no" in message
    some = Grades(["a", "b"], {"none": 0, "1": 1})
    assert parse_file(path, some, drop=True)["target"].tolist() == [0, 1, BAD, BAD]
    ungradable = file("image,level\nx,none\ny,9\nz,R1\n")  # of no class, so left out on purpose
    assert parse_file(ungradable, grades, drop=True)["target"].tolist() == [0, BAD, 1]


def test_a_mapping_to_an_unknown_class_is_refused():
    assert "data.labels: 'x' is class 2; classes run from 0 to 1" in refusal(Grades, ["a", "b"], {"x": 2})


def test_names_in_another_case_or_suffix_are_found_and_reported(tmp_path, caplog):
    for name in ("IM1.jpg", "im2.PNG", "3.tif", "deep/er/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO):
        found = located(pd.DataFrame({"image": ["IM1.JPG", "IM2", "3.jpeg", "4", "er/4.JPG"]}), tmp_path)
    names = ["IM1.jpg", "im2.PNG", "3.tif", "deep/er/4.jpg", "deep/er/4.jpg"]
    assert found["path"].tolist() == [str(tmp_path / name) for name in names]
    (line,) = (line for line in caplog.messages if "case or suffix" in line)
    assert "4 names" in line
    assert "IM1.JPG is IM1.jpg" in line


@pytest.mark.parametrize(("given", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_one_or_two_characters_are_the_same(tmp_path, file, given, stored):
    name, folder = (unicodedata.normalize(stored, text) for text in ("Müller 0.jpg", "Grün"))
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).touch()
    wanted = unicodedata.normalize(given, "Grün/Müller 0.jpg")
    found = located(pd.DataFrame({"image": [wanted]}), tmp_path)
    assert found["path"].tolist() == [str(tmp_path / folder / name)]
    path = file(unicodedata.normalize(given, "image,level,patient\na,mäßig,Jäger\n"))
    rows = read_labels(path, None, None, Grades(["a"]), {"patient": ("patient", "data.patient_column")})
    assert rows["patient"].tolist() == ["J\u00e4ger"]
    assert Grades(["x", unicodedata.normalize(stored, "mäßig")]).targets(rows["label"]).tolist() == [1]
    assert Grades(["x", "y"], {unicodedata.normalize(stored, "mäßig"): 1}).targets(rows["label"]).tolist() == [1]


def test_windows_paths_are_relative_to_the_folder(file):
    assert cells(parse_file(file("image_path,level\n\\a\\b.jpg,1\nc\\d.jpg,0\n"))) == [("a/b.jpg", 1), ("c/d.jpg", 0)]
    assert "without '..'" in refusal(parse_file, file("image_path,level\n..\\b.jpg,1\n"))


def test_suffix_is_found(tmp_path):
    for name in ("1_left.jpeg", "2.PNG", "a.b.tif", "sub/3.jpg", "4.TIFF"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = pd.DataFrame({"image": ["1_left", "1_left.jpeg", "2", "a.b", "sub/3", "4"], "target": 0})
    found = [str(tmp_path / name) for name in ("1_left.jpeg", "1_left.jpeg", "2.PNG", "a.b.tif", "sub/3.jpg", "4.TIFF")]
    assert located(table, tmp_path)["path"].tolist() == found


def test_names_without_suffix_that_fit_several_files_are_reported(tmp_path, caplog):
    for name in (
        "1.png",
        "1.jpg",
        "2.JPG",
        "2.jpg",
        "3.jpg",
        "3_mask.png",
        "4.jpg",
        "4.png",
        "deep/5.png",
        "deep/5.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "3.png").touch()
    with caplog.at_level(logging.INFO):
        table = located(pd.DataFrame({"image": ["1", "2", "3", "4.png", "5"]}), tmp_path)
        assert [path.removeprefix(f"{tmp_path}/") for path in table["path"]] == [
            "1.jpg", "2.jpg", "3.jpg", "4.png", "deep/5.jpg",
        ]  # fmt: skip
        located(pd.DataFrame({"image": ["3", "4.jpg", "4.png"]}), tmp_path)
        located(pd.DataFrame({"image": ["5", "3"]}), tmp_path)
    assert caplog.messages == [
        f"{tmp_path}: 3 names without suffix fit several files (1 is 1.jpg, not 1.png)",
        f"{tmp_path}: 1 name without suffix fits several files (5 is 5.jpg, not 5.png)",
    ]


def test_missing_images_are_counted_and_named(tmp_path):
    (tmp_path / "c.jpeg").touch()
    message = refusal(located, pd.DataFrame({"image": ["a", "sub/b", "c", "d", "e"]}), tmp_path)
    assert message.startswith(f"{tmp_path}: 4 of 5 listed images are missing (a, sub/b, d, …)")
    assert "check data.root, and data.images" in message
    assert "on_bad_image" not in message  # most are missing: the folder is wrong
    assert refusal(located, pd.DataFrame({"image": ["a", "c"]}), tmp_path).endswith(
        "or set data.on_bad_image=drop to leave such rows out"
    )
    assert "(a)" in refusal(located, pd.DataFrame({"image": ["a", "c"]}), tmp_path)


def test_names_that_are_not_utf_8_are_refused():
    refuse_undecodable(["/data/眼.jpeg", "/data/é.jpeg"])
    message = refusal(refuse_undecodable, ["/data/a.jpeg", "/data/caf\udce9.jpeg"])
    assert message.startswith("/data/caf\\udce9.jpeg: the name is not UTF-8; rename the file")


def test_tables_of_an_evaluation_are_not_label_files(tmp_path):
    (tmp_path / "confusion_matrix_test.csv").write_text("true,no DR,mild\nno DR,3,1\nmild,0,2\n")
    (tmp_path / "predictions_test.csv").write_text("image,target,prediction\na,0,1\n")
    (tmp_path / "notes_train.txt").write_text("photographs of 2019\nand of 2020\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "training.tsv").write_text("a\t0\nb\t1\n")
    assert label_files(tmp_path, (None, None), GRADES) == {"train": [tmp_path / "labels" / "training.tsv"]}


def test_numbers_are_numbers_even_if_classes_have_such_names(file):
    names = Grades(["1", "2", "3"], first=1)
    assert parse_file(file("image,level\na,1\nb,2.0\nc,3\n"), names)["target"].tolist() == [0, 1, 2]
    assert "labels run from 0 to 2" in refusal(parse_file, file("image,level\na,1\nb,3\n"), Grades(["1", "2", "3"]))


def test_labels_that_compare_equal_are_refused():
    assert "several labels become 'm_1'" in refusal(Grades, ["a", "b"], {"M-1": 0, "m 1": 1})


def test_a_label_in_words_is_not_a_header_of_a_pair(file):
    images, labels = file("a\nb\n", "train_img.csv"), file("mild\nno DR\n", "train_label.csv")
    assert cells(read_pair(images, labels, GRADES)) == [("a", "mild"), ("b", "no DR")]


def test_a_column_named_like_a_class_is_a_header(file):
    grades = Grades(["no DR", "DR"])
    found = parse(read_labels(file("image,DR\nx,1\n"), None, "DR", grades), "x", "x", grades)
    assert cells(found) == [("x", 1)]


def test_rows_wider_than_the_header_are_read_if_they_have_an_index(file):
    assert cells(parse_file(file("image,level\n1,x,0\n2,y,1\n"))) == [("x", 0), ("y", 1)]
    assert "line 2 has 3 fields, but line 1 has 2" in refusal(parse_file, file("image,level\n2,1,0\n1,2,0\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image;grade (0,1,2);level\nx;0;1\ny;1;2\n", [("x", 1), ("y", 2)]),
        ("a;b;c,0\nd;e;f,1\n", [("a;b;c", 0), ("d;e;f", 1)]),
    ],
)
def test_the_separator_occurs_equally_often_in_every_line(file, text, expected):
    assert cells(parse_file(file(text))) == expected


@pytest.mark.parametrize("text", ["a,\nb,1\n", "a.jpg,unknown\nb,1\n"])
def test_a_bad_first_label_is_not_a_header(file, text):
    assert list(parse_file(file(text), drop=True)["target"]) == [BAD, 1]


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        ("\n1\n2\n", [BAD, 1, 2]),
        ("0\n1\n\n", [0, 1, BAD]),
        ("level\n0\n1\n\n\n", [0, 1, BAD]),
        ("0\n1\n2\n\n\n", [0, 1, 2]),
        ("\n\n0\n1\n2\n", [0, 1, 2]),
    ],
)
def test_blank_lines_around_a_pair_count_if_rows_are_missing(file, labels, targets):
    header = "image\n" if labels.startswith("level") else ""
    images, labels = file(f"{header}a\nb\nc\n", "train_img.csv"), file(labels, "train_label.csv")
    assert list(parse(read_pair(images, labels, GRADES), images, labels, GRADES, drop=True)["target"]) == targets


def test_another_label_column_with_other_labels_is_named(file, caplog):
    labels = read_labels(file("image,diagnosis,level\na,1,2\nb,0,0\n"), None, None, GRADES)["label"].tolist()
    assert labels == ["2", "0"]
    assert "the labels are those of column level; diagnosis differs from it" in caplog.text
    caplog.clear()
    read_labels(file("image,diagnosis,level\na,1,1\nb,0,0\n"), None, None, GRADES)
    read_labels(file("image,diagnosis,level\na,1,2\nb,0,0\n"), None, "diagnosis", GRADES)
    assert caplog.text == ""


def test_a_file_without_header_in_which_labels_may_be_in_two_columns_is_refused(file):
    rows = "".join(f"img{n},{n // 4},{n % 3}\n" for n in range(12))
    assert "labels may be in column 2 or 3" in refusal(parse_file, file(rows))
    sizes = "".join(f"img{n},{n % 3},{1000 + n}\n" for n in range(12))
    assert parse_file(file(sizes))["target"].tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("column", "values", "warns"),
    [
        ("split", ["train", "train", "test"], True),
        ("part", ["training", "valid", "test set"], True),
        ("fold", ["1", "2", "3"], True),
        ("split", ["train"], False),
        ("camera", ["a", "b"], False),
    ],
)
def test_a_column_of_splits_that_is_not_used_is_named(file, caplog, column, values, warns):
    rows = "".join(f"img{n},{n % 5},{values[n % len(values)]}\n" for n in range(12))
    assert len(parse_file(file(f"image,level,{column}\n{rows}"))) == 12
    assert (f"column {column} (" in caplog.text) == warns
    assert ("data.test_csv" in caplog.text) == warns


def test_a_class_whose_name_is_the_number_of_another_is_named():
    assert "the label 0 is the class called 1" in Grades(["1", "0"]).swapped()
    assert "the label 0 is the class called 1" in Grades(["1", "2", "3"]).swapped()
    assert Grades(["1", "2", "3"], first=1).swapped() == ""
    assert Grades(["1", "0"], {"a": 0, "b": 1}).swapped() == ""
    assert Grades(["no", "1"]).swapped() == ""
