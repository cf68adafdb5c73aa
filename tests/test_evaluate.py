"""A trained model on other splits, other data sets and unlabeled photographs."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fake_data import TRAIN, refusal, write_class_folders, write_kaggle, write_labels, write_medmnist, write_studies
from PIL import Image
from sklearn.metrics import roc_auc_score

from resnet_lab import evaluate, predict
from resnet_lab.command_line import run_command
from resnet_lab.config import build, compose_config
from resnet_lab.data import datamodule as datamodule_module
from resnet_lab.data.prepared import prepare
from resnet_lab.module import Classifier
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import MINUS
from resnet_lab.trained import load
from resnet_lab.training import guarded

pytestmark = pytest.mark.usefixtures("empty_pictures")


@pytest.fixture
def trained(trained_run) -> RunFolder:
    return trained_run("trainer.max_epochs=1", "data.mean=train")


def damage(run: RunFolder, value: float) -> Path:
    """Set one weight of the best checkpoint to NaN."""
    checkpoint = torch.load(run.best_checkpoint, weights_only=True)
    checkpoint["state_dict"]["model.layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(checkpoint, run.best_checkpoint)
    return run.best_checkpoint


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Forbidden:
    """Pickle that would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.slow
def test_the_runs_own_test_split_scores_as_it_did(trained: RunFolder) -> None:
    before = contents(trained.path)
    stored = {path.name: path.read_text() for path in trained.path.glob("*_test.csv")}
    for _ in range(2):  # equal inputs have the same folder
        evaluate.command([str(trained.path)])
        (folder,) = trained.path.glob("evaluation_*")
        assert {name: (folder / name).read_text() for name in stored} == stored
    assert {file: content for file, content in contents(trained.path).items() if folder not in file.parents} == before


def test_the_scores_of_an_evaluation_have_intervals(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    evaluate.command([str(trained.path)])
    table = pd.read_csv(trained.path / "evaluation_best_test" / "scores_test.csv", index_col="score")
    assert list(table.columns) == ["value", "low", "high", "baseline"]
    run = read_run(trained)
    assert table["value"].to_dict() == pytest.approx({name: run.scores[name] for name in table.index}, abs=1e-5)
    assert table["baseline"].to_dict() == pytest.approx({name: run.baseline[name] for name in table.index}, abs=1e-5)
    board = tables_of([run])[0]
    assert tuple(table.loc["qwk", ["low", "high"]]) == pytest.approx(board.estimates["qwk"].interval(0), abs=1e-5)
    value, low, high = (f"{each:.3f}".replace("-", MINUS) for each in table.loc["qwk", ["value", "low", "high"]])
    line = f"QWK {value}, 95 % interval {low} to {high} (this model, 16 images of 8 patients)"
    out = "".join(capsys.readouterr())
    assert line in out


def test_without_an_interval_the_reason_is_named(tmp_path: Path) -> None:
    file = tmp_path / "predictions_test.csv"
    file.write_text("image,patient,target,prediction,p_0,p_1\na,x,0,0,1,0\nb,x,1,0,1,0\n")
    table, line = evaluate.scores_of(file, ordered=False, majority=0)
    assert line == "accuracy 50.00 %, no interval: all images are of one patient"
    assert table["low"].isna().all()


def test_one_predicted_class_has_no_interval(tmp_path: Path) -> None:
    file = tmp_path / "predictions_test.csv"
    for chosen in (0, 4):  # far from 0, rounding must not leave an interval of 1e-15
        given = ",".join("0.6" if grade == chosen else "0.1" for grade in range(5))
        rows = [f"{number},{number},{number % 5},{chosen},{given}" for number in range(43)]
        file.write_text("\n".join(["image,patient,target,prediction,p_0,p_1,p_2,p_3,p_4", *rows, ""]))
        table, line = evaluate.scores_of(file, ordered=True, majority=0)
        assert line == "QWK 0.000, no interval: one class predicted for all of 43 images of 43 patients"
        kappa = table.set_index("score").loc["qwk"]
        assert kappa["value"] == 0
        assert kappa[["low", "high"]].isna().all()


def test_another_split_or_checkpoint_leaves_the_runs_own_files_alone(trained: RunFolder) -> None:
    before = trained.predictions_file("val").read_text()
    evaluate.command([str(trained.last_checkpoint), "split=val"])
    folder = RunFolder(trained.path / "evaluation_last_val")
    assert folder.predictions_file("val").read_text() == before  # with one epoch, last is best
    evaluate.command([str(trained.path), "split=train"])
    rows = pd.read_csv(RunFolder(trained.path / "evaluation_best_train").predictions_file("train"))
    assert len(rows) == sum(trained.read_status()["class_counts"]["train"])


@pytest.mark.slow
def test_a_data_set_that_changed_after_the_training_is_named(
    make_run, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(photographs, tmp_path / "copy")
    run = make_run("trainer.max_epochs=1", f"data.root={root}")
    assert guarded(run) == 0
    changed = f"the data set in {root} has changed"
    evaluate.command([str(run.path)])
    assert changed not in "".join(capsys.readouterr())
    labels = (root / "test_label.csv").read_text().splitlines()
    labels[1] = str((int(labels[1]) + 1) % 5)
    (root / "test_label.csv").write_text("\n".join(labels))
    evaluate.command([str(run.path), "split=val"])
    assert changed not in "".join(capsys.readouterr())
    evaluate.command([str(run.path)])
    assert f"test has other images or labels than in the run: {changed}" in "".join(capsys.readouterr())
    evaluate.command([str(run.path), "data.max_images=20"])  # the user chose other images
    assert changed not in "".join(capsys.readouterr())


def test_another_data_set_gets_the_preprocessing_of_the_model(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    out = tmp_path / "elsewhere"
    evaluate.command(
        [str(trained.path), "split=train", f"out={out}", "data=retinopathy", f"data.root={root}", "data.val_fraction=0"]
    )
    rows = pd.read_csv(RunFolder(out).predictions_file("train"), dtype={"image": str})
    assert sorted(rows["image"]) == sorted(TRAIN)
    origin = load(str(trained.path)).origin
    config = evaluate.override(origin, ["data=retinopathy", f"data.root={root}"])
    assert config["data"]["image_size"] == 24  # conf/data/retinopathy.yaml has 224
    assert "was trained with" not in "".join(capsys.readouterr())
    evaluate.override(origin, ["data.image_size=32", "data.crop=16", "data.batch_size=3"])
    out = "".join(capsys.readouterr())
    assert out.count("was trained with") == 2
    assert "data.image_size=32: the network was trained with 24," in out
    assert "data.crop=16: the network was trained with null," in out
    assert "normalized as in the training" in refusal(evaluate.override, origin, ["data.mean=[0,0,0]"])
    _, _, datamodule = evaluate.evaluate_split(load(str(trained.path)), config, "train")
    assert datamodule.mean.tolist() == pytest.approx(origin["mean"])


def test_wrong_data_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "folders", {"train/cat": 3, "train/dog": 3})
    message = refusal(
        evaluate.command,
        [str(trained.path), "split=train", "data=class_folders", f"data.root={root}", "data.val_fraction=0"],
    )
    assert "cat is not one of the classes no DR, mild" in message
    names = "data.class_names=[cat,dog]"
    message = refusal(
        evaluate.command,
        [str(trained.path), "split=train", "data=class_folders", f"data.root={root}", "data.val_fraction=0", names],
    )
    assert "has 2 classes" in message
    assert "trained for 5 (no DR, mild" in message
    message = refusal(evaluate.command, [str(trained.path), "split=dev"])
    assert "split=dev: choose train, val or test" in message
    for key in ("model.depth=50", "spilt=val", "trainer.max_epochs=77", "data.rotation=5"):
        assert refusal(evaluate.command, [str(trained.path), key]).startswith(f"{key}: ")
    assert "data.image_size=[1" in refusal(evaluate.command, [str(trained.path), "data.image_size=[1"])


def test_a_misspelled_key_is_refused(trained: RunFolder) -> None:
    assert "data.rooot" in refusal(evaluate.command, [str(trained.path), "data.rooot=x"])


def test_checkpoints_of_other_programs_are_refused(trained: RunFolder, tmp_path: Path) -> None:
    foreign, malicious, broken = (tmp_path / name for name in ("foreign.ckpt", "malicious.ckpt", "broken.ckpt"))
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, foreign)
    assert "is not a checkpoint of resnet_lab" in refusal(evaluate.command, [str(foreign)])
    torch.save({"state_dict": {}, "resnet_lab": Forbidden(tmp_path / "proof")}, malicious)
    assert "malicious.ckpt" in refusal(evaluate.command, [str(malicious)])
    assert not (tmp_path / "proof").exists()
    broken.write_bytes(trained.last_checkpoint.read_bytes()[:1000])
    assert "broken.ckpt" in refusal(evaluate.command, [str(broken)])


def test_weights_of_another_architecture_are_refused(trained: RunFolder, tmp_path: Path) -> None:
    checkpoint = torch.load(trained.last_checkpoint, weights_only=True)
    checkpoint["resnet_lab"]["config"]["model"]["depth"] = 14
    torch.save(checkpoint, tmp_path / "other.ckpt")
    message = refusal(evaluate.command, [str(tmp_path / "other.ckpt")])
    assert "other.ckpt" in message


@pytest.mark.slow
def test_predictions_without_labels(trained: RunFolder, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    predict.command([str(trained.path), str(photographs / "images"), f"out={out}"])
    rows = pd.read_csv(out, dtype={"image": str})
    assert list(rows.columns) == ["image", "patient", "class", "prediction", *(f"p_{k}" for k in range(5))]
    grades = ["no DR", "mild", "moderate", "severe", "proliferative"]
    assert list(rows["class"]) == [grades[number] for number in rows["prediction"]]
    assert len(rows) == 64
    known = pd.read_csv(trained.predictions_file("test"), dtype={"image": str}).set_index("image")
    ours = rows.assign(image=rows["image"].str.removesuffix(".jpeg")).set_index("image").loc[known.index]
    assert ours["p_0"].to_numpy() == pytest.approx(known["p_0"].to_numpy(), abs=2e-3)  # bf16 in other batches
    image = sorted((photographs / "images").iterdir())[0]
    predict.command([str(trained.path), str(image), f"out={out}", "overwrite=true"])
    assert list(pd.read_csv(out)["image"]) == [image.name]
    assert "does not exist" in refusal(predict.command, [str(trained.path), str(tmp_path / "nothing")])
    (tmp_path / "empty").mkdir()
    assert "no image" in refusal(predict.command, [str(trained.path), str(tmp_path / "empty")])


def test_predict_counts_the_images_that_it_leaves_out(
    trained: RunFolder, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    image = sorted((photographs / "images").iterdir())[0]
    shutil.copy(image, tmp_path / "new")
    words = [str(trained.path), str(tmp_path / "new"), f"out={tmp_path / 'new.csv'}", "data.on_bad_image=drop"]
    predict.command(words)
    assert capsys.readouterr().out.endswith(")\n")
    (tmp_path / "new" / "broken.jpg").write_bytes(b"abc")
    predict.command([*words, "overwrite=true"])
    assert capsys.readouterr().out.endswith("); without 1 image that cannot be read\n")
    assert list(pd.read_csv(tmp_path / "new.csv")["image"]) == [image.name]


def test_a_checkpoint_calls_no_external_function(trained: RunFolder, tmp_path: Path) -> None:
    checkpoint = torch.load(trained.last_checkpoint, weights_only=True)
    foreign, nested = tmp_path / "foreign.ckpt", tmp_path / "nested.ckpt"
    target = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "proof")}
    checkpoint["resnet_lab"]["config"]["loss"] = target
    torch.save(checkpoint, foreign)
    assert "loss._target_ pathlib.Path.touch is not called, as it is not one of resnet_lab's" in refusal(
        evaluate.command, [str(foreign)]
    )
    checkpoint["resnet_lab"]["config"]["loss"] = {
        "_target_": "resnet_lab.objectives.cross_entropy",
        "label_smoothing": {"_target_": "builtins.open", "file": str(tmp_path / "proof"), "mode": "w"},
    }
    torch.save(checkpoint, nested)
    assert "loss.label_smoothing._target_: " in refusal(evaluate.command, [str(nested)])
    assert not (tmp_path / "proof").exists()


def test_folders_are_matched_to_classes_by_name(trained: RunFolder, tmp_path: Path) -> None:
    names = ["mild", "moderate", "no DR", "proliferative", "severe"]
    root = write_class_folders(tmp_path / "folders", {f"test/{name}": 2 for name in names} | {"train/mild": 1})
    out = tmp_path / "out"
    evaluate.command(
        [str(trained.path), f"out={out}", "data=class_folders", f"data.root={root}", "data.val_fraction=0"]
    )
    rows = pd.read_csv(RunFolder(out).predictions_file("test"))
    targets = dict(zip(rows["image"].str.split("/").str[1], rows["target"], strict=True))
    assert targets == {"no DR": 0, "mild": 1, "moderate": 2, "severe": 3, "proliferative": 4}


def test_an_unwritable_output_is_refused_first(trained: RunFolder, photographs: Path, tmp_path: Path) -> None:
    assert "is a folder" in refusal(predict.command, [str(trained.path), str(photographs), f"out={tmp_path}"])
    for name in ("grades", "grades.xlsx"):
        message = refusal(predict.command, [str(trained.path), str(photographs), f"out={tmp_path / name}"])
        assert message.endswith(f"predict writes a CSV file; name it {tmp_path / 'grades.csv'}")
    assert "data=foo: there is no such choice" in refusal(evaluate.command, [str(trained.path), "data=foo"])
    assert "trainer.devices=abc" in refusal(evaluate.command, [str(trained.path), "trainer.devices=abc"])


def test_raw_photographs_are_predicted_like_prepared_ones(
    make_run, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("trainer.max_epochs=1", "data.eye_crop=true", "data.local_mean=true")
    data = build("data", run.read_config()["data"])
    paths = sorted(map(str, (photographs / "images").iterdir()))
    prepare(data.prepared_set, paths, processes=1)
    assert guarded(run) == 0
    assert run.read_status()["pixels"] == "prepared"
    trained_on = pd.read_csv(run.predictions_file("test")).set_index("image")
    predict.command([str(run.path), str(photographs / "images"), f"out={tmp_path / 'raw.csv'}"])
    raw = pd.read_csv(tmp_path / "raw.csv").set_index("image").rename(index=lambda name: Path(name).stem)
    columns = [f"p_{k}" for k in range(5)]
    differences = (raw.loc[trained_on.index, columns] - trained_on[columns]).abs()
    assert differences.to_numpy().max() <= 5e-5  # rounding: predict compresses the photographs in the same way
    assert "trained on a prepared set (JPEG), and predict reads the originals with the same" in capsys.readouterr().out
    model = load(run.path)
    files = [path for path in paths if Path(path).stem in trained_on.index]
    arrays = [np.asarray(Image.open(file)) for file in files]
    for images in (files, arrays):
        found = model(images)[model.class_names].set_axis([Path(file).stem for file in files])
        assert np.abs(found.loc[trained_on.index].to_numpy() - trained_on[columns].to_numpy()).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [("data.folds=2", "data.fold=1"), ("data.splits={train: test, test: train}",), ("data.max_per_class=4",)],
)
def test_predict_takes_all_photographs_whatever_the_splits_of_the_run(make_run, photographs, tmp_path, keys) -> None:
    run = make_run("trainer.max_epochs=1", "data.val_fraction=0", *keys)
    assert guarded(run) == 0
    predict.command([str(run.path), str(photographs / "images"), f"out={tmp_path / 'all.csv'}"])
    assert len(pd.read_csv(tmp_path / "all.csv")) == len(list((photographs / "images").iterdir()))


@pytest.mark.slow
def test_data_without_a_train_split_can_be_evaluated_on(
    make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_medmnist(tmp_path / "arrays" / "retinamnist.npz", {"train": [0, 1, 2, 3, 4] * 4, "val": [0, 1]}).parent
    run = make_run("data=retinamnist", f"data.root={root}", "trainer.max_epochs=1", "data.image_size=28")
    assert guarded(run) == 0
    write_medmnist(root / "other.npz", {"test": [4, 3, 2, 1, 0, 0]})
    evaluate.command([str(run.path), "data.file=other.npz", f"out={tmp_path / 'out'}"])
    assert len(pd.read_csv(RunFolder(tmp_path / "out").predictions_file("test"))) == 6
    out = capsys.readouterr().out
    assert "images test [2, 1, 1, 1, 1]" in out
    assert "has no image" not in out
    write_medmnist(root / "ill.npz", {"test": [4, 3, 4, 3, 4, 4]})
    evaluate.command([str(run.path), "data.file=ill.npz", f"out={tmp_path / 'ill'}"])
    assert "test has no image of no DR, mild, moderate" in capsys.readouterr().out
    broken = make_run("data=retinamnist", f"data.root={root}", "data.file=other.npz", name="broken")
    assert guarded(broken) != 0
    assert "has no split train, only test; to train on another split, name it" in broken.read_status()["error"]


def test_every_split_is_scored_by_all_metrics(trained: RunFolder) -> None:
    model = load(str(trained.path))
    trainer, module, datamodule = evaluate.evaluate_split(model, evaluate.override(model.origin, []), "train")
    of_test = {name.split("/")[1] for name in trained.read_status()["metrics"] if name.startswith("test/")}
    assert {name.split("/")[1] for name in trainer.callback_metrics} == of_test
    rows, probabilities = datamodule.rows("train"), module.predictions["train"].probabilities
    expected = sum(roc_auc_score(rows["target"] == k, probabilities[:, k]) for k in range(5)) / 5
    assert float(trainer.callback_metrics["train/auroc"]) == pytest.approx(expected, abs=1e-5)


def test_the_baseline_is_the_majority_that_the_model_was_trained_on(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_kaggle(tmp_path / "foreign", {f"{number}_left": 2 if number < 7 else 0 for number in range(10)})
    keys = ["data=retinopathy", f"data.root={root}", "data.val_fraction=0"]
    evaluate.command([str(trained.path), "split=train", *keys])
    line = next(line for line in capsys.readouterr().out.splitlines() if "always" in line)
    assert line.split()[:5] == ["always", "“no", "DR”", "0.0000", "0.3000"]  # 0.7000: the external majority


def copies(source: Path, folder: Path, names: list[str]) -> Path:
    """Write the same photographs under other names; the second has other metadata, the third is encoded again."""
    folder.mkdir()
    for number, name in enumerate(names):
        shutil.copy(source / f"{name}.jpeg", folder / f"copy{number}.jpeg")
    data = (folder / "copy1.jpeg").read_bytes()
    (folder / "copy1.jpeg").write_bytes(data[:2] + b"\xff\xfe\x00\x08a note" + data[2:])
    with Image.open(folder / "copy2.jpeg") as image:
        image.convert("RGB").save(folder / "copy2.jpeg", quality=50)
    return folder


@pytest.mark.slow
def test_images_that_the_model_was_trained_on_are_counted(
    trained: RunFolder, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(str(trained.path))
    data = evaluate.evaluate_split(model, evaluate.override(model.origin, []), "val")[2]
    trained_on, held_out = (data.rows(split)["image"].tolist() for split in ("train", "val"))
    assert "training images" not in capsys.readouterr().out
    folder = copies(photographs / "images", tmp_path / "copies", trained_on[:3] + held_out[:2])
    write_labels(tmp_path / "train.csv", {f"copy{number}": number for number in range(5)}, "image,level")
    keys = ["data=retinopathy", f"data.root={tmp_path}", "data.images=copies", "data.val_fraction=0"]
    for command, words, count in (
        (evaluate.command, ["split=train", *keys], "2 of the 5"),
        (predict.command, [str(folder), f"out={tmp_path / 'predictions.csv'}"], "2 of the 5"),
        (evaluate.command, ["split=train"], f"{len(trained_on)} of the {len(trained_on)}"),
    ):
        command([str(trained.path), *words])
        assert f"{count} images are training images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("a", "the image is a training image of"),
        ("ab", "1 of the 2 images is a training image of"),
        ("aab", "2 of the 3"),
    ],
)
def test_training_images_are_counted_in_correct_english(
    caplog: pytest.LogCaptureFixture, images: str, words: str
) -> None:
    model: Any = SimpleNamespace(origin={"train_images": "a" * 16}, file="best.ckpt")
    evaluate.count_training_images(model, pd.DataFrame({"decoded": [letter * 16 for letter in images]}))
    assert words in caplog.text


def test_a_checkpoint_without_hashes_is_reported(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(trained.best_checkpoint, weights_only=True)
    assert len(checkpoint["resnet_lab"].pop("train_images")) == 16 * 32  # 32 training images
    torch.save(checkpoint, trained.best_checkpoint)
    evaluate.command([str(trained.path)])
    assert "has no hashes of its training images" in capsys.readouterr().out


def full_disk(path: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device")


def test_a_failed_evaluation_or_prediction_leaves_nothing(
    trained: RunFolder, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run, out = sorted(tmp_path.rglob("*")), str(trained.path), f"out={tmp_path / 'a' / 'b'}"
    refusal(evaluate.command, [run, "split=dev"])
    refusal(evaluate.command, [run, "split=dev", out])
    refusal(evaluate.command, [run, f"data.root={tmp_path / 'nothing'}"])
    refusal(predict.command, [run, str(tmp_path / "nothing"), f"{out}.csv"])
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    for command, words in ((evaluate.command, [out]), (predict.command, [str(photographs / "images"), f"{out}.csv"])):
        with pytest.raises(OSError, match=r"No space left on device: '.*/a/b"):
            command([run, *words])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_folder_is_refused_before_the_data_is_read(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, line in (("file", "file: name a folder, not a file"), ("file/below", "file is not a folder")):
        words = [str(trained.path), f"out={tmp_path / out}", f"data.root={tmp_path / 'nothing'}"]
        assert f"{tmp_path / line}" in refusal(evaluate.command, words)


def test_an_evaluations_name_is_short_and_unique(tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    sets = [[], ["data=retinopathy", f"data.root=/data/{'long' * 30}"], ["data=retinopathy", f"data.root=/{'d' * 90}"]]
    sets += [["data.test_csv=one.csv"], ["data.test_csv=two.csv"], ["trainer.precision=32-true"]]
    folders = [evaluate.own_folder(file, "test", overrides, "data") for overrides in sets]
    folders += [
        evaluate.own_folder(file, "val", [], "data"),
        evaluate.own_folder(file, "test", ["data.test_csv=one.csv"], "/other"),
        evaluate.own_folder(file.with_name(f"{'epoch' * 30}.ckpt"), "test", [], "data"),
        evaluate.own_folder(file.with_name(f"{'epoch' * 30}2.ckpt"), "test", [], "data"),
    ]
    names = [folder.path.name for folder in folders]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 60
    assert names[0] == "evaluation_best_test"
    assert {folder.path.parent for folder in folders} == {tmp_path / "run"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_nan_weights_is_refused_before_its_data_is_read(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, value: float
) -> None:
    nothing, out = str(tmp_path / "nothing"), f"out={tmp_path / 'out.csv'}"
    Path(nothing).mkdir()
    file, before = damage(trained, value=value), sorted(tmp_path.rglob("*"))
    for command, words in ((evaluate.command, [f"data.root={nothing}"]), (predict.command, [nothing, out])):
        monkeypatch.setattr(sys, "argv", ["verb", str(trained.path), *words])
        assert run_command(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: 1 of ")
        assert "model.layer2.0.conv1.weight" in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def undefined_third() -> Iterator[None]:
    """Make every model predict NaN for the third image of the last tested split."""
    gather = Classifier._gather

    def undefined(self: Classifier, kept: list) -> tuple[torch.Tensor, ...]:
        index, outputs, *targets = gather(self, kept)
        if not self.outputs:
            outputs[2] = float("nan")
        return (index, outputs, *targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "_gather", undefined)
        yield


def test_images_without_a_prediction_are_named_and_nothing_is_written(
    trained: RunFolder, photographs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = contents(trained.path)
    request.getfixturevalue("undefined_third")  # after the training
    message = refusal(evaluate.command, [str(trained.path)])
    assert "1 of 16 images are NaN or infinite (test1_left)" in message
    message = refusal(predict.command, [str(trained.path), str(photographs / "images"), f"out={tmp_path / 'p.csv'}"])
    assert "1 of 64 images are NaN or infinite (test1_left.jpeg)" in message
    assert contents(trained.path) == before
    assert not (tmp_path / "p.csv").exists()


def test_a_job_does_not_write_undefined_predictions(make_run, undefined_third: None) -> None:
    run = make_run("trainer.max_epochs=1")
    assert guarded(run) == 1
    assert run.read_status()["state"] == "failed"
    assert "1 of 16 images are NaN or infinite" in run.read_status()["error"]
    assert not list(run.path.glob("predictions_*"))


def test_a_run_that_lost_its_best_checkpoint_is_not_scored_by_its_last(
    trained: RunFolder, photographs: Path, tmp_path: Path
) -> None:
    trained.best_checkpoint.unlink()
    before = contents(trained.path)
    for command, words in ((evaluate.command, []), (predict.command, [str(photographs), f"out={tmp_path / 'p.csv'}"])):
        message = refusal(command, [str(trained.path), *words])
        assert f"{trained.best_checkpoint} is missing" in message
        assert str(trained.last_checkpoint) in message
    assert contents(trained.path) == before
    trained.best_checkpoint.write_bytes(b"damaged")
    assert f"name {trained.last_checkpoint}" in refusal(evaluate.command, [str(trained.path)])
    trained.best_checkpoint.unlink()
    evaluate.command([str(trained.last_checkpoint)])
    assert {file: content for file, content in contents(trained.path).items() if file in before} == before
    assert RunFolder(trained.path / "evaluation_last_test").predictions_file("test").is_file()


@pytest.mark.slow
def test_a_run_without_validation_is_scored_by_its_last_epoch(make_run) -> None:
    run = make_run("trainer.max_epochs=1", "data.val_fraction=0")
    assert guarded(run) == 0
    assert run.read_status()["best_checkpoint"] is None
    evaluate.command([str(run.path)])
    evaluated = RunFolder(run.path / "evaluation_last_test").predictions_file("test")
    assert evaluated.read_text() == run.predictions_file("test").read_text()


def test_an_evaluation_is_not_written_into_a_run_or_over_another(trained: RunFolder, tmp_path: Path) -> None:
    before = contents(trained.path)
    (tmp_path / "link").symlink_to(trained.path)
    for folder in (trained.path, tmp_path / "link", trained.path / ".." / "run"):
        words = [str(trained.path), f"out={folder}", "overwrite=true"]
        assert "is a run folder" in refusal(evaluate.command, words)
    assert contents(trained.path) == before
    out = f"out={tmp_path / 'out'}"
    evaluate.command([str(trained.path), out])
    stored = (tmp_path / "out" / "predictions_test.csv").read_text()
    assert "predictions_test.csv exists" in refusal(evaluate.command, [str(trained.last_checkpoint), out])
    evaluate.command([str(trained.path), out, "split=val"])
    assert (tmp_path / "out" / "predictions_test.csv").read_text() == stored
    evaluate.command([str(trained.path), out, "overwrite=true"])
    assert "overwrite=yes: choose true or false" in refusal(evaluate.command, [str(trained.path), "overwrite=yes"])


def test_predict_overwrites_only_with_overwrite_true(trained: RunFolder, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    out.write_text("precious")
    words = [str(photographs / "images"), f"out={out}"]
    for source in (trained.path, tmp_path / "no model"):  # raised before the model is read
        assert "set overwrite=true" in refusal(predict.command, [str(source), *words])
    assert out.read_text() == "precious"
    predict.command([str(trained.path), *words, "overwrite=true"])
    assert len(pd.read_csv(out)) == 64


def test_predict_writes_no_file_of_a_run(make_run, photographs: Path, tmp_path: Path) -> None:
    run, link = make_run("trainer.max_epochs=1"), tmp_path / "link"
    created = [str(tmp_path / "no model"), str(photographs), f"out={run.config_file}", "overwrite=true"]
    assert "is in the run folder" in refusal(predict.command, created)
    run.update_status(state="done")
    (tmp_path / "config.yaml").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.csv").symlink_to(run.metrics_file)
    link.symlink_to(run.path)
    before = contents(run.path)
    files = ["metrics.csv", "predictions_val.csv", "new.csv", "checkpoints/best.ckpt", "tensorboard/a/b.csv"]
    for out in (*(run.path / file for file in files), link / "metrics.csv", tmp_path / "b" / "metrics.csv"):
        words = [str(tmp_path / "no model"), str(photographs), f"out={out}", "overwrite=true"]
        assert f"is in the run folder {run.path}" in refusal(predict.command, words).replace(str(link), str(run.path))
    assert contents(run.path) == before
    (run.path / "evaluation_x").mkdir()
    for out in (run.path / "evaluation_x" / "p.csv", run.path.parent / "p.csv"):
        assert "no model" in refusal(predict.command, [str(tmp_path / "no model"), str(photographs), f"out={out}"])


def test_classes_in_another_order_are_refused(trained: RunFolder) -> None:
    names = "data.class_names=[mild,no DR,moderate,severe,proliferative]"
    message = refusal(evaluate.command, [str(trained.path), names])
    assert "in another order; its order is [no DR,mild,moderate,severe,proliferative]" in message
    message = refusal(evaluate.command, [str(trained.path), "data.class_names=[x,no DR,moderate,severe,proliferative]"])
    assert message.endswith("and no DR would count as mild; use data with these classes")
    message = refusal(evaluate.command, [str(trained.path), "data.class_names=[a,b,c,d,e,f]"])
    assert "has 6 classes but " in message
    assert message.endswith("set data.class_names=[no DR,mild,moderate,severe,proliferative]")


SEEN = {  # all differ from conf/data/retinopathy.yaml
    "image_size": 26,
    "resize": "shorter",
    "eye_crop": False,
    "local_mean": True,
    "crop": 20,
    "padding": 2,
    "mean": [0.4, 0.3, 0.2],
    "std": [0.2, 0.3, 0.4],
    "batch_size": 12,
}


@pytest.mark.slow
def test_another_data_set_gets_every_preprocessing_key_of_the_run(make_run, photographs: Path) -> None:
    run = make_run("trainer.max_epochs=1", *(f"data.{key}={json.dumps(value)}" for key, value in SEEN.items()))
    assert guarded(run) == 0
    keys = ["data=retinopathy", f"data.root={photographs}", "data.val_fraction=0.25"]
    config = evaluate.override(load(str(run.path)).origin, keys)
    assert {key: config["data"][key] for key in SEEN} == SEEN
    defaults = compose_config(["data=retinopathy"])["data"]
    assert [key for key, value in SEEN.items() if defaults[key] == value] == []
    evaluate.command([str(run.path), *keys])
    (folder,) = run.path.glob("evaluation_*")
    assert RunFolder(folder).predictions_file("test").read_text() == run.predictions_file("test").read_text()


def test_predictions_belong_to_their_images_in_any_order(trained: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(datamodule_module.EvaluationSampler):
        def __iter__(self):
            return iter(list(super().__iter__())[::-1])

    monkeypatch.setattr(datamodule_module, "EvaluationSampler", Backwards)
    evaluate.command([str(trained.path)])
    stored, found = (
        pd.read_csv(folder.predictions_file("test")).set_index("image")
        for folder in (trained, RunFolder(trained.path / "evaluation_best_test"))
    )
    assert list(stored.index) == list(found.index)
    pd.testing.assert_frame_equal(found, stored, atol=2e-3)  # bf16 in other batches


@pytest.mark.slow
def test_a_done_job_that_lost_a_file_tests_again(trained: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    names = ["predictions_test.csv", "predictions_val.csv", "confusion_matrix_test.csv", "metrics.csv"]
    before = {name: (trained.path / name).read_bytes() for name in names}
    for lost in ("predictions_test.csv", "metrics.csv"):
        (trained.path / lost).unlink()
        with caplog.at_level(logging.INFO):
            assert guarded(trained) == 0
        assert {name: (trained.path / name).read_bytes() for name in names} == before
    trained.predictions_file("test").unlink()
    trained.last_checkpoint.unlink()  # a job would train again
    assert guarded(trained) == 0
    assert not trained.predictions_file("test").exists()


@pytest.mark.slow
def test_all_images_of_another_set_are_its_test_split(trained: RunFolder, tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    out = tmp_path / "elsewhere"
    others = ["data=retinopathy", f"data.root={root}", "data.all_images=test"]
    evaluate.command([str(trained.path), f"out={out}", *others])
    rows = pd.read_csv(RunFolder(out).predictions_file("test"), dtype={"image": str})
    assert sorted(rows["image"]) == sorted(TRAIN)
    npz = write_medmnist(tmp_path / "bloodmnist.npz", {"train": range(5), "val": range(5)}, size=28).parent
    others = ["data=medmnist", f"data.root={npz}", "data.all_images=val", "split=val"]
    evaluate.command([str(trained.path), f"out={out}", *others, "data.class_names=[a,b,c,d,e]"])
    assert list(pd.read_csv(RunFolder(out).predictions_file("val"))["image"]) == [
        f"{split}/{n:05d}" for split in ("train", "val") for n in range(5)
    ]


def test_prediction_takes_every_photograph_of_a_folder_once(
    trained: RunFolder, photographs: Path, tmp_path: Path
) -> None:
    source, out = sorted((photographs / "images").iterdir())[0].read_bytes(), tmp_path / "predictions.csv"
    names = ["a.Jpeg", "sub/b.JPG", "sub/c.webp"]  # decoded by content
    for name in (*names, "__MACOSX/._a.Jpeg", "._a.Jpeg", "notes.txt"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes(source if name in names else b"")
    predict.command([str(trained.path), str(tmp_path / "new"), f"out={out}"])
    assert list(pd.read_csv(out)["image"]) == names


@pytest.mark.parametrize("key", ["data=class_folders", "data.root=elsewhere", "data.train_csv=a.csv", "data.folds=5"])
def test_prediction_refuses_keys_without_effect(trained: RunFolder, photographs: Path, key: str) -> None:
    message = refusal(predict.command, [str(trained.path), str(photographs), "out=unused.csv", key])
    assert key in message
    assert not Path("unused.csv").exists()


def test_leaks_inside_another_data_set_do_not_stop_an_evaluation(trained: RunFolder, tmp_path: Path) -> None:
    root = write_studies(tmp_path / "leaking", {**TRAIN, "30_right": 2}, {"31_left": 0, "30_left": 2})
    evaluate.command([str(trained.path), f"data.root={root}", f"out={tmp_path / 'out'}"])
    assert len(pd.read_csv(tmp_path / "out" / "predictions_test.csv")) == 2
    words = [str(trained.path), f"data.root={root}", "data.on_leak=error", f"out={tmp_path / 'other'}"]
    assert "data.on_leak=drop" in refusal(evaluate.command, words)


@pytest.mark.parametrize("key", evaluate.OF_TRAINING)
def test_keys_for_training_only_are_refused(key: str) -> None:
    assert refusal(evaluate.override, {}, [f"trainer.{key}=1"]).startswith(f"trainer.{key}=1: it has no effect")
