"""Training in channels_last on a CPU without a fault of oneDNN.

The gradient of a strided 1×1 kernel is computed on a copy of the input without the positions that the stride skips.
oneDNN (3.12, in PyTorch 2.14) writes that copy past the end of its buffer if the input is in channels_last and has
fewer channels than a vector has numbers, 8 with AVX2 and 16 with AVX-512: https://github.com/uxlfoundation/oneDNN/issues/6035
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

VECTOR = 16  # float32 numbers in the widest vector for which oneDNN has this kernel


class SafeChannelsLast(TorchFunctionMode):
    """Context that computes small strided 1×1 convolutions on the CPU on the positions that their stride selects.

    ``conv(x, stride=s)`` is computed as ``conv(x[..., ::s, ::s])``: the same function with the same gradients, in any
    memory format. Networks and other operations aren't changed. Run the forward pass in it, and the backward pass too
    if it recomputes activations.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 1, stride=2).to(memory_format=torch.channels_last)
        >>> x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
        >>> with SafeChannelsLast():
        ...     conv(x).square().mean().backward()
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Compute ``F.conv2d``, with its argument names."""
    if overflows(input, weight, stride, padding, groups):
        down, across = _pair(stride)
        input, stride = input[..., ::down, ::across], 1
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def overflows(
    x: Tensor, weight: Tensor, stride: int | Sequence[int], padding: str | int | Sequence[int], groups: int
) -> bool:
    """Whether oneDNN's faulty kernel may compute the gradient of ``weight`` ``(O, I/groups, kH, kW)``.

    It depends on the CPU, too, but oneDNN uses neither PyTorch's CPU capability nor ``ATEN_CPU_CAPABILITY``.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and groups == 1
        and weight.shape[1] < VECTOR
        and weight.shape[2:] == (1, 1)
        and _pair(stride) != (1, 1)
        and (padding == "valid" or _pair(padding) == (0, 0))
    )


def _pair(value: Any) -> tuple[Any, ...]:
    """Return a setting for height and width; one number is for both."""
    pair = (value,) if isinstance(value, (int, str)) else tuple(value)
    return pair * 2 if len(pair) == 1 else pair
