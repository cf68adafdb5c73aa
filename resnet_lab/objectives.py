"""What a network's outputs mean: their losses, the probabilities they stand for, and the class they choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from resnet_lab.errors import UserError
from resnet_lab.values import NotNegative, Share

LEAST_WIDTH = 1e-3  # grades, so that a network without an error on validation has probabilities, too


class Objective(nn.Module):
    """The meaning of a network's M outputs for an image of one of K classes.

    Attributes:
        num_outputs: M, the length of the network's last layer.
        decision: the rule by which `decide` follows from `probabilities` (`statistics.DECISIONS`).
        fitted: whether `fit` finds something; its buffers are part of the checkpoint.
    """

    num_outputs: int
    decision = "argmax"
    fitted = False

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (B, M) and classes (B,) → losses (B,); a step takes their mean."""
        raise NotImplementedError

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Outputs (B, M) → probabilities (B, K), float32, whose rows add up to 1."""
        raise NotImplementedError

    def decide(self, outputs: Tensor) -> Tensor:
        """Outputs (B, M) → classes (B,)."""
        return self.probabilities(outputs).argmax(1)

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Find what is to be found on the validation images, from outputs (N, M), float64, and classes (N,)."""


class Softmax(Objective):
    """Outputs are logits of the classes.

    Args:
        num_classes: K, also M.
        weights: of the classes, (K,); None: 1 each.
        label_smoothing: share of the target that all classes divide among themselves.
    """

    def __init__(self, num_classes: int, weights: Sequence[float] | None, label_smoothing: float) -> None:
        super().__init__()
        self.num_outputs, self.label_smoothing = num_classes, label_smoothing
        self.weight: Tensor | None
        self.register_buffer("weight", None if weights is None else torch.tensor(weights))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            outputs, targets, self.weight, label_smoothing=self.label_smoothing, reduction="none"
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)


class Criterion(Softmax):
    """Outputs are logits of the classes, and the loss is one from outside.

    Args:
        num_classes: K, also M.
        criterion: logits (B, K) and classes (B,) → losses (B,).
    """

    def __init__(self, num_classes: int, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(num_classes, None, 0.0)
        self.criterion = criterion

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(outputs, targets)


class SquaredError(Objective):
    """The one output is the grade, a number; its error is Gaussian, and the nearest grade is chosen.

    A class has the probability of the interval up to the mid-points between it and its neighbors, which reaches to
    infinity at both ends. The nearest grade is then the median.

    Args:
        num_classes: K.
    """

    num_outputs = 1
    decision = "median"
    fitted = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.width: Tensor  # standard deviation of the error, in grades
        self.register_buffer("width", torch.tensor(1.0))
        self.edges: Tensor  # mid-points between the classes, (K - 1,)
        self.register_buffer("edges", torch.arange(num_classes - 1) + 0.5, persistent=False)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2

    def probabilities(self, outputs: Tensor) -> Tensor:
        below = torch.special.ndtr((self.edges - outputs.float()) / self.width)  # (B, K - 1)
        ends = nn.functional.pad(below, (1, 0)), nn.functional.pad(below, (0, 1), value=1.0)
        return ends[1] - ends[0]

    def decide(self, outputs: Tensor) -> Tensor:
        return (outputs.float() > self.edges).sum(1)

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        """The width is the root of the mean squared error, which is its most likely value."""
        error = (outputs[:, 0] - targets).square().mean().sqrt()
        self.width.copy_(error.clamp(min=LEAST_WIDTH))


def cross_entropy(
    label_smoothing: Share,
    class_weights: Literal["none", "balanced"] | list[NotNegative],
    class_counts: Sequence[int],
) -> Softmax:
    """Softmax cross-entropy; conf/loss/cross_entropy.yaml says what the arguments mean.

    Args:
        class_counts: training images of each class, n_k.

    Raises:
        UserError: the weights are neither, not K, or all 0; or balanced, where a class has no image.
    """
    weights = None if class_weights == "none" else _class_weights(class_weights, class_counts)
    return Softmax(len(class_counts), weights, label_smoothing)


def _class_weights(class_weights: str | Sequence[float], class_counts: Sequence[int]) -> list[float]:
    num_classes = len(class_counts)
    if class_weights == "balanced":
        if 0 in class_counts:
            raise UserError(
                f"loss.class_weights=balanced: class {list(class_counts).index(0)} has no training image; "
                "give one number for each class"
            )
        return [sum(class_counts) / (num_classes * count) for count in class_counts]
    if isinstance(class_weights, str) or len(class_weights) != num_classes or not any(class_weights):
        raise UserError(f"loss.class_weights={class_weights}: choose none, balanced or {num_classes} numbers from 0")
    return [float(weight) for weight in class_weights]


def mse(class_counts: Sequence[int]) -> SquaredError:
    """Mean squared error of a grade that is predicted as a number, for ordered classes.

    Args:
        class_counts: training images of each class, of which the number K counts.
    """
    return SquaredError(len(class_counts))
