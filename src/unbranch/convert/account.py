"""Collect merges and refusals of a conversion, and select those that matter to a user for its report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from unbranch.convert.costs import cost_of
from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.lines import place_of
from unbranch.convert.plan.plan import Merge
from unbranch.convert.reasons import NO_INPUT, NO_NEIGHBOUR, Reason, remedy_of
from unbranch.convert.report import MergeRecord, Refusal, Report
from unbranch.convert.trace.decisions import either
from unbranch.convert.trace.trace import Trace
from unbranch.graph.operations import operation_name
from unbranch.rules import rule_of_module


@dataclass(eq=False)
class Account:
    """Records of a conversion.

    Args:
        merged: each merge, with its layer.
        refused: rejected merges, with the names of their modules and operations.
        kept: operations whose merge would be exact but cost more.
        norms: batch norms that no other layer can absorb.
        unread: modules whose forward couldn't be traced, with the paths of layers that no other trace contains.
        dropped: paths of removed parts, whose outputs aren't used.
        blind: whether no example input was found, so that sizes in the network are unknown.
    """

    merged: list[tuple[MergeRecord, nn.Module]] = field(default_factory=list)
    refused: list[tuple[tuple[str, ...], Refusal]] = field(default_factory=list)
    kept: list[Refusal] = field(default_factory=list)
    norms: list[Refusal] = field(default_factory=list)
    unread: list[tuple[Refusal, set[str]]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    blind: bool = False

    def refuse(self, sources: tuple[str, ...], reason: str, node: fx.Node | None = None) -> None:
        """Record operations that can't be merged."""
        where = "" if node is None else place_of(node)
        refusal = Refusal(" + ".join(sources), reason, where=where, remedy=remedy_of(reason))
        self.refused.append((sources, refusal))

    def merge(self, place: str, sources: tuple[str, ...], layer: nn.Module, error: float | None) -> None:
        """Record a merge."""
        words = " → ".join(map(repr, layer)) if isinstance(layer, nn.Sequential) else repr(layer)
        self.merged.append((MergeRecord(place, sources, words, error), layer))

    def norms_of(self, trace: Trace, gone: set[fx.Node]) -> None:
        """Record the batch norms of a trace that weren't merged."""
        for node in trace.graph.nodes:
            if node.op == "call_module" and node not in gone and node not in trace.moved and _is_norm(trace, node):
                words = f"it reads {_words_for(trace, node.args[0] if node.args else None)}"
                reason = Reason(words, kind=NO_NEIGHBOUR)
                path = trace.full_path(str(node.target))
                remedy = remedy_of(NO_INPUT) if self.blind else ""
                self.norms.append(Refusal(path, reason, where=place_of(node), cost="one batch norm", remedy=remedy))

    def report(self, network: nn.Module, plain: nn.Module, inputs: tuple[Any, ...] | None) -> Report:
        """Return the report of the conversion of ``network`` to ``plain``."""
        paths = {id(module): path for path, module in plain.named_modules()}
        merges = tuple(replace(r, layer_path=paths.get(id(layer), r.path)) for r, layer in self.merged)
        refusals = [*self._unread(merges, plain), *self._refused(merges)]
        named = {source for sources, _ in self.refused for source in sources} | {kept.path for kept in self.kept}
        still = {path for path, module in plain.named_modules() if _has_statistics(module)}
        norms = [n for n in self.norms if n.path in still and n.path not in named]
        return Report(
            type(network).__name__, merges, tuple(dict.fromkeys(refusals)), tuple(dict.fromkeys(self.kept)),
            cost_of(network, inputs), cost_of(plain, inputs), tuple(self.dropped), tuple(dict.fromkeys(norms)),
        )  # fmt: skip

    def _refused(self, merges: tuple[MergeRecord, ...]) -> Iterable[Refusal]:
        """Yield refusals with a cost, without those whose parts were merged into one layer by another merge."""
        largest = [
            (sources, refusal) for sources, refusal in self.refused
            if not any(set(sources) < set(more) and refusal.reason == r.reason for more, r in self.refused)
        ]  # fmt: skip
        for sources, refusal in largest:
            into = {m.layer_path for m in merges if set(m.sources) & set(sources)}
            left = set(sources) - {source for m in merges for source in m.sources}
            if left or len(into) > 1:
                many = len(into) + len(left)
                yield replace(refusal, cost=f"{many} operations where one would do" if many > 1 else "")

    def _unread(self, merges: tuple[MergeRecord, ...], plain: nn.Module) -> Iterable[Refusal]:
        """Yield forwards that couldn't be traced and contain norms or several layers, which might have been merged."""
        merged = {source for m in merges for source in m.sources}
        modules = dict(plain.named_modules())
        for refusal, layers in self.unread:
            left = sorted(layers - merged)
            norms = [path for path in left if _has_statistics(modules.get(path))]
            if norms or len(left) > 1:
                counted = "one batch norm isn't" if len(norms) == 1 else f"{len(norms)} batch norms aren't"
                cost = f"{counted} merged" if norms else f"{len(left)} layers are merged with nothing"
                yield replace(refusal, cost=cost, remedy=remedy_of(NO_INPUT) if self.blind else refusal.remedy)


def sources_of(interpretation: Interpretation, merge: Merge) -> tuple[str, ...]:
    """Return the names of the modules and operations that a merge replaces."""
    return tuple(name_of(interpretation.trace, n) for n in merge.inside if not _is_trivial(interpretation, n))


def _is_trivial(interpretation: Interpretation, node: fx.Node) -> bool:
    rule = interpretation.rule(node)
    return rule is None or rule.kind == "view"


def name_of(trace: Trace, node: fx.Node) -> str:
    """Return a node's name for reports: a module's path, or the path of the enclosing module and an operation."""
    if node in trace.moved:
        return " + ".join(trace.full_path(call.path) for call in trace.moved[node])
    if node.op == "call_module":
        return trace.full_path(str(node.target))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{trace.full_path(node.meta['call'].path)}:{name}".lstrip(":")


def _is_norm(trace: Trace, node: fx.Node) -> bool:
    module = trace.layer_of(node)
    return _has_statistics(module) and rule_of_module(module) is not None


def _has_statistics(module: nn.Module | None) -> bool:
    return isinstance(getattr(module, "running_var", None), Tensor)


def _words_for(trace: Trace, value: Any) -> str:
    """Describe the input of a norm, and why no layer there can absorb the norm."""
    while isinstance(value, fx.Node) and value.op == "call_module" and len(trace.readers(value)) == 1:
        passes = value.meta.get("passes") or isinstance(trace.layer_of(value), nn.Identity | nn.Dropout)
        if not passes or not isinstance(value.args[0] if value.args else None, fx.Node):
            break
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op == "placeholder":
        return "the input of its part, and no layer after it can merge with it"
    if value.op == "get_attr":
        return "a parameter"
    if value.target is either:
        return "a value that depends on the size of the input"
    others = len(trace.readers(value)) > 1
    if value.op == "call_module":
        path, module = str(value.target), trace.layer_of(value)
        if path in trace.failures:
            return f"the output of {trace.full_path(path)}, whose forward can't be read ({trace.failures[path]})"
        name = f"{type(module).__name__} {trace.full_path(path)}"
    else:
        name = operation_name(value)
    if others:
        return f"the output of {name}, which other operations read, too"
    return f"the output of {name}, and no adjacent layer can merge with it"
