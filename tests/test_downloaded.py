"""Public retinopathy data sets in their downloaded form: the keys that each needs, and the rows that result."""

import logging
from pathlib import Path

import pytest
from fake_data import refusal, retinopathy, write_photographs


def write(file: Path, header: str, rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in [*([header] if header else []), *rows]))


def read(root, **keys):
    """Return split → {name: (target, path below root)}."""
    data = retinopathy(root, **keys)
    table = data.read_table()
    return {
        split: {
            name: (target, str(Path(path).relative_to(root)))
            for name, target, path in zip(rows["image"], rows["target"], rows["path"], strict=True)
        }
        for split, rows in table.groupby("split")
    }, data


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def write_idrid(root):
    """IDRiD's zip `B. Disease Grading` is beside the localization part, which has the same photographs."""
    for part in ("B. Disease Grading", "C. Localization"):
        for split, n in (("a. Training Set", 8), ("b. Testing Set", 4)):
            names = [f"IDRiD_{k:03d}" for k in range(1, n + 1)]
            write_photographs(root / part / "1. Original Images" / split, names, ".jpg", content=part + split)
    truth = root / "B. Disease Grading" / "2. Groundtruths"
    head = "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,"
    for name, n in (("a. IDRiD_Disease Grading_Training Labels", 8), ("b. IDRiD_Disease Grading_Testing Labels", 4)):
        write(truth / f"{name}.csv", head, [f"IDRiD_{k:03d},{k % 5},{k % 3},,,,,,,,," for k in range(1, n + 1)])
    write(root / "C. Localization" / "2. Groundtruths" / "a. IDRiD_Fovea_Center_Training Set_Markups.csv",
          "Image No,X- Coordinate,Y - Coordinate", ["IDRiD_001,10,20"])  # fmt: skip


def test_idrid_needs_no_key(root):
    write_idrid(root)
    found, _ = read(root)
    images = "B. Disease Grading/1. Original Images"
    assert found["train"] == {
        f"IDRiD_{k:03d}": (k % 5, f"{images}/a. Training Set/IDRiD_{k:03d}.jpg") for k in range(1, 9)
    }
    assert found["test"] == {
        f"IDRiD_{k:03d}": (k % 5, f"{images}/b. Testing Set/IDRiD_{k:03d}.jpg") for k in range(1, 5)
    }
    patients = retinopathy(root / "B. Disease Grading").listed()["patient"]
    assert patients.nunique() == 12  # IDRiD_001 is a different patient in each split


def test_aptos_of_the_competition_needs_no_key(root):
    codes = [f"{n:012x}" for n in range(30)]
    write(root / "train.csv", "id_code,diagnosis", [f"{code},{n % 5}" for n, code in enumerate(codes[:20])])
    write(root / "test.csv", "id_code", codes[20:])
    write(root / "sample_submission.csv", "id_code,diagnosis", [f"{code},0" for code in codes[20:]])
    write_photographs(root / "train_images", codes[:20], ".png")
    write_photographs(root / "test_images", codes[20:], ".png")
    found, _ = read(root)
    assert found == {"train": {code: (n % 5, f"train_images/{code}.png") for n, code in enumerate(codes[:20])}}


def test_kaggles_copy_of_aptos_needs_no_key(root, caplog):
    for file, folder, first, n in (("train_1", "train", 0, 20), ("valid", "val", 100, 6), ("test", "test", 200, 6)):
        codes = [f"{first + k:012x}" for k in range(n)]
        write(root / f"{file}.csv", "id_code,diagnosis", [f"{code},{k % 5}" for k, code in enumerate(codes)])
        write_photographs(root / f"{folder}_images" / f"{folder}_images", codes, ".png")
    with caplog.at_level(logging.INFO):
        found, _ = read(root)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "val": 6, "test": 6}
    assert found["val"][f"{103:012x}"] == (3, f"val_images/val_images/{103:012x}.png")
    assert "train from train_1.csv, val from valid.csv, test from test.csv" in caplog.text
    named = {"train_csv": "train_1.csv", "train_images": "train_images/train_images"}
    assert read(root, **named)[0] == {"train": found["train"]}  # if keys name files, others are ignored


def test_rfmid_needs_the_column_and_its_classes(root):
    """The image numbers start again in each split."""
    for folder, inner, word, n in (
        ("Training_Set", "Training", "Training", 9),
        ("Evaluation_Set", "Validation", "Validation", 4),
        ("Test_Set", "Test", "Testing", 4),
    ):
        place = root / folder / folder
        names = [str(k) for k in range(1, n + 1)]
        write_photographs(place / inner, names, ".png", content=folder)
        write(place / f"RFMiD_{word}_Labels.csv", "ID,Disease_Risk,DR,ARMD", [f"{k},1,{int(k) % 2},0" for k in names])
    keys = {"label_column": "DR", "class_names": ["no DR", "DR"]}
    found, _ = read(root, **keys)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 9, "val": 4, "test": 4}
    assert found["train"]["3"] == (1, "Training_Set/Training_Set/Training/3.png")
    assert found["val"]["3"] == (1, "Evaluation_Set/Evaluation_Set/Validation/3.png")
    assert found["test"]["4"] == (0, "Test_Set/Test_Set/Test/4.png")
    assert retinopathy(root, **keys).listed()["patient"].nunique() == 17
    (root / "Training_Set/Training_Set/Training/3.png").unlink()  # the image of another split is not taken
    assert "1 of 9 listed images is missing (3)" in refusal(retinopathy(root, **keys).read_table)


def test_ddr_needs_the_rule_for_ungradable_photographs(root):
    for split, n in (("train", 22), ("valid", 11), ("test", 11)):
        names = [f"007-{k + 1000 * n + 100 * len(split)}-100" for k in range(n)]
        write_photographs(root / split, names, ".jpg")
        write(root / f"{split}.txt", "", [f"{name}.jpg {5 if k % 11 == 5 else k % 5}" for k, name in enumerate(names)])
    message = refusal(retinopathy(root).read_table)
    assert "label '5' in line 6 (image 007-22" in message
    assert "train.txt" in message
    found, data = read(root, on_bad_label="drop")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "val": 10, "test": 10}
    assert found["train"]["007-22502-100.jpg"] == (2, "train/007-22502-100.jpg")
    assert data.bad_labels == 4
    assert data.table()[1]["skipped_labels"] == 4


def test_messidor_2_needs_the_rule_for_ungradable_photographs(root, caplog):
    names = [f"20051020_{43808 + k}_0100_PP" for k in range(6)] + [f"IM{k:06d}" for k in range(6)]
    write_photographs(root / "IMAGES", names[:6], ".png")
    write_photographs(root / "IMAGES", names[6:], ".jpg")
    rows = [f"{name}.{'png' if k < 6 else 'JPG'},{k % 5 if k != 3 else ''},0,{int(k != 3)}"
            for k, name in enumerate(names)]  # fmt: skip
    head = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable"
    write(root / "messidor_data.csv", head, rows)
    assert "label '' in line 5 (image 20051020_43811_0100_PP.png)" in refusal(retinopathy(root).read_table)
    with caplog.at_level(logging.INFO):
        found, data = read(root, on_bad_label="drop")
    assert found["train"]["IM000002.JPG"] == (3, "IMAGES/IM000002.jpg")
    assert (len(found["train"]), data.bad_labels) == (11, 1)
    assert "6 names with a case or suffix that differs from the file's (IM000000.JPG is IM000000.jpg)" in caplog.text
    assert "images that no CSV lists" not in caplog.text
    assert set(retinopathy(root, on_bad_label="drop", all_images="test").listed()["split"]) == {"test"}


def write_deepdrid(root):
    """`regular_fundus_images` has two fields per eye, a grade column per eye, and Windows paths."""
    for split, patients in (("training", (1, 2)), ("validation", (265,))):
        place = root / f"regular-fundus-{split}"
        rows = []
        for patient in patients:
            for eye in ("l1", "l2", "r1", "r2"):
                name = f"{patient}_{eye}"
                write_photographs(place / "Images" / str(patient), [name], ".jpg")
                grades = f"{patient % 5},," if eye[0] == "l" else f",{patient % 5 + 1},"
                rows.append(f"{patient},{name},\\{place.name}\\{patient}\\{name}.jpg,1,{grades}{patient % 5 + 1}")
        head = "patient_id,image_id,image_path,Overall quality,left_eye_DR_Level,right_eye_DR_Level,patient_DR_Level"
        write(place / f"regular-fundus-{split}.csv", head, rows)


def test_deepdrid_needs_no_key(root):
    write_deepdrid(root)
    found, data = read(root)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 8, "val": 4}
    assert found["train"]["2_l1"] == (2, "regular-fundus-training/Images/2/2_l1.jpg")
    assert found["train"]["2_r2"] == (3, "regular-fundus-training/Images/2/2_r2.jpg")
    assert found["val"]["265_r1"] == (1, "regular-fundus-validation/Images/265/265_r1.jpg")
    assert set(data.listed()["patient"]) == {"1", "2", "265"}


def test_both_eyes_graded_in_every_row(root):
    write_photographs(root / "images", ["3_l1", "3_r1", "left_4", "right_4"], ".jpg")
    write(root / "train.csv", "image_id,left_eye_DR_Level,right_eye_DR_Level",
          ["3_l1,0,4", "3_r1,0,4", "left_4,1,2", "right_4,1,2"])  # fmt: skip
    found, _ = read(root)
    assert {name: target for name, (target, _) in found["train"].items()} == {
        "3_l1": 0, "3_r1": 4, "left_4": 1, "right_4": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "target"), [({}, 3), ({"label_column": "quality", "class_names": ["good", "usable", "reject"]}, 1)]
)
def test_eyeq_needs_no_key_for_grades(root, keys, target):
    for split, patients in (("train", range(10, 20)), ("test", range(30, 34))):
        names = [f"{patient}_{eye}" for patient in patients for eye in ("left", "right")]
        write_photographs(root / split, names)
        rows = [f"{k},{name}.jpeg,{k % 3},{k % 5}" for k, name in enumerate(names)]
        write(root / f"Label_EyeQ_{split}.csv", ",image,quality,DR_grade", rows)
    found, _ = read(root, **keys)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "test": 8}
    assert found["train"]["11_right.jpeg" if not keys else "12_left.jpeg"][0] == target


# refusals, and older runs


def test_two_files_for_a_split_are_named(root):
    write_photographs(root / "images", ["a", "b"])
    for name in ("train_1.csv", "train_2.csv"):
        write(root / name, "image,level", ["a,0", "b,1"])
    message = refusal(retinopathy(root).read_table)
    assert "train_1.csv and train_2.csv could each be the labels of train; name one in data.train_csv" in message
    assert len(read(root, train_csv="train_2.csv")[0]["train"]) == 2


def test_a_name_in_two_places_is_ambiguous(root):
    for folder in ("left camera", "right camera"):
        write_photographs(root / "photographs" / folder, ["a", "b"], content=folder)
    write(root / "labels.csv", "image,level", ["a,0", "b,1"])
    message = refusal(retinopathy(root).read_table)
    assert "image 'a' is in " in message
    assert "data.train_images" in message
    found, _ = read(root, images="photographs/right camera")
    assert found["train"]["a"] == (0, "photographs/right camera/a.jpeg")


def test_folders_of_splits_by_key(root):
    for split in ("x", "y"):
        write_photographs(root / split, ["a", "b"], content=split)
        write(root / f"{split}.csv", "image,level", ["a,0", "b,1"])
    found, _ = read(root, train_csv="x.csv", test_csv="y.csv", train_images="x", test_images="y")
    assert (found["train"]["a"], found["test"]["a"]) == ((0, "x/a.jpeg"), (0, "y/a.jpeg"))
    assert "data.test_images" in refusal(retinopathy(root, train_csv="x.csv", images="x", test_images="y").read_table)
    keys = {"train_csv": "x.csv", "test_csv": "y.csv", "images": "x", "test_images": "z"}
    assert "set data.test_images to" in refusal(retinopathy(root, **keys).read_table)


def test_joined_splits_leave_the_names_of_others(root):
    for split in ("x", "y", "z"):
        write_photographs(root / split, ["a", "b"], content=split)
        write(root / f"{split}.csv", "image,level", ["a,0", "b,1"])
    keys = {"train_csv": "x.csv", "val_csv": "y.csv", "test_csv": "z.csv"}
    keys |= {"train_images": "x", "val_images": "y", "test_images": "z"}
    names = {}
    for splits in (None, {"train": ["train", "val"], "test": "test"}, {"train": "train", "test": ["val", "test"]}):
        table = retinopathy(root, splits=splits, **keys).listed()
        names[str(splits)] = table.groupby("split")["image"].agg(list).to_dict()
    separate, train, test = names.values()
    assert separate == {split: ["a", "b"] for split in ("train", "val", "test")}
    assert train == {"train": ["x/a.jpeg", "x/b.jpeg", "y/a.jpeg", "y/b.jpeg"], "test": ["a", "b"]}
    assert test == {"train": ["a", "b"], "test": ["y/a.jpeg", "y/b.jpeg", "z/a.jpeg", "z/b.jpeg"]}


def test_older_runs_do_not_look_for_more_files(root):
    write_photographs(root / "images", ["a", "b", "c"])
    write(root / "train.csv", "image,level", ["a,0", "b,1"])
    write(root / "valid.csv", "image,level", ["c,0"])
    assert set(read(root)[0]) == {"train", "val"}
    assert set(read(root, find_csvs=False)[0]) == {"train"}


# the right image, or none


def pictures(root, *places):
    for place in places:
        path = root / place
        write_photographs(path.parent, [path.stem], path.suffix, content=str(place))


def test_the_unchanged_name_comes_before_the_folder_of_the_split(root):
    pictures(root, "photos/a.jpg", "photos/b.jpg", "train_masks/a.png", "train_masks/b.png")
    write(root / "labels.csv", "image,level", ["a.jpg,0", "b.jpg,1"])
    assert read(root)[0]["train"]["b.jpg"] == (1, "photos/b.jpg")
    write(root / "labels.csv", "image,level", ["a,0", "b,1"])  # now both files fit
    assert "image 'a' is in" in refusal(retinopathy(root).read_table)


def test_photographs_near_the_label_file_come_before_those_of_another_data_set(root):
    pictures(root, *(f"mine/photos/{n}.jpg" for n in (1, 2, 3)), *(f"other/Training/{n}.png" for n in (1, 2, 3)))
    write(root / "mine" / "labels.csv", "image,level", ["1,0", "2,1", "3,2"])
    assert read(root)[0]["train"]["2"] == (1, "mine/photos/2.jpg")
    (root / "mine" / "photos" / "2.jpg").unlink()  # the image of the other data set is not taken
    assert "1 of 3 listed images is missing (2)" in refusal(retinopathy(root).read_table)


@pytest.mark.parametrize("own", ["test/test", "Test", "Testing Set"])
def test_a_split_with_its_own_folder_takes_no_image_of_another(root, own):
    pictures(root, *(f"train/{n}.png" for n in range(1, 6)), f"{own}/4.png", f"{own}/5.png")
    write(root / "train.csv", "image,level", ["1,0", "2,1", "3,2"])
    write(root / "test.csv", "image,level", ["4,0", "5,1"])
    assert read(root)[0]["test"] == {"4": (0, f"{own}/4.png"), "5": (1, f"{own}/5.png")}
    (root / own / "5.png").unlink()
    assert "1 of 2 listed images is missing (5)" in refusal(retinopathy(root).read_table)


def test_a_folder_of_another_split_is_not_used(root):
    pictures(root, "photos/test/3.jpg")
    write(root / "train.csv", "image,level", ["3,0"])
    assert "1 of 1 listed image is missing" in refusal(retinopathy(root).read_table)


def test_the_suffix_in_another_case_is_the_same_suffix(root):
    pictures(root, "images/x.png", "images/x.jpg", "images/y.jpg", "images/y.png")
    write(root / "train.csv", "image,level", ["x.PNG,0"])
    assert read(root)[0]["train"]["x.PNG"] == (0, "images/x.png")
    write(root / "train.csv", "image,level", ["y.tif,0"])
    assert "contains y.jpg and y.png; name one" in refusal(retinopathy(root).read_table)


def test_a_folder_named_like_an_image_is_not_an_image(root):
    pictures(root, "images/1/1.png", "images/2/2.png")
    write(root / "train.csv", "image,level", ["1,0", "2,1"])
    assert read(root)[0]["train"]["2"] == (1, "images/2/2.png")


def test_label_files_behind_links_are_found_and_predictions_are_not_labels(root, tmp_path):
    write(tmp_path / "store" / "valid.csv", "image,level", ["v,1"])
    pictures(tmp_path / "store", "valid/v.jpg")
    pictures(root, "images/a.jpg")
    write(root / "train.csv", "image,level", ["a,0"])
    write(root / "preds_test.csv", "image,level", ["a,0"])
    (root / "more").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert {split: list(rows) for split, rows in read(root)[0].items()} == {"train": ["a"], "val": ["v"]}


def test_eyes_are_read_by_od_and_os_and_need_equal_labels_without_a_side(root):
    pictures(root, "images/1_OD.jpg", "images/1_OS.jpg", "images/x.jpg", "images/y.jpg")
    rows = ["1_OD,0,4", "1_OS,0,4", "x,2,2", "y,1,3"]
    write(root / "train.csv", "image_id,left_eye_DR_Level,right_eye_DR_Level", rows)
    assert "label '' in line 5 (image y)" in refusal(retinopathy(root).read_table)
    found = read(root, on_bad_label="drop")[0]["train"]
    assert {name: target for name, (target, _) in found.items()} == {"1_OD": 4, "1_OS": 0, "x": 2}


def test_ignored_files_are_reported(root, caplog):
    pictures(root, "images/a.jpg", "images/b.jpg")
    write(root / "train.csv", "image,level", ["a,0"])
    write(root / "valid.csv", "image,quality", ["b,1"])
    write(root / "train_and_val_labels.csv", "image,level", ["b,1"])
    with caplog.at_level(logging.INFO):
        assert list(read(root)[0]) == ["train"]
    assert "train from train.csv; left out train_and_val_labels.csv, valid.csv" in caplog.text
    (root / "valid.csv").write_bytes("image,level\nb,1\n".encode("utf-16"))
    assert f"{root / 'valid.csv'} is not a comma-separated file in UTF-8" in refusal(retinopathy(root).read_table)


@pytest.mark.parametrize("keys", [{}, {"train_csv": "train.csv", "test_csv": "test.csv"}])
def test_several_files_with_another_encoding_are_all_named(root, keys):
    pictures(root, "images/a.jpg", "images/b.jpg")
    for name in ("train.csv", "test.csv"):
        (root / name).write_bytes("image,level\na,0\n".encode("utf-16"))
    message = refusal(retinopathy(root, **keys).read_table)
    assert message == f"{root}: train.csv, test.csv are not UTF-8 text; save each as CSV in UTF-8"


@pytest.mark.parametrize("name", ["grades.xlsx", "labels.csv"])
def test_tables_that_cannot_be_read_are_named(root, name):
    pictures(root, "images/a.jpg")
    (root / "tables").mkdir()
    (root / "tables" / name).write_bytes("image,level\na,0\n".encode("utf-16"))
    assert f"save tables/{name} as CSV in UTF-8" in refusal(retinopathy(root).read_table)


def test_the_solution_is_used_if_it_has_the_column(root):
    write_photographs(root / "train", [f"{n}_left" for n in range(4)], ".jpeg")
    write(root / "retinopathy_solution.csv", "image,level,Usage", ["9_left,0,Public"])
    write(root / "Label_EyeQ_train.csv", "image,quality,DR_grade", [f"{n}_left,{n % 3},0" for n in range(4)])
    found, _ = read(root, label_column="quality")
    assert {name: target for name, (target, _) in found["train"].items()} == {f"{n}_left": n % 3 for n in range(4)}
    assert list(found) == ["train"]


def test_photographs_in_the_cache_are_not_found(root):
    pictures(root, "photos/a.jpg", "cache/prepared/x/a.jpg")
    write(root / "train.csv", "image,level", ["a,0"])
    assert read(root, cache_dir=str(root / "cache"))[0]["train"]["a"] == (0, "photos/a.jpg")


def test_rows_without_a_valid_label_need_neither_name_nor_patient(root):
    pictures(root, "images/a.jpg", "images/b.jpg")
    write(root / "train.csv", "image,level,patient", ["a,0,p", "b,1,q", "a,u,p", "b.jpg,,", ",v,r", "../c,w,s", "b,x,"])
    found, data = read(root, on_bad_label="drop", patient_column="patient")
    assert found == {"train": {"a": (0, "images/a.jpg"), "b": (1, "images/b.jpg")}}
    assert data.bad_labels == 5
    message = refusal(retinopathy(root).read_table)
    assert "label 'u' in line 4 (image a), '' in line 5 (image b.jpg), 'v' in line 6, … (5 rows)" in message
