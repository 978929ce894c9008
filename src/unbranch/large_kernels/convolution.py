"""Large depthwise convolutions on x86 CPUs, without the paths of oneDNN that are 10 to 40 times slower.

oneDNN 3.12, in PyTorch 2.14, has kernels for depthwise convolutions and a general path (im2col and a product of
matrices for each channel). It takes the general path

* for outputs, if the padding of the width is more than 4 with AVX2 or 6 with AVX-512, or more than the output's width
  (``jit_uni_dw_conv``). In channels_last, another kernel (``brdgmm_dw``) supports any padding, but no dilation. Without
  padding there is no limit.
* for gradients of kernels of more than 3×3 taps, or with dilation, in any memory format.
* for gradients of inputs, with dilation.

So ``large_conv2d`` computes outputs in channels_last, or on an input that was padded before if there is dilation; and
the gradient of a kernel as another depthwise convolution without padding: with input x, output gradient g, stride s
and dilation d,

    dW[c, i] = Σ_n Σ_t x[n, c, i·d + t·s] · g[n, c, t],

a convolution of the images of a batch as channels, with kernel g, stride d and dilation s. Memory formats of input and
output stay as PyTorch has them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from unbranch.grids import Amounts, Ints, as_tuple, last_axis_first, padding_amounts

WIDEST_PADDING = {"AVX2": 4, "AVX512": 6}  # outputs in a row that oneDNN's direct kernel computes at once
AT_ONCE = 1 << 21  # numbers of padded input for which the gradient of a kernel is computed at once
TRANSPOSED = 1 << 14  # numbers of an image from which on it is transposed as a matrix


@dataclass(frozen=True)
class _Geometry:
    """Arguments of a depthwise convolution; ``amounts`` are the padding of height and width as numbers."""

    stride: Ints
    dilation: Ints
    groups: int
    amounts: Amounts

    @property
    def padding(self) -> Ints | None:
        """Padding as an argument of a convolution, or None if it isn't symmetric."""
        symmetric = all(before == after >= 0 for before, after in self.amounts)
        return tuple(before for before, _ in self.amounts) if symmetric else None

    @property
    def dilated(self) -> bool:
        return max(self.dilation) > 1


@functools.lru_cache(maxsize=1024)
def _geometry(stride: Any, padding: Any, dilation: Any, groups: int, kernel: Ints) -> _Geometry:
    steps = as_tuple(dilation, 2)
    amounts = tuple(zip(*padding_amounts(padding, steps, kernel), strict=True))
    return _Geometry(as_tuple(stride, 2), steps, groups, amounts)


def large_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints | str, dilation: Ints, groups: int
) -> Tensor:
    """Compute ``F.conv2d`` of the same arguments, ``(B, C, H, W)`` to ``(B, C, H', W')``.

    Anything but a depthwise convolution of plain float32 or bfloat16 tensors on an x86 CPU is ``F.conv2d`` itself, and
    so is everything that is traced, compiled, exported or transformed by ``torch.func``.
    """
    ours = _is_ours(x, weight, groups)
    dtype = torch.get_autocast_dtype("cpu") if ours and torch.is_autocast_enabled("cpu") else None
    if not ours or not _is_supported(x, weight, bias, dtype):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if dtype is not None:
        with torch.autocast("cpu", enabled=False):
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            return large_conv2d(x, weight, bias, stride, padding, dilation, groups)
    geometry = _geometry(stride, padding, dilation, groups, tuple(weight.shape[2:]))
    given = [t for t in (x, weight, bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given) and not _has_tangent(given):
        return cast(Tensor, _LargeConv2d.apply(x, weight, bias, geometry))
    return _output(x, weight, bias, geometry)


def _is_ours(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether a convolution is depthwise, of plain tensors on a CPU, and really computed."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return (
        all(type(t) in (Tensor, nn.Parameter) for t in (x, weight))
        and x.device.type == weight.device.type == "cpu"
        and x.layout == weight.layout == torch.strided
        and x.dim() == weight.dim() == 4
        and x.shape[1] == weight.shape[0] == groups
        and weight.shape[1] == 1
        and x.numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    )


def _is_supported(x: Tensor, weight: Tensor, bias: Tensor | None, autocast: torch.dtype | None) -> bool:
    """Whether PyTorch computes in this data type by oneDNN, with kernels for this CPU that are as described above.

    Args:
        x, weight, bias: arguments of the convolution.
        autocast: the data type to which they are cast before, or None.
    """
    given = {t.dtype for t in (x, weight, bias) if t is not None}
    capability, mkldnn = torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn
    if not mkldnn.enabled or not mkldnn.is_available() or capability not in WIDEST_PADDING:  # type: ignore[no-untyped-call]
        return False
    if not given <= {torch.float32, torch.bfloat16} or (autocast is None and len(given) > 1):
        return False
    dtype = autocast or x.dtype
    half = dtype == torch.bfloat16 and capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or bool(half)


def _has_tangent(tensors: list[Tensor]) -> bool:
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)  # type: ignore[no-untyped-call]


class _LargeConv2d(torch.autograd.Function):
    """``large_conv2d`` with a gradient of the kernel that is fast, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _output(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,), (x, weight), geometry = gradients, ctx.saved_tensors, ctx.geometry
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            input_gradient(g, x, weight, geometry) if of_x else None,
            kernel_gradient(g, x, weight, geometry) if of_weight else None,
            g.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def _output(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    rest, padding = (geometry.dilation, geometry.groups), geometry.padding
    direct, last = _has_direct_kernel(x, weight, geometry), _is_channels_last(x) or _is_channels_last(weight)
    if padding is None or (geometry.dilated and not direct):
        padded = F.pad(x, last_axis_first(geometry.amounts))
        return F.conv2d(padded, weight, bias, geometry.stride, 0, *rest)
    if direct or last:
        return F.conv2d(x, weight, bias, geometry.stride, padding, *rest)
    x = x.contiguous(memory_format=torch.channels_last)
    return _contiguous(F.conv2d(x, weight, bias, geometry.stride, padding, *rest))


def _contiguous(x: Tensor) -> Tensor:
    """Return ``x.contiguous()`` of images in channels_last, by PyTorch's faster transposition of matrices."""
    if torch.is_grad_enabled() or x[0].numel() < TRANSPOSED:
        return x.contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for image, of in zip(y.flatten(2), x.permute(0, 2, 3, 1).flatten(1, 2), strict=True):  # (C, H*W), (H*W, C)
        image.copy_(of.t())
    return y


def _has_direct_kernel(x: Tensor, weight: Tensor, geometry: _Geometry) -> bool:
    """Whether oneDNN has a depthwise kernel in the default memory format that can pad this much."""
    (before, after), dilation = geometry.amounts[1], geometry.dilation[1]
    width = (x.shape[3] + before + after - dilation * (weight.shape[3] - 1) - 1) // geometry.stride[1] + 1
    return before <= min(WIDEST_PADDING[torch.backends.cpu.get_cpu_capability()], width)


def _is_channels_last(x: Tensor) -> bool:
    """Whether PyTorch considers a tensor to be in channels_last, also if it has one channel, as depthwise kernels."""
    return x.stride(1) == 1


def input_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return the gradient of the input ``(B, C, H, W)`` from that of the output ``(B, C, H', W')``.

    With stride 1 it is the convolution with the mirrored kernel, which is faster than oneDNN's own except with AVX2
    and without dilation.
    """
    own, padding = geometry.dilated or torch.backends.cpu.get_cpu_capability() != "AVX2", geometry.padding
    if padding is None or (own and max(geometry.stride) == 1):
        spans = [d * (k - 1) for d, k in zip(geometry.dilation, weight.shape[2:], strict=True)]
        amounts = tuple((s - lo, s - hi) for s, (lo, hi) in zip(spans, geometry.amounts, strict=True))
        return _output(g, weight.flip((2, 3)), None, replace(geometry, amounts=amounts))
    rest = (geometry.stride, padding, geometry.dilation, False, (0, 0), geometry.groups)
    return cast(Tensor, torch.ops.aten.convolution_backward(g, x, weight, None, *rest, (True, False, False))[0])


def kernel_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return the gradient of the kernel ``(C, 1, kH, kW)`` from that of the output ``(B, C, H', W')``."""
    padding = last_axis_first(geometry.amounts)
    sides = [n + before + after for n, (before, after) in zip(x.shape[2:], geometry.amounts, strict=True)]
    images = max(1, AT_ONCE // (x.shape[1] * math.prod(sides)))
    parts = zip(torch.split(_float32(x), images), torch.split(_float32(g), images), strict=True)
    sums = [_correlation(F.pad(part, padding), gradient, geometry).sum(0) for part, gradient in parts]
    return functools.reduce(torch.add, sums)[:, None, : weight.shape[2], : weight.shape[3]].to(weight.dtype)


def _correlation(x: Tensor, g: Tensor, geometry: _Geometry) -> Tensor:
    """Return the gradient of the kernel for each image, ``(B, C, ≥ kH, ≥ kW)``, from padded inputs."""
    count, channels = x.shape[:2]
    images = x.reshape(1, count * channels, *x.shape[2:])  # (1, B*C, H, W)
    kernels = g.reshape(count * channels, 1, *g.shape[2:])  # (B*C, 1, H', W')
    y = F.conv2d(images, kernels, None, geometry.dilation, 0, geometry.stride, count * channels)
    return y.reshape(count, channels, *y.shape[2:])


def _float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
