"""Accuracy that the authors of a network report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

IMAGENET, CIFAR10, IMAGENET22K = "ImageNet", "CIFAR-10", "ImageNet, after 22K"


@dataclass(frozen=True)
class Accuracy:
    """A reported accuracy.

    Args:
        top1: in percent.
        side: height and width of the images, in pixels.
        data: name of the data set.
        source: repository of the authors.
    """

    top1: float
    side: int
    data: str
    source: str


Reported: TypeAlias = Mapping[str, Mapping[str | None, Accuracy]]
"""By name of the network and block that it was trained with, None for its own."""


def reported(
    source: str, side: int, top1: Mapping[str, float | Mapping[str | None, float]], data: str = IMAGENET
) -> dict[str, dict[str | None, Accuracy]]:
    """Return a table of accuracies from one repository.

    Args:
        source: name of the repository.
        side: of the images, in pixels.
        top1: in percent by name, or by name and block.
        data: name of the data set.

    Example:
        >>> reported("me/net", 224, {"resnet18": {None: 69.5, "acb": 70.5}})["resnet18"]["acb"].top1
        70.5
    """
    blocks = {name: {None: row} if isinstance(row, int | float) else row for name, row in top1.items()}
    return {
        name: {block: Accuracy(value, side, data, source) for block, value in row.items()}
        for name, row in blocks.items()
    }
