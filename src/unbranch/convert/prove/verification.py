"""The result of comparing two networks, and the tolerances."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

LARGEST_FLOAT32_NOISE = 1e-3  # of the largest output, for a network with trained weights


@dataclass(frozen=True)
class Verification:
    """How far two networks differ on a given input, both in evaluation mode.

    Args:
        max_abs, max_rel: largest difference in float64, absolute and relative to the first network's largest output.
        native_abs, native_rel: the same in the networks' own dtype.
        noise_floor: relative difference of the first network in its own dtype from itself in float64. A native
            difference that isn't well above it says nothing.
        same_classes: fraction of rows whose largest entry is at the same place, of the first 2-D output.
        first_difference: path of the first module, in order of computation, that both networks have under one name and
            that differs in float64; None if there is none.
        tolerance: the largest ``max_rel`` for which ``ok`` is true.
        compared: how many numbers were compared; a detector that finds nothing returns none.
        unproved: why this input can't show whether the two are the same; None if it can.
    """

    max_abs: float
    max_rel: float
    native_abs: float
    native_rel: float
    noise_floor: float
    same_classes: float | None
    first_difference: str | None
    tolerance: float
    compared: int
    unproved: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the float64 outputs agree within the tolerance, on an input that can show a difference."""
        return self.compared > 0 and self.unproved is None and self.max_rel <= self.tolerance

    @property
    def within_noise(self) -> bool:
        """Whether ``ok``, or the difference is no larger than rounding explains on an input that can't show more."""
        return self.ok or (self.unproved is not None and self.max_rel <= 4 * self.noise_floor)

    @property
    def verdict(self) -> str:
        """One of three: the same function, not the same, or undecided on this input."""
        if self.compared == 0 or self.unproved is not None:
            return "can't be proved on this input"
        return "the same function" if self.ok else "NOT the same function"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return {**asdict(self), "ok": self.ok, "verdict": self.verdict}

    def __str__(self) -> str:
        if not self.compared:
            return "nothing to compare: all outputs are empty or not finite on this input; try another"
        lines = [
            f"{self.verdict} (tolerance {self.tolerance:.0e} of the largest output)",
            f"  float64       {self.max_rel:.1e} relative, {self.max_abs:.1e} absolute",
            f"  own precision {self.native_rel:.1e} relative, {self.native_abs:.1e} absolute",
            f"  noise floor   {self.noise_floor:.1e} relative: the first network against its own float64",
        ]
        if self.unproved is not None:
            lines.insert(1, f"  {self.unproved}")
        if self.same_classes is not None:
            lines.append(f"  same largest entry in {self.same_classes:.2%} of the rows")
        if self.first_difference is not None:
            lines.append(f"  first module that differs: {self.first_difference}")
        return "\n".join(lines)


def largest_tolerance(dtype: torch.dtype) -> float:
    """Return the upper limit of ``default_tolerance``: 1e-3 for float32, 16 units of rounding for coarser dtypes."""
    return 1e-10 if dtype == torch.float64 else max(LARGEST_FLOAT32_NOISE, 16 * torch.finfo(dtype).eps)


def default_tolerance(dtype: torch.dtype, noise_floor: float) -> float:
    """Return the tolerance for weights that are rounded once to ``dtype``: four times the network's noise, limited."""
    most = largest_tolerance(dtype)
    return most if dtype == torch.float64 else min(max(64 * torch.finfo(dtype).eps, 4 * noise_floor), most)
