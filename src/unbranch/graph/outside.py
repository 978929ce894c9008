"""What the code of a network keeps outside its modules, put back: global names, class attributes, caches, closures.

A forward may fill a table in a global dictionary, count calls in a class attribute, or remember the last size in a
closure. Reading and running a network must not leave stand-ins or float64 tensors there, nor anything else.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import itertools
import operator
import sys
import threading
import types
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

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
        self._kept: list[tuple[Any, Any, tuple[list[Any], ...]]] = []
        self._seen: set[int] = set()
        for container in containers:
            self.add(container)

    def add(self, value: Any) -> None:
        """Remember what a value holds, if it is a container."""
        stack = [value]
        while stack:
            one = stack.pop()
            base = _base_of(one)
            if base is None or id(one) in self._seen:
                continue
            self._seen.add(id(one))
            held = _held(one, base)
            if base is not tuple:
                self._kept.append((one, base, held))
            stack += [v for v in held[-1] if not _is_plain(v)]

    def restore(self) -> None:
        """Put back what was changed."""
        for container, base, held in self._kept:
            if _holds(container, base, held):
                continue
            # By Python's own methods, since those of a subclass may do more, as a Counter's. Entries that didn't change
            # are never missing, since another thread may read them.
            if issubclass(base, dict):
                kept = {id(key) for key in held[0]}
                for key in [key for key in base.keys(container) if id(key) not in kept]:
                    base.pop(container, key, None)
                if list(base.keys(container)) != held[0]:  # something was taken out, and its place is lost
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


def _base_of(value: Any) -> Any:
    """The container of Python's own that a value is, if it is one."""
    kind = type(value)
    return kind if kind in _BASES else next((base for base in _BASES if issubclass(kind, base)), None)


_BASES = (OrderedDict, dict, list, set, deque, tuple)


def _held(container: Any, base: Any) -> tuple[list[Any], ...]:
    """Keys and values of a dictionary, what another container holds."""
    if issubclass(base, dict):
        return list(base.keys(container)), list(base.values(container))
    return (list(base.__iter__(container)),)


def _holds(container: Any, base: Any, held: tuple[list[Any], ...]) -> bool:
    """Whether a container holds the same objects, in the same order."""
    if base.__len__(container) != len(held[0]):
        return False
    views = (base.keys(container), base.values(container)) if issubclass(base, dict) else (base.__iter__(container),)
    return all(all(map(operator.is_, view, values)) for view, values in zip(views, held, strict=True))


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a value is bound: a name in a dictionary, an attribute of a class or object, or the cell of a closure."""

    owner: Any
    name: str

    def value(self) -> Any:
        if isinstance(self.owner, types.CellType):
            try:
                return self.owner.cell_contents
            except ValueError:  # empty
                return _MISSING
        if isinstance(self.owner, dict):
            return dict.get(self.owner, self.name, _MISSING)
        if isinstance(self.owner, type):
            return type.__getattribute__(self.owner, "__dict__").get(self.name, _MISSING)
        return _slot(self.owner, self.name)

    def bind(self, value: Any) -> None:
        if isinstance(self.owner, types.CellType):
            if value is not _MISSING:
                self.owner.cell_contents = value
            else:
                del self.owner.cell_contents
        elif isinstance(self.owner, dict):
            if value is not _MISSING:
                dict.__setitem__(self.owner, self.name, value)
            else:
                dict.__delitem__(self.owner, self.name)
        else:
            kind: Any = type if isinstance(self.owner, type) else object  # whatever a class makes of it
            if value is not _MISSING:
                kind.__setattr__(self.owner, self.name, value)
            else:
                kind.__delattr__(self.owner, self.name)


def _slot(owner: Any, name: str) -> Any:
    try:
        return object.__getattribute__(owner, name)
    except AttributeError:
        return _MISSING


class Outside:
    """What the code of a network's modules can reach by name, and what is there.

    Followed are methods of the modules' classes, the functions and classes that these name, and so on, but neither
    PyTorch's nor Python's own.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places: list[tuple[Any, list[str], list[Any]]] = []  # an owner, names, and what they were bound to
        self._open: list[tuple[Any, set[str]]] = []  # classes and tables that may get new names
        self._contents = Contents()
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._numbers = 0
        walk = _reached(network)
        self._caches = {cache: cache.cache_info().misses for cache in walk.caches}
        for owner, names in walk.found.values():
            chosen = list(vars_of(owner) if names is None else names)
            values = [_Place(owner, name).value() for name in chosen]
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
        elif not _is_plain(value):
            self._contents.add(value)

    def _keep_numbers(self, tensor: Tensor) -> None:
        self._numbers += tensor.numel()
        if self._numbers <= _MOST_NUMBERS and not tensor.is_inference() and not tensor.is_meta:
            self._tensors.append((tensor, tensor._version, tensor.detach().clone()))

    def restore(self) -> None:
        """Put back names, contents of containers and numbers of tensors; caches that hold tensors are emptied.

        Those are ``functools.cache`` and ``lru_cache``, if they were added to.
        """
        for owner, chosen, values in self._places:
            if not _are_bound(owner, chosen, values):
                for name, value in zip(chosen, values, strict=True):
                    place = _Place(owner, name)
                    if place.value() is not value:
                        with contextlib.suppress(Exception):  # read-only, so that a forward can't have bound it either
                            place.bind(value)
        for owner, names in self._open:
            for name in [] if len(vars_of(owner)) == len(names) else [n for n in vars_of(owner) if n not in names]:
                if not name.startswith(("__", "_abc_")):  # which Python adds by itself
                    with contextlib.suppress(Exception):
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


def _are_bound(owner: Any, names: list[str], values: list[Any]) -> bool:
    """Whether names are bound to the same objects as before; there are tens of thousands in large libraries."""
    found: Iterable[Any]
    if isinstance(owner, dict | type):
        found = map(vars_of(owner).get, names, itertools.repeat(_MISSING))
    else:
        found = (_Place(owner, name).value() for name in names)
    return all(map(operator.is_, found, values))


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
    """Names and values of a table or a class."""
    return owner if isinstance(owner, dict) else type.__getattribute__(owner, "__dict__")


def _reached(network: nn.Module) -> _Walk:
    """What the code of a network reaches."""
    walk = _Walk({id(m) for m in network.modules()})  # which are copied, and never written to
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

    def __init__(self, known: set[int]) -> None:
        self.found: dict[int, tuple[Any, set[str] | None]] = {}
        self.caches: list[Any] = []
        self.tensors: list[Tensor] = []
        self._seen = known
        self._modules: set[tuple[int, frozenset[str]]] = set()
        self._functions: list[types.FunctionType] = []
        self._setting: set[str] = set()  # names that are used where attributes are set
        self._stack: list[tuple[Any, frozenset[str]]] = []
        self._steps = 0

    def follow(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Look at a value later; ``names`` are those that the code which led to it uses."""
        self._stack.append((value, names))

    def run(self) -> None:
        while self._stack and self._steps < _MOST_PLACES:
            self._steps += 1
            value, names = self._stack.pop()
            if issubclass(type(value), types.ModuleType):
                if _is_theirs(value.__name__) and (id(value), names) not in self._modules:
                    self._modules.add((id(value), names))
                    self._names(vars(value), names, names)
            elif id(value) not in self._seen:
                self._seen.add(id(value))
                with contextlib.suppress(Exception):  # objects that don't let themselves be looked at
                    self._look(value)
        for function in self._functions:  # few have attributes, or may get some
            if vars(function) or function.__name__ in self._setting:
                self.found[id(function)] = (vars(function), None)

    def _look(self, value: Any) -> None:
        kind = type(value)  # which ``__class__`` may not tell
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
        elif (base := _base_of(value)) is not None:
            self._all(*_held(value, base)[-1])
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
            self._all(*(_slot(value, name) for name in names))
        table = vars(value) if issubclass(kind, threading.local) else _slot(value, "__dict__")
        if type(table) is dict:
            self.found[id(table)] = (table, None)
            self._all(*table.values())
        self._all(kind)

    def _all(self, *values: Any) -> None:
        self._stack += [(value, frozenset()) for value in values if not _is_plain(value)]

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
            self._all(*vars(function).values())  # __wrapped__ among them
        self._all(*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for cell in function.__closure__ or ():
            self.found[id(cell)] = (cell, {""})
            place = _Place(cell, "").value()
            self._all(*(() if place is _MISSING else (place,)))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if isinstance(default, _CONTAINERS):
                self.found[id(default)] = ({"": default}, {""})
        self._names(function.__globals__, globals_in(code), names_in(code))

    def _names(self, table: dict[str, Any], names: Iterable[str], used: frozenset[str]) -> None:
        _, known = self.found.setdefault(id(table), (table, set()))
        for name in names:
            if known is not None:
                known.add(name)
            if name in table:
                if not _is_plain(table[name]):
                    self.follow(table[name], used)
            else:
                for module in _imported(name, str(table.get("__package__") or "")):  # where it is used
                    self.follow(module, used)


@functools.lru_cache(maxsize=8192)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Names that code uses beside its own variables, with those of functions inside it."""
    inner = (names_in(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _imported(name: str, package: str) -> Iterator[types.ModuleType]:
    """Modules that an import in a package may mean, of those that are loaded."""
    places = package.split(".") if package else []
    for n in range(len(places), -1, -1):
        module = sys.modules.get(".".join([*places[:n], name]))
        if module is not None:
            yield module


@functools.lru_cache(maxsize=8192)
def globals_in(code: types.CodeType) -> frozenset[str]:
    """Names in Python modules that code uses, and what it imports: attributes that it reads have other names."""
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
    """Whether a Python module, by name, is a user's, or a library's of networks."""
    return isinstance(module, str) and module.partition(".")[0] not in _NOT_THEIRS


def _is_plain(value: Any) -> bool:
    return issubclass(type(value), _PLAIN)  # ``isinstance`` would ask the value


def _names_of_slots(kind: type) -> tuple[str, ...]:
    slots = vars_of(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
