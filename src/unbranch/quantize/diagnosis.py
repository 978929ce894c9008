"""Which layers of a network quantise badly, and why."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.convert.faults import as_errors
from unbranch.errors import InputError
from unbranch.graph.global_state import without_side_effects
from unbranch.graph.running import Runner
from unbranch.quantize.calibration import Batch, Inputs, LayerInputs, batches_of, image_count, observe_inputs
from unbranch.quantize.calls import Call, CallMode
from unbranch.quantize.dead_channels import dead_columns, harmful_columns
from unbranch.quantize.layers import LayerCall, layer_call
from unbranch.quantize.norms import suspicious_norms
from unbranch.quantize.quantization_report import LayerDiagnosis, QuantizationReport, advice_for
from unbranch.quantize.simulation import (
    QuantizedLayer,
    SimulationMode,
    decibels,
    quantized_input,
    quantized_weight,
    weighted_weight,
)
from unbranch.quantize.trials import readable, under

_EXPLODING = 10.0  # times the median range
Powers = dict[str, Tensor]


def diagnose(model: nn.Module, data: Any, *, bits: int = 8, per_channel: bool = True) -> QuantizationReport:
    """Simulate quantising a network and return which layers lose most, with advice for these.

    Weights are rounded to symmetric integers, with one scale for each output channel or one for the kernel; the inputs
    of layers to unsigned integers that cover their range on the data. Each layer is measured with the inputs that it
    has in the unquantised network. This is a diagnosis only; nothing is changed.

    Args:
        model: a network, collapsed as it will be quantised.
        data: a tensor (one batch), or an iterable of tensors and tuples, such as a ``DataLoader`` of images and labels.
        bits: of weights and inputs.
        per_channel: whether weights have a scale for each output channel, in the total of each layer and the network.

    Returns:
        The report: for each layer its ranges and signal-to-quantisation-noise ratios in dB.

    Raises:
        InputError: if ``model`` isn't a module or doesn't run on ``data``, or for a wrong argument.

    Example:
        >>> import torch, unbranch as ub
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
        >>> report = ub.quantize.diagnose(net, torch.randn(4, 3, 8, 8))
        >>> [layer.path for layer in report.layers]
        ['0.weight', '2.weight']
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise InputError(f"`bits` must be an integer from 2 to 16, got {bits!r}")
    network = readable(model)
    batches = batches_of(network, data)
    with as_errors(), without_side_effects(network):
        inputs = observe_inputs(network, batches)
        mode = _NoiseMode(inputs, bits, per_channel)
        runner = Runner(network)
        for batch in batches:
            runner.observe(batch, {}, functools.partial(under, mode), watch=mode)
        layers = tuple(_diagnosis(mode, name, per_channel) for name in mode.signal)
        output = _output_ratio(runner, batches, mode.quantized, bits)
    return QuantizationReport(layers, bits, per_channel, image_count(batches), output, suspicious_norms(network))


class _NoiseMode(CallMode):  # type: ignore[no-untyped-call]
    """Adds up the powers of the outputs of layers and of the errors that quantising causes in them."""

    def __init__(self, inputs: Inputs, bits: int, per_channel: bool) -> None:
        super().__init__()
        self.inputs, self._bits, self._per_channel = inputs, bits, per_channel
        self.weights: dict[str, dict[str, Tensor]] = {}
        self.signal: dict[str, Tensor] = {}  # of each output channel
        self.noise: dict[str, Powers] = {}
        self.quantized: dict[str, QuantizedLayer] = {}

    def see(self, call: Call) -> None:
        """Run a layer again with each of its quantised kernels and inputs."""
        layer = layer_call(self, call)
        known = None if layer is None else self.inputs.layers.get(layer.stored.name)
        if layer is None or known is None or not layer.weight.numel():
            return
        name = layer.stored.name
        if name not in self.weights:
            self._quantize(name, layer, known)
        weights, x = self.weights[name], layer.x
        rounded = quantized_input(x, float(known.lowest.min()), float(known.highest.max()), self._bits)
        exact = layer.function(x, layer.weight, None)
        total = layer.function(rounded, weights["channel" if self._per_channel else "tensor"], None)
        noisy = {kind: layer.function(x, weight, None) for kind, weight in weights.items()}
        noisy |= {"input": layer.function(rounded, layer.weight, None), "total": total}
        noise = {kind: _channel_powers(layer, output - exact) for kind, output in noisy.items()}
        known_noise, signal = self.noise.get(name), _channel_powers(layer, exact)
        self.signal[name] = signal + self.signal.get(name, 0.0)
        self.noise[name] = noise if known_noise is None else {k: v + known_noise[k] for k, v in noise.items()}

    def _quantize(self, name: str, layer: LayerCall, known: LayerInputs) -> None:
        weight, bits, power = layer.weight.detach(), self._bits, known.power
        self.weights[name] = {
            "tensor": quantized_weight(layer, weight, bits, per_channel=False),
            "channel": quantized_weight(layer, weight, bits, per_channel=True),
            "weighted tensor": weighted_weight(layer, weight, bits, power, per_channel=False),
            "weighted channel": weighted_weight(layer, weight, bits, power, per_channel=True),
        }
        chosen = self.weights[name]["channel" if self._per_channel else "tensor"]
        self.quantized[name] = QuantizedLayer(chosen, float(known.lowest.min()), float(known.highest.max()))


def _diagnosis(mode: _NoiseMode, name: str, per_channel: bool) -> LayerDiagnosis:
    known = mode.inputs.layers[name]
    layer, size = known.layer, known.layer.weight.detach().double().abs()
    rows, columns = layer.output_ranges(size), layer.input_ranges(size)
    dead = dead_columns(known, size)
    signal, powers = mode.signal[name], mode.noise[name]
    noise = {kind: decibels(float(signal.sum()), float(power.sum())) for kind, power in powers.items()}
    each = sorted(decibels(float(s), float(n)) for s, n in zip(signal, powers["total"], strict=True) if s > 0)
    one = LayerDiagnosis(
        name,
        (_ratio(rows), _ratio(columns)),
        int((rows > _EXPLODING * _median(rows)).sum()),
        int(dead.sum()),
        int((dead & harmful_columns(known, size, dead)).sum()),
        (noise["tensor"], noise["channel"]),
        (noise["weighted tensor"], noise["weighted channel"]),
        noise["input"],
        noise["total"],
        each[len(each) // 4] if each else math.inf,
    )
    return advice_for(one, per_channel=per_channel)


def _output_ratio(runner: Runner, batches: list[Batch], layers: dict[str, QuantizedLayer], bits: int) -> float:
    """Return the ratio for the network's output with all layers quantised, in dB; not a number if it can't be run."""
    signal = noise = 0.0
    mode = SimulationMode(layers, bits)
    for batch in batches:
        try:
            (exact,) = runner.observe(batch, {}, contextlib.nullcontext)
            (rounded,) = runner.observe(batch, {}, functools.partial(under, mode), watch=mode)
        except Exception:  # it depends on values that quantising changes
            return math.nan
        for ours, theirs in zip(rounded.outputs, exact.outputs, strict=False):
            if theirs.is_floating_point() and ours.shape == theirs.shape:
                signal += _power(theirs)
                noise += _power(ours - theirs)
    return decibels(signal, noise)


def _channel_powers(layer: LayerCall, output: Tensor) -> Tensor:
    return output.double().square().movedim(layer.axis, 0).flatten(1).sum(1)


def _power(values: Tensor) -> float:
    return float(values.double().square().sum())


def _ratio(ranges: Tensor) -> float:
    median = _median(ranges)
    return float(ranges.max() / median) if median > 0 else 1.0


def _median(ranges: Tensor) -> float:
    used = ranges[ranges > 0]
    return float(torch.median(used)) if used.numel() else 0.0
