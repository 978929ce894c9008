"""Record ``int(size)`` and similar calls, which Python's own built-ins can't do on proxies.

A forward that converts a size is run again with its own ``int``, ``float``, ``len``, ``isinstance`` and ``type``, and
so are the functions and methods that it calls. Names that other code sees aren't replaced.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import fx, nn

from unbranch.convert.source.bytecode import functions_from, inner, instructions, is_torchs, names, operations, running


class UnreadableError(Exception):
    """Raised if a forward can't be traced; the message says why."""


class NeedsNumberError(UnreadableError):
    """Raised if a traced value would have to become a plain number."""


def reason_of(error: Exception) -> str:
    """Return why a forward can't be traced, in words, from the exception that tracing raised."""
    try:
        text = (str(error).splitlines() or [""])[0]
    except Exception:  # the message contains a traced value
        text = "of a value that depends on the input"
    if isinstance(error, UnreadableError):
        return text
    if isinstance(error, fx.proxy.TraceError):
        loops = "iterated" in text
        return (
            "it loops over a value of unknown length"
            if loops
            else "its control flow depends on values that it computes"
        )
    return f"{type(error).__name__}: {text}"


class _Converting(type):
    """A replacement of ``int`` or ``float`` that returns a traced value for a traced value."""

    plain: Any

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], fx.Proxy):
            return args[0].tracer.create_proxy("call_function", cls.plain, args, kwargs)
        return cls.plain(*args, **kwargs)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.plain) or (isinstance(value, fx.Proxy) and value.node.target is cls.plain)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.plain

    def __hash__(cls) -> int:
        return hash(cls.plain)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, cls.plain)

    def __repr__(cls) -> str:
        return repr(cls.plain)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.plain, name)


class _Int(metaclass=_Converting):
    plain = builtins.int


class _Float(metaclass=_Converting):
    plain = builtins.float


for _shape_only in (_Int, _Float):
    _shape_only.__name__ = _shape_only.__qualname__ = _shape_only.plain.__name__


class _Asking(_Converting):
    """A replacement of ``type`` that returns the class that a traced value will have.

    If the code compares the result with the name ``int`` or ``float`` in its next instruction, that name refers to a
    replacement, too.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            return builtins.type(*args, **kwargs)
        value = args[0]
        if isinstance(value, fx.Proxy):
            kind: Any = value.known_class()
        else:
            kind = torch.Size if isinstance(value, torch.Size) else builtins.type(value)
        return _as_compared(sys._getframe(1), kind)


def _as_compared(frame: types.FrameType, kind: Any) -> Any:
    """Return a class in the form in which the running code will compare it, if it does so next.

    Raises:
        UnreadableError: if the comparison can't be identified.
    """
    at = running(frame)
    behind = () if at is None else instructions(frame.f_code)[at + 1 :]
    following = [i for i in behind if i.opname != "CALL"][:2]  # in Python 3.11 the current instruction is PRECALL
    stand_in = {builtins.int: _Int, builtins.float: _Float}.get(kind)
    if stand_in is None or not following or frame.f_globals.get(kind.__name__) is not stand_in:
        return kind
    compares = following[-1].opname in _COMPARISONS
    if compares and following[0].opname == "LOAD_GLOBAL":
        return stand_in if following[0].argval == kind.__name__ else kind
    if following[0].opname in _COMPARISONS:
        raise UnreadableError(f"it compares a type with {kind.__name__}")
    return kind


_COMPARISONS = {"IS_OP", "COMPARE_OP"}


class _Type(metaclass=_Asking):
    plain = builtins.type


def _len(value: Any) -> Any:
    try:
        return len(value)
    except NeedsNumberError:
        return value.shape[0]


def _isinstance(value: Any, kinds: Any) -> bool:
    if not hasattr(type(value), "expected_class") or not isinstance(value, fx.Proxy):
        return isinstance(value, kinds)
    return is_one_of(value, list(_each(kinds)))


def is_one_of(value: Any, classes: Sequence[type]) -> bool:
    """Whether a traced value will be an instance of one of these classes; both outcomes are explored if unknown."""
    kind = value.expected_class()
    if kind is None:  # an optional argument
        names = tuple(f"{k.__module__}.{k.__qualname__}" for k in classes)
        return bool(value.tracer.create_proxy("call_function", is_of_kind, (value, names), {}))
    return any(issubclass(kind, k) for k in classes)


def is_of_kind(_value: Any, _names: tuple[str, ...]) -> NoReturn:
    """The node in a graph for ``isinstance`` of an optional argument; it is never executed."""
    raise RuntimeError("the class of an optional argument isn't known")


def _each(kinds: Any) -> Iterator[type]:
    """Yield the classes in the second argument of ``isinstance``."""
    if isinstance(kinds, tuple | types.UnionType):
        for kind in kinds if isinstance(kinds, tuple) else kinds.__args__:
            yield from _each(kind)
    else:
        yield kinds.plain if isinstance(kinds, _Converting) else kinds


_OWN = {"int": _Int, "float": _Float, "len": _len, "isinstance": _isinstance, "type": _Type}


_MARK = "_converts_traced_values"


def is_traceable_copy(value: Any) -> bool:
    """Whether a value is a function or method created by ``traceable``."""
    return _MARK in vars(getattr(value, "__func__", value)) if callable(value) and hasattr(value, "__dict__") else False


def traceable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a module's bound forward with built-ins that accept traced values.

    Methods that it calls are replaced on the module, which must be a private copy.
    """
    module, function = getattr(forward, "__self__", None), getattr(forward, "__func__", None)
    if not isinstance(module, nn.Module) or not isinstance(function, types.FunctionType):
        return forward
    known: dict[int, Any] = {}
    for name in _methods(module, function):
        method = inspect.getattr_static(type(module), name)
        if isinstance(method, staticmethod):
            vars(module)[name] = _copied(method.__func__, known)
        else:
            vars(module)[name] = types.MethodType(_copied(method, known), module)
    return types.MethodType(_copied(function, known), module)


def calls_type(forward: Callable[..., Any]) -> bool:
    """Whether a forward, or a method of its module that it calls, calls ``type``.

    Such a call doesn't notify the traced value, so it must be found in advance.
    """
    module, function = getattr(forward, "__self__", None), getattr(forward, "__func__", None)
    if not isinstance(module, nn.Module) or not isinstance(function, types.FunctionType) or is_torchs(function):
        return False
    owner: Any = type(module)
    near = [f for f in functions_from(owner, function) if f.__module__ == function.__module__]
    return any("type" not in f.__globals__ and _loads_type(f.__code__) for f in near)


@functools.lru_cache(maxsize=4096)
def _loads_type(code: types.CodeType) -> bool:
    loads = any(i.opname == "LOAD_GLOBAL" and i.argval == "type" for i in instructions(code))
    return loads or any(map(_loads_type, inner(code)))


def _methods(module: nn.Module, function: types.FunctionType) -> set[str]:
    """Return the names of the module's own methods that a function calls, transitively."""
    found: set[str] = set()
    stack = [function]
    while stack:
        for name in names(stack.pop().__code__):
            method = inspect.getattr_static(type(module), name, None)
            inner = method.__func__ if isinstance(method, staticmethod) else method
            own = isinstance(inner, types.FunctionType) and not hasattr(nn.Module, name) and name not in vars(module)
            if own and name not in found and isinstance(inner, types.FunctionType) and not is_torchs(inner):
                found.add(name)
                stack.append(inner)
    return found


def _copied(function: Any, known: dict[int, Any]) -> Any:
    """Copy a function so that it and the functions it calls use the replaced built-ins."""
    if id(function) in known:
        return known[id(function)]
    if not isinstance(function, types.FunctionType) or is_torchs(function):
        return function
    if _SETS & operations(function.__code__):
        raise UnreadableError("it sets global names")
    scope = _Scope(function.__globals__)
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    vars(copy)[_MARK] = True
    known[id(function)] = copy
    for name in names(function.__code__):
        if name in _OWN and name not in scope:
            scope.own[name] = _OWN[name]
        elif isinstance(scope.get(name), types.FunctionType):
            scope.own[name] = _copied(scope[name], known)
    return copy


_SETS = {"STORE_GLOBAL", "DELETE_GLOBAL"}


class _Scope(dict[str, Any]):
    """The global names of a function, always up to date, with some names overridden."""

    def __init__(self, outer: dict[str, Any]) -> None:
        super().__init__(outer)
        self.outer = outer
        self.own: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.own[name] if name in self.own else self.outer[name]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.outer

    def get(self, name: str, default: Any = None) -> Any:
        """Return an overridden or global name."""
        return self.own.get(name, self.outer.get(name, default))
