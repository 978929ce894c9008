"""From an operator to an ordinary PyTorch layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.algebra import ConvMap
from unbranch.convert.plan.emit_grid import GridLayer
from unbranch.errors import Inexact
from unbranch.rules.value import Affine, Gridded

_CONV: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PADS: dict[str, tuple[Any, ...]] = {
    "zeros": (nn.Identity, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.Identity, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.Identity, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.Identity, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}
_CHUNK = 1 << 21  # kernel entries cast at a time


@dataclass(frozen=True)
class Layer:
    """How a map becomes a layer.

    Args:
        padding: the layer's own padding per dimension, or "same".
        grow: taps added before and after the kernel, so that the padding becomes symmetric.
        before: padding that a layer of its own does first, as (lo, hi), or None.
    """

    padding: tuple[int, ...] | str
    grow: tuple[tuple[int, int], ...] = ()
    before: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def launches(self, m: ConvMap) -> int:
        """Operations launched: a border that isn't symmetric zeros is padded by an operation of its own."""
        return 1 + (self.before is not None or own_padding(m, self.grow))

    def numbers(self, m: ConvMap) -> int:
        """Numbers that the layer stores."""
        bias = 0 if m.bias is None else m.out_channels
        return m.weight.shape[0] * m.weight.shape[1] * prod(self.size(m)) + bias

    def macs(self, m: ConvMap, positions: float) -> float:
        """Multiply-accumulates for that many output positions."""
        return m.macs(positions) * prod(self.size(m)) / prod(m.size)

    def size(self, m: ConvMap) -> tuple[int, ...]:
        """Taps of the layer's kernel."""
        grow = self.grow or ((0, 0),) * m.ndim
        return tuple(k + a + b for k, (a, b) in zip(m.size, grow, strict=True))


def own_padding(m: ConvMap, grow: tuple[tuple[int, int], ...] = ()) -> bool:
    """Whether a convolution layer of this map pads by an operation of its own, as PyTorch's do."""
    return m.pads and (m.border != "zeros" or (m.lo != m.hi and not grow and max(m.up) == 1))


def layers_for(value: Affine) -> list[Layer | GridLayer]:
    """The ways to build a value's map as a layer, cheapest arithmetic first.

    Raises:
        Inexact: if no layer of PyTorch's computes it.
    """
    if isinstance(value, Gridded):
        return [GridLayer(value.shape)]
    if value.arrangement is not None:
        raise Inexact("its axes are in another arrangement than those of what it is computed from")
    m = value.map
    if m.ndim == 0:
        if m.groups > 1:
            raise Inexact("a grouped matrix isn't a linear layer")
        return [Layer(())]
    if max(m.up) > 1:
        return [_transposed(m)]
    if m.lo == m.hi and min(m.lo) >= 0:
        return [Layer(m.lo)]
    half = tuple(r // 2 for r in m.reach)
    if set(m.stride) == {1} and m.lo == half and m.hi == tuple(r - h for r, h in zip(m.reach, half, strict=True)):
        return [Layer("same")]
    if m.border != "zeros":
        if min(m.lo + m.hi) < 0:
            raise Inexact(f"a kernel off the centre with {m.border} padding")
        return [Layer((0,) * m.ndim, before=(m.lo, m.hi))]
    options: list[Layer | GridLayer] = [Layer((0,) * m.ndim, before=(m.lo, m.hi))]
    padding = tuple(max(a, b, 0) for a, b in zip(m.lo, m.hi, strict=True))
    missing = [(p - a, p - b) for p, a, b in zip(padding, m.lo, m.hi, strict=True)]
    if all(v % d == 0 for pair, d in zip(missing, m.dilation, strict=True) for v in pair):
        grow = tuple((a // d, b // d) for (a, b), d in zip(missing, m.dilation, strict=True))
        options.append(Layer(padding, grow=grow))
    return options


def _transposed(m: ConvMap) -> Layer:
    padding = tuple(r - a for r, a in zip(m.reach, m.lo, strict=True))
    extra = tuple(b - a for a, b in zip(m.lo, m.hi, strict=True))
    limit = [max(u, d) for u, d in zip(m.up, m.dilation, strict=True)]
    if set(m.stride) != {1} or min(padding) < 0 or any(not 0 <= e < x for e, x in zip(extra, limit, strict=True)):
        raise Inexact("a kernel that no transposed convolution has")
    return Layer(padding)


def allocate(value: Affine, layer: Layer | GridLayer, like: Tensor, dtype: torch.dtype) -> nn.Module:
    """The layer without its values, on the device and in the memory format of the weight ``like``."""
    if isinstance(value, Gridded) and isinstance(layer, GridLayer):
        return layer.allocate(value.map, like, dtype)
    assert isinstance(layer, Layer)
    m = value.map
    options: dict[str, Any] = {"bias": m.bias is not None, "device": like.device, "dtype": dtype}
    if m.ndim == 0:
        return _without_values(nn.Linear, m, options)
    options |= {"dilation": m.dilation, "groups": m.groups, "padding": layer.padding}
    if max(m.up) > 1:
        extra = tuple(b - a for a, b in zip(m.lo, m.hi, strict=True))
        kind = _TRANSPOSED[m.ndim]
        options |= {"stride": m.up, "kernel_size": m.size, "output_padding": extra}
    else:
        kind = _CONV[m.ndim]
        options |= {"stride": m.stride, "kernel_size": layer.size(m)}
        options["padding_mode"] = "zeros" if layer.before is not None else m.border
    module = _without_values(kind, m, options)
    if m.ndim == 2:
        module = module.to(memory_format=memory_format_of(like))
    if layer.before is None:
        return module
    amounts = tuple(v for pair in zip(reversed(layer.before[0]), reversed(layer.before[1]), strict=True) for v in pair)
    return nn.Sequential(OrderedDict(pad=_PADS[m.border][m.ndim](amounts), conv=module))


def _without_values(kind: Any, m: ConvMap, options: dict[str, Any]) -> nn.Module:
    device = options["device"]
    module: nn.Module = kind(m.in_channels, m.out_channels, **(options | {"device": "meta"}))
    for name, parameter in module.named_parameters():
        setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device)))
    return module


@torch.no_grad()
def fill(module: nn.Module, value: Affine, layer: Layer | GridLayer) -> None:
    """Cast a map's kernel and bias into an allocated layer, a few rows at a time."""
    if isinstance(value, Gridded) and isinstance(layer, GridLayer):
        return layer.fill(module, value.map)
    assert isinstance(layer, Layer)
    m = value.map
    conv: Any = module if layer.before is None else module.get_submodule("conv")
    weight, bias = conv.weight, conv.bias
    if m.weight.is_meta or weight.is_meta:
        return None
    if bias is not None:
        bias.copy_(m.bias) if m.bias is not None else bias.zero_()
    if max(m.up, default=1) > 1:
        kernel = m.kernel.flip(tuple(range(2, 2 + m.ndim)))
        kernel = kernel.reshape(m.groups, -1, *kernel.shape[1:]).transpose(1, 2)  # (groups, I/groups, O/groups, *k)
        weight.copy_(kernel.reshape(weight.shape))
        return None
    inside = weight
    if layer.grow:
        weight.zero_()
        inside = weight[(..., *(slice(a, a + k) for (a, _), k in zip(layer.grow, m.size, strict=True)))]
    step = max(1, _CHUNK // max(1, m.weight[0].numel()))
    for row in range(0, m.out_channels, step):
        inside[row : row + step] = m.rows(slice(row, row + step)).to(weight.dtype)
    return None


def memory_format_of(like: Tensor) -> torch.memory_format:
    """The format of a kernel, the default one where both would fit."""
    channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not like.is_contiguous() else torch.contiguous_format
