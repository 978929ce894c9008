"""Restore what the code of a network keeps outside its modules: globals, class attributes, caches and closures.

A forward may fill a table in a global dictionary, count calls in a class attribute, or store the last size in a
closure. Tracing and running a network must not leave shape-only or float64 tensors there, nor anything else.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import operator
import types
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx, nn

from unbranch.graph.bindings import MISSING, Binding, vars_of
from unbranch.graph.contents import Contents, is_plain
from unbranch.graph.reach import reached_by

_MOST_NUMBERS = 1 << 24  # elements of outside tensors of which a copy is kept, in case they are written to


class Outside:
    """A snapshot of everything that the code of a network's modules can reach by name.

    The search follows methods of the modules' classes, the functions and classes that these name, and so on, but not
    into PyTorch or Python's standard library.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places: list[tuple[Any, list[str], list[Any]]] = []  # an owner, its names, and their values
        self._open: list[tuple[Any, set[str]]] = []  # classes and dictionaries that may get new names
        self._contents = Contents()
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._numbers = 0
        walk = reached_by(network)
        self._caches = {cache: cache.cache_info().misses for cache in walk.caches}
        for owner, names in walk.found.values():
            chosen = list(vars_of(owner) if names is None else names)
            values = [Binding(owner, name).value() for name in chosen]
            for value in values:
                self._remember(value)
            self._places.append((owner, chosen, values))
            if names is None:
                self._open.append((owner, set(chosen)))
        for tensor in walk.tensors:
            self._keep_numbers(tensor)

    def _remember(self, value: Any) -> None:
        if issubclass(type(value), Tensor):
            self._keep_numbers(value)
        elif not is_plain(value):
            self._contents.add(value)

    def _keep_numbers(self, tensor: Tensor) -> None:
        self._numbers += tensor.numel()
        if self._numbers <= _MOST_NUMBERS and not tensor.is_inference() and not tensor.is_meta:
            self._tensors.append((tensor, tensor._version, tensor.detach().clone()))

    def restore(self) -> None:
        """Restore names, contents of containers and values of tensors.

        Caches of ``functools.cache`` and ``lru_cache`` that have grown and hold tensors are emptied.
        """
        for owner, chosen, values in self._places:
            if not _are_bound(owner, chosen, values):
                for name, value in zip(chosen, values, strict=True):
                    place = Binding(owner, name)
                    if place.value() is not value:
                        with contextlib.suppress(Exception):  # read-only, so a forward can't have bound it either
                            place.bind(value)
        for owner, names in self._open:
            for name in [] if len(vars_of(owner)) == len(names) else [n for n in vars_of(owner) if n not in names]:
                if not name.startswith(("__", "_abc_")):  # which Python itself adds
                    with contextlib.suppress(Exception):
                        Binding(owner, name).bind(MISSING)
        self._contents.restore()
        for cache, misses in self._caches.items():
            if cache.cache_info().misses != misses and _holds_tensors(cache):
                cache.cache_clear()
                self._caches[cache] = 0
        for j, (tensor, version, numbers) in enumerate(self._tensors):
            if tensor._version != version:
                with torch.no_grad():
                    tensor.data.copy_(numbers)
                self._tensors[j] = (tensor, tensor._version, numbers)


def _are_bound(owner: Any, names: list[str], values: list[Any]) -> bool:
    """Whether names are bound to the same objects as before; large libraries have tens of thousands of them."""
    found: Iterable[Any]
    if isinstance(owner, dict | type):
        found = map(vars_of(owner).get, names, itertools.repeat(MISSING))
    else:
        found = (Binding(owner, name).value() for name in names)
    return all(map(operator.is_, found, values))


_current: ContextVar[Outside | None] = ContextVar("outside", default=None)


@contextlib.contextmanager
def restoring_outside(network: nn.Module) -> Iterator[None]:
    """Restore what a network's code keeps outside its modules, on exit and whenever ``restore_outside`` is called."""
    outside = Outside(network)
    token = _current.set(outside)
    try:
        yield
    finally:
        _current.reset(token)
        outside.restore()


def restore_outside() -> None:
    """Restore now what the code of the network that is being converted keeps outside its modules."""
    outside = _current.get()
    if outside is not None:
        outside.restore()


_NOT_KEPT = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.CodeType, str)


def _holds_tensors(cache: Any, depth: int = 6) -> bool:
    """Whether a cache holds a tensor or proxy, also nested in containers or objects."""
    level, seen = [cache], {id(cache)}
    for _ in range(depth):
        level = [v for v in gc.get_referents(*level) if id(v) not in seen and not isinstance(v, _NOT_KEPT)]
        seen.update(map(id, level))
        if any(isinstance(v, Tensor | fx.Proxy) for v in level):
            return True
    return False
