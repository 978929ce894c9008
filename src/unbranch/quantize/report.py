"""Reports of equalisation and of dead channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from unbranch.render import Block, Paragraph, Renderable, Table


@dataclass(frozen=True)
class EqualizedLayer:
    """A kernel whose channels were scaled.

    Args:
        path: of the parameter.
        behind: how many scales of its output channels are free.
        before: the same of its input channels.
        precision: geometric mean of its channels' ranges over the range of the kernel, before and after.
    """

    path: str
    behind: int
    before: int
    precision: tuple[float, float]


@dataclass(frozen=True)
class SkippedScale:
    """Channels whose scale is fixed.

    Args:
        path: of the kernel.
        channels: ``"input"`` or ``"output"``.
        share: of them that is fixed, from 0 to 1.
        reason: why.
    """

    path: str
    channels: str
    share: float
    reason: str


@dataclass(frozen=True)
class EqualizationReport(Renderable):
    """What cross-layer equalisation scales, and what it can't scale.

    Args:
        layers: kernels whose channels were scaled.
        skipped: channels whose scale is fixed, with the reason.
        scales: the smallest and the largest scale.
        power_of_two: whether all scales are powers of two.
        sizes: shapes of the inputs on which the network was read and compared.
        refusal: why nothing could be equalised; empty otherwise.
    """

    layers: tuple[EqualizedLayer, ...]
    skipped: tuple[SkippedScale, ...]
    scales: tuple[float, float] = (1.0, 1.0)
    power_of_two: bool = False
    sizes: tuple[tuple[int, ...], ...] = ()
    refusal: str = ""

    @property
    def summary(self) -> str:
        """One line: how many kernels were equalised."""
        if self.refusal:
            return f"Equalised nothing: {self.refusal}"
        return f"Equalised {len(self.layers)} kernels; scales from {self.scales[0]:.3g} to {self.scales[1]:.3g}"

    def blocks(self) -> Iterable[Block]:
        """A summary, a row for each kernel, and the reasons for channels that are fixed."""
        yield Paragraph(self.summary)
        if self.layers:
            rows = [
                (one.path, str(one.before), str(one.behind), f"{one.precision[0]:.3f}", f"{one.precision[1]:.3f}")
                for one in self.layers
            ]
            yield Table(("kernel", "inputs", "outputs", "precision before", "after"), rows, "equalised", numeric=True)
        if self.skipped:
            fixed = [(s.path, f"{s.share:.0%} of the {s.channels}s", s.reason) for s in self.skipped]
            yield Table(("kernel", "channels", "reason"), fixed, "fixed")
