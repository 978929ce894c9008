"""Copies of modules in evaluation mode: with shared tensors, with tensors of their own, or with shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from unbranch.graph.eval_view import eval_view
from unbranch.graph.meta_mode import ShapeMode


def sharing_copy(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares the module's memory."""
    return _with_own_objects(eval_view(module))


def private_copy(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with tensors of its own."""
    return with_own_tensors(eval_view(module))


def with_own_tensors(view: nn.Module) -> nn.Module:
    """Replace the tensors of a copy by clones; modules that shared a tensor still share it."""
    return _with_tensors(view, lambda t: t.detach().clone())


def with_shapes_only(view: nn.Module, mode: ShapeMode) -> nn.Module:
    """Replace the tensors of a copy by shape-only tensors, so that it can't write to the original's."""
    return _with_tensors(view, lambda t: mode.from_tensor(t.detach()))


def _with_own_objects(view: nn.Module) -> nn.Module:
    """Replace the tensors of a copy by new objects on the same memory, so that ``weight.data = …`` is private."""
    return _with_tensors(view, lambda t: t.detach())


def _with_tensors(view: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            return value
        if id(value) not in memo:
            fresh = make(value)
            memo[id(value)] = nn.Parameter(fresh, False) if isinstance(value, nn.Parameter) else fresh
        return memo[id(value)]

    for module in view.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for name, value in list(table.items()):
                table[name] = own(value)
    return view
