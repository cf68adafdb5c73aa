"""How often 95 % intervals hold the true score: `python benchmarks/intervals.py [--quick] [--out docs/results/intervals.md]`.

Draws test sets and predictions from models whose true scores are known exactly, and counts the intervals of
`resnet_lab.report.intervals` that hold them.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from resnet_lab.report.intervals import estimate
from resnet_lab.report.resampling import Answers, scores_of, sums_by_patient
from resnet_lab.statistics import REFERABLE

SHARES = {
    2: np.array([0.6, 0.4]),
    5: np.array([0.45, 0.12, 0.22, 0.12, 0.09]),
    102: np.full(102, 1 / 102),
}
SEED_DEVIATION = 0.15  # of a network's skill, in standard deviations of an image's difficulty
PATIENT, IMAGE, RUN = np.sqrt([0.3, 0.4, 0.3])  # what makes an image difficult: its patient, itself, the training
NEARER = 0.4  # how much rarer an error by one more grade is
LABELS = ("accuracy", "balanced_accuracy", "recall_macro", "recall_weighted", "precision_macro", "precision_weighted")
LABELS += ("f1_macro", "f1_weighted")
WORLDS = {"recall": LABELS, "qwk": ("qwk",), "auroc": ("auroc",), "referable_auroc": ("referable_auroc",)}


class Cell(NamedTuple):
    """One place of the grid."""

    world: str
    score: float
    images: int
    per_patient: int
    classes: int
    seeds: int


def confusion(skill: np.ndarray, classes: int) -> np.ndarray:
    """Shares of true and predicted classes (…, K, K) where an image is right if its difficulty is below the skill."""
    away = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    wrong = np.where(away, NEARER**away if classes == 5 else 1.0, 0)
    wrong /= wrong.sum(axis=1, keepdims=True)
    right = special.ndtr(np.asarray(skill))[..., None, None]
    return SHARES[classes][:, None] * (right * np.eye(classes) + (1 - right) * wrong)


@cache
def _sums(classes: int) -> np.ndarray:
    true, predicted = np.divmod(np.arange(classes**2), classes)
    return sums_by_patient(Answers(true, predicted, np.eye(classes)[predicted]), np.arange(classes**2))


def truth(skill: float, classes: int, deviation: float) -> dict[str, float]:
    """Scores of infinitely many images, means over infinitely many seeds."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    cells = confusion(skill + deviation * nodes, classes).reshape(len(nodes), -1)
    return {name: float(weights @ values / weights.sum()) for name, values in scores_of(cells @ _sums(classes)).items()}


@cache
def calibrated(cell: Cell) -> tuple[float, dict[str, float]]:
    """The skill at which the true score is the cell's, and the true scores."""
    deviation = SEED_DEVIATION * (cell.seeds > 1)
    if "auroc" in cell.world:
        return float(special.ndtri(cell.score) * np.sqrt(2 + deviation**2)), {cell.world: cell.score}
    if cell.world == "recall":
        skill = float(special.ndtri(cell.score) * np.sqrt(1 + deviation**2))
    else:
        skill = optimize.brentq(lambda each: truth(each, cell.classes, deviation)[cell.world] - cell.score, -3, 6)
    return skill, truth(skill, cell.classes, deviation)


def draw(cell: Cell, generator: np.random.Generator, groups: int = 1) -> tuple[list[list[Answers]], np.ndarray]:
    """Groups of runs on one test set, and the patient of each image."""
    skill, _ = calibrated(cell)
    patient = np.arange(cell.images) // cell.per_patient
    severity = np.sqrt(0.6) * generator.normal(size=cell.images)[patient] + np.sqrt(0.4) * generator.normal(
        size=cell.images
    )
    targets = np.searchsorted(special.ndtri(np.cumsum(SHARES[cell.classes])[:-1]), severity)
    columns = cell.classes if cell.world == "auroc" and cell.classes > 2 else 1
    size = (cell.images, columns)
    shared = PATIENT * generator.normal(size=size)[patient] + IMAGE * generator.normal(size=size)

    def run() -> Answers:
        hard = shared + RUN * generator.normal(size=size)
        own = skill + SEED_DEVIATION * (cell.seeds > 1) * generator.normal()
        kind = _scored if "auroc" in cell.world else _labelled
        return kind(cell, targets, hard, own, generator)

    return [[run() for _ in range(cell.seeds)] for _ in range(groups)], patient


def _labelled(
    cell: Cell, targets: np.ndarray, hard: np.ndarray, skill: float, generator: np.random.Generator
) -> Answers:
    wrong = confusion(np.array(-np.inf), cell.classes)[targets]
    chances = (wrong / wrong.sum(axis=1, keepdims=True)).cumsum(axis=1)
    other = (generator.random((len(targets), 1)) > chances[:, :-1]).sum(axis=1)
    predictions = np.where(hard[:, 0] <= skill, targets, other)
    return Answers(targets, predictions, np.zeros((len(targets), cell.classes)))


def _scored(cell: Cell, targets: np.ndarray, hard: np.ndarray, skill: float, generator: np.random.Generator) -> Answers:
    scores = np.zeros((len(targets), cell.classes))
    if cell.world == "referable_auroc":
        scores[:, REFERABLE] = skill * (targets >= REFERABLE) + hard[:, 0]
    elif cell.classes == 2:
        scores[:, 1] = skill * targets + hard[:, 0]
        scores[:, 0] = -scores[:, 1]
    else:
        scores[:] = skill * (targets[:, None] == np.arange(cell.classes)) + hard
    return Answers(targets, targets, scores)


def coverage(cell: Cell, repeats: int, draws: int = 2, seed: int = 0) -> dict[str, tuple[int, int, float]]:
    """By metric: how many intervals were given, how many hold the true score, and their mean width."""
    generator = np.random.default_rng([seed, *map(int, (1000 * cell.score, *cell[2:]))])
    _, true = calibrated(cell)
    found = {metric: np.zeros(3) for metric in WORLDS[cell.world]}
    for _ in range(repeats):
        groups, patient = draw(cell, generator)
        estimates = estimate(groups, patient, draws)
        for metric, counts in found.items():
            low, high = estimates[metric].interval(0)
            if np.isfinite(low):
                counts += 1, low <= true[metric] <= high, high - low
    return {metric: (int(n), int(held), width / max(n, 1)) for metric, (n, held, width) in found.items()}


def apart(cell: Cell, groups: int, repeats: int, draws: int = 300, seed: int = 0) -> dict[str, tuple[int, int]]:
    """By metric: how many sweeps of equal groups were judged, and in how many some group was called behind."""
    generator = np.random.default_rng([seed, groups, *map(int, (1000 * cell.score, *cell[2:]))])
    found = {metric: np.zeros(2) for metric in WORLDS[cell.world]}
    for _ in range(repeats):
        members, patient = draw(cell, generator, groups)
        estimates = estimate(members, patient, draws)
        for metric, counts in found.items():
            if np.isfinite(estimates[metric].values).all():
                counts += 1, bool((estimates[metric].against_best()[1].p <= 0.05).any())
    return {metric: (int(n), int(behind)) for metric, (n, behind) in found.items()}
