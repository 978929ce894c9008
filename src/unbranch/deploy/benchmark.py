"""``benchmark``: time the artifacts of a deployment."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from unbranch.deploy.artifact import Artifact, DeployResult, Timing, read_result
from unbranch.deploy.environment import environment
from unbranch.deploy.measure import Entry, OnProgress, measure
from unbranch.deploy.signature import Signature
from unbranch.deploy.targets import TARGETS
from unbranch.errors import InputError


class TimingSettings(Protocol):
    """How artifacts are timed."""

    @property
    def threads(self) -> int: ...
    @property
    def batches(self) -> tuple[int, ...]: ...
    @property
    def rounds(self) -> int: ...


def benchmark(
    directory: str | Path,
    *,
    threads: int | Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    rounds: int = 10,
    on_progress: OnProgress = lambda *_: None,
) -> DeployResult:
    """Time the artifacts in a directory that ``deploy`` has written, in turns, one process for each.

    Args:
        directory: of the deployment.
        threads: one number or several; those of PyTorch by default.
        batches: sizes of batches. Artifacts for a batch of one are timed with one image only.
        rounds: number of turns of each artifact.
        on_progress: called with (what is done, steps done, steps in total).

    Returns:
        The deployment, with the new timings. ``deploy.json`` isn't changed.

    Raises:
        InputError: if the directory has no artifacts, or an argument can't be used.
    """
    result = read_result(directory)
    counts = [threads or torch.get_num_threads()] if isinstance(threads, int | None) else list(threads)
    if not counts or min(*counts, *batches, rounds, 1) < 1 or not batches:
        raise InputError("`threads`, `batches` and `rounds` must be at least 1")
    artifacts = [replace(a, timings=()) for a in result.artifacts]
    if not any(a.ok for a in artifacts):
        raise InputError(f"{directory} has no verified artifact")
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            settings = _Settings(count, tuple(batches), rounds)
            artifacts = timed(artifacts, result.signature, Path(scratch), settings, on_progress)
    return replace(result, artifacts=tuple(artifacts), environment=environment())


class _Settings:
    def __init__(self, threads: int, batches: tuple[int, ...], rounds: int) -> None:
        self.threads, self.batches, self.rounds = threads, batches, rounds


def timed(
    artifacts: Sequence[Artifact], signature: Signature, scratch: Path, settings: TimingSettings,
    on_progress: OnProgress,
) -> list[Artifact]:  # fmt: skip
    """Return the artifacts with timings of all verified ones added."""
    found: list[list[Timing]] = [list(artifact.timings) for artifact in artifacts]
    reasons = [artifact.reason for artifact in artifacts]
    for batch in settings.batches:
        places = [
            (index, Entry(target, artifact.path.parent, setting))
            for index, artifact in enumerate(artifacts)
            if artifact.ok and artifact.path is not None
            for target in [TARGETS[artifact.target]()]
            if batch == 1 or (not target.static_batch and any(0 in spec.dynamic for spec in signature.inputs))
            for setting in target.settings
        ]
        results = measure(
            [entry for _, entry in places], signature, scratch, threads=settings.threads, batch=batch,
            rounds=settings.rounds, on_progress=on_progress,
        )  # fmt: skip
        for (index, entry), timing in zip(places, results, strict=True):
            if isinstance(timing, Timing):
                found[index].append(timing)
            else:
                reasons[index] = f"{entry.name} can't be timed: {timing}"
    return [
        replace(artifact, timings=tuple(timings), reason=reason)
        for artifact, timings, reason in zip(artifacts, found, reasons, strict=True)
    ]
