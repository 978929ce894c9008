"""Results of a deployment: artifacts with what was measured about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from unbranch.deploy.signature import Signature
from unbranch.deploy.targets.base import Precision
from unbranch.errors import InputError
from unbranch.render import Block, Paragraph, Renderable, Table, byte_size

Status: TypeAlias = Literal["verified", "not verified", "differs", "failed", "unavailable"]
MANIFEST = "deploy.json"
EMPTY = Signature((), ())


@dataclass(frozen=True)
class Timing:
    """Latency of an artifact.

    Args:
        setting: of the target.
        threads, batch: of the calls.
        median_ms, p90_ms: of a call, milliseconds.
        calls: number of timed calls.
        cold_start_ms: time to load the file and run it once, with the runtime imported.
        memory_mib: what that took at its peak, MiB beyond the process with the runtime imported; None if unknown.
    """

    setting: str
    threads: int
    batch: int
    median_ms: float
    p90_ms: float
    calls: int
    cold_start_ms: float
    memory_mib: float | None


@dataclass(frozen=True)
class Artifact:
    """A network for one runtime, or the reason why there is none.

    Args:
        target: name of the runtime.
        precision: of weights, and of arithmetic where the runtime has it.
        status: ``verified`` if the file was loaded in its runtime and computes the same function; ``not verified`` if
            its runtime doesn't run here.
        reason: why it isn't verified, or what its limit allows for.
        path: of the file that the runtime loads.
        size: of all files, in bytes.
        operations: in the graph that the runtime executes.
        error: largest difference from the network in float64, relative to the largest output.
        limit: the largest error allowed.
        same_class: fraction of images to which both assign the same class.
        accuracy: fraction of images with the right class.
        timings: latency, by setting, threads and batch.
    """

    target: str
    precision: Precision
    status: Status
    reason: str = ""
    path: Path | None = None
    size: int | None = None
    operations: int | None = None
    error: float | None = None
    limit: float | None = None
    same_class: float | None = None
    accuracy: float | None = None
    timings: tuple[Timing, ...] = ()

    @property
    def name(self) -> str:
        """The target, with its precision unless that is float32."""
        return self.target if self.precision == "float32" else f"{self.target} {self.precision}"

    @property
    def ok(self) -> bool:
        """Whether the artifact is verified."""
        return self.status == "verified"

    def fastest(self, batch: int = 1) -> Timing | None:
        """Return the timing with the smallest median for a batch size."""
        return min((t for t in self.timings if t.batch == batch), key=lambda t: t.median_ms, default=None)


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

    @property
    def ok(self) -> bool:
        """Whether every artifact is verified."""
        return all(artifact.ok for artifact in self.artifacts)

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
        """One sentence: which artifact to ship, and why."""
        timed = sorted((a for a in self.artifacts if a.ok and a.fastest()), key=lambda a: _median(a, 1) or 0.0)
        if not timed:
            return "No artifact was verified and timed, so there is nothing to recommend."
        best = timed[0]
        text = f"Ship {best.path}: {_named(best)} takes {_median(best, 1):.2f} ms for one image"
        if len(timed) > 1:
            text += f", {_times(timed[1], best)} less than {_named(timed[1])}"
        agrees = "" if best.same_class is None else f"; it gives the same class on {best.same_class:.1%} of the images"
        return f"{text}{agrees}."

    def blocks(self) -> Iterable[Block]:
        yield Paragraph(
            f"{self.model}: compared on {self.data}; the network's own float32 rounding is {self.noise:.0e} of the "
            "largest output"
        )
        yield Table(("", "status", "error", "class", "accuracy", "size", "ops", *self._time_header()), self._rows())
        for artifact in self.artifacts:
            if artifact.reason:
                yield Paragraph(f"{artifact.name}: {artifact.reason}", "" if artifact.ok else "yellow")
        for note in self.notes:
            yield Paragraph(note, "dim")
        yield Paragraph(self.recommendation, "bold")

    def _time_header(self) -> list[str]:
        return [f"{_batch(b)}, {t} threads" if t > 1 else _batch(b) for b, t in self._measured()]

    def _measured(self) -> list[tuple[int, int]]:
        return sorted({(t.batch, t.threads) for a in self.artifacts for t in a.timings}, key=lambda m: (m[1], m[0]))

    def _rows(self) -> list[list[str]]:
        return [
            [*_cells(a), *(_time(a, batch, threads) for batch, threads in self._measured())] for a in self.artifacts
        ]

    def with_artifacts(self, artifacts: Sequence[Artifact]) -> DeployResult:
        """Return the result with other artifacts."""
        return replace(self, artifacts=tuple(artifacts))

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
        values = json.loads((directory / MANIFEST).read_text())
        artifacts = tuple(_artifact(value, directory) for value in values["artifacts"])
        known = ("model", "data", "images", "noise", "accuracy", "environment")
        return DeployResult(
            directory=directory, artifacts=artifacts, notes=tuple(values["notes"]),
            signature=Signature.from_dict(values["signature"]), **{key: values[key] for key in known},
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError(f"{directory} has no {MANIFEST}: name the --output of `unbranch deploy`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{directory / MANIFEST} is damaged: {type(error).__name__}: {error}") from error


def _artifact(values: dict[str, Any], directory: Path) -> Artifact:
    timings = tuple(Timing(**timing) for timing in values.pop("timings"))
    path = values.pop("path")
    return Artifact(**values, path=None if path is None else directory / path, timings=timings)


def _median(artifact: Artifact, batch: int) -> float | None:
    fastest = artifact.fastest(batch)
    return None if fastest is None else fastest.median_ms


def _named(artifact: Artifact) -> str:
    fastest = artifact.fastest()
    setting = "" if fastest is None or fastest.setting == "default" else f" ({fastest.setting})"
    return f"{artifact.name}{setting}"


def _times(slower: Artifact, faster: Artifact) -> str:
    a, b = _median(slower, 1) or 0.0, _median(faster, 1) or 0.0
    return f"{1 - b / a:.0%}" if a else "?"


def _batch(batch: int) -> str:
    return "1 image" if batch == 1 else f"{batch} images"


def _cells(artifact: Artifact) -> list[str]:
    return [
        artifact.name,
        artifact.status,
        "" if artifact.error is None else f"{artifact.error:.0e}",
        "" if artifact.same_class is None else f"{artifact.same_class:.1%}",
        "" if artifact.accuracy is None else f"{artifact.accuracy:.1%}",
        "" if artifact.size is None else byte_size(artifact.size),
        "" if artifact.operations is None else str(artifact.operations),
    ]


def _time(artifact: Artifact, batch: int, threads: int) -> str:
    found = [t for t in artifact.timings if (t.batch, t.threads) == (batch, threads)]
    if not found:
        return ""
    best = min(found, key=lambda t: t.median_ms)
    return f"{best.median_ms:.2f} ms" + ("" if best.setting == "default" else f" {best.setting}")
