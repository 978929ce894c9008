"""Plain values, as YAML gives them, into the frozen dataclasses of the settings; pydantic checks them.

Every key must be known and every value of its type: text isn't read as a number, nor a number as text. Errors name
each setting by its dotted path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from reprlib import Repr
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from unbranch.errors import InputError, nearest

T = TypeVar("T")

SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 60
RULES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "dataclass_type": "keys and values",
}
"""What a value must be, by the type of pydantic's error; its own words for the others."""


def validate(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a dataclass made of the values by their keys, and dataclasses inside it of theirs.

    Raises:
        InputError: for every unknown key, missing key and value of another type, with its dotted path.
    """
    try:
        done: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise InputError(_message(kind, values, error.errors(include_url=False))) from error
    return done


def dotted(kind: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys of a dataclass and of the dataclasses inside it."""
    for key, hint in get_type_hints(kind).items():
        yield path + key
        for inside in _dataclasses_in(hint):
            yield from dotted(inside, f"{path}{key}.")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _message(kind: type, values: Any, errors: Iterable[Any]) -> str:
    """One clause for each path. Where a value fits no type of a union, they are the alternatives of one rule."""
    by_path: dict[str, list[Any]] = {}
    for error in errors:
        by_path.setdefault(_path(error, values), []).append(error)
    deepest = {path: found for path, found in by_path.items() if not any(p.startswith(f"{path}.") for p in by_path)}
    return "; ".join(_clause(kind, path, found) for path, found in deepest.items())


def _path(error: Any, values: Any) -> str:
    """The dotted path of an error: its location without the alternatives of unions, which aren't keys."""
    path = []
    for part in error["loc"]:
        if (isinstance(values, Mapping) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part] if isinstance(values, Mapping) or part < len(values) else None
            path.append(str(part))
    if error["type"] == "missing":
        path.append(str(error["loc"][-1]))
    return ".".join(path)


def _clause(kind: type, path: str, errors: list[Any]) -> str:
    first = errors[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, InputError):  # of a rule across several settings, which names them
        return str(raised)
    if first["type"] == "missing":
        return f"`{path}` is missing"
    if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
        return f"`{path}` is unknown{_suggestion(kind, path)}"
    rules = " or ".join(dict.fromkeys(map(_rule, errors)))
    return f"`{path}` must be {rules}, got {SHORT.repr(first['input'])}{_meant(errors)}"


def _rule(error: Any) -> str:
    if "error" in error.get("ctx", {}):
        return str(error["ctx"]["error"])
    own: str = error["msg"].removeprefix("Input should be ")
    return RULES.get(error["type"], own)


def _meant(errors: list[Any]) -> str:
    """Suggest one of the expected words that is similar to the value."""
    words = [w for e in errors if e["type"] == "literal_error" for w in re.findall(r"'([^']+)'", e["ctx"]["expected"])]
    value = errors[0]["input"]
    return nearest(value, words) if isinstance(value, str) else ""


def _suggestion(kind: type, path: str) -> str:
    """Suggest a key for an unknown one: the same inside its section, a similar one in it, or the same elsewhere."""
    *parts, key = path.split(".")
    section, paths = [part for part in parts if not part.isdigit()], list(dotted(kind))
    same_name = [known for known in paths if known.rpartition(".")[2] == key]
    below = [known for known in same_name if known.split(".")[: len(section)] == section]
    siblings = [known.rpartition(".")[2] for known in paths if known.split(".")[:-1] == section]
    similar = nearest(key, siblings)
    if below or (same_name and not similar):
        return f"; did you mean {' or '.join(below or same_name)}?"
    return similar or f"; the keys are {', '.join(siblings)}"


def _dataclasses_in(hint: Any) -> Iterator[Any]:
    if is_dataclass(hint):
        yield hint
    for inside in get_args(hint):
        yield from _dataclasses_in(inside)
