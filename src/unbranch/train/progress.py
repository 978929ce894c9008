"""The progress of a run: what callbacks get, and the means that it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unbranch.train.losses import MAIN


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run after ``step`` of ``steps`` updates.

    Args:
        epoch: counted from 1.
        loss, top1: means since the last report; ``top1`` in percent.
        images_per_second: over all processes.
        learning_rate: of the first parameter group.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    top1: float
    images_per_second: float
    learning_rate: float


OnProgress: TypeAlias = Callable[[TrainingProgress], None]
Log: TypeAlias = Callable[[str], None]


def ignore(_: Any) -> None:
    """The callback that does nothing."""


@dataclass(frozen=True)
class Means:
    """Over the images since the last report: loss, top-1 in percent, images per second, unreadable images."""

    loss: float
    top1: float
    images_per_second: float
    corrupt: int


class RunningMeans:
    """Sums over the images since the last report, kept on the device."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.sums: Tensor | None = None

    def add(self, loss: Tensor, outputs: Any, labels: Tensor, corrupt: Tensor) -> None:
        """Add a part of a batch, without a transfer from the device.

        Args:
            loss: mean over the part, a scalar.
            outputs: logits ``(B, classes)``, or a mapping that has them as ``main``.
            labels, corrupt: ``(B,)``.
        """
        logits = outputs[MAIN] if isinstance(outputs, dict) else outputs
        correct = (logits.detach().argmax(1) == labels).sum()
        count = torch.tensor(len(labels), device=loss.device)
        part = torch.stack([loss.double() * len(labels), correct.double(), count.double(), corrupt.sum().double()])
        self.sums = part if self.sums is None else self.sums + part

    def take(self, accelerator: Any) -> Means | None:
        """Return the means over all processes and start again; None if nothing was added."""
        if self.sums is None:
            return None
        loss, correct, count, corrupt = accelerator.reduce(self.sums, "sum").tolist()
        seconds = max(time.perf_counter() - self.start, 1e-9)
        self.start, self.sums = time.perf_counter(), None
        return Means(loss / count, 100 * correct / count, count / seconds, int(corrupt))
