"""The latency of a network before and after pruning, in the runtime that will run it, and where time is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from unbranch.render import Block, Paragraph, Renderable, Table

ROWS = 12
UNPRUNED = "none of its channels can be pruned"
DEPTHWISE = "depthwise: moving numbers takes the time"
MEMORY_BOUND = "few MACs for each number that is moved"
SLOWER_KERNELS = "slower per MAC at this width"
LOW_INTENSITY = 16.0  # MACs for each number that a layer reads or writes
NOTABLE = 0.1  # time left beyond the share of MACs left, from which there is a reason


@dataclass(frozen=True)
class LayerLatency:
    """The time of a layer before and after pruning.

    Args:
        path: in the collapsed network.
        macs: multiply-accumulates for one example, before and after.
        ms: milliseconds, before and after, from the layer timed alone.
        reason: why it saves less time than MACs; empty if it doesn't.
    """

    path: str
    macs: tuple[int, int]
    ms: tuple[float, float]
    reason: str = ""


@dataclass(frozen=True)
class LatencyReport(Renderable):
    """Latency before and after pruning.

    Args:
        runtime: its name, and number of threads.
        multiple: of which widths are multiples.
        before_ms, after_ms: of the network for one example, timed in turns in the runtime.
        estimated_ms: what the pruned network was estimated to take.
        layers: the layers, those with the most time left first.
        rest_ms: of everything else, before and after.
        notes: what was measured in another way than asked for.
    """

    runtime: str
    multiple: int
    before_ms: float
    after_ms: float
    estimated_ms: float
    layers: tuple[LayerLatency, ...]
    rest_ms: tuple[float, float]
    notes: tuple[str, ...] = ()

    @property
    def left(self) -> float:
        """Fraction of the latency that is left."""
        return self.after_ms / self.before_ms

    @property
    def error(self) -> float:
        """Relative error of the estimate: below 0 if the network is slower than estimated."""
        return self.estimated_ms / self.after_ms - 1

    @property
    def macs_saved(self) -> float:
        """Fraction of the layers' multiply-accumulates that is saved."""
        before, after = (sum(layer.macs[i] for layer in self.layers) for i in (0, 1))
        return 1 - after / max(1, before)

    @property
    def efficiency(self) -> float:
        """Fraction of the latency that is saved for each fraction of the multiply-accumulates that is saved."""
        return (1 - self.left) / self.macs_saved if self.macs_saved > 0 else 1.0

    def time_left(self) -> dict[str, float]:
        """Return the share of the pruned network's time by reason; ``""`` for layers that save as much as MACs."""
        found: dict[str, float] = {}
        for layer in self.layers:
            found[layer.reason] = found.get(layer.reason, 0.0) + layer.ms[1]
        found["operations that aren't convolutions or linear layers"] = self.rest_ms[1]
        total = sum(found.values()) or 1.0
        return {reason: ms / total for reason, ms in found.items()}

    def cells(self) -> tuple[str, str]:
        """Return both latencies in words."""
        return f"{self.before_ms:.2f} ms", f"{self.after_ms:.2f} ms"

    def blocks(self) -> Iterable[Block]:
        """A summary, the shares of reasons, and the layers with the most time left."""
        yield Paragraph(
            f"{self.runtime}: {100 * self.left:.1f} % of the latency left with {100 * (1 - self.macs_saved):.1f} % of "
            f"the MACs, so {100 * self.efficiency:.0f} % of what MACs promise; widths are multiples of "
            f"{self.multiple}; the estimate was {100 * self.error:+.1f} % off"
        )
        shares = [(reason or "saves as much as MACs", f"{100 * share:.0f} %") for reason, share in
                  sorted(self.time_left().items(), key=lambda item: -item[1]) if share >= 0.005]  # fmt: skip
        yield Table(("time left in layers whose reason is", "share"), shares, title="where time is left", numeric=True)
        rows = [
            (layer.path, f"{layer.ms[0]:.3f}", f"{layer.ms[1]:.3f}", _percent(*layer.ms), _percent(*layer.macs),
             layer.reason)
            for layer in self.layers
        ]  # fmt: skip
        yield Table(("layer", "ms before", "after", "left", "MACs left", "reason"), rows, numeric=True, limit=ROWS)
        for note in self.notes:
            yield Paragraph(note, "yellow")


def reason_for(
    macs: tuple[int, int], ms: tuple[float, float], *, varies: bool, depthwise: bool, moved: int
) -> str:  # fmt: skip
    """Return why a layer saves less time than multiply-accumulates, empty if it doesn't.

    Args:
        macs, ms: before and after.
        varies: whether pruning can change its channels.
        depthwise: whether it is a depthwise convolution.
        moved: numbers that it reads and writes after pruning.
    """
    if not varies:
        return UNPRUNED
    if ms[1] / max(ms[0], 1e-9) < macs[1] / max(1, macs[0]) + NOTABLE:
        return ""
    if depthwise:
        return DEPTHWISE
    return MEMORY_BOUND if macs[1] < LOW_INTENSITY * moved else SLOWER_KERNELS


def _percent(before: float, after: float) -> str:
    return f"{100 * after / before:.0f} %" if before else ""
