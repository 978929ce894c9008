"""Build merged layers and compare each with the operations that it replaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.interpret.operations import operations_between
from unbranch.convert.passes.rearrange import rearranges, shapes_of
from unbranch.convert.plan.plan import Merge
from unbranch.convert.prove.distance import relative_error
from unbranch.convert.prove.random_inputs import random_inputs
from unbranch.convert.rewrite.placement import PlacementError
from unbranch.convert.rewrite.rewrite import trained_like
from unbranch.convert.trace.execute import run_nodes
from unbranch.errors import InexactError
from unbranch.rules.value import Affine

IN_FLOAT64 = 256 << 20  # bytes that the merged layers of a network may use in float64 until they are proved
TOLERANCE = 1e-10  # of a merge in float64, relative to its largest output


@dataclass(eq=False)
class Built:
    """A merged layer, its error against the operations that it replaces, and its final dtype."""

    layer: nn.Module
    error: float | None
    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        """Whether the layer hasn't been rounded to its dtype yet."""
        tensors = list(self.layer.parameters())
        return all(t.dtype == torch.float64 for t in tensors)


def build(interpretation: Interpretation, merge: Merge, *, exact: bool, training: bool) -> Built:
    """Build a merged layer and measure its error.

    Args:
        interpretation: the interpretation of the trace.
        merge: what to build.
        exact: whether to build it in float64.
        training: its mode.

    Raises:
        PlacementError: if a law doesn't hold for its values, or it differs from the operations it replaces.
    """
    like = interpretation.weight_like(merge.root, merge.target)
    planned = interpretation.values[merge.target][merge.root]
    assert isinstance(planned, Affine)
    dtype = torch.float64 if exact and not like.is_meta else like.dtype
    layer = merge.layer.allocate(planned.map, like, dtype)  # before temporaries, to reduce fragmentation
    example = None if like.is_meta or _needs_sizes(interpretation, merge) else _example(interpretation, merge)
    try:
        value = interpretation.materialise(merge.root, merge.target)
    except InexactError as refused:
        raise PlacementError(merge, str(refused)) from refused
    error = None if example is None else _error(value, *example)
    if error is not None and not error <= TOLERANCE:
        raise PlacementError(merge, f"the merged layer differs by {error:.1e} of the largest output")
    merge.layer.fill(layer, value.map)
    trained_like(layer, list(interpretation.parameters(merge.root, merge.target)), training)
    return Built(layer, error, like.dtype)


@torch.no_grad()
def _example(interpretation: Interpretation, merge: Merge) -> tuple[Tensor, Tensor] | None:
    """Return random input of the operations that a merge replaces, and their output in float64.

    Returns None if they reshape it to sizes that it doesn't have.
    """
    path = operations_between(merge.root, merge.target, interpretation.order)
    known = {
        n: interpretation.constants.value(n)
        for node in path
        for n in node.all_input_nodes
        if n in interpretation.constant
    }
    value = interpretation.values[merge.target][merge.root]
    assert isinstance(value, Affine)
    device = interpretation.weight_like(merge.root, merge.target).device
    problem: Exception | None = None
    reshapes = any(rearranges(interpretation.trace, node) for node in path)
    for x in random_inputs(value, device, shapes_of(interpretation.trace, merge.root) if reshapes else None):
        try:
            return x, run_nodes(path, known | {merge.root: x}, interpretation.trace.module)
        except Exception as error:  # with channels on the last axis, the operations may need rank 2 or 3
            problem = error
    if reshapes:
        return None
    raise PlacementError(merge, f"its operations can't be run on random input: {problem}")


def _needs_sizes(interpretation: Interpretation, merge: Merge) -> bool:
    """Whether the operations of a merge read the sizes of other values."""
    path = operations_between(merge.root, merge.target, interpretation.order)
    known = {merge.root, *path, *interpretation.constant}
    return any(n not in known for node in path for n in node.all_input_nodes)


def _error(value: Affine, x: Tensor, theirs: Tensor) -> float:
    """Return the error of a merged map against the operations it replaces, before any rounding to their dtype."""
    with torch.no_grad():
        last = value.channel_axis == -1
        ours = value.map(x.flatten(0, -2)).reshape(*x.shape[:-1], -1) if last else value.map(x)
    return relative_error(ours, theirs)
