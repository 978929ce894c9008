"""Find code in forwards that no trace shows: comparisons by identity, side effects, and attributes of other modules."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import MutableMapping, MutableSequence
from typing import Any

from torch import nn

from unbranch.convert.source.bytecode import called, functions_of, inner, instructions, names, operations

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


def inspects_arguments(module: nn.Module) -> bool:
    """Whether a module's forward, or code that it calls, inspects the identity or class of its arguments."""
    codes = [function.__code__ for function in functions_of(module)]
    return any(_JUDGING & operations(code) or _ASKING & names(code) for code in codes)


def has_side_effects(module: nn.Module) -> bool:
    """Whether a module's forward, or code that it calls, acts on files, the process or the terminal."""
    return any(_ACTING & called(function.__code__) for function in functions_of(module))


def walks_modules(module: nn.Module) -> bool:
    """Whether a module's forward, or code in its file that it calls, walks through modules or changes their mode."""
    own = [function for function in functions_of(module) if function.__module__ == type(module).__module__]
    return any(_REACHING & names(function.__code__) for function in own)


def may_pass_state(outer: nn.Module, part: nn.Module) -> bool:
    """Whether code of an enclosing module may pass state to a part other than by arguments.

    Such state is an attribute of another module, a global name that the part's code uses, or an entry of a table that
    the part holds as well.
    """
    held = {id(value) for module in part.modules() for value in vars(module).values()}
    named = frozenset().union(*(names(f.__code__) for module in part.modules() for f in functions_of(module)))
    for function in functions_of(outer):
        if _sets(function.__code__):
            return True
        for kind, name in _written(function.__code__):
            table = vars(outer).get(name) if kind == "LOAD_ATTR" else function.__globals__.get(name)
            if kind == "STORE_GLOBAL" or (kind == "LOAD_GLOBAL" and isinstance(table, _TABLES)):
                if name in named:
                    return True
            elif kind == "LOAD_ATTR" and isinstance(table, _TABLES) and id(table) in held:
                return True
    return False


_TABLES = (dict, list, set, MutableMapping, MutableSequence)


def compared_by_identity(module: nn.Module, options: list[str]) -> str | None:
    """Return the name of an option that a forward compares by identity with anything but a constant."""
    code = next((function.__code__ for function in functions_of(module)), None)
    found = () if code is None else instructions(code)
    for j, operation in enumerate(found):
        if operation.opname == "IS_OP" and found[j - 1].opname not in _CONSTANTS:
            loaded = {_last(o.argval) for o in found[max(0, j - 3) : j] if o.opname.startswith("LOAD_FAST")}
            option = next((name for name in options if name in loaded), None)
            if option is not None:
                return option
    return None


_CONSTANTS = {"LOAD_CONST", "LOAD_SMALL_INT"}


@functools.lru_cache(maxsize=4096)
def _sets(code: types.CodeType) -> bool:
    """Whether code sets attributes of anything but its first argument."""
    own, found = code.co_varnames[0] if code.co_argcount else "", instructions(code)
    for before, operation in itertools.pairwise(found):
        direct = before.opname.startswith("LOAD_FAST") and _last(before.argval) == own
        if operation.opname in ("STORE_ATTR", "DELETE_ATTR") and not direct:
            return True
    return bool(_SETTING & frozenset(code.co_names)) or any(map(_sets, inner(code)))


@functools.lru_cache(maxsize=4096)
def _written(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """Return the global names that code sets, and the tables that it may write to, with the loading instruction."""
    found, written = instructions(code), set[tuple[str, str]]()
    for j, operation in enumerate(found):
        if operation.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(("STORE_GLOBAL", str(operation.argval)))
        if operation.opname == "STORE_SUBSCR":
            loads = (o for o in found[max(0, j - 3) : j] if o.opname in ("LOAD_ATTR", "LOAD_GLOBAL"))
            written |= {(o.opname, str(o.argval)) for o in loads}
    return frozenset(written).union(*map(_written, inner(code)))


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, tuple) else value
