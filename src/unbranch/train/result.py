"""The result of a run, as a value that renders itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unbranch.convert import NetworkCost, Report
from unbranch.deprecation import RenamedAttribute
from unbranch.prune import PruningProgress, PruningReport
from unbranch.render import Block, Paragraph, Renderable, Table, count, written_files
from unbranch.timing import Latency
from unbranch.train.evaluate import FormComparison, Scores


@dataclass(frozen=True)
class PruningResult(Renderable):
    """What pruning did in a run.

    Args:
        base: scores of the network that the run started from; meaningless if it started from random weights.
        trained: scores with the compactors as they were trained; those of ``before`` in the comparison of both forms
            are with small rows set to zero.
        latency: of the collapsed network with all channels, and pruned.
    """

    base: Scores
    trained: Scores
    pruning: PruningReport
    progress: PruningProgress
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "pruning": self.pruning.to_dict()}

    def blocks(self) -> Iterator[Block]:
        pruning, rows = self.pruning, []
        for path, (before, after) in pruning.widths.items():
            zeros = f", {pruning.zero_but_kept[path]} zero" if path in pruning.zero_but_kept else ""
            rows.append((path, str(before), f"{after}{zeros}"))
        yield Table(("channels", "before", "after"), rows)
        yield Paragraph("")
        yield Table(
            ("pruning", "before", "after"),
            [
                ("top-1, of the start and with compactors", _percent(self.base.top1), _percent(self.trained.top1)),
                ("MACs of convolutions and linear layers", count(pruning.macs[0]), count(pruning.macs[1])),
                ("MACs as PyTorch counts them", count(pruning.before.macs), count(pruning.after.macs)),
                ("parameters", count(pruning.before.params), count(pruning.after.params)),
                ("latency per image", *self.latency.cells()),
            ],
            numeric=True,
        )
        if pruning.latency is not None:
            yield Paragraph("")
            yield from pruning.latency.blocks()
        yield from self._target_missed()

    def _target_missed(self) -> Iterator[Block]:
        progress, latency, macs = self.progress, self.pruning.latency, self.pruning.macs
        masked = progress.masked - progress.small
        left = macs[1] / max(1, macs[0]) if latency is None else latency.left
        if masked > 0 and left > progress.target:
            yield Paragraph(
                f"{masked:,} masked channels aren't zero yet and were kept: train longer or with a larger "
                "prune.strength, or remove them anyway with prune.masked=true",
                "yellow",
            )
        elif progress.left > progress.target:
            yield Paragraph(
                f"the cost is {progress.left:.0%} of what it was, more than the target of {progress.target:.0%}: train "
                "longer (schedule.epochs), or mask earlier and more often (prune.warmup_epochs, prune.interval)",
                "yellow",
            )


@dataclass(frozen=True)
class TrainingResult(Renderable):
    """The result of a run: accuracy of both forms, their difference, their costs, and the files written.

    Args:
        model: name of the network.
        best_top1: of the best epoch, in percent.
        proof: comparison of both forms on the validation set.
        report: of ``collapse``.
        corrupt: number of training images that couldn't be read.
        pruned: what pruning did, in runs that prune.
    """

    model: str
    data: str
    best_top1: float
    proof: FormComparison
    report: Report
    corrupt: int
    files: tuple[Path, ...]
    pruned: PruningResult | None = None

    recipe = RenamedAttribute("model")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, without the list of merges."""
        before, after = self.report.before, self.report.after
        return {
            "model": self.model,
            "data": self.data,
            "best_top1": self.best_top1,
            **asdict(self.proof),
            "params": {"training": before.params, "deploy": after.params},
            "macs": {"training": before.macs, "deploy": after.macs},
            "layers": {"training": before.layers, "deploy": after.layers},
            "corrupt": self.corrupt,
            **({} if self.pruned is None else {"pruned": self.pruned.to_dict()}),
            "files": [str(path) for path in self.files],
        }

    def blocks(self) -> Iterator[Block]:
        before, after = self.proof.before, self.proof.after
        yield Table(
            ("", "training form", "deploy form"),
            [
                ("top-1", _percent(before.top1), _percent(after.top1)),
                ("top-5", _percent(before.top5), _percent(after.top5)),
                ("loss", f"{before.loss:.4f}", f"{after.loss:.4f}"),
                *cost_rows(self.report.before, self.report.after),
            ],
            numeric=True,
        )
        yield Paragraph("")
        yield from self.proof.blocks()
        yield Paragraph(f"best epoch: top-1 {self.best_top1:.2f} %")
        if self.pruned is not None:
            yield Paragraph("")
            yield from self.pruned.blocks()
        if self.corrupt:
            yield Paragraph(f"skipped {self.corrupt} images that couldn't be read", "yellow")
        yield written_files(self.files)


def cost_rows(before: NetworkCost, after: NetworkCost) -> list[tuple[str, str, str]]:
    """Return a row for MACs, parameters, operations and each kind of layer, with the costs of both forms."""
    rows = [
        ("MACs", count(before.macs), count(after.macs)),
        ("parameters", count(before.params), count(after.params)),
        ("operations launched", count(before.launches), count(after.launches)),
    ]
    for kind, number in before.layers.items():
        if number or after.layers.get(kind):
            rows.append((f"{kind} layers", count(number), count(after.layers.get(kind, 0))))
    return rows


def _percent(value: float) -> str:
    return f"{value:.2f} %"
