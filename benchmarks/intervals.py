"""Count how often 95 % intervals include the true score: `python benchmarks/intervals.py [--quick] [--out PAGE]`.

The script draws test sets and predictions from models whose true scores are known exactly. It counts two things:

- the intervals of `resnet_lab.report.intervals` that include the true score
- the sweeps of equal groups in which one group is called worse than another

PAGE is docs/results/intervals.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import page
import scipy
from scipy import optimize, special, stats

from resnet_lab.report.intervals import estimate, wilson
from resnet_lab.report.resampling import scores_of, sums_by_patient
from resnet_lab.scores import Predictions
from resnet_lab.statistics import REFERABLE

SCORES = (0.5, 0.8, 0.95, 0.99, 0.999)
NULL_SCORES = (0.9, 0.99, 0.999)
IMAGES = (16, 60, 400, 5000)
AGAIN = 0.92  # a cell with a lower coverage is drawn again
FEWEST_GIVEN = 40  # a cell with fewer test sets that have an interval is left out
SHARES = {
    2: np.array([0.6, 0.4]),
    5: np.array([0.45, 0.12, 0.22, 0.12, 0.09]),
    102: np.full(102, 1 / 102),
}
SEED_DEVIATION = 0.15  # of a network's skill, in standard deviations of an image's difficulty
PATIENT, IMAGE, RUN = np.sqrt([0.3, 0.4, 0.3])  # parts of the difficulty: patient, image, training
NEARER = 0.4  # an error by one more grade is this much rarer
# scores from labels alone; recall is accuracy (weighted) or balanced accuracy (macro)
LABELS = ("accuracy", "balanced_accuracy", "precision_macro", "precision_weighted", "f1_macro", "f1_weighted")
LABELS += ("specificity_macro", "matthews")
WORLDS = {"recall": LABELS, "qwk": ("qwk",), "auroc": ("auroc",), "referable_auroc": ("referable_auroc",)}

QUESTION = """\
# How often intervals include the true score

How often do the report's 95 % intervals include the true score? The section on the goals answers this.
"""
METHOD = """\
## Method

Each cell draws test sets and predictions from a model whose true scores are known exactly. It counts the intervals that
include the true score. Seeds of a group differ in skill by a standard deviation of 0.15 (in units of an image's
difficulty). Images of a patient share 30 % of the variance of difficulty and 60 % of the variance of the class.

- Accuracy, precision, recall and F1 come from networks with the same recall in every class. This recall is the true
  score in the heading. The true precision and F1 of these networks differ from it. Weighted recall is accuracy. Macro
  recall is balanced accuracy.
- QWK, AUROC and the AUROC of referable grades come from networks with exactly that score.
- Two classes have 60 and 40 % of the images. Five classes have 45, 12, 22, 12 and 9 %. 102 classes have equal shares.
- Only test sets with an interval count. A dash marks a cell in which fewer than 40 of them have one. With 16 images of
  two classes about one in six has eight of each.
- A cell has {repeats} test sets. With 5,000 images it has {fewer}, with 102 classes {fewest}. The standard error of
  95 % is then {error:.1f}, {larger:.1f} and {largest:.1f} points.
- A cell is drawn again if less than 92 % of the intervals of a metric include the score. It is also drawn again if less
  than half of the test sets have an interval. Other test sets then replace the first ones. They have four times as many
  intervals, and are at most twelve times as many. Means are those of the first ones.
- For accuracy of independent images the exact coverage of Wilson's interval is in brackets.
- "Equal groups" is the percentage of sweeps in which some group is called worse than the best. By design at most 5 % of
  them call one worse. A cell has {sweeps} sweeps. Above this limit, sixteen times as many other sweeps replace
  them.
"""


Counts = dict[str, tuple[int, int, float]]  # metric → intervals, intervals that include the true score, mean width


class Cell(NamedTuple):
    """One cell of the grid."""

    world: str
    score: float
    images: int
    per_patient: int
    classes: int
    seeds: int


def confusion(skill: np.ndarray, classes: int) -> np.ndarray:
    """Return shares of true and predicted classes (…, K, K); an image is right if its difficulty is below the skill."""
    away = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    wrong = np.where(away, NEARER**away if classes == 5 else 1.0, 0)
    wrong /= wrong.sum(axis=1, keepdims=True)
    right = special.ndtr(np.asarray(skill))[..., None, None]
    return SHARES[classes][:, None] * (right * np.eye(classes) + (1 - right) * wrong)


@cache
def _sums(classes: int) -> np.ndarray:
    true, predicted = np.divmod(np.arange(classes**2), classes)
    return sums_by_patient(Predictions(true, predicted, np.eye(classes)[predicted]), np.arange(classes**2))


def truth(skill: float, classes: int, deviation: float) -> dict[str, float]:
    """Return the scores of infinitely many images, averaged over infinitely many seeds."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    cells = confusion(skill + deviation * nodes, classes).reshape(len(nodes), -1)
    return {name: float(weights @ values / weights.sum()) for name, values in scores_of(cells @ _sums(classes)).items()}


@cache
def calibrated(cell: Cell) -> tuple[float, dict[str, float]]:
    """Return the skill that gives the true score of the cell, and all true scores."""
    deviation = SEED_DEVIATION * (cell.seeds > 1)
    if "auroc" in cell.world:
        return float(special.ndtri(cell.score) * np.sqrt(2 + deviation**2)), {cell.world: cell.score}
    if cell.world == "recall":
        skill = float(special.ndtri(cell.score) * np.sqrt(1 + deviation**2))
    else:
        skill = optimize.brentq(lambda each: truth(each, cell.classes, deviation)[cell.world] - cell.score, -3, 6)
    return skill, truth(skill, cell.classes, deviation)


def draw(cell: Cell, generator: np.random.Generator, groups: int = 1) -> tuple[list[list[Predictions]], np.ndarray]:
    """Draw groups of runs on one test set; return them and the patient of each image."""
    skill, _ = calibrated(cell)
    patient = np.arange(cell.images) // cell.per_patient
    severity, own = generator.normal(size=(2, cell.images))
    severity = np.sqrt(0.6) * severity[patient] + np.sqrt(0.4) * own
    targets = np.searchsorted(special.ndtri(np.cumsum(SHARES[cell.classes])[:-1]), severity)
    columns = cell.classes if cell.world == "auroc" and cell.classes > 2 else 1
    size = (cell.images, columns)
    shared = PATIENT * generator.normal(size=size)[patient] + IMAGE * generator.normal(size=size)

    def run() -> Predictions:
        hard = shared + RUN * generator.normal(size=size)
        own = skill + SEED_DEVIATION * (cell.seeds > 1) * generator.normal()
        kind = _scored if "auroc" in cell.world else _labeled
        return kind(cell, targets, hard, own, generator)

    return [[run() for _ in range(cell.seeds)] for _ in range(groups)], patient


def _labeled(
    cell: Cell, targets: np.ndarray, hard: np.ndarray, skill: float, generator: np.random.Generator
) -> Predictions:
    wrong = confusion(np.array(-np.inf), cell.classes)[targets]
    cumulative = (wrong / wrong.sum(axis=1, keepdims=True)).cumsum(axis=1)
    other = (generator.random((len(targets), 1)) > cumulative[:, :-1]).sum(axis=1)
    predictions = np.where(hard[:, 0] <= skill, targets, other)
    return Predictions(targets, predictions, np.zeros((len(targets), cell.classes)))


def _scored(
    cell: Cell, targets: np.ndarray, hard: np.ndarray, skill: float, generator: np.random.Generator
) -> Predictions:
    scores = np.zeros((len(targets), cell.classes))
    if cell.world == "referable_auroc":
        scores[:, REFERABLE] = skill * (targets >= REFERABLE) + hard[:, 0]
    elif cell.classes == 2:
        scores[:, 1] = skill * targets + hard[:, 0]
        scores[:, 0] = -scores[:, 1]
    else:
        scores[:] = skill * (targets[:, None] == np.arange(cell.classes)) + hard
    return Predictions(targets, targets, scores)


def coverage(cell: Cell, repeats: int, draws: int = 2, seed: int = 0) -> Counts:
    """Return for each metric the number of intervals, how many include the true score, and their mean width."""
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
    return {metric: (int(n), int(covered), width / max(n, 1)) for metric, (n, covered, width) in found.items()}


def apart(cell: Cell, groups: int, repeats: int, draws: int = 1000, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Return for each metric the number of sweeps of equal groups, and of those that call some group worse."""
    generator = np.random.default_rng([seed, groups, *map(int, (1000 * cell.score, *cell[2:]))])
    found = {metric: np.zeros(2) for metric in WORLDS[cell.world]}
    for _ in range(repeats):
        members, patient = draw(cell, generator, groups)
        estimates = estimate(members, patient, draws)
        for metric, counts in found.items():
            if np.isfinite(estimates[metric].values).all() and not estimates[metric].withheld:
                counts += 1, bool((estimates[metric].against_best()[1].p <= 0.05).any())
    return {metric: (int(n), int(behind)) for metric, (n, behind) in found.items()}


def grid(quick: bool) -> Iterator[Cell]:
    """Yield all cells, small ones first; with 102 classes only those where every class can have eight images."""
    for images in IMAGES[:2] if quick else IMAGES:
        for classes in (2, 5, 102) if images > 1000 else (2, 5):
            worlds = {2: ("recall", "qwk", "auroc"), 5: tuple(WORLDS), 102: ("recall", "auroc")}[classes]
            scores = SCORES[::2] if classes == 102 or quick else SCORES
            for world in worlds:
                for per_patient in (1, 2):
                    for seeds in (1, 3):
                        yield from (Cell(world, score, images, per_patient, classes, seeds) for score in scores)


def null_grid(quick: bool) -> Iterator[tuple[Cell, int]]:
    """Yield cells and the number of equal groups that are compared in them."""
    for images in IMAGES[:1] if quick else (16, 100, 1000):
        for seeds in (1, 3):
            for groups in (2, 4):
                for score in NULL_SCORES:
                    yield Cell("recall", score, images, 1, 2, seeds), groups


def repeats_of(cell: Cell, repeats: int) -> int:
    """Return the number of test sets of a cell; slow cells have fewer."""
    return max(repeats // 5 if cell.classes > 5 else 2 * repeats // 5 if cell.images > 1000 else repeats, 1)


def measure(task: tuple[Cell, int]) -> tuple[Counts, Counts]:
    """Return the coverage of a cell twice; the second uses more test sets if coverage is low or intervals are few."""
    cell, repeats = task
    own = repeats_of(cell, repeats)
    first = coverage(cell, own)
    counts = [counts for metric, counts in first.items() if metric != "accuracy"]  # Wilson's interval has known dips
    if not any(n and (covered < AGAIN * n or n < own / 2) for n, covered, _ in counts):
        return first, first
    rarest = min(n for n, _, _ in counts if n)
    return first, coverage(cell, min(4 * own * own // rarest, 12 * own), seed=1)


def measure_null(task: tuple[Cell, int, int]) -> dict[str, tuple[int, int]]:
    """Count the sweeps of a cell that call a group worse; if there are too many, use sixteen times as many others."""
    cell, groups, repeats = task
    found = apart(cell, groups, 2 * repeats)
    if any(behind > 0.05 * n for n, behind in found.values()):
        found = apart(cell, groups, 32 * repeats, seed=1)
    return found


def wilsons_coverage(images: int, share: float) -> float:
    """Return how often Wilson's interval includes the true share of independent images, exactly."""
    right = np.arange(images + 1)
    limits = np.array([wilson(each / images, images) for each in right])
    return float(stats.binom.pmf(right, images, share) @ ((limits[:, 0] <= share) & (share <= limits[:, 1])))


Found = dict[Cell, Counts]
Null = dict[tuple[Cell, int], dict[str, tuple[int, int]]]


def shares_of(found: Found, metric: str) -> dict[Cell, float]:
    """Return the coverage of each cell in which enough test sets have an interval."""
    return {
        cell: counts[metric][1] / counts[metric][0]
        for cell, counts in found.items()
        if metric in counts and counts[metric][0] >= FEWEST_GIVEN
    }


def summary_table(first: Found, found: Found) -> list[str]:
    """Return one row per metric with its mean and its lowest coverage."""
    lines = ["| metric | cells | mean | lowest | where | cells below 90 |", "|---|---:|---:|---:|---|---:|"]
    for metric in dict.fromkeys(metric for names in WORLDS.values() for metric in names):
        shares = shares_of(found, metric)
        if not shares:
            continue
        cell, lowest = min(shares.items(), key=lambda item: item[1])
        where = f"{cell.score:g}, {cell.images:,} images, {cell.per_patient} per patient, {cell.classes} classes"
        where += f", {cell.seeds} seed{'s' * (cell.seeds > 1)}"
        below = sum(share < 0.9 for share in shares.values())
        mean = np.mean(list(shares_of(first, metric).values()))
        lines.append(f"| {metric} | {len(shares)} | {100 * mean:.1f} | {100 * lowest:.1f} | {where} | {below} |")
    return lines


def verdict(first: Found, found: Found, null: Null) -> list[str]:
    """Return which goals are met: 94 to 96 % on average, 90 % in every cell, at most 5 % of sweeps of equal groups."""
    others = [metric for names in WORLDS.values() for metric in names if metric != "accuracy"]
    shares = {metric: shares_of(found, metric) for metric in others}
    means = [100 * np.mean(list(cells.values())) for metric in others if (cells := shares_of(first, metric))]
    low = [
        f"{metric} {cell.score:g} with {cell.images:,} images, {cell.per_patient} per patient, {cell.classes} classes, "
        f"{cell.seeds} seed{'s' * (cell.seeds > 1)} ({100 * share:.1f})"
        for metric, cells in shares.items()
        for cell, share in cells.items()
        if share < 0.9
    ]
    apart = [
        f"{metric} {cell.score:g} with {cell.images:,} images, {groups} groups, "
        f"{cell.seeds} seed{'s' * (cell.seeds > 1)} ({behind} of {n})"
        for (cell, groups), counts in null.items()
        for metric, (n, behind) in counts.items()
        if n >= FEWEST_GIVEN and behind > 0.05 * n
    ]
    goal = "met" if all(94 <= mean <= 96 for mean in means) else "missed"
    lines = [
        f"- Mean coverage of 94 to 96 % for each metric except accuracy: {goal}. The means are {min(means):.1f} to "
        f"{max(means):.1f} %.",
        f"- No cell below 90 %, except for accuracy: {'missed by ' * bool(low)}{'; '.join(low) or 'met'}.",
        "- At most 5 % of the sweeps of equal groups call a group worse: "
        f"{'missed by ' * bool(apart)}{'; '.join(apart) or 'met'}.",
    ]
    return [textwrap.fill(line, 120, subsequent_indent="  ") for line in lines]


def coverage_table(found: Found, metric: str) -> list[str]:
    """Return the coverage by true score; accuracy of independent images also shows that of Wilson's interval."""
    shares = shares_of(found, metric)
    lines = [f"| {metric} | " + " | ".join(f"{score:g}" for score in SCORES) + " |", "|---|" + "---:|" * len(SCORES)]
    for row in dict.fromkeys(cell[2:] for cell in shares):
        images, per_patient, classes, seeds = row
        cells = {cell.score: share for cell, share in shares.items() if cell[2:] == row}
        texts = [f"{100 * cells[score]:.1f}" if score in cells else "–" for score in SCORES]
        if metric == "accuracy" and per_patient == seeds == 1:
            texts = [
                f"{text} ({100 * wilsons_coverage(images, score):.1f})" * (text != "–") or text
                for text, score in zip(texts, SCORES, strict=True)
            ]
        name = f"{images:,} images, {per_patient} per patient, {classes} classes, {seeds} seed{'s' * (seeds > 1)}"
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def null_table(found: Null) -> list[str]:
    """Return the percentage of sweeps of equal groups that call one group worse, by true score."""
    lines = ["| images, groups, seeds, metric | " + " | ".join(f"{score:g}" for score in NULL_SCORES) + " |"]
    lines += ["|---|" + "---:|" * len(NULL_SCORES)]
    for row in dict.fromkeys((cell.images, groups, cell.seeds) for cell, groups in found):
        for metric in ("accuracy", "balanced_accuracy", "f1_macro"):
            texts = []
            for (cell, groups), counts in found.items():
                n, behind = counts[metric]
                if (cell.images, groups, cell.seeds) == row:
                    texts.append(f"{100 * behind / n:.1f}" if n >= FEWEST_GIVEN else "–")
            if any(text != "–" for text in texts):
                images, groups, seeds = row
                lines.append(f"| {images:,}, {groups}, {seeds}, {metric} | " + " | ".join(texts) + " |")
    return lines


def method(repeats: int) -> str:
    """Return the description of the method."""
    numbers = [
        repeats_of(Cell("recall", 0.5, *rest), repeats) for rest in ((16, 1, 2, 1), (5000, 1, 2, 1), (5000, 1, 102, 1))
    ]
    errors = 100 * np.sqrt(0.95 * 0.05 / np.array(numbers))
    names = ("repeats", "fewer", "fewest", "error", "larger", "largest")
    return METHOD.format(**dict(zip(names, (*numbers, *errors), strict=True)), sweeps=2 * repeats)


def report(first: Found, found: Found, null: Null, repeats: int) -> str:
    """Return the page."""
    metrics = dict.fromkeys(metric for names in WORLDS.values() for metric in names)
    command = f"python benchmarks/intervals.py --repeats {repeats} --out docs/results/intervals.md"
    lines = [QUESTION, "## Which goals are met", "", *verdict(first, found, null), ""]
    lines += [page.origin(command, scipy=scipy.__version__), "", method(repeats)]
    lines += ["## Summary", "", *summary_table(first, found), "", "## Equal groups", "", *null_table(null), ""]
    lines += ["## Coverage of every cell, in percent", ""]
    for metric in metrics:
        lines += coverage_table(found, metric)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure all cells, two at a time, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smoke run with few cells")
    parser.add_argument("--repeats", type=int, default=200, help="test sets per cell of few images (default 200)")
    parser.add_argument("--out", type=Path, help="write the page to this markdown file")
    options = parser.parse_args()
    cells, nulls = list(grid(options.quick)), list(null_grid(options.quick))
    first, found, null = {}, {}, {}
    with multiprocessing.Pool(2) as pool:
        tasks = pool.imap(measure, [(cell, options.repeats) for cell in cells])
        for number, (cell, counts) in enumerate(zip(cells, tasks, strict=True), start=1):
            first[cell], found[cell] = counts
            covered = " ".join(f"{metric} {covered}/{n}" for metric, (n, covered, _) in found[cell].items())
            print(f"{number}/{len(cells)}", *cell, covered, file=sys.stderr, flush=True)
        tasks = pool.imap(measure_null, [(*each, options.repeats) for each in nulls])
        for each, counts in zip(nulls, tasks, strict=True):
            null[each] = counts
            print(*each[0], each[1], counts, file=sys.stderr, flush=True)
    text = report(first, found, null, options.repeats)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
