"""Scales that equalise the ranges of channels.

Nagel, van Baalen, Blankevoort, Welling: "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, https://arxiv.org/abs/1906.04721, section 4.1. For one layer before and one behind a channel, with ranges
``r₁`` of its row and ``r₂`` of its column, the scale is ``s = √(r₂ / r₁)`` (equation 11): both ranges become equal. For
several layers, ``log s`` minimises ``Σ (log r₁/R₁ + log s)² + Σ (log r₂/R₂ - log s)²``, where ``R`` is the geometric
mean of a layer's ranges. For two layers that is equation 11 up to a common factor of all channels, which quantisation
doesn't see, and which is 1 on average here. Channels of the same layers are balanced together, and such clusters in
turns, each only if the sum of the squared logarithms of its channels' precisions falls. (The product of both
precisions, equation 9, doesn't depend on ``s`` unless the kernels' ranges do, so it can't decide.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unbranch.quantize.labels import distinct

Side = Literal["behind", "before"]
_SWEEPS = 50
_SHARES = (1.0, 0.5, 0.25)  # of a step that are tried
_FALL = 1e-4  # the least fall of a channel's loss that is worth a step


@dataclass(frozen=True, eq=False)
class Matrix:
    """The absolute values of a kernel, the largest of each position of its taps, with the scales of its channels.

    Args:
        values: ``(R, C)``, nonnegative.
        behind: index of the scale behind the layer, broadcastable to ``values``.
        before: the same of the scale before the layer.
        sides: on which sides scales are free.
    """

    values: Tensor
    behind: Tensor
    before: Tensor
    sides: tuple[Side, ...] = ("behind", "before")

    def scaled(self, scales: Tensor) -> Tensor:
        """Return the values with scales, ``(R, C)``."""
        return self.values * scales[self.behind] / scales[self.before]

    def index(self, side: Side) -> Tensor:
        """Return the index of the scale on one side."""
        return self.behind if side == "behind" else self.before

    def ranges(self, scales: Tensor, side: Side) -> Tensor:
        """Return the largest value that belongs to each scale of one side, 0 if there is none, of ``scales``' size."""
        index = self.index(side)
        values = self.scaled(scales)
        index = index.expand(values.shape)
        found = torch.zeros_like(scales)
        return found.scatter_reduce(0, index.reshape(-1), values.reshape(-1), "amax")

    def channel_ranges(self, scales: Tensor, side: Side) -> Tensor:
        """Return the largest value of each output channel (``"behind"``) or input channel, without zeros."""
        values, index = self.scaled(scales), self.index(side)
        axes = [axis for axis in (0, 1) if index.shape[axis] == 1]
        ranges = (values.amax(axes) if axes else values).reshape(-1)
        return ranges[ranges > 0]

    def log_precisions(self, scales: Tensor) -> Tensor:
        """Return the logarithm of the precision of each channel on the sides with free scales.

        The precision of a channel is its range over the range of the kernel (section 4.1.1); zero channels don't count.
        """
        logs = [self.channel_ranges(scales, side).log() for side in self.sides]
        found = torch.cat([self.values.new_empty(0), *logs])
        return found - found.max() if found.numel() else found

    def loss(self, scales: Tensor) -> float:
        """Return the sum of the squared logarithms of the precisions, 0 if all channels have the same range."""
        return float(self.log_precisions(scales).square().sum())

    def precision(self, scales: Tensor) -> float:
        """Return the geometric mean of the precisions, 1 if all channels have the same range."""
        found = self.log_precisions(scales)
        return float(found.mean().exp()) if found.numel() else 1.0


@dataclass(frozen=True, eq=False)
class Cluster:
    """Scales that belong to the same sides of the same layers.

    Args:
        scales: their indices.
        uses: name of each layer and side.
    """

    scales: Tensor
    uses: tuple[tuple[str, Side], ...]


def clusters_of(matrices: Mapping[str, Matrix], free: Tensor) -> list[Cluster]:
    """Return the free scales in clusters, in the order of their first layer.

    Args:
        matrices: the layers, by name.
        free: whether each scale is free, ``(S,)``.
    """
    uses: dict[int, list[tuple[str, Side]]] = defaultdict(list)
    for name, matrix in matrices.items():
        sides: tuple[tuple[Side, Tensor], ...] = (("before", matrix.before), ("behind", matrix.behind))
        for side, index in sides:
            for scale in distinct(index):
                if free[scale]:
                    uses[scale].append((name, side))
    found: dict[tuple[tuple[str, Side], ...], list[int]] = defaultdict(list)
    for scale, of in uses.items():
        found[tuple(of)].append(scale)
    return [Cluster(torch.tensor(sorted(scales)), of) for of, scales in found.items()]


def balance(matrices: Mapping[str, Matrix], clusters: list[Cluster], count: int) -> Tensor:
    """Return the scales, ``(count,)``: 1 for those that aren't in a cluster."""
    logs = torch.zeros(count, dtype=torch.float64)
    losses = {name: matrix.loss(logs.exp()) for name, matrix in matrices.items()}
    for _ in range(_SWEEPS):
        moved = [_advance(matrices, cluster, logs, losses) for cluster in clusters]
        if not any(moved):
            break
    return logs.exp()


def _advance(
    matrices: Mapping[str, Matrix], cluster: Cluster, logs: Tensor, losses: dict[str, float]
) -> bool:  # fmt: skip
    """Change the logarithms of a cluster's scales if the losses of its kernels fall; returns whether they do."""
    step = _step(matrices, cluster, logs.exp())
    names = {name for name, _ in cluster.uses}
    before, start = sum(losses[name] for name in names), logs[cluster.scales]
    for share in _SHARES:
        logs[cluster.scales] = start + share * step
        found = {name: matrices[name].loss(logs.exp()) for name in names}
        if sum(found.values()) < before - _FALL * len(step):
            losses.update(found)
            return True
    logs[cluster.scales] = start
    return False


def _step(matrices: Mapping[str, Matrix], cluster: Cluster, scales: Tensor) -> Tensor:
    """Return the change of the logarithms of a cluster's scales, ``(len(cluster.scales),)``; 0 for dead channels."""
    total = torch.zeros(len(cluster.scales), dtype=torch.float64)
    terms = torch.zeros_like(total)
    alive = {"behind": torch.zeros_like(total), "before": torch.zeros_like(total)}
    for name, side in cluster.uses:
        ranges = matrices[name].ranges(scales, side)[cluster.scales]
        used = ranges > 0
        level = matrices[name].channel_ranges(scales, side).log().mean()
        relative = ranges.clamp_min(1e-300).log() - level
        total += torch.where(used, -relative if side == "behind" else relative, 0.0)
        terms += used
        alive[side] += used
    change = total / terms.clamp_min(1)
    for side in {side for _, side in cluster.uses}:  # a dead channel has no scale that equalises anything
        change = torch.where(alive[side] > 0, change, 0.0)
    return change
