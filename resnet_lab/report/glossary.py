"""The glossary of a report: each term with one sentence for students, which docs/glossary.md repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnet_lab.scores import ALIASES, SCORES

if TYPE_CHECKING:  # importing it takes a second
    from resnet_lab.report.groups import Table

TERMS = {
    "axis": "A setting that differs between groups, such as the depth of the network.",
    "group": "The runs that differ only in their seed.",
    "n": "The number of runs (seeds) in a group.",
    "seed": "The number that fixes all random choices: initial weights, order of the images, augmentation.",
    "95 %": "A range that contains the true value in 95 of 100 such studies with other patients and seeds.",
    "best": "The group with the highest mean.",
    "tied": "These runs cannot show a difference between the group and the best: the group may be as good.",
    "behind": "These runs show that the group is worse than the best.",
    "vs. best": "The difference from the best group on the same images; its 95 % limits hold for all pairs at once.",
    "argmax": "The decision rule that predicts the most probable class.",
    "median": "The decision rule that predicts the median class: half of the probability is at or below it.",
    "expected": "The decision rule that predicts the grade nearest to the expected grade (mean by probability).",
    "thresholds": "The decision rule that compares the expected grade with thresholds, fitted on validation for QWK.",
    "majority baseline": "A model that always predicts the most frequent class of the training images.",
    "confusion matrix": "Counts of images by true class (rows) and predicted class (columns).",
    "collapsed": "A run that predicts the same class for at least 98 % of the validation or test images, and for most "
    "images of the other classes.",
    "leaking": "A run that has learned, directly or from another network, from images or patients of the test split.",
    "referable": "The third grade or worse: of the usual five grades, moderate or worse. Such a patient is referred.",
    "selection within noise": "The validation images are too few to distinguish the selected epoch from others.",
    "sensitivity": "Of the referable images, the share that the model refers.",
    "specificity": "Of the images that are not referable, mild ones included, the share that the model does not refer.",
    "operating point": "A threshold, chosen on validation: images with at least this probability count as referable.",
    "precision": "Of the images predicted as a class, the share that belongs to it.",
    "recall": "Of the images of a class, the share that is predicted as this class.",
    "AP": "Average precision: the area under the curve of precision by recall.",
    "F1": "The harmonic mean of precision and recall.",
    "ECE": "Expected calibration error: the mean distance between accuracy and the probability of predictions.",
    "temperature": "It divides the outputs before softmax so that confidence fits accuracy; above 1: overconfident.",
    "core seconds": "Seconds of computation, summed over the cores of the processor.",
    "images per second": "Training images per second, without the first batch of an epoch and without validation.",
    "multiply-adds": "Multiplications, each with an addition, that the network needs for one image.",
    "fingerprint": "A hash of the test images and their classes; equal fingerprints mean equal test sets.",
}


WORDS = ALIASES | {  # word of a reader → name of a score or term
    **dict.fromkeys(("interval", "intervals", "confidence interval", "ci", "95 % interval", "95%"), "95 %"),
    **dict.fromkeys(("baseline", "majority"), "majority baseline"),
    **dict.fromkeys(("calibration", "calibration error"), "ece"),
    **dict.fromkeys(("tie", "ties"), "tied"),
    "temperature scaling": "temperature",
}


def meaning_of(term: str) -> str:
    """Return the sentence that explains a heading; empty if there is none."""
    score = next((each for each in SCORES.values() if term in (each.title, each.label)), None)
    return (score.meaning if score else "") or TERMS.get(term, "")


def explained(word: str) -> dict[str, str]:
    """Return name → sentence of the score or term that a word names, in any case; all scores for `metric`."""
    word = WORDS.get(word.lower(), word.lower())
    if word.rstrip("s") in ("metric", "score"):
        return {name: score.meaning or score.title for name, score in SCORES.items()}
    scores = {name: score.meaning or score.title for name, score in SCORES.items() if _is(word, name, score.label)}
    return scores or {term: text for term, text in TERMS.items() if _is(word, term)}


def _is(word: str, *names: str) -> bool:
    return word.replace("_", " ") in [name.lower().replace("_", " ") for name in names]


def glossary_of(tables: Sequence[Table]) -> dict[str, str]:
    """Return the scores of the tables and all other terms, in alphabetical order."""
    names = dict.fromkeys(name for table in tables for name in table.metrics)
    scores = {SCORES[name].label: SCORES[name].meaning for name in names if SCORES[name].meaning}
    return dict(sorted((TERMS | scores).items(), key=lambda item: item[0].lower()))
