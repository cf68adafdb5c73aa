"""CIFAR-10 through torchvision, which downloads it if absent and verifies it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torchvision.datasets import CIFAR10 as Torchvision

from resnet_lab.data.arrays import ArrayData
from resnet_lab.data.listing import refuse_closed
from resnet_lab.errors import UserError


@dataclass(kw_only=True)
class CIFAR10(ArrayData):
    """CIFAR-10 from `root/cifar-10-batches-py` or the archive `root/cifar-10-python.tar.gz`."""

    def read_arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return train (50,000) and test (10,000), 32×32; sets `class_names` if the configuration gives none.

        Raises:
            UserError: the data set is absent and cannot be downloaded.
        """
        splits = {"train": self._load(train=True), "test": self._load(train=False)}
        self.class_names = self.class_names or splits["train"].classes
        return {split: (loaded.data, np.array(loaded.targets)) for split, loaded in splits.items()}

    def _load(self, train: bool) -> Torchvision:
        refuse_closed(self.source, self.source / Torchvision.base_folder)
        try:
            return Torchvision(self.source, train, download=True)
        except PermissionError:
            raise
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.source / Torchvision.base_folder} is missing or damaged, and cannot be downloaded ({error}); "
                f"put {Torchvision.filename} from {Torchvision.url} into data.root={self.source}"
            ) from None
