"""The number and axis of a value's channels, inferred from the layers that read it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from unbranch.algebra import identity
from unbranch.convert.passes.constants import Constants
from unbranch.convert.passes.rearrange import rearranged, rearranges, shapes_of, source_of
from unbranch.convert.trace.trace import Trace
from unbranch.errors import InexactError, NotAffineError
from unbranch.rules import Rule, shape_after
from unbranch.rules.arrangement import Arrangement
from unbranch.rules.registry import LayerInput
from unbranch.rules.value import Affine

_CHANGES_CHANNELS = {
    torch.cat, torch.concat, torch.concatenate, torch.chunk, torch.split, "chunk", "split",
    torch.reshape, torch.flatten, "reshape", "view", "flatten",
}  # fmt: skip


class Channels:
    """Identity maps on the values of a trace.

    Args:
        trace: the trace.
        constants: its constant values.
        rule: returns the rule of an operation, or None if it must not be merged.
    """

    def __init__(self, trace: Trace, constants: Constants, rule: Callable[[fx.Node], Rule | None]) -> None:
        self._trace, self._constants, self._rule = trace, constants, rule
        self._identities: dict[fx.Node, Affine | None] = {}

    def identity_on(self, root: fx.Node) -> Affine | None:
        """Return the identity map on a root, or None if its channels are unknown."""
        if root not in self._identities:
            self._identities[root] = self._identity_on(root)
        return self._identities[root]

    def _identity_on(self, root: fx.Node) -> Affine | None:
        fixed, shapes = shape_after(root), shapes_of(self._trace, root)
        found = self._channels(root, depth=4)
        if found is None and fixed is None and shapes is not None:
            found = self._channels(root, 4, Arrangement.of(shapes))
        if found is None and fixed is None:
            return None
        known = None if fixed is None else LayerInput(fixed[0], len(fixed) - 1)
        channels, ndim, axis = found or known or (0, 0, 1)
        rank = None if shapes is None else len(shapes[0])
        batched = rank == ndim + 2 and ndim and axis == 1
        if batched and shapes is not None and all(s[1] != channels for s in shapes):
            return None  # the readers see it repeated: something between broadcasts it
        if rank is not None and rank > 2 and not ndim and shapes is not None:
            if any(s[axis] != channels for s in shapes):
                return None
            ndim = 0 if axis == -1 else rank - 2
            if ndim > 3:
                return None
        grid = fixed[1:] if fixed is not None and (channels, ndim, axis) == known else None
        if ndim > 3:
            return None
        return Affine(identity(channels, ndim, device="meta"), axis, grid, rank)

    def _channels(
        self, node: fx.Node, depth: int, arrangement: Arrangement | None = None
    ) -> LayerInput | None:  # fmt: skip
        """Return the input that the readers of a value expect; of several, the one with most grid dimensions.

        Given the arrangement of the value's axes, this includes readers after reshapes and transpositions.
        """
        best: LayerInput | None = None
        for user in node.users:
            found = self._expected_by(user, node, depth, arrangement)
            if found is not None and (best is None or found.ndim > best.ndim):
                best = found
        return best

    def _expected_by(
        self, user: fx.Node, node: fx.Node, depth: int, arrangement: Arrangement | None
    ) -> LayerInput | None:  # fmt: skip
        if rearranges(self._trace, user):
            return self._channels_after(user, node, depth, arrangement)
        rule = self._rule(user)
        found: LayerInput | None = None
        if rule is None:
            return None
        if rule.layer_input is not None:
            found = rule.layer_input(self._trace.layer_of(user))
        elif user.op == "call_function" and rule.kind == "linear":
            found = self._channels_of_function(user)
        elif depth and rule.kind in ("view", "elementwise") and self._inputs(user) < 3:
            same = arrangement is None or shapes_of(self._trace, user) == shapes_of(self._trace, node)
            return self._channels(user, depth - 1, arrangement) if same and not self._changes_channels(user) else None
        return found if arrangement is None or found is None else _before(arrangement, *found)

    def _channels_after(
        self, node: fx.Node, source: fx.Node, depth: int, arrangement: Arrangement | None
    ) -> LayerInput | None:  # fmt: skip
        if arrangement is None or not depth or source_of(node) is not source:
            return None
        try:
            return self._channels(node, depth - 1, rearranged(self._trace, node, arrangement))
        except NotAffineError:
            return None

    def _inputs(self, node: fx.Node) -> int:
        return sum(n not in self._constants for n in node.all_input_nodes)

    def _changes_channels(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._trace.layer_of(node), nn.Flatten | nn.Unflatten)
        return node.target in _CHANGES_CHANNELS

    def _channels_of_function(self, node: fx.Node) -> LayerInput | None:
        args = dict(zip(("input", "weight"), node.args, strict=False)) | dict(node.kwargs)
        source = args.get("weight")
        if not isinstance(source, fx.Node) or source not in self._constants:
            return None
        try:
            weight = self._constants.value(source)
        except InexactError:  # it is written to between two uses
            return None
        if weight.dim() < 2:  # a linear layer with one output
            return None
        if weight.dim() == 2:
            return LayerInput(weight.shape[1], 0, -1)
        groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
        if not isinstance(groups, int):
            return None
        transposed = "transpose" in getattr(node.target, "__name__", "")
        channels = weight.shape[0] if transposed else weight.shape[1] * groups
        return LayerInput(channels, weight.dim() - 2)


def _before(arrangement: Arrangement, channels: int, ndim: int, channel_axis: int) -> LayerInput | None:  # noqa: ARG001
    """Return what a layer after reshapes and transpositions expects of the tensor before them."""
    if channel_axis == 1 and arrangement.rank < 2:
        return None
    axis = arrangement.position_of(channel_axis)
    rank = len(arrangement.own)
    if axis is None or arrangement.own[axis][0].size != (channels, channels) or axis not in (1, rank - 1):
        return None
    return LayerInput(channels, 0, -1) if axis == rank - 1 else LayerInput(channels, rank - 2)
