"""The tensors of an output, and their distance from those of another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from unbranch.graph.running import plain_output


@dataclass(frozen=True)
class Output:
    """A tensor in a network's output, and the path of the container that holds it."""

    home: Any
    value: Tensor


@dataclass(frozen=True)
class Distance:
    """The largest difference, absolute and relative to the largest value of its tensor.

    ``compared`` counts the finite numbers that were compared, ``tied`` those that weren't because their scores tie.
    Integers that differ have a relative distance of 1.
    """

    relative: float = 0.0
    absolute: float = 0.0
    compared: int = 0
    tied: int = 0

    def __or__(self, other: Distance) -> Distance:
        return Distance(
            max(self.relative, other.relative), max(self.absolute, other.absolute),
            self.compared + other.compared, self.tied + other.tied,
        )  # fmt: skip


def outputs_of(output: Any) -> list[Output]:
    """Return the tensors of an output in order, each with its container."""
    return [Output(path[:-1], v) for path, v in _leaves(output) if isinstance(v, Tensor)]


class Kind(str):
    """The type of an output that isn't compared by value."""

    __slots__ = ()


def kinds_of(output: Any) -> dict[str, Any]:
    """Return plain values as they are and the types of all others, by path."""
    kinds: dict[str, Any] = {}
    for path, value in _leaves(output):
        place = "".join(map(str, path))
        if isinstance(value, Tensor):
            kinds[place] = Kind("a tensor of real or complex numbers" if is_real(value) else "a tensor of integers")
        else:
            plain = isinstance(value, bool | int | float | complex | str | bytes | None)
            kinds[place] = value if plain else Kind(f"a {type(value).__name__}")
    return kinds


def _leaves(output: Any) -> list[tuple[Any, Any]]:
    """Return the leaves with their paths, sorted by path, so that the order of dictionaries doesn't matter."""
    return sorted(tree_flatten_with_path(plain_output(output))[0], key=lambda leaf: [str(k) for k in leaf[0]])


def plain_distance(ours: Tensor, theirs: Tensor) -> Distance:
    """Compare two tensors elementwise. Equal infinities and NaNs count as equal, but not as compared."""
    if theirs.numel() == 0:
        return Distance()
    if not (is_real(ours) or is_real(theirs)):
        differ = ours != theirs
        largest = (ours.double() - theirs.double()).abs().max()
        return Distance(float(differ.any()), float(largest), theirs.numel())
    a, b = _wide(ours), _wide(theirs)
    finite = a.isfinite() & b.isfinite()
    if not bool(((a == b) | (a.isnan() & b.isnan()) | finite).all()):
        return Distance(float("inf"), float("inf"), theirs.numel())
    if not bool(finite.any()):
        return Distance()
    absolute = float((a - b)[finite].abs().max())
    scale = max(float(b[finite].abs().max()), torch.finfo(torch.float64).tiny)
    return Distance(absolute / scale, absolute, int(finite.sum()))


def is_real(value: Tensor) -> bool:
    """Whether a tensor has real or complex numbers."""
    return value.is_floating_point() or value.is_complex()


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128) if value.is_complex() else value.double()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest value of ``theirs``; infinite if shapes differ or for NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.numel() == 0:
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max()
    scale = theirs.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = float(difference / scale)
    return error if error == error else float("inf")
