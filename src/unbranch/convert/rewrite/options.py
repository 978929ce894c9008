"""Check that a rewrite is valid for optional arguments other than those that a trace assumes."""

from __future__ import annotations

import dataclasses
import dis
import inspect
import itertools
import types
from typing import Any

from torch import fx, nn

from unbranch.convert.reasons import side_effects_of
from unbranch.convert.source.effects import (
    compared_by_identity,
    has_side_effects,
    inspects_arguments,
    may_pass_state,
    walks_modules,
)
from unbranch.convert.source.methods import forward_passes_on, forward_runs
from unbranch.convert.trace.trace import Call, Trace, forward_of
from unbranch.convert.trace.tracer import Refused
from unbranch.rules import rule_of_module

_ASKING = {"isinstance", "type", "len", "hasattr", "callable", "issubclass"}
_MANY = 8  # options of which pairs are tried
_MOST = 4  # options that are tried in all combinations; of more, one at a time and all together


def optional_arguments(module: nn.Module) -> list[str]:
    """Return the arguments of a forward that a trace gives their default, or omits."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters
    return [name for name, p in parameters.items() if p.default is not p.empty or p.kind in kinds]


def conflict_with_options(trace: Trace, row: list[Call]) -> str | None:
    """Return why modules in a row can't become one: with other optional arguments they don't run one after the other.

    A flag is tried with its opposite value, an option that the example gives with its default, and any other option
    with an unknown value. Failures to trace don't matter if the row lies in a part that takes no options and that no
    enclosing module reaches into.
    """
    name, alone = type(trace.module).__name__, _is_apart(trace, row)
    if not alone and (more := _reads_more(trace)) is not None:
        return f"{name}.forward uses {more}"
    if not alone and (option := compared_by_identity(trace.module, optional_arguments(trace.module))) is not None:
        return f"{name}.forward compares {option} by identity"
    variants = _variants(trace, at_most=1 if alone and len(row) > 1 else _MOST)
    if variants and any(map(has_side_effects, trace.module.modules())):  # tracing runs the code
        return None if alone else side_effects_of(name)
    for options in variants:
        other = trace.with_options(options)
        if isinstance(other, str):
            if not alone and not _is_refused(trace, other, options):
                return f"{name}.forward can't be traced with other values of {' and '.join(options)} ({other})"
        elif not _runs(other, row) and not _fails(other):
            return f"{name}.forward runs them differently with other values of {' and '.join(options)}"
    return None


def _is_apart(trace: Trace, row: list[Call]) -> bool:
    """Whether the forward of one part runs a row whatever its arguments, and no other forward does.

    A part that becomes a layer by itself must take one argument as a layer does, and no enclosing forward may reach
    into it.
    """
    if len(row) == 1:
        only = row[0]
        outer = [(c.module, only.path[len(c.path) :].lstrip(".")) for c in only.lineage() if c is not only]
        reached = any(forward_runs(m, path, inside=True) or forward_passes_on(m, path) for m, path in outer)
        reached = reached or any(may_pass_state(m, only.module) or walks_modules(m) for m, _ in outer)
        return only.leaf or (_takes_one_value(only.module) and not reached)
    part = row[0].parent
    if part is None or part is trace.root or any(call.parent is not part for call in row):
        return False
    if not _takes_one_value(part.module) and not _runs_alike(trace, part, row):
        return False
    around = [c for c in part.lineage() if c is not part]
    if any(may_pass_state(c.module, part.module) or walks_modules(c.module) for c in around):
        return False
    inside = [(c.module, call.path[len(c.path) :].lstrip(".")) for c in around for call in row]
    return not any(forward_runs(module, path) or forward_passes_on(module, path) for module, path in inside)


def _runs_alike(trace: Trace, part: Call, row: list[Call]) -> bool:
    """Whether a part runs a row for all values of its arguments but the first, which every layer needs."""
    parameters = list(inspect.signature(part.module.forward).parameters.values())
    any_number = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    code = getattr(forward_of(part.module), "__code__", None)
    if code is None or not _ASKING.isdisjoint(code.co_names):
        return False
    if any(p.kind in any_number and _loads(code, p.name) for p in parameters):
        return False
    if any(inspects_arguments(m) or has_side_effects(m) for m in part.module.modules()):
        return False
    parameters = [p for p in parameters if p.kind not in any_number]
    if not parameters or parameters[0].default is not inspect.Parameter.empty:
        return False
    read = trace.part_with_options(part.path, {p.name: ... for p in parameters[1:]})
    if isinstance(read, str) or not read.root.args:
        return False
    inside = [dataclasses.replace(c, path=c.path[len(part.path) :].lstrip(".")) for c in row]
    return any(c.path == inside[0].path for c in read.calls) and _runs(read, inside)


def _takes_one_value(module: nn.Module) -> bool:
    """Whether a forward has one argument and doesn't inspect its type."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    code = getattr(forward_of(module), "__code__", None)
    one = [p.kind for p in parameters] in (
        [inspect.Parameter.POSITIONAL_OR_KEYWORD],
        [inspect.Parameter.POSITIONAL_ONLY],
    )
    return one and code is not None and _ASKING.isdisjoint(code.co_names)


def _fails(trace: Trace) -> bool:
    """Whether a layer receives None, as for images that are optional in name only: the forward can't run like that."""
    layers = (c for c in trace.calls if c.leaf and (rule := rule_of_module(c.module)) and rule.kind == "linear")
    return any(c.args[:1] == (None,) for c in layers)


def _runs(trace: Trace, row: list[Call]) -> bool:
    """Whether a trace runs calls of another one as a row, or doesn't run any of them."""
    found = [[c for c in trace.calls if c.path == call.path and c.leaf == call.leaf] for call in row]
    if any(call.path in trace.hidden for call in row):
        return False
    if not any(found):
        return not any(_reaches_into(trace, call) for call in row)
    if any(len(calls) != 1 for calls in found):
        return False
    same = [calls[0] for calls in found]
    if any(_plain(a) != _plain(b) for a, b in zip(same, row, strict=True)):
        return False
    for before, after in itertools.pairwise(same):
        entering = {n for node in after.nodes for n in node.all_input_nodes if n not in after.nodes}
        entering = {n for n in entering if n.op != "get_attr"}
        readers = {u for u in _nodes(before.output) for u in u.users} - trace.checks - trace.sizes
        if entering != {before.output} or not readers <= set(after.nodes):
            return False
    return True


def _reaches_into(trace: Trace, call: Call) -> bool:
    """Whether a trace runs or reads something inside a part without calling the part, or passes it to other code."""
    inside = f"{call.path}."
    nodes = [n for n in trace.graph.nodes if n.op in ("get_attr", "call_module")]
    reads = (str(n.target) for n in nodes)
    given = any(n.op == "get_attr" and inside.startswith(f"{n.target}.") for n in nodes)
    return given or any(path.startswith(inside) for path in (*reads, *trace.hidden, *trace.unshared))


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _plain(call: Call) -> Any:
    """Return the arguments of a call with labels for its tensors, the same label for the same tensor."""
    numbers: dict[fx.Node, str] = {}

    def without(value: Any) -> Any:
        return numbers.setdefault(value, f"tensor {len(numbers)}") if isinstance(value, fx.Node) else value

    return fx.node.map_aggregate((call.args, call.kwargs), without)


def _variants(trace: Trace, at_most: int) -> list[dict[str, Any]]:
    """Return other values of a forward's optional arguments, alone and combined; ``...`` is an unknown value."""
    read = {str(node.target).lstrip("*") for node in trace.graph.nodes if node.op == "placeholder"}
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(trace.module.forward).parameters.items():
        if parameter.default is parameter.empty:
            continue
        if name in read:
            options[name] = parameter.default
        else:
            options[name] = not parameter.default if isinstance(parameter.default, bool) else ...
    names = list(options)
    if len(names) <= _MOST:
        sizes = range(1, min(at_most, len(names)) + 1)
        chosen = [c for n in sizes for c in itertools.combinations(names, n)]
    else:
        pairs = itertools.combinations(names, 2) if at_most > 1 and len(names) <= _MANY else ()
        chosen = [*((name,) for name in names), tuple(names), *pairs]
    return [{name: options[name] for name in some} for some in chosen]


def _is_refused(trace: Trace, reason: str, options: dict[str, Any]) -> bool:
    """Whether a forward fails with its defaults, for example because it needs images that may be None."""
    if not isinstance(reason, Refused) and not reason.startswith(("ValueError", "AttributeError")):
        return False
    defaults = {name: value for name, value in options.items() if value is not ...}
    return bool(defaults) and (defaults == options or trace.with_options(defaults) == reason)


def _reads_more(trace: Trace) -> str | None:
    """Return ``*args`` or ``**kwargs``, by name, if a forward uses them and a trace omits them."""
    read = {str(node.target).lstrip("*") for node in trace.graph.nodes if node.op == "placeholder"}
    code = getattr(forward_of(trace.module), "__code__", None)
    for name, parameter in inspect.signature(trace.module.forward).parameters.items():
        any_number = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if not any_number or (name in read and parameter.kind is not inspect.Parameter.VAR_POSITIONAL):
            continue
        if code is None or _loads(code, name):
            return name
    return None


def _loads(code: types.CodeType, name: str) -> bool:
    """Whether code reads a variable."""
    return any(i.argval == name and i.opname.startswith("LOAD") for i in dis.get_instructions(code))
