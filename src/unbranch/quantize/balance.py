"""Scales that equalise the ranges of channels.

Nagel, van Baalen, Blankevoort, Welling: "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, https://arxiv.org/abs/1906.04721, section 4.1. For one layer before and one behind a channel, with ranges
``r₁`` of its row and ``r₂`` of its column, the scale is ``s = √(r₂ / r₁)`` (equation 11): both ranges become equal. For
several layers, ``log s`` minimises ``Σ (log r₁/R₁ + log s)² + Σ (log r₂/R₂ - log s)²``, where ``R`` is the geometric
mean of a layer's ranges. For two layers that is equation 11 up to a common factor of all channels, which quantisation
doesn't see, and which is 1 on average here.

Channels of the same layers are balanced together, and such clusters in turns, each as far as the noise that quantising
is expected to cause falls. The paper's criterion, the product of both precisions (equation 9), doesn't depend on ``s``
unless the range of a kernel does, and doesn't see activations: a small row with a large bias, scaled up, ruins theirs.
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
_SHARES = (1.0, 0.5, 0.25, 0.1)  # of a step that are tried
_FALL = 1e-3  # the least fall of the logarithm of a channel's noise that is worth a step
_LEVELS = 255.0  # of 8 bits; the number hardly matters, since weights and inputs have as many


@dataclass(frozen=True, eq=False)
class Kernel:
    """The kernel of a layer with the scales of its channels, and its inputs and outputs on example data.

    Args:
        largest: the largest absolute weight of all taps, ``(groups, O/groups, I/groups)``.
        squares: sum of the squared weights of all taps, in the same shape.
        taps: of the kernel.
        behind: index of the scale of each output channel, ``(groups, O/groups)``.
        before: index of the scale of each input channel, ``(groups, I/groups)``.
        power: mean square of each input channel.
        lowest, highest: of each input channel.
        variance: of each output channel.
        sides: on which sides scales are free.
    """

    largest: Tensor
    squares: Tensor
    taps: int
    behind: Tensor
    before: Tensor
    power: Tensor
    lowest: Tensor
    highest: Tensor
    variance: Tensor
    sides: tuple[Side, ...] = ("behind", "before")

    def index(self, side: Side) -> Tensor:
        """Return the indices of the scales on one side."""
        return self.behind if side == "behind" else self.before

    def channel_ranges(self, scales: Tensor, side: Side) -> Tensor:
        """Return the largest scaled weight of each output channel (``"behind"``) or input channel (``"before"``)."""
        scaled = self.largest * scales[self.behind][:, :, None] / scales[self.before][:, None]
        return scaled.amax(2 if side == "behind" else 1)

    def ranges(self, scales: Tensor, side: Side) -> Tensor:
        """Return the largest scaled weight that belongs to each scale, 0 if there is none, of ``scales``' size."""
        values = self.channel_ranges(scales, side).reshape(-1)
        return torch.zeros_like(scales).scatter_reduce(0, self.index(side).reshape(-1), values, "amax")

    def precision(self, scales: Tensor) -> float:
        """Return the geometric mean of the precisions of the channels on the sides with free scales.

        The precision of a channel is its range over the range of the kernel (section 4.1.1); zero channels don't count.
        """
        ranges = [self.channel_ranges(scales, side).reshape(-1) for side in self.sides]
        found = torch.cat([self.largest.new_empty(0), *ranges])
        found = found[found > 0].log()
        return float((found - found.max()).mean().exp()) if found.numel() else 1.0

    def noise(self, scales: Tensor) -> float:
        """Return the sum, over output channels, of the logarithm of quantisation noise over variance.

        A rounded number is off by a uniform error of variance ``Δ²/12``, where ``Δ`` is the range of its tensor over
        the number of levels. An output channel adds up the errors of its weights times the power of the inputs, and the
        errors of the inputs times the squares of the weights.
        """
        behind, before = scales[self.behind], scales[self.before]
        top = (self.largest * behind[:, :, None] / before[:, None]).max()
        low, high = (self.lowest * before).min().clamp_max(0), (self.highest * before).max().clamp_min(0)
        of_weights = (2 * top).square() * self.taps * (self.power * before.square()).sum(1, keepdim=True)
        of_inputs = (high - low).square() * (self.squares / before[:, None].square()).sum(2) * behind.square()
        ratio = (of_weights + of_inputs) / (12 * _LEVELS**2) / (behind.square() * self.variance)
        counted = (self.variance > 0) & (ratio > 0)
        return float(ratio[counted].log().sum())


@dataclass(frozen=True, eq=False)
class Cluster:
    """Scales that belong to the same sides of the same layers.

    Args:
        scales: their indices.
        uses: name of each layer and side.
    """

    scales: Tensor
    uses: tuple[tuple[str, Side], ...]


def clusters_of(kernels: Mapping[str, Kernel], free: Tensor) -> list[Cluster]:
    """Return the free scales in clusters, in the order of their first layer.

    Args:
        kernels: the layers, by name.
        free: whether each scale is free, ``(S,)``.
    """
    uses: dict[int, list[tuple[str, Side]]] = defaultdict(list)
    for name, kernel in kernels.items():
        sides: tuple[Side, ...] = ("before", "behind")
        for side in sides:
            for scale in distinct(kernel.index(side)):
                if free[scale]:
                    uses[scale].append((name, side))
    found: dict[tuple[tuple[str, Side], ...], list[int]] = defaultdict(list)
    for scale, of in uses.items():
        found[tuple(of)].append(scale)
    return [Cluster(torch.tensor(sorted(scales)), of) for of, scales in found.items()]


def balance(kernels: Mapping[str, Kernel], clusters: list[Cluster], count: int) -> Tensor:
    """Return the scales, ``(count,)``: 1 for those that aren't in a cluster."""
    logs = torch.zeros(count, dtype=torch.float64)
    noise = {name: kernel.noise(logs.exp()) for name, kernel in kernels.items()}
    for _ in range(_SWEEPS):
        moved = [_advance(kernels, cluster, logs, noise) for cluster in clusters]
        if not any(moved):
            break
    return logs.exp()


def _advance(kernels: Mapping[str, Kernel], cluster: Cluster, logs: Tensor, noise: dict[str, float]) -> bool:
    """Change the logarithms of a cluster's scales if the noise of its layers falls; returns whether it does."""
    step = _step(kernels, cluster, logs.exp())
    names = {name for name, _ in cluster.uses}
    start, least = logs[cluster.scales], sum(noise[name] for name in names) - _FALL * len(step)
    best, found = start, {}
    for share in _SHARES:
        logs[cluster.scales] = start + share * step
        trial = {name: kernels[name].noise(logs.exp()) for name in names}
        if sum(trial.values()) < least:
            least, best, found = sum(trial.values()), logs[cluster.scales], trial
    logs[cluster.scales] = best
    noise.update(found)
    return bool(found)


def _step(kernels: Mapping[str, Kernel], cluster: Cluster, scales: Tensor) -> Tensor:
    """Return the change of the logarithms of a cluster's scales, ``(len(cluster.scales),)``; 0 for dead channels."""
    total = torch.zeros(len(cluster.scales), dtype=torch.float64)
    terms = torch.zeros_like(total)
    alive = {"behind": torch.zeros_like(total), "before": torch.zeros_like(total)}
    for name, side in cluster.uses:
        ranges = kernels[name].ranges(scales, side)[cluster.scales]
        used, channels = ranges > 0, kernels[name].channel_ranges(scales, side)
        relative = ranges.clamp_min(1e-300).log() - channels[channels > 0].log().mean()
        total += torch.where(used, -relative if side == "behind" else relative, 0.0)
        terms += used
        alive[side] += used
    change = total / terms.clamp_min(1)
    for side in {side for _, side in cluster.uses}:  # a dead channel has no scale that equalises anything
        change = torch.where(alive[side] > 0, change, 0.0)
    return change
