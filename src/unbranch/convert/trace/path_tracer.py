"""Trace forwards with conditions on sizes: explore every path and keep the operations that all paths share."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from unbranch.convert.trace.casts import NeedsNumberError, UnreadableError
from unbranch.convert.trace.decisions import Decisions, about_sizes, either, is_harmless
from unbranch.convert.trace.example_values import ExampleArguments, ExampleTracer
from unbranch.convert.trace.paths import ControlPath, Shared, distinct_paths, explore_paths
from unbranch.convert.trace.recording import States, states_of
from unbranch.convert.trace.structures import filled, nodes_of
from unbranch.convert.trace.trace import MADE, Call, follows_a_size


class PathTracer(ExampleTracer):
    """A tracer that explores all control-flow paths of a forward.

    Args:
        known_paths: decisions of the distinct paths through forwards, as far as they were found before.
    """

    def __init__(
        self, given: Callable[[], ExampleArguments | None], options: dict[str, Any], known_paths: dict[Any, Any]
    ) -> None:
        super().__init__(given, options)
        self._known_paths = known_paths
        self._stack: list[Call] = []
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self._decisions = Decisions()
        self._following = self._followed = 0
        self.conversions = 0  # how often a size was converted to a number
        self._converts: set[str] = set()
        self.hidden: set[str] = set()
        self.unshared: set[str] = set()
        self.calls: list[Call] = []

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition: sizes that are equal for all inputs are; other conditions on sizes have both outcomes."""
        node = obj.node
        known = self.known(node) if node.target in (operator.eq, operator.ne) else None
        holds = known == ((True, True) if node.target is operator.eq else (False, False))
        given = self._given()
        if holds and given is not None and given.apart and all(map(follows_a_size, node.args)):
            return node.target is operator.eq
        if not about_sizes(node, self._open):
            return super().to_bool(obj)
        return self._decisions.of(node, self.known(node))

    def _through(self, call: Call, run: Callable[[], Any]) -> Any:
        """Run the forward of a call, on all its paths if it has conditions on sizes."""
        outer, calls = self._decisions, len(self.calls)
        begin = _Beginning(call, list(call.nodes), len(self.calls), States(call.module))
        self._decisions = Decisions()
        try:
            return self._once(call, run)
        except _Retry:
            self._take_back(begin)
            paths = self._distinct_paths(begin, run)
            self._decisions = Decisions(paths[0].taken)
            output = run()
            live = self._recorded_path(begin, nodes_of(output))
            return self._merged(call, calls, [live, *paths[1:]], output)
        except Exception:
            begin.states.restore()
            raise
        finally:
            self._decisions = outer

    def _distinct_paths(self, begin: _Beginning, run: Callable[[], Any]) -> list[ControlPath]:
        """Return the distinct paths through a forward; known decisions are followed again."""
        key = begin.call.path, repr(fx.node.map_arg((begin.call.args, begin.call.kwargs), lambda _n: None))
        self._following += 1
        try:
            if key in self._known_paths:
                found = [self._follow(begin, run, Decisions(taken)) for taken in self._known_paths[key]]
                if [path.taken for path in found] == self._known_paths[key]:
                    return found
            paths = explore_paths(functools.partial(self._follow, begin, run))
        finally:
            self._following -= 1
        paths = distinct_paths(paths)
        self._known_paths[key] = [path.taken for path in paths]
        return paths

    def _once(self, call: Call, run: Callable[[], Any]) -> Any:
        """Return the output of a forward that has a single path."""
        try:
            output = self._run(call, run)
        except Exception as error:
            if self._decisions.taken:
                raise _Retry from error
            raise
        if output is _RETRY or self._decisions.taken:
            raise _Retry
        return output

    def _follow(self, begin: _Beginning, run: Callable[[], Any], decisions: Decisions) -> ControlPath:
        """Record one path through the forward of a call, and discard its operations."""
        self._decisions = decisions
        before = states_of(begin.call.module)
        output = self._run(begin.call, run)
        if output is _RETRY:
            self._take_back(begin)
            decisions.clear()
            return self._follow(begin, run, decisions)
        if states_of(begin.call.module) != before:
            raise UnreadableError("it stores something that depends on the input size")
        path = self._recorded_path(begin, nodes_of(output))
        self._take_back(begin)
        return path

    def _run(self, call: Call, run: Callable[[], Any]) -> Any:
        """Return the output of a forward, or ``_RETRY`` if it converts a size to a number for the first time."""
        conversions = self.conversions
        try:
            output = run()
        except NeedsNumberError:
            if call.path in self._converts:
                raise
            return self._converted(call, conversions)
        except SystemExit as error:
            raise UnreadableError("its forward ends the process") from error
        except Exception:
            if self.conversions == conversions or call.path in self._converts:
                raise
            return self._converted(call, conversions)  # the failed conversion may have caused the error
        if self.conversions == conversions:
            return output
        if call.path in self._converts:  # the forward caught the error
            raise NeedsNumberError("a value that depends on the input must be a plain number")
        return self._converted(call, conversions)

    def _converted(self, call: Call, conversions: int) -> Any:
        """Replace the built-ins of a forward from now on; enclosing forwards don't notice the conversion."""
        self._converts.add(call.path)
        self.conversions = conversions
        return _RETRY

    def _take_back(self, begin: _Beginning) -> None:
        self._forget(begin.new_nodes(), begin.calls)
        begin.states.restore()

    def _recorded_path(self, begin: _Beginning, output: Any) -> ControlPath:
        """Return the path that a call has just recorded."""
        new = begin.new_nodes()
        own = [n for n in new if n.op != "get_attr"]
        tensors = {str(n.target) for n in new if n.op == "get_attr"}
        args = [(n.args, dict(n.kwargs)) for n in own]
        parts = [_part_of(begin.call, n) for n in own]
        taken, harmless = tuple(self._decisions.taken), [is_harmless(n) for n in own]
        return ControlPath(taken, self._decisions.holds(), own, args, parts, output, tensors, harmless)

    def _merged(self, call: Call, calls: int, paths: list[ControlPath], output: Any) -> Any:
        """Keep the operations of the first path that all paths share; returns the merged output."""
        shared, (live, *_) = Shared(paths), paths
        outputs = shared.outputs()
        if outputs is None and call is not self.calls[0]:
            raise OutputStructureError("the structure of its output depends on the input size")
        if not shared.harmless() or any(name.startswith(MADE) for path in paths for name in path.tensors):
            raise UnreadableError("what its forward does depends on the input size")
        made: dict[tuple[Any, ...], fx.Node] = {}

        def value(values: tuple[Any, ...], before: fx.Node | None) -> Any:
            if shared.same(values):
                return values[0]
            key = tuple(v if isinstance(v, fx.Node) else repr(v) for v in values)
            if key not in made:
                made[key] = self._insert(call, either, tuple(shared.sources(values)), before)
                self._later[made[key]] = functools.partial(self._known_of_either, shared, values)
            return made[key]

        for j in sorted(shared.kept):
            node, operands = live.nodes[j], [value(values, live.nodes[j]) for values in shared.operands(j)]
            node.args, node.kwargs = filled(live.args[j], operands)
        found = [value(values, None) for values in (shared.any_output() if outputs is None else outputs)]
        alone = {n for j, n in enumerate(live.nodes) if j not in shared.kept}
        instead = {key[0]: node for key, node in made.items() if key[0] in alone}
        if alone or made:
            call.branches = True
        self.hidden |= shared.parts()
        self.unshared |= shared.tensors()
        for inner in self.calls[calls:]:
            inner.args, inner.kwargs, inner.output = fx.node.map_arg(
                (inner.args, inner.kwargs, inner.output), lambda n: instead.get(n, n)
            )
        gone = [c for c in self.calls[calls:] if c.nodes and alone.issuperset(c.nodes)]
        self._erase(call, alone)
        self.calls[calls:] = [c for c in self.calls[calls:] if c not in gone]
        if outputs is None:
            return [self.proxy(node) for node in found]
        return filled(output, [self.proxy(v) if isinstance(v, fx.Node) else v for v in found])

    def _insert(
        self, call: Call, function: Callable[..., Any], args: tuple[fx.Node, ...], before: fx.Node | None
    ) -> fx.Node:
        """Insert a node for values that differ between paths, before another node or at the end."""
        with contextlib.nullcontext() if before is None else self.graph.inserting_before(before):
            node = self.graph.create_node("call_function", function, args)
        node.meta["call"] = call
        for outer in call.lineage():
            outer.nodes.insert(len(outer.nodes) if before is None else outer.nodes.index(before), node)
        return node

    def _erase(self, call: Call, alone: set[fx.Node]) -> None:
        """Erase operations that only one path runs, and unused reads of parameters."""
        erased = set()
        for node in reversed(list(call.nodes)):
            if node in alone or (node.op == "get_attr" and not node.users):
                self.graph.erase_node(node)
                erased.add(node)
        for outer in (*call.lineage(), *self.calls):
            outer.nodes = [n for n in outer.nodes if n not in erased]
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node in erased:
                del self._parameter_proxies[name]

    def _forget(self, nodes: list[fx.Node], calls: int) -> None:
        """Erase the operations that were recorded last."""
        erased = set(nodes)
        for node in reversed(nodes):
            self.graph.erase_node(node)
        for outer in self._stack if erased else ():
            outer.nodes = [n for n in outer.nodes if n not in erased]
        del self.calls[calls:]
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node in erased:
                del self._parameter_proxies[name]


@dataclass(frozen=True, eq=False)
class _Beginning:
    """The state before a forward ran.

    Args:
        before: operations of the call so far: the arguments, for the root.
        calls: the number of calls so far.
        states: attributes of the modules and their values.
    """

    call: Call
    before: list[fx.Node]
    calls: int
    states: States

    def new_nodes(self) -> list[fx.Node]:
        """Return the operations that the call has recorded since."""
        return self.call.nodes[len(self.before) :]


class OutputStructureError(UnreadableError):
    """Raised for a child that returns a tensor on one path and another structure on another."""


_RETRY: Any = object()


class _Retry(Exception):
    """Raised to run a forward again that has several paths or converts sizes."""


def _part_of(call: Call, node: fx.Node) -> str | None:
    """Return the path of the module, called directly by a call's forward, that runs an operation."""
    inner = None
    for at in node.meta["call"].lineage():
        if at is call:
            break
        inner = at
    return None if inner is None else inner.path
