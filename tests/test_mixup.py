"""Mixup: which images are mixed with which shares, what the step makes of it, and what refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_data import refusal, retinopathy, write_studies
from scipy import stats
from test_exact_resume import kill_inside, same_end
from torch import nn

from resnet_lab.build import build_datamodule, build_module
from resnet_lab.data.augmentation import draws, mixture
from resnet_lab.data.datamodule import DataModule
from resnet_lab.module import Classifier
from resnet_lab.objectives import Criterion, corn, cross_entropy, mse, smooth_l1
from resnet_lab.parts import refuse_unmixable
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]
KEYS = np.array([(0, index, 0) for index in range(64)])


def test_partners_form_a_cycle_and_shares_are_at_least_half() -> None:
    partner, share = mixture(0, KEYS, 0.4)
    assert sorted(partner) == list(range(64))
    reached, place = set(), 0
    while place not in reached:
        reached.add(place)
        place = partner[place]
    assert len(reached) == 64
    assert share.dtype == np.float32
    assert 0.5 <= share.min() < 0.6
    assert 0.99 < share.max() <= 1


def test_the_order_of_a_batch_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(64)
    (partner, share), (other, shares) = mixture(0, KEYS, 0.4), mixture(0, KEYS[order], 0.4)
    assert (shares == share[order]).all()
    assert (order[other] == partner[order]).all()
    part = mixture(0, KEYS[:8], 0.4)[1]  # as on one of several ranks
    assert (part == share[:8]).all()


@pytest.mark.parametrize("changed", range(4))
def test_mixtures_depend_on_seed_epoch_index_and_repeat(changed: int) -> None:
    numbers = np.eye(4, dtype=int)[changed]
    keys = KEYS[:2] + np.array([numbers[1], 10 * numbers[2], numbers[3]])
    assert (mixture(numbers[0], keys, 1.0)[1] != mixture(0, KEYS[:2], 1.0)[1]).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    _, share = mixture(0, np.array([(0, index, 0) for index in range(4000)]), alpha)
    levels = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    assert np.quantile(share, levels) == pytest.approx(stats.beta(alpha, alpha).ppf(0.5 + levels / 2), abs=0.02)


def test_augmentation_draws_the_same_numbers_as_without() -> None:
    shown = draws(0, KEYS)
    mixture(0, KEYS, 0.4)
    assert (draws(0, KEYS) == shown).all()
    bits = np.random.Philox(key=[0, 0], counter=[0, 1, 0, 1])
    np.random.Generator(bits).random()
    assert mixture(0, KEYS, 1.0)[1][1] != shown[1, 1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("studies") / "data")


def batches(root: Path, **keys: Any) -> list[dict[str, torch.Tensor]]:
    """Return the batches of an epoch as the network gets them."""
    datamodule = DataModule(retinopathy(root, **{"batch_size": 8, "image_size": 16, "rotation": 30.0} | keys), seed=0)
    datamodule.setup()
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(3)
    return [datamodule.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.mark.parametrize("memory", [False, True, "device"])
def test_the_device_mixes_augmented_images_wherever_they_are_kept(root: Path, memory: bool | str) -> None:
    keys = {"in_memory": memory, "brightness": 0.2}
    plain, mixed = batches(root, **keys), batches(root, mixup=0.4, **keys)
    assert [set(each) - set(plain[0]) for each in mixed] == [{"partner", "share"}] * len(plain)
    for one, other in zip(plain, mixed, strict=True):
        own = other["share"].view(-1, 1, 1, 1)
        expected = own * one["image"] + (1 - own) * one["image"][other["partner"]]
        torch.testing.assert_close(other["image"], expected, atol=1e-5, rtol=0)
        assert torch.equal(one["target"], other["target"])


def test_evaluation_mixes_nothing(root: Path) -> None:
    datamodule = DataModule(retinopathy(root, mixup=0.4), seed=0)
    datamodule.setup()
    for split in ("train", "test"):
        assert "share" not in next(iter(datamodule.evaluation_dataloader(split)))


@pytest.mark.parametrize(
    "objective",
    [
        cross_entropy(0.1, [1.0, 2.0, 0.5], [4, 4, 4]),
        mse("none", [4, 4, 4]),
        corn("balanced", [4, 2, 4]),
        smooth_l1(0.5, "none", [4, 4, 4]),
    ],
)
def test_the_step_mixes_the_losses_and_scores_the_class_of_the_larger_share(objective: Any) -> None:
    module = Classifier(nn.Identity(), objective, None, None, ["a", "b", "c"], True)
    outputs, targets = torch.randn(4, objective.num_outputs), torch.tensor([0, 2, 1, 2])
    partner, share = torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 0.5, 0.75, 0.9])
    module.forward = lambda images: outputs  # type: ignore[method-assign]
    batch = {"image": outputs, "target": targets, "partner": partner, "share": share}
    loss = module.training_step(batch, 0)
    own, others = objective.losses(outputs, targets), objective.losses(outputs, targets[partner])
    assert float(loss) == pytest.approx(float((share * own + (1 - share) * others).mean()), rel=1e-6)
    ((losses, scored, hard),) = module.split_metrics("train").rows
    assert losses.mean() == loss
    assert torch.equal(scored, outputs)
    assert torch.equal(hard, targets)


def test_mixing_cross_entropies_is_cross_entropy_with_a_soft_target() -> None:
    objective = cross_entropy(0.0, "none", [1, 1, 1])
    logits, share = torch.randn(1, 3), 0.7
    mixed = share * objective.losses(logits, torch.tensor([0])) + 0.3 * objective.losses(logits, torch.tensor([2]))
    soft = nn.functional.cross_entropy(logits, torch.tensor([[share, 0, 1 - share]]))
    assert float(mixed) == pytest.approx(float(soft), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [True, "device"])
def test_a_run_with_mixup_resumes_exactly_inside_an_epoch(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, memory: bool | str
) -> None:
    keys = ("data.mixup=0.4", "data.rotation=20", "data.batch_size=8", "trainer.max_epochs=2", "data.max_images=40")
    keys += (f"data.in_memory={str(memory).lower()}", "callbacks=ema")
    complete = make_run(*keys, name="complete")
    broken = make_run(*keys, "trainer.checkpoint_minutes=1e-9", name="broken")
    assert guarded(complete) == 0
    kill_inside(broken, monkeypatch)
    assert guarded(broken) == 0
    assert "resuming" in broken.log_file.read_text()
    assert same_end(complete, broken)


def test_a_loss_that_cannot_be_mixed_is_refused(make_run: MakeRun) -> None:
    def kappa(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return logits.sum(1)

    kappa.mixable = False  # type: ignore[attr-defined]
    objective, loss = Criterion(3, kappa), {"_target_": "mylab.kappa"}
    refuse_unmixable(objective, loss, 0.0)
    line = refusal(refuse_unmixable, objective, loss, 0.2)
    assert line.startswith("data.mixup=0.2: loss._target_ mylab.kappa has mixable=False")
    config = make_run("data.mixup=0.2").read_config()
    datamodule = build_datamodule(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_lab.objectives.Softmax.mixable", False)
        assert refusal(build_module, config, datamodule, False).startswith("data.mixup=0.2: loss._target_ resnet_lab")


@pytest.mark.parametrize(("batch", "ranks", "refused"), [(1, 1, True), (2, 2, True), (2, 1, False), (4, 2, False)])
def test_one_image_per_batch_and_rank_is_refused(batch: int, ranks: int, refused: bool) -> None:
    for mixup in (0.0, 0.2):
        found = SimpleNamespace(data=SimpleNamespace(mixup=mixup, batch_size=batch))
        if mixup and refused:
            line = refusal(DataModule.refuse_lone_images, found, ranks)
            assert line.startswith(f"data.mixup=0.2: data.batch_size={batch}")
            assert f"set data.batch_size={2 * ranks} or more" in line
        else:
            DataModule.refuse_lone_images(found, ranks)


def test_a_job_with_single_images_fails_before_it_trains(make_run: MakeRun) -> None:
    run = make_run("data.mixup=0.2", "data.batch_size=1")
    assert guarded(run) == 1
    assert run.read_status()["error"].startswith("data.mixup=0.2: data.batch_size=1 leaves an image without a partner")
    assert not run.metrics_file.exists()
