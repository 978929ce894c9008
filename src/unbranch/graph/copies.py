"""Copies of modules that share their memory, have memory of their own, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from unbranch.graph.numberless import Stage
from unbranch.graph.shadow import shadow_of


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation that shares the module's memory."""
    return _with_own_objects(shadow_of(module))


def private_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation with tensors of its own."""
    return with_own_tensors(shadow_of(module))


def with_own_tensors(shadow: nn.Module) -> nn.Module:
    """Give a copy tensors of its own, shared among its modules as in the original."""
    return _with_tensors(shadow, lambda t: t.detach().clone())


def with_stand_ins(shadow: nn.Module, mode: Stage) -> nn.Module:
    """Give a copy tensors without numbers, so that nothing it does reaches the original's."""
    return _with_tensors(shadow, lambda t: mode.from_tensor(t.detach()))


def _with_own_objects(shadow: nn.Module) -> nn.Module:
    """Give a copy tensor objects of its own that share the original's memory: ``weight.data = …`` stays in it."""
    return _with_tensors(shadow, lambda t: t.detach())


def _with_tensors(shadow: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            return value
        if id(value) not in memo:
            fresh = make(value)
            memo[id(value)] = nn.Parameter(fresh, False) if isinstance(value, nn.Parameter) else fresh
        return memo[id(value)]

    for module in shadow.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for name, value in list(table.items()):
                table[name] = own(value)
    return shadow
