"""The words of a report that a student may not know, each explained in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from resnet_lab.report.groups import Table
from resnet_lab.scores import SCORES

TERMS = {
    "group": "All runs with the same settings; they differ only in their seed.",
    "n": "The number of runs (seeds) in a group.",
    "seed": "The number that initial weights, order of the images and augmentation are drawn from.",
    "95 %": "The range that holds the true value in 95 of 100 such studies: over patients, and over seeds.",
    "best": "The group with the highest mean.",
    "tied": "These runs cannot show a difference to the best group; it may be as good.",
    "to the best": "The difference to the best group, with its 95 % interval, on the same images.",
    "majority baseline": "A model that always predicts the largest class of the training images.",
    "collapsed": "A run that predicts one class for nearly all images.",
    "referable": "Moderate retinopathy or worse: the patient should see an eye doctor.",
    "sensitivity": "The share of diseased images that the model finds.",
    "specificity": "The share of healthy images that the model calls healthy.",
    "operating point": "A probability above which an image counts as referable; it is chosen on validation images.",
    "precision": "The share of the images predicted as a class that are of this class.",
    "recall": "The share of the images of a class that are predicted as it.",
    "F1": "The harmonic mean of precision and recall.",
    "AUROC": "The probability that a positive image scores higher than a negative one (0.5: guessing).",
    "ECE": "Expected calibration error: the mean distance between confidence and accuracy.",
    "temperature": "The number that divides the logits so that confidence fits accuracy; above 1: overconfident.",
    "fingerprint": "A hash of the test images and their classes; equal fingerprints mean equal test sets.",
}


def meaning_of(term: str) -> str:
    """The sentence that explains a heading; empty where there is none."""
    score = next((each for each in SCORES.values() if term in (each.title, each.label)), None)
    return (score.meaning if score else "") or TERMS.get(term, "")


def glossary_of(tables: Sequence[Table]) -> dict[str, str]:
    """The scores that the tables show, and all other terms, in alphabetical order."""
    names = dict.fromkeys(name for table in tables for name in table.metrics)
    scores = {SCORES[name].label: SCORES[name].meaning for name in names if SCORES[name].meaning}
    return dict(sorted((TERMS | scores).items(), key=lambda item: item[0].lower()))
