"""Intervals and tie marks: against scipy, and by simulation of their error rates."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from fake_predictions import SHARES, World
from scipy import stats

from resnet_lab.report import intervals
from resnet_lab.report.intervals import Estimates, Seeds, estimate, moderated, seeds_of
from resnet_lab.scores import SCORES, Predictions

BY_CLASSES = {"auroc", "balanced_accuracy", "f1_macro", "precision_macro", "recall_macro"}
LEADERBOARD = [name for name, score in SCORES.items() if "leaderboard" in score.shown]
ORDINAL = (0.33, 0.05, 0.31, 0.185, 0.125)  # the test photographs of IDRiD


def one_group(seed: int = 0, patients: int = 200, runs: int = 1, **settings):
    world = World(np.random.default_rng(seed), **settings)
    targets, patient, hard = world.patients(patients)
    return [world.predictions(targets, hard) for _ in range(runs)], patient


def normal_estimates(values, spread: float, groups: int = 3, draws: int = 4000, shared: float = 0.0) -> Estimates:
    """Return made-up groups with normal contributions of the patients, independent except for a shared part."""
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(groups, draws)) * spread + shared * generator.normal(size=draws)
    left_out = np.array(values)[:, None] + generator.normal(size=(groups, 400)) * spread / 400
    return Estimates(
        "accuracy", np.array(values), np.array(values)[:, None] + noise, left_out, Seeds(*np.zeros((3, groups)))
    )


def test_limits_lie_close_to_those_of_scipys_bootstrap():
    (predictions,), _ = one_group()
    right = (predictions.targets == predictions.classes).astype(float)
    alone = np.arange(len(right))
    found = estimate([[predictions]], alone)["accuracy"].interval(0)
    expected = stats.bootstrap((right,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.006)
    wilson = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    assert found == pytest.approx((wilson.low, wilson.high), abs=0.006)


def test_two_eyes_of_a_patient_count_for_less_than_two_patients():
    predictions, patient = one_group(patients=300)
    double = Predictions(*(np.repeat(column, 2, axis=0) for column in predictions[0]))
    wide = estimate([[double]], np.repeat(patient, 2))["qwk"].interval(0)
    narrow = estimate([[double]], np.arange(2 * len(patient)))["qwk"].interval(0)
    once = estimate([predictions], patient)["qwk"].interval(0)
    assert wide == pytest.approx(once, abs=0.01)
    assert narrow.high - narrow.low < 0.8 * (wide.high - wide.low)


def labeled(right: int, images: int, classes: int = 2) -> Predictions:
    """Return predictions with a given number of correct ones; classes are of equal size if possible."""
    targets = np.arange(images) % classes
    predictions = np.where(np.arange(images) < right, targets, (targets + 1) % classes)
    return Predictions(targets, predictions, np.eye(classes)[predictions])


def wilsons(right: float, images: float) -> tuple[float, float]:
    """Compute Wilson's limits by definition: shares within 1.96 of their standard errors of the observed one."""
    share, square = right / images, 1.959963984540054**2
    return tuple(np.sort(np.roots([images + square, -2 * right - square, images * share**2])).real)


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        (199, 200, 97.22, 99.91),
        (999, 1000, 99.44, 99.98),
        (98, 100, 93.00, 99.45),
        (1, 135, 0.13, 4.08),
        (12, 16, 50.50, 89.82),
        (200, 200, 98.12, 100),
        (0, 16, 0, 19.36),
    ],
)
def test_accuracy_of_one_run_on_independent_images_has_wilsons_limits(right, images, low, high):
    found = estimate([[labeled(right, images)]], np.arange(images), 10)
    expected = stats.binomtest(right, images).proportion_ci(method="wilson")
    for metric in ("accuracy", "recall_weighted"):
        assert found[metric].interval(0) == pytest.approx((expected.low, expected.high))
        assert found[metric].interval(0) == pytest.approx((low / 100, high / 100), abs=6e-5)


@pytest.mark.parametrize("right", [0, 1, 40, 97, 99, 100])
def test_two_equal_images_of_each_patient_are_half_as_many(right):
    once = labeled(right, 100)
    double = Predictions(*(np.repeat(column, 2, axis=0) for column in once))
    alone, twice = (
        estimate([[predictions]], np.repeat(np.arange(100), times), 10)
        for predictions, times in ((once, 1), (double, 2))
    )
    for metric in ("accuracy", "recall_weighted", "f1_weighted"):
        assert twice[metric].interval(0) == pytest.approx(alone[metric].interval(0), abs=1e-9), metric
    for metric in ("balanced_accuracy", "qwk", "auroc", "f1_macro"):
        assert twice[metric].interval(0) == pytest.approx(alone[metric].interval(0), abs=0.025), metric
    assert twice["accuracy"].interval(0) == pytest.approx(wilsons(right, 100), abs=1e-9)


@pytest.mark.parametrize("right", [0, 1, 40, 99, 100])
def test_three_equal_seeds_are_one(right):
    one = labeled(right, 100)
    alone, thrice = (estimate([[one] * runs], np.arange(100), 10) for runs in (1, 3))
    for metric in alone:
        assert thrice[metric].interval(0) == pytest.approx(alone[metric].interval(0), abs=1e-9, nan_ok=True), metric


def test_the_design_effect_of_patients_is_that_of_their_errors():
    """Errors in pairs count once, other errors count each; half an error is one of a pair."""
    patient = np.repeat(np.arange(100), 2)
    for errors, effect in (([0, 1, 2, 3], 2.0), ([0, 2, 4, 6], 1.0)):
        predictions = labeled(200, 200)
        predictions.classes[errors] = 1 - predictions.targets[errors]
        weight = (0.98 * 4) / effect / (0.98 * 4 / effect + 0.5)
        assumed = weight * effect + (1 - weight) * 2
        low, high = estimate([[predictions]], patient, 10)["accuracy"].interval(0)
        assert (low, high) == pytest.approx(wilsons(196 / assumed, 200 / assumed), abs=2e-3)


def test_limits_do_not_jump_at_the_edge():
    predictions = labeled(400, 400, classes=4)
    certain = estimate([[predictions]], np.arange(400), 10)
    predictions.probabilities[0] = 0, 0, 1, 0  # an error
    predictions.classes[0] = 2
    nearly = estimate([[predictions]], np.arange(400), 10)
    for metric, found in certain.items():
        low, high = found.interval(0)
        assert high == pytest.approx(1), metric
        assert nearly[metric].interval(0).low == pytest.approx(low, abs=0.012), metric
        assert 0.99 < nearly[metric].values[0] < nearly[metric].interval(0).high < 1, metric


@pytest.mark.parametrize(
    ("sizes", "withheld"),
    [
        ((8, 30, 8), set()),
        ((7, 30, 30), BY_CLASSES),
        ((30, 30, 7), {*BY_CLASSES, "referable_auroc"}),
        ((4, 3, 30), {*BY_CLASSES, "referable_auroc"}),
        ((30, 0, 8), set()),
    ],
)
def test_too_few_images_of_a_class_leave_some_metrics_without_an_interval(sizes, withheld):
    targets = np.repeat([0, 1, 2], sizes)
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), len(targets)) + np.eye(3)[targets]
    predictions = Predictions(targets, probabilities.argmax(axis=1), probabilities)
    found = estimate([[predictions], [predictions]], np.arange(len(targets)), 50)
    nothing = {metric for metric, each in found.items() if np.isnan(each.interval(0).low)}
    assert nothing == withheld
    assert {metric for metric, each in found.items() if each.withheld} == nothing
    for metric in nothing:
        best = found[metric].against_best()[1]
        assert np.isnan(best.low[1])
        assert best.p[1] == 1


def test_a_score_that_depends_on_one_patient_has_no_interval():
    predictions = labeled(20, 20)
    predictions.targets[:] = np.arange(20) == 0
    predictions.classes[:] = np.arange(20) == 0
    found = estimate([[predictions]], np.arange(20), 50)["qwk"]
    assert found.values[0] == 1
    assert np.isnan(found.interval(0)).all()
    assert "undefined" in found.withheld


def test_a_constant_predictor_has_a_score_without_sampling_variance():
    targets = np.arange(60) % 3
    predictions = Predictions(targets, np.zeros(60, int), np.full((60, 3), 1 / 3))
    found = estimate([[predictions]], np.arange(60), 50)
    assert found["balanced_accuracy"].interval(0) == pytest.approx((1 / 3, 1 / 3))
    assert found["qwk"].interval(0) == (0, 0)


def differing(only_first: int, only_second: int, images: int = 200) -> intervals.Comparisons:
    """Return two groups; each errs in a given number of images in which the other does not."""
    first, second = labeled(images, images), labeled(images, images)
    second.classes[:only_first] = 1 - second.targets[:only_first]
    first.classes[only_first : only_first + only_second] ^= 1
    return estimate([[first], [second]], np.arange(images), 2000)["accuracy"].compare(np.array([[1.0, -1.0]]))


@pytest.mark.parametrize("pair", [(1, 0), (4, 0), (5, 0), (6, 0), (8, 0), (7, 1), (9, 1), (12, 2)])
def test_few_differing_images_are_judged_as_by_the_exact_test(pair):
    found = differing(*pair)
    assert found.values[0] == pytest.approx((pair[0] - pair[1]) / 200)
    assert (found.p[0] <= 0.05) == (stats.binomtest(pair[1], sum(pair)).pvalue <= 0.05)
    assert (found.low[0] > 0) == (found.p[0] <= 0.05)


def test_equal_predictions_do_not_rule_out_every_difference():
    found = differing(0, 0)
    assert found.p[0] == 1
    assert (found.low[0], found.high[0]) == pytest.approx((-1.96 / 200, 1.96 / 200), rel=0.3)


def test_groups_at_99_percent_have_reasonable_limits_of_their_difference():
    found = differing(3, 1)
    assert found.values[0] == pytest.approx(0.01)
    assert -0.03 < found.low[0] < 0 < found.high[0] < 0.05


def test_one_patient_gives_no_interval_and_no_difference():
    predictions, patient = one_group(runs=2)
    found = estimate([predictions[:1], predictions[1:]], np.zeros_like(patient))["accuracy"]
    assert np.isnan(found.interval(0)).all()
    _, shortfall = found.against_best()
    assert shortfall.p.tolist() == [1, 1]


def test_a_single_comparison_is_a_z_test():
    made = normal_estimates([0.80, 0.77], 0.01, groups=2)
    found = made.compare(np.array([[1.0, -1.0]]))
    error = np.sqrt(2) * 0.01
    assert found.values == pytest.approx([0.03])
    assert (found.low[0], found.high[0]) == pytest.approx((0.03 - 1.96 * error, 0.03 + 1.96 * error), abs=0.001)
    assert found.p[0] == pytest.approx(2 * stats.norm.sf(0.03 / error), abs=0.01)


def test_all_pairs_are_compared_at_tukeys_critical_value():
    made = normal_estimates([0.80, 0.77, 0.76, 0.75, 0.70], 0.01, groups=5, draws=20_000, shared=0.05)
    best, shortfall = made.against_best()
    assert best == 0
    np.testing.assert_allclose(shortfall.values, [0, -0.03, -0.04, -0.05, -0.10])
    reach = (shortfall.high - shortfall.low)[1:] / 2
    np.testing.assert_allclose(reach, stats.studentized_range.ppf(0.95, 5, np.inf) * 0.01, rtol=0.04)
    expected = stats.studentized_range.sf(-shortfall.values[1:3] / 0.01, 5, np.inf)
    np.testing.assert_allclose(shortfall.p[1:3], expected, atol=0.015)


def test_identical_runs_are_tied_and_differences_are_paired():
    predictions, patient = one_group()
    found = estimate([predictions, predictions], patient)["accuracy"]
    _, shortfall = found.against_best()
    assert (shortfall.values.tolist(), shortfall.p.tolist()) == ([0, 0], [1, 1])
    worse = predictions[0].classes.copy()
    worse[np.flatnonzero(worse == predictions[0].targets)[::30]] = 4  # 12 of 400 images differ
    found = estimate([predictions, [predictions[0]._replace(classes=worse)]], patient)["accuracy"]
    _, shortfall = found.against_best()
    assert shortfall.p[1] < 0.02
    assert found.interval(0).low < found.values[1]  # although the intervals overlap


def test_only_constant_scores_differ_without_limits():
    (varying,), patient = one_group()
    first, second = (varying._replace(classes=np.full_like(varying.classes, number)) for number in (0, 1))
    estimates = estimate([[first], [second], [varying]], patient, 200)
    found = estimates["qwk"].compare(np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]))
    assert (found.low[0], found.high[0], found.p[0]) == (0, 0, 1)
    assert found.low[1] < found.values[1] < found.high[1]
    found = estimates["accuracy"].compare(np.array([[1.0, -1.0, 0.0]]))  # it depends on the patients
    assert found.low[0] < found.values[0] < found.high[0]
    several = estimate([[first, second], [second, first], [varying, first]], patient, 200)["qwk"]
    assert several.seeds.between[0] > 0  # borrowed: another seed may predict several classes
    assert several.compare(np.array([[1.0, -1.0, 0.0]])).high[0] > 0


def test_seeds_widen_the_interval_of_the_patients():
    predictions, patient = one_group(runs=4, seed_spread=1.0)
    together = estimate([predictions], patient)["accuracy"]
    runs = [estimate([[run]], patient)["accuracy"].values[0] for run in predictions]
    assert together.values[0] == pytest.approx(np.mean(runs))
    low, high = together.interval(0)
    alone_low, alone_high = estimate([predictions[:1]], patient)["accuracy"].interval(0)
    assert high - low > alone_high - alone_low
    assert high - low > 2 * 3.18 * np.std(runs, ddof=1) / np.sqrt(4) * 0.9  # t with 3 degrees of freedom


def test_similar_seed_variances_are_pooled_and_a_single_run_gets_that_of_the_others():
    runs = [0.8 + 0.01 * np.array([-1, 0, 1.0]), 0.5 + 0.012 * np.array([-1, 0, 1.0]), np.array([0.7])]
    still = [np.random.default_rng(0).normal(size=1000) * 0.001 + each[:, None] for each in runs]
    found = seeds_of(runs, still)
    pooled = (0.01**2 + 0.012**2) / 2
    np.testing.assert_allclose(found.between, [pooled, 0.012**2, pooled])  # no variance is lowered
    np.testing.assert_allclose(found.degrees, [4, 4, 4])
    assert found.total == 4


def test_very_different_seed_variances_are_not_pooled():
    variances = np.array([1e-6, 1e-2, 1e-6, 1e-2, 1e-6, 1e-2])
    (drawn, freedom), (common, alike) = moderated(variances, np.full(6, 2.0))
    assert (drawn >= variances).all()
    assert drawn[1] == variances[1]
    assert drawn[0] < 1e-4
    assert (freedom < 3).all()
    assert 1e-8 < common < 1e-3
    assert alike < 1


def test_the_similarity_of_variances_is_estimated():
    generator = np.random.default_rng(3)
    true = 0.02 / (generator.chisquare(6, 4000) / 6)  # a common variance of 0.02 with 6 degrees of freedom
    sample = true * generator.chisquare(2, 4000) / 2
    (_, freedom), (common, alike) = moderated(sample, np.full(4000, 2.0))
    assert common == pytest.approx(0.02, rel=0.1)
    assert alike == pytest.approx(6, rel=0.25)
    assert freedom[0] == pytest.approx(alike + 2)


def test_a_clear_winner_of_many_groups_is_found_with_two_seeds_each():
    world, better = (World(np.random.default_rng(1), skill=skill, seed_spread=0.1) for skill in (0.6, 1.8))
    targets, patient, hard = world.patients(400)
    groups = [[network.predictions(targets, hard) for _ in range(2)] for network in (better, *[world] * 17)]
    best, found = estimate(groups, patient, 800)["qwk"].against_best()
    assert best == 0
    assert (found.p[1:] <= 0.05).mean() > 0.6
    assert (np.abs(found.low) <= 2).all()
    alone = estimate([runs[:1] for runs in groups], patient, 800)["qwk"].against_best()[1]
    assert (alone.p[1:] <= 0.05).all()


def test_unequal_variances_have_welchs_degrees_of_freedom():
    one, other = np.array([0.79, 0.80, 0.81, 0.82]), np.array([0.5, 0.7, 0.9])
    spread, freedom = np.array([one.var(ddof=1) / 4, other.var(ddof=1) / 3]), np.array([3.0, 2.0])
    seeds = Seeds(spread, np.zeros(2), freedom, total=5.0)
    made = Estimates("accuracy", np.array([one.mean(), other.mean()]), np.zeros((2, 40_000)), np.zeros((2, 500)), seeds)
    found = made.compare(np.array([[1.0, -1.0]]))
    expected = stats.ttest_ind(one, other, equal_var=False)
    reach = expected.confidence_interval().high - (one.mean() - other.mean())
    assert (found.high - found.low)[0] / 2 == pytest.approx(reach, rel=0.05)


def test_variance_due_to_images_is_not_counted_twice():
    generator = np.random.default_rng(0)
    runs = [0.8 + 0.02 * generator.normal(size=3) for _ in range(200)]
    left_out = [run[:, None] + 0.02 / np.sqrt(299) * generator.normal(size=(3, 300)) for run in runs]
    found = seeds_of(runs, left_out)
    assert found.between.min() == pytest.approx(0.02**2, rel=0.15)  # the pooled one
    assert found.sampling.mean() == pytest.approx(0.02**2, rel=0.05)


def test_metrics_that_are_not_compared_have_the_same_intervals_without_draws():
    predictions, patient = one_group(runs=3)
    every = estimate([predictions], patient, 50)
    some = estimate([predictions], patient, 50, metrics=["qwk", "auroc"], compared=["qwk"])
    assert list(some) == ["qwk", "auroc"]
    assert some["auroc"].draws.shape == (1, 0)
    assert some["auroc"].interval(0) == every["auroc"].interval(0)
    np.testing.assert_allclose(some["qwk"].draws, every["qwk"].draws)


def test_single_runs_add_no_seed_variance():
    predictions, patient = one_group(runs=2)
    found = estimate([predictions[:1], predictions[1:]], patient)["qwk"]
    assert not any(np.any(each) for each in found.seeds)


def misses(
    sweeps: int, patients: int, groups: int, runs: int, draws: int = 2, networks: int = 200, **settings
) -> tuple[dict, dict]:
    """Return shares by metric: intervals of a first group that miss the truth; sweeps in which a group is not tied.

    Only sweeps with an interval count.
    """
    world = World(np.random.default_rng(2024), **settings)
    truth = world.truth(networks=networks if world.seed_spread else 30)
    outside, apart, counted = (dict.fromkeys(truth, 0.0) for _ in range(3))
    for _ in range(sweeps):
        targets, patient, hard = world.patients(patients)
        members = [[world.predictions(targets, hard) for _ in range(runs)] for _ in range(groups)]
        for metric, found in estimate(members, patient, draws).items():
            low, high = found.interval(0)
            if np.isnan(low):
                continue
            counted[metric] += 1
            outside[metric] += not low <= truth[metric] <= high
            apart[metric] += bool((found.against_best()[1].p <= 0.05).any()) if groups > 1 else False
    shares = (
        {metric: count / counted[metric] for metric, count in counts.items() if counted[metric]}
        for counts in (outside, apart)
    )
    return tuple(shares)


@pytest.mark.slow
def test_a_short_simulation_finds_no_gross_error():
    outside, apart = misses(80, patients=150, groups=3, runs=2, draws=200, networks=50, seed_spread=0.15)
    assert max(outside.values()) < 0.15
    assert max(apart.values()) < 0.15


def judge(shares: dict, least: float, most: float) -> None:
    """Print the shares of misses (`pytest -m slow -rP`), and check the limits for the metrics of every table."""
    print(" ".join(f"{metric} {100 * share:.1f}" for metric, share in shares.items()), "% missed")
    assert all(least <= shares[metric] <= most for metric in LEADERBOARD), shares
    assert max(shares.values()) <= most + 0.01, shares


SIMULATED = 3000  # sweeps, for a standard error of 0.4 points at 95 %


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "shares", "skill"), [(200, SHARES, 1.5), (500, SHARES, 1.5), (50, ORDINAL, 0.6), (200, [0.25] * 4, 1)]
)
def test_intervals_cover_the_truth_94_to_96_percent_of_the_time(patients, shares, skill):
    outside, _ = misses(SIMULATED, patients, groups=1, runs=1, shares=shares, skill=skill)
    judge(outside, 0.02, 0.065)  # conservative: most have fewer than eight images of a class, and so no interval


@pytest.mark.slow
@pytest.mark.parametrize("seed_spread", [0.15, 0.3])
def test_intervals_over_seeds_cover_the_truth(seed_spread):
    outside, _ = misses(SIMULATED, 200, groups=1, runs=3, seed_spread=seed_spread)
    judge(outside, 0.02, 0.065)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "runs", "seed_spread"), [(2, 1, 0.0), (10, 1, 0.0), (4, 2, 0.15), (4, 3, 0.0), (4, 3, 0.15), (4, 3, 0.5)]
)
def test_tie_marks_err_in_at_most_5_percent_of_sweeps_without_differences(groups, runs, seed_spread):
    _, apart = misses(1000, 200, groups, runs, draws=600, seed_spread=seed_spread)
    judge(apart, 0, 0.05 + 2 * 0.0069)  # two standard errors


def scattered(spreads, patients: int = 200, draws: int = 400, sweeps: int = 600) -> tuple[float, np.ndarray]:
    """Return, for groups of three normal runs with one mean, the share of sweeps with a worse group, and coverage."""
    generator, truth = np.random.default_rng(7), 0.7
    apart, holds = 0, np.zeros(len(spreads))
    for _ in range(sweeps):
        shared = generator.normal(size=patients) * 0.02 * np.sqrt(patients)
        counts = generator.multinomial(patients, np.full(patients, 1 / patients), draws)
        parts = []
        for spread in spreads:
            part = []
            for _ in range(3):
                images = shared + generator.normal(size=patients) * 0.005 * np.sqrt(patients)
                mean = truth + spread * generator.normal()
                left = (images.sum() - images) / (patients - 1)
                scores = mean + images.mean(), mean + counts @ images / patients, mean + left
                part.append(tuple({"accuracy": score} for score in scores))
            parts.append(part)
        found = intervals._pool("accuracy", parts)
        best, shortfall = found.against_best()
        apart += bool((np.delete(shortfall.p, best) <= 0.05).any())
        limits = [found.interval(group) for group in range(len(spreads))]
        holds += [low <= truth <= high for low, high in limits]
    return apart / sweeps, holds / sweeps


@pytest.mark.slow
@pytest.mark.parametrize(
    "spreads", [(0.003, 0.003, 0.05, 0.05), (0.005, 0.005, 0.005, 0.05), (0.02,) * 4, (0.03, 0.03)]
)
def test_groups_with_different_seed_variances_are_judged_as_strictly(spreads):
    apart, holds = scattered(spreads)
    print(f"{100 * apart:.1f} % of sweeps with a group behind; held by {100 * holds.min():.1f} % or more of intervals")
    assert apart <= 0.05 + 2 * 0.009
    assert holds.min() >= 0.95 - 3 * 0.009


def test_confidence_is_95_percent():
    assert intervals.CONFIDENCE == 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "seed_spread"), [(1, 0.0), (3, 0.15)])
def test_limits_of_a_difference_contain_the_true_one(runs, seed_spread):
    generator, sweeps = np.random.default_rng(11), 1500
    better, worse = (World(generator, skill=skill, seed_spread=seed_spread) for skill in (1.5, 1.0))
    true = [world.truth(networks=200 if seed_spread else 30) for world in (better, worse)]
    outside, judged = dict.fromkeys(LEADERBOARD, 0), dict.fromkeys(LEADERBOARD, 0)
    for _ in range(sweeps):
        targets, patient, hard = better.patients(200)
        groups = [[world.predictions(targets, hard) for _ in range(runs)] for world in (better, worse)]
        for metric, found in estimate(groups, patient, 600).items():
            if metric in outside and not found.withheld:
                difference = found.compare(np.array([[1.0, -1.0]]))
                judged[metric] += 1
                outside[metric] += not difference.low[0] <= true[0][metric] - true[1][metric] <= difference.high[0]
    assert min(judged.values()) > sweeps / 4
    shares = {metric: count / judged[metric] for metric, count in outside.items()}
    print(" ".join(f"{metric} {100 * share:.1f}" for metric, share in shares.items()), "% missed")
    assert all(share <= 0.05 + 3 * np.sqrt(0.0475 / judged[metric]) for metric, share in shares.items())


@pytest.fixture(scope="module")
def grid():
    file = Path(__file__).resolve().parent.parent / "benchmarks" / "intervals.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(file.parent))
        spec = importlib.util.spec_from_file_location("intervals_benchmark", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_true_scores_of_the_grid_are_means_of_drawn_ones(grid):
    for world, classes, seeds in (("recall", 5, 1), ("qwk", 5, 3), ("auroc", 5, 3), ("referable_auroc", 5, 1)):
        cell = grid.Cell(world, 0.8, 400, 2, classes, seeds)
        generator = np.random.default_rng(0)
        values = [estimate(*grid.draw(cell, generator), 2) for _ in range(30)]
        for metric, true in grid.calibrated(cell)[1].items():
            if metric in grid.WORLDS[world]:
                drawn = np.array([found[metric].values[0] for found in values])
                assert drawn.mean() == pytest.approx(true, abs=4 * drawn.std() / np.sqrt(30) + 0.004), (world, metric)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [
        ("recall", 0.99, 60, 1, 2, 1),
        ("recall", 0.95, 400, 2, 5, 3),
        ("qwk", 0.8, 60, 1, 5, 1),
        ("qwk", 0.99, 400, 2, 5, 1),
        ("auroc", 0.95, 60, 2, 2, 1),
        ("referable_auroc", 0.99, 400, 1, 5, 3),
    ],
)
def test_intervals_in_six_cells_of_the_grid_contain_the_true_score(grid, cell):
    for metric, (intervals_given, held, _) in grid.coverage(grid.Cell(*cell), 600, seed=2).items():
        if intervals_given > 100 and metric != "accuracy":
            assert held / intervals_given > 0.9, metric
