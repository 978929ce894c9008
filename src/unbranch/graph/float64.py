"""Running modules in float64 without copying them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..algebra.evaluate import convolve

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_CASTS = {"float", "half", "bfloat16", "double"}


class Float64(TorchFunctionMode):
    """Every function sees float64 in place of other floating tensors; casts between them are skipped.

    Parameters are cast when they are used and forgotten again, so a network needs no second copy.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in ("__get__", "__set__", "requires_grad_", "detach"):
            return func(*args, **kwargs)
        if name in _CASTS:
            return args[0].double()
        args, kwargs = tree_map(_double, (tuple(args), dict(kwargs)))
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Grouped convolutions in a form that float64 has a fast one of."""
    n = weight.dim() - 2
    if groups == 1 or isinstance(padding, str) or input.dim() != n + 2:
        return func(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    amounts = [p for pad in reversed(sequence(padding, n)) for p in (pad, pad)]
    return convolve(F.pad(input, amounts), weight, bias, sequence(stride, n), sequence(dilation, n), groups)


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.double()
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def sequence(value: Any, ndim: int) -> tuple[int, ...]:
    """One integer per grid dimension, as PyTorch's arguments allow."""
    if isinstance(value, int):
        return (value,) * ndim
    return tuple(value) * (ndim if len(value) == 1 else 1)
