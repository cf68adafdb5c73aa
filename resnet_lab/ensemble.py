"""Networks whose probabilities are averaged, as one network with an objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnet_lab.data.transforms import renormalization
from resnet_lab.objectives import Objective


class Ensemble(nn.Module):
    """Mean of the probabilities of several networks.

    Args:
        networks: images (B, 3, S, S), normalized for the network → outputs (B, M).
        objectives: outputs (B, M) → probabilities (B, K), one for each network.
        means: mean by channel (3,) that normalizes the images of each network.
        stds: standard deviation by channel (3,), likewise.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        objectives: Sequence[Objective],
        means: Sequence[Sequence[float]],
        stds: Sequence[Sequence[float]],
    ) -> None:
        super().__init__()
        self.networks, self.objectives = nn.ModuleList(networks), nn.ModuleList(objectives)
        mean, std = (torch.tensor(each, dtype=torch.float) for each in (means, stds))  # (N, 3) for N networks
        # from the normalization of the first network to that of each other one; channels-last refuses five dimensions
        scale, shift = renormalization(mean[0], std[0], mean, std)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.shift: Tensor
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, (B, K) float32, of images (B, 3, S, S).

        The images are normalized for the first network.
        """
        total: Tensor | None = None
        for k, (network, objective) in enumerate(zip(self.networks, self.objectives, strict=True)):
            seen = images if k == 0 else images * self.scale[k, :, None, None] + self.shift[k, :, None, None]
            assert isinstance(objective, Objective)
            each = objective.probabilities(network(seen).float())
            total = each if total is None else total + each
        assert total is not None
        return (total / len(self.networks)).clamp(min=torch.finfo(torch.float32).tiny).log()


class LogProbabilities(Objective):
    """Objective with the logarithms of the probabilities as outputs.

    Args:
        num_classes: K, equal to M.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_outputs = num_classes

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.nll_loss(outputs, targets, reduction="none")

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().exp()
