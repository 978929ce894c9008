"""One attempt at converting a network: trace, interpret, plan, build each merge, place, rewrite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unbranch.convert.account import Account, name_of, sources_of
from unbranch.convert.faults import in_part
from unbranch.convert.lines import place_of
from unbranch.convert.passes.reading import traces_of
from unbranch.convert.prove.differences import lies_in
from unbranch.convert.prove.forwards import EXACT, ROUNDED, Forwards
from unbranch.convert.prove.merged_layers import Built
from unbranch.convert.prove.watch import Rows
from unbranch.convert.reasons import (
    HOOKED,
    REACHED,
    READ,
    SCRIPTED,
    SEVERAL_WAYS,
    SHARED,
    UNPROVED,
    untraced,
    used_often,
)
from unbranch.convert.report import Refusal, Report
from unbranch.convert.rewrite.blueprint import Blueprint
from unbranch.convert.rewrite.place import unit_of
from unbranch.convert.rewrite.placement import Rebuild, Swap
from unbranch.convert.rewrite.rewrite import copied, rebuild, replaced_modules
from unbranch.convert.source.methods import parts_run_by_forward
from unbranch.convert.trace.part_examples import PartExamples
from unbranch.convert.trace.trace import Call, Trace
from unbranch.convert.trace_plan import DROPPED, MergeKey, TracePlan, TracePlanner, merge_key
from unbranch.graph.eval_view import eval_view, has_hooks, owners_of, training_only_modules
from unbranch.graph.probe import Arguments
from unbranch.rules import rule_of_module


@dataclass(eq=False)
class Attempt:
    """One attempt at a network; each trace is planned again until all its merges are exact and have a place.

    Args:
        pair: inputs of two sizes, if any were found.
        excluded: merges that a proof has disproved, with the reasons.
        built: merged layers of earlier attempts.
        faulty: paths of parts that must not be traced as a whole, with the reasons.
    """

    network: nn.Module
    pair: tuple[Arguments, Arguments] | None = None
    memo: dict[int, Any] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    excluded: dict[MergeKey, str] = field(default_factory=dict)
    built: dict[Any, Built] = field(default_factory=dict)
    faulty: dict[str, str] = field(default_factory=dict)
    units: dict[str, list[MergeKey]] = field(default_factory=dict)
    blueprints: list[Blueprint] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)
    used: list[Built] = field(default_factory=list)
    unmoved: set[str] = field(default_factory=set)
    walked: dict[str, list[MergeKey]] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.examples = PartExamples(self.network, self.pair)
        self.account.blind = self.pair is None

    def run(self) -> None:
        """Trace the network, plan every trace, and build the merged layers."""
        view = eval_view(self.network)
        for path, part in training_only_modules(self.network):
            self.memo[id(part)] = type(part)()
            view.set_submodule(path, type(part)())
        traces, unread = traces_of(view, self.examples.of, self.faulty)
        hooked = self._watched(traces, unread)
        owners, read = owners_of(self.network), {id(trace): trace.read() for trace in traces}
        self._note_untraced(traces, unread)
        for trace in traces:
            elsewhere = set().union(*(ids for of, ids in read.items() if of != id(trace)))
            with in_part(trace.path):
                self._convert(trace, hooked, owners, elsewhere | trace.read_on_some_ways())

    def _note_untraced(self, traces: list[Trace], unread: dict[str, str]) -> None:
        """Record forwards that can't be traced, with the layers that no other trace shows, and ScriptModules."""
        seen = {trace.full_path(call.path) for trace in traces for call in trace.calls if call.leaf}
        for path, reason in unread.items():
            layers = {p for p, m in self.network.named_modules() if lies_in(p, path) and rule_of_module(m) is not None}
            self.account.unread.append((Refusal(path, untraced(reason)), layers - seen))
        for path, module in self.network.named_modules():
            around = self.network.get_submodule(path.rpartition(".")[0])
            scripted = isinstance(module, torch.jit.ScriptModule) and not isinstance(around, torch.jit.ScriptModule)
            if scripted and any(p.dim() > 1 for p in module.parameters()):
                self.account.refuse((path,), SCRIPTED)

    def _watched(self, traces: list[Trace], unread: dict[str, str]) -> dict[str, str]:
        """Return the paths of modules whose inputs and outputs are observed, with the reason."""
        named = list(self.network.named_modules(remove_duplicate=False))
        hidden = {id(self.network.get_submodule(t.full_path(path))) for t in traces for path in t.hidden}
        unknown = {id(m) for path in unread for m in parts_run_by_forward(self.network.get_submodule(path))}
        found: dict[str, str] = {path: SEVERAL_WAYS for path, m in named if id(m) in hidden}
        found |= {path: REACHED for path, m in named if id(m) in unknown}
        return found | {path: HOOKED for path, m in named if has_hooks(m)}

    def _convert(
        self, trace: Trace, hooked: dict[str, str], owners: dict[int, set[int]], elsewhere: set[int]
    ) -> None:  # fmt: skip
        inner = {_inner_path(trace, p): why for p, why in hooked.items() if lies_in(p, trace.path)}
        shared = _shared(trace, owners, elsewhere)
        planner = TracePlanner(self.network, trace, inner, shared, self.unmoved, self.excluded, self.built)
        planned = planner.run()
        self.used += planner.done.values()
        # Modules inside other parts come from later traces.
        made = replaced_modules(planned.interpretation, planned.rewrites, self.network, planned.layers, self.memo)
        self.blueprints[:0] = made
        for call in planned.dropped:
            self._drop(planned.trace, call)
        for rewrite in planned.rewrites:
            self._enter(planned.trace, rewrite)
        self._record(planned)

    def _drop(self, trace: Trace, call: Call) -> None:
        """Replace an unused part by an identity."""
        path = trace.full_path(call.path)
        self.memo[id(self.network.get_submodule(path))] = nn.Identity()
        self.units.setdefault(trace.path, []).append((trace.path, DROPPED, call.path))
        self.places.append((trace.path, path))
        self.account.dropped.append(path)

    def _enter(self, trace: Trace, rewrite: Swap | Rebuild) -> None:
        """Record which parts a rewrite affects, for the proof."""
        keys = [merge_key(trace, merge) for merge in rewrite.all_merges]
        unit = trace.full_path(unit_of(rewrite))
        self.units.setdefault(unit, []).extend(keys)
        self.units.setdefault(trace.path, [])
        row = tuple(trace.full_path(p) for p in rewrite.paths) if isinstance(rewrite, Swap) else ()
        part = unit if isinstance(rewrite, Rebuild) or len(row) == 1 else ""
        self.rows |= dict.fromkeys(keys, (row, part))
        self.places += [(unit, path) for path in row]
        for method in rewrite.walked if isinstance(rewrite, Swap) else ():
            self.walked.setdefault(method, []).extend(keys)

    def round(self) -> None:
        """Cast the merged layers to the dtype of the layers that they replace."""
        for built in self.used:
            built.layer.to(built.dtype)

    def disproved(self, plain: nn.Module, forwards: Forwards) -> dict[MergeKey, str]:
        """Return the merges that the original's own forwards disprove, with the reason.

        If a part differs, the rewrites whose smallest containing part it is are wrong; if there are none, those inside
        it are.
        """
        exact = all(built.exact for built in self.used)
        tolerance = EXACT if exact else ROUNDED / 10
        crossed = {path for path in self.units if self._crossed(path)} - {""}
        verdict = forwards.compare(plain, {"", *self.units} - crossed, crossed, tolerance)
        wrong: dict[MergeKey, str] = {}
        for method, merges in self.walked.items():
            if (reason := forwards.method_differs(plain, method, tolerance)) is not None:
                wrong |= dict.fromkeys(merges, reason)
        for path, reason in sorted(verdict.different.items(), key=lambda item: item[0].count("."), reverse=True):
            own = self.units.get(path, ())
            if not own and not wrong:
                own = [merge for inner, merges in self.units.items() if lies_in(inner, path) for merge in merges]
            wrong |= dict.fromkeys(own, reason)
        for path, merges in self.units.items() if not wrong else ():
            if not verdict.holds(path):
                reason = verdict.unprovable.get(path) or verdict.unprovable.get("") or UNPROVED
                wrong |= dict.fromkeys(merges, reason)
        return wrong or forwards.differing_options(self.rows, tolerance)

    def _crossed(self, path: str) -> bool:
        """Whether something moves into a part from outside, such as the norm after a stem, and changes its output."""
        return any(lies_in(place, path) and not lies_in(unit, path) for unit, place in self.places)

    def _record(self, planned: TracePlan) -> None:
        trace, account = planned.trace, self.account
        for rewrite in planned.rewrites:
            for merge in rewrite.all_merges:
                built, sources = planned.built[merge], sources_of(planned.interpretation, merge)
                account.merge(trace.full_path(rewrite.place), sources, built.layer, built.error)
        for names, (reason, node) in planned.rejected.items():
            account.refuse(names, reason, node)
        nodes = {node.name: node for node in trace.graph.nodes}
        for (path, _, target), reason in self.excluded.items():
            if path == trace.path and target in nodes:
                account.refuse((name_of(trace, nodes[target]),), reason, nodes[target])
        for skipped in planned.plan.skipped:
            if skipped.exact:
                where = place_of(skipped.node)
                account.kept.append(Refusal(name_of(trace, skipped.node), skipped.reason, exact=True, where=where))
            else:
                account.refuse((name_of(trace, skipped.node),), skipped.reason, skipped.node)
        account.norms_of(trace, {n for m in planned.plan.merges for n in m.inside})

    def result(self) -> nn.Module:
        """Return the converted network."""
        rebuild(self.blueprints, self.memo)
        return copied(self.network, self.memo)

    def report(self, plain: nn.Module, inputs: tuple[Any, ...] | None) -> Report:
        """Return the report of the conversion to ``plain``."""
        return self.account.report(self.network, plain, inputs)


def _inner_path(trace: Trace, path: str) -> str:
    return path[len(trace.path) :].lstrip(".")


def _shared(trace: Trace, owners: dict[int, set[int]], elsewhere: set[int]) -> dict[str, str]:
    """Return paths of layers that must not be merged because their parameters are also used elsewhere.

    ``elsewhere`` has the ids of parameters that forwards outside this trace read.
    """
    found: dict[str, str] = {}
    times = trace.times_called()
    for call in trace.calls:
        if call.leaf and rule_of_module(call.module) is None:
            continue
        own = [p for p in (*call.module._parameters.values(), *call.module._buffers.values()) if p is not None]
        if own and times[id(call.module)] > 1:
            found[call.path] = used_often(times[id(call.module)])
        elif any(len(owners.get(id(p), ())) > 1 for p in own):
            found[call.path] = SHARED
        elif any(id(p) in elsewhere for p in own):
            found[call.path] = READ
    return found
