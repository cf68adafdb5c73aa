"""Distillation: the loss of teacher and labels, what the teacher sees, what a checkpoint holds, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from fake_data import refusal
from fake_runs import write_run
from test_exact_resume import kill_inside, same_end
from torch import nn

from resnet_lab.build import compile_network
from resnet_lab.combine import combine
from resnet_lab.data.check import HASH_DIGITS
from resnet_lab.distillation import Distillation, _part_seen, idle_keys, refuse_no_logits, refuse_own_folder, teacher_of
from resnet_lab.module import Classifier
from resnet_lab.objectives import cross_entropy, mse
from resnet_lab.origin import TRAIN_IMAGES, add_train_images
from resnet_lab.preflight import command as check_needs
from resnet_lab.run_folder import RunFolder
from resnet_lab.sweep import _needs, preflight
from resnet_lab.trained import load
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]
MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)
SHORT = ("trainer.max_epochs=2", "data.batch_size=8", "data.max_images=40", "trainer.precision=32-true")


class Linear(nn.Module):
    """Network of an image's channel means."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.fc, self.dropout, self.seen = nn.Linear(3, num_outputs), nn.Dropout(), torch.empty(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.dropout(self.fc(images.mean((2, 3))))


def taught(
    temperature: float = 4.0, weight: float = 0.3, objective: Any = None, mean: float = 0.5, std: float = 0.25
) -> Distillation:
    objective = objective or cross_entropy(0.0, "none", [1, 1, 1])
    teacher: Any = SimpleNamespace(
        network=Linear(objective.num_outputs), objective=objective, origin={"mean": [mean] * 3, "std": [std] * 3}
    )
    return Distillation(teacher, MEAN, STD, temperature, weight)


def test_the_loss_is_hintons() -> None:
    found, images, logits = taught(), torch.randn(5, 3, 4, 4), torch.randn(5, 3, requires_grad=True)
    labels = torch.rand(5)
    losses = found.losses(labels, logits, images)
    with torch.no_grad():
        soft = (found.network(images) / 4).softmax(1)
    own = (logits / 4).softmax(1)
    expected = 0.7 * labels + 0.3 * 16 * (soft * (soft / own).log()).sum(1)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, 0.3 * 4 * (own - soft).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_weight_chooses_between_labels_and_teacher(weight: float) -> None:
    found, images = taught(weight=weight), torch.randn(5, 3, 4, 4)
    losses = found.losses(torch.full((5,), 2.0), found.network(images), images)
    torch.testing.assert_close(losses, torch.full((5,), 2.0 * (1 - weight)), atol=1e-5, rtol=0)


def test_any_objective_can_teach_and_extreme_logits_stay_finite() -> None:
    found, logits = (
        taught(objective=mse("none", [1, 1, 1])),
        torch.tensor([[1e4, -1e4, 0.0]]).bfloat16().requires_grad_(),
    )
    losses = found.losses(torch.zeros(1), logits, torch.randn(1, 3, 4, 4) * 100)
    assert losses.isfinite().all()
    assert torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()


def test_the_teacher_is_frozen_and_sees_its_own_normalization() -> None:
    images = torch.randn(2, 3, 4, 4)
    for found, expected in ((taught(), images), (taught(mean=0.4, std=0.1), (images * 0.25 + 0.1) / 0.1)):
        found.losses(torch.zeros(2), torch.zeros(2, 3), images)
        torch.testing.assert_close(found.network.seen, expected, atol=1e-5, rtol=0)
        assert not found.network.training
        assert not any(each.requires_grad for each in found.network.parameters())


def test_a_module_does_not_contain_its_teacher() -> None:
    module = Classifier(Linear(3), cross_entropy(0.0, "none", [1, 1, 1]), None, None, ["a", "b", "c"], False)
    names = [*module.state_dict()]
    module.distillation = found = taught()
    assert [*module.state_dict()] == names
    assert len([*module.parameters()]) == 2
    module.train()
    assert not found.network.training


@pytest.mark.parametrize("mode", [True, False])
def test_the_teacher_has_the_memory_format_and_the_compilation_of_the_student(
    monkeypatch: pytest.MonkeyPatch, mode: bool
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(nn.Module, "compile", lambda network, **_: compiled.append(network))
    objective = cross_entropy(0.0, "none", [1, 1])
    module = Classifier(nn.Conv2d(3, 2, 3), objective, None, None, ["a", "b"], False)
    origin = {"mean": [0.5] * 3, "std": [0.25] * 3}
    teacher: Any = SimpleNamespace(network=nn.Conv2d(3, 2, 3), objective=objective, origin=origin)
    module.distillation = found = Distillation(teacher, MEAN, STD, 4.0, 0.5)
    module.memory_format = torch.channels_last
    compile_network(mode, module, torch.device("cpu"))
    module.on_fit_start()
    assert found.network.weight.is_contiguous(memory_format=torch.channels_last)
    assert compiled == [module.model, found.network] * mode


@pytest.fixture
def teacher(make_run: MakeRun) -> RunFolder:
    run = make_run(*SHORT, "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]", "optim.lr=0.2", name="teacher")
    assert guarded(run) == 0
    return run


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    return state


@pytest.mark.slow
def test_a_teacher_without_weight_changes_nothing_and_one_with_weight_does(
    make_run: MakeRun, teacher: RunFolder
) -> None:
    alone = make_run(*SHORT, name="alone")
    given = [f"loss.teacher={teacher.path}", "loss.teacher_weight=0", "callbacks=ema"]
    idle, student = make_run(*SHORT, *given[:2], name="idle"), make_run(*SHORT, *given[::2], name="student")
    for run in (alone, idle, student):
        assert guarded(run) == 0
    assert same_end(alone, idle)
    assert {*weights_of(student)} == {*weights_of(alone)}
    columns = [pd.read_csv(run.metrics_file)["train/loss"] for run in (alone, idle, student)]
    assert columns[0].equals(columns[1])
    assert (columns[0] != columns[2]).all()
    status, other = student.read_status(), alone.read_status()
    assert (status["parameters"], "teacher" in other) == (other["parameters"], False)
    assert status["teacher"] == idle.read_status()["teacher"]
    assert "test images are training images" not in student.log_file.read_text()
    assert load(student.path)(torch.zeros(1, 3, 24, 24)).shape == (1, 6)  # needs no teacher


@pytest.mark.slow
def test_a_student_resumes_exactly_and_only_with_its_teacher(
    make_run: MakeRun, teacher: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*SHORT, f"loss.teacher={teacher.path}", "loss.teacher_weight=0.8", "data.mixup=0.4")
    complete, broken = make_run(*keys, name="complete"), make_run(*keys, "trainer.checkpoint_minutes=1e-9", name="b")
    assert guarded(complete) == 0
    kill_inside(broken, monkeypatch)
    content = teacher.best_checkpoint.read_bytes()
    checkpoint = torch.load(teacher.best_checkpoint, weights_only=True)
    checkpoint["state_dict"]["model.fc.bias"] += 0.1
    torch.save(checkpoint, teacher.best_checkpoint)
    assert guarded(broken) == 1
    assert "the job started with other weights" in broken.read_status()["error"]
    teacher.best_checkpoint.write_bytes(content)
    assert guarded(broken) == 0
    assert "resuming" in broken.log_file.read_text()
    assert same_end(complete, broken)


def member_of(run: RunFolder, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load(run.path).network((images - 0.4) / 0.2).softmax(1)


@pytest.mark.slow
def test_an_ensemble_teaches(make_run: MakeRun, teacher: RunFolder, tmp_path: Path) -> None:
    other = make_run(
        *SHORT, "seed=1", "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]", "optim.lr=0.2", name="other"
    )
    assert guarded(other) == 0
    (both,) = combine([str(teacher.path), str(other.path)], tmp_path / "both", ["seed"])
    student = make_run(*SHORT, f"loss.teacher={both.path}", "loss.teacher_weight=1", name="student")
    assert guarded(student) == 0
    assert student.read_status()["teacher"] not in (None, Distillation(load(teacher.path), MEAN, STD, 1, 1).digest)
    images = torch.rand(4, 3, 24, 24)
    found = Distillation(load(both.path), MEAN, STD, 1.0, 1.0)
    expected = torch.stack([member_of(each, images) for each in (teacher, other)]).mean(0)
    losses = found.losses(torch.zeros(4), torch.zeros(4, 5), (images - 0.5) / 0.25)
    divergence = (expected * (expected * 5).log()).sum(1)
    torch.testing.assert_close(losses, divergence, atol=1e-4, rtol=1e-3)
    loss = student.read_config()["loss"]
    assert "is this run itself" in refusal(refuse_own_folder, loss, other.path)


def test_an_ensemble_of_ensembles_with_the_student_is_no_teacher(tmp_path: Path) -> None:
    for name, source in (("student", None), ("inner", "../student"), ("outer", "../inner")):
        write_run(tmp_path / name, config={"combine.sources": [source]} if source else {})
    loss = {"teacher": str(tmp_path / "outer")}
    assert "is this run itself" in refusal(refuse_own_folder, loss, tmp_path / "student")
    refuse_own_folder(loss, tmp_path / "other")


def error_of(run: RunFolder) -> str:
    assert guarded(run) == 1
    error: str = run.read_status()["error"]
    return error


@pytest.mark.slow
def test_wrong_teachers_are_refused_in_one_line(make_run: MakeRun, teacher: RunFolder, tmp_path: Path) -> None:
    given = f"loss.teacher={teacher.path}"
    missing = error_of(make_run(*SHORT, f"loss.teacher={tmp_path / 'none'}"))
    assert missing.startswith(f"loss.teacher: {tmp_path / 'none'}: no such file")
    for own in (tmp_path / "runs" / "own", tmp_path / "runs" / "own" / "checkpoints" / "best.ckpt"):
        assert "is this run itself" in error_of(make_run(*SHORT, f"loss.teacher={own}", name="own"))
    for name in ("mse", "corn"):
        assert "are not one logit per class" in error_of(make_run(*SHORT, given, f"loss={name}", name=name))
    assert "of 24 px, but this job uses 32 px" in error_of(make_run(*SHORT, given, "data.image_size=32", name="size"))
    model, data = load(teacher.path), teacher.read_config()["data"]
    loss = teacher.read_config()["loss"] | {"teacher": str(teacher.path)}
    assert "has 2 classes but" in refusal(teacher_of, loss, data, ["a", "b"])
    assert "in another order" in refusal(teacher_of, loss, data, model.class_names[::-1])


def test_a_sweep_is_refused_before_its_first_job(
    make_run: MakeRun, teacher: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run(*SHORT, "loss.teacher=nowhere").read_config()
    needs = [json.dumps(need) for need in _needs(config)]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(needs)))
    assert refusal(check_needs, []).startswith("loss.teacher: nowhere: no such file")
    config["loss"]["teacher"] = str(teacher.path)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([json.dumps(need) for need in _needs(config)])))
    check_needs([])


def test_a_teacher_that_sees_other_images_or_the_test_images_is_named(make_run: MakeRun, teacher: RunFolder) -> None:
    given = f"loss.teacher={teacher.path}"
    swapped = make_run(
        *SHORT,
        given,
        "data.splits={train:test,test:train}",
        "data.eye_crop=false",
        "data.val_fraction=0",
        name="swapped",
    )
    assert guarded(swapped) == 0
    text = swapped.log_file.read_text()
    assert "was trained with data.eye_crop=true, and gets other images here" in text
    assert "test images are training images of" in text


@pytest.mark.parametrize(("swap", "seen"), [("data.splits={train:test,test:train}", True), ("data.splits=null", False)])
@pytest.mark.slow
def test_initial_weights_that_were_trained_on_the_test_images_are_named(
    make_run: MakeRun, teacher: RunFolder, swap: str, seen: bool
) -> None:
    run = make_run(*SHORT, f"model.pretrained={teacher.path}", swap, "data.val_fraction=0", name="initialized")
    assert guarded(run) == 0
    words = f"test images are training images of model.pretrained={teacher.path} (best.ckpt) (equal pixels)"
    assert (words in run.log_file.read_text()) == seen
    images = run.read_status().get("seen_by", {}).get("model.pretrained", {})
    assert (images.get("test", 0) > 0) == seen
    assert not seen or f"{images['test']} of the 40 {words}" in run.log_file.read_text()


def test_the_training_images_of_a_source_are_added_once() -> None:
    a, b, c = (letter * HASH_DIGITS for letter in "abc")
    origin = {TRAIN_IMAGES: b + c}
    add_train_images(origin, {TRAIN_IMAGES: a + b})
    assert origin[TRAIN_IMAGES] == a + b + c
    for unknown in (None, {}, {TRAIN_IMAGES: None}):  # older versions, other programs
        add_train_images(origin, unknown)
    assert origin[TRAIN_IMAGES] == a + b + c


@pytest.mark.slow
@pytest.mark.parametrize(("key", "other"), [("model.pretrained", "loss.teacher"), ("loss.teacher", "model.pretrained")])
def test_images_of_earlier_trainings_are_followed_through_a_chain(
    make_run: MakeRun, trained_run: MakeRun, monkeypatch: pytest.MonkeyPatch, key: str, other: str
) -> None:
    first = trained_run("trainer.max_epochs=1", name="first")  # trains on the test images of `last`
    swapped = ("data.splits={train:test,test:train}", "data.val_fraction=0")
    middle = make_run(f"{key}={first.path}", *swapped, "trainer.max_epochs=2", name="middle")
    kill_inside(middle, monkeypatch, batch=0)
    assert guarded(middle) == 0  # resumes
    last = make_run(f"{other}={middle.path}", *swapped, "trainer.max_epochs=0", name="last")
    assert guarded(last) == 0
    assert last.read_status()["seen_by"][other]["test"] == sum(first.read_status()["class_counts"]["train"])


def test_keys_without_a_teacher_are_named() -> None:
    loss = {"teacher": None, "temperature": 2.0, "teacher_weight": 0.5}
    assert idle_keys(loss) == []
    assert idle_keys(loss | {"temperature": 4.0}) == [
        "loss.temperature=4.0 has no effect: loss.teacher names no network"
    ]
    assert idle_keys(loss | {"temperature": 4.0, "teacher": "runs/x"}) == []
    refuse_no_logits(mse("none", [1, 1]), loss)


def test_trust_for_a_teacher_is_not_called_idle(capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight(["loss.teacher=runs/x"], ["mylab,other"])
    assert "has no effect" not in capsys.readouterr().err
    assert preflight(["loss.temperature=3"], ["mylab"])
    assert "trust=mylab has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(("crop", "size", "share"), [(None, 64, 1.0), (32, 64, 0.5), (64, 64, 1.0), (56, 64, 0.875)])
def test_the_part_of_an_image_that_a_network_sees(crop: int | None, size: int, share: float) -> None:
    assert _part_seen({"crop": crop, "image_size": size}) == share
