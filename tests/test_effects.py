"""Effects of axes: means of paired differences, and sentences that claim no more than the intervals allow."""

import numpy as np
import pytest
from fake_runs import change_status, write_run, write_sweep

from resnet_lab.report.effects import confounded_of, effects_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.leaderboard import rows_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.summaries import headline, summary
from resnet_lab.run_folder import find_runs


def table_of(folder, metric="accuracy"):
    (table,) = tables_of([read_run(run) for run in find_runs([folder])], metric)
    return table


def write_grid(root, skills, seeds=(0, 1, 2), images=400):
    """Write runs from (depth, pretrained) → skill."""
    for (depth, pretrained), skill in skills.items():
        for seed in seeds:
            write_run(root / f"{depth}-{pretrained}-{seed}", depth, pretrained, seed, skill, images=images)


def test_an_effect_is_the_mean_of_the_paired_differences(tmp_path):
    table = table_of(write_sweep(tmp_path / "sweep"))
    means = {
        (group.values["model.depth"], group.values["model.pretrained"]): group.mean_and_std("accuracy")[0]
        for group in table.groups
    }
    depth, pretrained = effects_of(table)
    assert (depth.label, pretrained.label) == ("depth=50 instead of 18", "pretrained=IMAGENET1K_V1 instead of none")
    by_weights = [means[50, weights] - means[18, weights] for weights in ("none", "IMAGENET1K_V1")]
    assert depth.settings == pytest.approx(by_weights)
    assert depth.value == pytest.approx(np.mean(by_weights))
    assert depth.low < depth.value < depth.high


def test_a_large_effect_is_stated_and_no_effect_is_inconclusive(tmp_path):
    skills = {(depth, weights): 4.0 if weights else 1.5 for depth in (18, 50) for weights in (None, "web")}
    write_grid(tmp_path, skills)
    depth, pretrained = effects_of(table_of(tmp_path))
    assert pretrained.low > 0
    assert "averaged over the other axes. It raises accuracy on images like these." in pretrained.sentence
    assert depth.low < 0 < depth.high
    limits = f"from {100 * depth.low:+.2f} to {100 * depth.high:+.2f} points.".replace("-", "−")
    assert depth.sentence.endswith(f"These runs cannot show a difference; the true one may be anything {limits}")


def test_an_average_that_hides_opposite_differences_says_so(tmp_path):
    write_grid(tmp_path, {(18, None): 3.0, (50, None): 1.0, (18, "web"): 1.0, (50, "web"): 3.0})
    depth, _ = effects_of(table_of(tmp_path))
    assert "depends on the other axes" in depth.sentence
    for value, rest in zip(depth.settings, ("pretrained=none", "pretrained=web"), strict=True):
        assert f"{100 * value:+.2f} at {rest}".replace("-", "−") in depth.sentence


def test_networks_that_predict_one_class_have_no_difference_and_no_limits(tmp_path):
    write_grid(tmp_path, {(depth, None): 0.0 for depth in (18, 50)})
    (depth,) = effects_of(table_of(tmp_path, "qwk"))
    assert (depth.low, depth.high, depth.p) == (0, 0, 1)
    assert "QWK +0.000. Each of these runs predicts one class" in depth.sentence
    assert "[" not in depth.sentence


def test_a_difference_from_groups_of_which_only_some_leak_says_so(tmp_path):
    write_grid(tmp_path, {(18, None): 1.0, (50, None): 4.0})
    assert "leak" not in effects_of(table_of(tmp_path))[0].sentence
    for run in find_runs([tmp_path]):
        if "50" in run.path.name:
            change_status(run.path, seen_by={"model.pretrained": {"val": 3, "test": 5}})
    table = table_of(tmp_path)
    sentence = effects_of(table)[0].sentence
    assert "Only some of these groups leak, which may cause the difference." in sentence
    assert "raises" not in sentence
    assert "depth=50 leaks, so its score may be too high." in headline(table)
    assert {row.label: row.remark for row in rows_of(table)[:2]} == {"depth=50": "3 leaking", "depth=18": ""}
    assert dict(zip(summary([table])["group"], summary([table])["n_leaking"], strict=True)) == {
        "depth=18": 0,
        "depth=50": 3,
    }
    for run in find_runs([tmp_path]):
        change_status(run.path, seen_by={"model.pretrained": {"val": 3, "test": 0}})  # the scores do not leak
    assert not any(run.leaking for run in table_of(tmp_path).scored)
    for run in find_runs([tmp_path]):
        change_status(run.path, leaks=7)
    assert "leak" not in effects_of(table_of(tmp_path))[0].sentence  # all leak alike


def test_with_one_seed_each_the_sentence_is_about_these_networks(tmp_path):
    write_grid(tmp_path, {(18, None): 2.0, (50, None): 2.0}, seeds=(0,))
    (effect,) = effects_of(table_of(tmp_path))
    assert effect.sentence.endswith("this compares trained networks, not settings.")


def test_sweeps_that_differ_in_several_settings_are_no_single_effect(tmp_path):
    own = {"optim._target_": "my.optim", "optim.lr": 0.5, "data.image_size": 64, "trainer.max_epochs": 9}
    for name, config in (("first", {}), ("own", own)):
        for seed in (0, 1):
            write_run(tmp_path / name / str(seed), seed=seed, config=config)
    (effect,) = effects_of(table_of(tmp_path))
    assert effect.sentence.startswith("sweep=own instead of first: accuracy ")
    several = " The sweeps differ in several settings (data.image_size, optim, trainer.max_epochs), whose effects "
    assert several + "cannot be separated." in effect.sentence


def test_one_patient_allows_no_interval(tmp_path):
    write_grid(tmp_path, {(18, None): 2.0, (50, None): 2.0}, images=2)
    (effect,) = effects_of(table_of(tmp_path))
    assert effect.sentence.endswith("no interval, since all images are of one patient.")


def test_axes_that_change_together_are_named_not_guessed(tmp_path):
    write_grid(tmp_path, {(18, None): 2.0, (50, "web"): 2.0})
    table = table_of(tmp_path)
    assert effects_of(table) == []
    assert confounded_of(table) == ["model.depth", "model.pretrained"]


def test_keys_that_the_choice_of_a_part_determines_are_one_axis_with_it(tmp_path):
    smooth, mse = (
        {"loss._target_": "resnet_lab.objectives.cross_entropy", "loss.label_smoothing": 0.0},
        {
            "loss._target_": "resnet_lab.objectives.mse",
            "loss.label_smoothing": None,
        },
    )
    for depth in (18, 50):
        for name, config in (("ce", smooth), ("mse", mse)):
            write_run(
                tmp_path / f"{name}-{depth}", depth, skill=3.0 if name == "mse" else 1.0, images=400, config=config
            )
    table = table_of(tmp_path)
    depth, loss = effects_of(table)
    assert (depth.axis, loss.axis) == ("model.depth", "loss._target_")
    assert loss.label == "loss=mse instead of loss=cross_entropy label_smoothing=0"
    assert len(loss.settings) == 2
    assert confounded_of(table) == []
    write_run(tmp_path / "more", 18, skill=1.0, images=400, config=smooth | {"loss.label_smoothing": 0.1})
    assert "loss.label_smoothing" in {effect.axis for effect in effects_of(table_of(tmp_path))}


def test_a_single_group_has_no_effects(tmp_path):
    write_grid(tmp_path, {(18, None): 2.0})
    assert effects_of(table_of(tmp_path)) == []
    assert confounded_of(table_of(tmp_path)) == []


@pytest.mark.parametrize("metric", ["qwk", "auroc"])
def test_a_key_without_effect_changes_nothing(tmp_path, metric):
    for depth in (18, 34, 50, 101, 152):
        for lr in (0.1, 0.01):
            write_run(tmp_path / f"{depth}-{lr}", depth, config={"optim.lr": lr}, images=600)
    rate = next(effect for effect in effects_of(table_of(tmp_path, metric)) if effect.axis == "optim.lr")
    assert (rate.value, rate.p) == (0, 1)
    assert "These runs cannot show a difference" in rate.sentence
    assert "depends" not in rate.sentence
