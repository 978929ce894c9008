"""``finalize``: remove the channels that training has driven to zero from the collapsed network."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from unbranch.blocks import Compactor
from unbranch.convert import collapse, verify
from unbranch.convert.costs import cost_of
from unbranch.convert.prove.inputs import as_inputs
from unbranch.convert.report import report
from unbranch.errors import DifferenceError
from unbranch.graph.eval_view import unwrap_model
from unbranch.provenance import record_report
from unbranch.prune.dependencies import Dependencies
from unbranch.prune.graph import PruningGraph, check_graph, kernels_of, read_units
from unbranch.prune.latency import LatencyTable
from unbranch.prune.narrow import PRUNE, record_narrowing, shapes_of
from unbranch.prune.removal import random_like, remove_channels
from unbranch.prune.report import PruningReport
from unbranch.prune.select import Limits, keep_rows
from unbranch.prune.trial import depthwise_layers
from unbranch.prune.units import PruningUnit

THRESHOLD = 1e-5  # the published one


def row_norms(network: nn.Module, unit: PruningUnit) -> Tensor:
    """Return the norm of each channel's row, ``(C,)``; of several rows, the root mean square of their norms."""
    squares = [_kernel(network, path)[rows].double().square().sum(1) for path, rows in unit.rows]
    return torch.stack(squares).mean(0).sqrt()


def _kernel(network: nn.Module, path: str) -> Tensor:
    compactor = network.get_submodule(path)
    assert isinstance(compactor, Compactor)
    return compactor.conv.weight.detach().flatten(1)


def kept_channels(
    network: nn.Module, graph: PruningGraph, threshold: float, limits: Limits, masked: bool = False
) -> list[Tensor]:
    """Return which channels ``(C,)`` of each unit are kept."""
    keep = []
    for unit in graph.units:
        path, rows = unit.rows[0]
        mask = cast(Tensor, network.get_submodule(path).mask)[rows] if masked else None
        keep.append(keep_rows(row_norms(network, unit), threshold, limits, mask))
    return keep


@torch.no_grad()
def with_zero_rows(network: nn.Module, graph: PruningGraph, keep: list[Tensor]) -> nn.Module:
    """Return a copy of a network with compactors, in evaluation mode, in which the rows that aren't kept are zero."""
    result = copy.deepcopy(network).eval()
    for unit, kept in zip(graph.units, keep, strict=True):
        for path, rows in unit.rows:
            _kernel(result, path)[rows[~kept]] = 0
    return result


def finalize(
    model: nn.Module, example_input: Any, *, threshold: float = THRESHOLD, multiple: int = 8,
    minimum: int | float = 1, masked: bool = False, graph: PruningGraph | None = None,
    latency: LatencyTable | None = None,
) -> nn.Module:  # fmt: skip
    """Return a new, plain network without the channels whose rows of compactors are below the threshold.

    It computes the same function as the network with those rows set to zero, which is checked in float64. Branches
    and compactors are merged as ``collapse`` does; a channel that is constant but not zero goes into the biases of
    its consumers, or is kept where the zeros that they pad with make that inexact.

    Args:
        model: a network with compactors, in any mode; it isn't changed.
        example_input: a tensor, or a tuple of the forward's arguments.
        threshold: norm of a row below which its channel is removed.
        multiple: widths are rounded up to a multiple of this, by keeping the largest of the rows below the threshold;
            1 for the published choice.
        minimum: channels that each layer keeps: a number of them, or a fraction of all that it has.
        masked: remove masked channels, too, whatever their rows are; that may cost accuracy.
        graph: of this network, from ``explain_pruning``, ``read_graph`` or ``ResRep``; the network is read without it.
        latency: of this network, from ``ResRep.latency``, to report the latency before and after.

    Returns:
        The network; ``unbranch.report`` reads its ``PruningReport``.

    Raises:
        InputError: if there are no compactors, the network can't be read, or ``graph`` is of another one.
        DifferenceError: if the result computes something else.

    Example:
        >>> import unbranch as ub
        >>> x = torch.randn(1, 3, 32, 32)
        >>> net = ub.prune.insert_compactors(ub.create_model("resnet8_cifar", num_classes=10), x)
        >>> with torch.no_grad():
        ...     net.stages[0][0].conv1.conv.compactor.conv.weight[:6] = 0
        >>> ub.prune.finalize(net, x, multiple=1).stages[0][0].conv1.conv
        Conv2d(16, 10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    network, inputs = unwrap_model(model), as_inputs(example_input)
    graph, plain = collapse_for(network, inputs, graph)
    keep = kept_channels(network, graph, threshold, Limits(minimum=minimum, multiple=multiple), masked)
    return without_channels(network, plain, inputs, graph, keep, latency)


def collapse_for(
    network: nn.Module, inputs: tuple[Any, ...], graph: PruningGraph | None
) -> tuple[PruningGraph, nn.Module]:
    """Return the graph with the collapsed network, as it is now.

    The network is read again if it collapses to other layers than those of the graph: a network that was never trained
    may merge more.

    Raises:
        InputError: if the network can't be read, or the graph is of another one.
    """
    if graph is None:
        return read_units(network, inputs, untrained=False)
    check_graph(graph, network)
    plain = collapse(network, inputs).eval()
    return (graph, plain) if kernels_of(plain) == graph.kernels else read_units(network, inputs, untrained=False)


def without_channels(
    network: nn.Module, plain: nn.Module, inputs: tuple[Any, ...], graph: PruningGraph, keep: list[Tensor],
    latency: LatencyTable | None = None,
) -> nn.Module:  # fmt: skip
    """Remove the channels that aren't kept from the collapsed network.

    Args:
        network: with compactors; it isn't changed.
        plain: its collapsed form, in evaluation mode; it is changed and returned.
        inputs: arguments of its forward.
        graph: of this network.
        keep: which channels ``(C,)`` of each unit are kept.
        latency: to report the latency before and after; None for no timing.

    Raises:
        DifferenceError: if the result isn't the function of the network with the other rows zero.
    """
    shapes, before = shapes_of(plain), cost_of(plain, inputs)
    chosen = [(u.layer, u.channels[~kept].tolist()) for u, kept in zip(graph.units, keep, strict=True)]
    zero = remove_channels(Dependencies(plain, inputs), inputs, chosen, depthwise_layers(graph.units))
    expected = with_zero_rows(network, graph, keep)
    for given in (inputs, random_like(inputs, seed=2)):
        check = verify(expected, plain, given)
        if not check.within_noise:
            raise DifferenceError(f"the pruned network differs; nothing is returned\n{check}")
    record_narrowing(plain, shapes)
    after = cost_of(plain, inputs)
    collapsed = replace(report(plain, "collapse"), after=after)
    pruned = PruningReport(
        _widths(plain, graph),
        {path: len(channels) for path, channels in zero.items()},
        graph.skipped,
        (graph.macs(graph.full), _macs(plain, graph)),
        before,
        after,
        None if latency is None else _fitting(latency, graph).report(plain, [int(kept.sum()) for kept in keep]),
    )
    record_report(plain, "collapse", collapsed)
    record_report(plain, PRUNE, pruned)
    vars(plain).update(collapse_report=collapsed, pruning=pruned)  # deprecated, as version 0.1 set them
    return plain.train(network.training)


def _fitting(latency: LatencyTable, graph: PruningGraph) -> LatencyTable:
    """Return the table, made again if the network collapses to other layers than when it was made."""
    fits = latency.graph.kernels == graph.kernels and latency.graph.full == graph.full
    return latency if fits else LatencyTable(graph, latency.source, latency.multiple)


def _widths(plain: nn.Module, graph: PruningGraph) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for layer in graph.layers:
        if layer.outputs.each and not layer.depthwise:
            module: Any = plain.get_submodule(layer.path)
            found[layer.path] = (layer.outputs.at(graph.full), len(module.weight))
    return found


def _macs(plain: nn.Module, graph: PruningGraph) -> int:
    """Multiply-accumulates of the convolutions and linear layers as they are now."""
    return sum(layer.points * cast(Tensor, plain.get_submodule(layer.path).weight).numel() for layer in graph.layers)
