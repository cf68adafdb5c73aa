"""The glossary of a report: each term with one sentence for students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnet_lab.scores import ALIASES, SCORES

if TYPE_CHECKING:  # importing it takes a second
    from resnet_lab.report.groups import Table

TERMS = {
    "axis": "A setting that differs between groups, such as the depth of the network.",
    "group": "All runs with the same settings; they differ only in their seed.",
    "n": "The number of runs (seeds) in a group.",
    "seed": "The number that fixes the random choices: initial weights, order of the images, augmentation.",
    "95 %": "In 95 of 100 such studies, with other patients and seeds, this range contains the true value.",
    "best": "The group with the highest mean.",
    "tied": "These runs cannot show a difference to the best group; it may be as good.",
    "argmax": "The rule that predicts the most probable class.",
    "median": "The rule that predicts the median class: half of the probability is at or below it.",
    "expected": "The rule that predicts the grade nearest to the mean grade under the probabilities.",
    "thresholds": "The rule that compares the expected grade with thresholds, fitted on validation for QWK.",
    "behind": "These runs show that the group is worse than the best one.",
    "to the best": "The difference to the best group on the same images; its 95 % limits hold for all pairs at once.",
    "majority baseline": "A model that always predicts the largest class of the training images.",
    "confusion matrix": "A table of counts: true classes in rows, predicted classes in columns.",
    "collapsed": "A run that predicts one class for nearly all images.",
    "referable": "Moderate retinopathy or worse: the patient should see an eye doctor.",
    "sensitivity": "The share of the referable images that the model refers.",
    "specificity": "The share of the images that are not referable, mild ones included, that the model does not refer.",
    "operating point": "A threshold, chosen on validation: images with a larger probability count as referable.",
    "precision": "Of the images predicted as a class, the share that belong to it.",
    "recall": "Of the images of a class, the share that the model finds.",
    "F1": "The harmonic mean of precision and recall.",
    "AUROC": "The probability that a positive image scores higher than a negative one (0.5: guessing).",
    "ECE": "Expected calibration error: the mean distance between confidence and accuracy.",
    "temperature": "Dividing the logits by this number makes confidence fit accuracy; above 1: overconfident.",
    "fingerprint": "A hash of the test images and their classes; equal fingerprints mean equal test sets.",
}


WORDS = ALIASES | {  # word of a reader → name of a score or term
    **dict.fromkeys(("interval", "intervals", "confidence interval", "ci", "95 % interval", "95%"), "95 %"),
    **dict.fromkeys(("baseline", "majority"), "majority baseline"),
    **dict.fromkeys(("calibration", "calibration error"), "ece"),
    **dict.fromkeys(("tie", "ties"), "tied"),
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
    return word in [name.lower() for name in names]


def glossary_of(tables: Sequence[Table]) -> dict[str, str]:
    """Return the scores of the tables and all other terms, in alphabetical order."""
    names = dict.fromkeys(name for table in tables for name in table.metrics)
    scores = {SCORES[name].label: SCORES[name].meaning for name in names if SCORES[name].meaning}
    return dict(sorted((TERMS | scores).items(), key=lambda item: item[0].lower()))
