"""Numbers that a recipe may hold, as types."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from unbranch.train.typed import Bounds

Whole: TypeAlias = Annotated[int, Bounds(least=0)]
Count: TypeAlias = Annotated[int, Bounds(least=1)]
Positive: TypeAlias = Annotated[float, Bounds(above=0)]
NotNegative: TypeAlias = Annotated[float, Bounds(least=0)]
Fraction: TypeAlias = Annotated[float, Bounds(least=0, most=1)]
Rate: TypeAlias = Annotated[float, Bounds(least=0, below=1)]
Part: TypeAlias = Annotated[float, Bounds(above=0, below=1)]
Share: TypeAlias = Annotated[float, Bounds(above=0, most=1)]
Size: TypeAlias = Count | tuple[Count, Count] | None
"""A side of a square, or height and width."""
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "random"]
