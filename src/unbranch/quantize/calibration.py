"""Calibration data, and what the inputs of layers are on it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from unbranch.convert.prove.inputs import input_error
from unbranch.convert.rewrite.rewrite import copied
from unbranch.errors import InputError
from unbranch.graph.guard import RandomDrawError
from unbranch.graph.probe import Arguments
from unbranch.graph.running import Runner
from unbranch.quantize.calls import Call, CallMode, tensors_in
from unbranch.quantize.layers import LayerCall, layer_call
from unbranch.quantize.trials import under

Batch = tuple[Any, ...]


def batches_of(network: nn.Module, data: Any) -> list[Batch]:
    """Return calibration data as arguments of a network's forward, one tuple for each batch.

    Args:
        network: of a tuple or list in ``data``, as many items are used as its forward needs: of an image and a label,
            the image.
        data: a tensor (one batch), or an iterable of tensors and tuples, such as a ``DataLoader``. It is read once.

    Raises:
        InputError: if it has no batch, or a batch has no tensor.
    """
    count = _needed(network)
    items = [data] if isinstance(data, Tensor) else list(data) if isinstance(data, Iterable) else [None]
    found = [tuple(item[:count]) if isinstance(item, tuple | list) else (item,) for item in items]
    if not found or not all(any(True for _ in tensors_in(batch)) for batch in found):
        raise InputError("`data` must be an iterable of tensors or tuples of tensors, with at least one batch")
    return found


def _needed(network: nn.Module) -> int:
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is p.empty for p in parameters))


def image_count(batches: Iterable[Batch]) -> int:
    """Return how many examples there are: the first size of the first tensor of each batch."""
    firsts = (next(tensors_in(batch)) for batch in batches)
    return sum(len(t) if t.dim() else 1 for t in firsts)


@dataclass(eq=False)
class LayerInputs:
    """What a layer reads on the calibration data.

    Args:
        layer: its last call.
        largest: the largest absolute value of each input channel, ``(I,)``.
        squares: sum of the squares of each input channel, ``(I,)``.
        points: numbers in each channel.
        lowest, highest: of each input channel, ``(I,)``.
        sums, output_squares: sum of each output channel and of its squares, ``(O,)``.
        output_points: numbers in each output channel.
    """

    layer: LayerCall
    largest: Tensor
    squares: Tensor
    points: int
    lowest: Tensor
    highest: Tensor
    sums: Tensor
    output_squares: Tensor
    output_points: int

    @property
    def power(self) -> Tensor:
        """The mean square of each input channel, ``(I,)``."""
        return self.squares / max(1, self.points)

    @property
    def variance(self) -> Tensor:
        """The variance of each output channel, ``(O,)``, at least a thousandth of its mean square."""
        square = self.output_squares / max(1, self.output_points)
        return torch.maximum(square - (self.sums / max(1, self.output_points)).square(), 1e-3 * square)

    def with_earlier(self, other: LayerInputs) -> LayerInputs:
        """Return what both calls show."""
        return LayerInputs(
            self.layer, torch.maximum(self.largest, other.largest), self.squares + other.squares,
            self.points + other.points, torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest), self.sums + other.sums,
            self.output_squares + other.output_squares, self.output_points + other.output_points,
        )  # fmt: skip


@dataclass(eq=False)
class Inputs:
    """What the layers of a network read on the calibration data.

    Args:
        layers: by the name of their kernel.
        elsewhere: parameters that something other than a layer reads.
        biases: names of the kernels with which each bias is used, None for calls without one.
    """

    layers: dict[str, LayerInputs] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    biases: dict[str, set[str]] = field(default_factory=dict)


class InputMode(CallMode):  # type: ignore[no-untyped-call]
    """Observes the inputs of layers."""

    def __init__(self, found: Inputs) -> None:
        super().__init__()
        self.found = found

    def see(self, call: Call) -> None:
        """Record the input of a layer, or that something else reads a parameter."""
        layer = layer_call(self, call)
        if layer is not None:
            self._record(layer, call.result)
        elif not call.is_view:
            owners = map(self.owner_of, tensors_in((call.args, call.kwargs)))
            self.found.elsewhere |= {owner.name for owner in owners if owner is not None}

    def _record(self, layer: LayerCall, output: Tensor) -> None:
        name, bias = layer.stored.name, layer.stored_bias
        self.found.biases.setdefault("" if bias is None else bias.name, set()).add(name)
        one = _one_call(layer, output)
        known = self.found.layers.get(name)
        if known is not None and known.largest.shape != one.largest.shape:
            self.found.elsewhere.add(name)
            return
        self.found.layers[name] = one if known is None else one.with_earlier(known)


def _one_call(layer: LayerCall, output: Tensor) -> LayerInputs:
    x, y = (t.detach().movedim(layer.axis, 0).flatten(1).double() for t in (layer.x, output))
    return LayerInputs(
        layer, x.abs().amax(1).cpu(), x.square().sum(1).cpu(), x.shape[1], x.amin(1).cpu(), x.amax(1).cpu(),
        y.sum(1).cpu(), y.square().sum(1).cpu(), y.shape[1],
    )  # fmt: skip


def observe_inputs(network: nn.Module, batches: list[Batch]) -> Inputs:
    """Run a network on calibration data, in float64 if it can, and return what its layers read.

    Raises:
        InputError: if it doesn't run on a batch.
    """
    try:
        wide = copied(network, {}).double()
        return _observed(wide, [tree_map(_wide, batch) for batch in batches])
    except Exception:  # it makes tensors in the dtype that it has
        return _observed(network, batches)


def _observed(network: nn.Module, batches: list[Batch]) -> Inputs:
    found, runner = Inputs(), Runner(network)
    for batch in batches:
        mode = InputMode(found)
        try:
            runner.observe(batch, {}, functools.partial(under, mode), watch=mode)
        except RandomDrawError as error:
            raise InputError(f"the output of {type(network).__name__} depends on random numbers") from error
        except Exception as error:
            raise input_error(network, batch, error) from error
    return found


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def arguments(batches: list[Batch]) -> Iterator[Arguments]:
    """Yield batches as arguments of a forward."""
    yield from (Arguments(batch) for batch in batches)
