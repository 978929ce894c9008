"""What pruning knows of a network with compactors: read once, tried, and passed on as a value.

The graph is read on the collapsed network. It holds paths and numbers of channels, so it stays valid while the weights
are trained.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from unbranch.blocks import Compactor
from unbranch.convert import collapse
from unbranch.convert.prove.inputs import as_inputs
from unbranch.errors import InputError
from unbranch.graph.eval_view import deep_copied, unwrap_model
from unbranch.graph.outside import restoring_outside
from unbranch.prune.reader import Reader
from unbranch.prune.report import CompactorReport
from unbranch.prune.trial import NOT_CONSTANT, try_units
from unbranch.prune.units import ChannelCount, LayerCost, PruningUnit


@dataclass(frozen=True, eq=False)
class PruningGraph:
    """Which channels of a network can be pruned, and what it costs by how many there are.

    Made by ``explain_pruning`` for a network without compactors, and by ``read_graph`` for one with compactors. Pass it
    to ``ResRep`` and ``finalize``, which otherwise read the network again.

    Args:
        network: the network with compactors; ``read_graph`` refers to the one that it was given.
        inputs: arguments of the forward on which it was read.
        units: channels that can be pruned, in the order in which the network computes them.
        skipped: reason for each compactor that nothing can be pruned of, by its path.
        layers: convolutions and linear layers of the collapsed network.
        other_params: parameters of everything else.
        report: which convolutions and blocks have a compactor, and why others have none.
        kernels: path and shape of every kernel of the collapsed network.
    """

    network: nn.Module = field(repr=False)
    inputs: tuple[Any, ...] = field(repr=False)
    units: tuple[PruningUnit, ...]
    skipped: dict[str, str]
    layers: tuple[LayerCost, ...]
    other_params: int
    report: CompactorReport
    kernels: dict[str, tuple[int, ...]] = field(repr=False)

    def apply(self) -> nn.Module:
        """Return a copy of the network with compactors, which can be trained with ``ResRep``."""
        return deep_copied(self.network, {})

    @property
    def full(self) -> list[int]:
        """Channels of each unit before pruning."""
        return [len(unit) for unit in self.units]

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-accumulates of convolutions and linear layers for one example, as the papers count them.

        Args:
            widths: channels of each unit.
        """
        return sum(layer.macs(widths) for layer in self.layers)

    def params(self, widths: Sequence[int]) -> int:
        """Return the parameters of the collapsed network, by the channels of each unit."""
        return self.other_params + sum(layer.params(widths) for layer in self.layers)

    def select(self, chosen: Collection[int]) -> PruningGraph:
        """Return the graph in which only these units, by their index, can be pruned."""
        index = {old: new for new, old in enumerate(sorted(chosen))}
        return replace(
            self,
            units=tuple(unit for number, unit in enumerate(self.units) if number in index),
            layers=tuple(
                replace(
                    layer,
                    inputs=_selected(layer.inputs, self.full, index),
                    outputs=_selected(layer.outputs, self.full, index),
                )
                for layer in self.layers
            ),
        )

    def __str__(self) -> str:
        return str(self.report)

    def __rich__(self) -> Any:
        return self.report.__rich__()

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def _selected(count: ChannelCount, full: Sequence[int], index: dict[int, int]) -> ChannelCount:
    fixed = count.fixed + sum(many * full[unit] for unit, many in count.each if unit not in index)
    return ChannelCount(fixed, tuple((index[unit], many) for unit, many in count.each if unit in index))


def read_graph(model: nn.Module, example_input: Any, *, untrained: bool = False, seed: int = 0) -> PruningGraph:
    """Read the pruning graph of a network with compactors.

    Each unit is tried: with a random half of its channels zeroed and removed, the network must be the same function.

    Args:
        model: a network with compactors, in any mode; it isn't changed.
        example_input: a tensor, or a tuple of the forward's arguments, of the size that costs are counted for.
        untrained: try it with random values in place of biases and the like that are zero before training. A unit with
            a channel that couldn't be removed then is skipped.
        seed: of the random halves.

    Raises:
        InputError: if it has no compactors or can't be read.
    """
    network, inputs = unwrap_model(model), as_inputs(example_input)
    return read_units(network, inputs, untrained=untrained, seed=seed)[0]


def read_units(
    network: nn.Module, inputs: tuple[Any, ...], *, untrained: bool, optional: Collection[str] = (), seed: int = 0
) -> tuple[PruningGraph, nn.Module]:
    """Read the pruning graph, and return it with the collapsed network.

    Compactors at the ``optional`` paths belong to the graph only where a unit can't be pruned without them.

    Raises:
        InputError: if the network has no compactors or can't be read.
    """
    paths = [path for path, module in network.named_modules() if isinstance(module, Compactor)]
    if not paths:
        raise InputError(
            f"{type(network).__name__} has no compactors: unbranch.prune.insert_compactors inserts them"
        )  # fmt: skip
    with restoring_outside(network):
        plain = collapse(network, inputs).eval()
        reader = Reader(plain, inputs, paths)
        possible, skipped = reader.units()
        trial = _with_random_zeros(plain, seed) if untrained else plain
        units, refused = _passed(trial, inputs, possible, seed, untrained, set(optional))
    for unit, reason in refused:
        for path, _ in unit.rows:
            skipped.setdefault(path, reason)
    used = {path for unit in units for path, _ in unit.rows}
    skipped = {path: reason for path, reason in skipped.items() if path not in used}
    layers = reader.costs(units)
    weights = sum(sum(p.numel() for p in plain.get_submodule(layer.path).parameters()) for layer in layers)
    others = sum(p.numel() for p in plain.parameters()) - weights
    sites = tuple(layer_of(path) for path in paths if path in used)
    report = CompactorReport(sites, {layer_of(path): reason for path, reason in skipped.items()})
    return PruningGraph(network, inputs, units, skipped, layers, others, report, kernels_of(plain)), plain


def kernels_of(plain: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return path and shape of every kernel of a collapsed network, the compactors that weren't merged included."""
    kinds = (_ConvNd, nn.Linear)
    return {path: tuple(m.weight.shape) for path, m in plain.named_modules() if isinstance(m, kinds)}


def check_graph(graph: PruningGraph, network: nn.Module) -> None:
    """Raise InputError if a network doesn't have the compactors of a graph."""
    modules = dict(network.named_modules())
    for path, rows in (row for unit in graph.units for row in unit.rows):
        compactor = modules.get(path)
        if not isinstance(compactor, Compactor) or int(rows.max()) >= len(compactor.mask):
            raise InputError(f"`graph` must be of this network, which has no such compactor {path}")


def layer_of(compactor: str) -> str:
    """Return the path of the convolution or block that a compactor belongs to."""
    return compactor.removesuffix(".compactor").removesuffix(".post")


def _passed(
    plain: nn.Module, inputs: tuple[Any, ...], units: list[PruningUnit], seed: int, strict: bool, optional: set[str]
) -> tuple[tuple[PruningUnit, ...], list[tuple[PruningUnit, str]]]:
    """Units that pass the trial, and the others with the reason; first without the optional compactors, then with."""
    passed, refused = try_units(plain, inputs, [unit.without(optional) for unit in units], seed, strict)
    failed = {id(unit.rows[0][1]) for unit, reason in refused if reason == NOT_CONSTANT}
    needed = {path for unit in units if id(unit.rows[0][1]) in failed for path, _ in unit.depthwise} & optional
    if not needed:
        return passed, refused
    return try_units(plain, inputs, [unit.without(optional - needed) for unit in units], seed, strict)


@torch.no_grad()
def _with_random_zeros(plain: nn.Module, seed: int) -> nn.Module:
    """Return a copy with random values in place of zeros that hide something before training.

    These are biases, whatever they are called, running means, and kernels of norms that start at zero.
    """
    result = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(seed)
    named: dict[str, Tensor] = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    for name, tensor in named.items():
        last = name.rpartition(".")[2]
        values = torch.randn(tensor.shape, generator=generator).to(tensor)
        if last == "running_mean" or (tensor.dim() == 1 and last != "weight" and isinstance(tensor, nn.Parameter)):
            tensor.copy_(values)
        elif last == "weight" and tensor.dim() > 0:
            zero = ~tensor.reshape(len(tensor), -1).any(1)
            tensor[zero] = values[zero] / tensor[0].numel() ** 0.5
    return result
