"""Results of the ladder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unbranch.render import Block, Paragraph, Renderable, Table
from unbranch.runtimes.targets import Source


@dataclass(frozen=True)
class Rung:
    """One way to quantise a network, and how well it does on the user's images in ONNX Runtime.

    Args:
        name: of the way.
        engine: library that quantised.
        rms: root mean square of the error as it runs, relative to the standard deviation of the outputs.
        accuracy, same_class: as it runs: fraction of images with the right class, and with the same class as in float.
        exact_rms, exact_accuracy, exact_same_class: the same without ONNX Runtime's optimisations, which computes on
            8-bit values in float32 and can't saturate.
        drop: loss of accuracy as it runs, in percentage points; without labels, images with another class; None for a
            network that isn't a classifier.
        saturates: whether integer kernels of this CPU saturate: the error as it runs is well above the exact one.
        seconds: that it took.
        problem: why there is no file.
        notes: what was done to the network before.
        trained: whether the network was trained with rounded weights and activations.
        directory: with the file, while the deployment goes on.
        source: files of the float network that was quantised, likewise.
    """

    name: str
    engine: str
    rms: float | None = None
    accuracy: float | None = None
    same_class: float | None = None
    exact_rms: float | None = None
    exact_accuracy: float | None = None
    exact_same_class: float | None = None
    drop: float | None = None
    saturates: bool = False
    seconds: float = 0.0
    problem: str = ""
    notes: tuple[str, ...] = ()
    trained: bool = False
    directory: Path | None = field(default=None, compare=False)
    source: Source | None = field(default=None, compare=False)

    def finished(self) -> Rung:
        """Return the rung without its files, which are temporary."""
        return replace(self, directory=None, source=None)


@dataclass(frozen=True)
class Ladder(Renderable):
    """All rungs that were tried.

    Args:
        rungs: in their order.
        max_drop: the largest drop that was asked for, in percentage points.
        reduce_range: whether weights have 7 bits.
    """

    rungs: tuple[Rung, ...]
    max_drop: float
    reduce_range: bool

    @property
    def has_trained(self) -> bool:
        """Whether quantisation-aware training has made a file."""
        return any(rung.trained and not rung.problem for rung in self.rungs)

    @property
    def chosen(self) -> Rung | None:
        """The first rung within ``max_drop``, otherwise that with the smallest drop; None if all have failed."""
        made = [rung for rung in self.rungs if not rung.problem]
        good = [rung for rung in made if rung.drop is None or rung.drop <= self.max_drop]
        return next(iter(good), None) or min(made, key=lambda rung: rung.drop or 0.0, default=None)

    def finished(self) -> Ladder:
        """Return the ladder without its files, which are temporary."""
        return replace(self, rungs=tuple(rung.finished() for rung in self.rungs))

    def blocks(self) -> Iterable[Block]:
        rows = [
            [r.name, r.engine, _share(r.accuracy), _share(r.same_class), _share(r.rms), _share(r.exact_rms), _points(r)]
            for r in self.rungs
        ]
        header = ("8-bit integers", "engine", "right", "same class", "error", "exact error", "drop")
        yield Table(header, rows, f"quantised for a drop of at most {self.max_drop:g} points")
        for rung in self.rungs:
            if rung.problem:
                yield Paragraph(f"{rung.name}: {rung.problem}", "yellow")
        if any(rung.saturates for rung in self.rungs):
            yield Paragraph("the error is larger than the exact one: integer kernels of this CPU saturate", "yellow")
        if self.reduce_range:
            yield Paragraph("weights have 7 bits, since the CPU's 8-bit instructions saturate")
        for note in dict.fromkeys(note for rung in self.rungs for note in rung.notes):
            yield Paragraph(note)


def read_ladder(values: dict[str, Any] | None) -> Ladder | None:
    """Return a ladder from plain values, as JSON has them."""
    if values is None:
        return None
    rungs = tuple(Rung(**{**rung, "notes": tuple(rung["notes"])}) for rung in values["rungs"])
    return Ladder(rungs, values["max_drop"], values["reduce_range"])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _points(rung: Rung) -> str:
    return "failed" if rung.problem else "" if rung.drop is None else f"{rung.drop:.2f}"
