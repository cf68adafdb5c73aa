"""A trained network without its data set predicts files, arrays and tensors as the commands do."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_data import refusal
from lightning import Trainer
from PIL import Image

from resnet_lab import DataModule, predict
from resnet_lab.module import Classifier
from resnet_lab.run_folder import RunFolder
from resnet_lab.trained import Trained, load
from resnet_lab.training import guarded


@pytest.fixture
def run(trained_run) -> RunFolder:
    return trained_run("trainer.max_epochs=1", "data.eye_crop=true")


@pytest.fixture
def model(run: RunFolder) -> Trained:
    return load(run.path)


def test_a_folder_is_graded_as_by_predict(run: RunFolder, model: Trained, photographs: Path, tmp_path: Path) -> None:
    predict.command([str(run.path), str(photographs / "images"), f"out={tmp_path / 'predictions.csv'}"])
    expected = pd.read_csv(tmp_path / "predictions.csv")
    found = model(photographs / "images")
    assert found.index.tolist() == expected["image"].tolist()
    assert list(found.columns) == ["prediction", *model.class_names]
    assert found["prediction"].tolist() == [model.class_names[k] for k in expected["prediction"]]
    np.testing.assert_allclose(found[model.class_names], expected.filter(like="p_"), atol=1e-6)


def test_all_kinds_of_images_give_the_same(model: Trained, photographs: Path) -> None:
    files = sorted((photographs / "images").iterdir())[:3]
    expected = model(files)
    assert expected.index.tolist() == [str(file) for file in files]
    images = [Image.open(file).convert("RGB") for file in files]
    arrays = [np.asarray(image) for image in images]
    for kinds in ([str(file) for file in files], images, arrays):
        np.testing.assert_allclose(model(kinds)[model.class_names], expected[model.class_names], atol=0.02)
    assert model(arrays).index.tolist() == ["0", "1", "2"]
    assert str(model) == f"Trained({model.file}: ResNet, {model.size} px, 5 classes)"
    alone = model(str(files[1]))
    assert alone.index.tolist() == [str(files[1])]
    np.testing.assert_allclose(alone[model.class_names], expected[model.class_names][1:2], atol=1e-5)


def test_a_pillow_image_is_read_as_its_file(model: Trained, tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 30))
    image.paste((255, 90, 40), (0, 0, 20, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turned by 90°
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(model._read(opened), model._read(tmp_path / "turned.png"))
    assert "a Pillow image of mode I;16: it has more than 8 bits" in refusal(model, Image.new("I;16", (20, 30)))


def test_a_tensor_is_the_direct_input_of_the_network(model: Trained) -> None:
    pixels = torch.randint(0, 256, (5, 3, model.size, model.size), dtype=torch.uint8)
    found = model(pixels)
    pd.testing.assert_frame_equal(found, model(pixels / 255))
    assert len(model(pixels[0])) == 1
    mean, std = (torch.tensor(model.origin[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = model.network((pixels / 255 - mean) / std).softmax(1)
    np.testing.assert_allclose(found[model.class_names], expected, atol=0.02)  # the run uses bf16 on fast hardware


def test_features_are_the_input_of_the_last_layer(model: Trained) -> None:
    pixels = torch.randint(0, 256, (40, 3, model.size, model.size), dtype=torch.uint8)  # several batches
    features = model.features(pixels)
    assert features.shape == (40, model.network.fc.in_features)
    probabilities = torch.nn.functional.linear(
        torch.from_numpy(features), model.network.fc.weight, model.network.fc.bias
    ).softmax(1)
    np.testing.assert_allclose(model(pixels)[model.class_names], probabilities.detach(), atol=0.02)
    assert not model.network.fc._forward_pre_hooks


NO_IMAGES: list[tuple[object, str]] = [
    ([], "no image"),
    ("nothing.jpeg", "nothing.jpeg cannot be read: No such file or directory"),
    (__file__, f"{__file__} cannot be read: no image of a known format"),
    (torch.zeros(2, 3, 7, 7), "shape (2, 3, 7, 7): give (N, 3, 24, 24)"),
    (torch.full((1, 3, 24, 24), 7.0), "values in [0, 1]"),
    (torch.full((1, 3, 24, 24), torch.nan), "values in [0, 1]"),
    (torch.zeros(1, 3, 24, 24, dtype=torch.int64), "a tensor of torch.int64"),
    (torch.zeros(0, 3, 24, 24), "at least one image"),
    (np.zeros((24, 24), np.uint8), "shape (24, 24): give uint8 (H, W, 3)"),
    (np.zeros((24, 24, 3), np.float32), "an array of float32"),
    (7, "give a file"),
]


def test_inputs_other_than_images_are_named(model: Trained) -> None:
    for images, line in NO_IMAGES:
        assert line in refusal(model, images)


def test_lightnings_load_from_checkpoint_works(run: RunFolder, model: Trained, photographs: Path) -> None:
    module = Classifier.load_from_checkpoint(run.best_checkpoint)
    state = model.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.model.state_dict().items())
    optimizer = module.optimizer_factory(module.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert module.loss.decision == model.objective.decision


def test_lightnings_own_trainer_tests_and_trains_such_a_module(run: RunFolder) -> None:
    module = Classifier.load_from_checkpoint(run.path)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, enable_model_summary=False, use_distributed_sampler=False, **options)
    datamodule = DataModule.from_config(module.origin["config"])
    with warnings.catch_warnings(action="ignore"):
        (scores,) = trainer.validate(module, datamodule=datamodule, verbose=False)
        trainer.test(module, datamodule=datamodule, verbose=False)
        before = {name: value.clone() for name, value in module.model.named_buffers() if value.is_floating_point()}
        trainer.fit(module, datamodule=datamodule)
    assert scores["val/qwk"] == pytest.approx(run.read_status()["best_value"], abs=1e-5)
    assert {*module.predictions} == {"val", "test"}
    assert module.model.training
    assert all(not torch.equal(value, before[name]) for name, value in module.model.named_buffers() if name in before)


@pytest.mark.slow
def test_further_training_freezes_and_fits_as_the_run_did(make_run) -> None:
    run = make_run("loss=mse", "model.freeze=[conv1,bn1,layer1]", "trainer.max_epochs=1", "optim.lr=0.1")
    assert guarded(run) == 0
    module = Classifier.load_from_checkpoint(run.path)
    before, width = copy.deepcopy(module.model.state_dict()), module.loss.width.clone()
    datamodule = DataModule.from_config(module.origin["config"])
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, enable_model_summary=False, use_distributed_sampler=False, **options)
    with warnings.catch_warnings(action="ignore"):
        trainer.test(module, datamodule=datamodule, verbose=False)
        assert torch.equal(module.loss.width, width)  # the checkpoint's
        trainer.fit(module, datamodule=datamodule)
    changed = {name.split(".")[0] for name, value in module.model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"layer2", "layer3", "fc"}
    assert not module.model.bn1.training
    assert module.fit_split == "val"
    assert not torch.equal(module.loss.width, width)


def test_nothing_of_the_data_set_is_needed(model: Trained, run: RunFolder, photographs: Path) -> None:
    image = photographs / "images" / "test0_left.jpeg"
    expected = model(image)
    for file in [*photographs.glob("*.csv"), *sorted((photographs / "images").iterdir())]:
        if file != image:
            file.unlink()
    pd.testing.assert_frame_equal(load(run.best_checkpoint)(image), expected)


def test_external_functions_are_trusted_by_name_only(run: RunFolder, tmp_path: Path) -> None:
    content = torch.load(run.best_checkpoint, weights_only=True)
    foreign = copy.deepcopy(content)
    foreign["resnet_lab"]["config"]["model"]["_target_"] = "pathlib.Path.touch"
    torch.save(foreign, tmp_path / "foreign.ckpt")
    assert "is not one of resnet_lab's" in refusal(load, tmp_path / "foreign.ckpt")


def test_loading_logs_nothing(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(run.path)
    assert not caplog.records


def test_a_checkpoint_in_the_folder_of_another_run_is_pointed_out(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    load(run.path)
    assert "another run" not in caplog.text
    config = run.read_config()
    run.write_config(config | {"trainer": config["trainer"] | {"max_epochs": 9}, "labels": {"seed": {"0": "a"}}})
    load(run.path)
    assert "another run" not in caplog.text
    run.write_config(config | {"seed": 7})
    load(run.path)
    assert "seems to be from another run" in caplog.text
    assert "seed is 0 there, 7 here" in caplog.text
    caplog.clear()
    load(run.best_checkpoint.rename(run.path / "best.ckpt"))  # in no folder of checkpoints
    assert "another run" not in caplog.text
