"""An artifact: a network for one runtime, with what was measured about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from unbranch.runtimes.measure import Timing
from unbranch.runtimes.targets.base import Precision

LEAST = 0.02  # smaller differences of latency, relative, are never called faster
Status: TypeAlias = Literal["verified", "not verified", "differs", "failed", "unavailable"]


@dataclass(frozen=True)
class Artifact:
    """A network for one runtime, or the reason why there is none.

    Args:
        target: name of the runtime.
        precision: of weights, and of arithmetic where the runtime has it.
        status: ``verified`` if the file was loaded in its runtime and computes the same function; ``not verified`` if
            its runtime doesn't run here.
        reason: why it isn't verified, or what its limit allows for.
        path: of the file that the runtime loads.
        size: of all files, in bytes.
        operations: in the graph that the runtime executes.
        error: largest difference from the network in float64, relative to the largest output.
        limit: the largest error allowed; None for 8-bit integers, which are compared by accuracy.
        rms: root mean square of the error, relative to the standard deviation of the outputs.
        same_class: fraction of images to which both assign the same class.
        accuracy: fraction of images with the right class.
        timings: latency, by setting, threads and batch.
    """

    target: str
    precision: Precision
    status: Status
    reason: str = ""
    path: Path | None = None
    size: int | None = None
    operations: int | None = None
    error: float | None = None
    limit: float | None = None
    rms: float | None = None
    same_class: float | None = None
    accuracy: float | None = None
    timings: tuple[Timing, ...] = ()

    @property
    def name(self) -> str:
        """The target, with its precision unless that is float32."""
        return self.target if self.precision == "float32" else f"{self.target} {self.precision}"

    @property
    def ok(self) -> bool:
        """Whether the artifact is verified."""
        return self.status == "verified"

    def as_fast_as(self, other: Artifact, batch: int = 1) -> bool:
        """Whether this artifact isn't measurably slower than another one."""
        ours, theirs = self.fastest(batch), other.fastest(batch)
        if ours is None or theirs is None:
            return False
        noise = [LEAST * t.median_ms if t.uncertainty_ms is None else t.uncertainty_ms for t in (ours, theirs)]
        return ours.median_ms - theirs.median_ms <= max(2 * math.hypot(*noise), LEAST * theirs.median_ms)

    def fastest(self, batch: int = 1) -> Timing | None:
        """Return the timing with the smallest median for a batch size."""
        return min((t for t in self.timings if t.batch == batch), key=lambda t: t.median_ms, default=None)
