"""Nested arguments and outputs of a forward, with nodes or proxies as leaves."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx


def filled(structure: Any, values: list[Any]) -> Any:
    """Return a structure of the same classes with its leaves replaced, in order."""
    rest = iter(values)

    def put(value: Any) -> Any:
        if isinstance(value, tuple):
            items = [put(v) for v in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if isinstance(value, list):
            return [put(v) for v in value]
        if isinstance(value, dict):
            new: Any = {} if isinstance(value, fx.immutable_collections.immutable_dict) else copy.copy(value)
            for key, one in value.items():
                new[key] = put(one)
            return new
        if isinstance(value, slice):
            return slice(put(value.start), put(value.stop), put(value.step))
        return next(rest)

    return put(structure)


def nodes_of(value: Any) -> Any:
    """Replace proxies by their nodes in a structure."""
    return fx.node.map_aggregate(value, lambda v: v.node if isinstance(v, fx.Proxy) else v)


def leaves_of(value: Any) -> list[Any]:
    """Return the leaves of a structure, in order."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found


def structure_of(value: Any) -> str:
    """Return a structure without its nodes, in a form to compare."""
    return repr(fx.node.map_aggregate(value, lambda v: _TENSOR if isinstance(v, fx.Node) else v))


_TENSOR = "a tensor"
