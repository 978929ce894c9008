"""Forwards that go one way or another by the size of what they are given, such as those that pad odd sizes.

A condition on sizes has two outcomes, and each is followed. Operations that all ways run, in one order and with the
same constants, are kept; what a way runs alone is a value of which nothing is known, ``either``. What merges among the
operations that are kept merges whichever way the forward goes.

A way is run on values that no input may have, so only the harmless is read: what a way runs alone may pad, cut, resize
and rearrange, and nothing else, and no way may raise an error, leave anything behind in a module, or make a tensor.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from torch import fx

from unbranch.convert.trace.decisions import Decisions, TooManyPathsError
from unbranch.convert.trace.structures import leaves_of, structure_of

MOST = 256  # ways through one forward


@dataclass(eq=False)
class Way:
    """One way through a forward.

    Args:
        taken: the outcomes of its conditions.
        holds: whether inputs of two sizes go this way.
        nodes: its operations in order, without readings of parameters.
        args: the arguments of each, positional and by name, as they were.
        parts: for each operation the path of the module, called by the forward itself, that runs it.
        output: what the forward returns.
        tensors: paths of parameters and buffers that it reads.
        harmless: for each operation whether a way may run it alone.
    """

    taken: tuple[bool, ...]
    holds: tuple[bool, bool]
    nodes: list[fx.Node]
    args: list[Any]
    parts: list[str | None]
    output: Any
    tensors: set[str]
    harmless: list[bool]


def explore_paths(follow: Callable[[Decisions], Way]) -> list[Way]:
    """The ways through a forward, from a function that follows one.

    Raises:
        TooManyPathsError: if there are too many.
    """
    ways: list[Way] = []
    pending: list[tuple[bool, ...]] = [()]
    for _ in range(MOST):
        decisions = Decisions(pending.pop())
        ways.append(follow(decisions))
        fresh = range(len(decisions.given), len(decisions.taken))
        pending += [(*decisions.taken[:j], not decisions.taken[j]) for j in fresh]
        if not pending:
            return ways
    raise TooManyPathsError(f"more than {MOST} ways lead through its forward")


@dataclass(eq=False)
class Shared:
    """What several ways have in common, in terms of the first of them.

    Args:
        kept: positions of its operations that all ways run.
        partners: for each way, its positions by those of the first.
    """

    ways: list[Way]
    kept: set[int] = field(init=False)
    partners: list[dict[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        first, *others = self.ways
        self.partners = [{j: j for j in range(len(first.nodes))}, *(_matched(first, way) for way in others)]
        self.kept = set.intersection(*(set(p) for p in self.partners))
        self._positions = [{n: j for j, n in enumerate(way.nodes)} for way in self.ways]

    def same(self, values: tuple[Any, ...]) -> bool:
        """Whether a value, given once for each way, is one that all ways have."""
        first, *others = values
        if not isinstance(first, fx.Node):
            return all(not isinstance(v, fx.Node) and type(v) is type(first) and v == first for v in others)
        if first.op == "get_attr":
            return all(isinstance(v, fx.Node) and v.op == "get_attr" and v.target == first.target for v in others)
        position = self._positions[0].get(first)
        if position is None:  # it was there before the ways parted
            return all(v is first for v in others)
        partners = [partner.get(position, -1) for partner in self.partners[1:]]
        places = [
            at.get(v, -2) if isinstance(v, fx.Node) else -2 for at, v in zip(self._positions[1:], others, strict=True)
        ]
        return position in self.kept and partners == places

    def sources(self, values: tuple[Any, ...]) -> list[fx.Node]:
        """Values of the first way, kept or older than it, that a value given once for each way is made of."""
        found: dict[fx.Node, None] = {}
        for way, partner, positions, value in zip(self.ways, self.partners, self._positions, values, strict=True):
            back = {b: a for a, b in partner.items() if a in self.kept}
            seen: set[fx.Node] = set()
            stack = [value] if isinstance(value, fx.Node) else []
            while stack:
                node = stack.pop()
                if node in seen or node.op == "get_attr":
                    continue
                seen.add(node)
                position = positions.get(node)
                if position is None:
                    found[node] = None
                elif position in back:
                    found[self.ways[0].nodes[back[position]]] = None
                else:
                    fx.node.map_arg(way.args[position], stack.append)
        return list(found)

    def operands(self, position: int) -> Iterator[tuple[Any, ...]]:
        """The operands of an operation that is kept, each given once for each way."""
        pairs = zip(self.ways, self.partners, strict=True)
        return zip(*(leaves_of(way.args[partner[position]]) for way, partner in pairs), strict=True)

    def outputs(self) -> Iterator[tuple[Any, ...]] | None:
        """What the ways return, each value once for each way; None if it hasn't the same structure."""
        if len({structure_of(way.output) for way in self.ways}) > 1:
            return None
        return zip(*(leaves_of(way.output) for way in self.ways), strict=True)

    def any_output(self) -> list[tuple[Any, ...]]:
        """All that one way or another returns; None for the ways that a value isn't of."""
        found: list[tuple[Any, ...]] = []
        for k, way in enumerate(self.ways):
            back = {b: a for a, b in self.partners[k].items() if a in self.kept}
            for value in leaves_of(way.output):
                if not isinstance(value, fx.Node):
                    continue
                position = self._positions[k].get(value)
                if position is None or position in back:
                    everywhere = value if position is None else self.ways[0].nodes[back[position]]
                    found.append((everywhere, *(self._partner(everywhere, j) for j in range(1, len(self.ways)))))
                else:
                    found.append(tuple(value if j == k else None for j in range(len(self.ways))))
        return found

    def _partner(self, node: fx.Node, k: int) -> fx.Node:
        position = self._positions[0].get(node)
        return node if position is None else self.ways[k].nodes[self.partners[k][position]]

    def harmless(self) -> bool:
        """Whether what ways run alone only pads, cuts, resizes and rearranges."""
        for way, partner in zip(self.ways, self.partners, strict=True):
            shared = {partner[j] for j in self.kept}
            if not all(fine for j, fine in enumerate(way.harmless) if j not in shared):
                return False
        return True

    def parts(self) -> set[str]:
        """Paths of modules that are called on some ways alone."""
        found: set[str | None] = set()
        for way, partner in zip(self.ways, self.partners, strict=True):
            shared = {partner[j] for j in self.kept}
            found |= {part for j, part in enumerate(way.parts) if j not in shared}
        return {part for part in found if part is not None}

    def tensors(self) -> set[str]:
        """Paths of parameters and buffers that are read on some ways alone."""
        read = [way.tensors for way in self.ways]
        everywhere = functools.reduce(operator.and_, read)
        found = set().union(*read) - everywhere
        values: list[Any] = []
        for way, partner in zip(self.ways, self.partners, strict=True):
            shared = {partner[j] for j in self.kept}
            values += [v for j, args in enumerate(way.args) if j not in shared for v in leaves_of(args)]
        pairs = [v for j in self.kept for v in self.operands(j)]
        values += [v for some in pairs if not self.same(some) for v in some]
        return found | {str(v.target) for v in values if isinstance(v, fx.Node) and v.op == "get_attr"}

    def outcome(self) -> Any:
        """All that the ways together say of the first one."""
        operands = tuple(
            (j, tuple(None if self.same(v) else tuple(map(str, self.sources(v))) for v in self.operands(j)))
            for j in sorted(self.kept)
        )
        outputs = self.outputs()
        found = None if outputs is None else tuple(self.same(v) for v in outputs)
        return operands, found, self.parts(), self.tensors(), self.harmless()


def distinct_paths(ways: list[Way]) -> list[Way]:
    """Those ways through a forward without which less would differ, and those that known inputs take."""
    if len(ways) < 3:
        return ways
    chosen = [way for way in ways if any(way.holds)] or ways[:1]
    outcome = Shared(chosen).outcome()
    for way in ways:
        if way in chosen:
            continue
        more = Shared([*chosen, way]).outcome()
        if more != outcome:
            chosen.append(way)
            outcome = more
    return chosen if outcome == Shared(ways).outcome() else ways


def _matched(first: Way, other: Way) -> dict[int, int]:
    """Operations that two ways have in common, in order."""
    a, b = ([_kind(n, args) for n, args in zip(w.nodes, w.args, strict=True)] for w in (first, other))
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return {m.a + j: m.b + j for m in blocks for j in range(m.size)}


def _kind(node: fx.Node, args: Any) -> tuple[Any, ...]:
    """An operation without its operands; what it reads of parameters counts."""

    def without(value: Any) -> Any:
        return _Operand(value) if isinstance(value, fx.Node) else value

    return node.op, node.target, repr(fx.node.map_aggregate(args, without))


@dataclass(frozen=True, repr=False)
class _Operand:
    """How an operand is written where operations are compared."""

    node: fx.Node

    def __repr__(self) -> str:
        return f"%{self.node.target}" if self.node.op == "get_attr" else "%"
