"""Calls of a forward with other values of its options, to be run in addition to the analysis of its code."""

from __future__ import annotations

import enum
import inspect
import itertools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from unbranch.convert.source.bytecode import cells_of, functions_of
from unbranch.convert.source.effects import has_side_effects
from unbranch.graph.probe import Arguments

_MOST = 6  # calls, each of which runs the original and the rewritten network
_LARGEST = 4  # the largest number that is tried: it may be a number of repetitions
_WORDS = 4  # constants of the code that are tried for one option


def variants_of(module: nn.Module, given: Arguments) -> list[tuple[str, Arguments]]:
    """Return calls like ``given`` with other options, each with a description of the options.

    Flags are inverted, alone and together. Strings, numbers and enumeration members that the code compares with are
    tried instead of others, and a few values instead of ``None``.
    """
    if any(has_side_effects(part) for part in module.modules()):
        return []
    options = _options(module, given)
    alone = [[{name: value} for value in values] for name, values in options.items()]
    flags = {name: values[0] for name, values in options.items() if isinstance(values[0], bool)}
    together: list[dict[str, Any]] = [dict(pair) for pair in itertools.combinations(flags.items(), 2)]
    if len(flags) > 2:
        together.insert(0, dict(flags))
    rounds = [one for row in itertools.zip_longest(*alone) for one in row if one is not None]
    first, rest = rounds[: len(alone)], rounds[len(alone) :]
    chosen = [*first, *together[:2], *rest, *together[2:]][:_MOST]
    return [(_words(one), Arguments(given.args, {**given.kwargs, **one})) for one in chosen]


def _words(options: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        return "a tensor" if isinstance(value, Tensor) else repr(value)

    return ", ".join(f"{name}={shown(value)}" for name, value in options.items())


def _options(module: nn.Module, given: Arguments) -> dict[str, list[Any]]:
    """Return other values of each option that a forward, or a decorator around it, takes."""
    constants = list(dict.fromkeys(_constants(module)))
    found: dict[str, list[Any]] = {}
    layer: Any = type(module).forward if "forward" not in vars(module) else vars(module)["forward"]
    depth = 0
    while layer is not None and depth < 8:
        for name, values in _options_of(layer, given, constants).items():
            found.setdefault(name, values)
        layer, depth = getattr(layer, "__wrapped__", None), depth + 1
    return {name: values for name, values in found.items() if values and name not in given.kwargs}


def _options_of(layer: Any, given: Arguments, constants: list[Any]) -> dict[str, list[Any]]:
    try:
        parameters = list(inspect.signature(layer, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return {}
    bound = inspect.ismethod(layer)
    found: dict[str, list[Any]] = {}
    for j, parameter in enumerate(parameters):
        passed = parameter.kind is not parameter.KEYWORD_ONLY and j - (not bound) < len(given.args)
        if parameter.kind is parameter.VAR_KEYWORD:
            code = getattr(layer, "__code__", None)
            names = [c for c in getattr(code, "co_consts", ()) if isinstance(c, str) and c.isidentifier()]
            found |= {name: [False, True] for name in names[:_WORDS]}
        elif parameter.default is not parameter.empty and not passed:
            found[parameter.name] = _others(parameter.default, given, constants)
    return found


def _others(default: Any, given: Arguments, constants: list[Any]) -> list[Any]:
    """Return values that differ from a default."""
    words = [c for c in constants if isinstance(c, str) and c.isidentifier()]
    known = [c for c in constants if isinstance(c, int) and not isinstance(c, bool) and abs(c) <= _LARGEST]
    numbers = list(dict.fromkeys(n for c in known for n in (c, c + 1)))  # the number compared with, and the next one
    if isinstance(default, bool):
        return [not default, None, *words[:2]]
    if isinstance(default, enum.Enum):
        return [member for member in type(default) if member is not default][:_WORDS]
    if isinstance(default, str):
        return [word for word in words if word != default][:_WORDS]
    if isinstance(default, int | float):
        return [*(n for n in numbers if n != default), default + 1, True][:_WORDS]
    if default is None:
        tensors = [v for v in given.args if isinstance(v, Tensor)][:1]
        return [True, *tensors, *words[:_WORDS], False]
    return [None]


def _constants(module: nn.Module) -> Iterator[Any]:
    """Yield strings and numbers in the code of a forward and its functions, and in the names that they read."""
    for function in functions_of(module):
        yield from _plain(_constants_in(function.__code__, function.__doc__))
        yield from _plain(function.__globals__.get(name) for name in function.__code__.co_names)
        yield from _plain(cells_of(function))


def _constants_in(code: types.CodeType, doc: str | None) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants_in(constant, None)
        elif constant != doc:
            yield constant


def _plain(values: Iterable[Any]) -> Iterator[Any]:
    """Yield strings and numbers, also nested in tuples."""
    for value in values:
        if isinstance(value, tuple | frozenset | list):
            yield from _plain(value)
        elif isinstance(value, str | int):
            yield value
