"""The report of ``diagnose``, and its advice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from unbranch.quantize.report import SuspiciousNorm
from unbranch.render import Block, Paragraph, Renderable, Table

_LOW = 25.0  # dB: below, a layer gets advice
_GAP = 6.0  # dB: one bit
_UNEVEN = 4.0  # largest range over the median


@dataclass(frozen=True)
class LayerDiagnosis:
    """What quantising does to a layer; ratios of signal to quantisation noise of its output, in dB.

    Args:
        path: of the kernel.
        range_ratio: largest range over the median range, of output and of input channels.
        exploding: number of output channels whose range is more than ten times the median.
        dead: number of input channels that are zero on the data.
        harmful: how many of these have weights that set the scale of others.
        weight_sqnr: with quantised weights, one scale for the kernel and one for each output channel.
        weighted_sqnr: the same with scales that minimise the error weighted by the mean square of the input channels.
        input_sqnr: with quantised inputs.
        sqnr: with quantised inputs and weights.
        channel_sqnr: the same for single output channels, the lower quartile.
        advice: what to do about it, empty if nothing.
    """

    path: str
    range_ratio: tuple[float, float]
    exploding: int
    dead: int
    harmful: int
    weight_sqnr: tuple[float, float]
    weighted_sqnr: tuple[float, float]
    input_sqnr: float
    sqnr: float
    channel_sqnr: float
    advice: str = ""


def advice_for(layer: LayerDiagnosis, *, per_channel: bool) -> LayerDiagnosis:
    """Return the diagnosis of a layer with advice."""
    return replace(layer, advice=" ".join(_advice(layer, per_channel)))


def _advice(layer: LayerDiagnosis, per_channel: bool) -> Iterable[str]:
    weights = layer.weight_sqnr[per_channel]
    if layer.harmful:
        yield (
            f"{layer.harmful} input channels are zero on the data, and their weights set the scale of others: "
            "use `zero_dead_weights`; in training, QARepVGG blocks avoid them."
        )
    if min(layer.sqnr, layer.channel_sqnr) >= _LOW:
        return
    if weights > layer.input_sqnr + _GAP:
        yield "Its input has few large values: choose its range by a percentile, or keep the layer in float."
        return
    if not per_channel:
        yield "Quantise its weights per channel."
    if max(layer.range_ratio) > _UNEVEN and not layer.harmful:
        yield "The ranges of its channels differ: use `equalize`."
    if (better := layer.weighted_sqnr[per_channel]) > weights + _GAP:
        yield f"Scales weighted by the power of its inputs, which clip large weights, give {better:.0f} dB."
    elif max(layer.weight_sqnr) < _LOW and not layer.harmful:
        yield "Keep it in float."


@dataclass(frozen=True)
class QuantizationReport(Renderable):
    """How well the layers of a network quantise.

    Args:
        layers: in the order in which the network calls them.
        bits: of weights and inputs.
        per_channel: whether totals are with a scale for each output channel.
        images: number of calibration images.
        output_sqnr: of the network's output with all layers quantised, in dB.
        norms: batch norms whose statistics look like dead channels.
    """

    layers: tuple[LayerDiagnosis, ...]
    bits: int
    per_channel: bool
    images: int
    output_sqnr: float
    norms: tuple[SuspiciousNorm, ...] = ()

    @property
    def worst(self) -> tuple[LayerDiagnosis, ...]:
        """The layers, that with the smallest ratio first."""
        return tuple(sorted(self.layers, key=lambda layer: layer.sqnr))

    @property
    def summary(self) -> str:
        """One line: the ratio of the output, and how many layers have advice."""
        kind = "per channel" if self.per_channel else "per tensor"
        many = sum(bool(layer.advice) for layer in self.layers)
        return (
            f"Output at {_db(self.output_sqnr)} dB with {self.bits}-bit weights ({kind}) and inputs; "
            f"advice for {many} of {len(self.layers)} layers"
        )

    def blocks(self) -> Iterable[Block]:
        """A summary, a row for each layer, worst first, and advice."""
        yield Paragraph(self.summary)
        rows = [
            (one.path, f"{one.range_ratio[0]:.1f}", f"{one.range_ratio[1]:.1f}", f"{one.dead}", f"{one.harmful}",
             *map(_db, (*one.weight_sqnr, one.input_sqnr, one.sqnr, one.channel_sqnr)))
            for one in self.worst
        ]  # fmt: skip
        header = ("kernel", "rows", "columns", "dead", "harmful", "tensor", "channel", "input", "total", "quartile")
        yield Table(header, rows, "largest over median range; SQNR in dB", numeric=True)
        advice = [(one.path, one.advice) for one in self.worst if one.advice]
        if advice:
            yield Table(("kernel", "advice"), advice, "what to do")
        if self.norms:
            norms = [(n.path, str(len(n.channels)), f"{n.scale:.3g}", f"{n.typical:.3g}") for n in self.norms]
            yield Table(("norm", "channels", "largest scale", "median"), norms, "almost no variance", numeric=True)


def _db(ratio: float) -> str:
    return f"{ratio:.1f}" if math.isfinite(ratio) else "–" if math.isnan(ratio) else "∞" if ratio > 0 else "-∞"
