"""Differences between two runs, and the outcome of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbranch.convert.faults import first_line
from unbranch.convert.prove.distance import relative_error
from unbranch.graph.running import Observation


@dataclass(eq=False)
class Verdict:
    """The outcome of comparing a rewritten network with its original.

    Args:
        proved: paths of parts that agree.
        different: paths of parts that don't, with the difference.
        unprovable: paths of parts that can't be compared, with the reason.
        run: paths of parts that the network's forward runs, at least in part.
    """

    proved: set[str] = field(default_factory=set)
    run: set[str] = field(default_factory=set)
    different: dict[str, str] = field(default_factory=dict)
    unprovable: dict[str, str] = field(default_factory=dict)

    def holds(self, path: str) -> bool:
        """Whether a part agrees, on its own or as a part of another one that runs it."""
        around = [p for p in self.proved if lies_in(path, p)]
        return path in self.proved or (bool(around) and (path in self.run or around != [""]))

    def note(self, path: str, reason: str | None) -> None:
        """Record the outcome of one comparison."""
        if reason is None:
            if path not in self.unprovable:  # on another input
                self.proved.add(path)
        else:
            self.different.setdefault(path, reason)
            self.proved.discard(path)


def lies_in(path: str, around: str) -> bool:
    """Whether a path is equal to, or inside, another one."""
    return not around or path == around or path.startswith(f"{around}.")


def difference(ours: Observation, theirs: Observation, tolerance: float, *, changes: bool = True) -> str | None:
    """Return how an observation differs from the original's; None if it agrees."""
    if (reason := structural_difference(ours, theirs)) is not None:
        return reason
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        if a.shape != b.shape:
            return f"its output would have the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        reason = _values(a, b, tolerance)
        if reason is not None:
            return reason
    if not changes:
        return None
    for key in ours.changes.keys() | theirs.changes.keys():
        name = ".".join(filter(None, key))
        if key not in ours.changes:
            return f"it would no longer update {name}"
        if key not in theirs.changes:
            return f"it would update {name}, which the original doesn't"
        a, b = ours.changes[key], theirs.changes[key]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            reason = _values(a, b, tolerance)
            if reason is not None:
                return f"what it stores in {name} would differ"
    return None


def structural_difference(ours: Observation, theirs: Observation) -> str | None:
    """Return how the structure or dtypes of outputs differ from the original's; None if they agree."""
    if ours.structure != theirs.structure or len(ours.outputs) != len(theirs.outputs):
        return "the structure of its outputs would change"
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        if a.dtype != b.dtype:
            return f"its output would be {a.dtype} instead of {b.dtype}"
    return None


def _values(a: Tensor, b: Tensor, tolerance: float) -> str | None:
    error = distance(a, b)
    if error <= tolerance:
        return None
    exact = not (b.is_floating_point() or b.is_complex())
    return (
        "its integer outputs would differ" if exact else f"its output would differ by {error:.1e} of its largest value"
    )


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference over the largest value of ``b``; infinities and NaNs must be in the same places."""
    if a.is_meta or b.is_meta or not b.numel():
        return 0.0
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if a.shape == b.shape and torch.equal(a, b) else float("inf")
    if b.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.shape == b.shape and torch.equal(torch.isfinite(a), torch.isfinite(b)):
        a, b = (torch.where(torch.isfinite(t), t, torch.zeros_like(t)) for t in (a, b))
    return relative_error(a, b)


def failure(error: BaseException) -> str:
    """Return the difference of a part that can't be run."""
    return f"the rewritten part can't be run ({type(error).__name__}: {first_line(error)})"
