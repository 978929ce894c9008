"""Types of the values that a recipe may hold. None is converted from another type, except integers to floats."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

try:
    from pydantic import AfterValidator, BeforeValidator, Field, JsonValue
except ImportError as error:
    from unbranch.errors import MissingPackageError

    raise MissingPackageError("pydantic isn't installed: pip install 'unbranch[train]'") from error

T = TypeVar("T")


def _list(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a list of 2")
    return value


def _finite(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(options, allow_nan=False)
    except ValueError as error:
        raise ValueError("finite numbers, text, lists and mappings") from error
    return options


Text: TypeAlias = Annotated[str, Field(strict=True)]
Flag: TypeAlias = Annotated[bool, Field(strict=True)]
Whole: TypeAlias = Annotated[int, Field(strict=True, ge=0)]
Count: TypeAlias = Annotated[int, Field(strict=True, ge=1)]
AtLeastTwo: TypeAlias = Annotated[int, Field(strict=True, ge=2)]
Number: TypeAlias = Annotated[float, Field(strict=True)]
Positive: TypeAlias = Annotated[float, Field(strict=True, gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(strict=True, ge=0)]
Fraction: TypeAlias = Annotated[float, Field(strict=True, ge=0, le=1)]
Rate: TypeAlias = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part: TypeAlias = Annotated[float, Field(strict=True, gt=0, lt=1)]
Share: TypeAlias = Annotated[float, Field(strict=True, gt=0, le=1)]
Many: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(_list)]
Pair: TypeAlias = Annotated[tuple[T, T], BeforeValidator(_pair)]
Options: TypeAlias = Annotated[dict[str, JsonValue], AfterValidator(_finite)]
"""Keyword arguments of a function."""
Size: TypeAlias = Count | Pair[Count] | None
"""A side of a square, or height and width."""
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "random"]
