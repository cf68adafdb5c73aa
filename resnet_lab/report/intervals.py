"""95 % intervals of groups of runs and of the differences between them, over patients and over seeds.

Two things vary: the patients of the test set, shared by all runs, and the seeds, one per run.

- Patients: the jackknife gives the influence of each patient on a score; the variance is the sum of its squares.
  Differences use a bootstrap with the same draws for every run, so all differences are paired.
- Seeds: the variance between the runs of a group, beyond the sampling variance of the images. Two or three runs
  estimate it badly, so a group borrows from the other groups: the more alike their variances are, the more it borrows
  (Smyth 2004). With one seed everywhere, it is unknown; the intervals are then about these networks.

An interval is Wilson's (1927) for a share with an effective number of images: the number of independent images with
the same variance of accuracy (Korn and Graubard 1998). Therefore it never leaves the range of the score. Few errors
estimate the variance badly, so half an error of typical size (up to two) is added; without errors, it is all there is.
A difference has Student's t for patients and for seeds, each with its own degrees of freedom (Satterthwaite 1946), and
the same half error per group (Agresti and Min 2005). Many comparisons share one critical value: the quantile of the
largest of them in the draws (max-T, Westfall and Young 1993).
benchmarks/intervals.py and tests/test_intervals.py simulate the error rates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from resnet_lab.data.progress import with_progress
from resnet_lab.processes import in_two
from resnet_lab.report.resampling import counts_of_patients, drawn_predictions, scores_of, sums_by_patient
from resnet_lab.scores import SCORES, Predictions, Score
from resnet_lab.statistics import REFERABLE

DRAWS = 2000
ROUNDING = 1e-12
SMALLEST = 1e-4  # of the pooled variance: lower bound of a variance before its logarithm
CONFIDENCE = 0.95
Z = float(special.ndtri((1 + CONFIDENCE) / 2))
FEWEST = 8  # minimum of images of a class, and of positives and negatives of a curve, for an interval
CHECKED_IMAGES, CHECKED_PATIENTS = 16, 8  # the smallest test set of docs/results/intervals.md
PSEUDO = 0.5  # errors added to each of the compared groups
ONE_SIDED = 0.146  # one-sided error rate of a limit if there are few errors
LEAST_DEGREES = 12
AT_ONCE = 512  # contrasts whose draws are in memory at once
RUNS_AT_ONCE = 8  # runs that share a matrix product
FEW_OF_A_CLASS = f"a class has fewer than {FEWEST} images"


class Interval(NamedTuple):
    """Limits of a value; NaN if unknown."""

    low: float
    high: float


class Comparisons(NamedTuple):
    """M differences with simultaneous limits and corrected p-values; (M,) each."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


class Seeds(NamedTuple):
    """The variance between runs with different seeds, (G,) each; 0 if unknown."""

    between: np.ndarray  # variance between seeds
    sampling: np.ndarray  # sampling variance: the part of it that comes from the sample of images
    degrees: np.ndarray  # degrees of freedom of `between`
    total: float = 0.0  # degrees of freedom of all groups together: the upper bound


@dataclass(frozen=True)
class Estimates:
    """One metric of G groups, also in R draws of the patients and without each of P patients."""

    metric: str
    values: np.ndarray  # (G,), means over the runs of a group
    draws: np.ndarray  # (G, R); R = 0: only intervals are needed
    left_out: np.ndarray  # (G, P)
    seeds: Seeds  # of the means
    cost: float = 0.0  # cost of a typical error, as a share of the metric's range
    withheld: str = ""  # reason for the lack of intervals; empty if there are intervals

    @property
    def patients(self) -> int:
        """The number of patients P."""
        return int(self.left_out.shape[1])

    @property
    def score(self) -> Score:
        """The record of the metric."""
        return SCORES[self.metric]

    def interval(self, group: int) -> Interval:
        """Return the 95 % interval of one group's mean; both limits are the value if all its runs are constant."""
        value, lower, width = self.values[group], self.score.lower, self.score.range
        if self.withheld or not np.isfinite(value):
            return Interval(np.nan, np.nan)
        if np.isinf(self.score.upper):
            apart = self._half_widths(np.eye(len(self.values))[[group]], (1 + CONFIDENCE) / 2)[0]
            return Interval(max(float(value - apart), lower), float(value + apart))
        if self._constant[group]:
            return Interval(float(value), float(value))
        influence = self._influence_on(self.left_out[group])
        share = float(np.clip((value - lower) / width, 0, 1))
        cost = self._cost_of_error(group, share, influence)
        size = 1 / cost if cost else np.inf
        limits = wilson(share, size) if self.score.share else _with_few_errors(share, size)
        return Interval(*(lower + width * limit for limit in limits))

    @cached_property
    def _constant(self) -> np.ndarray:
        """Whether no patient changes the score of a group (G,), such as the kappa of runs that predict one class."""
        inside = (self.score.lower < self.values) & (self.values < self.score.upper)
        return np.asarray(inside & ~self._influence_on(self.left_out).any(axis=1) & np.isfinite(self.score.upper))

    def _cost_of_error(self, group: int, share: float, influence: np.ndarray) -> float:
        """Return the cost of an error if all errors cost the same: 1 / effective number of images.

        The variances over patients and over seeds have their own (t / z)² (Korn and Graubard 1998). Seeds vary less if
        the score is near its limit, so their variance on the logit scale is transferred to the center of the interval.
        """
        variance = float(influence @ influence)
        if not self.score.share:
            variance *= self.patients / (self.patients - 1)
        found = share * (1 - share)
        added = self.score.pseudo
        cost, weight = self.cost, 0.0
        if found:
            # share of the observed errors, found² / variance, among all errors
            weight = found**2 / (found**2 + added * variance)
            cost = weight * variance * (found + added * self.cost) / found**2
        cost *= self._student(share, influence, weight)
        center = (share + Z**2 * cost / 2) / (1 + Z**2 * cost)  # center of Wilson's interval; it is never 0 or 1
        seeds = max(self.seeds.between[group] - self.seeds.sampling[group], 0) / self.score.range**2
        by_seeds = self._square_by_seeds(np.eye(len(self.values))[[group]], (1 + CONFIDENCE) / 2)[0] / Z**2
        return float(cost + seeds * by_seeds * center * (1 - center) / (found**2 or np.inf))

    def _influence_on(self, left_out: np.ndarray) -> np.ndarray:
        """Return the influence of each patient (…, P) on values, as a share of the metric's range.

        Args:
            left_out: the values without each patient (…, P).
        """
        change = left_out.mean(axis=-1, keepdims=True) - left_out
        change[np.abs(change) < ROUNDING] = 0  # a score that does not depend on the patient
        result: np.ndarray = change * (1 - 1 / self.patients) / self.score.range
        return result

    @staticmethod
    def _student(share: float, influence: np.ndarray, weight: float) -> float:
        """Return (t / z)² for the uncertainty of the effective number of images.

        This number is share (1 - share) / variance; the influences show how far both vary independently. They do not if
        each patient has one image and the score is accuracy.

        Args:
            share: the score.
            influence: influence of each patient on the score (P,).
            weight: share of the observed errors among all errors, observed and added.
        """
        squares = float(influence @ influence)
        if squares == 0 or not 0 < share < 1:
            return 1.0
        own = influence**2 / squares - 1 / len(influence) - (1 - 2 * share) / (share * (1 - share)) * influence
        degrees = max(2 / max(weight**2 * float(own @ own), ROUNDING), LEAST_DEGREES)
        return float((special.stdtrit(degrees, (1 + CONFIDENCE) / 2) / Z) ** 2)

    def _square_by_patients(self, contrasts: np.ndarray, level: float) -> np.ndarray:
        """Return the square of Student's t at a one-sided level for the variance over patients, (M,)."""
        influence = self._influence_on(contrasts @ self.left_out)
        squares = np.sum(influence**2, axis=1)
        # the variance of the variance; large if few patients dominate
        excess = np.sum(influence**4, axis=1) - squares**2 / self.patients
        squares += self._pseudo(contrasts) / self.score.range**2
        few = np.maximum(np.divide(2 * squares**2, excess, out=np.full(len(squares), np.inf), where=excess > 0), 2)
        return np.asarray(special.stdtrit(np.minimum(few, self.patients - 1), level) ** 2)

    def _square_by_seeds(self, contrasts: np.ndarray, level: float) -> np.ndarray:
        """Return the square of Student's t at a one-sided level for the variance over seeds, (M,)."""
        parts = contrasts**2 * self.seeds.between
        squares = np.divide(parts**2, self.seeds.degrees, out=np.zeros_like(parts), where=parts > 0).sum(axis=1)
        several = np.divide(parts.sum(axis=1) ** 2, squares, out=np.ones(len(parts)), where=squares > 0)
        return np.asarray(special.stdtrit(np.where(squares > 0, np.minimum(several, self.seeds.total), 1), level) ** 2)

    def _pseudo(self, contrasts: np.ndarray) -> np.ndarray:
        """Return the variance that the added errors, `PSEUDO` per group, contribute to contrasts (M, G).

        It is 0 for contrasts of constant scores, which no patient changes.
        """
        varies = np.any((contrasts != 0) & ~self._constant, axis=1)
        return np.asarray(PSEUDO * np.sum(contrasts**2, axis=1) * (self.cost * self.score.range) ** 2 * varies)

    def _half_widths(self, contrasts: np.ndarray, level: float) -> np.ndarray:
        """Return the half widths (M,) of the intervals of contrasts (M, G) at a one-sided level.

        Without a true difference, groups differ only by their seeds. Therefore the between-seed variance replaces the
        sampling variance that it includes, unless the variance over patients alone is larger.
        """
        patients = np.nanvar(contrasts @ self.draws, axis=1, ddof=1) + self._pseudo(contrasts)
        by_patients, by_seeds = self._square_by_patients(contrasts, level), self._square_by_seeds(contrasts, level)
        between, sampling = contrasts**2 @ self.seeds.between, contrasts**2 @ self.seeds.sampling
        both = np.maximum(patients - sampling, 0) * by_patients + between * by_seeds
        return np.asarray(np.sqrt(np.maximum(patients * by_patients, both)))

    def compare(self, contrasts: np.ndarray, wanted: int | None = None) -> Comparisons:
        """Contrasts (M, G) of the values, such as 1 for one group and -1 for another, all at once.

        Where there are no intervals the limits are NaN, and every p is 1. Both limits are the value if the scores
        of a contrast are constant and no seed changes them.

        Args:
            contrasts: all that the p-values are corrected for.
            wanted: how many of them, the first ones, are returned; None: all.
        """
        values = contrasts[:wanted] @ self.values
        values[np.abs(values) < ROUNDING] = 0  # means of equal numbers
        if self.withheld or not len(contrasts):
            nothing = np.full(len(values), np.nan)
            return Comparisons(values, nothing, nothing, np.ones(len(values)))
        largest = self._largest(contrasts)
        critical = max(float(np.quantile(largest, CONFIDENCE)), Z)  # few differing images leave the draws few values
        contrasts = contrasts[:wanted]
        half_width = self._half_widths(contrasts, special.ndtr(critical))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(half_width > 0, critical * np.abs(values) / half_width, np.where(values == 0, 0, np.inf))
        # a p-value from draws counts the observed value as one draw (Phipson and Smyth 2010)
        beyond = [(np.sum(largest >= ratio) + 1) / (len(largest) + 1) for ratio in ratios]
        p = np.maximum(beyond, 2 * special.ndtr(-ratios))
        largest_difference = (self.score.upper - self.score.lower) * np.abs(contrasts).sum(axis=1) / 2
        low, high = (np.clip(values + side * half_width, -largest_difference, largest_difference) for side in (-1, 1))
        return Comparisons(values, low, high, p)

    def _largest(self, contrasts: np.ndarray) -> np.ndarray:
        """Return the largest contrast in standard errors of each draw (R,), under no difference."""
        seeds = np.maximum(self.seeds.between - self.seeds.sampling, 0)
        centered = np.nan_to_num(self.draws - np.nanmean(self.draws, axis=1, keepdims=True))
        noisy = centered + np.sqrt(seeds)[:, None] * np.random.default_rng(1).normal(size=centered.shape)
        result = np.zeros(centered.shape[1])
        for start in range(0, len(contrasts), AT_ONCE):
            some = contrasts[start : start + AT_ONCE]
            errors = np.sqrt((some @ centered).var(axis=1, ddof=1) + some**2 @ seeds)
            differences = np.abs(some @ noisy) / np.where(errors > 0, errors, np.inf)[:, None]
            np.maximum(result, differences.max(axis=0), out=result)
        return result

    def against_best(self) -> tuple[int, Comparisons]:
        """Return the group with the best value, and the comparison of each group with it, (G,) each.

        The correction covers all pairs, since the data select the best (Tukey's range, not Dunnett's control).
        """
        best = int(np.nanargmin(self.values) if self.score.falls else np.nanargmax(self.values))
        groups = len(self.values)
        others = [group for group in range(groups) if group != best]
        pairs = [(group, best) for group in others]
        pairs += [(one, other) for one in others for other in others if one < other]
        contrasts = np.zeros((len(pairs), groups))
        for place, (one, other) in enumerate(pairs):
            contrasts[place, one], contrasts[place, other] = 1, -1
        found = self.compare(contrasts, wanted=groups - 1)
        of_best = zip(found, (0.0, 0.0, 0.0, 1.0), strict=True)
        return best, Comparisons(*(np.insert(column, best, own) for column, own in of_best))


def wilson(share: float, size: float) -> Interval:
    """Return Wilson's score interval (1927) of a share of `size` independent images; `size` may be fractional."""
    center = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half_width = Z / (1 + Z**2 / size) * np.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    return Interval(max(float(center - half_width), 0.0), min(float(center + half_width), 1.0))


def _with_few_errors(share: float, size: float) -> Interval:
    """Return Wilson's interval, widened to one-sided exact limits; these are wider only if there are few errors.

    Near the edge, Wilson's limit misses too often on that side (Brown, Cai and DasGupta 2001 widen it likewise).
    """
    low, high = wilson(share, size)
    right, wrong = share * size, (1 - share) * size
    if right > 0:
        low = min(low, float(special.betaincinv(right, wrong + 1, ONE_SIDED)))
    if wrong > 0:
        high = max(high, float(special.betaincinv(right + 1, wrong, 1 - ONE_SIDED)))
    return Interval(low, high)


def costs_of_errors(predictions: Predictions, patient: np.ndarray) -> dict[str, float]:
    """Return the cost of a typical error for each metric, as a share of its range; 0 if the range is infinite.

    If all images count equally, all images of a patient are assumed wrong together. Otherwise half of them are, because
    more errors of this size are added there; with all of them, simulated intervals are too wide.
    """
    counts = np.bincount(predictions.targets, minlength=predictions.probabilities.shape[1]).astype(float)
    clustered = float(np.sum(np.bincount(patient) ** 2.0) / counts.sum())  # mean number of images of an image's patient
    return {
        name: (clustered if score.pseudo == PSEUDO else (1 + clustered) / 2) * score.error(counts)
        if np.isfinite(score.upper)
        else 0.0
        for name, score in SCORES.items()
    }


def reasons_of(predictions: Predictions, patient: np.ndarray) -> dict[str, str]:
    """Return the reason for each metric without interval."""
    counts = np.bincount(predictions.targets, minlength=predictions.probabilities.shape[1])
    present, images = counts[counts > 0], counts.sum()
    referred = counts[REFERABLE:].sum()
    if not patient.any():
        return dict.fromkeys(SCORES, "all images are of one patient")
    reasons: dict[str, str] = {}
    if min(referred, images - referred) < FEWEST:
        which = "referable" if referred <= images - referred else "not referable"
        few = f"fewer than {FEWEST} images ({min(referred, images - referred)}) are {which}"
        reasons = {name: few for name, score in SCORES.items() if score.needs == "referable"}
    if present.min() < FEWEST:
        reasons |= {name: FEW_OF_A_CLASS for name, score in SCORES.items() if score.by_class}
    return reasons


def estimate(
    groups: Sequence[Sequence[Predictions]],
    patient: np.ndarray,
    draws: int = DRAWS,
    metrics: Collection[str] = SCORES,
    compared: Collection[str] = SCORES,
    fork: bool = False,
    fixed: Sequence[int] = (),
) -> dict[str, Estimates]:
    """Return the estimates of metrics for groups of runs on the same N images.

    Args:
        groups: predictions of the runs of each group; runs differ in their seed.
        patient: the patient of each image (N,), all integers from 0 to P - 1.
        draws: number of draws R.
        metrics: their names.
        compared: the metrics that `Estimates.compare` tests; the others have no draws, unless their range is infinite.
        fork: whether another process may resample half of the runs (see `processes.in_two`).
        fixed: places of groups that borrow no variance of seeds from the others, as the mean of several seeds varies
            less than a single run.
    """
    counts = counts_of_patients(int(patient.max()) + 1, draws)
    runs = [predictions for group in groups for predictions in group]
    drawn = [name for name in metrics if name in compared or np.isinf(SCORES[name].upper)]
    batches: list[Sequence[Predictions]] = [
        runs[start : start + RUNS_AT_ONCE] for start in range(0, len(runs), RUNS_AT_ONCE)
    ]

    def shown(some: Sequence[Sequence[Predictions]], each: int = 1) -> Iterator[Sequence[Predictions]]:
        return with_progress(some, len(runs), "resampled", each * RUNS_AT_ONCE, "runs", end=False)

    resample = partial(_resample, patient=patient, counts=counts, metrics=metrics, drawn=drawn)
    found = in_two(resample, batches, shown) if fork else map(resample, shown(batches))
    resampled = chain.from_iterable(found)
    parts = [[next(resampled) for _ in group] for group in groups]
    costs = costs_of_errors(groups[0][0], patient)
    reasons = reasons_of(groups[0][0], patient)
    return {metric: _pool(metric, parts, costs[metric], reasons.get(metric, ""), fixed) for metric in metrics}


Resampled = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


def _resample(
    runs: Sequence[Predictions],
    patient: np.ndarray,
    counts: np.ndarray,
    metrics: Collection[str],
    drawn: Collection[str],
) -> list[Resampled]:
    """Return the scores of each run: on all images (), in the draws (R,), and without each patient (P,).

    Args:
        runs: predictions of runs on the same N images.
        patient: the patient of each image (N,).
        counts: how often each patient is in each draw (R, P).
        metrics: names of the scores.
        drawn: those with draws; the others have none (0,).
    """
    sums = [sums_by_patient(predictions, patient) for predictions in runs]
    totals = np.split(counts @ np.hstack(sums).astype(np.float32), len(runs), axis=1)
    found = []
    for predictions, by_patient, of_draws in zip(runs, sums, totals, strict=True):
        total = by_patient.sum(axis=0)
        complete, left_out = scores_of(total, metrics), scores_of(total - by_patient, metrics)
        in_draws = dict.fromkeys(metrics, np.zeros(0)) | scores_of(of_draws.astype(float), drawn)
        for name in metrics:
            score = SCORES[name]
            if score.from_sums is None:
                complete[name] = np.array(score.of(predictions))
                left_out[name] = np.array([score.of(predictions.of(patient != one)) for one in range(len(by_patient))])
                if name in drawn:
                    each = drawn_predictions(predictions, patient, counts)
                    in_draws[name] = np.array([score.of(predictions) for predictions in each])
        found.append((complete, in_draws, left_out))
    return found


def _pool(
    metric: str,
    parts: Sequence[Sequence[Resampled]],
    cost: float = 0.0,
    reason: str = "",
    fixed: Sequence[int] = (),
) -> Estimates:
    values = [np.array([run[0][metric] for run in runs]) for runs in parts]
    draws = [np.stack([run[1][metric] for run in runs]) for runs in parts]
    left_out = [np.stack([run[2][metric] for run in runs]) for runs in parts]
    between, sampling, degrees, total = seeds_of(values, left_out)
    between[[*fixed]], sampling[[*fixed]] = 0, 0
    if not reason and any(
        np.isfinite(runs).all() and not np.isfinite(left).all() for runs, left in zip(values, left_out, strict=True)
    ):
        reason = "the metric is undefined without one of the patients"
    sizes = np.array([len(runs) for runs in values])
    return Estimates(
        metric,
        np.array([runs.mean() for runs in values]),
        np.stack([runs.mean(axis=0) for runs in draws]),
        np.stack([runs.mean(axis=0) for runs in left_out]),
        Seeds(between / sizes, sampling / sizes, degrees, total),
        cost,
        reason,
    )


def seeds_of(values: Sequence[np.ndarray], left_out: Sequence[np.ndarray]) -> Seeds:
    """Return the variance of a single run through its seed, for each of G groups.

    Few runs estimate a variance badly, so a group borrows from the others as far as their variances are alike
    (`moderated`). A group with a single run uses the variance of the others, as a best guess.

    Args:
        values: one array (n,) per group.
        left_out: one array (n, P) per group: the scores without each patient.
    """
    found = Seeds(*np.zeros((3, len(values))))
    several = np.array([len(runs) > 1 and bool(np.isfinite(runs).all()) for runs in values])
    if not several.any():
        return found
    places = [group for group, known in enumerate(several) if known]
    between = np.array([values[group].var(ddof=1) for group in places])
    sampling = np.array([sampling_variance(left_out[group]) for group in places])
    degrees = np.array([len(values[group]) - 1.0 for group in places])
    known, prior = moderated(between, degrees)
    found.between[several], found.degrees[several] = known
    found.between[~several], found.degrees[~several] = prior
    found.sampling[several] = sampling
    found.sampling[~several] = degrees @ sampling / degrees.sum()
    return found._replace(total=float(degrees.sum()))


def moderated(variances: np.ndarray, degrees: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[float, float]]:
    """Return variances raised toward a common one: the empirical Bayes method of Smyth (2004, limma).

    The logarithms of sample variances vary by sampling alone. The variation beyond that determines the weight of the
    common variance, as degrees of freedom. Unlike in limma, no variance is lowered: the few groups of a sweep estimate
    their similarity badly. No group has more degrees of freedom than all groups together.

    Args:
        variances: variances of G groups (G,).
        degrees: their degrees of freedom (G,).

    Returns:
        Variances and degrees of freedom of the groups (G,), and the common ones.
    """
    total = float(degrees.sum())
    pooled = float(degrees @ variances) / total
    if len(variances) < 2 or pooled == 0:
        return (variances, degrees), (pooled, total)
    logs = np.log(np.maximum(variances, SMALLEST * pooled)) - special.digamma(degrees / 2) + np.log(degrees / 2)
    beyond = float(logs.var(ddof=1) - special.polygamma(1, degrees / 2).mean())
    if beyond <= 0:  # no variation beyond sampling
        alike, common = np.inf, pooled
    else:
        alike = 2 * float(optimize.brentq(lambda half: special.polygamma(1, half) - beyond, 0.05, 1e8))
        common = float(np.exp(logs.mean() + special.digamma(alike / 2) - np.log(alike / 2)))
    weight = np.minimum(alike, 1e9)
    drawn = np.maximum(variances, (weight * common + degrees * variances) / (weight + degrees))
    return (drawn, np.minimum(weight + degrees, total)), (common, float(min(weight, total)))


def sampling_variance(left_out: np.ndarray) -> float:
    """Return the sampling variance between n runs, from their scores without each patient (n, P)."""
    runs, patients = left_out.shape
    apart = left_out - left_out.mean(axis=0)
    return float(apart.var(axis=1).sum() * (patients - 1) / (runs - 1))
