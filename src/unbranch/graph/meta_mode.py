"""Run forwards on meta tensors, whatever device they ask for, several times as fast as on fake tensors."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from unbranch.grids import CONV_FUNCTIONS


class ShapeMode(Protocol):
    """A mode in which tensors have shapes and no data: ``MetaMode``, or PyTorch's ``FakeTensorMode``."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> Any: ...

    def from_tensor(self, tensor: Tensor) -> Tensor:
        """Return a shape-only tensor like this one."""
        ...


class MetaMode(TorchFunctionMode):
    """Run everything on the meta device, whatever device a forward asks for."""

    def from_tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same shape and strides on the meta device."""
        return torch.empty_like(tensor, device="meta")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and not _trains(*args, **kwargs):
            return _like(args[0])  # PyTorch's own implementation imports its compiler, which takes seconds
        if _is_alike(func, args, kwargs):
            return _like(args[0])  # a shortcut for the most frequent operations
        if func is F.linear and not kwargs and args[0].dim() and _fit(*args):
            return args[0].new_empty(*args[0].shape[:-1], len(args[1]))
        if func in _CONVOLUTIONS and (shape := _convolved(*args, **kwargs)) is not None:
            return args[0].new_empty(shape)
        if func in _POOLS and len(args) + len(kwargs) == 2 and args and args[0].dim() > _POOLS[func]:
            return _pooled(args[0], _POOLS[func], args[1] if len(args) > 1 else kwargs["output_size"])
        if kwargs.get("device") is not None or func in _device_constructors():
            kwargs = {**kwargs, "device": "meta"}
        elif func in (Tensor.cpu, Tensor.cuda):
            return args[0]
        elif func is Tensor.to:
            args = (args[0], *(a for a in args[1:] if not isinstance(a, torch.device | str)))
            if len(args) == 1 and not kwargs:
                return args[0]
        return func(*args, **kwargs)


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a linear layer accepts its input."""
    fits = weight.dim() == 2 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    return fits and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype))


_CONVOLUTIONS = set(CONV_FUNCTIONS.values())


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[int, ...] | None:  # fmt: skip
    """Return the shape of a convolution's output; None for unusual arguments."""
    n = weight.dim() - 2
    if isinstance(padding, str) or x.dim() != n + 2 or len(weight) % groups:
        return None
    if x.shape[1] != weight.shape[1] * groups:
        raise RuntimeError(f"a convolution of {weight.shape[1] * groups} channels is given {x.shape[1]}")
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if not x.is_contiguous() or any(t.dtype != x.dtype for t in tensors):
        return None
    steps, pads, gaps = (
        (v,) * n if isinstance(v, int) else tuple(v) * (n // len(v)) for v in (stride, padding, dilation)
    )
    sizes = zip(x.shape[2:], weight.shape[2:], steps, pads, gaps, strict=True)
    grid = [(size + 2 * pad - gap * (k - 1) - 1) // step + 1 for size, k, step, pad, gap in sizes]
    return (len(x), len(weight), *grid) if min(grid) > 0 and len(x) else None


_POOLS = {F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}


def _pooled(x: Tensor, n: int, size: Any) -> Tensor:
    sizes = size if isinstance(size, tuple | list) else (size,) * n
    grid = [old if new is None else new for old, new in zip(x.shape[-n:], sizes, strict=True)]
    return x.new_empty(*x.shape[:-n], *grid)


_ALIKE = {
    "add", "__radd__", "sub", "__rsub__", "mul", "__rmul__", "div", "true_divide", "neg", "abs", "exp", "sqrt", "rsqrt",
    "square", "sigmoid", "tanh", "relu", "relu6", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh",
    "leaky_relu", "elu", "selu", "celu", "softplus", "logsigmoid", "clamp", "clip", "clamp_min", "clamp_max",
}  # fmt: skip


def _is_alike(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an elementwise function returns a new tensor of the shape and dtype of its first argument."""
    if getattr(func, "__name__", "") not in _ALIKE or not args or "out" in kwargs:
        return False
    first, *others = args
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return False
    return all(
        (v.shape == first.shape and v.dtype == first.dtype)
        if isinstance(v, Tensor)
        else v is not True and isinstance(v, int | float | str)
        for v in (*others, *kwargs.values())
        if v is not None
    )


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape) if x.is_contiguous() else torch.empty_like(x)


def _trains(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Any = None, bias: Any = None,
    training: bool = False, *_rest: Any, **_named: Any,
) -> bool:  # fmt: skip
    """Whether a norm computes statistics of its input, or doesn't accept it."""
    sizes = {t.shape for t in (running_mean, running_var, weight, bias) if t is not None}
    return training or running_mean is None or input.dim() < 2 or sizes != {input.shape[1:2]}
