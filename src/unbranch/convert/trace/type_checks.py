"""Answer ``isinstance``, ``type``, ``match`` and set or dictionary lookups on traced values.

Python reads an object's ``__class__`` and hash without saying which code asks; only the running frame shows it. A
forward whose question can't be identified is run again with its own ``isinstance``, which knows the class that a value
will have.
"""

from __future__ import annotations

import builtins
import dis
import sys
import types
from typing import Any

import torch
from torch import fx, nn

from unbranch.convert.source.bytecode import instructions, running
from unbranch.convert.trace.casts import NeedsNumberError, UnreadableError, is_one_of

_LOOKUPS = {
    "CONTAINS_OP", "BINARY_SUBSCR", "BINARY_OP", "STORE_SUBSCR", "BUILD_SET", "SET_ADD", "SET_UPDATE", "BUILD_MAP",
    "BUILD_CONST_KEY_MAP", "MAP_ADD",
}  # fmt: skip
_LOOKING = {"get", "setdefault", "pop", "set", "frozenset", "dict", "fromkeys", "add", "update", "Counter"}
"""Calls that insert numbers into sets and dictionaries, or look them up."""


class TypeChecked:
    """A traced value that recognises type checks and lookups in the code that uses it.

    It reports another class than its own to ``isinstance`` alone: PyTorch's compiled code trusts ``__class__``, and
    crashes on a proxy that claims to be a tensor.
    """

    node: fx.Node
    tracer: Any

    def _kind(self) -> type:
        frame = sys._getframe(1)
        if _is_torchs(frame) and (frame.f_code.co_name != "__instancecheck__" or _asked_for(frame) is not None):
            return type(self)
        while frame.f_back is not None and frame.f_code.co_name == "__instancecheck__":
            frame = frame.f_back  # of nn.Parameter, which checks twice
        if _is_torchs(frame):
            return type(self)
        operation = _running(frame)
        if operation is not None and (operation.opname == "MATCH_CLASS" or operation.argval == "__class__"):
            return self.known_class()
        if operation is not None and not _may_be_isinstance(frame, operation):
            return type(self)
        kinds = _asked_for(frame)
        if kinds is not None:
            return kinds[0] if is_one_of(self, kinds) else type(self)
        if "isinstance" in frame.f_code.co_names and "isinstance" not in frame.f_globals:
            self.tracer.conversions += 1
        return type(self)

    __class__ = property(_kind)

    def expected_class(self) -> type | None:
        """Return the class that this value will have; None if it may be any.

        Raises:
            UnreadableError: if nothing is known about it.
        """
        known = self.tracer.known(self.node)
        if known is None:
            if self.tracer.is_open(self.node):
                return None
            if self.node.op not in ("placeholder", "get_attr") and not self.tracer.is_layers(self.node):
                raise UnreadableError("it checks the type of a value about which nothing is known")
            return torch.Tensor
        if not isinstance(known[0], torch.Tensor):
            return type(known[0])
        parameter = self.node.op == "get_attr" and self.tracer.is_parameter(str(self.node.target))
        return nn.Parameter if parameter else torch.Tensor

    def known_class(self) -> type:
        """Return the class that this value will have.

        Raises:
            UnreadableError: if it isn't known.
        """
        kind = self.expected_class()
        if kind is None:
            raise UnreadableError("it depends on the class of an optional argument")
        return kind

    def __hash__(self) -> int:
        frame = sys._getframe(1)
        if not _is_torchs(frame) and _looks_up(frame) and self._is_number():
            self.tracer.conversions += 1
            raise NeedsNumberError("a number that depends on the input is used in a set or a dictionary")
        return object.__hash__(self)

    def _is_number(self) -> bool:
        known = self.tracer.known(self.node)
        return known is not None and isinstance(known[0], int | float | tuple)


def _asked_for(frame: types.FrameType) -> tuple[type, ...] | None:
    """Return the classes of the ``isinstance(value, classes)`` call that a frame executes, if it certainly does.

    That is the case if only names, attributes of Python modules and tuples lie between ``isinstance`` and its call.
    """
    operations, at = instructions(frame.f_code), running(frame)
    if at is None or "isinstance" in frame.f_globals:
        return None
    start = next((j for j in range(at - 1, max(-1, at - 12), -1) if operations[j].argval == "isinstance"), None)
    if start is None or operations[start].opname != "LOAD_GLOBAL":
        return None
    stack: list[Any] = []
    for operation in operations[start + 1 : at]:
        name, argument = operation.opname, operation.argval
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            stack.append(frame.f_globals.get(argument, getattr(builtins, str(argument), ...)))
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            owner = stack.pop()
            stack.append(getattr(owner, argument, ...) if isinstance(owner, types.ModuleType) else ...)
        elif name == "BUILD_TUPLE":
            stack[len(stack) - argument :] = [tuple(stack[len(stack) - argument :])]
        elif name.startswith("LOAD_FAST") or name in ("LOAD_DEREF", "LOAD_CONST"):
            given = argument if isinstance(argument, tuple) and name != "LOAD_CONST" else (argument,)
            stack += [frame.f_locals.get(n, ...) if name != "LOAD_CONST" else ... for n in given]
        elif name not in ("PRECALL", "PUSH_NULL"):
            return None
    kinds = stack[1] if len(stack) == 2 else ...
    found = kinds if isinstance(kinds, tuple) else (kinds,)
    return found if all(isinstance(kind, type) for kind in found) else None


def _running(frame: types.FrameType) -> dis.Instruction | None:
    at = running(frame)
    return None if at is None else instructions(frame.f_code)[at]


_PLAIN_CALLS = {"CALL", "PRECALL", "CALL_FUNCTION"}


def _may_be_isinstance(frame: types.FrameType, operation: dis.Instruction) -> bool:
    """Whether an instruction may call ``isinstance``, which takes two positional arguments."""
    if operation.opname == "CALL_FUNCTION_EX":
        return not (operation.arg or 0) & 1
    if operation.opname not in _PLAIN_CALLS:
        return False
    at = running(frame) or 0
    named = any(o.opname == "KW_NAMES" for o in instructions(frame.f_code)[max(0, at - 2) : at])
    return operation.arg == 2 and not named


def _is_torchs(frame: types.FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name == "torch" or name.startswith(("torch.", "unbranch."))


def _looks_up(frame: types.FrameType) -> bool:
    """Whether the running code looks something up: functions with a cache are called with traced values, too."""
    operation = _running(frame)
    name = "" if operation is None else operation.opname
    return name in _LOOKUPS or ("CALL" in name and not _LOOKING.isdisjoint(frame.f_code.co_names))
