"""What a conversion did, as values that render themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from torch import nn

from unbranch.convert.reasons import COSTS_MORE, kind_of
from unbranch.deprecation import RenamedAttribute
from unbranch.errors import CollapseError, InputError
from unbranch.graph.eval_view import unwrap_model
from unbranch.provenance import provenance_of
from unbranch.render import Block, Paragraph, Renderable, Table, count

ROWS = 40  # of a table, at most
SOURCES = 4  # of a merge, at most


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one form of a network.

    Args:
        params: parameters, trainable and frozen; buffers aren't counted.
        macs: multiply-accumulates of convolutions and linear layers by PyTorch's flop counter, None if unknown.
        launches: operations in one forward pass that compute or copy something, None if unknown.
        layers: number of convolution, linear, batch norm and average pool layers.
    """

    params: int
    macs: int | None
    launches: int | None
    layers: dict[str, int]


@dataclass(frozen=True)
class MergeRecord:
    """One merge.

    Args:
        path: where the merged layer is.
        sources: modules and operations that it replaces.
        layer: the merged layer, as it prints.
        error: largest difference over largest value in float64 on random input, None on the meta device.
        layer_path: of the merged layer itself, at or inside ``path``.
    """

    path: str
    sources: tuple[str, ...]
    layer: str
    error: float | None
    layer_path: str = ""


@dataclass(frozen=True)
class Refusal:
    """A merge that was skipped.

    Args:
        path: the module, or the module and the operation in it.
        reason: why it was skipped.
        exact: whether the merge would have been exact, but would cost more than it saves.
        where: file and line of the code that runs it, if known.
        cost: what skipping it costs.
        remedy: what to do about it, if something can be done.
        kind: the kind of the reason, a short name that stays the same when the words change.
    """

    path: str
    reason: str
    exact: bool = False
    where: str = ""
    cost: str = ""
    remedy: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", COSTS_MORE if self.exact else kind_of(self.reason))

    @property
    def text(self) -> str:
        """Reason, place, cost and remedy as one sentence."""
        text = f"{self.reason} ({self.where})" if self.where else self.reason
        return "; ".join(filter(None, (text, self.cost, self.remedy)))


@dataclass(frozen=True)
class Report(Renderable):
    """What ``collapse`` did to a network; ``unbranch.report`` reads it.

    Args:
        network: class of the network.
        merges: what was merged into what, with the measured error.
        refusals: merges that were skipped because they aren't exact or can't be written, where that costs something.
        kept: exact merges that were skipped because they would cost more than they save.
        before: cost of the network.
        after: cost of the collapsed network.
        dropped: parts that were removed, since nothing reads their output.
        norms: batch norms with no layer to merge into.
    """

    network: str
    merges: tuple[MergeRecord, ...]
    refusals: tuple[Refusal, ...]
    kept: tuple[Refusal, ...]
    before: NetworkCost
    after: NetworkCost
    dropped: tuple[str, ...] = ()
    norms: tuple[Refusal, ...] = ()

    stays = RenamedAttribute("skipped")

    @property
    def worst_error(self) -> float | None:
        """The largest error of any merge, None if none was measured."""
        return max((m.error for m in self.merges if m.error is not None), default=None)

    @property
    def summary(self) -> str:
        """One line: how many merges were made and skipped."""
        merges = "1 merge" if len(self.merges) == 1 else f"{len(self.merges)} merges"
        return f"{self.network}: {merges}; skipped {sum(len(found) for _, found in self.skipped())}"

    def skipped(self) -> list[tuple[str, tuple[Refusal, ...]]]:
        """Return what was skipped, by the heading that a report gives it."""
        found = [
            ("skipped, not exact", self.refusals),
            ("skipped, costs more than it saves", self.kept),
            ("batch norms with no layer to merge into", self.norms),
        ]
        return [(title, refusals) for title, refusals in found if refusals]

    def require_all(self) -> None:
        """Raise CollapseError if a merge was skipped because it isn't exact."""
        if self.refusals:
            listed = "\n".join(f"  {_at(r.path)}: {r.reason}" for r in self.refusals)
            many = "1 part" if len(self.refusals) == 1 else f"{len(self.refusals)} parts"
            raise CollapseError(f"{many} can't be merged exactly:\n{listed}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the worst error as plain values, ready for JSON."""
        return {**super().to_dict(), "worst_error": self.worst_error}

    def blocks(self) -> Iterable[Block]:
        """A summary, the costs, and a row for each merge and each skipped one."""
        yield Paragraph(self.summary, "bold")
        yield Table(("", "before", "after"), cost_rows(self.before, self.after), numeric=True)
        if self.worst_error is not None:
            yield Paragraph(f"worst error of a merge, in float64: {self.worst_error:.1e} of its largest output")
        if self.merges:
            rows = [(_at(m.path), _shortened(m), _plain_layer(m.layer), _scientific(m.error)) for m in self.merges]
            yield Table(("at", "from", "into", "error"), rows, title="merged", limit=ROWS)
        if self.dropped:
            yield Table(("at",), [(path,) for path in self.dropped], title="dropped, nothing reads them", limit=ROWS)
        for title, found in self.skipped():
            yield Table(("at", "reason"), [(_at(r.path), r.text) for r in found], title=title, limit=ROWS)


def cost_rows(before: NetworkCost, after: NetworkCost) -> list[Sequence[str]]:
    """Return the rows of a table of costs: MACs, parameters, operations and layers, before and after."""
    rows: list[Sequence[str]] = [
        ("multiply-accumulates", count(before.macs), count(after.macs)),
        ("parameters", count(before.params), count(after.params)),
        ("operations launched", count(before.launches), count(after.launches)),
    ]
    kinds = [kind for kind in before.layers if before.layers[kind] or after.layers.get(kind)]
    return rows + [(f"{kind} layers", count(before.layers[kind]), count(after.layers.get(kind, 0))) for kind in kinds]


def _at(path: str) -> str:
    return path or "(the network)"


def _shortened(merge: MergeRecord) -> str:
    """The first sources of a merge, without the path that they share."""
    more = f" and {len(merge.sources) - SOURCES} more" if len(merge.sources) > SOURCES else ""
    return ", ".join(source.removeprefix(f"{merge.path}.") for source in merge.sources[:SOURCES]) + more


def _plain_layer(layer: str) -> str:
    """``Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))`` as ``Conv2d(3, 8, 3×3)``."""
    layer = re.sub(r", (stride|dilation)=\(1(, 1)*,?\)", "", layer)
    return re.sub(r"kernel_size=\(([\d, ]+?),?\)", lambda found: found[1].replace(", ", "×"), layer)


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


@overload
def report(model: nn.Module, kind: Literal["collapse"]) -> Report: ...
@overload
def report(model: nn.Module, kind: str | None = None) -> Any: ...
def report(model: nn.Module, kind: str | None = None) -> Any:
    """Return the report of what was done to a network.

    Args:
        model: a network that a function of Unbranch returned, or a copy of it.
        kind: ``"collapse"``, ``"expand"``, ``"compact"`` (compactors were inserted) or ``"prune"`` for the last report
            of this kind; without it, the latest of any kind.

    Returns:
        A ``Report``, ``ExpansionReport``, ``CompactorReport`` or ``PruningReport``.

    Raises:
        InputError: if there is no such report.

    Example:
        >>> import unbranch as ub
        >>> ub.report(ub.collapse(ub.blocks.RepVGG(8, 8, 3, padding=1))).worst_error < 1e-10
        True
    """
    reports = provenance_of(unwrap_model(model)).reports
    if not reports or (kind is not None and kind not in reports):
        there = (
            f"; it has {', '.join(reports)}" if reports else ": nothing was done to it yet by collapse, expand or prune"
        )
        wanted = "report" if kind is None else f"report of the kind {kind!r}"
        raise InputError(f"{type(model).__name__} has no {wanted}{there}")
    return list(reports.values())[-1] if kind is None else reports[kind]
