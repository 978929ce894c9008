"""The registry of mutants, and small ways to break a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.algebra.checks import Law
from unbranch.algebra import ConvMap

MUTANTS: dict[tuple[str, str], Law] = {}


def breaks(prop: str, bug: str) -> Callable[[Law], Law]:
    """Register a broken law by the property it breaks and by what is wrong with it."""

    def register(law: Law) -> Law:
        MUTANTS[prop, bug] = law
        return law

    return register


def flipped(m: ConvMap) -> ConvMap:
    return replace(m, weight=m.weight.flip(tuple(range(2, m.weight.dim()))))


def undilated(m: ConvMap) -> ConvMap:
    """Neighbouring taps, the same output size."""
    one = (1,) * m.ndim
    hi = tuple(d - a + k - 1 for d, a, k in zip(m.size_delta, m.lo, m.kernel_size, strict=True))
    return replace(m, dilation=one, hi=hi)


def moved(m: ConvMap, lo: Sequence[int]) -> ConvMap:
    """The kernel at another place, the output size as before."""
    return replace(m, lo=tuple(lo), hi=tuple(a + b - c for a, b, c in zip(m.lo, m.hi, lo, strict=True)))


def unpadded(m: ConvMap) -> ConvMap:
    return replace(m, lo=(0,) * m.ndim, hi=(0,) * m.ndim)


def unbiased(m: Any) -> Any:
    return replace(m, bias=None)


def widened(m: ConvMap, lo: Sequence[int], hi: Sequence[int], border: str | None = None) -> ConvMap:
    """Padding without a look at what it meets."""
    return replace(
        m,
        lo=tuple(a + s * p for a, s, p in zip(m.lo, m.stride, lo, strict=True)),
        hi=tuple(a + s * p for a, s, p in zip(m.hi, m.stride, hi, strict=True)),
        padding_mode=border or m.padding_mode,
    )


def interleaved(m: ConvMap) -> ConvMap:
    """Output channels counted within groups first."""
    return replace(m, weight=m.weight.unflatten(0, (m.groups, -1)).transpose(0, 1).flatten(0, 1))
