"""The result of a deployment: all artifacts, as a table, as JSON, and the one to ship."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unbranch.deploy.artifact import Artifact
from unbranch.deploy.int8.rung import Ladder, read_ladder
from unbranch.deploy.store import MANIFEST, artifact_path
from unbranch.errors import InputError
from unbranch.render import Block, Paragraph, Renderable, Table, byte_size
from unbranch.runtimes.measure import Timing
from unbranch.runtimes.signature import Signature

EMPTY = Signature((), ())


@dataclass(frozen=True)
class DeployResult(Renderable):
    """All artifacts of a network.

    Args:
        directory: that holds them.
        model: name of the network.
        artifacts: one for each target and precision, in the order of the targets.
        data: what they were compared on.
        images: number of images.
        noise: difference of the network in float32 from itself in float64, relative to the largest output.
        accuracy: of the network in PyTorch, on the same images; None without labels.
        environment: CPU and versions.
        notes: for the user.
        signature: inputs and outputs of the files, for a batch of one.
        ladder: ways to quantise that were tried, None without int8.
    """

    directory: Path
    model: str
    artifacts: tuple[Artifact, ...]
    data: str
    images: int
    noise: float
    accuracy: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    signature: Signature = EMPTY
    ladder: Ladder | None = None

    @property
    def failed(self) -> tuple[Artifact, ...]:
        """Targets without an artifact: their conversion failed, it differs, or a package is missing."""
        return tuple(a for a in self.artifacts if a.status in ("failed", "differs", "unavailable"))

    @property
    def usable(self) -> tuple[Artifact, ...]:
        """Artifacts that have a file: verified ones, and those whose runtime doesn't run here."""
        return tuple(a for a in self.artifacts if a.path is not None)

    def best(self, by: Literal["latency", "size", "error"] = "latency", batch: int = 1) -> Artifact:
        """Return the verified artifact with the lowest latency, size or error.

        Raises:
            InputError: if there is none.
        """
        measures: dict[str, Callable[[Artifact], float | None]] = {
            "latency": lambda a: _median(a, batch), "size": lambda a: a.size, "error": lambda a: a.error,
        }  # fmt: skip
        if by not in measures:
            raise InputError(f"`by` must be one of {', '.join(measures)}, got {by!r}")
        values = ((measures[by](a), index) for index, a in enumerate(self.artifacts) if a.ok)
        known = [(value, index) for value, index in values if value is not None]
        if not known:
            raise InputError("no artifact was verified and measured")
        return self.artifacts[min(known)[1]]

    @property
    def recommendation(self) -> str:
        """One sentence: which artifact to ship, and why.

        Differences within the noise of the measurement aren't called faster; among such artifacts, those in float32
        come first, since they lose nothing.
        """
        batch = min((t.batch for a in self.artifacts if a.ok for t in a.timings), default=1)
        timed = sorted((a for a in self.artifacts if a.ok and a.fastest(batch)), key=lambda a: _median(a, batch) or 0.0)
        if not timed:
            return "No artifact was verified and timed, so there is nothing to recommend."
        equal = [a for a in timed if a.as_fast_as(timed[0], batch)]
        best = next((a for a in equal if a.precision == "float32"), timed[0])
        images = "one image" if batch == 1 else f"{batch} images"
        text = f"Ship {best.path}: {_named(best, batch)} takes {_median(best, batch):.2f} ms for {images}"
        others = [a for a in timed if a is not best]
        if others:
            text += f", {_compared(best, others[0], batch)}"
        agrees = "" if best.same_class is None else f"; it gives the same class on {best.same_class:.1%} of the images"
        return f"{text}{agrees}."

    def blocks(self) -> Iterable[Block]:
        against = "" if self.accuracy is None else f", on which PyTorch is right on {self.accuracy:.1%}"
        yield Paragraph(
            f"{self.model}, compared with float64 on {self.data}{against}; its own rounding noise in float32 is "
            f"{self.noise:.0e} of the largest output"
        )
        yield Table(("file", "status", "error", "same class", "right", "operations", "size"), self._checks())
        for artifact in self.artifacts:
            if artifact.reason:
                yield Paragraph(f"{artifact.name}: {artifact.reason}", "" if artifact.ok else "yellow")
        if self.ladder is not None:
            yield from self.ladder.blocks()
        if rows := self._timings():
            title = f"latency on {self.environment.get('cpu', 'this CPU')}"
            yield Table(("run", "threads", "batch", "median", "90 %", "cold start", "memory"), rows, title)
        yield from (Paragraph(note, "dim") for note in self.notes)
        yield Paragraph(self.recommendation, "bold")

    def _checks(self) -> list[list[str]]:
        return [
            [
                a.name,
                a.status,
                _or_blank(a.error, "{:.0e}") if a.precision != "int8" else _or_blank(a.rms, "{:.1%} rms"),
                _or_blank(a.same_class, "{:.1%}"),
                _or_blank(a.accuracy, "{:.1%}"),
                _or_blank(a.operations, "{}"),
                "" if a.size is None else byte_size(a.size),
            ]
            for a in self.artifacts
        ]

    def _timings(self) -> list[list[str]]:
        rows = [(t.threads, t.batch, t.median_ms, a, t) for a in self.artifacts for t in a.timings]
        return [
            [_setting(a, t), str(threads), str(batch), f"{median:.2f} ms", f"{t.p90_ms:.2f} ms",
             f"{t.cold_start_ms:.0f} ms", _or_blank(t.memory_mib, "{:.0f} MiB")]
            for threads, batch, median, a, t in sorted(rows, key=lambda row: row[:3])
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; paths are relative to the directory."""
        values = super().to_dict()
        for artifact in values["artifacts"]:
            if artifact["path"] is not None:
                artifact["path"] = Path(artifact["path"]).relative_to(self.directory).as_posix()
        return {**values, "recommendation": self.recommendation}


def read_result(directory: str | Path) -> DeployResult:
    """Read ``deploy.json`` from a directory.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    directory = Path(directory)
    try:
        values = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        known = ("model", "data", "images", "noise", "accuracy", "environment")
        return DeployResult(
            directory=directory,
            artifacts=tuple(_artifact(value, directory) for value in values["artifacts"]),
            notes=tuple(values["notes"]),
            signature=Signature.from_dict(values["signature"]),
            ladder=read_ladder(values["ladder"]),
            **{key: values[key] for key in known},
        )
    except FileNotFoundError:
        raise InputError(f"{directory} has no {MANIFEST}: name the --output of `unbranch deploy`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{directory / MANIFEST} is damaged: {type(error).__name__}: {error}") from error


def _artifact(values: dict[str, Any], directory: Path) -> Artifact:
    timings = tuple(Timing(**timing) for timing in values["timings"])
    path = None if values["path"] is None else directory / artifact_path(values["path"])
    return Artifact(**{**values, "path": path, "timings": timings})


def _median(artifact: Artifact, batch: int) -> float | None:
    fastest = artifact.fastest(batch)
    return None if fastest is None else fastest.median_ms


def _named(artifact: Artifact, batch: int) -> str:
    fastest = artifact.fastest(batch)
    return artifact.name if fastest is None else _setting(artifact, fastest)


def _setting(artifact: Artifact, timing: Timing) -> str:
    return artifact.name if timing.setting == "default" else f"{artifact.name}, {timing.setting}"


def _compared(best: Artifact, other: Artifact, batch: int) -> str:
    """Return how the latency of the best artifact compares with that of the next one."""
    name = _named(other, batch)
    if other.as_fast_as(best, batch):
        return f"not measurably more or less than {name}"
    slower, faster = _median(other, batch) or 0.0, _median(best, batch) or 0.0
    return f"{1 - faster / slower:.0%} less than {name}" if slower else f"less than {name}"


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
