"""What code of a forward does that no trace sees: it judges values by identity, or sets attributes of other modules."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

_JUDGING = {
    "IS_OP", "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE",
    "POP_JUMP_BACKWARD_IF_NONE", "POP_JUMP_BACKWARD_IF_NOT_NONE", "JUMP_IF_NOT_EXC_MATCH", "CHECK_EXC_MATCH",
    "SETUP_FINALLY", "PUSH_EXC_INFO", "MATCH_CLASS", "MATCH_MAPPING", "MATCH_SEQUENCE", "MATCH_KEYS", "CONTAINS_OP",
}  # fmt: skip
_ASKING = {
    "isinstance", "issubclass", "type", "hasattr", "getattr", "callable", "id", "is_", "is_not", "is_tensor", "locals",
    "vars", "eval", "exec",
}  # fmt: skip
_ACTING = {
    "open", "exit", "_exit", "quit", "abort", "kill", "save", "savefig", "dump", "breakpoint", "set_trace", "input",
    "system", "popen", "Popen", "unlink", "rmtree", "mkdir", "makedirs", "write", "write_text", "write_bytes",
    "urlopen", "connect", "fork",
}  # fmt: skip
_REACHING = {
    "named_modules", "modules", "children", "named_children", "get_submodule", "attrgetter", "register_forward_hook",
    "register_forward_pre_hook", "_modules", "functional_call", "train", "eval",
}  # fmt: skip
_SETTING = {"setattr", "__setattr__", "__dict__", "vars", "delattr", "apply", "exec"}


def judges(module: nn.Module) -> bool:
    """Whether a module's forward, or what it calls, goes by what an argument is: None, another one, or of a class."""
    return any(_judges(function.__code__) for function in functions_of(module))


def acts(module: nn.Module) -> bool:
    """Whether a module's forward, or what it calls, names what does something outside the process, or ends it."""
    return any(not _ACTING.isdisjoint(_all_names(function.__code__)) for function in functions_of(module))


def reaches_anywhere(module: nn.Module) -> bool:
    """Whether a module's forward, or what it calls in its own file, walks through modules or changes their mode."""
    own = [function for function in functions_of(module) if function.__module__ == type(module).__module__]
    return any(not _REACHING.isdisjoint(_all_names(function.__code__)) for function in own)


@functools.lru_cache(maxsize=4096)
def _all_names(code: types.CodeType) -> frozenset[str]:
    return frozenset(_names(code))


def tells(outer: nn.Module, part: nn.Module) -> bool:
    """Whether the forward of a module around a part, or what it calls, may leave something that the part reads.

    That is an attribute of another module, a global name that the part's code names, or an entry of a table that the
    part has as well.
    """
    functions = functions_of(outer)
    if any(_sets(function.__code__) for function in functions):
        return True
    written = frozenset().union(*(_tables(function.__code__) for function in functions))
    if not written:
        return False
    held = {id(value) for module in part.modules() for value in vars(module).values()}
    named = frozenset().union(*(_all_names(f.__code__) for module in part.modules() for f in functions_of(module)))
    return any(name in named if kind == "LOAD_GLOBAL" else id(vars(outer).get(name)) in held for kind, name in written)


def identified(module: nn.Module, options: list[str]) -> str | None:
    """An option of a forward that it compares by identity with something else than a constant."""
    code = next((function.__code__ for function in functions_of(module)), None)
    before: list[dis.Instruction] = []
    for operation in () if code is None else dis.get_instructions(code):
        if operation.opname == "IS_OP" and before[-1].opname not in _CONSTANTS:
            loaded = {_last(o.argval) for o in before[-3:] if o.opname.startswith("LOAD_FAST")}
            found = next((name for name in options if name in loaded), None)
            if found is not None:
                return found
        if operation.opname not in ("CACHE", "EXTENDED_ARG"):
            before.append(operation)
    return None


_CONSTANTS = {"LOAD_CONST", "LOAD_SMALL_INT"}


@functools.lru_cache(maxsize=4096)
def _judges(code: types.CodeType) -> bool:
    operations = {i.opname for i in dis.get_instructions(code)}
    return (
        not _JUDGING.isdisjoint(operations) or not _ASKING.isdisjoint(code.co_names) or any(map(_judges, _inner(code)))
    )


@functools.lru_cache(maxsize=4096)
def _sets(code: types.CodeType) -> bool:
    own = code.co_varnames[0] if code.co_argcount else ""
    before = None
    for operation in dis.get_instructions(code):
        if operation.opname in ("STORE_ATTR", "DELETE_ATTR"):
            direct = before is not None and before.opname.startswith("LOAD_FAST") and _last(before.argval) == own
            if not direct:
                return True
        if operation.opname not in ("CACHE", "EXTENDED_ARG"):
            before = operation
    return not _SETTING.isdisjoint(code.co_names) or any(map(_sets, _inner(code)))


@functools.lru_cache(maxsize=4096)
def _tables(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """Global names that code writes, and names of tables to which it adds, with how they are loaded."""
    found: set[tuple[str, str]] = set()
    recent: list[dis.Instruction] = []
    for operation in dis.get_instructions(code):
        if operation.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            found.add(("LOAD_GLOBAL", str(operation.argval)))
        if operation.opname == "STORE_SUBSCR":
            loads = [o for o in recent[-3:] if o.opname in ("LOAD_ATTR", "LOAD_GLOBAL")]
            found |= {(o.opname, str(o.argval)) for o in loads}
        if operation.opname not in ("CACHE", "EXTENDED_ARG"):
            recent.append(operation)
    return frozenset(found).union(*map(_tables, _inner(code)))


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, tuple) else value


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    return (c for c in code.co_consts if isinstance(c, types.CodeType))


def functions_of(module: nn.Module) -> list[types.FunctionType]:
    """A module's forward, and the functions and methods that it names, and so on; not PyTorch's."""
    own = vars(module).get("forward")
    forward = (
        getattr(own, "__func__", own) if own is not None else inspect.getattr_static(type(module), "forward", None)
    )
    owner: Any = type(module)
    return _functions(owner, forward) if isinstance(forward, types.FunctionType) else []


@functools.lru_cache(maxsize=4096)
def _functions(owner: Any, forward: types.FunctionType) -> list[types.FunctionType]:
    found: list[types.FunctionType] = []
    stack: list[Any] = [forward]
    while stack:
        function = stack.pop()
        if not isinstance(function, types.FunctionType) or function in found or _is_librarys(function):
            continue
        found.append(function)
        stack.append(getattr(function, "__wrapped__", None))
        stack += cells_of(function)
        for name in _names(function.__code__):
            stack.append(function.__globals__.get(name))
            if not hasattr(nn.Module, name):
                method = inspect.getattr_static(owner, name, None)
                stack.append(getattr(method, "__func__", method))
    return found


def cells_of(function: types.FunctionType) -> list[Any]:
    """What a function takes from the functions around it."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    return found


def _is_librarys(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in _inner(code):
        yield from _names(inner)
