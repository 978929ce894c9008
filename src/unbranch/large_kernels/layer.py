"""The layer of a large depthwise convolution: an nn.Conv2d to everything but its own forward."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.grids import is_depthwise
from unbranch.large_kernels.convolution import large_conv2d

SMALL = 7  # kernels that span at most 7×7 positions are always PyTorch's

Model = TypeVar("Model", bound=nn.Module)


class LargeConv2d(nn.Conv2d):
    """An nn.Conv2d with a large depthwise kernel, which computes by ``large_conv2d``.

    It is an nn.Conv2d to everything else: for ``torch.fx``, which decides by ``__module__`` what a layer is, in printed
    networks and in recorded ones. It is pickled as an nn.Conv2d, so a file can be read without this package.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        else:  # noqa: RET505 - scripting compiles everything that follows a return
            return large_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is not LargeConv2d:  # parametrizations make a class of their own
            return super().__reduce_ex__(protocol)
        return object.__new__, (nn.Conv2d,), vars(self)

    def __copy__(self) -> LargeConv2d:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> LargeConv2d:
        memo[id(self)] = copied = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


LargeConv2d.__name__ = LargeConv2d.__qualname__ = nn.Conv2d.__name__
LargeConv2d.__module__ = nn.Conv2d.__module__


def accelerate_large_kernels(model: Model, enabled: bool = True) -> Model:
    """Speed up large depthwise convolutions on x86 CPUs, in place.

    ``collapse`` and blocks with branches do this for their own convolutions; call it for other networks, and for
    networks from pickles. It concerns every ``nn.Conv2d`` with one filter per channel and a kernel, with its dilation,
    of more than 7×7 positions. Results differ from PyTorch's by rounding. Parameters and their names, memory formats,
    exported and compiled networks, other data types than float32 and bfloat16, and other devices aren't affected.

    Args:
        model: any network.
        enabled: False makes them plain convolutions again, for tools that look for exactly ``nn.Conv2d``.

    Returns:
        The model itself.

    Example:
        >>> conv = accelerate_large_kernels(nn.Conv2d(8, 8, 31, padding=15, groups=8))
        >>> conv
        Conv2d(8, 8, kernel_size=(31, 31), stride=(1, 1), padding=(15, 15), groups=8)
        >>> conv(torch.zeros(1, 8, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """
    for module in model.modules():
        if type(module) is LargeConv2d and not enabled:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
        elif type(module) is nn.Conv2d and enabled and _is_large(module):
            module.__class__ = LargeConv2d
    return model


def _is_large(conv: nn.Conv2d) -> bool:
    spans = (d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    own_forward = vars(conv).keys() & {"forward", "_conv_forward"}
    return is_depthwise(conv) and conv.padding_mode == "zeros" and max(spans) > SMALL and not own_forward
