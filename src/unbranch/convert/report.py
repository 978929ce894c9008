"""What a conversion did, as plain values that can print themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

from torch import nn

from unbranch.errors import InputError
from unbranch.provenance import provenance_of


@dataclass(frozen=True)
class NetworkCost:
    """What one form of a network costs.

    Args:
        params: trainable and frozen parameters, buffers not counted.
        macs: multiply-accumulates of convolutions and linear layers by PyTorch's flop counter, None if unknown.
        launches: operations that compute or move something in one forward pass, None if unknown.
        layers: how many convolution, linear, batch norm and average pool layers there are.
    """

    params: int
    macs: int | None
    launches: int | None
    layers: dict[str, int]


@dataclass(frozen=True)
class MergeRecord:
    """One merge.

    Args:
        path: where the merged layer stands.
        sources: modules and operations that it replaces.
        layer: the merged layer in words.
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
    """Something that stays as it is.

    Args:
        path: the module, or the module and the operation in it.
        reason: why, in words.
        exact: True if a merge would have been exact but would cost more than it saves.
        where: file and line of the code that runs it, where that is known.
        cost: what it costs that it stays, in words.
        remedy: what to do about it, in words, where something can be done.
    """

    path: str
    reason: str
    exact: bool = False
    where: str = ""
    cost: str = ""
    remedy: str = ""

    @property
    def text(self) -> str:
        """Reason, place, cost and remedy as one sentence."""
        text = f"{self.reason} ({self.where})" if self.where else self.reason
        return "; ".join(filter(None, (text, self.cost, self.remedy)))


@dataclass(frozen=True)
class Report:
    """The account of a conversion, offered as ``network.collapse_report``.

    Args:
        network: class of the network.
        merges: what was merged into what, with the proof's error.
        refusals: what stays because merging it wouldn't be exact or can't be written, where something is lost by that.
        kept: what stays because merging would cost more.
        before, after: cost of both forms.
        dropped: parts that went, since nothing reads what they compute.
        norms: batch norms that stay since there is nothing beside them to take them in.
    """

    network: str
    merges: tuple[MergeRecord, ...]
    refusals: tuple[Refusal, ...]
    kept: tuple[Refusal, ...]
    before: NetworkCost
    after: NetworkCost
    dropped: tuple[str, ...] = ()
    norms: tuple[Refusal, ...] = ()

    @property
    def worst_error(self) -> float | None:
        """The largest error of any merge, None if nothing was proved."""
        return max((m.error for m in self.merges if m.error is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, ready for JSON."""
        return {**asdict(self), "worst_error": self.worst_error}

    def __str__(self) -> str:
        lines = [f"{self.network}: {len(self.merges)} merges, {len(self.refusals)} refusals, {len(self.kept)} kept", ""]
        lines += _table(("", "before", "after"), self._cost_rows())
        if self.worst_error is not None:
            lines += ["", f"worst error of a merge, float64: {self.worst_error:.1e} of its largest output"]
        if self.merges:
            lines += ["", "merged"]
            lines += _table(
                ("at", "from", "to", "error"),
                [
                    (
                        m.path or "(the network)",
                        _shortened(m.sources),
                        m.layer,
                        "" if m.error is None else f"{m.error:.0e}",
                    )
                    for m in self.merges
                ],
            )
        if self.dropped:
            lines += ["", "dropped, because nothing reads them", *(f"  {path}" for path in self.dropped)]
        for title, found in self.stays():
            lines += ["", title, *_table(("at", "reason"), [(r.path or "(the network)", r.text) for r in found])]
        return "\n".join(lines)

    def stays(self) -> list[tuple[str, tuple[Refusal, ...]]]:
        """What stays, under the headings of a report."""
        found = [
            ("refused", self.refusals),
            ("kept, because merging costs more", self.kept),
            ("batch norms that nothing takes in", self.norms),
        ]
        return [(title, refusals) for title, refusals in found if refusals]

    def _cost_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("multiply-accumulates", _number(self.before.macs), _number(self.after.macs)),
            ("parameters", _number(self.before.params), _number(self.after.params)),
            ("operations launched", _number(self.before.launches), _number(self.after.launches)),
        ]
        names = [n for n in self.before.layers if self.before.layers[n] or self.after.layers.get(n)]
        return rows + [(f"{n} layers", str(self.before.layers[n]), str(self.after.layers.get(n, 0))) for n in names]


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _shortened(sources: tuple[str, ...], most: int = 4) -> str:
    more = f" +{len(sources) - most}" if len(sources) > most else ""
    return ", ".join(sources[:most]) + more


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(r[j]) for r in [header, *rows]) for j in range(len(header))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows]]


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
    reports = provenance_of(model).reports
    if not reports or (kind is not None and kind not in reports):
        there = f"; it has {', '.join(reports)}" if reports else ": it isn't a network that unbranch returned"
        wanted = "report" if kind is None else f"report of the kind {kind!r}"
        raise InputError(f"{type(model).__name__} has no {wanted}{there}")
    return list(reports.values())[-1] if kind is None else reports[kind]
