"""``benchmark``: time the artifacts of a deployment."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from unbranch.deploy.artifact import Artifact
from unbranch.deploy.result import DeployResult, read_result
from unbranch.errors import InputError
from unbranch.runtimes.environment import environment
from unbranch.runtimes.measure import Entry, OnProgress, measure
from unbranch.runtimes.signature import Signature
from unbranch.runtimes.targets import TARGETS


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
    counts = [torch.get_num_threads() if threads is None else threads] if not isinstance(threads, Sequence) else threads
    if not counts or not batches or min(*counts, *batches, rounds, 1) < 1:
        raise InputError("`threads`, `batches` and `rounds` must be at least 1")
    artifacts = [replace(artifact, timings=()) for artifact in result.artifacts]
    if not any(artifact.ok for artifact in artifacts):
        raise InputError(f"{directory} has no verified artifact")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for count in counts:
                artifacts = timed(
                    artifacts, result.signature, Path(scratch), threads=count, batches=batches,
                    rounds=rounds, on_progress=on_progress,
                )  # fmt: skip
    except OSError as error:
        raise InputError(f"can't write temporary files: {error.strerror or error}") from error
    return replace(result, artifacts=tuple(artifacts), environment=environment())


def timed(
    artifacts: Sequence[Artifact], signature: Signature, scratch: Path, *, threads: int,
    batches: Sequence[int], rounds: int, on_progress: OnProgress,
) -> list[Artifact]:  # fmt: skip
    """Return the artifacts with timings of all verified ones added."""
    places = [
        (index, Entry(target, artifact.path.parent, setting))
        for index, artifact in enumerate(artifacts)
        if artifact.ok and artifact.path is not None and artifact.target in TARGETS
        for target in [TARGETS[artifact.target]()]
        for setting in target.settings
    ]
    outcomes = measure(
        [entry for _, entry in places], signature, scratch, threads=threads, batches=batches, rounds=rounds,
        on_progress=on_progress,
    )  # fmt: skip
    result = [
        replace(artifact, reason=f"{artifact.target} isn't in TARGETS, so it can't be timed")
        if artifact.ok and artifact.target not in TARGETS
        else artifact
        for artifact in artifacts
    ]
    for (index, entry), outcome in zip(places, outcomes, strict=True):
        old = result[index]
        problem = f"{entry.name} can't be timed: {outcome.problem}" if outcome.problem else old.reason
        result[index] = replace(old, timings=(*old.timings, *outcome.timings), reason=problem)
    return result
