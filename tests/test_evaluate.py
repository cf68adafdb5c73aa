"""A trained model on other splits, other data sets and unlabelled photographs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from fake_data import TRAIN, refusal, write_class_folders, write_kaggle, write_medmnist

from resnet_lab import evaluate, predict
from resnet_lab.config import build
from resnet_lab.data.prepared import prepare
from resnet_lab.job import guarded
from resnet_lab.run_folder import RunFolder


@pytest.fixture
def trained(make_run) -> RunFolder:
    run = make_run("trainer.max_epochs=1", "data.mean=train")
    assert guarded(run) == 0
    return run


class Forbidden:
    """A pickle that would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_the_runs_own_test_split_scores_as_it_did(trained: RunFolder) -> None:
    before = {path.name: path.read_text() for path in trained.path.glob("*_test.csv")}
    for name in before:
        (trained.path / name).unlink()
    evaluate.command([str(trained.path)])
    assert {path.name: path.read_text() for path in trained.path.glob("*_test.csv")} == before


def test_another_split_or_checkpoint_leaves_the_runs_own_files_alone(trained: RunFolder) -> None:
    before = trained.predictions_file("val").read_text()
    evaluate.command([str(trained.last_checkpoint), "split=val"])
    folder = RunFolder(trained.path / "evaluation_last_val")
    assert folder.predictions_file("val").read_text() == before  # after one epoch last is best
    evaluate.command([str(trained.path), "split=train"])
    rows = pd.read_csv(trained.predictions_file("train"))
    assert len(rows) == sum(trained.read_status()["class_counts"]["train"])


def test_another_data_set_is_seen_as_the_model_was_taught(trained: RunFolder, tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    out = tmp_path / "elsewhere"
    evaluate.command(
        [str(trained.path), "split=train", f"out={out}", "data=retinopathy", f"data.root={root}", "data.val_fraction=0"]
    )
    rows = pd.read_csv(RunFolder(out).predictions_file("train"), dtype={"image": str})
    assert sorted(rows["image"]) == sorted(TRAIN)
    origin = evaluate.load(str(trained.path)).origin
    config = evaluate.override(origin, ["data=retinopathy", f"data.root={root}"])
    assert config["data"]["image_size"] == 24  # conf/data/retinopathy.yaml says 224
    _, _, datamodule = evaluate.answer(evaluate.load(str(trained.path)), config, "train")
    assert datamodule.mean.tolist() == pytest.approx(origin["mean"])


def test_wrong_data_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "folders", {"train/cat": 3, "train/dog": 3})
    message = refusal(
        evaluate.command,
        [str(trained.path), "split=train", "data=class_folders", f"data.root={root}", "data.val_fraction=0"],
    )
    assert "cat: no class of that name among no DR, mild" in message
    names = "data.class_names=[cat,dog]"
    message = refusal(
        evaluate.command,
        [str(trained.path), "split=train", "data=class_folders", f"data.root={root}", "data.val_fraction=0", names],
    )
    assert "has 2 classes" in message
    assert "trained for 5 (no DR, mild" in message
    message = refusal(evaluate.command, [str(trained.path), "split=dev"])
    assert "has no split dev; choose among train, val, test" in message
    assert "model.depth=50: evaluate takes" in refusal(evaluate.command, [str(trained.path), "model.depth=50"])


def test_a_misspelt_key_is_refused(trained: RunFolder) -> None:
    assert "data.rooot" in refusal(evaluate.command, [str(trained.path), "data.rooot=x"])


def test_checkpoints_that_are_none_of_ours_are_refused(trained: RunFolder, tmp_path: Path) -> None:
    foreign, malicious, broken = (tmp_path / name for name in ("foreign.ckpt", "malicious.ckpt", "broken.ckpt"))
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, foreign)
    assert "is no checkpoint of resnet_lab" in refusal(evaluate.command, [str(foreign)])
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


def test_predictions_without_labels(trained: RunFolder, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    predict.command([str(trained.path), str(photographs / "images"), f"out={out}"])
    rows = pd.read_csv(out, dtype={"image": str})
    assert list(rows.columns) == ["image", "patient", "prediction", *(f"p_{k}" for k in range(5))]
    assert len(rows) == 64
    known = pd.read_csv(trained.predictions_file("test"), dtype={"image": str}).set_index("image")
    ours = rows.assign(image=rows["image"].str.removesuffix(".jpeg")).set_index("image").loc[known.index]
    assert ours["p_0"].to_numpy() == pytest.approx(known["p_0"].to_numpy(), abs=2e-3)  # bf16 in other batches
    image = sorted((photographs / "images").iterdir())[0]
    predict.command([str(trained.path), str(image), f"out={out}"])
    assert list(pd.read_csv(out)["image"]) == [image.name]
    assert "does not exist" in refusal(predict.command, [str(trained.path), str(tmp_path / "nothing")])
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal(predict.command, [str(trained.path), str(tmp_path / "empty")])


def test_a_checkpoint_calls_nothing_foreign(trained: RunFolder, tmp_path: Path) -> None:
    checkpoint = torch.load(trained.last_checkpoint, weights_only=True)
    foreign, nested = tmp_path / "foreign.ckpt", tmp_path / "nested.ckpt"
    target = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "proof")}
    checkpoint["resnet_lab"]["config"]["loss"] = target
    torch.save(checkpoint, foreign)
    assert "loss._target_ pathlib.Path.touch is not of resnet_lab" in refusal(evaluate.command, [str(foreign)])
    checkpoint["resnet_lab"]["config"]["loss"] = {
        "_target_": "resnet_lab.optim.cross_entropy",
        "label_smoothing": {"_target_": "builtins.open", "file": str(tmp_path / "proof"), "mode": "w"},
    }
    torch.save(checkpoint, nested)
    with pytest.raises(Exception, match=r".+"):
        evaluate.command([str(nested)])
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


def test_an_output_that_cannot_be_written_is_found_first(trained: RunFolder, photographs: Path, tmp_path: Path) -> None:
    assert "is a folder" in refusal(predict.command, [str(trained.path), str(photographs), f"out={tmp_path}"])
    assert "data/foo" in refusal(evaluate.command, [str(trained.path), "data=foo"])
    assert "trainer.devices=abc" in refusal(evaluate.command, [str(trained.path), "trainer.devices=abc"])


def test_raw_photographs_are_seen_as_the_prepared_ones_were(make_run, photographs: Path, tmp_path: Path) -> None:
    run = make_run("trainer.max_epochs=1", "data.eye_crop=true", "data.local_mean=true")
    data = build(run.read_config()["data"])
    paths = sorted(map(str, (photographs / "images").iterdir()))
    prepare(data.prepared_set, paths, processes=1)
    assert guarded(run) == 0
    assert run.read_status()["prepared"] == str(data.prepared_set.folder)
    trained_on = pd.read_csv(run.predictions_file("test")).set_index("image")
    predict.command([str(run.path), str(photographs / "images"), f"out={tmp_path / 'raw.csv'}"])
    raw = pd.read_csv(tmp_path / "raw.csv").set_index("image").rename(index=lambda name: Path(name).stem)
    columns = [f"p_{k}" for k in range(5)]
    differences = (raw.loc[trained_on.index, columns] - trained_on[columns]).abs()
    assert differences.to_numpy().max() < 0.05  # what the JPEG of the prepared set costs


@pytest.mark.parametrize("key", ["data.folds=2", "data.splits={train: test, test: train}", "data.max_per_class=4"])
def test_predict_takes_all_photographs_whatever_the_splits_of_the_run(make_run, photographs, tmp_path, key) -> None:
    run = make_run("trainer.max_epochs=1", "data.val_fraction=0", key)
    assert guarded(run) == 0
    predict.command([str(run.path), str(photographs / "images"), f"out={tmp_path / 'all.csv'}"])
    assert len(pd.read_csv(tmp_path / "all.csv")) == len(list((photographs / "images").iterdir()))


def test_data_without_a_train_split_can_be_evaluated_on(make_run, tmp_path: Path) -> None:
    root = write_medmnist(tmp_path / "arrays" / "retinamnist.npz", {"train": [0, 1, 2, 3, 4] * 4, "val": [0, 1]}).parent
    run = make_run("data=retinamnist", f"data.root={root}", "trainer.max_epochs=1", "data.image_size=28")
    assert guarded(run) == 0
    write_medmnist(root / "other.npz", {"test": [4, 3, 2, 1, 0, 0]})
    evaluate.command([str(run.path), "data.file=other.npz", f"out={tmp_path / 'out'}"])
    assert len(pd.read_csv(RunFolder(tmp_path / "out").predictions_file("test"))) == 6
    broken = make_run("data=retinamnist", f"data.root={root}", "data.file=other.npz", name="broken")
    assert guarded(broken) != 0
    assert "has no split train, but test; to train on another one name it" in broken.read_status()["error"]


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
    predict.command([str(trained.path), str(tmp_path / "new"), f"out={out}", "data.all_images=null"])
    assert list(pd.read_csv(out)["image"]) == names
