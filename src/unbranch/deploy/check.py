"""Convert a network for one target, and compare the file with the network in its own runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

from unbranch.deploy.arrays import read_arrays, write_arrays
from unbranch.deploy.artifact import Artifact
from unbranch.deploy.process import Worker, WorkerError, worker
from unbranch.deploy.reference import AMPLIFIED, Agreement, Reference, compare
from unbranch.deploy.store import Store, size_of
from unbranch.deploy.targets import Source, Target
from unbranch.errors import InputError


@dataclass(frozen=True)
class Check:
    """What artifacts are compared with.

    Args:
        references: for one image in a call, and for several.
        scratch: directory for temporary files.
        threads: for runtimes.
    """

    references: tuple[Reference, Reference]
    scratch: Path
    threads: int


def checked(target: Target, source: Source, check: Check, store: Store) -> Artifact:
    """Return the artifact of a target, which is in its place if it is verified."""
    reason = target.unavailable()
    if reason is None and target.needs_onnx and source.onnx_problem:
        return Artifact(target.name, source.precision, "failed", source.onnx_problem)
    if reason is not None:
        return Artifact(target.name, source.precision, "unavailable", reason)
    written = Path(mkdtemp(prefix=f"{target.name}-", dir=check.scratch))
    try:
        return _placed(target, source, written, check, store)
    except (WorkerError, InputError) as error:
        return Artifact(target.name, source.precision, "failed", str(error))


def _placed(target: Target, source: Source, written: Path, check: Check, store: Store) -> Artifact:
    name = target.name if source.precision == "float32" else f"{target.name}-{source.precision}"
    with worker(target, Path(mkdtemp(dir=check.scratch)), threads=check.threads) as process:
        process.export(source, written)
        limits = process.ask("limit", source=source)
    if not (written / target.artifact).exists():
        raise WorkerError(f"the converter wrote no {target.artifact}")
    artifact = Artifact(target.name, source.precision, "not verified", size=size_of(written))
    if (reason := target.unrunnable()) is not None:
        path = store.place(written, name, verified=False)
        return _with(artifact, reason=reason, path=path / target.artifact)
    found = [_agreement(target, written, setting, check) for setting in target.settings]
    worst = max(found, key=lambda one: one[0].error)[0]
    noise = max(reference.noise for reference in check.references)
    limit = max(limits["limit"], AMPLIFIED * noise)
    measured = _with(
        artifact, error=worst.error, limit=limit, same_class=worst.same_class, accuracy=worst.accuracy,
        operations=found[0][1],
    )  # fmt: skip
    if not worst.error <= limit:
        reason = f"its outputs differ by {worst.error:.1e} of the largest, more than {limit:.0e}: the file isn't kept"
        return _with(measured, status="differs", reason=reason)
    path = store.place(written, name, verified=True)
    return _with(
        measured, status="verified", reason=_allowance(limits, limit, worst.error), path=path / target.artifact
    )


def _agreement(target: Target, written: Path, setting: str, check: Check) -> tuple[Agreement, int | None]:
    """Run an artifact in its runtime on all images, and compare."""
    single, several = check.references
    with worker(target, Path(mkdtemp(dir=check.scratch)), threads=check.threads) as process:
        first = _inputs(check.scratch / "single.npz", single)
        loaded = process.load(written, first, threads=check.threads, setting=setting)
        agreement = compare(single, _outputs(process, first, check))
        if not target.static_batch:
            other = compare(several, _outputs(process, _inputs(check.scratch / "several.npz", several), check))
            if other.error > agreement.error:
                agreement = Agreement(other.error, agreement.same_class, agreement.accuracy)
    return agreement, loaded["operations"]


def _inputs(path: Path, reference: Reference) -> Path:
    if not path.exists():
        write_arrays(path, reference.calls)
    return path


def _outputs(process: Worker, inputs: Path, check: Check) -> list[list[object]]:
    path = check.scratch / "outputs.npz"
    process.ask("run", inputs=inputs, outputs=path)
    found = read_arrays(path)
    path.unlink()
    return found


def _allowance(limits: dict[str, object], limit: float, error: float) -> str:
    """Return what an artifact's limit allows for, if it needs that."""
    if error <= 1e-5:
        return ""
    return f"verified to {limit:.0e} because of {limits['kind'] or 'the rounding noise of the network'}"


def _with(artifact: Artifact, **values: object) -> Artifact:
    return replace(artifact, **values)  # type: ignore[arg-type]
