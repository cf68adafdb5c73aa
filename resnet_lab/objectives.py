"""Objectives: the loss, the probabilities and the predicted class of a network's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from resnet_lab.errors import UserError
from resnet_lab.statistics import OWN_RULE, decisions, fitted_thresholds, midpoints
from resnet_lab.values import NotNegative, Share

ORDINAL = ("mse", "smooth_l1", "corn")  # losses of grades, which need ordered classes; `config` reads this line
ClassWeights = Literal["none", "balanced"] | list[NotNegative]
LEAST_WIDTH = 1e-3  # in grades; keeps probabilities defined for a network without errors on validation


class Objective(nn.Module, ABC):
    """Interpretation of a network's M outputs for an image of one of K classes.

    Attributes:
        num_outputs: M, the length of the network's last layer.
        decision: the rule of `decide`: `argmax`, `median` or `expected` of `probabilities`, or `own`, which
            `report --check` cannot derive.
        fitted: whether `fit` estimates parameters, stored as buffers in the checkpoint.
        mixable: whether the loss of an image depends on no other image of the batch. Then, losses to the classes of two
            mixed images can be averaged (`data.mixup`).
        rule: the rule of the final predictions (`choose`); training and the selection of an epoch follow `decide`.
    """

    num_outputs: int
    decision = "argmax"
    fitted = False
    mixable = True

    def __init__(self) -> None:
        super().__init__()
        self.rule = self.decision
        self.limits: Tensor | None  # of the expected grade, (K - 1,)
        self.register_buffer("limits", None)

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses (B,) of outputs (B, M) and classes (B,); a step averages them."""

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return probabilities (B, K), float32, of outputs (B, M); each row adds up to 1."""

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes (B,) of outputs (B, M)."""
        return self.probabilities(outputs).argmax(1)

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Estimate parameters on the validation images, from outputs (N, M), float64, and classes (N,)."""

    def choose(self, rule: str, num_classes: int) -> None:
        """Choose the rule of the final predictions of K classes.

        Args:
            rule: a rule of `statistics.DECISIONS`, or `auto`: that of `decide`.
            num_classes: K.
        """
        self.rule = self.decision if rule == "auto" else rule
        self.limits = torch.from_numpy(midpoints(num_classes)).float() if self.rule == "thresholds" else None

    @property
    def thresholds(self) -> list[float] | None:
        """The K - 1 limits of the rule `thresholds`; None for another rule."""
        return None if self.limits is None else [round(float(limit), 4) for limit in self.limits]

    def averaged(self, outputs: Tensor) -> Tensor:
        """Return probabilities (B, K) of outputs (B, M), or their average over V views of an image, from (B, V, M)."""
        if outputs.ndim == 2:
            return self.probabilities(outputs)
        return self.probabilities(outputs.flatten(0, 1)).view(*outputs.shape[:2], -1).mean(1)

    def classes(self, outputs: Tensor, final: bool = True) -> Tensor:
        """Return the predictions (B,) of outputs (B, M), or of the average over V views, from (B, V, M).

        Args:
            outputs: the outputs.
            final: whether to follow `rule`, not `decision`.
        """
        rule = self.rule if final else self.decision
        if rule == self.decision and outputs.ndim == 2:
            return self.decide(outputs)
        if rule == OWN_RULE:
            return self.decide(outputs.mean(1))
        probabilities = self.averaged(outputs).cpu().numpy()
        return torch.from_numpy(decisions(probabilities, rule, self.thresholds)).to(outputs.device)

    def fit_thresholds(self, outputs: Tensor, targets: Tensor) -> None:
        """Fit the limits of the rule `thresholds` on validation, from outputs as of `classes` and true classes (N,)."""
        if self.limits is not None:
            probabilities = self.averaged(outputs).cpu().numpy()
            self.limits.copy_(torch.tensor(fitted_thresholds(probabilities, targets.cpu().numpy())))


class Softmax(Objective):
    """Objective with logits of the classes as outputs.

    Args:
        num_classes: K, equal to M.
        weights: class weights, (K,); None: 1 each.
        label_smoothing: share of the target that is distributed evenly over all classes.
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
    """Objective with logits of the classes as outputs and an external loss.

    Args:
        num_classes: K, equal to M.
        criterion: logits (B, K) and classes (B,) → losses (B,).
    """

    def __init__(self, num_classes: int, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(num_classes, None, 0.0)
        self.criterion, self.mixable = criterion, getattr(criterion, "mixable", True)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(outputs, targets)


class SquaredError(Objective):
    """Objective with the grade as single output, Gaussian errors, and the nearest grade as prediction.

    The loss is the squared error (2nd place, Kaggle 2015).

    Each class has the probability of the interval between the midpoints to its neighbors; the first and the last
    interval extend to infinity. The nearest grade is then the median.

    Args:
        num_classes: K.
        weights: class weights, (K,); None: 1 each.
    """

    num_outputs = 1
    decision = "median"
    fitted = True

    def __init__(self, num_classes: int, weights: Sequence[float] | None) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.register_buffer("weight", None if weights is None else torch.tensor(weights))
        self.width: Tensor  # standard deviation of the error, in grades
        self.register_buffer("width", torch.tensor(1.0))
        self.edges: Tensor  # midpoints between the classes, (K - 1,)
        self.register_buffer("edges", torch.arange(num_classes - 1) + 0.5, persistent=False)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _weighted((outputs[:, 0] - targets) ** 2, targets, self.weight)

    def probabilities(self, outputs: Tensor) -> Tensor:
        below = torch.special.ndtr((self.edges - outputs.float()) / self.width)  # (B, K - 1)
        ends = nn.functional.pad(below, (1, 0)), nn.functional.pad(below, (0, 1), value=1.0)
        return ends[1] - ends[0]

    def decide(self, outputs: Tensor) -> Tensor:
        return (outputs.float() > self.edges).sum(1)

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Set the width to the root mean squared error, its maximum likelihood estimate."""
        error = (outputs[:, 0] - targets).square().mean().sqrt()
        self.width.copy_(error.clamp(min=LEAST_WIDTH))


class SmoothL1(SquaredError):
    """Objective with the grade as single output, as `SquaredError`, and the smooth L1 loss (Girshick 2015).

    The loss is quadratic for small errors and linear for large ones, so that one image far off counts less.

    Args:
        num_classes: K.
        weights: class weights, (K,); None: 1 each.
        beta: error in grades from which the loss is linear; 0: the absolute error.
    """

    def __init__(self, num_classes: int, weights: Sequence[float] | None, beta: float) -> None:
        super().__init__(num_classes, weights)
        self.beta = beta

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = nn.functional.smooth_l1_loss(outputs[:, 0], targets.to(outputs), reduction="none", beta=self.beta)
        return _weighted(losses, targets, self.weight)


class Corn(Objective):
    """Conditional ordinal regression for neural networks (CORN; Shi, Cao and Raschka 2023, arXiv:2111.08851).

    Output k is the logit of P(y > k | y ≥ k), for k = 0 … K - 2. It is trained on the images with y ≥ k only. The
    products of these probabilities, P(y > k), never rise with k. The prediction is the number of those above 0.5, which
    is the median.

    The loss of an image is the sum over its outputs, the negative log-likelihood of its class. The paper divides the
    sum over a batch by its pairs of image and output, not by its images. The gradient then has another length, but the
    same direction.

    Args:
        num_classes: K.
        weights: class weights, (K,); None: 1 each.
    """

    decision = "median"

    def __init__(self, num_classes: int, weights: Sequence[float] | None) -> None:
        super().__init__()
        self.num_outputs = num_classes - 1
        self.weight: Tensor | None
        self.register_buffer("weight", None if weights is None else torch.tensor(weights))
        self.ranks: Tensor  # k of each output, (K - 1,)
        self.register_buffer("ranks", torch.arange(num_classes - 1), persistent=False)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        steps = targets[:, None] - self.ranks  # (B, K - 1); from 0 on, the image trains the output
        above, reached = (steps > 0).to(outputs), (steps >= 0).to(outputs)
        losses = nn.functional.binary_cross_entropy_with_logits(outputs, above, reached, reduction="none")
        return _weighted(losses.sum(1), targets, self.weight)

    def probabilities(self, outputs: Tensor) -> Tensor:
        logits = outputs.float()
        above = nn.functional.logsigmoid(logits).cumsum(1)  # log P(y > k)
        stays = nn.functional.logsigmoid(-logits)  # log P(y = k | y ≥ k); 0 for the last class
        return (nn.functional.pad(above, (1, 0)) + nn.functional.pad(stays, (0, 1))).exp()

    def decide(self, outputs: Tensor) -> Tensor:
        return (outputs.float().sigmoid().cumprod(1) > 0.5).sum(1)


def _weighted(losses: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Return losses (B,) times the weights of their classes (K,), if there are weights."""
    return losses if weight is None else losses * weight[targets]


def cross_entropy(label_smoothing: Share, class_weights: ClassWeights, class_counts: Sequence[int]) -> Softmax:
    """Build softmax cross-entropy; conf/loss/cross_entropy.yaml documents the arguments.

    Args:
        class_counts: training images of each class, n_k.

    Raises:
        UserError: the weights are not a known word or K numbers, are all 0, or balanced with an empty class.
    """
    return Softmax(len(class_counts), _class_weights(class_weights, class_counts), label_smoothing)


def _class_weights(class_weights: str | Sequence[float], class_counts: Sequence[int]) -> list[float] | None:
    num_classes = len(class_counts)
    if class_weights == "none":
        return None
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


def mse(class_weights: ClassWeights, class_counts: Sequence[int]) -> SquaredError:
    """Build the mean squared error of a grade predicted as a number; conf/loss/mse.yaml documents the arguments.

    Args:
        class_counts: training images of each class, n_k.

    Raises:
        UserError: as for `cross_entropy`.
    """
    return SquaredError(len(class_counts), _class_weights(class_weights, class_counts))


def smooth_l1(beta: NotNegative, class_weights: ClassWeights, class_counts: Sequence[int]) -> SmoothL1:
    """Build the smooth L1 loss of a grade predicted as a number; conf/loss/smooth_l1.yaml documents the arguments.

    Args:
        class_counts: training images of each class, n_k.

    Raises:
        UserError: as for `cross_entropy`.
    """
    return SmoothL1(len(class_counts), _class_weights(class_weights, class_counts), beta)


def corn(class_weights: ClassWeights, class_counts: Sequence[int]) -> Corn:
    """Build CORN, with an output for each step to the next grade; conf/loss/corn.yaml documents the arguments.

    Args:
        class_counts: training images of each class, n_k.

    Raises:
        UserError: as for `cross_entropy`.
    """
    return Corn(len(class_counts), _class_weights(class_weights, class_counts))
