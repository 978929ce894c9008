"""The small data sets as normalised tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unbranch.errors import InputError
from unbranch.train.data.digits import digits
from unbranch.train.data.fashion import fashion_mnist
from unbranch.train.data.pixels import Pixels


@dataclass(frozen=True)
class Images:
    """A data set in memory: ``(N, C, H, W)`` float32 with mean 0 and deviation 1, and class numbers ``(N,)``."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mirrored: bool = False
    """Whether a mirrored image is still of its class."""

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]


DATASETS: dict[str, Callable[[Path | None], Pixels]] = {"digits": lambda _: digits(), "fashion-mnist": fashion_mnist}


def load(name: str, folder: Path | None = None) -> Images:
    """The data set called ``name``. Raises InputError for a name that isn't known and files that aren't there."""
    if name not in DATASETS:
        raise InputError(f"data {name!r} is none of {', '.join(DATASETS)}")
    found = DATASETS[name](folder)
    train, val = found.train.float().unsqueeze(1), found.val.float().unsqueeze(1)  # (N, 1, H, W)
    mean, deviation = train.mean(), train.std()
    train, val = (train - mean) / deviation, (val - mean) / deviation
    return Images(name, train, found.train_labels, val, found.val_labels, found.mirrored)
