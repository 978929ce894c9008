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


@dataclass(frozen=True)
class DeadColumns:
    """A kernel with input channels that are zero.

    Args:
        path: of the kernel.
        channels: number of its input channels.
        dead: how many of them are zero on all of the data.
        proved: how many are zero for every input.
        absorbed: how many are another constant for every input, which went into the bias.
        zeroed: how many of its columns were set to zero.
        range: largest absolute weight, before and after.
    """

    path: str
    channels: int
    dead: int
    proved: int
    absorbed: int
    zeroed: int
    range: tuple[float, float]


@dataclass(frozen=True)
class SuspiciousNorm:
    """A batch norm with channels of almost no variance.

    Args:
        path: of the norm.
        channels: numbers of these channels.
        scale: the largest scale γ/σ.
        typical: the median of all scales.
    """

    path: str
    channels: tuple[int, ...]
    scale: float
    typical: float


@dataclass(frozen=True)
class DeadChannelsReport(Renderable):
    """Which weights only multiply zeros, and what was done about them.

    Args:
        layers: kernels with dead input channels.
        norms: batch norms whose statistics look like dead channels; after collapsing, look at their kernels.
        skipped: reason for each kernel, or the network as a whole (``""``), where something was skipped.
        images: number of calibration images.
        every: whether all columns of dead channels were set to zero, not only the harmful ones.
        factor: of the live weights of its row, by which a weight must be larger to be harmful.
        refusal: why nothing could be done; empty otherwise.
    """

    layers: tuple[DeadColumns, ...]
    norms: tuple[SuspiciousNorm, ...]
    skipped: dict[str, str]
    images: int
    every: bool = False
    factor: float = 2.0
    refusal: str = ""

    @property
    def summary(self) -> str:
        """One line: how many columns were set to zero."""
        if self.refusal:
            return f"Changed nothing: {self.refusal}"
        total, kernels = sum(one.zeroed for one in self.layers), sum(one.zeroed > 0 for one in self.layers)
        return f"Set {total:,} columns of {kernels:,} kernels to zero"

    @property
    def guarantee(self) -> str:
        """For which inputs the result is equal."""
        by_law = sum(one.proved + one.absorbed for one in self.layers)
        on_data = sum(one.zeroed for one in self.layers) - by_law
        parts = [f"{by_law:,} of them multiply a constant for every input."] if by_law else []
        if on_data:
            parts.append(
                f"{on_data:,} of them multiply zeros on all of the {self.images:,} calibration images: the result is "
                "equal on these images, not for every input."
            )
        return " ".join(parts)

    def blocks(self) -> Iterable[Block]:
        """A summary, for which inputs it holds, and a row for each kernel and norm."""
        yield Paragraph(self.summary)
        if self.guarantee:
            yield Paragraph(self.guarantee)
        if self.layers:
            rows = [
                (one.path, f"{one.dead} of {one.channels}", str(one.proved), str(one.absorbed), str(one.zeroed),
                 f"{one.range[0]:.3g}", f"{one.range[1]:.3g}")
                for one in self.layers
            ]  # fmt: skip
            header = ("kernel", "dead inputs", "always zero", "absorbed", "set to zero", "range before", "after")
            yield Table(header, rows, "dead channels", numeric=True)
        if self.norms:
            norms = [(n.path, str(len(n.channels)), f"{n.scale:.3g}", f"{n.typical:.3g}") for n in self.norms]
            yield Table(("norm", "channels", "largest scale", "median"), norms, "almost no variance", numeric=True)
        if self.skipped:
            yield Table(("kernel", "reason"), [(p or "(all)", r) for p, r in self.skipped.items()], "skipped")
