"""95 % intervals of groups of runs and of the differences between them, over patients and over seeds.

Two things vary: the patients of the test set, whom all runs share, and the seeds, which each run has to itself.

- Patients: the jackknife tells what each patient adds to a score, and the squares of that are its variance. Differences
  use a bootstrap with the same draws for every run, so that all of them are paired.
- Seeds: how far the runs of a group lie apart, beyond what they would by the chance of the images alone. Two or three
  runs tell little of that, so a group borrows from the variances of all others, the more, the more alike these are
  (Smyth 2004). With one seed everywhere it is not known: the intervals are then about these networks.

An interval is Wilson's (1927) of a share, with an effective number of images: that of independent images whose accuracy
has the same variance (Korn and Graubard 1998). So it ends where the score ends. Few errors tell the variance badly:
half an error of typical size (up to two) is added, which is all that is known where there is no error.
A difference has Student's t for patients and for seeds, each with its own degrees of freedom (Satterthwaite 1946), and
the same half error a group (Agresti and Min 2005). Many comparisons share one critical value, that of the largest of
them in the draws (max-T, Westfall and Young 1993).
benchmarks/intervals.py and tests/test_intervals.py simulate how often all this errs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from resnet_lab.data.progress import with_progress
from resnet_lab.report.resampling import counts_of_patients, drawn_predictions, scores_of, sums_by_patient
from resnet_lab.scores import SCORES, Predictions, Score
from resnet_lab.statistics import REFERABLE

DRAWS = 2000
ROUNDING = 1e-12
SMALLEST = 1e-4  # of the pooled variance: what stands for none at all before its logarithm is taken
CONFIDENCE = 0.95
Z = float(special.ndtri((1 + CONFIDENCE) / 2))
FEWEST = 8  # images of a class, or positives or negatives of a curve, below which there is no interval
PSEUDO = 0.5  # errors that are added to those of each of the compared groups
ONE_SIDED = 0.146  # how often a limit may miss on its side where few errors were found
LEAST_DEGREES = 12
FEW_OF_A_CLASS = f"a class has fewer than {FEWEST} images"


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

    between: np.ndarray  # variance between seeds
    sampling: np.ndarray  # sampling variance: the part of it that the draw of the images explains
    degrees: np.ndarray  # degrees of freedom of `between`
    total: float = 0.0  # those of all groups together, which no sum of spreads has more of


@dataclass(frozen=True)
class Estimates:
    """One metric of G groups, in R draws of the patients, and with each of P patients left out."""

    metric: str
    values: np.ndarray  # (G,), means over the runs of a group
    draws: np.ndarray  # (G, R)
    left_out: np.ndarray  # (G, P)
    seeds: Seeds  # of the means
    cost: float = 0.0  # of a typical error, as a share of the metric's range
    withheld: str = ""  # why there are no intervals; empty where there are

    @property
    def patients(self) -> int:
        """P."""
        return int(self.left_out.shape[1])

    @property
    def score(self) -> Score:
        """The record of the metric."""
        return SCORES[self.metric]

    def interval(self, group: int) -> Interval:
        """95 % interval of one group's mean."""
        value, lower, width = self.values[group], self.score.lower, self.score.range
        if self.withheld or not np.isfinite(value):
            return Interval(np.nan, np.nan)
        if np.isinf(self.score.upper):
            apart = self._half_width(np.eye(len(self.values))[group], (1 + CONFIDENCE) / 2)
            return Interval(max(float(value - apart), lower), float(value + apart))
        share = float(np.clip((value - lower) / width, 0, 1))
        cost = self._cost_of_error(group, share)
        size = 1 / cost if cost else np.inf  # a constant score, such as the recall of a model that predicts one class
        limits = wilson(share, size) if self.score.share else _with_few_errors(share, size)
        return Interval(*(lower + width * limit for limit in limits))

    def _cost_of_error(self, group: int, share: float) -> float:
        """What an error takes off the share were all errors alike: one part in the effective number of images.

        The variance over patients has its own (t / z)² and that over seeds another (Korn and Graubard 1998). Seeds
        scatter less the nearer the score is to its end: their variance on the logit scale is taken over to the center.
        """
        influence = self._influence(np.eye(len(self.values))[group])
        variance = float(influence @ influence)
        if not self.score.share:
            variance *= self.patients / (self.patients - 1)
        found = share * (1 - share)
        added = self.score.pseudo
        cost, weight = self.cost, 0.0
        if found:
            # the share of those that were found, found² / variance, among all errors
            weight = found**2 / (found**2 + added * variance)
            cost = weight * variance * (found + added * self.cost) / found**2
        cost *= self._student(share, influence, weight)
        center = (share + Z**2 * cost / 2) / (1 + Z**2 * cost)  # of Wilson's interval, which is never at the edge
        seeds = max(self.seeds.between[group] - self.seeds.sampling[group], 0) / self.score.range**2
        by_seeds = self._square_by_seeds(np.eye(len(self.values))[group], (1 + CONFIDENCE) / 2) / Z**2
        return float(cost + seeds * by_seeds * center * (1 - center) / (found**2 or np.inf))

    def _influence(self, contrast: np.ndarray) -> np.ndarray:
        """What each patient adds to a contrast (G,) of the groups, (P,), as a share of the metric's range."""
        left_out = contrast @ self.left_out
        result: np.ndarray = (left_out.mean() - left_out) * (1 - 1 / self.patients) / self.score.range
        return result

    @staticmethod
    def _student(share: float, influence: np.ndarray, weight: float) -> float:
        """(t / z)² for the uncertainty of the effective number of images.

        That is the variance over share (1 - share), and the patients tell how far the two vary apart: not at all where
        each patient has one image, and the score is the share of the right ones.

        Args:
            share: the score.
            influence: of each patient on it (P,).
            weight: of the errors that were found among all that count.
        """
        squares = float(influence @ influence)
        if squares == 0 or not 0 < share < 1:
            return 1.0
        own = influence**2 / squares - 1 / len(influence) - (1 - 2 * share) / (share * (1 - share)) * influence
        degrees = max(2 / max(weight**2 * float(own @ own), ROUNDING), LEAST_DEGREES)
        return float((special.stdtrit(degrees, (1 + CONFIDENCE) / 2) / Z) ** 2)

    def _square_by_patients(self, contrast: np.ndarray, level: float) -> float:
        """Square of Student's t at a one-sided level for the variance over patients."""
        influence = self._influence(contrast)
        squares = influence @ influence
        # the variance of a variance; large where few patients make it up
        excess = np.sum(influence**4) - squares**2 / self.patients
        squares += self._pseudo(contrast) / self.score.range**2
        few = max(2 * squares**2 / excess, 2) if excess > 0 else np.inf
        return float(special.stdtrit(min(few, self.patients - 1), level) ** 2)

    def _square_by_seeds(self, contrast: np.ndarray, level: float) -> float:
        """The same for the variance over seeds."""
        parts = contrast**2 * self.seeds.between
        known = parts > 0
        several = 1.0
        if known.any():
            sum_of_parts = parts[known].sum() ** 2 / np.sum(parts[known] ** 2 / self.seeds.degrees[known])
            several = min(float(sum_of_parts), self.seeds.total)
        return float(special.stdtrit(several, level) ** 2)

    def _pseudo(self, contrast: np.ndarray) -> float:
        """What the errors that are added, `PSEUDO` a group, add to the variance of a contrast."""
        return float(PSEUDO * np.sum(contrast**2) * (self.cost * self.score.range) ** 2)

    def _half_width(self, contrast: np.ndarray, level: float) -> float:
        """How far the limits of a contrast (G,) are from it at a one-sided level.

        Groups differ by little but their seeds where nothing is to be found, so the variance between the runs stands in
        for all that it explains, unless the patients alone give more.
        """
        patients = float(np.nanvar(contrast @ self.draws, ddof=1)) + self._pseudo(contrast)
        by_patients, by_seeds = self._square_by_patients(contrast, level), self._square_by_seeds(contrast, level)
        between, sampling = contrast**2 @ self.seeds.between, contrast**2 @ self.seeds.sampling
        both = max(patients - sampling, 0) * by_patients + between * by_seeds
        return float(np.sqrt(max(patients * by_patients, both)))

    def compare(self, contrasts: np.ndarray) -> Comparisons:
        """Contrasts (M, G) of the values, such as 1 for one group and -1 for another, all at once.

        Where there are no intervals the limits are NaN, and every p is 1.
        """
        values = contrasts @ self.values
        values[np.abs(values) < ROUNDING] = 0  # means of equal numbers
        if self.withheld or not len(contrasts):
            nothing = np.full(len(values), np.nan)
            return Comparisons(values, nothing, nothing, np.ones(len(values)))
        largest = self._largest(contrasts)
        critical = max(float(np.quantile(largest, CONFIDENCE)), Z)  # few differing images leave the draws few values
        half_width = np.array([self._half_width(contrast, special.ndtr(critical)) for contrast in contrasts])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(half_width > 0, critical * np.abs(values) / half_width, np.where(values == 0, 0, np.inf))
        # a p-value of draws counts what was found as one of them (Phipson and Smyth 2010)
        beyond = [(np.sum(largest >= ratio) + 1) / (len(largest) + 1) for ratio in ratios]
        p = np.maximum(beyond, 2 * special.ndtr(-ratios))
        largest_difference = (self.score.upper - self.score.lower) * np.abs(contrasts).sum(axis=1) / 2
        low, high = (np.clip(values + side * half_width, -largest_difference, largest_difference) for side in (-1, 1))
        return Comparisons(values, low, high, p)

    def _largest(self, contrasts: np.ndarray) -> np.ndarray:
        """Of each draw (R,), the largest of the contrasts in standard errors, were there no difference at all."""
        seeds = np.maximum(self.seeds.between - self.seeds.sampling, 0)
        centered = np.nan_to_num(self.draws - np.nanmean(self.draws, axis=1, keepdims=True))
        errors = np.sqrt((contrasts @ centered).var(axis=1, ddof=1) + contrasts**2 @ seeds)
        noise = np.random.default_rng(1).normal(size=centered.shape)
        differences = np.abs(contrasts @ (centered + np.sqrt(seeds)[:, None] * noise))
        result: np.ndarray = (differences / np.where(errors > 0, errors, np.inf)[:, None]).max(axis=0)
        return result

    def against_best(self) -> tuple[int, Comparisons]:
        """The group with the best value, and by how much each group falls short of it, (G,) each.

        Corrected for all pairs, since the best is chosen by looking (Tukey's range, not Dunnett's control).
        """
        best = int(np.nanargmin(self.values) if self.score.falls else np.nanargmax(self.values))
        groups = len(self.values)
        others = [group for group in range(groups) if group != best]
        pairs = [(group, best) for group in others]
        pairs += [(one, other) for one in others for other in others if one < other]
        contrasts = np.zeros((len(pairs), groups))
        for place, (one, other) in enumerate(pairs):
            contrasts[place, one], contrasts[place, other] = 1, -1
        found = self.compare(contrasts)
        of_best = zip(found, (0.0, 0.0, 0.0, 1.0), strict=True)
        return best, Comparisons(*(np.insert(column[: groups - 1], best, own) for column, own in of_best))


def wilson(share: float, size: float) -> Interval:
    """Wilson's score interval (1927) of a share of `size` independent images, which need not be a whole number."""
    center = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half_width = Z / (1 + Z**2 / size) * np.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    return Interval(max(float(center - half_width), 0.0), min(float(center + half_width), 1.0))


def _with_few_errors(share: float, size: float) -> Interval:
    """Wilson's interval, widened to one-sided exact limits, which only a few errors make the wider of the two.

    There Wilson's limit misses too often on the side of the edge (Brown, Cai and DasGupta 2001, who widen it likewise).
    """
    low, high = wilson(share, size)
    right, wrong = share * size, (1 - share) * size
    if right > 0:
        low = min(low, float(special.betaincinv(right, wrong + 1, ONE_SIDED)))
    if wrong > 0:
        high = max(high, float(special.betaincinv(right + 1, wrong, 1 - ONE_SIDED)))
    return Interval(low, high)


def costs_of_errors(predictions: Predictions, patient: np.ndarray) -> dict[str, float]:
    """What a typical error takes off each metric, as a share of its range; 0 where that has no end.

    All images of a patient are taken to be wrong together where images count alike. Elsewhere half of them are, as more
    errors of this size are added there, and the simulated intervals are else too wide.
    """
    counts = np.bincount(predictions.targets, minlength=predictions.probabilities.shape[1]).astype(float)
    clustered = float(np.sum(np.bincount(patient) ** 2.0) / counts.sum())  # images of the patient of an image
    return {
        name: (clustered if score.pseudo == PSEUDO else (1 + clustered) / 2) * score.error(counts)
        if np.isfinite(score.upper)
        else 0.0
        for name, score in SCORES.items()
    }


def reasons_of(predictions: Predictions, patient: np.ndarray) -> dict[str, str]:
    """Why a metric has no interval; those that have one are left out."""
    counts = np.bincount(predictions.targets, minlength=predictions.probabilities.shape[1])
    present, images = counts[counts > 0], counts.sum()
    referred = counts[REFERABLE:].sum()
    if not patient.any():
        return dict.fromkeys(SCORES, "all images are of one patient")
    reasons: dict[str, str] = {}
    if min(referred, images - referred) < FEWEST:
        few = f"fewer than {FEWEST} images are referable, or fewer than {FEWEST} are not"
        reasons = {name: few for name, score in SCORES.items() if score.needs == "referable"}
    if present.min() < FEWEST:
        reasons |= {name: FEW_OF_A_CLASS for name, score in SCORES.items() if score.by_class}
    return reasons


def estimate(groups: Sequence[Sequence[Predictions]], patient: np.ndarray, draws: int = DRAWS) -> dict[str, Estimates]:
    """Every metric of groups of runs that differ in their seed, all on the same N images.

    Args:
        groups: the predictions of the runs of each group.
        patient: the patient of each image (N,), integers from 0 to P - 1, all of which occur.
        draws: R.
    """
    counts = counts_of_patients(int(patient.max()) + 1, draws)
    runs = [predictions for group in groups for predictions in group]
    steps = with_progress(runs, len(runs), "resampled", unit="runs", end=False)
    resampled = iter([_resample(predictions, patient, counts) for predictions in steps])
    parts = [[next(resampled) for _ in group] for group in groups]
    costs = costs_of_errors(groups[0][0], patient)
    reasons = reasons_of(groups[0][0], patient)
    return {metric: _pool(metric, parts, costs[metric], reasons.get(metric, "")) for metric in SCORES}


Resampled = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


def _resample(predictions: Predictions, patient: np.ndarray, counts: np.ndarray) -> Resampled:
    """Scores of one run: as they are (), of the draws (R,), and with each patient left out (P,)."""
    sums = sums_by_patient(predictions, patient)
    total = sums.sum(axis=0)
    found = scores_of(total), scores_of((counts @ sums.astype(np.float32)).astype(float)), scores_of(total - sums)
    for name, score in SCORES.items():
        if score.from_sums is None:
            found[0][name] = np.array(score.of(predictions))
            found[1][name] = np.array([score.of(drawn) for drawn in drawn_predictions(predictions, patient, counts)])
            found[2][name] = np.array([score.of(predictions.of(patient != one)) for one in range(len(sums))])
    return found


def _pool(metric: str, parts: Sequence[Sequence[Resampled]], cost: float = 0.0, reason: str = "") -> Estimates:
    values = [np.array([run[0][metric] for run in runs]) for runs in parts]
    draws = [np.stack([run[1][metric] for run in runs]) for runs in parts]
    left_out = [np.stack([run[2][metric] for run in runs]) for runs in parts]
    between, sampling, degrees, total = seeds_of(values, left_out)
    if not reason and any(
        np.isfinite(runs).all() and not np.isfinite(left).all() for runs, left in zip(values, left_out, strict=True)
    ):
        reason = "without one of the patients it is undefined"
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
    """What a single run of each of G groups owes to its seed.

    Settings differ in how far their seeds scatter, but few runs show it badly: a group borrows from the others as far
    as their variances are alike (`moderated`). One with a single run has that of the others, which is the best guess
    and no more.

    Args:
        values: one array (n,) a group.
        left_out: one array (n, P) a group, the scores without each patient.
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
    """Variances raised to a common one by as much as they are alike: empirical Bayes of Smyth (2004, limma).

    The logarithms of sample variances scatter by themselves; what they scatter beyond that says how much each knows of
    the others, as the degrees of freedom of the common variance. Unlike in limma none is lowered, as the few groups of
    a sweep do not tell well enough how alike they are; none has more degrees of freedom than all groups together.

    Args:
        variances: of G groups (G,).
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
    if beyond <= 0:  # as alike as can be
        alike, common = np.inf, pooled
    else:
        alike = 2 * float(optimize.brentq(lambda half: special.polygamma(1, half) - beyond, 0.05, 1e8))
        common = float(np.exp(logs.mean() + special.digamma(alike / 2) - np.log(alike / 2)))
    weight = np.minimum(alike, 1e9)
    drawn = np.maximum(variances, (weight * common + degrees * variances) / (weight + degrees))
    return (drawn, np.minimum(weight + degrees, total)), (common, float(min(weight, total)))


def sampling_variance(left_out: np.ndarray) -> float:
    """The variance between n runs that comes from the choice of the images, by scores without each patient (n, P)."""
    runs, patients = left_out.shape
    apart = left_out - left_out.mean(axis=0)
    return float(apart.var(axis=1).sum() * (patients - 1) / (runs - 1))
