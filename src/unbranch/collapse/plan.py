"""What to compute from what: every value of a trace as a map of earlier values, and the cheapest choice.

Each tensor that something needs is computed either by its own operation or by one merged layer from a value
that all its paths come from. The choice is made by dynamic programming over the affine region: a plan's cost
adds arithmetic, numbers moved and launches, and a plan is admitted only if it has no more multiply-accumulates,
stored numbers or launches than the operations it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx

from ..algebra import identity
from ..errors import Inexact, NotAffine
from .emit import Layer, layers_for, own_padding
from .prove import run_nodes
from .rules import Rule, rule_of_function, rule_of_method, rule_of_module
from .rules.layers import parameter_numbers
from .trace import Trace
from .value import Affine, Bundle

SIDE = 14  # grid points per dimension assumed at a root
LAUNCH = 2.5e5  # one launch, in multiply-accumulates of the same time: 5 µs at 50 GMAC/s
MOVED = 20.0  # one number read or written: 4 bytes at 10 GB/s
_FARTHEST = 64  # roots considered for one value
_VIEWS = {"view", "reshape", "permute", "transpose", "flatten", "chunk", "split", "squeeze", "unsqueeze", "contiguous",
          "expand", "narrow", "detach", "unbind", "t", "movedim", "unflatten", "getitem"}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Arithmetic, stored numbers, launches and numbers moved."""

    macs: float = 0.0
    numbers: float = 0.0
    launches: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs, self.numbers + other.numbers, self.launches + other.launches,
            self.moved + other.moved,
        )  # fmt: skip

    def within(self, limit: Cost) -> bool:
        slack = 1 + 1e-9
        return all(
            a <= b * slack
            for a, b in (
                (self.macs, limit.macs), (self.numbers, limit.numbers), (self.launches, limit.launches),
            )
        )  # fmt: skip

    @property
    def time(self) -> float:
        return self.macs + LAUNCH * self.launches + MOVED * self.moved


@dataclass(frozen=True, eq=False)
class Merge:
    """Compute ``target`` from ``root`` by one layer.

    Args:
        layer: how the map is built.
        inside: the operations between the two whose results nothing else needs, the target's included.
        before, after: cost of what it replaces, and its own.
    """

    root: fx.Node
    target: fx.Node
    layer: Layer
    inside: tuple[fx.Node, ...]
    before: Cost
    after: Cost


@dataclass(frozen=True, eq=False)
class Kept:
    """An operation of the region that stays because merging it isn't exact or costs more."""

    node: fx.Node
    reason: str
    exact: bool


@dataclass(eq=False)
class Plan:
    """Merges of one trace, and what stays with the reason."""

    merges: list[Merge]
    kept: list[Kept]


@dataclass(eq=False)
class _Step:
    """How a node is computed: by its own operation, or from ``root`` by one layer."""

    cost: Cost
    root: fx.Node | None = None
    layer: Layer | None = None


@dataclass(eq=False)
class Region:
    """Every value of a trace, interpreted relative to every earlier value that it is a map of.

    Args:
        barred: (root, target) pairs that were tried and found not exact.
        hooked: paths of modules whose inputs and outputs someone watches.
        shared: paths of leaves that must stay because their parameters are used elsewhere, with the reason.
    """

    trace: Trace
    barred: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    hooked: frozenset[str] = frozenset()
    shared: dict[str, str] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = {node: j for j, node in enumerate(self.trace.graph.nodes)}
        self.values: dict[fx.Node, dict[fx.Node, Affine | Bundle]] = {}
        self.refused: dict[fx.Node, str] = {}
        self.grids: dict[fx.Node, tuple[int, ...]] = {}
        self._identities: dict[fx.Node, Affine | None] = {}
        self.constant = {n for n in self.order if n.op == "get_attr"}
        for node in self.order:
            if node.op in ("call_function", "call_method") and node.all_input_nodes:
                if all(n in self.constant for n in node.all_input_nodes):
                    self.constant.add(node)
        self.pinned = _pinned(self.trace)
        self.barriers = self._barriers()
        for node in self.order:
            self._interpret(node)

    # --- interpretation

    def rule(self, node: fx.Node) -> Rule | None:
        """The rule of a node's operation, if it has one and may be merged at all."""
        if node in self.constant:
            return None
        if node.op == "call_module":
            path = str(node.target)
            if node.meta.get("passes"):
                return _PASS
            return rule_of_module(self.trace.module.get_submodule(path))
        if node.op == "call_function":
            return rule_of_function(node.target)
        return rule_of_method(str(node.target)) if node.op == "call_method" else None

    def _barriers(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for call in self.trace.calls:
            if call.path in self.hooked:
                fx.node.map_arg((call.args, call.kwargs, call.output), found.add)
        return found

    def _stays(self, node: fx.Node) -> str | None:
        """Why a node with a rule must be left as it is."""
        if node in self.pinned:
            return self.pinned[node]
        if node.op == "call_module":
            path = str(node.target)
            if path in self.hooked:
                return "it has a hook, which would be lost"
            return self.shared.get(path)
        return None

    def _interpret(self, node: fx.Node) -> None:
        rule = self.rule(node)
        if rule is None:
            return
        reason = self._stays(node)
        if reason is not None:
            self.refused[node] = reason
            return
        found, reason = {}, None
        for root in self.roots_of(node):
            try:
                found[root] = self.evaluate(node, root, {})
            except NotAffine:
                continue
            except Inexact as error:
                reason = str(error)
            except Exception as error:  # a rule met arguments that it doesn't know: opaque, never fatal
                reason = f"its arguments aren't understood ({type(error).__name__}: {error})"
        if found:
            self.values[node] = found
            root, value = next(iter(found.items()))
            m = value.map if isinstance(value, Affine) else value.parts[0].map
            self.grids[node] = tuple(max(1, n) for n in m.output_size(self._grid(root, m.ndim)))
        if reason is not None:
            self.refused[node] = reason

    def _grid(self, node: fx.Node, ndim: int) -> tuple[int, ...]:
        """Size of a value's grid, on the assumption that it starts from roots of ``SIDE`` points."""
        known = self.grids.get(node, ())
        return known if len(known) == ndim else (SIDE,) * ndim

    def _points(self, node: fx.Node, ndim: int) -> int:
        return prod(self._grid(node, ndim))

    def roots_of(self, node: fx.Node) -> list[fx.Node]:
        """Values that all inputs of a node come from, nearest first."""
        common: set[fx.Node] | None = None
        for source in node.all_input_nodes:
            if source in self.constant:
                continue
            roots = {source} if source in self.barriers else {source, *self.values.get(source, ())}
            common = roots if common is None else common & roots
        allowed = [
            r
            for r in common or ()
            if (r, node) not in self.barred and r not in self.pinned and self._identity(r) is not None
        ]
        return sorted(allowed, key=self.order.__getitem__, reverse=True)[:_FARTHEST]

    def evaluate(self, node: fx.Node, root: fx.Node, real: dict[fx.Node, Affine | Bundle]) -> Any:
        """Run one operation on operators: those in ``real``, or on the meta device where that is empty.

        Raises:
            Inexact: if a law refuses.
        """
        rule = self.rule(node)
        assert rule is not None

        def value(source: fx.Node) -> Any:
            if source in self.constant:
                return self.constant_value(source)
            if real:
                return real[source]
            return self._identity(root) if source is root else self.values[source][root]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            args = (self.trace.module.get_submodule(str(node.target)), *args)
        with torch.no_grad():
            result = rule.apply(*args, **kwargs)
        return result if real else _on_meta(result)

    def realised(self, merge: Merge) -> Affine:
        """The merged map with its kernel's values, in float64.

        Raises:
            Inexact: if a law that planning took for granted refuses after all.
        """
        real: dict[fx.Node, Affine | Bundle] = {}
        root = self._identity(merge.root)
        assert root is not None
        real[merge.root] = Affine(identity(root.channels, root.map.ndim, device=self._device(merge)), root.last)
        path = list(_between(merge.root, merge.target, self.order))
        for j, node in enumerate(path):
            real[node] = self.evaluate(node, merge.root, real)
            needed = {n for later in path[j + 1 :] for n in later.all_input_nodes}
            for done in [n for n in real if n not in needed and n is not node]:
                del real[done]
        result = real[merge.target]
        assert isinstance(result, Affine)
        return result

    def _device(self, merge: Merge) -> torch.device:
        weight = self.weight_like(merge)
        return weight.device

    def weight_like(self, merge: Merge) -> torch.Tensor:
        """The weight whose dtype, device and memory format the merged layer takes: the largest inside."""
        found = list(self.parameters(merge))
        if found:
            return max(found, key=lambda t: t.numel())
        module = self.trace.module
        around = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
        return next(around, torch.empty(0))

    def parameters(self, merge: Merge) -> Iterator[torch.Tensor]:
        """Floating parameters and buffers that take part in a merge."""
        for node in _between(merge.root, merge.target, self.order):
            if node.op == "call_module":
                module = self.trace.module.get_submodule(str(node.target))
                yield from (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
            for source in node.all_input_nodes:
                if source in self.constant:
                    yield from (t for t in self.leaf_constants(source) if t.is_floating_point())

    def leaf_constants(self, node: fx.Node) -> Iterator[torch.Tensor]:
        """The parameters and buffers that a constant is computed from."""
        if node.op == "get_attr":
            value = run_attribute(self.trace, node)
            if isinstance(value, torch.Tensor):
                yield value
        for source in node.all_input_nodes:
            yield from self.leaf_constants(source)

    def constant_value(self, node: fx.Node) -> Any:
        if node not in self.constants:
            if node.op == "get_attr":
                self.constants[node] = run_attribute(self.trace, node)
            else:
                known = {n: self.constant_value(n) for n in node.all_input_nodes}
                self.constants[node] = run_nodes([node], known, self.trace.module)
        return self.constants[node]

    def _identity(self, root: fx.Node) -> Affine | None:
        """The identity on a root, if something that reads it tells how many channels it has."""
        if root not in self._identities:
            found = self._channels(root, depth=4)
            self._identities[root] = None if found is None else Affine(
                identity(found[0], found[1], device="meta"), found[2]
            )  # fmt: skip
        return self._identities[root]

    def _channels(self, node: fx.Node, depth: int) -> tuple[int, int, bool] | None:
        best = None
        for user in node.users:
            rule = self.rule(user)
            if rule is None:
                continue
            if rule.channels is not None:
                found = rule.channels(self.trace.module.get_submodule(str(user.target)))
            elif user.op == "call_function" and rule.kind == "kernel":
                found = self._channels_of_function(user)
            elif depth and (rule.kind == "view" or rule.kind == "elementwise") and len(user.all_input_nodes) < 3:
                found = self._channels(user, depth - 1) if user.target not in _CHANGES_CHANNELS else None
            else:
                found = None
            if found is not None and (best is None or found[1] > best[1]):
                best = found
        return best

    def _channels_of_function(self, node: fx.Node) -> tuple[int, int, bool] | None:
        args = dict(zip(("input", "weight"), node.args, strict=False)) | dict(node.kwargs)
        source = args.get("weight")
        if not isinstance(source, fx.Node) or source not in self.constant:
            return None
        weight = self.constant_value(source)
        if weight.dim() == 2:
            return weight.shape[1], 0, True
        groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
        transposed = "transpose" in getattr(node.target, "__name__", "")
        channels = weight.shape[0] if transposed else weight.shape[1] * groups
        return (channels, weight.dim() - 2, False) if isinstance(groups, int) else None

    # --- choice

    def plan(self) -> Plan:
        """The cheapest way to compute what is needed."""
        chosen = self._choose()
        merges = []
        for target, step in chosen.items():
            if step.root is not None and step.layer is not None:
                inside = tuple(n for n in _between(step.root, target, self.order) if n not in chosen or n is target)
                before = sum((self._own_cost(n) for n in inside), Cost())
                tail = tuple(self._identities_after(target, step.root))
                merges.append(Merge(step.root, (target, *tail)[-1], step.layer, inside + tail, before, step.cost))
        merges.sort(key=lambda m: self.order[m.target])
        return Plan(merges, list(self._kept(chosen)))

    def _choose(self) -> dict[fx.Node, _Step]:
        """A step for every node that has to be computed.

        Needed values are planned in order. Where that would repeat operations, because two merges swallow them or
        an earlier one did, and so would cost more than the original, the values they share are needed too.
        """
        needed = self._demanded()
        while True:
            chosen: dict[fx.Node, _Step] = {}
            paid: set[fx.Node] = set()
            for node in sorted(needed, key=self.order.__getitem__):
                best, original = self._best(node, chosen, {})
                limit = sum((c for n, c in original.items() if n not in paid), Cost())
                if not _total(best).within(limit):
                    shared = {n for n in original if _readers(n, original, paid) > 1} - needed
                    if shared:
                        needed |= shared
                        break
                    best = {n: _Step(c) for n, c in original.items()}
                chosen |= best
                paid |= set(original)
            else:
                return chosen

    def _identities_after(self, node: fx.Node, root: fx.Node) -> Iterator[fx.Node]:
        """``nn.Identity`` layers that are all that reads a node: a merge takes them along."""
        while len(node.users) == 1:
            (node,) = node.users
            known = root in self.values.get(node, ()) and node not in self.barriers
            if not known or node.op != "call_module" or not self._is_identity_layer(node):
                return
            yield node

    def _is_identity_layer(self, node: fx.Node) -> bool:
        return type(self.trace.module.get_submodule(str(node.target))) is torch.nn.Identity

    def _demanded(self) -> set[fx.Node]:
        """Values of affine operations that something else reads."""
        needed: set[fx.Node] = {n for n in self.barriers if n in self.values}
        for node in self.order:
            if node not in self.values and node not in self.trace.checks:
                needed.update(n for n in node.all_input_nodes if n in self.values)
        return needed

    def _best(
        self, node: fx.Node, chosen: dict[fx.Node, _Step], memo: dict[fx.Node, Any]
    ) -> tuple[dict[fx.Node, _Step], dict[fx.Node, Cost]]:
        """The cheapest steps that give a node, and the costs of the original operations for it."""
        if node in chosen or node not in self.values:
            return {}, {}
        if node in memo:
            return memo[node]  # type: ignore[no-any-return]
        steps: dict[fx.Node, _Step] = {}
        original: dict[fx.Node, Cost] = {}
        for source in node.all_input_nodes:
            below, costs = self._best(source, chosen, memo)
            steps |= below
            original |= costs
        own = self._own_cost(node)
        steps = steps | {node: _Step(own)}
        original = original | {node: own}
        limit = sum(original.values(), Cost())
        cheapest = _total(steps)
        for root in self.values[node]:
            for layer in self._layers(node, root):
                candidate = self._best(root, chosen, memo)[0] | {node: _Step(self._cost(node, root, layer), root, layer)}
                cost = _total(candidate)
                if cost.within(limit) and cost.time < cheapest.time * (1 - 1e-9):
                    steps, cheapest = candidate, cost
        memo[node] = steps, original
        return steps, original

    def _layers(self, node: fx.Node, root: fx.Node) -> list[Layer]:
        value = self.values[node][root]
        if not isinstance(value, Affine):
            return []
        try:
            return layers_for(value.map)
        except Inexact:
            return []

    def _cost(self, node: fx.Node, root: fx.Node, layer: Layer) -> Cost:
        value = self.values[node][root]
        assert isinstance(value, Affine)
        ndim = value.map.ndim
        out = self._points(node, ndim)
        moved = value.map.in_channels * self._points(root, ndim) + value.map.out_channels * out
        return Cost(layer.macs(value.map, out), layer.numbers(value.map), layer.launches(value.map), moved)

    def _own_cost(self, node: fx.Node) -> Cost:
        """What a node's own operation costs."""
        rule = self.rule(node)
        if rule is None or rule.kind == "view" or node not in self.values:
            return Cost()
        sources = [n for n in node.all_input_nodes if n not in self.constant]
        value = next(iter(self.values[node].values()))
        numbers = float(sum(t.numel() for n in node.all_input_nodes if n in self.constant for t in self.leaf_constants(n)))
        if node.op == "call_module":
            numbers += parameter_numbers(self.trace.module.get_submodule(str(node.target)))
        if not isinstance(value, Affine):
            return Cost(numbers=numbers, launches=1)
        ndim = value.map.ndim
        out = self._points(node, ndim)
        macs, launches = 0.0, 1
        near = self.values[node].get(sources[0])
        if rule.kind == "kernel" and isinstance(near, Affine):
            macs, launches = near.map.macs(out), 1 + own_padding(near.map)
        width = sum(_width(self._any_value(s)) * self._points(s, ndim) for s in sources)
        return Cost(macs, numbers, launches, width + value.channels * out)

    def _any_value(self, node: fx.Node) -> Affine | Bundle | None:
        known = self.values.get(node)
        return next(iter(known.values())) if known else self._identity(node)

    def _kept(self, chosen: dict[fx.Node, _Step]) -> Iterator[Kept]:
        """What stays although something linear stands before it, or a law refused."""
        swallowed = {
            n for t, s in chosen.items() if s.root is not None for n in _between(s.root, t, self.order)
        } - {n for n, s in chosen.items() if s.root is None}
        for node, reason in self.refused.items():
            if node not in swallowed:
                yield Kept(node, reason, exact=False)
        for node, step in chosen.items():
            rule = self.rule(node)
            if step.root is not None or node in self.refused or rule is None or rule.kind == "view":
                continue
            if any(sum(1 for n in _between(r, node, self.order) if self._launches(n)) > 1 for r in self.values[node]):
                yield Kept(node, "merging it would cost more than it saves", exact=True)


    def _launches(self, node: fx.Node) -> bool:
        rule = self.rule(node)
        return rule is not None and rule.kind != "view"


_PASS = Rule(lambda _module, x, *args, **kwargs: x, "view")  # noqa: ARG005
_CHANGES_CHANNELS = {torch.cat, torch.concat, torch.concatenate, torch.chunk, torch.split, "chunk", "split"}


def _readers(node: fx.Node, original: dict[fx.Node, Cost], paid: set[fx.Node]) -> int:
    """How many operations of a plan read a node; those that an earlier plan paid for count as one."""
    return sum(u in original and u not in paid for u in node.users) + (node in paid)


def run_attribute(trace: Trace, node: fx.Node) -> Any:
    """The value of a ``get_attr`` node."""
    value: Any = trace.module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _total(steps: dict[fx.Node, _Step]) -> Cost:
    return sum((s.cost for s in steps.values()), Cost())


def _width(value: Affine | Bundle | None) -> float:
    if value is None:
        return 0.0
    return float(value.channels if isinstance(value, Affine) else sum(p.channels for p in value.parts))


def _on_meta(value: Any) -> Affine | Bundle:
    if isinstance(value, Bundle):
        return Bundle(tuple(_on_meta(p) for p in value.parts), value.stacked)  # type: ignore[arg-type]
    if not isinstance(value, Affine):
        raise Inexact(f"its rule returned {type(value).__name__} instead of a value")
    return Affine(value.map.meta(), value.last)


def _between(root: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Operations on the paths from ``root`` to ``target``, the target's included, in order."""
    found: set[fx.Node] = set()
    stack = [target]
    while stack:
        node = stack.pop()
        if node in found or node is root or order[node] < order[root]:
            continue
        found.add(node)
        stack += node.all_input_nodes
    reached = {root}
    for node in sorted(found, key=order.__getitem__):
        if any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return sorted(reached - {root}, key=order.__getitem__)


# --- values that are changed in place ---------------------------------------------------------------


def _pinned(trace: Trace) -> dict[fx.Node, str]:
    """Nodes whose value changes in place while something else reads it: they keep their operations."""
    base: dict[fx.Node, fx.Node] = {}
    family: dict[fx.Node, set[fx.Node]] = {}
    for node in trace.graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes and _is_view(trace, node) else None
        base[node] = base[source] if source is not None else node
        family.setdefault(base[node], set()).add(node)
    pinned: dict[fx.Node, str] = {}
    for node in trace.graph.nodes:
        target = _changed_in_place(trace, node)
        if target is None:
            continue
        members = family[base[target]]
        readers = {u for m in members for u in m.users} - members - {node}
        readers -= trace.checks
        arrived = base[target].op == "placeholder" and node.op != "call_module"
        if readers or arrived:
            reason = "a value it reads is changed in place"
            for pinned_node in (*members, node):
                pinned[pinned_node] = reason
    return pinned


def _is_view(trace: Trace, node: fx.Node) -> bool:
    if node.op == "call_module":
        rule = rule_of_module(trace.module.get_submodule(str(node.target)))
        return bool(node.meta.get("passes")) or (rule is not None and rule.kind == "view")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _VIEWS


def _changed_in_place(trace: Trace, node: fx.Node) -> fx.Node | None:
    """The value that an operation writes to, if it does."""
    if not node.all_input_nodes or node.op not in ("call_module", "call_method", "call_function"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        writes = bool(getattr(trace.module.get_submodule(str(node.target)), "inplace", False))
        writes = writes and not _is_view(trace, node)
    elif node.op == "call_method":
        writes = name.endswith("_") and not name.endswith("__")
    else:
        operators = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "setitem")
        writes = name in operators or (name.endswith("_") and not name.startswith("_"))
        writes = writes or node.kwargs.get("inplace") is True
    first = node.args[0] if node.args else None
    return first if writes and isinstance(first, fx.Node) else None


