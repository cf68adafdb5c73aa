"""A prepared set: byte-identical after interruptions, found by training, and never mixed or partial."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from fake_data import TRAIN, encoded, refusal, retinopathy, write_studies

from resnet_lab.data import prepared as module
from resnet_lab.data.check import RULES, digest_of, examine
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.prepared import PreparedSet, prepare, read_prepared
from resnet_lab.data.reader import Recipe, read_image

RECIPE = Recipe(16, "square", eye_crop=False, local_mean=False)


@pytest.fixture
def root(tmp_path):
    return write_studies(tmp_path / "data")


@pytest.fixture
def paths(root):
    return sorted(map(str, (root / "images").iterdir()))


@pytest.fixture
def target(root, tmp_path):
    return PreparedSet(root, RECIPE, tmp_path / "cache")


@pytest.fixture
def raw(root, tmp_path):
    return PreparedSet(root, RECIPE, tmp_path / "cache", format="raw")


def contents(target):
    """Return every file of the set with its content."""
    return {file.relative_to(target.folder): file.read_bytes() for file in target.folder.rglob("*") if file.is_file()}


def test_a_jpeg_and_a_row_for_each_photograph(target, paths):
    index = prepare(target, paths, processes=1)
    assert index["image"].tolist() == [f"images/{Path(path).name}" for path in paths]
    assert {len(index), len(contents(target)) - 2} == {50}
    row = index.iloc[0]
    assert (row["width"], row["height"], row["defect"]) == (24, 16, "")
    assert row["digest"] == digest_of(Path(paths[0]).read_bytes())
    assert row["decoded"] == examine(paths[0])[2]
    assert row["prepared"] == digest_of(target.file(paths[0]).read_bytes())
    image, stored = read_image(paths[0], RECIPE), read_prepared(str(target.file(paths[0])))
    assert stored.shape == (16, 16, 3)
    assert np.abs(stored.astype(int) - image).mean() < 3  # error of the JPEG
    np.testing.assert_allclose(row[["mean_r", "mean_g", "mean_b"]].astype(float), image.mean((0, 1)) / 255, atol=1e-5)
    squares = ((image / 255) ** 2).mean((0, 1))
    np.testing.assert_allclose(row[["square_r", "square_g", "square_b"]].astype(float), squares, atol=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv(target.index_file, keep_default_na=False), index, check_dtype=False)


@pytest.mark.parametrize(("format", "processes"), [("jpeg", 2), ("raw", 1)])
def test_an_interrupted_set_ends_with_the_same_bytes(root, paths, tmp_path, format, processes, monkeypatch):
    target, other = (PreparedSet(root, RECIPE, tmp_path / name, format=format) for name in ("cache", "other"))
    prepare(other, paths, processes=1)
    done: list[str] = []

    def interrupted(target, path):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(path)
        return once(target, path)

    once = module.prepare_photograph
    monkeypatch.setattr(module, "prepare_photograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(target, paths, processes=1)
    assert not target.index_file.exists()
    assert len(target.journal_file.read_text().splitlines()) == 7
    with target.journal_file.open("a") as journal:
        journal.write('{"image": "images/9_le')  # killed while writing
    if format == "raw":
        with target.pixels_file.open("ab") as pixels:
            pixels.write(b"half a photograph")
    monkeypatch.setattr(module, "prepare_photograph", once)
    prepare(target, paths, processes)
    assert contents(target) == contents(other)


@pytest.mark.slow
def test_a_set_killed_at_any_moment_ends_with_the_same_bytes(target, paths, tmp_path, root):
    other = PreparedSet(target.root, RECIPE, tmp_path / "other")
    prepare(other, paths, processes=1)
    code = (
        "import glob, sys\n"
        "from pathlib import Path\n"
        "from resnet_lab.data.prepared import PreparedSet, prepare\n"
        "from resnet_lab.data.reader import Recipe\n"
        "target = PreparedSet(Path(sys.argv[1]), Recipe(16, 'square', False, False), Path(sys.argv[2]))\n"
        "prepare(target, sorted(glob.glob(sys.argv[1] + '/images/*')), processes=1)\n"
    )
    for rows in (1, 11, 30):
        process = subprocess.Popen([sys.executable, "-c", code, str(root), str(target.cache_dir)])
        while process.poll() is None and not (
            target.journal_file.is_file() and target.journal_file.read_text().count("\n") >= rows
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    prepare(target, paths, processes=1)
    assert contents(target) == contents(other)


def test_a_restart_makes_only_missing_or_altered_files(target, paths, monkeypatch):
    prepare(target, paths, processes=1)
    before = contents(target)
    target.file(paths[3]).write_bytes(b"altered")
    target.file(paths[5]).unlink()
    made: list[str] = []
    once = module.prepare_photograph
    monkeypatch.setattr(module, "prepare_photograph", lambda target, path: made.append(path) or once(target, path))
    prepare(target, paths, processes=1)
    assert made == [paths[3], paths[5]]
    assert contents(target) == before


def test_paths_are_built_once_per_folder(target, paths, monkeypatch):
    prepare(target, paths, processes=1)
    again, calls = PreparedSet(target.root, RECIPE, target.cache_dir), Counter()
    for place, name in ((os.path, "relpath"), (module.hashlib, "sha256")):
        once = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, name=name, once=once: calls.update([name]) or once(*args))
    module._place.cache_clear()
    assert len(prepare(again, paths, processes=1)) == len(paths) == 50
    assert calls == {"relpath": 1, "sha256": 1}


def test_names_are_paths_below_the_root_wherever_the_command_runs(root, target, tmp_path, monkeypatch):
    names = ["images/1_left.jpeg", "x.jpeg", "a/b/c.png"]
    assert [target.name(str(root / name)) for name in names] == names
    assert [target.name(f"{root}/images/../{name}") for name in names] == names
    for folder in (tmp_path, root):  # a relative path means a different file in each folder
        monkeypatch.chdir(folder)
        assert [target.name(os.path.relpath(root / name)) for name in names] == names
    outside = {target.name(f"{tmp_path / folder}/x.jpeg") for folder in ("other", "more", "other/")}
    assert len(outside) == 2
    assert all(name.startswith("elsewhere_") and name.endswith("/x.jpeg") for name in outside)
    assert target.name("/x.jpeg") != target.name("x.jpeg")


def test_another_recipe_or_source_is_another_folder(target, root, tmp_path):
    others = [
        PreparedSet(root, Recipe(17, "square", False, False), target.cache_dir),
        PreparedSet(root, Recipe(16, "shorter", False, False), target.cache_dir),
        PreparedSet(root, Recipe(16, "square", True, False), target.cache_dir),
        PreparedSet(root, Recipe(16, "square", False, True), target.cache_dir),
        PreparedSet(tmp_path / "elsewhere" / root.name, RECIPE, target.cache_dir),
    ]
    assert len({other.folder for other in [target, *others]}) == 6


def test_an_unreadable_file_is_a_row_with_its_reason(target, paths):
    Path(paths[0]).write_bytes(b"")
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:-40])
    Path(paths[2]).unlink()
    index = prepare(target, paths, processes=1).set_index("image")
    assert index["defect"].iloc[0] == "the file is empty"
    assert "truncated" in index["defect"].iloc[1]
    assert "No such file" in index["defect"].iloc[2]
    assert (index["defect"] == "").sum() == 47
    assert not target.file(paths[0]).exists()


def test_a_full_disk_leaves_no_partial_file_and_a_restart_completes_the_set(target, paths, monkeypatch):
    room, write_bytes = [12], Path.write_bytes

    def write(path, data):
        if path.suffix != ".json" and ".jpeg" in path.name:
            room[0] -= 1
            if room[0] < 0:
                write_bytes(path, data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    message = refusal(prepare, target, paths, 1)
    assert "No space left on device" in message
    assert "rerun the same command" in message
    assert len([file for file in (target.folder / "images").rglob("*") if file.is_file()]) == 12
    assert not target.index_file.exists()
    room[0] = 1000
    assert (prepare(target, paths, processes=1)["defect"] == "").all()


def test_names_that_differ_only_in_their_suffix_do_not_share_a_file(target, paths):
    twins = [paths[0], f"{paths[0]}.jpeg".replace(".jpeg.jpeg", ".png"), paths[0].replace(".jpeg", ".png.jpeg")]
    assert refusal(prepare, target, twins, 1).startswith(f"{target.root}: two photographs differ only in their suffix")


@pytest.mark.parametrize("links", [1, 9])
def test_a_linked_root_keeps_its_files_to_itself(root, paths, tmp_path, links):
    deep = tmp_path.joinpath(*"abcdefghi"[:links])  # deep enough for wrong relative paths
    deep.parent.mkdir(parents=True, exist_ok=True)
    deep.symlink_to(root)
    before = {path: Path(path).read_bytes() for path in paths}
    for size in (16, 12):
        data = retinopathy(deep, image_size=size, eye_crop=False)
        target = data.prepared_set
        prepare(target, list(data.listed()["path"]), processes=1)
        assert len(list((target.folder / "images" / "images").iterdir())) == len(paths)
        assert set(data.table()[0]["prepared"]) == {str(target.file(path)) for path in data.listed()["path"]}
    assert {path: Path(path).read_bytes() for path in paths} == before


def test_photographs_outside_the_root_are_not_changed(target, tmp_path):
    other = tmp_path / "other" / "a.jpeg"
    other.parent.mkdir()
    other.write_bytes(encoded("a", ".jpeg"))
    assert not target.name(str(other)).startswith("..")
    prepare(target, [str(other)], processes=1)
    assert target.file(str(other)).is_relative_to(target.folder)
    assert other.read_bytes() == encoded("a", ".jpeg")


def test_a_dangling_link_is_a_bad_image_and_the_set_is_still_used(root, target, paths):
    Path(paths[0]).unlink()
    Path(paths[0]).symlink_to("nowhere")
    prepare(target, paths, processes=1)
    built = datamodule(root, on_bad_image="drop")
    assert built.dropped["skipped_images"] == 1
    assert "" not in set(built.table["prepared"])


@pytest.mark.parametrize("text", ["", "image\nx\n"])
def test_a_damaged_index_is_ignored(target, paths, text, caplog):
    prepare(target, paths, processes=1)
    before = contents(target)
    target.index_file.write_text(text)
    with caplog.at_level(logging.WARNING):
        prepare(target, paths, processes=1)
    assert contents(target) == before


def test_unfinished_files_of_a_dead_process_are_removed(target, paths):
    prepare(target, paths[:3], processes=1)
    dead = target.file(paths[0]).with_name(".x.jpeg.4194305")  # above the largest process ID
    living = target.file(paths[0]).with_name(f".x.jpeg.{os.getpid()}")
    for file in (dead, living):
        file.write_bytes(b"half")
    prepare(target, paths, processes=1)
    assert (dead.exists(), living.exists()) == (False, True)


# uncompressed pixels


def test_raw_pixels_are_those_of_the_originals_in_one_mapped_file(raw, target, paths):
    prepare(target, paths, processes=1)
    index = prepare(raw, paths, processes=1)
    assert index["place"].tolist() == [f"{768 * number}:16x16" for number in range(50)]
    assert raw.pixels_file.stat().st_size == 50 * 768
    assert sorted(map(str, contents(raw))) == ["index.csv", "pixels.raw", "recipe.json"]
    for path, (_, row) in zip(paths, index.iterrows(), strict=True):
        image, expected = read_prepared(raw.stored(path, row["place"])), read_image(path, RECIPE)
        np.testing.assert_array_equal(image, expected)
        assert (image.flags.owndata, image.flags.writeable) == (False, False)  # mapped
        assert row["prepared"] == digest_of(expected.tobytes())
    jpegs = pd.read_csv(target.index_file)
    assert jpegs.columns.tolist() == [name for name in index.columns if name != "place"]
    np.testing.assert_array_equal(index["mean_r"], jpegs["mean_r"])
    gray = read_prepared(raw.stored(paths[0], "0:16x16"), gray=True)
    np.testing.assert_array_equal(gray, cv2.cvtColor(read_image(paths[0], RECIPE), cv2.COLOR_RGB2GRAY))


def test_raw_photographs_of_different_sizes_and_unreadable_ones(root, paths, tmp_path):
    Path(paths[1]).write_bytes(cv2.imencode(".jpeg", np.zeros((40, 20, 3), np.uint8))[1].tobytes())
    Path(paths[2]).write_bytes(b"")
    recipe = Recipe(16, "shorter", eye_crop=False, local_mean=False)
    places = prepare(PreparedSet(root, recipe, tmp_path, format="raw"), paths[:4], processes=1)["place"]
    assert places.tolist() == ["0:16x24", "1152:32x16", "", "2688:16x24"]


def test_altered_raw_pixels_are_written_to_their_place_and_new_photographs_at_the_end(raw, paths):
    prepare(raw, paths[:40], processes=1)
    before = contents(raw)
    with raw.pixels_file.open("r+b") as file:
        file.seek(3 * 768)
        file.write(b"altered")
    prepare(raw, paths[:40], processes=1)
    assert contents(raw) == before
    raw.pixels_file.unlink()
    prepare(raw, paths[:40], processes=1)
    assert contents(raw) == before
    index = prepare(raw, paths, processes=1)
    assert index["place"].tolist() == [f"{768 * number}:16x16" for number in range(50)]


def test_a_disk_without_room_for_raw_pixels_is_refused_before_the_first(raw, target, paths, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=50 * 768 - 1))
    text = "data.prepared_format=raw needs 38.4 kB for 50 photographs, and 38.4 kB are free"
    assert text in refusal(prepare, raw, paths, 1)
    assert not raw.pixels_file.exists()
    assert len(prepare(target, paths, processes=1)) == 50
    assert len(prepare(raw, paths[:49], processes=1)) == 49


def test_training_finds_the_set_of_its_format(root, raw, target, paths, monkeypatch):
    prepare(target, paths, processes=1)
    assert set(datamodule(root, prepared_format="raw").table["prepared"]) == {""}
    original = datamodule(root, prepared_format="raw", in_memory=False, val_fraction=0)
    expected = next(iter(original.evaluation_dataloader("train")))["image"].clone()
    prepare(raw, paths, processes=1)
    checked = []
    once = module._digest
    monkeypatch.setattr(module, "_digest", lambda file: checked.append(file) or once(file))
    for in_memory in (False, True):
        built = datamodule(root, prepared_format="raw", in_memory=in_memory, val_fraction=0)
        assert built.pixels == "prepared"
        assert built.table["prepared"].str.startswith(f"{raw.pixels_file}:").all()
        assert built.table["pixels"].tolist() == [digest_of(read_image(path, RECIPE)) for path in built.table["path"]]
        assert torch.equal(next(iter(built.evaluation_dataloader("train")))["image"], expected)
        assert built.noted["recipe"]["raw"] == "uint8"
    assert len(checked) == 50  # once
    assert "jpeg" in datamodule(root).noted["recipe"]
    with raw.pixels_file.open("r+b") as file:
        file.write(b"altered")
    assert "pixels.raw:0:16x16 is missing or was modified; rerun" in refusal(
        lambda: datamodule(root, prepared_format="raw")
    )
    raw.pixels_file.unlink()
    assert "is missing or was modified" in refusal(lambda: datamodule(root, prepared_format="raw"))


def test_uncompressed_pixels_are_those_of_the_originals(root, paths):
    data = retinopathy(root, image_size=16, eye_crop=False)
    before = datamodule(root)
    prepare(replace(data.prepared_set, format="raw"), paths, processes=1)
    raw = datamodule(root, prepared_format="raw")
    assert (before.pixels, raw.pixels) == ("originals", "prepared")
    noted = [each.noted | {"split_fingerprint": each.fingerprints} for each in (before, raw)]
    assert [raw.difference(noted[0]), before.difference(noted[1])] == ["", ""]
    assert before.difference(noted[1] | {"recipe": {**noted[1]["recipe"], "version": 1}}).startswith("version 1")
    prepare(data.prepared_set, paths, processes=1)
    assert datamodule(root).difference(noted[0]) == "the originals then, a prepared set now"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "make it writable"), (errno.EIO, "rerun the same command")],
)
def test_a_set_that_cannot_be_written_gets_its_remedy(target, paths, monkeypatch, number, remedy):
    error = OSError(number, os.strerror(number), str(target.folder))
    monkeypatch.setattr("resnet_lab.data.prepared._prepare_missing", Mock(side_effect=error))
    message = refusal(prepare, target, paths, 1)
    assert message.startswith(f"{target.folder}: {os.strerror(number)}; {remedy}")


# training


def datamodule(root, **keys):
    built = DataModule(retinopathy(root, **{"image_size": 16, "eye_crop": False} | keys), seed=0)
    built.setup()
    return built


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_finds_the_prepared_set(root, target, paths, in_memory, monkeypatch):
    prepare(target, paths, processes=1)
    monkeypatch.setattr("resnet_lab.data.image_data.read_image", None)  # photographs are not opened again
    built = datamodule(root, in_memory=in_memory, val_fraction=0)
    assert built.table["prepared"].tolist() == [str(target.file(path)) for path in built.table["path"]]
    batch = next(iter(built.evaluation_dataloader("train")))
    expected = read_prepared(str(target.file(built.rows("train")["path"][0])))
    np.testing.assert_array_equal(batch["image"][0], expected)


def test_other_keys_do_not_find_it(root, target, paths):
    prepare(target, paths, processes=1)
    assert set(datamodule(root, resize="shorter").table["prepared"]) == {""}


def test_an_incomplete_set_is_reported_and_not_used(root, target, paths, caplog):
    prepare(target, paths[:-1], processes=1)
    with caplog.at_level(logging.WARNING):
        assert set(datamodule(root).table["prepared"]) == {""}
    assert "lacks 1 of 50 photographs" in caplog.text


def test_a_changed_source_is_read_again(root, target, paths):
    prepare(target, paths, processes=1)
    os.utime(paths[0], ns=(0, 1))
    assert set(datamodule(root).table["prepared"]) == {""}
    prepare(target, paths, processes=1)
    assert "" not in set(datamodule(root).table["prepared"])


@pytest.mark.parametrize("alter", [lambda file: file.write_bytes(b"x"), lambda file: file.unlink()])
def test_a_prepared_file_that_was_altered_stops_the_training(root, target, paths, alter):
    prepare(target, paths, processes=1)
    datamodule(root)
    file = target.file(str(root / "images" / "7_left.jpeg"))
    alter(file)
    message = refusal(lambda: datamodule(root))
    assert message.startswith(f"{file} is missing or was modified; rerun resnet-lab prepare")
    prepare(target, paths, processes=1)
    assert len(datamodule(root, val_fraction=0).rows("train")) == len(TRAIN)


def test_bad_photographs_of_a_prepared_set_are_dropped_too(root, target, paths):
    (root / "images" / "7_left.jpeg").write_bytes(b"x")
    prepare(target, paths, processes=1)
    assert "7_left.jpeg: no image of a known format" in refusal(lambda: datamodule(root))
    assert datamodule(root, on_bad_image="drop").dropped["skipped_images"] == 1


def test_a_prepared_set_stores_pixel_hashes_and_an_older_one_computes_them(root, target, paths, monkeypatch):
    prepare(target, paths, processes=1)
    expected = datamodule(root).table["decoded"]
    assert expected.tolist() == [examine(path)[2] for path in datamodule(root).table["path"]]
    frame = pd.read_csv(target.index_file, keep_default_na=False)
    frame.drop(columns="decoded").to_csv(target.index_file, index=False)
    built = datamodule(root)
    assert "" not in set(built.table["prepared"])
    assert built.table["decoded"].tolist() == expected.tolist()
    prepare(target, paths, processes=1)  # nothing is prepared again
    assert datamodule(root).table["decoded"].tolist() == expected.tolist()


def test_hashes_that_look_like_numbers_stay_text(target, paths):
    prepare(target, paths[:1], processes=1)
    frame = pd.read_csv(target.index_file, dtype=str, keep_default_na=False)
    numbers = {"digest": "0123", "prepared": "12e34", "decoded": "1234567890123456"}
    frame.assign(**numbers).to_csv(target.index_file, index=False)
    (row,) = target.entries().values()
    assert {key: row[key] for key in numbers} == numbers


def test_rows_of_an_index_are_stored_by_column_and_take_the_place_of_earlier_ones():
    rows = module.Rows(module.COLUMNS)
    facts = dict.fromkeys(module.FACTS, 0.25)
    for name, width in (("b", 1), ("a", 2), ("b", 3)):
        rows[name] = {"image": name, "bytes": 5, "changed": 2**60, "width": width, "height": 4, **facts}
    assert (len(rows), list(rows), rows["b"]["width"], rows["b"]["decoded"]) == (2, ["b", "a"], 3, "")
    assert rows.frame()[["image", "changed", "width", "dark"]].to_numpy().tolist() == [
        ["a", 2**60, 2, 0.25],
        ["b", 2**60, 3, 0.25],
    ]
    again = module.Rows(module.COLUMNS)
    again.add(rows.frame())
    assert dict(again) == dict(rows)
    assert again.frame(["b"])["width"].tolist() == [3]


def test_two_simultaneous_commands_take_turns(target, paths, caplog):
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: prepare(target, paths, processes=1), range(2))
    pd.testing.assert_frame_equal(one.astype(str), other.astype(str))
    assert "waiting for another process" in caplog.text
    assert not target.journal_file.exists()


@pytest.mark.parametrize("rules", [RULES._replace(strict=False), RULES._replace(max_pixels=100)])
@pytest.mark.parametrize("default_first", [True, False])
def test_photographs_that_other_rules_judge_otherwise_are_prepared_again(target, paths, rules, default_first, caplog):
    damaged = Path(paths[0])
    damaged.write_bytes(damaged.read_bytes()[:-200] + b"\xff\xd9")  # only the default finds it; 100 pixels find all
    sets = [target, replace(target, rules=rules)]
    first, second = sets if default_first else sets[::-1]
    bad = {target: 1, sets[1]: len(paths) if rules.max_pixels == 100 else 0}
    assert (prepare(first, paths, 1)["defect"] != "").sum() == bad[first]
    assert second.lookup(pd.DataFrame({"path": paths})) is None
    assert "(made with another data.strict_jpeg or data.max_pixels)" in caplog.text
    assert (prepare(second, paths, 1)["defect"] != "").sum() == bad[second]
    assert second.lookup(pd.DataFrame({"path": paths})) is not None


def test_rows_of_a_version_without_rules_are_used_and_only_damage_is_judged_again(target, paths, monkeypatch):
    damaged = Path(paths[0])
    damaged.write_bytes(damaged.read_bytes()[:-200] + b"\xff\xd9")
    prepare(target, paths, 1)
    pd.read_csv(target.index_file, dtype=str, keep_default_na=False).drop(columns="rules").to_csv(
        target.index_file, index=False
    )
    lax, rows = replace(target, rules=RULES._replace(strict=False)), pd.DataFrame({"path": paths})
    assert lax.lookup(rows) is not None
    again, make = list[str](), module.prepare_photograph
    monkeypatch.setattr(module, "prepare_photograph", lambda *given: again.append(given[1]) or make(*given))
    assert (prepare(lax, paths, 1)["defect"] == "").all()
    assert again == paths[:1]
