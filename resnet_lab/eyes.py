"""A patient's two eyes: one grade of both, and each eye graded with the other's help (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from resnet_lab.data.patients import show_one_eye
from resnet_lab.derived import Labeled
from resnet_lab.errors import UserError, count

METHODS = ("worst", "mean", "logistic", "boosting")
FITTED = ("logistic", "boosting")  # they learn from validation how much one eye says about the other
LEAST = 1e-6  # probability whose logarithm a model sees
FEWEST = 20  # patients with two eyes from which a model is fitted


class Pairs:
    """The patients of a split with the rows of their one or two eyes.

    Args:
        labeled: predictions of the split; `patient` is needed.
        split: its name, for errors.

    Raises:
        UserError: there is no column `patient`, or a patient has more than two images.
    """

    def __init__(self, labeled: Labeled, split: str) -> None:
        if "patient" not in labeled.rows:
            raise UserError(f"predictions_{split}.csv has no patients, so no image has a second eye")
        self.labeled = labeled
        patients = labeled.rows["patient"]
        patients = patients.where(patients != "", labeled.rows["image"])  # an image without one is its own patient
        groups = pd.DataFrame({"row": np.arange(len(labeled.rows)), "patient": patients})
        rows = groups.groupby("patient", sort=False)["row"].agg(list)
        if (most := rows[rows.map(len) > 2]).size:
            images = ", ".join(labeled.rows["image"].iloc[most.iloc[0]])
            raise UserError(
                f"patient {most.index[0]} has {len(most.iloc[0])} images in {split} ({images}); at most one of each "
                "eye can be combined, so leave out the others; patients that share an identical image count as one"
            )
        self.patients = rows.index.to_numpy()
        self.first = np.array([each[0] for each in rows])  # (P,)
        self.second = np.array([each[-1] for each in rows])  # (P,), the first again if there is only one
        self.both = self.first != self.second

    @property
    def alone(self) -> int:
        """The number of patients with one image, which is graded alone."""
        return int((~self.both).sum())

    @property
    def of_one_eye(self) -> list[tuple[str, str]]:
        """The two images of each patient whose file names show the same eye."""
        images = self.labeled.rows["image"].to_numpy(str)
        pairs = zip(images[self.first[self.both]], images[self.second[self.both]], strict=True)
        return [(str(one), str(other)) for one, other in pairs if show_one_eye((one, other))]

    def by_patient(self, probabilities: np.ndarray) -> Labeled:
        """Return one row per patient: the target is the worse grade, `probabilities` are (P, K)."""
        targets = self.labeled.targets
        worse = np.maximum(targets[self.first], targets[self.second])
        rows = pd.DataFrame({"image": self.patients, "patient": self.patients, "target": worse})
        return Labeled(rows, probabilities)

    def worst(self, probabilities: np.ndarray | None = None) -> np.ndarray:
        """Return the probabilities (P, K) of the worse eye's grade, as if the two errors were independent.

        Args:
            probabilities: those of the images (N, K); None: the stored ones.
        """
        shares = self.labeled.probabilities if probabilities is None else probabilities
        below = shares.cumsum(axis=1)
        joint = np.where(self.both[:, None], below[self.first] * below[self.second], below[self.first])
        shares = np.clip(np.diff(joint, axis=1, prepend=0), 0, None)
        worse: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
        return worse

    def mean(self) -> np.ndarray:
        """Return the mean of the two eyes' probabilities (P, K)."""
        shares = self.labeled.probabilities
        means: np.ndarray = (shares[self.first] + shares[self.second]) / 2
        return means

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of eyes with a partner, (E,), and log probabilities of the eye and its partner, (E, 2K)."""
        logs = np.log(np.maximum(self.labeled.probabilities, LEAST))
        one, other = self.first[self.both], self.second[self.both]
        rows, partners = np.concatenate([one, other]), np.concatenate([other, one])
        return rows, np.hstack([logs[rows], logs[partners]])


def helped(method: str, val: Pairs, pairs: Pairs) -> np.ndarray:
    """Return the probabilities (N, K) of each image, where the partner's help is used.

    Args:
        method: `logistic` (logistic regression) or `boosting` (gradient boosting), of scikit-learn.
        val: the validation patients, on which the model is fitted.
        pairs: the patients to grade.

    Raises:
        UserError: too few validation patients have two eyes, or all their eyes have one grade.
    """
    if val.both.sum() < FEWEST:
        raise UserError(
            f"eyes={method}: {count(int(val.both.sum()), 'validation patient has', 'validation patients have')} two "
            f"eyes, but a model needs {FEWEST}; choose eyes=worst or eyes=mean"
        )
    rows, seen = val.features()
    grades = val.labeled.targets[rows]
    if len({*grades}) < 2:
        raise UserError(f"eyes={method}: all validation eyes have one grade; choose eyes=worst or eyes=mean")
    model = _model(method).fit(seen, grades)
    probabilities = pairs.labeled.probabilities.copy()
    rows, seen = pairs.features()
    found = np.zeros((len(rows), probabilities.shape[1]))
    found[:, model.classes_] = model.predict_proba(seen)  # a grade without validation eyes is never predicted
    probabilities[rows] = found
    return probabilities


def _model(method: str) -> Any:
    if method == "logistic":
        from sklearn.linear_model import LogisticRegression  # imported here because it takes a second
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(n_estimators=50, max_depth=2, learning_rate=0.1, random_state=0)


def graded(splits: Mapping[str, Labeled], method: str) -> dict[str, dict[str, Labeled]]:
    """Return `image` and `patient` → split → predictions; `worst` and `mean` give those by patient only.

    The grade of a patient is that of the worse eye. A fitted model predicts its own validation images too well, so
    only the other splits are returned.

    Args:
        splits: predictions of the images by split; a fitted method needs `val`.
        method: one of `METHODS`.

    Raises:
        UserError: as for `Pairs` and `helped`, no patient has two images, or there are no predictions on validation.
    """
    pairs = {split: Pairs(labeled, split) for split, labeled in splits.items()}
    scored = "test" if "test" in pairs else "val"
    if not pairs[scored].both.any():
        raise UserError(f"no patient has two images in {scored}, so there is nothing to combine")
    if method not in FITTED:
        return {
            "patient": {
                split: each.by_patient(each.worst() if method == "worst" else each.mean())
                for split, each in pairs.items()
            }
        }
    for split, why in (("val", "to be fitted"), ("test", "as it fits validation too well to be scored there")):
        if split not in pairs:
            raise UserError(f"eyes={method} needs predictions of {split}, {why}; the run stores none")
    found: dict[str, dict[str, Labeled]] = {"image": {}, "patient": {}}
    for split, each in pairs.items():
        if split == "val":
            continue
        probabilities = helped(method, pairs["val"], each)
        found["image"][split] = Labeled(each.labeled.rows, probabilities)
        found["patient"][split] = each.by_patient(each.worst(probabilities))
    return found
