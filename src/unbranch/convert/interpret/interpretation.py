"""Interpretation: the values of a trace as affine maps of earlier values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from unbranch.algebra import GridMap, identity
from unbranch.convert.interpret.channels import Channels
from unbranch.convert.interpret.operations import (
    PASS,
    REARRANGES,
    DependentSize,
    by_position,
    first,
    on_meta,
    operations_between,
)
from unbranch.convert.passes.constants import Constants
from unbranch.convert.passes.inplace import find_in_place
from unbranch.convert.passes.rearrange import rearranged, rearranges, shapes_of, source_of
from unbranch.convert.trace.trace import Trace
from unbranch.errors import InexactError, NotAffineError
from unbranch.rules import RESHAPES, Rule, shape_after
from unbranch.rules.value import Affine, TupleValue

SIDE = 14  # grid points per dimension assumed at a root
_FARTHEST = 64  # roots considered for one value


@dataclass(eq=False)
class Interpretation:
    """The values of a trace as affine maps of each earlier value, called root, that all their inputs come from.

    Args:
        trace: the trace.
        excluded: (root, target) pairs whose merge was found not to be exact.
        hooked: paths of modules whose inputs and outputs are observed, with the reason.
        shared: paths of layers that must not be merged because their parameters are used elsewhere, with the reason.
        differentiable: whether materialised maps carry gradients to the parameters.
    """

    trace: Trace
    excluded: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    hooked: Mapping[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    differentiable: bool = False

    def __post_init__(self) -> None:
        self.order = {node: j for j, node in enumerate(self.trace.graph.nodes)}
        self.values: dict[fx.Node, dict[fx.Node, Affine | TupleValue]] = {}
        self.refused: dict[fx.Node, str] = {}
        self.grids: dict[fx.Node, tuple[int, ...]] = {}
        self.constants = Constants(self.trace, self.differentiable)
        self.constant = self.constants.nodes
        self._channels = Channels(self.trace, self.constants, self.rule)
        self.must_stay, self.last_written = find_in_place(self.trace)
        self.barriers = self.trace.seen_by(self.hooked)
        for node in self.order:
            self._interpret(node)

    # --- interpretation

    def rule(self, node: fx.Node) -> Rule | None:
        """Return the rule of a node's operation; None if it has none, or is constant."""
        if node in self.constant:
            return None
        if node.op == "call_module" and node.meta.get("passes"):
            return PASS
        rule = self.trace.rule(node)
        return REARRANGES if rule is None and rearranges(self.trace, node) else rule

    def _why_unmergeable(self, node: fx.Node) -> str | None:
        """Return why a node with a rule must not be merged, or None."""
        if node in self.must_stay:
            return self.must_stay[node]
        if node.op == "call_module":
            path = str(node.target)
            if path in self.hooked:
                return self.hooked[path]
            return self.shared.get(path)
        return None

    def _interpret(self, node: fx.Node) -> None:
        rule = self.rule(node)
        if rule is None:
            return
        reason = self._why_unmergeable(node)
        if reason is not None:
            self.refused[node] = reason
            return
        found, reason = {}, None
        for root in self.roots_of(node):
            try:
                found[root] = self.evaluate(node, root, {})
            except NotAffineError:
                continue
            except InexactError as error:
                reason = str(error)
            except Exception as error:  # arguments that the rule doesn't support
                reason = f"its arguments aren't understood ({type(error).__name__}: {error})"
        if found:
            self.values[node] = found
            root, value = max(found.items(), key=lambda item: first(item[1]).ndim)  # the nearest root with a grid
            one = first(value)
            if isinstance(one.map, GridMap):
                self.grids[node] = one.map.grid_out
            else:
                self.grids[node] = tuple(max(1, n) for n in one.conv.output_size(self._grid(root, one.ndim)))
        if reason is not None:
            self.refused[node] = reason

    def _grid(self, node: fx.Node, ndim: int) -> tuple[int, ...]:
        """Return the size of a value's grid, with ``SIDE`` points per axis assumed for unknown roots."""
        known = self.grids.get(node) or (shape_after(node) or ())[1:]
        return known if len(known) == ndim else (SIDE,) * ndim

    def points(self, node: fx.Node, ndim: int) -> int:
        return prod(self._grid(node, ndim))

    def roots_of(self, node: fx.Node) -> list[fx.Node]:
        """Return the values that all inputs of a node are computed from, nearest first."""
        common: set[fx.Node] | None = None
        for source in node.all_input_nodes:
            if source in self.constant or source in self.trace.sizes:
                continue
            roots = {source} if source in self.barriers else {source, *self.values.get(source, ())}
            common = roots if common is None else common & roots
        allowed = [
            r
            for r in common or ()
            if (r, node) not in self.excluded and self._is_final(r, node) and self.identity_on(r) is not None
        ]
        return sorted(allowed, key=self.order.__getitem__, reverse=True)[:_FARTHEST]

    def _is_final(self, root: fx.Node, node: fx.Node) -> bool:
        """Return whether all in-place writes to a root precede its first use on the way to a node."""
        if root not in self.must_stay:
            return True
        return self.last_written[root] < min(self.order[n] for n in self.between(root, node))

    def evaluate(self, node: fx.Node, root: fx.Node, real: dict[fx.Node, Affine | TupleValue]) -> Any:
        """Return the value of a node, from the values in ``real``, or on the meta device if it is empty.

        Raises:
            InexactError: if a law isn't exact.
        """
        rule = self.rule(node)
        assert rule is not None

        if node.target in RESHAPES and rearranges(self.trace, node) and self._keeps_shape(node):
            source = node.all_input_nodes[0]
            return real[source] if real else self.identity_on(root) if source is root else self.values[source][root]

        def value(source: fx.Node) -> Any:
            if source in self.constant:
                return self.constants.value(source)
            if source in self.trace.sizes:
                return self._size(source, node)
            if real:
                return real[source]
            return self.identity_on(root) if source is root else self.values[source][root]

        if rearranges(self.trace, node):
            return self._rearranged(node, rule, value)
        args, kwargs = by_position(*fx.node.map_arg((node.args, node.kwargs), value))
        self._check_arrangement(rule, node, (args, kwargs))
        if node.op == "call_module":
            args = (self.trace.layer_of(node), *args)
        with torch.set_grad_enabled(self.differentiable and bool(real)):
            result = rule.apply(*args, **kwargs)
            return result if real else on_meta(result)

    def _rearranged(self, node: fx.Node, rule: Rule, value: Callable[[fx.Node], Any]) -> Affine:
        """Return the value of a reshape or transposition: by its rule on a grid of fixed size, else from shapes."""
        x = value(source_of(node))
        if not isinstance(x, Affine):
            raise NotAffineError("a reshape of several values")
        if rule is not REARRANGES:
            args, kwargs = by_position(*fx.node.map_arg((node.args, node.kwargs), value))
            if node.op == "call_module":
                args = (self.trace.layer_of(node), *args)
            with contextlib.suppress(NotAffineError):
                return rule.apply(*args, **kwargs)  # type: ignore[no-any-return]
        shapes = shapes_of(self.trace, source_of(node))
        if shapes is None:
            raise NotAffineError("a tensor whose shape isn't known")
        return x.rearranged(rearranged(self.trace, node, x.arranged(shapes), x.channels))

    def _check_arrangement(self, rule: Rule, node: fx.Node, operands: Any) -> None:
        """Check that channels are on the axis that an operation expects.

        Raises:
            NotAffineError: if they aren't.
        """
        values = [v for v in tree_leaves(operands) if isinstance(v, Affine)]
        values += [part for v in tree_leaves(operands) if isinstance(v, TupleValue) for part in v.parts]
        if not rule.arranged and any(v.arrangement is not None for v in values):
            raise NotAffineError("a layer in another arrangement than its root's")
        if rule.layer_input is not None and rule.kind == "elementwise":
            expected = rule.layer_input(self.trace.layer_of(node))
            for v in values:
                v.expect_channels(expected.channel_axis)

    def _keeps_shape(self, node: fx.Node) -> bool:
        """Return whether a reshape preserves the shape, for inputs of two sizes."""
        before, after = self.trace.known(node.all_input_nodes[0]), self.trace.known(node)
        known = before is not None and after is not None
        return known and all(a.shape == b.shape for a, b in zip(before, after, strict=True))

    def _size(self, source: fx.Node, node: fx.Node) -> Any:
        """Return the argument for a size that depends on the input; -1 for the batch axis of a reshape."""
        if node.target in RESHAPES:
            size, whole = self.trace.known(source), self.trace.known(node.all_input_nodes[0])
            if size is not None and whole is not None and size == tuple(v.shape[0] for v in whole):
                return -1
        return DependentSize()

    def materialise(self, root: fx.Node, target: fx.Node) -> Affine:
        """Return the map from ``root`` to ``target`` with its values, in float64.

        Raises:
            InexactError: if a law that was assumed to be exact on the meta device isn't.
        """
        known = self.identity_on(root)
        assert known is not None
        self.constants.forget()
        device = self.weight_like(root, target).device
        real: dict[fx.Node, Affine | TupleValue] = {
            root: replace(known, map=identity(known.channels, known.ndim, device=device))
        }
        path = self.between(root, target)
        for j, node in enumerate(path):
            real[node] = self.evaluate(node, root, real)
            needed = {n for later in path[j + 1 :] for n in later.all_input_nodes}
            for done in [n for n in real if n not in needed and n is not node]:
                del real[done]
        result = real[target]
        assert isinstance(result, Affine)
        return result

    def between(self, root: fx.Node, target: fx.Node) -> list[fx.Node]:
        """Return the operations on the paths from ``root`` to ``target``, including the target's, in order."""
        found = operations_between(root, target, self.order)
        return [n for n in found if n not in self.trace.sizes and n not in self.trace.checks]

    def weight_like(self, root: fx.Node, target: fx.Node) -> Tensor:
        """Return the largest weight between two values; a merged layer has its dtype, device and memory format."""
        found = list(self.parameters(root, target))
        if found:
            return max(found, key=lambda t: t.numel())
        module = self.trace.module
        around = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
        return next(around, torch.empty(0))

    def parameters(self, root: fx.Node, target: fx.Node) -> Iterator[Tensor]:
        """Yield floating-point parameters and buffers of the operations from ``root`` to ``target``."""
        for node in self.between(root, target):
            if node.op == "call_module":
                module = self.trace.layer_of(node)
                yield from (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
            for source in node.all_input_nodes:
                if source in self.constant:
                    yield from (t for t in self.constants.leaves(source) if t.is_floating_point())

    def identity_on(self, root: fx.Node) -> Affine | None:
        """Return the identity map on a root, or None if its channels are unknown."""
        return self._channels.identity_on(root)
