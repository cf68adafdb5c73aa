"""Made-up predictions on made-up patients with two eyes; a large sample gives their true scores."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from resnet_lab.report.resampling import scores_of, sums_by_patient
from resnet_lab.scores import Predictions

SHARES = np.array([0.735, 0.07, 0.15, 0.025, 0.02])


class World:
    """Patients, their grades, and networks that differ in skill and seed.

    Args:
        generator: source of all random numbers.
        shares: shares of the grades, (K,).
        skill: tendency of predictions toward the truth.
        seed_spread: standard deviation of the skill over seeds.
    """

    def __init__(self, generator, shares=SHARES, skill: float = 1.5, seed_spread: float = 0.0) -> None:
        self.generator, self.shares, self.skill, self.seed_spread = generator, np.asarray(shares), skill, seed_spread

    def patients(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return targets (2 P,) with similar grades in both eyes, patients, and difficulty of each image (2 P, K)."""
        normal = self.generator.normal
        severity = np.sqrt(0.6) * normal(size=(count, 1)) + np.sqrt(0.4) * normal(size=(count, 2))
        targets = np.searchsorted(ndtri(np.cumsum(self.shares)[:-1]), severity.ravel())
        classes = len(self.shares)
        hard = 0.5 * normal(size=(count, 1, classes)) + 0.7 * normal(size=(count, 2, classes))
        return targets, np.repeat(np.arange(count), 2), hard.reshape(-1, classes)

    def predictions(self, targets: np.ndarray, hard: np.ndarray) -> Predictions:
        """Return the predictions of one more network."""
        skill = self.skill + self.seed_spread * self.generator.normal()
        scores = 0.7 * np.log(self.shares) + hard + 0.6 * self.generator.normal(size=hard.shape)
        scores -= 0.8 * skill * np.abs(np.arange(len(self.shares)) - targets[:, None])
        probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return Predictions(targets, probabilities.argmax(axis=1), probabilities)

    def truth(self, networks: int, patients: int = 10_000) -> dict[str, float]:
        """Return the mean scores over many networks, each on different patients."""
        found = []
        for _ in range(networks):
            targets, patient, hard = self.patients(patients)
            found.append(scores_of(sums_by_patient(self.predictions(targets, hard), patient).sum(axis=0)))
        return {metric: float(np.mean([scores[metric] for scores in found])) for metric in found[0]}
