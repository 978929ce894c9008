"""Control-flow paths of a forward that depend on sizes, such as padding of odd sizes, and what they have in common.

A condition on sizes has two outcomes, and both are explored. Operations that all paths run, in the same order and with
the same constants, are kept; a value that differs between paths becomes ``either``, about which nothing is known but
its shape. A merge among the kept operations is valid on every path.

Paths are explored with conditions that may hold for no input, so only harmless code is accepted: operations on a single
path may pad, cut, resize and rearrange; no path may raise an exception, change a module or create a tensor.
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

MAX_PATHS = 256  # paths through one forward


@dataclass(eq=False)
class ControlPath:
    """One control-flow path through a forward.

    Args:
        taken: the outcomes of its conditions.
        holds: whether inputs of the two sizes take this path.
        nodes: its operations in order, without reads of parameters.
        args: the recorded arguments of each, positional and by name.
        parts: for each operation, the path of the module called directly by the forward that runs it.
        output: the return value.
        tensors: paths of parameters and buffers that it reads.
        harmless: for each operation, whether it may occur on one path only.
    """

    taken: tuple[bool, ...]
    holds: tuple[bool, bool]
    nodes: list[fx.Node]
    args: list[Any]
    parts: list[str | None]
    output: Any
    tensors: set[str]
    harmless: list[bool]


def explore_paths(follow: Callable[[Decisions], ControlPath]) -> list[ControlPath]:
    """Return all paths through a forward.

    Args:
        follow: traces one path.

    Raises:
        TooManyPathsError: if there are too many.
    """
    paths: list[ControlPath] = []
    pending: list[tuple[bool, ...]] = [()]
    for _ in range(MAX_PATHS):
        decisions = Decisions(pending.pop())
        paths.append(follow(decisions))
        fresh = range(len(decisions.given), len(decisions.taken))
        pending += [(*decisions.taken[:j], not decisions.taken[j]) for j in fresh]
        if not pending:
            return paths
    raise TooManyPathsError(f"its forward has more than {MAX_PATHS} control-flow paths")


@dataclass(eq=False)
class Shared:
    """What several paths have in common, in terms of the first one.

    Args:
        kept: positions of its operations that all paths run.
        partners: for each path, its positions by those of the first.
    """

    paths: list[ControlPath]
    kept: set[int] = field(init=False)
    partners: list[dict[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        first, *others = self.paths
        self.partners = [{j: j for j in range(len(first.nodes))}, *(_matched(first, path) for path in others)]
        self.kept = set.intersection(*(set(p) for p in self.partners))
        self._positions = [{n: j for j, n in enumerate(path.nodes)} for path in self.paths]

    def same(self, values: tuple[Any, ...]) -> bool:
        """Whether a value, given once for each path, is the same on all of them."""
        first, *others = values
        if not isinstance(first, fx.Node):
            return all(not isinstance(v, fx.Node) and type(v) is type(first) and v == first for v in others)
        if first.op == "get_attr":
            return all(isinstance(v, fx.Node) and v.op == "get_attr" and v.target == first.target for v in others)
        position = self._positions[0].get(first)
        if position is None:  # it existed before the paths diverged
            return all(v is first for v in others)
        partners = [partner.get(position, -1) for partner in self.partners[1:]]
        places = [
            at.get(v, -2) if isinstance(v, fx.Node) else -2 for at, v in zip(self._positions[1:], others, strict=True)
        ]
        return position in self.kept and partners == places

    def sources(self, values: tuple[Any, ...]) -> list[fx.Node]:
        """Return the values of the first path, kept or older, that a value, given for each path, depends on."""
        found: dict[fx.Node, None] = {}
        for path, partner, positions, value in zip(self.paths, self.partners, self._positions, values, strict=True):
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
                    found[self.paths[0].nodes[back[position]]] = None
                else:
                    fx.node.map_arg(path.args[position], stack.append)
        return list(found)

    def operands(self, position: int) -> Iterator[tuple[Any, ...]]:
        """Yield the operands of a kept operation, each once for each path."""
        pairs = zip(self.paths, self.partners, strict=True)
        return zip(*(leaves_of(path.args[partner[position]]) for path, partner in pairs), strict=True)

    def outputs(self) -> Iterator[tuple[Any, ...]] | None:
        """Yield the leaves of the outputs, each once for each path; None if their structures differ."""
        if len({structure_of(path.output) for path in self.paths}) > 1:
            return None
        return zip(*(leaves_of(path.output) for path in self.paths), strict=True)

    def any_output(self) -> list[tuple[Any, ...]]:
        """Return all leaves that some path returns, with None for the paths that don't have them."""
        found: list[tuple[Any, ...]] = []
        for k, path in enumerate(self.paths):
            back = {b: a for a, b in self.partners[k].items() if a in self.kept}
            for value in leaves_of(path.output):
                if not isinstance(value, fx.Node):
                    continue
                position = self._positions[k].get(value)
                if position is None or position in back:
                    everywhere = value if position is None else self.paths[0].nodes[back[position]]
                    found.append((everywhere, *(self._partner(everywhere, j) for j in range(1, len(self.paths)))))
                else:
                    found.append(tuple(value if j == k else None for j in range(len(self.paths))))
        return found

    def _partner(self, node: fx.Node, k: int) -> fx.Node:
        position = self._positions[0].get(node)
        return node if position is None else self.paths[k].nodes[self.partners[k][position]]

    def harmless(self) -> bool:
        """Whether operations on single paths only pad, cut, resize and rearrange."""
        for path, partner in zip(self.paths, self.partners, strict=True):
            shared = {partner[j] for j in self.kept}
            if not all(fine for j, fine in enumerate(path.harmless) if j not in shared):
                return False
        return True

    def parts(self) -> set[str]:
        """Return the paths of modules that only some control-flow paths call."""
        found: set[str | None] = set()
        for path, partner in zip(self.paths, self.partners, strict=True):
            shared = {partner[j] for j in self.kept}
            found |= {part for j, part in enumerate(path.parts) if j not in shared}
        return {part for part in found if part is not None}

    def tensors(self) -> set[str]:
        """Return the paths of parameters and buffers that only some control-flow paths read."""
        read = [path.tensors for path in self.paths]
        everywhere = functools.reduce(operator.and_, read)
        found = set().union(*read) - everywhere
        values: list[Any] = []
        for path, partner in zip(self.paths, self.partners, strict=True):
            shared = {partner[j] for j in self.kept}
            values += [v for j, args in enumerate(path.args) if j not in shared for v in leaves_of(args)]
        pairs = [v for j in self.kept for v in self.operands(j)]
        values += [v for some in pairs if not self.same(some) for v in some]
        return found | {str(v.target) for v in values if isinstance(v, fx.Node) and v.op == "get_attr"}

    def outcome(self) -> Any:
        """Return everything that the paths imply about the first one, in a form to compare."""
        operands = tuple(
            (j, tuple(None if self.same(v) else tuple(map(str, self.sources(v))) for v in self.operands(j)))
            for j in sorted(self.kept)
        )
        outputs = self.outputs()
        found = None if outputs is None else tuple(self.same(v) for v in outputs)
        return operands, found, self.parts(), self.tensors(), self.harmless()


def distinct_paths(paths: list[ControlPath]) -> list[ControlPath]:
    """Return a subset of the paths with the same outcome as all, including those that known inputs take."""
    if len(paths) < 3:
        return paths
    chosen = [path for path in paths if any(path.holds)] or paths[:1]
    outcome = Shared(chosen).outcome()
    for path in paths:
        if path in chosen:
            continue
        more = Shared([*chosen, path]).outcome()
        if more != outcome:
            chosen.append(path)
            outcome = more
    return chosen if outcome == Shared(paths).outcome() else paths


def _matched(first: ControlPath, other: ControlPath) -> dict[int, int]:
    """Return the operations that two paths have in common, in order."""
    a, b = ([_kind(n, args) for n, args in zip(w.nodes, w.args, strict=True)] for w in (first, other))
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return {m.a + j: m.b + j for m in blocks for j in range(m.size)}


def _kind(node: fx.Node, args: Any) -> tuple[Any, ...]:
    """Return an operation without its operands; reads of parameters count."""

    def without(value: Any) -> Any:
        return _Operand(value) if isinstance(value, fx.Node) else value

    return node.op, node.target, repr(fx.node.map_aggregate(args, without))


@dataclass(frozen=True, repr=False)
class _Operand:
    """How an operand is written to compare operations."""

    node: fx.Node

    def __repr__(self) -> str:
        return f"%{self.node.target}" if self.node.op == "get_attr" else "%"
