"""Plain values, as YAML gives them, into frozen dataclasses: every key known, every value of its type.

The types that a field may have are a number, text, ``bool``, ``Literal``, ``None``, a dataclass, ``dict[str, Any]``,
a tuple of such (written as a list, or as one value where a list of one is meant) and unions of these; ``Annotated``
with ``Bounds`` says which numbers are possible.
"""

from __future__ import annotations

import copy
import json
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from reprlib import Repr
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unbranch.errors import InputError, nearest

T = TypeVar("T")

SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 60


@dataclass(frozen=True)
class Bounds:
    """Which numbers are possible: ``least`` and ``most`` belong to them, ``above`` and ``below`` don't."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def admit(self, value: float) -> bool:
        """Whether the number is one of them."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = (("from", self.least), ("above", self.above), ("to", self.most), ("below", self.below))
        return " ".join(f"{word} {number:g}" for word, number in words if number is not None)


def build(kind: type[T], values: Any, path: str = "") -> T:
    """A dataclass of the values by their keys, those of dataclasses inside it by theirs.

    Raises:
        InputError: with the dotted path, for a key that isn't known, one that is missing, and a value of another type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds keys and their values; got {SHORT.repr(values)}")
    hints = _hints(kind)
    for key in values:
        if key not in hints:
            raise InputError(f"{_joined(path, str(key))}: unknown{_suggestion(kind, str(key))}")
    given = {key: read(hints[key], value, _joined(path, key)) for key, value in values.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in given or field.default is not MISSING or field.default_factory is not MISSING:
            continue
        inside = _joined(path, field.name)
        if not is_dataclass(hints[field.name]):
            raise InputError(f"{inside} is missing: it is {describe(hints[field.name])}")
        given[field.name] = build(hints[field.name], {}, inside)
    return kind(**given)


def read(hint: Any, value: Any, path: str) -> Any:
    """The value as a field of this type holds it; raises InputError, with its path, for another."""
    options = _options(hint)
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    if len(options) == 1:
        return _read_one(options[0], value, path, hint)
    for option in options:
        try:
            return _read_one(option, value, path, hint)
        except InputError:
            continue
    raise _wrong(hint, value, path)


def describe(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Annotated:
        inner, bounds = get_args(hint)
        return f"{describe(inner)} {bounds}"
    if len(options := _options(hint)) > 1:
        return " or ".join(sorted(map(describe, options), key=lambda words: "," in words))
    if get_origin(hint) is Literal:
        words = [str(word) for word in get_args(hint)]
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if get_origin(hint) is tuple:
        inside = get_args(hint)
        count = "" if Ellipsis in inside else f" of {len(inside)}"
        return f"a list{count}, each {describe(inside[0])}"
    words_of = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words_of.get(hint, "keys and their values")


def dotted(kind: type, path: str = "") -> Iterator[str]:
    """Paths of all keys of a dataclass and those inside it."""
    for key, hint in _hints(kind).items():
        inside = [option for option in _options(hint) if is_dataclass(option)]
        yield _joined(path, key)
        for option in inside:
            yield from dotted(option, _joined(path, key))  # type: ignore[arg-type]


def _read_one(hint: Any, value: Any, path: str, whole: Any) -> Any:
    """One alternative of a type; ``whole`` is what errors speak of."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, bounds = get_args(hint)
        number = _read_one(inner, value, path, whole)
        if not bounds.admit(number):
            raise _wrong(whole, value, path)
        return number
    if is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin is tuple:
        return _tuple(hint, value, path, whole)
    if origin is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and _is_json(value):
            return copy.deepcopy(dict(value))
    elif origin is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise _wrong(whole, value, path)


def _tuple(hint: Any, value: Any, path: str, whole: Any) -> tuple[Any, ...]:
    inside, parts = get_args(hint), value if isinstance(value, list | tuple) else [value]
    if Ellipsis in inside:
        inside = (inside[0],) * len(parts)
    elif len(inside) != len(parts):
        raise _wrong(whole, value, path)
    if all(is_dataclass(item) for item in inside):  # their keys have paths of their own
        return tuple(read(item, part, f"{path}.{i}") for i, (item, part) in enumerate(zip(inside, parts, strict=True)))
    try:
        return tuple(read(item, part, path) for item, part in zip(inside, parts, strict=True))
    except InputError:
        raise _wrong(whole, value, path) from None


def _wrong(hint: Any, value: Any, path: str) -> InputError:
    words = [word for option in _options(hint) if get_origin(option) is Literal for word in get_args(option)]
    meant = nearest(value, words) if isinstance(value, str) else ""
    return InputError(f"{path} is {describe(hint)}; got {SHORT.repr(value)}{meant}")


def _suggestion(kind: type, key: str) -> str:
    """What may have been meant by a key that isn't known: one of the same name elsewhere, or one beside it."""
    inside = [path for path in dotted(kind) if path.rpartition(".")[2] == key]
    if inside:
        return f"; did you mean {' or '.join(inside)}?"
    return nearest(key, _hints(kind)) or f"; there are {', '.join(_hints(kind))}"


def _is_json(value: Any) -> bool:
    """Whether there is nothing inside but numbers, words, lists and mappings."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _options(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
