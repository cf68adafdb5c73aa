"""95 % intervals of groups of runs and of the differences between them, over patients and over seeds.

What varies: the patients of the test set, whom all runs share, and the seeds, which each run has to itself.
- Patients: a bootstrap with the same draws for every run, so that all differences are paired.
- Seeds: how far the runs of a group lie apart, beyond what they would by the chance of the images alone (the draws show
  it). Two or three runs tell little of that, so a group borrows from the variances of all others, the more, the more
  alike these are (Smyth 2004). With one seed everywhere it is not known: the intervals are then about these networks.
Each part becomes a reach by Student's t with its own degrees of freedom, fewer the fewer patients or seeds it rests on
(Satterthwaite 1946), and the two are added as squares, on a scale without bounds (logit; artanh for kappa). Many
comparisons share one critical value, that of the largest of them in the draws (max-T, Westfall and Young 1993).
tests/test_intervals.py simulates how often all this errs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from resnet_lab.report.resampling import Answers, counts_of_patients, scores_of, sums_by_patient

DRAWS = 2000
ROUNDING = 1e-12
SMALLEST = 1e-4  # of the pooled variance: what stands for none at all before its logarithm is taken
# An expansion whose draws pass 1, where logits have no meaning: their spread makes intervals too wide, that of the
# draws themselves too narrow where seeds scatter far.
LINEAR = ("referable_auroc",)
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Limits of a value; NaN where nothing is known of them."""

    low: float
    high: float


class Comparisons(NamedTuple):
    """M differences, limits that hold for all of them together, and p-values corrected for there being M; (M,) each."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


class Seeds(NamedTuple):
    """How runs of a group differ through their seed, (G,) each; 0 where nothing is known."""

    spread: np.ndarray  # variance between runs
    chance: np.ndarray  # the part of it that the draw of the images explains
    freedom: np.ndarray  # degrees of freedom of the spread
    total: float = 0.0  # those of all groups together, which no sum of spreads has more of


@dataclass(frozen=True)
class Estimates:
    """One metric of G groups, in R draws of the patients, and with each of P patients left out."""

    metric: str
    values: np.ndarray  # (G,), means over the runs of a group
    draws: np.ndarray  # (G, R)
    left_out: np.ndarray  # (G, P)
    seeds: Seeds  # of the means

    @property
    def patients(self) -> int:
        """P; with fewer than two there are no intervals."""
        return self.left_out.shape[1]

    def interval(self, group: int) -> Interval:
        """95 % interval of one group's mean."""
        value, lower = self.values[group], -1.0 if self.metric == "qwk" else 0.0
        if self.patients < 2 or not np.isfinite(value):
            return Interval(np.nan, np.nan)
        if not lower < value < 1:
            return self._at_the_edge(value)
        slope = (1 - lower) / (1 - value) / (value - lower)
        patients = float(np.nanvar(_unbounded(self.draws[group], lower), ddof=1)) / slope**2
        if self.metric in LINEAR:
            patients = float(np.sqrt(patients * np.nanvar(self.draws[group], ddof=1)))
        by_patients, by_seeds = self._squares(np.eye(len(self.values))[group], (1 + CONFIDENCE) / 2)
        seeds = max(self.seeds.spread[group] - self.seeds.chance[group], 0.0)
        reach = slope * np.sqrt(patients * by_patients + seeds * by_seeds)
        low, high = special.expit(_unbounded(value, lower) + np.array([-reach, reach]))
        return Interval(lower + (1 - lower) * low, lower + (1 - lower) * high)

    def _at_the_edge(self, value: float) -> Interval:
        """Wilson's limits where all images are right, or none; of other metrics nothing is known there."""
        if self.metric != "accuracy":
            return Interval(np.nan, np.nan)
        square = special.ndtri((1 + CONFIDENCE) / 2) ** 2
        reach = float(square / (self.patients + square))
        return Interval(0.0, reach) if value == 0 else Interval(1 - reach, 1.0)

    def _squares(self, contrast: np.ndarray, level: float) -> tuple[float, float]:
        """Squares of Student's t at a one-sided level for the variances over patients and over seeds."""
        influence = contrast @ self.left_out
        influence = influence - influence.mean()
        squares = np.sum(influence**2)
        # the variance of a variance; large where few patients make it up
        excess = np.sum(influence**4) - squares**2 / self.patients
        few = max(2 * squares**2 / excess, 2) if excess > 0 else np.inf
        parts = contrast**2 * self.seeds.spread
        known = parts > 0
        several = 1.0
        if known.any():
            sum_of_parts = parts[known].sum() ** 2 / np.sum(parts[known] ** 2 / self.seeds.freedom[known])
            several = min(float(sum_of_parts), self.seeds.total)
        freedoms = min(few, self.patients - 1), several
        by_patients, by_seeds = special.stdtrit(freedoms, level) ** 2
        return float(by_patients), float(by_seeds)

    def _reach(self, contrast: np.ndarray, level: float) -> float:
        """How far the limits of a contrast (G,) are from it at a one-sided level.

        Groups differ by little but their seeds where nothing is to be found, so the variance between the runs stands in
        for all that it explains, unless the patients alone give more.
        """
        patients = float(np.nanvar(contrast @ self.draws, ddof=1))
        by_patients, by_seeds = self._squares(contrast, level)
        spread, chance = contrast**2 @ self.seeds.spread, contrast**2 @ self.seeds.chance
        both = max(patients - chance, 0) * by_patients + spread * by_seeds
        return float(np.sqrt(max(patients * by_patients, both)))

    def compare(self, contrasts: np.ndarray) -> Comparisons:
        """Contrasts (M, G) of the values, such as 1 for one group and -1 for another, all at once."""
        values = contrasts @ self.values
        values[np.abs(values) < ROUNDING] = 0  # means of equal numbers
        if self.patients < 2 or not len(contrasts):
            nothing = np.full(len(values), np.nan)
            return Comparisons(values, nothing, nothing, np.ones(len(values)))
        largest = self._largest(contrasts)
        critical = float(np.quantile(largest, CONFIDENCE))
        reach = np.array([self._reach(contrast, special.ndtr(critical)) for contrast in contrasts])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(reach > 0, critical * np.abs(values) / reach, np.where(values == 0, 0, np.inf))
        p = np.array([np.mean(largest >= ratio) for ratio in ratios])
        largest_difference = (2 if self.metric == "qwk" else 1) * np.abs(contrasts).sum(axis=1) / 2
        low, high = (np.clip(values + side * reach, -largest_difference, largest_difference) for side in (-1, 1))
        return Comparisons(values, low, high, p)

    def _largest(self, contrasts: np.ndarray) -> np.ndarray:
        """Of each draw (R,), the largest of the contrasts in standard errors, were there no difference at all."""
        seeds = np.maximum(self.seeds.spread - self.seeds.chance, 0)
        centred = np.nan_to_num(self.draws - np.nanmean(self.draws, axis=1, keepdims=True))
        errors = np.sqrt((contrasts @ centred).var(axis=1, ddof=1) + contrasts**2 @ seeds)
        noise = np.random.default_rng(1).normal(size=centred.shape)
        differences = np.abs(contrasts @ (centred + np.sqrt(seeds)[:, None] * noise))
        return (differences / np.where(errors > 0, errors, np.inf)[:, None]).max(axis=0)

    def against_best(self) -> tuple[int, Comparisons]:
        """The group with the largest value, and by how much each group falls short of it, (G,) each.

        Corrected for all pairs, since the best is chosen by looking (Tukey's range, not Dunnett's control).
        """
        groups, best = len(self.values), int(np.nanargmax(self.values))
        others = [group for group in range(groups) if group != best]
        pairs = [(group, best) for group in others]
        pairs += [(one, other) for one in others for other in others if one < other]
        contrasts = np.zeros((len(pairs), groups))
        for place, (one, other) in enumerate(pairs):
            contrasts[place, one], contrasts[place, other] = 1, -1
        found = self.compare(contrasts)
        of_best = zip(found, (0.0, 0.0, 0.0, 1.0), strict=True)
        return best, Comparisons(*(np.insert(column[: groups - 1], best, own) for column, own in of_best))


def _unbounded(values: np.ndarray | float, lower: float) -> np.ndarray:
    """Logit of values between `lower` and 1; twice the artanh where `lower` is -1."""
    share = (np.asarray(values) - lower) / (1 - lower)
    return special.logit(np.clip(share, 1e-4, 1 - 1e-4))


def estimate(groups: Sequence[Sequence[Answers]], patient: np.ndarray, draws: int = DRAWS) -> dict[str, Estimates]:
    """Every metric of groups of runs that differ in their seed, all on the same N images.

    Args:
        groups: the answers of the runs of each group.
        patient: the patient of each image (N,), integers from 0 to P - 1, all of which occur.
        draws: R.
    """
    counts = counts_of_patients(int(patient.max()) + 1, draws)
    parts = [[_resample(sums_by_patient(answers, patient), counts) for answers in runs] for runs in groups]
    return {metric: _pool(metric, parts) for metric in parts[0][0][0]}


Resampled = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


def _resample(sums: np.ndarray, counts: np.ndarray) -> Resampled:
    """Scores of one run: as they are (), of the draws (R,), and with each patient left out (P,)."""
    total = sums.sum(axis=0)
    return scores_of(total), scores_of((counts @ sums.astype(np.float32)).astype(float)), scores_of(total - sums)


def _pool(metric: str, parts: Sequence[Sequence[Resampled]]) -> Estimates:
    values = [np.array([run[0][metric] for run in runs]) for runs in parts]
    draws = [np.stack([run[1][metric] for run in runs]) for runs in parts]
    left_out = [np.stack([run[2][metric] for run in runs]).mean(axis=0) for runs in parts]
    spread, chance, freedom, total = seeds_of(values, draws)
    sizes = np.array([len(runs) for runs in values])
    return Estimates(
        metric,
        np.array([runs.mean() for runs in values]),
        np.stack([runs.mean(axis=0) for runs in draws]),
        np.stack(left_out),
        Seeds(spread / sizes, chance / sizes, freedom, total),
    )


def seeds_of(values: Sequence[np.ndarray], draws: Sequence[np.ndarray]) -> Seeds:
    """What a single run of each of G groups owes to its seed.

    Settings differ in how far their seeds scatter, but few runs show it badly: a group borrows from the others as far
    as their variances are alike (`moderated`). One with a single run has that of the others, which is the best guess
    and no more.

    Args:
        values: one array (n,) a group.
        draws: one array (n, R) a group.
    """
    found = Seeds(*np.zeros((3, len(values))))
    several = np.array([len(runs) > 1 and bool(np.isfinite(runs).all()) for runs in values])
    if not several.any():
        return found
    places = [group for group, known in enumerate(several) if known]
    spread = np.array([values[group].var(ddof=1) for group in places])
    chance = np.array([_chance(draws[group]) for group in places])
    freedom = np.array([len(values[group]) - 1.0 for group in places])
    known, prior = moderated(spread, freedom)
    found.spread[several], found.freedom[several] = known
    found.spread[~several], found.freedom[~several] = prior
    found.chance[several] = chance
    found.chance[~several] = freedom @ chance / freedom.sum()
    return found._replace(total=float(freedom.sum()))


def moderated(variances: np.ndarray, freedom: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[float, float]]:
    """Variances raised to a common one by as much as they are alike: empirical Bayes of Smyth (2004, limma).

    The logarithms of sample variances scatter by themselves; what they scatter beyond that says how much each knows of
    the others, as the degrees of freedom of the common variance. Unlike in limma none is lowered, as the few groups of
    a sweep do not tell well enough how alike they are; none has more degrees of freedom than all groups together.

    Args:
        variances: of G groups (G,).
        freedom: their degrees of freedom (G,).

    Returns:
        Variances and degrees of freedom of the groups (G,), and the common ones.
    """
    total = float(freedom.sum())
    pooled = float(freedom @ variances) / total
    if len(variances) < 2 or pooled == 0:
        return (variances, freedom), (pooled, total)
    logs = np.log(np.maximum(variances, SMALLEST * pooled)) - special.digamma(freedom / 2) + np.log(freedom / 2)
    beyond = float(logs.var(ddof=1) - special.polygamma(1, freedom / 2).mean())
    if beyond <= 0:  # as alike as can be
        alike, common = np.inf, pooled
    else:
        alike = 2 * float(optimize.brentq(lambda half: special.polygamma(1, half) - beyond, 0.05, 1e8))
        common = float(np.exp(logs.mean() + special.digamma(alike / 2) - np.log(alike / 2)))
    weight = np.minimum(alike, 1e9)
    drawn = np.maximum(variances, (weight * common + freedom * variances) / (weight + freedom))
    return (drawn, np.minimum(weight + freedom, total)), (common, float(min(weight, total)))


def _chance(draws: np.ndarray) -> float:
    """The variance between n runs (n, R) that comes from the draw of the images."""
    apart = draws - draws.mean(axis=0)
    return float(np.nanvar(apart, axis=1, ddof=1).sum() / (len(draws) - 1))
