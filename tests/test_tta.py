"""Test-time augmentation: the views of an image, the average of their probabilities, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from resnet_lab import evaluate, predict
from resnet_lab.objectives import cross_entropy, mse
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.statistics import decisions, fitted_thresholds
from resnet_lab.trained import load
from resnet_lab.training import guarded
from resnet_lab.tta import VIEWS, outputs_of, plain, views

MakeRun = Callable[..., RunFolder]

SQUARE = torch.tensor([[1, 2], [3, 4]])
SYMMETRIES = [
    [[1, 2], [3, 4]],
    [[2, 1], [4, 3]],
    [[3, 4], [1, 2]],
    [[4, 3], [2, 1]],
    [[1, 3], [2, 4]],
    [[3, 1], [4, 2]],
    [[2, 4], [1, 3]],
    [[4, 2], [3, 1]],
]
EXACT = ("trainer.precision=32-true", "trainer.max_epochs=2", "optim.lr=0.01")


@pytest.mark.parametrize("kind", VIEWS)
def test_the_views_are_symmetries_of_the_square_and_the_image_comes_first(kind: str) -> None:
    found = [view[0, 0].tolist() for view in views(SQUARE.view(1, 1, 2, 2), kind)]
    assert found == SYMMETRIES[: VIEWS[kind]]


def test_probabilities_are_averaged_and_the_decision_is_that_of_the_average() -> None:
    objective = cross_entropy(0.0, "none", [1, 1, 1])
    outputs = torch.tensor([[[0.0, 4.0, 0.0], [3.0, 0.0, 3.5], [3.0, 0.0, 3.5]], [[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]])
    probabilities, classes = objective.averaged(outputs), objective.classes(outputs)
    expected = np.exp(outputs.numpy()) / np.exp(outputs.numpy()).sum(2, keepdims=True)
    assert probabilities.numpy() == pytest.approx(expected.mean(1), abs=1e-6)
    assert classes.tolist() == [2, 0]  # most single views of the first image say 2, the average logits say 1
    assert torch.equal(plain(outputs), outputs[:, 0])
    assert torch.equal(plain(outputs[:, 0]), outputs[:, 0])


def test_a_grade_as_a_number_is_the_median_of_the_averaged_probabilities() -> None:
    objective = mse("none", [1] * 5)
    objective.width.fill_(0.3)
    outputs = torch.tensor([[[0.2], [3.9], [3.8]], [[1.6], [2.4], [2.2]]])
    probabilities, classes = objective.averaged(outputs), objective.classes(outputs)
    below = stats.norm(outputs.numpy(), 0.3).cdf([-np.inf, 0.5, 1.5, 2.5, 3.5, np.inf])  # (B, V, K + 1)
    assert probabilities.numpy() == pytest.approx(np.diff(below).mean(1), abs=1e-6)
    assert classes.tolist() == decisions(probabilities.numpy(), "median").tolist() == [4, 2]


def stored(folder: RunFolder, split: str = "test") -> np.ndarray:
    return pd.read_csv(folder.predictions_file(split)).filter(like="p_").to_numpy()


@pytest.fixture
def run(make_run: MakeRun) -> RunFolder:
    run = make_run("trainer.tta=flips", "monitor=val/loss", *EXACT)
    assert guarded(run) == 0
    return run


@pytest.mark.slow
def test_validation_and_test_average_the_views_and_training_does_not(run: RunFolder, make_run: MakeRun) -> None:
    usual = make_run("monitor=val/loss", *EXACT, name="usual")
    assert guarded(usual) == 0
    states = [torch.load(each.last_checkpoint, weights_only=True)["state_dict"] for each in (run, usual)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = [pd.read_csv(each.metrics_file) for each in (run, usual)]
    same = [name for name in rows[0] if name.startswith("train/") or name == "val/loss"]
    assert rows[0][same].equals(rows[1][same])
    assert not np.allclose(stored(run), stored(usual), atol=1e-4)
    assert (run.read_status()["evaluation_passes"], usual.read_status()["evaluation_passes"]) == (4, 1)
    assert "the network sees each image 4 times" in run.log_file.read_text()
    for each in (run, usual):
        assert differences_of([read_run(each)]) == []


@pytest.mark.slow
def test_evaluate_predict_and_load_follow_the_run_unless_overridden(
    run: RunFolder, photographs: Path, tmp_path: Path
) -> None:
    model = load(run.path)
    files = pd.read_csv(run.predictions_file("test"))["image"]
    images = [photographs / "images" / name for name in files]
    images = [each if each.exists() else next((photographs / "images").glob(f"{each.name}*")) for each in images]
    assert model.tta == "flips"
    averaged = model(images)[model.class_names].to_numpy()
    assert averaged == pytest.approx(stored(run), abs=1e-5)
    model.tta = "none"
    single = model(images)[model.class_names].to_numpy()
    assert not np.allclose(single, averaged, atol=1e-4)
    for overrides, expected in (([], averaged), (["trainer=cpu", EXACT[0]], averaged), (["trainer.tta=none"], single)):
        evaluate.command([str(run.path), *overrides, f"out={tmp_path / 'evaluated'}", "overwrite=true"])
        assert stored(RunFolder(tmp_path / "evaluated")) == pytest.approx(expected, abs=1e-5)
    _, module, datamodule = evaluate.evaluate_split(load(run.path), evaluate.override(model.origin, []), "train")
    probabilities = []
    for batch in datamodule.evaluation_dataloader("train"):
        batch = datamodule.on_after_batch_transfer(batch, 0)
        with torch.no_grad():
            outputs = outputs_of(model.network, batch["image"], "flips")[batch["index"] >= 0]
        probabilities.append(outputs.softmax(-1).mean(1))
    assert module.predictions["train"].probabilities == pytest.approx(torch.cat(probabilities).numpy(), abs=1e-5)
    model.tta = "dihedral"
    out = tmp_path / "predictions.csv"
    predict.command([str(run.path), str(images[0]), "trainer.tta=dihedral", f"out={out}"])
    found = pd.read_csv(out).filter(like="p_").to_numpy()
    assert found == pytest.approx(model(images[0])[model.class_names].to_numpy(), abs=1e-5)


@pytest.mark.slow
def test_the_width_of_a_grade_as_a_number_is_that_of_the_images_as_they_are(make_run: MakeRun) -> None:
    run = make_run("loss=mse", "trainer.tta=dihedral", *EXACT)
    assert guarded(run) == 0
    model = load(run.path)
    config = evaluate.override(model.origin, [])
    _, module, datamodule = evaluate.evaluate_split(model, config, "val")
    assert module.predictions["val"].probabilities == pytest.approx(stored(run, "val"), abs=1e-6)
    squares = []
    for batch in datamodule.evaluation_dataloader("val"):
        batch = datamodule.on_after_batch_transfer(batch, 0)
        with torch.no_grad():
            outputs = outputs_of(model.network, batch["image"], "dihedral")
        squares += ((outputs[:, 0, 0] - batch["target"]) ** 2)[batch["index"] >= 0].tolist()
    assert float(model.objective.width) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-4)
    assert differences_of([read_run(run)]) == []


@pytest.mark.slow
def test_thresholds_are_fitted_on_the_averages(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("loss.decision=thresholds", "trainer.tta=flips", *EXACT)
    assert guarded(run) == 0
    limits, targets = run.read_status()["thresholds"], pd.read_csv(run.predictions_file("val"))["target"].to_numpy()
    assert limits == pytest.approx(fitted_thresholds(stored(run, "val"), targets), abs=1e-4)
    predicted = pd.read_csv(run.predictions_file("test"))["prediction"]
    assert predicted.tolist() == decisions(stored(run), "thresholds", limits).tolist()
    assert differences_of([read_run(run)]) == []
    assert load(run.best_checkpoint).objective.thresholds == limits
    assert "no fitted thresholds" not in "".join(capsys.readouterr())
    assert load(run.last_checkpoint).objective.thresholds == [0.5, 1.5, 2.5, 3.5]  # training does not fit them
    assert "last.ckpt has no fitted thresholds" in "".join(capsys.readouterr())
    evaluate.command([str(run.path), "split=val"])
    (folder,) = run.path.glob("evaluation_*")
    assert RunFolder(folder).predictions_file("val").read_text() == run.predictions_file("val").read_text()
