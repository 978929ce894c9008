"""Weights that only ever multiply zeros, but set the scale of their kernel.

Where a channel ahead of an identity norm is always zero, the norm's running variance is about zero, and its scale γ/σ
is hundreds of times larger than that of others. Collapsing adds it to the kernel as one weight, which multiplies only
zeros, and by which all others are quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unbranch.convert.faults import as_errors
from unbranch.convert.rewrite.rewrite import copied
from unbranch.errors import DifferenceError, InputError
from unbranch.graph.global_state import without_side_effects
from unbranch.provenance import record_report
from unbranch.quantize.calibration import Batch, Inputs, LayerInputs, arguments, batches_of, image_count, observe_inputs
from unbranch.quantize.constants import Constants, read_constants
from unbranch.quantize.norms import suspicious_norms
from unbranch.quantize.report import DeadChannelsReport, DeadColumns
from unbranch.quantize.scales import with_tensors
from unbranch.quantize.trials import Trials, readable
from unbranch.render import Reporting

ZERO_DEAD = "zero_dead_weights"  # kind of the report
Columns = Literal["harmful", "all"]
_SHARED = "something else than layers reads its kernel"
_UNPROVED = "the changed network differs: "


class DeadChannels(Reporting):
    """What ``zero_dead_weights`` makes of a network: a report to read first, and the changed network.

    Made by ``explain_dead_channels``.

    Attributes:
        report: kernels whose columns are set to zero, how many for every input and how many on the data, and norms
            whose statistics look like dead channels.

    Example:
        >>> import torch, unbranch as ub
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
        ...     _ = net[0].bias.copy_(torch.tensor([0.0, -1.0]))
        ...     _ = net[2].weight.copy_(torch.tensor([1.0, 300.0]).reshape(1, 2, 1, 1))
        >>> dead = ub.quantize.explain_dead_channels(net, torch.randn(4, 1, 5, 5))
        >>> [(one.path, one.zeroed, one.range) for one in dead.report.layers]
        [('2.weight', 1, (300.0, 1.0))]
    """

    def __init__(self, report: DeadChannelsReport, network: nn.Module) -> None:
        self.report, self._network = report, network

    def apply(self) -> nn.Module:
        """Return the changed network, with the weights of the time of the analysis; a new one each time."""
        return copied(self._network, {})


def zero_dead_weights(model: nn.Module, data: Any, *, columns: Columns = "harmful", factor: float = 2.0) -> nn.Module:
    """Return a copy of a network without weights that only multiply zeros, which would set the scale of their kernel.

    The result is what ``explain_dead_channels(model, data).apply()`` returns.

    Args:
        model: a collapsed network; it isn't changed. In evaluation mode the result is equal on ``data``.
        data: a tensor (one batch), or an iterable of tensors and tuples, such as a ``DataLoader`` of images and labels.
        columns: which columns of channels that are zero on all of the data are set to zero: the harmful ones, or all.
            Columns of channels that are constant for every input are always removed.
        factor: a column is harmful if one of its weights is larger than ``factor`` times the largest weight by which
            its output channel reads other channels (those that aren't zero).

    Returns:
        The network; ``unbranch.report`` reads its ``DeadChannelsReport``.

    Raises:
        InputError: if ``model`` isn't a module or doesn't run on ``data``, or for a wrong argument.
    """
    return explain_dead_channels(model, data, columns=columns, factor=factor)._network


def explain_dead_channels(
    model: nn.Module, data: Any, *, columns: Columns = "harmful", factor: float = 2.0
) -> DeadChannels:
    """Return what ``zero_dead_weights`` would do to a network: the same analysis and proof.

    Channels that are constant for every input follow from the network alone, by interval arithmetic: columns of zeros
    are removed, and another constant is added to the bias where the layer doesn't pad its input. Channels that are zero
    on all of the data are found by running the network. Both results are compared with the original in float64, the
    first on the first batch and inputs of other sizes, the second on all of the data.

    Args and errors as for ``zero_dead_weights``.

    Returns:
        The value: its ``report``, which prints as a table, and ``apply()``, which returns the network.
    """
    if columns not in ("harmful", "all"):
        raise InputError(f"`columns` must be 'harmful' or 'all', got {columns!r}")
    if not factor >= 1:
        raise InputError(f"`factor` must be a number ≥ 1, got {factor!r}")
    network = readable(model)
    batches = batches_of(network, data)
    with as_errors(), without_side_effects(network):
        try:
            trials = Trials(network, batches[0])
        except DifferenceError as error:
            report = DeadChannelsReport((), suspicious_norms(network), {}, image_count(batches), refusal=str(error))
            return _finished(report, copied(network, {}))
        inputs = observe_inputs(network, batches)
        return _Search(trials, batches, inputs, columns == "all", factor).run()


def _finished(report: DeadChannelsReport, network: nn.Module) -> DeadChannels:
    record_report(network, ZERO_DEAD, report)
    return DeadChannels(report, network)


@dataclass(eq=False)
class _Search:
    trials: Trials
    batches: list[Batch]
    inputs: Inputs
    every: bool
    factor: float
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self) -> DeadChannels:
        """Find columns by law and by data, prove both, and return the result."""
        network = self.trials.network
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.weights = {n: tensors[n].detach().double().cpu() for n in self.inputs.layers if n in tensors}
        self.tensors = tensors
        for name in sorted(self.inputs.elsewhere & self.weights.keys()):
            self.skipped[name] = _SHARED
            del self.weights[name]
        law, constants = self._by_law()
        changes, found = dict(law), {}
        for name in self.weights:
            columns = self._dead(name, law.get(name, self.weights[name]))
            if bool(columns.any()):
                layer = self.inputs.layers[name].layer
                changes[name] = law.get(name, self.weights[name]) * layer.by_input((~columns).double())
                found[name] = columns
        if found and (why := self._differs(changes, self.batches)) is not None:
            self.skipped |= dict.fromkeys(found, _UNPROVED + why)
            changes, found = law, {}
        layers = tuple(self._rows(law, constants, changes, found))
        narrow = {name: values.to(tensors[name].dtype) for name, values in changes.items()}
        report = DeadChannelsReport(
            layers, suspicious_norms(network), self.skipped, image_count(self.batches), self.every, self.factor
        )
        return _finished(report, with_tensors(network, narrow))

    # For every input

    def _by_law(self) -> tuple[dict[str, Tensor], dict[str, Constants]]:
        """Return tensors without the columns of constant channels, and these channels, if the result is equal."""
        constants, reason = read_constants(self.trials)
        if reason:
            self.skipped[""] = reason
        changes: dict[str, Tensor] = {}
        kept: dict[str, Constants] = {}
        for name, found in constants.items():
            if name in self.weights and bool(found.constant.any()):
                kept[name] = self._absorbed(name, found, changes)
        if changes and (why := self._differs(changes, None)) is not None:
            self.skipped |= dict.fromkeys(kept, _UNPROVED + why)
            return {}, {}
        return changes, kept

    def _absorbed(self, name: str, found: Constants, changes: dict[str, Tensor]) -> Constants:
        """Remove the columns of constants, which go into the bias; where that isn't exact, only those of zeros."""
        weight, layer = self.weights[name], found.layer
        if bool(found.other.any()) and (why := self._cannot_absorb(found)) is not None:
            self.skipped[name] = f"{int(found.other.sum())} input channels are constant, but {why}"
            found = found.only_zeros()
        if bool(found.other.any()) and found.bias is not None:
            added = (weight * layer.by_input(found.value)).flatten(1).sum(1)
            changes[found.bias] = self.tensors[found.bias].detach().double().cpu() + added
        changes[name] = weight * layer.by_input((~found.constant).double())
        return found

    def _cannot_absorb(self, found: Constants) -> str | None:
        if found.layer.pads:
            return "the layer pads them with zeros"
        if found.bias is None:
            return "the layer has no bias of its own"
        shared = len(self.inputs.biases.get(found.bias, ())) > 1 or found.bias in self.inputs.elsewhere
        return "the layer shares its bias" if shared else None

    # On the data

    def _dead(self, name: str, weight: Tensor) -> Tensor:
        """Return which columns of dead channels are to be set to zero, ``(I,)``."""
        seen, size = self.inputs.layers[name], weight.abs()
        dead = dead_columns(seen, size)
        return dead if self.every else dead & harmful_columns(seen, size, dead, self.factor)

    def _differs(self, changes: dict[str, Tensor], batches: list[Batch] | None) -> str | None:
        changed = with_tensors(self.trials.network, changes)
        return self.trials.differs(changed, None if batches is None else arguments(batches))

    def _rows(
        self, law: dict[str, Tensor], constants: dict[str, Constants], changes: dict[str, Tensor],
        found: dict[str, Tensor],
    ) -> Iterator[DeadColumns]:  # fmt: skip
        for name, weight in self.weights.items():
            constant, seen = constants.get(name), self.inputs.layers[name]
            proved = 0 if constant is None else int(constant.zero.sum())
            absorbed = 0 if constant is None or name not in law else int(constant.other.sum())
            dead = int((seen.largest == 0).sum())
            zeroed = proved + absorbed + (int(found[name].sum()) if name in found else 0)
            if dead or zeroed:
                ranges = float(weight.abs().max()), float(changes.get(name, weight).abs().max())
                yield DeadColumns(name, len(seen.largest), dead, proved, absorbed, zeroed, ranges)


def dead_columns(seen: LayerInputs, size: Tensor) -> Tensor:
    """Return which input channels are zero on the data and have a weight that isn't zero, ``(I,)``.

    Args:
        seen: what the layer reads.
        size: absolute values of its kernel.
    """
    return (seen.largest == 0).to(size.device) & (seen.layer.input_ranges(size) > 0)


def harmful_columns(seen: LayerInputs, size: Tensor, dead: Tensor, factor: float = 2.0) -> Tensor:
    """Return which input channels have a weight more than ``factor`` times the live weights of its row, ``(I,)``.

    Rows without live weights are compared with the largest live weight of the kernel.
    """
    layer = seen.layer
    live = size * layer.by_input((~dead).double())
    rows = layer.output_ranges(live)
    rows = torch.where(rows > 0, rows, rows.max())
    excess = torch.where(size > factor * layer.by_output(rows), size, 0.0)
    return (layer.input_ranges(excess) > 0) & (rows.max() > 0)
