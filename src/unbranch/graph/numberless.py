"""Running forwards on tensors that have shapes and no numbers, several times as fast as on fake tensors."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class Stage(Protocol):
    """A context in which nothing that is computed has numbers: this one, or PyTorch's ``FakeTensorMode``."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> Any: ...

    def from_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape without numbers."""
        ...


class Numberless(TorchFunctionMode):
    """Everything is on the meta device, whatever device a forward asks for."""

    def from_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and strides on the meta device."""
        return torch.empty_like(tensor, device="meta")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and not _trains(*args, **kwargs):
            return torch.empty_like(args[0])  # PyTorch's own way imports its compiler, which takes seconds
        if kwargs.get("device") is not None or func in _device_constructors():
            kwargs = {**kwargs, "device": "meta"}
        elif func in (Tensor.cpu, Tensor.cuda):
            return args[0]
        elif func is Tensor.to:
            args = (args[0], *(a for a in args[1:] if not isinstance(a, torch.device | str)))
            if len(args) == 1 and not kwargs:
                return args[0]
        return func(*args, **kwargs)


def _trains(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Any = None, bias: Any = None,
    training: bool = False, *_rest: Any, **_named: Any,
) -> bool:  # fmt: skip
    """Whether a norm takes its statistics from its input, or doesn't fit it."""
    sizes = {t.shape for t in (running_mean, running_var, weight, bias) if t is not None}
    return training or running_mean is None or input.dim() < 2 or sizes != {input.shape[1:2]}
