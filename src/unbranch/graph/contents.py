"""Snapshots of the contents of containers."""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

import torch

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


CONTAINERS = (list, dict, set, deque)


class Contents:
    """A snapshot of containers and of those nested in them; ``restore`` puts it back into the same objects."""

    def __init__(self, containers: Iterable[Any] = ()) -> None:
        self._kept: list[tuple[Any, Any, tuple[list[Any], ...]]] = []
        self._seen: set[int] = set()
        for container in containers:
            self.add(container)

    def add(self, value: Any) -> None:
        """Record the contents of a value, if it is a container."""
        stack = [value]
        while stack:
            one = stack.pop()
            base = container_type(one)
            if base is None or id(one) in self._seen:
                continue
            self._seen.add(id(one))
            held = held_by(one, base)
            if base is not tuple:
                self._kept.append((one, base, held))
            stack += [v for v in held[-1] if not is_plain(v)]

    def restore(self) -> None:
        """Put back everything that has changed."""
        for container, base, held in self._kept:
            if _holds(container, base, held):
                continue
            # Call the methods of the built-in type: those of a subclass, such as Counter, may do more. Entries that
            # didn't change are never removed in between, since another thread may read them.
            if issubclass(base, dict):
                kept = {id(key) for key in held[0]}
                for key in [key for key in base.keys(container) if id(key) not in kept]:
                    base.pop(container, key, None)
                if list(base.keys(container)) != held[0]:  # an entry was removed, so the order is lost
                    base.clear(container)
                for key, value in zip(*held, strict=True):
                    base.__setitem__(container, key, value)
            elif base is list:
                list.__setitem__(container, slice(None), held[0])
            elif base is set:
                set.intersection_update(container, held[0])
                set.update(container, held[0])
            else:
                deque.clear(container)
                deque.extend(container, held[0])


def container_type(value: Any) -> Any:
    """Return the built-in container type of a value, or None if it isn't a container."""
    kind = type(value)
    return kind if kind in _BASES else next((base for base in _BASES if issubclass(kind, base)), None)


_BASES = (OrderedDict, dict, list, set, deque, tuple)


def held_by(container: Any, base: Any) -> tuple[list[Any], ...]:
    """Return the keys and values of a dictionary, or the items of another container."""
    if issubclass(base, dict):
        return list(base.keys(container)), list(base.values(container))
    return (list(base.__iter__(container)),)


def _holds(container: Any, base: Any, held: tuple[list[Any], ...]) -> bool:
    """Whether a container still holds the same objects in the same order."""
    if base.__len__(container) != len(held[0]):
        return False
    views = (base.keys(container), base.values(container)) if issubclass(base, dict) else (base.__iter__(container),)
    return all(all(map(operator.is_, view, values)) for view, values in zip(views, held, strict=True))


def is_plain(value: Any) -> bool:
    """Whether a value is immutable and refers to nothing else."""
    return issubclass(type(value), _PLAIN)  # ``isinstance`` would call code of the value
