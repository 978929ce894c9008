"""From matrices on a grid to a fully connected layer between reshapes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from unbranch.algebra import GridMap


@dataclass(frozen=True)
class LoweredGrid:
    """A plan for ``nn.Linear`` for one group, else a grouped 1×1 convolution of the numbers; see ``LoweredLayer``.

    Args:
        shape: of one output image.
    """

    shape: tuple[int, ...]

    def launches(self, m: GridMap) -> int:  # noqa: ARG002
        """Return one: the reshapes are views."""
        return 1

    def numel(self, m: GridMap) -> int:
        """Return the numbers of the map; its bias counts once a channel, though the layer repeats it over the grid."""
        return m.numel

    def macs(self, m: GridMap, positions: float) -> float:  # noqa: ARG002
        return float(m.matrix.numel())

    def allocate(self, m: GridMap, like: Tensor, dtype: torch.dtype) -> nn.Module:
        """Return a layer from ``(B, C, *grid)`` to ``(B, *shape)`` without values, on the device of ``like``."""
        inputs, bias = m.groups * int(m.matrix.shape[2]), m.bias is not None
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        if m.groups == 1:
            layers["fc"] = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Linear, inputs, m.features, bias=bias, device=like.device, dtype=dtype
            )
        else:
            layers["columns"] = nn.Unflatten(1, (inputs, 1, 1))
            layers["fc"] = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Conv2d, inputs, m.features, 1, groups=m.groups, bias=bias, device=like.device, dtype=dtype
            )
            layers["rows"] = nn.Flatten()
        if len(self.shape) > 1:
            layers["unflatten"] = nn.Unflatten(1, self.shape)
        return nn.Sequential(layers)

    @torch.no_grad()
    def fill(self, module: nn.Module, m: GridMap) -> None:
        """Cast the matrices and the bias into an allocated layer."""
        layer = module.get_submodule("fc")
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        if m.matrix.is_meta or layer.weight.is_meta:
            return
        layer.weight.copy_(m.matrix.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(m.bias.flatten() if m.bias is not None else torch.zeros(prod(layer.bias.shape)))
