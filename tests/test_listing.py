"""Images and junk in a folder; all other files that are left out are reported."""

import logging

import numpy as np
import pytest
from fake_data import refusal, write_photographs
from PIL import Image

from resnet_lab.data import listing as module
from resnet_lab.data.check import examine
from resnet_lab.data.listing import NO_IMAGES, SUFFIXES, is_image, list_images, say_left_out, splits_of, subfolders
from resnet_lab.data.reader import Recipe, read_image

FORMATS = {".jpx": "JPEG2000", ".jpf": "JPEG2000", ".jpc": "JPEG2000", ".mpo": "JPEG"}  # Pillow cannot write these


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_listed_kind_is_read_the_same_by_check_and_reader(tmp_path, suffix):
    grays = np.repeat(np.arange(64, 224, 5, dtype=np.uint8)[:, None], 32, axis=1)
    image = Image.fromarray(grays).convert("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB")
    file = tmp_path / f"a{suffix.upper()}"
    try:
        image.save(file, FORMATS.get(suffix))
    except (KeyError, OSError):
        pytest.skip("this Pillow cannot write it")
    assert is_image(file.name)
    assert examine(str(file))[0] == ""
    read = read_image(str(file), Recipe(32, "square", False, False)).astype(int)
    assert np.abs(read - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a", "jpg", "a.jpg.part", "a.dcm", "a.heic", ".jpg"])
def test_other_files_are_not_images(name):
    assert not is_image(name)


def test_any_case_and_depth_in_the_order_of_folders(tmp_path):
    touch(
        tmp_path, "b.Jpeg", "a/2.WEBP", "a/1.bmp", "a.png", "a/deep/er/3.TIF", "notes.txt", "b.xml", "a/c.TXT", "README"
    )
    images, others = list_images(tmp_path)
    assert images == ["a/1.bmp", "a/2.WEBP", "a/deep/er/3.TIF", "a.png", "b.Jpeg"]
    assert others == {".txt": 2, ".xml": 1, "": 1}
    assert list_images(tmp_path, deep=False) == (["a.png", "b.Jpeg"], {".txt": 1, ".xml": 1, "": 1})


def test_junk_is_neither_listed_nor_counted(tmp_path):
    junk = ["._1.jpg", "__MACOSX/a/._1.jpg", "__MACOSX/1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/1.jpg"]
    touch(tmp_path, "1.jpg", *junk, ".ipynb_checkpoints/1.jpg", ".hidden.png", "a/.cache/2.jpg")
    touch(tmp_path, "__pycache__/1.jpg", "System Volume Information/1.jpg", "#recycle/1.jpg", "ehthumbs.db", "Icon\r")
    assert list_images(tmp_path) == (["1.jpg"], {})
    assert subfolders(tmp_path) == [tmp_path / "a"]


def test_links_are_followed_and_end(tmp_path):
    data = touch(tmp_path / "data", "a/1.jpg")
    touch(tmp_path / "elsewhere", "2.jpg")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "a" / "loop").symlink_to(data)
    (data / "itself").symlink_to("itself")
    (data / "again").symlink_to(data / "a")
    assert list_images(data).images == ["a/1.jpg", "linked/2.jpg"]
    assert [folder.name for folder in subfolders(data)] == ["a", "again", "linked"]


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "."])
def test_links_that_lead_upward_are_not_followed(tmp_path, target):
    touch(tmp_path, "data/train/a/1.jpg", "data/train/b/2.jpg", "store/c/3.jpg", "store/d/4.jpg")
    train = tmp_path / "data" / "train"
    (train / "a" / "up").symlink_to(target)
    (train / "up").symlink_to(target)
    (train / "c").symlink_to(tmp_path / "store" / "c")
    (tmp_path / "store" / "c" / "up").symlink_to(train)  # the link leads upward, the real folder does not
    (tmp_path / "store" / "c" / "out").symlink_to(tmp_path / "store")
    assert list_images(train / "a").images == ["1.jpg"]
    assert list_images(train / "c").images == ["3.jpg"]
    assert [folder.name for folder in subfolders(train)] == ["a", "b", "c"]
    assert list_images(train).images == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(module.os, "scandir", denied)
    assert refusal(list_images, tmp_path) == f"{tmp_path} cannot be listed: Permission denied; make it readable"


def test_one_line_counts_the_ignored_files(tmp_path, caplog):
    touch(tmp_path, *(f"{n}.txt" for n in range(10)), "a.xml", "b.xml", "c.csv", "d.e", "f.g", "h.i", "j")
    with caplog.at_level(logging.INFO):
        say_left_out(tmp_path, "file", "files", list_images(tmp_path).others)
        write_photographs(tmp_path / "x", ["1"])
        say_left_out(tmp_path, "thing", "nothing", list_images(tmp_path / "x").others)
        touch(tmp_path / "x", "k.txt")
        say_left_out(tmp_path, *NO_IMAGES, list_images(tmp_path / "x").others)
    line, last = caplog.messages
    assert last == f"{tmp_path}: left out 1 file without an image suffix: 1 .txt"
    assert line.startswith(f"{tmp_path}: left out 17 files: 10 .txt, 2 .xml, ")
    assert line.endswith(", …")


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("a. Training Set", {"train"}),
        ("TRAINImages", {"train"}),
        ("trainImages_2", {"train"}),
        ("VALID", {"val"}),
        ("testset", {"test"}),
        ("train_and_val_labels", {"train", "val"}),
        ("IDRiD", set()),
        ("contest", set()),
    ],
)
def test_splits_are_recognized_in_names(name, splits):
    assert splits_of(name) == splits
