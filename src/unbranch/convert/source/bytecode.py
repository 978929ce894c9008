"""Read instructions and names of Python functions, and follow the functions that they call."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn


@functools.lru_cache(maxsize=4096)
def instructions(code: types.CodeType) -> tuple[dis.Instruction, ...]:
    """Return the instructions of code, without those that have no effect of their own."""
    return tuple(i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG", "NOP"))


@functools.lru_cache(maxsize=4096)
def inner(code: types.CodeType) -> tuple[types.CodeType, ...]:
    """Return the functions, classes and comprehensions that are defined in code."""
    return tuple(c for c in code.co_consts if isinstance(c, types.CodeType))


@functools.lru_cache(maxsize=4096)
def names(code: types.CodeType) -> frozenset[str]:
    """Return the global names and attributes that code uses, including code defined inside it."""
    return frozenset(code.co_names).union(*map(names, inner(code)))


@functools.lru_cache(maxsize=4096)
def called(code: types.CodeType) -> frozenset[str]:
    """Return the global names, and the methods and functions of modules, that code calls."""
    found = {str(i.argval) for i in instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_METHOD")}
    if sys.version_info >= (3, 12):
        found |= {str(i.argval) for i in instructions(code) if i.opname == "LOAD_ATTR" and (i.arg or 0) & 1}
    return frozenset(found).union(*map(called, inner(code)))


@functools.lru_cache(maxsize=4096)
def operations(code: types.CodeType) -> frozenset[str]:
    """Return the names of the instructions, including those of code defined inside it."""
    return frozenset(i.opname for i in instructions(code)).union(*map(operations, inner(code)))


def running(frame: types.FrameType) -> int | None:
    """Return the position of the instruction that a frame is executing."""
    return _places(frame.f_code).get(frame.f_lasti)


@functools.lru_cache(maxsize=4096)
def _places(code: types.CodeType) -> dict[int, int]:
    return {instruction.offset: j for j, instruction in enumerate(instructions(code))}


def is_torchs(function: types.FunctionType) -> bool:
    """Whether a function belongs to PyTorch."""
    return (function.__module__ or "").split(".")[0] == "torch"


def functions_of(module: nn.Module) -> tuple[types.FunctionType, ...]:
    """Return a module's forward and the functions and methods that it names, transitively, without PyTorch's."""
    own = vars(module).get("forward") or inspect.getattr_static(type(module), "forward", None)
    forward = getattr(own, "__func__", own)
    owner: Any = type(module)
    return functions_from(owner, forward) if isinstance(forward, types.FunctionType) else ()


@functools.lru_cache(maxsize=4096)
def functions_from(owner: Any, forward: types.FunctionType) -> tuple[types.FunctionType, ...]:
    """Return a function and the functions and methods of a class that it names, transitively, without PyTorch's."""
    found: dict[types.FunctionType, None] = {}
    stack: list[Any] = [forward]
    while stack:
        function = stack.pop()
        if not isinstance(function, types.FunctionType) or function in found or is_torchs(function):
            continue
        found[function] = None
        stack += [getattr(function, "__wrapped__", None), *cells_of(function)]
        for name in sorted(names(function.__code__)):  # for a deterministic order
            stack.append(function.__globals__.get(name))
            if not hasattr(nn.Module, name):
                method = inspect.getattr_static(owner, name, None)
                stack.append(getattr(method, "__func__", method))
    return tuple(found)


def cells_of(function: types.FunctionType) -> Iterator[Any]:
    """Yield the values that a function captures from enclosing functions."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents
