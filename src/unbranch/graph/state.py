"""The tensors of a module, and a fingerprint of everything that a forward can change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from unbranch.graph.eval_view import MODULE_ATTRIBUTES, computed_names

_NOT_STATE = {*MODULE_ATTRIBUTES, "forward", "unbranch_provenance"}


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters, buffers, and tensors among the attributes of a module, also nested in containers."""
    attributes = (value for name, value in vars(module).items() if name not in _NOT_STATE)
    for value in (*module._parameters.values(), *module._buffers.values(), *attributes):
        if value is None or type(value) in _ATOMS:
            continue
        found = tree_flatten(value)[0] if isinstance(value, tuple | list | dict) and value else (value,)
        yield from (t for t in found if isinstance(t, Tensor) and not nn.parameter.is_lazy(t))


def state_of(module: nn.Module) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return what a forward can change, by path and name: a mark to compare, and the value."""
    found: dict[tuple[str, str], tuple[Any, Any]] = {}
    for path, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None and not nn.parameter.is_lazy(tensor):
                    found[path, name] = ((id(tensor), _version(tensor)), tensor)
        computed = computed_names(part) if part._forward_pre_hooks else ()
        for name, value in vars(part).items():
            if name not in _NOT_STATE and name not in computed:
                known = isinstance(value, list | dict | set)
                found[path, name] = (_mark(value), copy.copy(value) if known else value)
    return found


def _mark(value: Any) -> Any:
    """Return a mark that differs if the value is replaced or changed."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, Tensor):
        return id(value), _version(value)
    if isinstance(value, tuple | list):
        if kind is tuple and all(type(v) in _ATOMS for v in value):
            return value
        return kind.__name__, *map(_mark, value)
    if isinstance(value, dict):
        return tuple((str(k), _mark(v)) for k, v in value.items())
    if isinstance(value, set):
        return "set", *map(id, value)
    return id(value)


_ATOMS = {bool, int, float, str, type(None)}


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # created in inference mode
        return 0
