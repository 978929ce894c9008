"""Read from a collapsed network which rows of compactors must be pruned together, and which layers depend on them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from unbranch.convert.report import report
from unbranch.grids import is_depthwise
from unbranch.prune.dependencies import Dependencies
from unbranch.prune.units import ChannelCount, LayerCost, PruningUnit

Row = tuple[int, int]  # number of a compactor, number of its row


@dataclass(frozen=True)
class Calls:
    """Sizes in the calls of a layer, for one example.

    Args:
        shape: of the input of the last call.
        input_points: of a channel of the input, the most of any call.
        output_points: of a channel of the output, of all calls together.
    """

    shape: tuple[int, ...]
    input_points: int
    output_points: int


class Reader:
    """Reads units from the dependency graph of a collapsed network.

    Args:
        plain: collapsed network.
        inputs: arguments of its forward.
        compactors: paths of the compactors before collapsing.
    """

    def __init__(self, plain: nn.Module, inputs: tuple[Any, ...], compactors: list[str]) -> None:
        self.compactors = compactors
        self.plain = plain
        self.calls = _calls(plain, inputs)
        self.merged_into = _merged_into(plain, compactors)
        self.dependencies = Dependencies(plain, inputs)
        layers: dict[int, Any] = {n: layer for n, layer in self.merged_into.items() if isinstance(layer, nn.Module)}
        self.number = {id(layer): number for number, layer in layers.items()}
        self.depthwise = {number for number, layer in layers.items() if is_depthwise(layer)}
        self.reasons: dict[Row, str] = {}
        self.touches: dict[Row, Counter[tuple[str, str]]] = {}
        self.joined: dict[Row, Row] = {}
        self.added: set[Row] = set()

    def units(self) -> tuple[list[PruningUnit], dict[str, str]]:
        """Return the units that the graph allows, and the reason for each compactor that it doesn't."""
        skipped: dict[str, str] = {}
        for number, layer in self.merged_into.items():
            if isinstance(layer, str):
                skipped[self.compactors[number]] = layer
            elif self._path(layer) not in self.calls:
                skipped[self.compactors[number]] = "the forward doesn't call it in evaluation"
            elif number in self.depthwise:  # read with its producer
                self.touches |= {(number, channel): Counter() for channel in range(_channels(layer)[1])}
            else:
                self._read(number, layer)
        groups: dict[Row, list[Row]] = defaultdict(list)
        for row in sorted(self.touches, key=lambda row: (row[0] in self.depthwise, row)):
            groups[self._root(row)].append(row)
        kinds: dict[Any, list[list[Row]]] = defaultdict(list)
        for rows in groups.values():
            reason = next((self.reasons[row] for row in rows if row in self.reasons), None)
            if rows[0][0] in self.depthwise:
                reason = "it is depthwise, and what it reads has no compactor"
            if reason is not None:
                for number, _ in rows:
                    skipped.setdefault(self.compactors[number], reason)
                continue
            signature = tuple(number for number, _ in rows), frozenset(self.touches[rows[0]].items())
            kinds[signature].append(rows)
        for channels in kinds.values():
            if len(channels) == 1:
                skipped.setdefault(self.compactors[channels[0][0][0]], "its channels could only be removed all at once")
        return [self._unit(channels) for channels in kinds.values() if len(channels) > 1], skipped

    def _unit(self, channels: list[list[Row]]) -> PruningUnit:
        first = channels[0]
        rows = tuple(
            (self.compactors[number], torch.tensor([rows[place][1] for rows in channels]))
            for place, (number, _) in enumerate(first)
        )
        layer = self.merged_into[first[0][0]]
        assert isinstance(layer, nn.Module)
        consumers = [path for path, role in self.touches[first[0]] if role == "consumer"]
        if any(self.calls[path].input_points > 1 for path in consumers):  # a squeeze-and-excitation reads the mean
            consumers = [path for path in consumers if self.calls[path].input_points > 1]
        own = torch.stack(
            [part for (number, _), (_, part) in zip(first, rows, strict=True) if number == first[0][0]], 1
        )
        depthwise = {self.compactors[n]: self._path(self.merged_into[n]) for n, _ in first if n in self.depthwise}
        added = any(row in self.added for row in first)
        return PruningUnit(self._path(layer), own, rows, tuple(consumers), added, tuple(depthwise.items()))

    def _path(self, layer: Any) -> str:
        found = (path for path, module in self.plain.named_modules() if module is layer)
        return str(next(found))

    def _read(self, number: int, layer: Any) -> None:
        """Join rows of a compactor that must be pruned with others, and count what depends on each."""
        full = range(layer.out_channels)
        members = self.dependencies.members(layer, full)
        alone = self.dependencies.members(layer, [0])
        whole = {(id(m.module), m.role, c) for m in members for c, r in zip(m.channels, m.roots, strict=True) if r == 0}
        if any((id(m.module), m.role, c) not in whole for m in alone for c in m.channels):
            # the layer's own channels are joined, which the graph shows only one by one
            members = [m for channel in full for m in self.dependencies.members(layer, [channel])]
        for channel in full:
            self.touches[number, channel] = Counter()
        for member in members:
            number_of = self.number.get(id(member.module))
            other = number_of if member.role == "producer" else None
            passing = number_of if member.role == "pass_through" else None
            reason = self._reason(member.role, member.module, member.path, other)
            groups = getattr(member.module, "groups", 1) if member.role == "consumer" else 1
            alike: dict[int, Row] = {}
            for channel, root in zip(member.channels, member.roots, strict=True):
                row = (number, root)
                self.touches[row][member.path, member.role] += 1
                if reason is not None:
                    self.reasons.setdefault(row, reason)
                if other is not None:
                    self._join(row, (other, channel))
                    self.added |= {row} if other != number else set()
                if passing is not None:
                    self._join(row, (passing, channel))
                if groups > 1:
                    place = channel % (member.module.in_channels // groups)
                    self._join(row, alike.setdefault(place, row))

    def _reason(self, role: str, module: Any, path: str, other: int | None) -> str | None:
        if role == "output":
            return "its channels are the network's output"
        if isinstance(module, _ConvTransposeNd):
            return f"the transposed convolution {path} reads it"
        if role == "producer" and 1 < getattr(module, "groups", 1) == module.out_channels:
            return f"{path} reads several of its channels in each group and produces one"
        if role == "producer" and other is None and not self.dependencies.scales_only(module):
            return f"the output of {path} is added to it, and that has no compactor"
        return None

    def _root(self, row: Row) -> Row:
        while (above := self.joined.get(row, row)) != row:
            row = above
        return row

    def _join(self, one: Row, other: Row) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        if first != second:
            self.joined[second] = first

    def costs(self, units: Sequence[PruningUnit]) -> tuple[LayerCost, ...]:
        """Return the costs of every layer that the forward calls."""
        numbers = {path: number for number, path in enumerate(self.compactors)}
        each: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        for index, unit in enumerate(units):
            for path, rows in unit.rows:
                if path == unit.rows[0][0]:  # the others are read with it
                    for key, many in self.touches[numbers[path], int(rows[0])].items():
                        each[key][index] += many
        found = []
        for path, call in self.calls.items():
            layer: Any = self.plain.get_submodule(path)
            depthwise = is_depthwise(layer)
            inputs, outputs = _channels(layer)
            pruned = each[path, "pass_through" if depthwise else "producer"]
            found.append(
                LayerCost(
                    path,
                    call.shape,
                    taps=math.prod(layer.kernel_size) if isinstance(layer, _ConvNd) else 1,
                    points=call.output_points,
                    inputs=_count(inputs, each[path, "consumer"], units),
                    outputs=_count(outputs, pruned, units),
                    groups=getattr(layer, "groups", 1),
                    depthwise=depthwise,
                    bias=layer.bias is not None,
                )
            )
        return tuple(found)


def _count(total: int, each: Counter[int], units: Sequence[PruningUnit]) -> ChannelCount:
    return ChannelCount(total - sum(many * len(units[unit]) for unit, many in each.items()), tuple(each.items()))


def _channels(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _merged_into(plain: nn.Module, compactors: list[str]) -> dict[int, nn.Module | str]:
    """Return for each compactor, by number, the convolution that it was merged into, or why there is none."""
    merges = report(plain, "collapse").merges
    ends = {merge.sources[-1]: merge.layer_path for merge in merges if merge.sources}
    inside = {source: merge.path for merge in merges for source in merge.sources}
    modules = dict(plain.named_modules())
    found: dict[int, nn.Module | str] = {}
    for number, path in enumerate(compactors):
        layer: Any = modules.get(ends.get(f"{path}.conv", ""))
        kept_apart = is_depthwise(layer) or getattr(layer, "groups", None) == 1
        if isinstance(layer, _ConvNd) and kept_apart and not isinstance(layer, _ConvTransposeNd):
            found[number] = layer
        elif (place := inside.get(f"{path}.conv")) is not None:
            found[number] = f"it is merged with what follows it, at {place or 'the top'}"
        else:
            found[number] = "it can't be merged with the convolution before it"
    return found


def _calls(plain: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Calls]:
    """Return the sizes of each layer that the forward calls, in order."""
    found: dict[str, Calls] = {}

    def watch(path: str, module: Any) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            x, (channels, outputs) = given[0], _channels(module)
            batch = x.shape[0] if x.dim() > 1 else 1
            shape = (1, *x.shape[1:]) if x.dim() > 1 else tuple(x.shape)
            before = found.get(path, Calls(shape, 0, 0))
            points, produced = x.numel() // (batch * channels), output.numel() // (batch * outputs)
            found[path] = Calls(shape, max(before.input_points, points), before.output_points + produced)

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
