"""The scales of a network: read by running it, and applied to a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbranch.graph.eval_view import deep_copied
from unbranch.graph.guard import storage_of
from unbranch.quantize import scaling_moves, scaling_rules  # noqa: F401 they register rules
from unbranch.quantize.balance import Matrix, Side
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

    def matrices(self) -> dict[str, Matrix]:
        """Return the kernels of convolutions and linear layers, by the name of their parameter."""
        tensors = dict(_named(self.network))
        found, free = {}, self.free
        for name, weight in self.found.weights.items():
            values = tensors[name].detach().double().abs()
            if weight.quantized and values.numel() and not values.is_meta:
                shape = values.shape[:2]
                behind, before = (self.indices(w).flatten(1).cpu() for w in (weight.behind, weight.before))
                sides: list[Side] = []
                sides += ["behind"] if bool(free[behind].any()) else []
                sides += ["before"] if bool(free[before].any()) else []
                found[name] = Matrix(values.reshape(*shape, -1).amax(2).cpu(), behind, before, tuple(sides))
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
        for name, weight in self.found.weights.items():
            for channels, side in (("input", weight.before), ("output", weight.behind)):
                if not weight.quantized:
                    continue
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
    result = deep_copied(network, {})
    tensors = dict(_named(network))
    by_memory = {storage_of(tensors[name]): values for name, values in new.items()}
    copies = dict(_named(result))
    for name, tensor in tensors.items():
        values = by_memory.get(storage_of(tensor))
        if values is not None:
            copies[name].data = values
    return result


def _named(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)
