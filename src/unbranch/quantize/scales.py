"""The scales of a network: read by running it, and applied to a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbranch.convert.rewrite.rewrite import copied
from unbranch.graph.guard import storage_of
from unbranch.quantize import scaling_moves, scaling_rules  # noqa: F401 they register rules
from unbranch.quantize.balance import Kernel, Side
from unbranch.quantize.calibration import LayerInputs
from unbranch.quantize.labels import FIXED, distinct
from unbranch.quantize.report import SkippedScale
from unbranch.quantize.scaling import Scales, ScalingMode
from unbranch.quantize.trials import Trials

OUTPUT = "it is an output of the network"
KEPT = "the network stores it"
_INPUT = "it is an input of the network, or made from a constant"


@dataclass(frozen=True, eq=False)
class NetworkScales:
    """The scales that a network may have, as variables.

    Args:
        network: the network.
        found: labels of its layers and values.
        roots: for each variable the one that stands for it, ``(S,)``.
    """

    network: nn.Module
    found: Scales
    roots: Tensor

    def indices(self, labels: Tensor) -> Tensor:
        """Return which scale each label stands for; 0, which is always 1, for ``FIXED`` and ``ANY``."""
        return self.roots[labels.long().clamp_min(FIXED)]

    @property
    def free(self) -> Tensor:
        """Whether each scale is free, ``(S,)``."""
        labels = self.found.labels
        return torch.tensor([labels.root(j) == j and labels.reason(j) is None for j in range(len(labels))])

    def kernels(self, inputs: Mapping[str, LayerInputs]) -> dict[str, Kernel]:
        """Return the kernels of convolutions and linear layers, by the name of their parameter.

        Args:
            inputs: what the layers read and compute on example data.
        """
        tensors, free = dict(_named(self.network)), self.free
        found = {}
        for name, labels in self.found.kernels.items():
            seen, values = inputs.get(name), tensors[name].detach().double().cpu()
            if seen is None or not values.numel() or len(seen.largest) != len(labels.before):
                continue
            shape = (labels.groups, len(values) // labels.groups, values.shape[1])
            taps = values.reshape(*shape, -1).transpose(1, 2) if labels.transposed else values.reshape(*shape, -1)
            behind, before = (self.indices(one).reshape(labels.groups, -1) for one in (labels.behind, labels.before))
            sides: list[Side] = ["behind"] if bool(free[behind].any()) else []
            sides += ["before"] if bool(free[before].any()) else []
            power, low, high, variance = (
                t.reshape(labels.groups, -1) for t in (seen.power, seen.lowest, seen.highest, seen.variance)
            )
            largest, squares, count = taps.abs().amax(3), taps.square().sum(3), taps.shape[3]
            found[name] = Kernel(largest, squares, count, behind, before, power, low, high, variance, tuple(sides))
        return found

    def factors(self, scales: Tensor) -> dict[str, Tensor]:
        """Return the factor of each parameter and buffer that changes, by name, broadcastable to its shape."""
        made = {name: scales[self.indices(w.behind)] / scales[self.indices(w.before)]
                for name, w in self.found.weights.items()}  # fmt: skip
        made |= {name: scales[self.indices(v)] for name, v in self.found.values.items() if name not in made}
        return {name: factor for name, factor in made.items() if bool((factor != 1).any())}

    def skipped(self) -> Iterator[SkippedScale]:
        """Yield the channels of kernels whose scale is fixed, with the first reason."""
        labels = self.found.labels
        for name, kernel in self.found.kernels.items():
            for channels, side in (("input", kernel.before), ("output", kernel.behind)):
                each = distinct(side)
                fixed = {v: _INPUT if v <= FIXED else labels.reason(v) for v in each}
                fixed = {v: reason for v, reason in fixed.items() if reason is not None}
                if fixed:
                    share = sum(int((side == v).sum()) for v in fixed) / side.numel()
                    yield SkippedScale(name, channels, share, fixed[min(fixed)] or _INPUT)


def read_scales(trials: Trials, observed: Mapping[str, str]) -> NetworkScales:
    """Run a network on every input of ``trials`` and return which scales all runs allow.

    Args:
        trials: the network and inputs.
        observed: reason for each module whose inputs and outputs keep their scale, by path.
    """
    found = Scales()
    for given in trials.given:
        mode = ScalingMode(found, observed)
        seen = trials.read(mode, given)
        mode.fix(seen.outputs, OUTPUT)
        mode.fix(list(seen.changes.values()), KEPT)
    found.settle()
    return NetworkScales(trials.network, found, found.labels.roots())


@torch.no_grad()
def with_factors(network: nn.Module, factors: Mapping[str, Tensor], *, exact: bool = False) -> nn.Module:
    """Return a copy with multiplied parameters and buffers; tensors that share memory still do.

    Args:
        network: it isn't changed.
        factors: by name, broadcastable to the tensor.
        exact: store the changed tensors in float64.
    """

    def changed(name: str, tensor: Tensor) -> Tensor:
        made = tensor.double() * factors[name].to(tensor.device)
        return made if exact else made.to(tensor.dtype)

    return with_tensors(network, {name: changed(name, t) for name, t in _named(network) if name in factors})


@torch.no_grad()
def with_tensors(network: nn.Module, new: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with other values of parameters and buffers, by name; tensors that share memory still do."""
    result = copied(network, {})
    tensors = dict(_named(network))
    by_memory = {storage_of(tensors[name]): values for name, values in new.items()}
    copies = dict(_named(result))
    for name, tensor in tensors.items():
        values = by_memory.get(storage_of(tensor))
        if values is not None:
            copies[name].data = values.to(tensor.device)
    return result


def _named(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)
