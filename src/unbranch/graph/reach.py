"""Follow the code of a network to every name, object and cache outside of modules that it can reach."""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import threading
import types
from collections import UserDict, UserList
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import Tensor, fx, nn

from unbranch.graph.bindings import MISSING, Binding, slot_of, vars_of
from unbranch.graph.contents import CONTAINERS, container_type, held_by, is_plain

_MOST_PLACES = 20_000


_NOT_THEIRS = {*sys.stdlib_module_names, "torch", "numpy", "sympy", "unbranch", "typing_extensions"}


def reached_by(network: nn.Module) -> _Walk:
    """Return what the code of a network reaches."""
    walk = _Walk({id(m) for m in network.modules()})  # modules are copied and never written to
    for kind in {type(m) for m in network.modules()}:
        walk.follow(kind)
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, _FUNCTIONS):
                walk.follow(value)
    walk.run()
    return walk


_CACHE = functools._lru_cache_wrapper


_HOLDERS = (types.SimpleNamespace, UserDict, UserList, threading.local, WeakKeyDictionary, WeakValueDictionary)


_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property, _CACHE)


class _Walk:
    """Walk from code to the names that it uses, and on to the code behind these.

    ``found`` has owners of names, by id, each with the names that code uses; None stands for all names and new ones.
    """

    def __init__(self, known: set[int]) -> None:
        self.found: dict[int, tuple[Any, set[str] | None]] = {}
        self.caches: list[Any] = []
        self.tensors: list[Tensor] = []
        self._seen = known
        self._modules: set[tuple[int, frozenset[str]]] = set()
        self._functions: list[types.FunctionType] = []
        self._setting: set[str] = set()  # names used in code that sets attributes
        self._stack: list[tuple[Any, frozenset[str]]] = []
        self._steps = 0

    def follow(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Queue a value; ``names`` are those used by the code that refers to it."""
        self._stack.append((value, names))

    def run(self) -> None:
        """Follow everything that is queued."""
        while self._stack and self._steps < _MOST_PLACES:
            self._steps += 1
            value, names = self._stack.pop()
            if issubclass(type(value), types.ModuleType):
                if _is_theirs(value.__name__) and (id(value), names) not in self._modules:
                    self._modules.add((id(value), names))
                    self._names(vars(value), names, names)
            elif id(value) not in self._seen:
                self._seen.add(id(value))
                with contextlib.suppress(Exception):  # objects that can't be inspected
                    self._look(value)
        for function in self._functions:  # few functions have attributes, or may get some
            if vars(function) or function.__name__ in self._setting:
                self.found[id(function)] = (vars(function), None)

    def _look(self, value: Any) -> None:
        kind = type(value)  # ``__class__`` may be overridden
        if kind is types.FunctionType:
            self._function(value)
        elif issubclass(kind, type):
            self._all(kind)
            for base in type.__getattribute__(value, "__mro__"):
                if base is value or id(base) not in self._seen:
                    self._seen.add(id(base))
                    self._class(base)
        elif kind is types.MethodType:
            self._all(value.__func__, value.__self__)
        elif issubclass(kind, functools.partial):
            self._all(value.func, *value.args, *value.keywords.values())
        elif issubclass(kind, staticmethod | classmethod):
            self._all(value.__func__)
        elif issubclass(kind, property):
            self._all(value.fget, value.fset, value.fdel)
        elif kind is _CACHE:
            if _is_theirs(value.__module__):
                self.caches.append(value)
                self._all(value.__wrapped__)
        elif (base := container_type(value)) is not None:
            self._all(*held_by(value, base)[-1])
        elif issubclass(kind, Tensor):
            self.tensors.append(value)
        elif not issubclass(kind, fx.Node | fx.Graph):
            self._object(value)

    def _object(self, value: Any) -> None:
        kind = type(value)
        if not (_is_theirs(kind.__module__) or issubclass(kind, nn.Module) or issubclass(kind, _HOLDERS)):
            return
        names = {n for base in kind.__mro__ for n in _names_of_slots(base)} - {"__dict__", "__weakref__"}
        if names:
            self.found[id(value)] = (value, names)
            self._all(*(slot_of(value, name) for name in names))
        table = vars(value) if issubclass(kind, threading.local) else slot_of(value, "__dict__")
        if type(table) is dict:
            self.found[id(table)] = (table, None)
            self._all(*table.values())
        self._all(kind)

    def _all(self, *values: Any) -> None:
        self._stack += [(value, frozenset()) for value in values if not is_plain(value)]

    def _class(self, kind: type) -> None:
        if _is_theirs(kind.__module__):
            self.found[id(kind)] = (kind, None)
            self._all(*vars_of(kind).values())

    def _function(self, function: types.FunctionType) -> None:
        if not _is_theirs(function.__module__):
            return
        self._functions.append(function)
        code = function.__code__
        if _sets_attributes(code):
            self._setting |= names_in(code)
        if vars(function):
            self._all(*vars(function).values())  # includes ``__wrapped__``
        self._all(*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for cell in function.__closure__ or ():
            self.found[id(cell)] = (cell, {""})
            place = Binding(cell, "").value()
            self._all(*(() if place is MISSING else (place,)))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if isinstance(default, CONTAINERS):
                self.found[id(default)] = ({"": default}, {""})
        self._names(function.__globals__, globals_in(code), names_in(code))

    def _names(self, table: dict[str, Any], names: Iterable[str], used: frozenset[str]) -> None:
        _, known = self.found.setdefault(id(table), (table, set()))
        for name in names:
            if known is not None:
                known.add(name)
            if name in table:
                if not is_plain(table[name]):
                    self.follow(table[name], used)
            else:
                for module in _imported(name, str(table.get("__package__") or "")):  # imported where it is used
                    self.follow(module, used)


@functools.lru_cache(maxsize=8192)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Return the names that code uses besides local variables, including functions defined inside it."""
    inner = (names_in(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _imported(name: str, package: str) -> Iterator[types.ModuleType]:
    """Yield the loaded modules that an import in a package may refer to."""
    places = package.split(".") if package else []
    for n in range(len(places), -1, -1):
        module = sys.modules.get(".".join([*places[:n], name]))
        if module is not None:
            yield module


@functools.lru_cache(maxsize=8192)
def globals_in(code: types.CodeType) -> frozenset[str]:
    """Return the global names and imports of code; names of attributes that it reads aren't among them."""
    found, more = set(), 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        argument += more
        more = argument << 8 if operation == dis.EXTENDED_ARG else 0
        if operation == _LOAD_GLOBAL:
            found.add(code.co_names[argument >> (sys.version_info >= (3, 11))])
        elif operation in _NAMING:
            found.add(code.co_names[argument])
    inner = (globals_in(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(found).union(*inner)


_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]


_NAMING = {dis.opmap[name] for name in ("STORE_GLOBAL", "LOAD_NAME", "STORE_NAME", "IMPORT_NAME", "IMPORT_FROM")}


@functools.lru_cache(maxsize=8192)
def _sets_attributes(code: types.CodeType) -> bool:
    inner = any(_sets_attributes(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return inner or dis.opmap["STORE_ATTR"] in code.co_code[::2] or "setattr" in code.co_names


@functools.lru_cache(maxsize=8192)
def _is_theirs(module: Any) -> bool:
    """Whether a Python module, by name, belongs to the user or to a library of networks."""
    return isinstance(module, str) and module.partition(".")[0] not in _NOT_THEIRS


def _names_of_slots(kind: type) -> tuple[str, ...]:
    slots = vars_of(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
