"""What the code of a network keeps outside its modules, put back: global names, class attributes, caches, closures.

A forward may fill a table in a global dictionary, count calls in a class attribute, or remember the last size in a
closure. Reading and running a network must not leave stand-ins or float64 tensors there, nor anything else.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

_MISSING = object()
_MOST_PLACES = 20_000
_MOST_NUMBERS = 1 << 24  # of tensors outside that are remembered, in case they are written to
_NOT_THEIRS = {*sys.stdlib_module_names, "torch", "numpy", "sympy", "unbranch", "typing_extensions"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_CONTAINERS = (list, dict, set, deque)


class Contents:
    """What containers hold, those inside them included; ``restore`` puts it back into the same objects."""

    def __init__(self, containers: Iterable[Any] = ()) -> None:
        self._kept: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        for container in containers:
            self.add(container)

    def add(self, value: Any) -> None:
        """Remember what a value holds, if it is a container."""
        stack = [value]
        while stack:
            one = stack.pop()
            if not isinstance(one, (*_CONTAINERS, tuple)) or id(one) in self._seen:
                continue
            self._seen.add(id(one))
            held = list(one.items()) if isinstance(one, dict) else list(one)
            if not isinstance(one, tuple):
                self._kept.append((one, held))
            stack += [v for _, v in held] if isinstance(one, dict) else held

    def restore(self) -> None:
        """Put back what was changed."""
        for container, held in self._kept:
            if isinstance(container, dict):
                if not _same_items(container, held):
                    container.clear()
                    container.update(held)
            elif isinstance(container, set):
                if container != set(held):
                    container.clear()
                    container.update(held)
            elif not _same(container, held):
                container.clear()
                container.extend(held)


def _same(values: Any, held: list[Any]) -> bool:
    return len(values) == len(held) and all(a is b for a, b in zip(values, held, strict=True))


def _same_items(values: dict[Any, Any], held: list[Any]) -> bool:
    return len(values) == len(held) and all(
        a is c and b is d for (a, b), (c, d) in zip(values.items(), held, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a value is bound: a name in a dictionary, an attribute of a class, or the cell of a closure."""

    owner: Any
    name: str

    def value(self) -> Any:
        if isinstance(self.owner, types.CellType):
            try:
                return self.owner.cell_contents
            except ValueError:  # empty
                return _MISSING
        table = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return table.get(self.name, _MISSING)

    def bind(self, value: Any) -> None:
        if isinstance(self.owner, types.CellType):
            if value is not _MISSING:
                self.owner.cell_contents = value
            else:
                del self.owner.cell_contents
        elif isinstance(self.owner, dict):
            if value is not _MISSING:
                self.owner[self.name] = value
            else:
                del self.owner[self.name]
        elif value is not _MISSING:
            setattr(self.owner, self.name, value)
        else:
            delattr(self.owner, self.name)


class Outside:
    """What the code of a network's modules can reach by name, and what is there.

    Followed are methods of the modules' classes, the functions and classes that these name, and so on, but neither
    PyTorch's nor Python's own.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places: list[tuple[_Place, Any]] = []
        self._open: list[tuple[Any, set[str]]] = []  # classes and tables that may get new names
        self._contents = Contents()
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._numbers = 0
        walk = _reached(network)
        self._caches = {cache: cache.cache_info().misses for cache in walk.caches}
        for owner, names in walk.found.values():
            for name in vars_of(owner) if names is None else names:
                self._remember(_Place(owner, name))
            if names is None:
                self._open.append((owner, set(vars_of(owner))))

    def _remember(self, place: _Place) -> None:
        value = place.value()
        if isinstance(value, Tensor):
            self._keep_numbers(value)
        elif isinstance(value, (*_CONTAINERS, tuple)):
            self._contents.add(value)
        elif value is not _MISSING and not isinstance(value, _PLAIN):
            return
        self._places.append((place, value))

    def _keep_numbers(self, tensor: Tensor) -> None:
        self._numbers += tensor.numel()
        if self._numbers <= _MOST_NUMBERS and not tensor.is_inference() and not tensor.is_meta:
            self._tensors.append((tensor, tensor._version, tensor.detach().clone()))

    def restore(self) -> None:
        """Put back names, contents of containers and numbers of tensors; caches that hold tensors are emptied.

        Those are ``functools.cache`` and ``lru_cache``, if they were added to.
        """
        for place, value in self._places:
            if place.value() is not value:
                place.bind(value)
        for owner, names in self._open:
            for name in [n for n in vars_of(owner) if n not in names]:
                if not name.startswith("__") and not callable(vars_of(owner)[name]):  # as abstract classes add
                    _Place(owner, name).bind(_MISSING)
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


_current: ContextVar[Outside | None] = ContextVar("outside", default=None)


@contextlib.contextmanager
def kept_outside(network: nn.Module) -> Iterator[None]:
    """Put back what a network's code keeps outside its modules, at the end and in every ``restore_outside`` before."""
    outside = Outside(network)
    token = _current.set(outside)
    try:
        yield
    finally:
        _current.reset(token)
        outside.restore()


def restore_outside() -> None:
    """Put back now what code keeps outside the modules of the network that is being converted."""
    outside = _current.get()
    if outside is not None:
        outside.restore()


def vars_of(owner: Any) -> Any:
    """Names and values of a table, a class or an object."""
    return owner if isinstance(owner, dict) else vars(owner)


def _reached(network: nn.Module) -> _Walk:
    """What the code of a network reaches."""
    walk = _Walk()
    for kind in {type(m) for m in network.modules()}:
        walk.follow(kind)
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, _FUNCTIONS):
                walk.follow(value)
    walk.run()
    return walk


_CACHE = functools._lru_cache_wrapper
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property, _CACHE)
_NOT_KEPT = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.CodeType, str)


def _holds_tensors(cache: Any, depth: int = 6) -> bool:
    """Whether a tensor, or what stands for one, is among what a cache keeps, in containers or objects."""
    level, seen = [cache], {id(cache)}
    for _ in range(depth):
        level = [v for v in gc.get_referents(*level) if id(v) not in seen and not isinstance(v, _NOT_KEPT)]
        seen.update(map(id, level))
        if any(isinstance(v, Tensor | fx.Proxy) for v in level):
            return True
    return False


class _Walk:
    """Goes from code to the names that it uses, and on to the code behind these.

    ``found`` are owners of names, by id, with those of their names that code uses; None for all, and ones that are new.
    """

    def __init__(self) -> None:
        self.found: dict[int, tuple[Any, set[str] | None]] = {}
        self.caches: list[Any] = []
        self._seen: set[int] = set()
        self._stack: list[tuple[Any, frozenset[str]]] = []
        self._steps = 0

    def follow(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Look at a value later; ``names`` are those that the code which led to it uses."""
        self._stack.append((value, names))

    def run(self) -> None:
        while self._stack and self._steps < _MOST_PLACES:
            self._steps += 1
            value, names = self._stack.pop()
            if isinstance(value, types.ModuleType):
                if _is_theirs(value.__name__):
                    self._names(vars(value), names)
            elif id(value) not in self._seen and not isinstance(value, _PLAIN):
                self._seen.add(id(value))
                self._look(value)

    def _look(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            for kind in value.__mro__:
                if kind is value or id(kind) not in self._seen:
                    self._seen.add(id(kind))
                    self._class(kind)
        elif isinstance(value, types.MethodType):
            self._all(value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._all(value.func, *value.args, *value.keywords.values())
        elif isinstance(value, staticmethod | classmethod):
            self._all(value.__func__)
        elif isinstance(value, property):
            self._all(value.fget)
        elif isinstance(value, _CACHE):
            if _is_theirs(value.__module__ or ""):
                self.caches.append(value)
                self._all(value.__wrapped__)
        elif isinstance(value, dict):
            self._all(*value.values())
        elif isinstance(value, list | tuple | set | deque):
            self._all(*value)
        elif not isinstance(value, nn.Module | Tensor | fx.Node | fx.Graph) and _is_theirs(type(value).__module__):
            if isinstance(getattr(value, "__dict__", None), dict):
                self.found[id(value)] = (vars(value), None)
                self._all(*vars(value).values())
            self._all(type(value))

    def _all(self, *values: Any) -> None:
        self._stack += [(value, frozenset()) for value in values]

    def _class(self, kind: type) -> None:
        if _is_theirs(kind.__module__):
            self.found[id(kind)] = (kind, None)
            self._all(*(v for v in vars(kind).values() if isinstance(v, (*_FUNCTIONS, *_CONTAINERS))))

    def _function(self, function: types.FunctionType) -> None:
        if not _is_theirs(function.__module__ or ""):
            return
        if vars(function):
            self._all(*vars(function).values())  # __wrapped__ among them
        self.found[id(function)] = (vars(function), None)
        self._all(*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for cell in function.__closure__ or ():
            self.found[id(cell)] = (cell, {""})
            place = _Place(cell, "").value()
            self._all(*(() if place is _MISSING else (place,)))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if isinstance(default, _CONTAINERS):
                self.found[id(default)] = ({"": default}, {""})
        self._names(function.__globals__, names_in(function.__code__))

    def _names(self, table: dict[str, Any], names: Iterable[str]) -> None:
        used = frozenset(names)
        _, known = self.found.setdefault(id(table), (table, set()))
        for name in used:
            if known is not None:
                known.add(name)
            if name in table:
                self.follow(table[name], used)


@functools.lru_cache(maxsize=8192)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Names that code uses beside its own variables, with those of functions inside it."""
    inner = (names_in(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=8192)
def _is_theirs(module: str) -> bool:
    """Whether a Python module is a user's, or a library's of networks."""
    return module.partition(".")[0] not in _NOT_THEIRS
