"""Photographs without labels: one file or a folder of them."""

import logging

import pytest
from fake_data import photographs, refusal, write_photographs


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_all_images_below_a_folder(root):
    write_photographs(root, ["b", "sub/a", "001", "sub/deep/NA_left"])
    (root / "notes.txt").touch()
    table, dropped = photographs(root, val_fraction=0).table()
    assert table["image"].tolist() == ["001.jpeg", "b.jpeg", "sub/a.jpeg", "sub/deep/NA_left.jpeg"]
    assert table["path"].tolist() == [str(root / name) for name in table["image"]]
    assert set(table["split"]) == {"test"}
    assert dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}


def test_every_kind_below_a_folder_and_no_junk(root, caplog):
    write_photographs(root, ["a"], ".Jpeg")
    write_photographs(root / "sub", ["b"], ".webp")
    write_photographs(root / "__MACOSX", ["a"])
    for name in ("._a.Jpeg", "labels.csv", "sub/notes.txt"):
        (root / name).touch()
    with caplog.at_level(logging.INFO):
        table, _ = photographs(root, val_fraction=0).table()
    assert table["image"].tolist() == ["a.Jpeg", "sub/b.webp"]
    assert f"{root}: left out 2 files without an image suffix: 1 .csv, 1 .txt" in caplog.text
    assert "patients" not in caplog.text  # there is no split


def test_one_file(root):
    write_photographs(root, ["10_left", "10_right"])
    table, _ = photographs(root / "10_left.jpeg", val_fraction=0).table()
    row = table.iloc[0]
    assert len(table) == 1
    assert (row["image"], row["path"], row["patient"]) == ("10_left.jpeg", str(root / "10_left.jpeg"), "10")


def test_a_file_other_than_an_image_is_refused(root):
    root.mkdir()
    (root / "notes.txt").write_text("no image")
    message = refusal(photographs(root / "notes.txt").table)
    assert message.startswith(f"{root / 'notes.txt'}: no image of a known format")


def test_one_unreadable_image_among_others_is_named(root):
    write_photographs(root, ["a", "b"])
    (root / "b.jpeg").write_bytes(b"")
    table, dropped = photographs(root, on_bad_image="drop", val_fraction=0).table()
    assert (table["image"].tolist(), dropped["skipped_images"]) == (["a.jpeg"], 1)


def test_a_missing_or_empty_folder_is_refused(root):
    assert refusal(photographs(root).read_table) == f"{root} does not exist; give an image or a folder of images"
    root.mkdir()
    assert refusal(photographs(root).read_table).startswith(f"{root} contains no image (.jpeg .jpg .png .tif …)")
