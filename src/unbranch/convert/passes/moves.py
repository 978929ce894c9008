"""Move batch norms past the operations between them and a kernel, so that the kernel can absorb them.

A norm scales and shifts each channel. It can therefore be applied to each part before a concatenation or split instead
of after it, and after an average over the image instead of before it. On its own that gains nothing; it is done if a
convolution or linear layer is then next to every piece, and undone if one of the pieces can't be merged.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unbranch.convert.passes.neighbours import Neighbours
from unbranch.convert.passes.norms import Norm, is_norm
from unbranch.convert.passes.rearrange import rearranged, rearranges, shapes_of, source_of
from unbranch.convert.trace.trace import MOVED, Call, Trace, call_of
from unbranch.errors import NotAffineError
from unbranch.graph.operations import CONCATENATIONS, SPLITS, named_arguments
from unbranch.rules.arrangement import Arrangement
from unbranch.rules.pieces import scaled_and_shifted


@dataclass(frozen=True, eq=False)
class Move:
    """Norms, by their calls, and the operations that replace them elsewhere."""

    calls: tuple[Call, ...]
    pieces: tuple[fx.Node, ...]


def move_norms(trace: Trace, unmoved: set[str], hooked: Collection[str] = ()) -> list[Move]:
    """Move the norms of a trace next to kernels that can absorb them.

    Args:
        trace: is changed.
        unmoved: paths of norms that must stay.
        hooked: paths of modules whose inputs and outputs are observed.
    """
    moves: list[Move] = []
    gone: set[fx.Node] = set()
    watched = trace.seen_by(hooked)
    for node in list(trace.graph.nodes):
        if node in gone or not is_norm(trace, node) or str(node.target) in unmoved:
            continue
        source = node.all_input_nodes[0]
        mover = _Mover(trace, unmoved, len(moves), gone, watched)
        move = None
        if source.target in CONCATENATIONS:
            norm = Norm.at(trace, node)
            move = None if norm is None else mover.before_cat(norm, source)
        elif source.target is operator.getitem and source.all_input_nodes[0].target in SPLITS:
            move = mover.before_split(source.all_input_nodes[0])
        elif (near := mover.near.is_rearranged(source)) or (
            mover.near.is_averaged(node) and not mover.near.takes(source)
        ):
            norm = Norm.at(trace, node)
            if norm is not None:
                move = mover.before_axes(norm) if near else None
                move = move or (None if mover.near.takes(source) else mover.behind_mean(norm))
        if move is not None:
            moves.append(move)
    trace.moved = {piece: move.calls for move in moves for piece in move.pieces}
    if moves:
        trace.refresh()
    return moves


@dataclass(frozen=True, eq=False)
class _Mover:
    trace: Trace
    unmoved: set[str]
    number: int
    gone: set[fx.Node]
    watched: set[fx.Node]

    @property
    def near(self) -> Neighbours:
        """Queries about the trace."""
        return Neighbours(self.trace)

    def before_cat(self, norm: Norm, cat: fx.Node) -> Move | None:
        """Move a norm before a concatenation of channels, part by part."""
        given = named_arguments(cat, "tensors", "dim")
        parts: Any = given.get("tensors")
        rank = self.near.shape_of(cat)
        if not isinstance(parts, list | tuple) or rank is None or given.get("dim", 0) not in (1, 1 - len(rank)):
            return None
        if self.watched & {cat, norm.node, *parts}:
            return None
        if self.trace.readers(cat) != {norm.node} or not all(
            isinstance(p, fx.Node) and self.near.takes(p) for p in parts
        ):
            return None
        shapes = [self.near.shape_of(part) for part in parts]
        if None in shapes or len(set(parts)) < len(parts):
            return None
        widths = [shape[1] for shape in shapes if shape is not None]
        ends = [sum(widths[: j + 1]) for j in range(len(widths))]
        pieces = [
            self._piece(part, norm.scale[e - w : e], norm.shift[e - w : e], j)
            for j, (part, w, e) in enumerate(zip(parts, widths, ends, strict=True))
        ]
        for part, piece in zip(parts, pieces, strict=True):
            cat.replace_input_with(part, piece)
        return Move((self._removed(norm.node, cat),), tuple(pieces))

    def before_split(self, split: fx.Node) -> Move | None:
        """Move the norms of the parts before a split of channels, as one."""
        source = split.all_input_nodes[0]
        shape = self.near.shape_of(source)
        arguments = named_arguments(split, "input", "sizes", "dim")
        if shape is None or arguments.get("dim", 0) not in (1, 1 - len(shape)) or not self.near.takes(source):
            return None
        known = self.trace.known(split)
        parts = list(split.users)
        if self.watched & {source, split, *parts, *(reader for part in parts for reader in part.users)}:
            return None
        if known is None or not all(p.target is operator.getitem and isinstance(p.args[1], int) for p in parts):
            return None
        widths = [v.shape[1] for v in known[0]]
        scale, shift = (torch.full((shape[1],), v, dtype=torch.float64) for v in (1.0, 0.0))
        norms = []
        for part in parts:
            j = range(len(widths))[part.args[1]]  # type: ignore[index]
            readers = self.trace.readers(part)
            reader = next(iter(readers)) if len(readers) == 1 else None
            norm = None
            if reader is not None and is_norm(self.trace, reader) and str(reader.target) not in self.unmoved:
                norm = Norm.at(self.trace, reader)
            if norm is not None:
                scale, shift = scale.to(norm.scale.device), shift.to(norm.scale.device)
                interval = slice(sum(widths[:j]), sum(widths[: j + 1]))
                scale[interval], shift[interval] = norm.scale, norm.shift
                norms.append((norm, part))
        if not norms or len({p.args[1] for p in parts}) < len(parts):
            return None
        piece = self._piece(source, scale, shift, 0)
        split.replace_input_with(source, piece)
        return Move(tuple(self._removed(norm.node, part) for norm, part in norms), (piece,))

    def before_axes(self, norm: Norm) -> Move | None:
        """Move a norm before reshapes and transpositions, to a value with channels on axis 1 or on the last axis."""
        between: list[fx.Node] = []
        node = norm.node.all_input_nodes[0]
        while len(self.trace.readers(node)) == 1 and (rearranges(self.trace, node) or self.near.passes(node)):
            between.insert(0, node)
            node = source_of(node)
        shapes = shapes_of(self.trace, node)
        if not any(rearranges(self.trace, n) for n in between) or shapes is None or not self.near.takes(node):
            return None
        if self.watched & {node, norm.node, *between}:
            return None
        try:
            arrangement = Arrangement.of(shapes)
            for reader in between:
                if rearranges(self.trace, reader):
                    arrangement = rearranged(self.trace, reader, arrangement)
            axis = arrangement.position_of(1)
        except NotAffineError:
            return None
        if axis is None or axis not in (1, len(shapes[0]) - 1) or any(s[axis] != len(norm.scale) for s in shapes):
            return None
        piece = self._piece(node, norm.scale, norm.shift, 0, axis)
        between[0].replace_input_with(node, piece)
        return Move((self._removed(norm.node, norm.node.all_input_nodes[0]),), (piece,))

    def behind_mean(self, norm: Norm) -> Move | None:
        """Move a norm after an average over the image, before linear layers or 1×1 convolutions."""
        averaged, node = False, norm.node
        while node not in self.watched:
            readers = sorted(self.trace.readers(node))
            if readers and all(self.near.is_kernel(r) and r.all_input_nodes[0] is node for r in readers):
                break
            if len(readers) != 1 or not self.near.keeps_channels(readers[0], node):
                return None
            averaged = averaged or self.near.is_mean(readers[0])
            node = readers[0]
        else:
            return None
        if not averaged or node is norm.node:
            return None
        pieces = tuple(self._piece(node, norm.scale, norm.shift, j) for j in range(len(readers)))
        for reader, piece in zip(readers, pieces, strict=True):
            reader.replace_input_with(node, piece)
        return Move((self._removed(norm.node, norm.node.all_input_nodes[0]),), pieces)

    def _piece(self, source: fx.Node, scale: Tensor, shift: Tensor, j: int, axis: int = 1) -> fx.Node:
        """Insert a scale and shift after a value, in the enclosing call."""
        names = [f"{MOVED}_{self.number}_{j}_{kind}" for kind in ("scale", "shift")]
        for name, value in zip(names, (scale, shift), strict=True):
            vars(self.trace.module)[name] = value.clone()
        around = call_of(source)
        around = around.parent if around.leaf and around.parent is not None else around
        nodes = list(_after(self.trace.graph, source, names, axis))
        for node in nodes:
            node.meta["call"] = around
        for call in around.lineage():
            at = call.nodes.index(source) + 1 if source in call.nodes else 0
            call.nodes[at:at] = nodes
        piece = nodes[-1]
        for call in self.trace.calls:
            if call.output is source and not (call.leaf and source in call.nodes):
                call.output = piece
        return piece

    def _removed(self, node: fx.Node, instead: fx.Node) -> Call:
        """Erase a norm from the graph; its readers read its input."""
        own = call_of(node)
        node.replace_all_uses_with(instead)

        def renamed(value: Any) -> Any:
            return fx.node.map_aggregate(value, lambda v: instead if v is node else v)

        for call in self.trace.calls:
            call.args, call.kwargs, call.output = renamed(call.args), renamed(call.kwargs), renamed(call.output)
        self.trace.erase(node)
        self.gone.add(node)
        return own


def _after(graph: fx.Graph, source: fx.Node, names: list[str], axis: int) -> Iterator[fx.Node]:
    last = source
    vectors = []
    for name in names:
        with graph.inserting_after(last):
            last = graph.create_node("get_attr", name)
        vectors.append(last)
        yield last
    with graph.inserting_after(last):
        yield graph.call_function(scaled_and_shifted, (source, *vectors, axis))
