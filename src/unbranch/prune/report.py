"""What pruning did: which layers have compactors, and which channels were removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from unbranch.convert.report import NetworkCost
from unbranch.deprecation import RenamedAttribute
from unbranch.prune.latency_report import LatencyReport
from unbranch.render import Block, Paragraph, Renderable, Table, count


@dataclass(frozen=True)
class CompactorReport(Renderable):
    """Where compactors were inserted.

    Args:
        inserted: paths of the convolutions and blocks that have a compactor.
        skipped: reason for each convolution and block without one, by path.
    """

    inserted: tuple[str, ...]
    skipped: dict[str, str]

    taken = RenamedAttribute("inserted")
    left = RenamedAttribute("skipped")

    @property
    def summary(self) -> str:
        """One line: how many layers have a compactor and how many were skipped."""
        layers = "1 layer" if len(self.inserted) == 1 else f"{len(self.inserted)} layers"
        return f"Inserted compactors after {layers}; skipped {len(self.skipped)}"

    def blocks(self) -> Iterable[Block]:
        """A summary, and a row for each layer."""
        yield Paragraph(self.summary)
        if self.inserted:
            yield Table(("layer",), [(path,) for path in self.inserted], title="inserted")
        if self.skipped:
            yield Table(("layer", "reason"), list(self.skipped.items()), title="skipped")


@dataclass(frozen=True)
class PruningReport(Renderable):
    """What ``finalize`` removed.

    Args:
        widths: output channels before and after, by convolution of the plain network.
        zero_but_kept: by convolution, how many of its channels are zero and had to be kept, because what they become
            isn't zero where a layer that reads them pads with zeros.
        skipped: reason for each compactor that was only merged, by its path.
        macs: multiply-accumulates of convolutions and linear layers before and after, as the papers count them.
        before: cost of the collapsed network with all channels; multiply-accumulates as PyTorch counts them.
        after: cost of the pruned network.
        latency: before and after, and where time is left, if latency was reduced.
    """

    widths: dict[str, tuple[int, int]]
    zero_but_kept: dict[str, int]
    skipped: dict[str, str]
    macs: tuple[int, int]
    before: NetworkCost
    after: NetworkCost
    latency: LatencyReport | None = None

    stayed = RenamedAttribute("zero_but_kept")
    left = RenamedAttribute("skipped")

    @property
    def summary(self) -> str:
        """One line: how many channels were removed."""
        total = sum(before for before, _ in self.widths.values())
        return f"Removed {total - sum(after for _, after in self.widths.values()):,} of {total:,} channels"

    def blocks(self) -> Iterable[Block]:
        """A summary, the costs, and a row for each convolution."""
        yield Paragraph(self.summary)
        costs = [
            ("multiply-accumulates", *map(count, self.macs), _share(*self.macs)),
            (
                "parameters",
                count(self.before.params),
                count(self.after.params),
                _share(self.before.params, self.after.params),
            ),
        ]
        if self.latency is not None:
            costs.append(("latency", *self.latency.cells(), f"{100 * self.latency.left:.2f} %"))
        yield Table(("", "before", "after", "left"), costs, numeric=True)
        rows = [
            (path, f"{before:,}", f"{after:,}", f"{zero:,}" if (zero := self.zero_but_kept.get(path)) else "")
            for path, (before, after) in self.widths.items()
        ]
        yield Table(("convolution", "before", "after", "zero but kept"), rows, title="channels", numeric=True)
        if self.skipped:
            yield Table(("compactor", "reason"), list(self.skipped.items()), title="only merged")
        if self.latency is not None:
            yield from self.latency.blocks()


def _share(before: int, after: int) -> str:
    return f"{100 * after / max(1, before):.2f} %"
