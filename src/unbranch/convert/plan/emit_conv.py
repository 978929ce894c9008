"""Convolutions, linear layers and transposed convolutions from maps with a kernel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.algebra import ConvMap
from unbranch.errors import InexactError
from unbranch.grids import CONV_LAYERS, PAD_LAYERS, TRANSPOSED_CONV_LAYERS, last_axis_first

_CHUNK = 1 << 21  # kernel entries cast at a time


@dataclass(frozen=True)
class LoweredConv:
    """A plan for a layer with a kernel; see ``LoweredLayer``.

    Args:
        padding: the layer's own padding per dimension, or "same".
        grow: taps added before and after the kernel, so that the padding becomes symmetric.
        before: padding that a layer of its own does first, as (lo, hi), or None.
    """

    padding: tuple[int, ...] | str
    grow: tuple[tuple[int, int], ...] = ()
    before: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def launches(self, m: ConvMap) -> int:
        """Return the operations launched: padding other than symmetric zeros is one of its own."""
        return 1 + (self.before is not None or pads_separately(m, self.grow))

    def numel(self, m: ConvMap) -> int:
        bias = 0 if m.bias is None else m.out_channels
        return m.weight.shape[0] * m.weight.shape[1] * prod(self.kernel_size(m)) + bias

    def macs(self, m: ConvMap, positions: float) -> float:
        return m.macs(positions) * prod(self.kernel_size(m)) / prod(m.kernel_size)

    def kernel_size(self, m: ConvMap) -> tuple[int, ...]:
        """Return the taps of the layer's kernel."""
        grow = self.grow or ((0, 0),) * m.ndim
        return tuple(k + a + b for k, (a, b) in zip(m.kernel_size, grow, strict=True))

    def allocate(self, m: ConvMap, like: Tensor, dtype: torch.dtype) -> nn.Module:
        options: dict[str, Any] = {"bias": m.bias is not None, "device": like.device, "dtype": dtype}
        if m.ndim == 0:
            return _without_values(nn.Linear, m, options)
        options |= {"dilation": m.dilation, "groups": m.groups, "padding": self.padding}
        if max(m.input_dilation) > 1:
            extra = tuple(b - a for a, b in zip(m.lo, m.hi, strict=True))
            kind: Any = TRANSPOSED_CONV_LAYERS[m.ndim]
            options |= {"stride": m.input_dilation, "kernel_size": m.kernel_size, "output_padding": extra}
        else:
            kind = CONV_LAYERS[m.ndim]
            options |= {"stride": m.stride, "kernel_size": self.kernel_size(m)}
            options["padding_mode"] = "zeros" if self.before is not None else m.padding_mode
        module = _without_values(kind, m, options)
        if m.ndim == 2:
            module = module.to(memory_format=memory_format_of(like))
        if self.before is None:
            return module
        amounts = last_axis_first(zip(*self.before, strict=True))
        return nn.Sequential(OrderedDict(pad=PAD_LAYERS[m.padding_mode][m.ndim](amounts), conv=module))

    @torch.no_grad()
    def fill(self, module: nn.Module, m: ConvMap) -> None:
        """Cast kernel and bias into an allocated layer, a few rows at a time."""
        conv: Any = module if self.before is None else module.get_submodule("conv")
        weight, bias = conv.weight, conv.bias
        if m.is_meta or weight.is_meta:
            return
        if bias is not None:
            bias.copy_(m.bias) if m.bias is not None else bias.zero_()
        if max(m.input_dilation, default=1) > 1:
            kernel = m.kernel.flip(tuple(range(2, 2 + m.ndim)))
            kernel = kernel.reshape(m.groups, -1, *kernel.shape[1:]).transpose(1, 2)  # (g, I/g, O/g, *k)
            weight.copy_(kernel.reshape(weight.shape))
            return
        inside = weight
        if self.grow:
            weight.zero_()
            inside = weight[(..., *(slice(a, a + k) for (a, _), k in zip(self.grow, m.kernel_size, strict=True)))]
        step = max(1, _CHUNK // max(1, m.weight[0].numel()))
        for row in range(0, m.out_channels, step):
            inside[row : row + step] = m.rows(slice(row, row + step)).to(weight.dtype)


def pads_separately(m: ConvMap, grow: Sequence[tuple[int, int]] = ()) -> bool:
    """Return whether a convolution layer of this map pads by an operation of its own, as PyTorch's do."""
    return m.pads and (m.padding_mode != "zeros" or (m.lo != m.hi and not grow and max(m.input_dilation) == 1))


def lowered_convs(m: ConvMap) -> list[LoweredConv]:
    """Return the plans for layers that compute a map, cheapest arithmetic first.

    Raises:
        InexactError: if no layer of PyTorch's computes it.
    """
    if m.ndim == 0:
        if m.groups > 1:
            raise InexactError("a grouped matrix isn't a linear layer")
        return [LoweredConv(())]
    if max(m.input_dilation) > 1:
        return [_transposed(m)]
    if m.lo == m.hi and min(m.lo) >= 0:
        return [LoweredConv(m.lo)]
    half = tuple(r // 2 for r in m.span)
    if set(m.stride) == {1} and m.lo == half and m.hi == tuple(r - h for r, h in zip(m.span, half, strict=True)):
        return [LoweredConv("same")]
    if m.padding_mode != "zeros" and min(m.lo + m.hi) < 0:
        raise InexactError(f"a kernel off the centre with {m.padding_mode} padding")
    plain = LoweredConv((0,) * m.ndim, before=(m.lo, m.hi))
    return [plain] if m.padding_mode != "zeros" else [plain, *_grown(m)]


def _grown(m: ConvMap) -> list[LoweredConv]:
    """Return the layer whose kernel is extended by zeros so that its padding is symmetric, if there is one."""
    padding = tuple(max(a, b, 0) for a, b in zip(m.lo, m.hi, strict=True))
    missing = [(p - a, p - b) for p, a, b in zip(padding, m.lo, m.hi, strict=True)]
    if any(v % d for pair, d in zip(missing, m.dilation, strict=True) for v in pair):
        return []
    grow = tuple((a // d, b // d) for (a, b), d in zip(missing, m.dilation, strict=True))
    return [LoweredConv(padding, grow=grow)]


def _transposed(m: ConvMap) -> LoweredConv:
    padding = tuple(r - a for r, a in zip(m.span, m.lo, strict=True))
    extra = tuple(b - a for a, b in zip(m.lo, m.hi, strict=True))
    limit = [max(u, d) for u, d in zip(m.input_dilation, m.dilation, strict=True)]
    if set(m.stride) != {1} or min(padding) < 0 or any(not 0 <= e < x for e, x in zip(extra, limit, strict=True)):
        raise InexactError("a kernel that no transposed convolution has")
    return LoweredConv(padding)


def _without_values(kind: Any, m: ConvMap, options: dict[str, Any]) -> nn.Module:
    device = options["device"]
    module: nn.Module = kind(m.in_channels, m.out_channels, **(options | {"device": "meta"}))
    for name, parameter in module.named_parameters():
        setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device)))
    return module


def memory_format_of(like: Tensor) -> torch.memory_format:
    """Return the memory format of a kernel, the default one where both would fit."""
    channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not like.is_contiguous() else torch.contiguous_format
