"""What can be pruned: which rows of compactors go together, who reads them, and what the network costs by their number.

Everything is read off the collapsed network, in which each compactor has become rows of a convolution.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from unbranch.blocks import Compactor
from unbranch.collapse import Report, collapse, verify
from unbranch.errors import InputError, UnbranchError
from unbranch.prune.dependencies import Dependencies, is_depthwise
from unbranch.prune.removal import random_like, remove_channels, silence

STAYS = "what its channels become when they are zero isn't constant, or not zero where a layer pads with zeros"
Row = tuple[int, int]  # number of a compactor, number of its row


@dataclass(frozen=True, eq=False)
class Unit:
    """Channels that are pruned one by one; each may be several rows, which are added or must stay alike.

    Args:
        layer: path in the collapsed network of a convolution that has them, and ``channels`` ``(C, k)`` which of its
            channels each of them is: k is 1 but for one that feeds k groups of a convolution, which stay alike.
        rows: compactors by their paths, and which rows ``(C,)`` of theirs belong to the channels; one that feeds k
            groups occurs k times.
        readers: paths of the layers that mix them, those apart that read a mean of them beside others.
        added: whether other convolutions give to the same channels.
    """

    layer: str
    channels: Tensor
    rows: tuple[tuple[str, Tensor], ...]
    readers: tuple[str, ...]
    added: bool

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def internal(self) -> bool:
        """Whether one layer gives these channels and one reads them, as ResRep prunes them."""
        return len({path for path, _ in self.rows}) == 1 and not self.added and len(self.readers) == 1


@dataclass(frozen=True)
class Count:
    """Channels of a layer: a number of them, and so many for each channel of a unit."""

    fixed: int
    each: tuple[tuple[int, int], ...] = ()

    def at(self, widths: Sequence[int]) -> int:
        return self.fixed + sum(many * widths[unit] for unit, many in self.each)


@dataclass(frozen=True)
class LayerCost:
    """A convolution or linear layer as its multiply-accumulates and parameters depend on the units.

    Args:
        taps: of the kernel.
        points: of its output, of one example.
    """

    path: str
    taps: int
    points: int
    reads: Count
    gives: Count
    groups: int
    depthwise: bool
    bias: bool

    def weights(self, widths: Sequence[int]) -> int:
        gives = self.gives.at(widths)
        return self.taps * (gives if self.depthwise else gives * self.reads.at(widths) // self.groups)

    def macs(self, widths: Sequence[int]) -> int:
        return self.points * self.weights(widths)

    def params(self, widths: Sequence[int]) -> int:
        return self.weights(widths) + (self.gives.at(widths) if self.bias else 0)


@dataclass(frozen=True, eq=False)
class Structure:
    """A network with compactors as pruning sees it.

    Args:
        plain: the collapsed network, in evaluation.
        inputs: arguments of the forward on which it was read.
        units: what can be pruned, in the order in which the network computes them.
        left: compactors of which nothing can be pruned, with the reason.
        layers: its convolutions and linear layers.
        other_params: numbers in everything else.
    """

    plain: nn.Module
    inputs: tuple[Any, ...]
    units: tuple[Unit, ...]
    left: dict[str, str]
    layers: tuple[LayerCost, ...]
    other_params: int

    @property
    def full(self) -> list[int]:
        """Widths of all units before pruning."""
        return [len(unit) for unit in self.units]

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates of convolutions and linear layers for one example, as the papers count them."""
        return sum(layer.macs(widths) for layer in self.layers)

    def params(self, widths: Sequence[int]) -> int:
        """Parameters of the collapsed network."""
        return self.other_params + sum(layer.params(widths) for layer in self.layers)


def structure_of(network: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> Structure:
    """Read a network with compactors; it isn't changed.

    Each unit has been tried: with a random half of its channels zero and taken out, the network was the same function.

    Raises:
        InputError: if it has no compactor or can't be read.
    """
    paths = [path for path, module in network.named_modules() if isinstance(module, Compactor)]
    if not paths:
        raise InputError(f"{type(network).__name__} has no compactors: unbranch.prune.attach puts them in")
    plain = collapse(network, inputs).eval()
    reader = _Reader(plain, inputs, paths)
    possible, left = reader.units()
    units, refused = _tried(plain, inputs, possible, seed)
    for unit, reason in refused:
        for path, _ in unit.rows:
            left.setdefault(path, reason)
    pruned = {path for unit in units for path, _ in unit.rows}
    left = {path: reason for path, reason in left.items() if path not in pruned}
    layers = reader.costs(units)
    counted = {layer.path for layer in layers}
    weights = sum(sum(p.numel() for p in plain.get_submodule(path).parameters()) for path in counted)
    others = sum(p.numel() for p in plain.parameters()) - weights
    return Structure(plain, inputs, units, left, layers, others)


class _Reader:
    """Reads units off the dependency graph of a collapsed network."""

    def __init__(self, plain: nn.Module, inputs: tuple[Any, ...], compactors: list[str]) -> None:
        self.compactors = compactors
        self.plain = plain
        self.sizes = _sizes(plain, inputs)
        self.places = _places(plain, compactors)
        self.dependencies = Dependencies(plain, inputs)
        self.number = {id(layer): number for number, layer in self.places.items() if isinstance(layer, nn.Module)}
        self.reasons: dict[Row, str] = {}
        self.touches: dict[Row, Counter[tuple[str, str]]] = {}
        self.joined: dict[Row, Row] = {}
        self.added: set[Row] = set()

    def units(self) -> tuple[list[Unit], dict[str, str]]:
        """What could be pruned by the graph, and compactors that can't be."""
        left: dict[str, str] = {}
        for number, layer in self.places.items():
            if isinstance(layer, str):
                left[self.compactors[number]] = layer
            else:
                self._read(number, layer)
        groups: dict[Row, list[Row]] = defaultdict(list)
        for row in sorted(self.touches):
            groups[self._root(row)].append(row)
        kinds: dict[Any, list[list[Row]]] = defaultdict(list)
        for rows in groups.values():
            reason = next((self.reasons[row] for row in rows if row in self.reasons), None)
            if reason is not None:
                for number, _ in rows:
                    left.setdefault(self.compactors[number], reason)
                continue
            signature = tuple(number for number, _ in rows), frozenset(self.touches[rows[0]].items())
            kinds[signature].append(rows)
        for channels in kinds.values():
            if len(channels) == 1:
                left.setdefault(self.compactors[channels[0][0][0]], "its channels could only go all at once")
        return [self._unit(channels) for channels in kinds.values() if len(channels) > 1], left

    def _unit(self, channels: list[list[Row]]) -> Unit:
        first = channels[0]
        rows = tuple(
            (self.compactors[number], torch.tensor([rows[place][1] for rows in channels]))
            for place, (number, _) in enumerate(first)
        )
        layer = self.places[first[0][0]]
        assert isinstance(layer, nn.Module)
        readers = [path for path, role in self.touches[first[0]] if role == "reads"]
        if any(self.sizes[path][0] > 1 for path in readers):  # a squeeze-and-excitation reads the mean
            readers = [path for path in readers if self.sizes[path][0] > 1]
        path = next(path for path, module in self.plain.named_modules() if module is layer)
        own = torch.stack(
            [part for (number, _), (_, part) in zip(first, rows, strict=True) if number == first[0][0]], 1
        )
        return Unit(path, own, rows, tuple(readers), any(row in self.added for row in first))

    def _read(self, number: int, layer: Any) -> None:
        """Join rows of a compactor that go together with others, and note who has to do with each."""
        full = range(layer.out_channels)
        members = self.dependencies.members(layer, full)
        alone = self.dependencies.members(layer, [0])
        whole = {(id(m.module), m.role, c) for m in members for c, r in zip(m.channels, m.roots, strict=True) if r == 0}
        if any((id(m.module), m.role, c) not in whole for m in alone for c in m.channels):
            # the layer's own channels are joined, which the graph tells only one by one
            members = [m for channel in full for m in self.dependencies.members(layer, [channel])]
        for channel in full:
            self.touches[number, channel] = Counter()
        for member in members:
            other = self.number.get(id(member.module)) if member.role == "gives" else None
            reason = self._reason(member.role, member.module, member.path, other)
            groups = getattr(member.module, "groups", 1) if member.role == "reads" else 1
            alike: dict[int, Row] = {}
            for channel, root in zip(member.channels, member.roots, strict=True):
                row = (number, root)
                self.touches[row][member.path, member.role] += 1
                if reason is not None:
                    self.reasons.setdefault(row, reason)
                if other is not None:
                    self._join(row, (other, channel))
                    self.added |= {row} if other != number else set()
                if groups > 1:
                    place = channel % (member.module.in_channels // groups)
                    self._join(row, alike.setdefault(place, row))

    def _reason(self, role: str, module: Any, path: str, other: int | None) -> str | None:
        if role == "output":
            return "its channels are the network's output"
        if isinstance(module, _ConvTransposeNd):
            return f"the transposed convolution {path} reads it"
        if role == "gives" and other is None and not self.dependencies.scales_only(module):
            return f"what {path} gives is added to it, and that has no compactor"
        return None

    def _root(self, row: Row) -> Row:
        while (above := self.joined.get(row, row)) != row:
            row = above
        return row

    def _join(self, one: Row, other: Row) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        if first != second:
            self.joined[second] = first

    def costs(self, units: Sequence[Unit]) -> tuple[LayerCost, ...]:
        """Every layer that the forward calls."""
        numbers = {path: number for number, path in enumerate(self.compactors)}
        each: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        for index, unit in enumerate(units):
            for path, rows in unit.rows:
                if path == unit.rows[0][0]:  # the others are told with it
                    for key, many in self.touches[numbers[path], int(rows[0])].items():
                        each[key][index] += many
        found = []
        for path, (_, points) in self.sizes.items():
            layer: Any = self.plain.get_submodule(path)
            depthwise = is_depthwise(layer)
            gives = each[path, "passes" if depthwise else "gives"]
            reads, (reading, giving) = each[path, "reads"], _channels(layer)
            found.append(
                LayerCost(
                    path,
                    taps=math.prod(layer.kernel_size) if isinstance(layer, _ConvNd) else 1,
                    points=points,
                    reads=_count(reading, reads, units),
                    gives=_count(giving, gives, units),
                    groups=getattr(layer, "groups", 1),
                    depthwise=depthwise,
                    bias=layer.bias is not None,
                )
            )
        return tuple(found)


def _count(total: int, each: Counter[int], units: Sequence[Unit]) -> Count:
    return Count(total - sum(many * len(units[unit]) for unit, many in each.items()), tuple(each.items()))


def _channels(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _places(plain: nn.Module, compactors: list[str]) -> dict[int, nn.Module | str]:
    """For each compactor, by number, the convolution whose rows its rows became, or why there is none."""
    report = plain.collapse_report
    assert isinstance(report, Report)
    ends = {merge.sources[-1]: merge.layer_path for merge in report.merges if merge.sources}
    inside = {source: merge.path for merge in report.merges for source in merge.sources}
    modules = dict(plain.named_modules())
    found: dict[int, nn.Module | str] = {}
    for number, path in enumerate(compactors):
        layer: Any = modules.get(ends.get(f"{path}.conv", ""))
        if isinstance(layer, _ConvNd) and layer.groups == 1 and not isinstance(layer, _ConvTransposeNd):
            found[number] = layer
        elif (place := inside.get(f"{path}.conv")) is not None:
            found[number] = f"it is merged with what follows it, at {place or 'the top'}"
        else:
            found[number] = "it can't be merged with the convolution before it"
    return found


def _sizes(plain: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[int, int]]:
    """For each layer that the forward calls, in order, the points of a channel that it reads, and that it gives."""
    found: dict[str, tuple[int, int]] = {}

    def watch(path: str, module: Any) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            x, (reads, gives) = given[0], _channels(module)
            batch = x.shape[0] if x.dim() > 1 else 1
            seen = (x.numel() // (batch * reads), output.numel() // (batch * gives))
            before = found.get(path, (0, 0))
            found[path] = (max(before[0], seen[0]), before[1] + seen[1])  # of all its calls

        return module.register_forward_hook(hook)

    layers = [(path, m) for path, m in plain.named_modules() if isinstance(m, _ConvNd | nn.Linear)]
    handles = [watch(path, module) for path, module in layers]
    try:
        with torch.no_grad():
            plain(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tried(
    plain: nn.Module, inputs: tuple[Any, ...], units: list[Unit], seed: int
) -> tuple[tuple[Unit, ...], list[tuple[Unit, str]]]:
    """Units of which half the channels can be taken out, all units at once, and others with the reason."""
    generator = torch.Generator().manual_seed(seed)
    halves = {id(u): torch.randperm(len(u), generator=generator)[: max(1, len(u) // 2)].sort().values for u in units}
    refused: list[tuple[Unit, str]] = []

    def sift(some: list[Unit]) -> None:
        chosen = [(u.layer, u.channels[halves[id(u)]].tolist()) for u in some]
        reason, stayed = _without(plain, inputs, chosen) if some else (None, {})
        if reason is None:
            for unit, (path, parts) in zip(some, chosen, strict=True):
                if 2 * sum(part[0] in stayed.get(path, ()) for part in parts) > len(parts):
                    refused.append((unit, STAYS))
        elif len(some) > 1:
            sift(some[: len(some) // 2])
            sift(some[len(some) // 2 :])
        else:
            refused.append((some[0], reason))

    sift(units)
    bad = {id(unit) for unit, _ in refused}
    return tuple(u for u in units if id(u) not in bad), refused


@torch.no_grad()
def _without(
    plain: nn.Module, inputs: tuple[Any, ...], chosen: list[tuple[str, list[list[int]]]]
) -> tuple[str | None, dict[str, list[int]]]:
    """Why channels, set to zero, can't be taken out of a copy, None if they can; and those that had to stay."""
    narrow, zeroed = copy.deepcopy(plain), copy.deepcopy(plain)
    try:
        dependencies = Dependencies(narrow, inputs)
        for path, channels in chosen:
            for member in dependencies.members(narrow.get_submodule(path), [c for part in channels for c in part]):
                if member.role == "gives" and not dependencies.scales_only(member.module):
                    silence(zeroed.get_submodule(member.path), member.channels)
        stayed = remove_channels(dependencies, inputs, chosen)
        check = max((verify(zeroed, narrow, x) for x in (inputs, random_like(inputs, seed=3))), key=lambda c: c.max_rel)
    except (UnbranchError, RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        return f"its channels can't be taken out: {error}", {}
    reason = None if check.ok else f"without some of its channels the network differs by {check.max_rel:.0e}"
    return reason, stayed
