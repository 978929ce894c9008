"""Place merges whose operations are whole modules in a row: the module with the kernel becomes the merged layer."""

from __future__ import annotations

import dis
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.exposure import check_exposure, is_kernel
from unbranch.convert.rewrite.options import conflict_with_options
from unbranch.convert.rewrite.placement import PlacementError, Swap, takes_one_argument
from unbranch.convert.trace.trace import Call, Trace, call_of, forward_of
from unbranch.graph.operations import named_arguments
from unbranch.grids import CONV_FUNCTIONS
from unbranch.rules.value import Affine

_CONVOLUTIONS = {*CONV_FUNCTIONS.values(), F.linear}


def as_swap(interpretation: Interpretation, merge: Merge) -> Swap | None:
    """Return the replacement of a row of modules by the merged layer; None if a merge isn't a row.

    Raises:
        PlacementError: if other code runs the modules of the row in a different way.
    """
    trace = interpretation.trace
    row, kept = _row_of(interpretation, merge)
    if not row or not _is_chain(interpretation, merge, row, kept):
        return None
    emptied = tuple(dict.fromkeys(call for n in merge.inside for call in trace.moved.get(n, ())))
    walked = check_exposure(interpretation, merge, row, emptied)
    if (reason := conflict_with_options(trace, [*row, *emptied])) is not None:
        raise PlacementError(merge, reason)
    kernels = [j for j, call in enumerate(row) if any(is_kernel(interpretation, n) for n in call.nodes)]
    return Swap(merge, tuple(row), kernels[0] if kernels else 0, emptied, tuple(walked), kept is not None)


def _row_of(interpretation: Interpretation, merge: Merge) -> tuple[list[Call], Call | None]:
    """Return the largest calls that together are a merge, and the one of them that keeps its class, if any.

    The list is empty if some operation lies in no such call.
    """
    trace, inside = interpretation.trace, set(merge.inside)
    times = trace.times_called()
    row: list[Call] = []
    kept: Call | None = None
    for node in merge.inside:
        if node in trace.moved:
            continue
        call = _largest_call(trace, node, inside, interpretation, times)
        if call is None and not row:
            call = kept = _own_kernel(interpretation, node, merge)
        if call is None:
            return [], None
        if call not in row:
            row.append(call)
    return row, kept


def _is_chain(interpretation: Interpretation, merge: Merge, row: list[Call], kept: Call | None) -> bool:
    """Whether each call reads only the output of the one before, and nothing else reads that."""
    trace = interpretation.trace
    source: Any = merge.root
    for call in row:
        nodes = call.nodes if call is not kept else [_unmoved(trace, call.output)]
        entering = {_unmoved(trace, n) for node in nodes for n in node.all_input_nodes if n not in nodes}
        if entering - interpretation.constant != {source}:
            return False
        source = _unmoved(trace, call.output)
        users = {u for n in _same(trace, source) for u in n.users} - trace.checks - trace.sizes - set(trace.moved)
        if call is not row[-1] and not any(users <= set(later.nodes) for later in row):
            return False
    return source is _unmoved(trace, merge.target)


def _own_kernel(interpretation: Interpretation, node: fx.Node, merge: Merge) -> Call | None:
    """Return the call of a module that ends in a convolution with its own weight and bias.

    What its forward does before, such as padding by the input size, is unaffected by the merge and is kept, if the
    merged layer is a convolution of the same geometry.
    """
    call, own = call_of(node), call_of(node).module
    if node.op != "call_function" or node.target not in _CONVOLUTIONS or call is interpretation.trace.root or call.leaf:
        return None
    given = named_arguments(node, "input", "weight", "bias")
    weight, bias = given.get("weight"), given.get("bias")
    names = [None if n is None else str(n.target) if isinstance(n, fx.Node) else "" for n in (weight, bias)]
    holds = own._parameters.get("weight") is not None and "bias" in own._parameters
    reads = names[0] == f"{call.path}.weight" and names[1] in (None, f"{call.path}.bias")
    reads = reads and (names[1] is None) == (own._parameters.get("bias") is None)
    if (
        not holds
        or not reads
        or _unmoved(interpretation.trace, call.output) is not node
        or (names[1] is None and _asks_for_bias(own))
    ):
        return None
    trace = interpretation.trace
    others = {
        u for n in trace.graph.nodes if n.op == "get_attr" and str(n.target) in names for u in n.users
    } - trace.sizes - trace.checks - {node}  # fmt: skip
    watched = (
        call.path in interpretation.hooked or call.path in interpretation.shared or trace.times_called()[id(own)] > 1
    )
    before, after = (interpretation.values.get(n, {}).get(merge.root) for n in (node, merge.target))
    if others or watched or not isinstance(before, Affine) or not isinstance(after, Affine):
        return None
    same = _geometry(before) == _geometry(after) and not getattr(merge.layer, "grow", ())
    return call if same and getattr(merge.layer, "before", True) is None else None


def _asks_for_bias(own: nn.Module) -> bool:
    """Whether a forward reads its bias more than once: it may check whether there is one, and there will be."""
    code = getattr(forward_of(own), "__code__", None)
    return code is None or sum(i.argval == "bias" for i in dis.get_instructions(code)) > 1


def _geometry(value: Affine) -> Any:
    if value.is_grid:
        return value  # unlike any other
    m = value.conv
    shape = m.weight.shape, m.stride, m.dilation, m.lo, m.hi, m.groups, m.input_dilation, m.padding_mode
    return *shape, value.channel_axis


def _unmoved(trace: Trace, node: Any) -> Any:
    """Return a value before a norm that was moved after it."""
    while node in trace.moved:
        node = node.all_input_nodes[0]
    return node


def _same(trace: Trace, node: fx.Node) -> list[fx.Node]:
    """Return a value and the results of norms that were moved after it."""
    return [node, *(u for u in node.users if u in trace.moved)]


def _largest_call(
    trace: Trace, node: fx.Node, inside: set[fx.Node], interpretation: Interpretation, times: dict[int, int]
) -> Call | None:
    """Return the outermost module call around a node that the merge covers completely, without pure wrappers."""
    largest: Call | None = None
    inside = inside | trace.moved.keys()
    for call in call_of(node).lineage():
        whole = all(n in inside or n in interpretation.constant or n in trace.checks for n in call.nodes)
        if not whole or call is trace.root:
            break
        fits = isinstance(call.output, fx.Node) and call.output in inside and times[id(call.module)] <= 1
        if fits and takes_one_argument(call) and (largest is None or len(call.nodes) > len(largest.nodes)):
            largest = call
    return largest
