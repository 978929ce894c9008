"""Trace a network as a whole or in parts, and run the passes that prepare traces for interpretation."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping

from torch import fx, nn

from unbranch.convert.faults import in_part
from unbranch.convert.passes.grids import share_grids
from unbranch.convert.passes.sums import order_sums
from unbranch.convert.passes.writes import read_writes
from unbranch.convert.trace.example_values import ExampleArguments
from unbranch.convert.trace.trace import Call, Trace, has_rules_inside
from unbranch.convert.trace.tracer import trace_module
from unbranch.rules import rule_of_module


def read_module(
    path: str, module: nn.Module, leaves: set[int], given: Callable[[str], ExampleArguments | None] = lambda _path: None
) -> Trace | str:  # fmt: skip
    """Trace a module and run the passes on it; returns the reason if it can't be traced."""
    trace = trace_module(path, module, leaves, given)
    if isinstance(trace, Trace):
        with in_part(path):
            read_writes(trace)
            share_grids(trace)
            order_sums(trace)
            _read_shapes(trace)
            _drop_unread(trace)
        trace.retrace = functools.partial(_again, path, module, leaves, given)
    return trace


def _drop_unread(trace: Trace) -> None:
    """Erase unused reads of attributes and sizes."""
    for node in reversed(list(trace.graph.nodes)):
        reads = node.target in (getattr, operator.getitem, "size", "dim") or node in trace.sizes - trace.checks
        if reads and not node.users and node.op in ("call_function", "call_method"):
            trace.erase(node)
    trace.refresh()


def _read_shapes(trace: Trace) -> None:
    """Replace ``reshape_as(x, y)`` by a reshape to the size of ``y``, which doesn't need its values."""
    for node in list(trace.graph.nodes):
        if node.target not in ("reshape_as", "view_as") or len(node.args) != 2 or node.kwargs:
            continue
        like = node.args[1]
        if not isinstance(like, fx.Node) or like.op == "get_attr":
            continue
        size = trace.insert_before(node, "size", (like,))
        node.target = str(node.target).removesuffix("_as")
        node.args = (node.args[0], size)
    trace.refresh()


def _again(path: str, module: nn.Module, leaves: set[int], given: Callable[[str], ExampleArguments | None]) -> Trace:
    trace = read_module(path, module, leaves, given)
    assert isinstance(trace, Trace)  # it succeeded the first time
    return trace


def traces_of(
    network: nn.Module,
    given: Callable[[str], ExampleArguments | None] = lambda _path: None,
    unreadable: Mapping[str, str] | None = None,
) -> tuple[list[Trace], dict[str, str]]:
    """Return traces that together cover a network, and the modules that couldn't be traced, with the reasons.

    The network is traced as a whole if that succeeds. Modules that can't be traced into, that are called several times,
    or that the network's forward doesn't call are traced on their own.

    Args:
        network: a private copy.
        given: returns shape-only arguments of the part at a path, for forwards that read ranks or sizes.
        unreadable: paths of parts that must not be traced as a whole, with the reasons.

    Raises:
        Fault: if a pass fails on a part.
    """
    known = unreadable or {}
    queue: list[tuple[str, nn.Module]] = [("", network)]
    seen: set[int] = set()
    leaves: set[int] = set()
    traces: list[Trace] = []
    unread: dict[str, str] = {}
    while queue:
        path, module = queue.pop(0)
        if id(module) in seen or not has_rules_inside(module):
            continue
        seen.add(id(module))
        if rule_of_module(module) is not None:
            continue
        children = [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]
        if type(module).forward is nn.Module.forward:  # a ModuleList or ModuleDict
            queue += children
            continue
        trace = known.get(path) or read_module(path, module, leaves - {id(module)}, given)
        reused = _reused(trace) if isinstance(trace, Trace) else []
        while isinstance(trace, Trace) and reused:
            leaves |= {id(call.module) for call in reused}
            trace = read_module(path, module, leaves - {id(module)}, given)
            reused = _reused(trace) if isinstance(trace, Trace) else []
        if isinstance(trace, str):
            unread[path] = trace
            queue += children
            continue
        traces.append(trace)
        queue += _not_covered(trace)
    return traces, unread


def _reused(trace: Trace) -> list[Call]:
    """Return calls of the outermost modules that are called several times; what is inside is traced with them."""
    times = trace.times_called()

    def reused(call: Call) -> bool:
        return times[id(call.module)] > 1 and not call.leaf and has_rules_inside(call.module)

    return [c for c in trace.calls[1:] if reused(c) and not any(reused(outer) for outer in list(c.lineage())[1:-1])]


def _not_covered(trace: Trace) -> list[tuple[str, nn.Module]]:
    """Return the outermost modules that the trace doesn't show, other than those that only hold tensors it reads."""
    read = trace.read()
    entered = {id(call.module) for call in trace.calls if not call.leaf}
    called = {id(call.module) for call in trace.calls}
    found = []

    def visit(path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            place = f"{path}.{name}".lstrip(".")
            if id(child) in entered or (id(child) not in called and any(id(m) in called for m in _holding(child))):
                visit(place, child)
            elif not _is_held(child, read):
                found.append((trace.full_path(place), child))

    visit("", trace.module)
    return found


def _holding(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a module that hold tensors: others, such as activations, may be shared with parts that run."""
    return (m for m in module.modules() if m._parameters or m._buffers)


def _is_held(module: nn.Module, read: set[int]) -> bool:
    parameters = [id(p) for p in module.parameters()]
    return bool(parameters) and all(p in read for p in parameters)
