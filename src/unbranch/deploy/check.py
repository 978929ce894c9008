"""Convert a network for one target, and compare the file with the network in its own runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from unbranch.deploy.artifact import Artifact
from unbranch.deploy.reference import AMPLIFIED, Agreement, Reference, compare, drop_of, make_reference
from unbranch.deploy.samples import Samples
from unbranch.deploy.store import UNVERIFIED, size_of
from unbranch.runtimes.arrays import Calls, read_arrays, write_arrays
from unbranch.runtimes.process import Worker, WorkerError, worker
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.targets import Precision, Source, Target

SEVERAL = 4  # images in the call that isn't of one image


@dataclass(frozen=True)
class Check:
    """What artifacts are compared with.

    Args:
        single, several: the network's outputs for one image in a call, and for several.
        scratch: directory for temporary files.
        staged: directory for artifacts that are good.
        threads: for runtimes.
        max_drop: the largest loss of accuracy in percentage points, for 8-bit integers; None to compare outputs.
    """

    single: Reference
    several: Reference
    scratch: Path
    staged: Path
    threads: int
    max_drop: float | None = None

    @property
    def noise(self) -> float:
        """The network's own rounding noise."""
        return max(self.single.noise, self.several.noise)

    def references(self, target: Target) -> dict[str, Reference]:
        """Return what a target runs: one image in a call, and several if it can, of which accuracy needs one."""
        if target.static_batch:
            return {"single": self.single}
        if self.max_drop is not None:
            return {"several": self.several}
        return {"single": self.single, "several": self.several}


def make_check(network: FlatNetwork, samples: Samples, scratch: Path, threads: int) -> Check:
    """Return what artifacts of a network are compared with, and an empty staging directory for them."""
    staged = scratch / "staged"
    staged.mkdir()
    single = make_reference(network, samples.calls, samples.labels)
    several = make_reference(network, [samples.batch(min(SEVERAL, len(samples)))], None)
    return Check(single, several, scratch, staged, threads)


def directory_name(target: Target, precision: Precision) -> str:
    """Return the name of an artifact's directory."""
    return target.name if precision == "float32" else f"{target.name}-{precision}"


def checked(target: Target, source: Source, check: Check) -> Artifact:
    """Return the artifact of a target; its files are in the staging directory unless there is a reason against it."""
    nothing = Artifact(target.name, source.precision, "failed")
    if (reason := target.unavailable()) is not None:
        return replace(nothing, status="unavailable", reason=reason)
    if target.needs_onnx and source.onnx_problem:
        return replace(nothing, reason=source.onnx_problem)
    try:
        return _converted(target, source, check)
    except (WorkerError, OSError) as error:
        return replace(nothing, reason=str(error))


def _converted(target: Target, source: Source, check: Check) -> Artifact:
    written = Path(mkdtemp(prefix=f"{target.name}-", dir=check.scratch))
    with worker(target, Path(mkdtemp(dir=check.scratch))) as process:
        process.export(source, written)
        limits = process.ask("limit", source=source)
    if not (written / target.artifact).exists():
        raise WorkerError(f"the converter wrote no {target.artifact}")
    artifact = Artifact(target.name, source.precision, "not verified", size=size_of(written))
    name = directory_name(target, source.precision)
    if (reason := target.unrunnable()) is not None:
        placed = written.rename(check.staged / f"{name}{UNVERIFIED}")
        return replace(artifact, reason=reason, path=placed / target.artifact)
    found, operations = _agreement(target, written, check)
    artifact = replace(
        artifact, error=found.error, rms=found.rms, same_class=found.same_class, accuracy=found.accuracy,
        operations=operations,
    )  # fmt: skip
    artifact = (
        _judged_by_drop(artifact, found, check) if check.max_drop is not None else _judged(artifact, limits, check)
    )
    if artifact.status == "differs":
        return artifact
    placed = written.rename(check.staged / (name if artifact.ok else f"{name}{UNVERIFIED}"))
    return replace(artifact, path=placed / target.artifact)


def _judged(artifact: Artifact, limits: dict[str, Any], check: Check) -> Artifact:
    """Return an artifact with the status that its error means."""
    limit, error = max(limits["limit"], AMPLIFIED * check.noise), artifact.error or 0.0
    if not error <= limit:
        reason = f"its outputs differ by {error:.1e} of the largest, more than {limit:.0e}: the file isn't kept"
        return replace(artifact, status="differs", limit=limit, reason=reason)
    return replace(artifact, status="verified", limit=limit, reason=_allowance(limits, error))


def _judged_by_drop(artifact: Artifact, found: Agreement, check: Check) -> Artifact:
    """Return an artifact of 8-bit integers with the status that its loss of accuracy means."""
    drop, most = drop_of(found, check.single), check.max_drop or 0.0
    if drop is None:
        reason = "without classes there is no accuracy to compare: look at its outputs before you use it"
        return replace(artifact, reason=reason)
    if not drop <= most + 1e-9:
        reason = f"its accuracy drops by {drop:.2f} points, more than {most:g}: the file isn't kept"
        return replace(artifact, status="differs", reason=reason)
    return replace(artifact, status="verified", reason=f"accuracy drops by {max(drop, 0.0):.2f} points")


def _agreement(target: Target, written: Path, check: Check) -> tuple[Agreement, int | None]:
    """Run an artifact in its runtime on all images, in every setting; return the worst agreement."""
    found: list[Agreement] = []
    with worker(target, Path(mkdtemp(dir=check.scratch))) as process:
        references = {name: (_inputs(check, name), one) for name, one in check.references(target).items()}
        for setting in target.settings:
            loaded = process.load(written, next(iter(references.values()))[0], threads=check.threads, setting=setting)
            results = [compare(one, _outputs(process, inputs, check)) for inputs, one in references.values()]
            found.append(replace(results[0], error=max(result.error for result in results)))
    return max(found, key=lambda agreement: agreement.error), loaded["operations"]


def _inputs(check: Check, name: str) -> Path:
    path = check.scratch / f"{name}{'' if check.max_drop is None else '-evaluation'}.npz"
    if not path.exists():
        write_arrays(path, getattr(check, name).calls)
    return path


def _outputs(process: Worker, inputs: Path, check: Check) -> Calls:
    path = check.scratch / "outputs.npz"
    process.ask("run", inputs=inputs, outputs=path)
    found = read_arrays(path)
    path.unlink()
    return found


def _allowance(limits: dict[str, Any], error: float) -> str:
    """Return why an artifact may differ by more than usual, if it does."""
    if error <= 1e-5:
        return ""
    return f"verified to {error:.0e} only, because of {limits['kind'] or 'the rounding noise of the network'}"
