"""The drawn photographs: their content, and the layout of their folder."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from resnet_lab.data import fundus, synthetic
from resnet_lab.data.fundus import GRADES, draw_fundus, write_grades
from resnet_lab.data.synthetic import SHARES, write_synthetic
from resnet_lab.errors import UserError

SMALL = {"seed": 0, "train_patients": 8, "test_patients": 5, "size": 32, "balance": "studies"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def column(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.csv").read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "set"
    write_synthetic(root, **SMALL)
    return root


@pytest.fixture
def healthy(monkeypatch):
    """Draw an eye without lesions."""

    def draw(eye, patient):
        with monkeypatch.context() as patch:
            patch.setattr(fundus, "_draw_lesions", lambda *_: None)
            return draw_fundus(0, eye, patient, 0, 64).astype(float)

    return draw


def test_a_photograph_is_a_function_of_its_arguments():
    first = draw_fundus(3, "left", 7, 0, 64)
    assert first.shape == (64, 85, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw_fundus(3, "left", 7, 0, 64))
    for other in ((3, "right", 7, 0), (3, "left", 8, 0), (3, "left", 7, 1), (1, "left", 7, 0)):
        assert np.abs(first.astype(int) - draw_fundus(*other, 64)).max() > 30


def test_the_field_is_round_and_reddish_on_black():
    for patient in range(10):
        image = draw_fundus(patient % 5, "right", patient, 0, 64)
        assert np.concatenate((image[:6, :8], image[-6:, -8:])).mean() < 8
        red, green, blue = image[24:40, 34:50].reshape(-1, 3).mean(axis=0)
        assert red > green > blue
        assert red > 40


def test_lesions_grow_with_the_grade(healthy):
    change = np.zeros(5)
    for patient in range(16):
        without = healthy("left", patient)
        for grade in range(5):
            change[grade] += np.abs(draw_fundus(grade, "left", patient, 0, 64) - without).mean() / 16
    assert (np.diff(change) > 0.1).all(), change
    assert change[0] < change[1] / 2


def test_the_optic_disc_is_on_the_nose_side(healthy):
    for eye, nasal in (("left", slice(0, 42)), ("right", slice(43, 85))):
        mean = np.mean([healthy(eye, patient)[..., 1] for patient in range(8)], axis=0)
        brightest = np.unravel_index(cv2.GaussianBlur(mean, (0, 0), 2).argmax(), mean.shape)
        assert brightest[1] in range(85)[nasal]


def test_both_eyes_share_the_pigment_but_not_the_exposure(healthy):
    eyes = np.array(
        [[healthy(eye, patient)[20:44, 30:55].mean(axis=(0, 1)) for eye in ("left", "right")] for patient in range(16)]
    )
    hue = eyes[..., 1] / eyes[..., 0]
    assert np.corrcoef(hue.T)[0, 1] > 0.6
    exposure = eyes[..., 0]
    assert np.abs(exposure[:, 0] / exposure[:, 1] - 1).mean() > 0.05


def test_the_folder_has_the_layout_of_the_studies(folder):
    assert sorted(file.name for file in folder.iterdir()) == [
        "images",
        "recipe.json",
        "test_img.csv",
        "test_label.csv",
        "train_img.csv",
        "train_label.csv",
    ]
    assert json.loads((folder / "recipe.json").read_text()) == {**SMALL, "drawing_version": synthetic.DRAWING_VERSION}
    names = column(folder, "train_img") + column(folder, "test_img")
    assert sorted(f"{name}.jpeg" for name in names) == sorted(file.name for file in (folder / "images").iterdir())
    assert sorted(names) == sorted(f"{patient}_{eye}" for patient in range(1, 14) for eye in ("left", "right"))
    for split, patients in (("train", 8), ("test", 5)):
        labels = column(folder, f"{split}_label")
        assert len(labels) == len(column(folder, f"{split}_img")) == 2 * patients  # no header
        assert set(labels) == set("01234")


def test_rows_of_names_and_labels_belong_together(folder):
    for split in ("train", "test"):
        rows = zip(column(folder, f"{split}_img"), column(folder, f"{split}_label"), strict=True)
        for name, label in list(rows)[::2]:
            patient, eye = name.split("_")
            stored = cv2.imread(str(folder / "images" / f"{name}.jpeg"))[..., ::-1].astype(float)
            distance = [np.abs(stored - draw_fundus(g, eye, int(patient), 0, 32)).mean() for g in range(5)]
            assert distance[int(label)] == min(distance)
            assert min(distance) < 6


def test_no_patient_is_in_both_splits(folder):
    train, test = ({name.split("_")[0] for name in column(folder, f"{s}_img")} for s in ("train", "test"))
    assert (len(train), len(test), train & test) == (8, 5, set())


def test_grades_follow_the_shares_and_fellow_eyes_agree():
    rng = np.random.default_rng(0)
    pairs = synthetic._assign_grades(rng, 1000, SHARES["studies"])
    assert np.bincount(pairs.ravel()).tolist() == [1470, 139, 300, 50, 41]
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    assert apart.max() == 1
    assert 0.03 < apart.mean() < 0.15
    assert (pairs[:, 0] > pairs[:, 1]).any()
    assert (pairs[:, 0] < pairs[:, 1]).any()
    assert np.bincount(synthetic._assign_grades(rng, 50, SHARES["balanced"]).ravel()).tolist() == [20] * 5


@pytest.mark.parametrize(("patients", "least"), [(3, 1), (4, 1), (5, 2), (20, 2)])
def test_few_patients_show_every_grade(patients, least):
    counts = synthetic._allocate(2 * patients, SHARES["studies"])
    assert counts.sum() == 2 * patients
    assert counts.min() == least


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_processes(folder, tmp_path):
    write_synthetic(tmp_path / "set", **SMALL, processes=2)
    assert contents(tmp_path / "set") == contents(folder)


def test_a_complete_folder_is_not_changed(folder, monkeypatch):
    monkeypatch.setattr(synthetic, "_draw_all", lambda *_: pytest.fail("drew again"))
    write_synthetic(folder, **SMALL)


def test_another_recipe_in_the_same_folder_is_refused(folder):
    before = contents(folder)
    with pytest.raises(UserError, match=r"set was drawn with seed=0 instead of 1; delete it"):
        write_synthetic(folder, **{**SMALL, "seed": 1})
    assert contents(folder) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no recipe\.json"):
        write_synthetic(tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("key", "value"), [("seed", -1), ("train_patients", 2), ("test_patients", 0), ("size", 8), ("balance", "fair")]
)
def test_invalid_arguments_are_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=f"^{key}={value}: "):
        write_synthetic(tmp_path / "set", **{**SMALL, key: value})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def draw(*_):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return np.zeros((32, 42, 3), np.uint8)

    monkeypatch.setattr(synthetic, "draw_fundus", draw)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", **SMALL)
    assert len(drawn) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_slower_of_two_writers_accepts_the_same_set_only(tmp_path, monkeypatch, seed):
    original = synthetic._draw_all

    def overtaken(*arguments):
        monkeypatch.setattr(synthetic, "_draw_all", original)
        write_synthetic(tmp_path / "set", **{**SMALL, "seed": seed})
        original(*arguments)

    monkeypatch.setattr(synthetic, "_draw_all", overtaken)
    if seed == SMALL["seed"]:
        write_synthetic(tmp_path / "set", **SMALL)
    else:
        with pytest.raises(UserError, match="seed=1 instead of 0"):
            write_synthetic(tmp_path / "set", **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["set"]
    assert json.loads((tmp_path / "set" / "recipe.json").read_text())["seed"] == seed


def test_the_picture_for_the_readme_shows_five_grades(tmp_path):
    write_grades(tmp_path / "images" / "grades.png")
    picture = cv2.imread(str(tmp_path / "images" / "grades.png"))
    photographs, captions = picture[:192], picture[192:]
    assert picture.shape[1] == len(GRADES) * 256
    for grade in range(5):
        place = slice(256 * grade, 256 * (grade + 1))
        assert photographs[:, place].max() > 100
        assert (captions[:, place] < 100).sum() > 100


@pytest.mark.slow
def test_drawing_needs_no_torch():
    code = "import sys, resnet_lab.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
