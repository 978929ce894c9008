"""Convert a network for one target, and compare the file with the network in its own runtime."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from unbranch.deploy.artifact import Artifact
from unbranch.deploy.comparable import (
    constant_outputs,
    require_finite,
    require_repeatable,
    resized,
    several,
    unknown_classes,
)
from unbranch.deploy.reference import (
    AMPLIFIED,
    LARGEST_NOISE,
    Agreement,
    Reference,
    compare,
    drop_of,
    largest,
    make_reference,
)
from unbranch.deploy.samples import Samples
from unbranch.deploy.store import UNVERIFIED, size_of
from unbranch.runtimes.arrays import Calls, read_arrays, write_arrays
from unbranch.runtimes.process import Worker, WorkerError, worker
from unbranch.runtimes.signature import FlatNetwork, Signature
from unbranch.runtimes.targets import Precision, Source, Target


@dataclass(frozen=True)
class Check:
    """What artifacts are compared with.

    Args:
        single: the network's outputs for one image in a call.
        several, resized: for several images, and for one in another size; None where the files don't take these.
        scratch: directory for temporary files.
        staged: directory for artifacts that are good.
        threads: for runtimes.
        max_drop: the largest loss of accuracy in percentage points, for 8-bit integers; None to compare outputs.
        notes: for the user, about what the comparison shows.
    """

    single: Reference
    several: Reference | None
    resized: Reference | None
    scratch: Path
    staged: Path
    threads: int
    max_drop: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def noise(self) -> float:
        """The network's own rounding noise, the largest of all outputs."""
        return max(self.noises, default=0.0)

    @property
    def noises(self) -> tuple[float, ...]:
        """The rounding noise of each output."""
        found = (one.noises for one in (self.single, self.several, self.resized) if one is not None)
        return functools.reduce(largest, found)

    def references(self, target: Target) -> dict[str, Reference]:
        """Return what a target runs: one image in a call, and several if it can, of which accuracy needs one."""
        if target.static_batch or self.several is None:
            return {"single": self.single}
        if self.max_drop is not None:
            return {"several": self.several}
        given = {"single": self.single, "several": self.several, "resized": self.resized}
        return {name: one for name, one in given.items() if one is not None}


def make_check(
    network: FlatNetwork, samples: Samples, signature: Signature, scratch: Path, threads: int, batch: int
) -> Check:  # fmt: skip
    """Return what artifacts of a network are compared with, and an empty staging directory for them.

    Args:
        network: the collapsed network.
        samples: the user's images.
        signature: of the files.
        scratch: directory for temporary files.
        threads: for runtimes.
        batch: size of the largest batch that is timed.

    Raises:
        InputError: if nothing can be compared with the network's outputs.
    """
    staged = scratch / "staged"
    staged.mkdir()
    require_repeatable(network, samples.batch(1))
    single = make_reference(network, samples.calls, samples.labels)
    require_finite(single, network)
    dynamic = {axis for spec in signature.inputs for axis in spec.dynamic}
    more = make_reference(network, [several(samples, batch)], None) if 0 in dynamic else None
    other = make_reference(network, [resized(network, samples.batch(1))], None) if 2 in dynamic else None
    return Check(
        single,
        more,
        other,
        scratch,
        staged,
        threads,
        notes=(*constant_outputs(single, network), *unknown_classes(single)),
    )


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
    written = Path(mkdtemp(prefix=f"{target.name}-", dir=check.scratch)) / "files"
    written.mkdir()  # with the usual permissions, which `mkdtemp` doesn't give
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
        artifact, error=_finite(found.error), rms=_finite(found.rms), same_class=found.same_class,
        accuracy=found.accuracy, operations=operations,
    )  # fmt: skip
    by_drop = check.max_drop is not None
    artifact = _judged_by_drop(artifact, found, check) if by_drop else _judged(artifact, found, limits, check)
    if artifact.status == "differs":
        return artifact
    placed = written.rename(check.staged / (name if artifact.ok else f"{name}{UNVERIFIED}"))
    return replace(artifact, path=placed / target.artifact)


def _judged(artifact: Artifact, found: Agreement, limits: dict[str, Any], check: Check) -> Artifact:
    """Return an artifact with the status that its errors mean; each output has its own limit."""
    rows = [
        (error, max(limits["limit"], min(AMPLIFIED * noise, LARGEST_NOISE)), noise)
        for error, noise in zip_longest(found.errors, check.noises, fillvalue=0.0)
    ]
    error, limit, noise = max(rows, key=lambda row: row[0] / row[1])
    if error <= limit:
        return replace(artifact, status="verified", limit=limit, reason=_allowance(limits, error))
    if error <= AMPLIFIED * noise and noise > 0:
        reason = (
            f"its outputs differ by {error:.0e} of the largest, but those of the network itself by {noise:.0e} when it "
            "computes in float64: that is too much to verify a file by comparing"
        )
        return replace(artifact, limit=limit, reason=reason)
    reason = f"its outputs differ by {error:.1e} of the largest, more than {limit:.0e}: the file isn't kept"
    if error == float("inf"):
        reason = "its outputs have other shapes, or NaN or infinity elsewhere: the file isn't kept"
    return replace(artifact, status="differs", limit=limit, reason=reason)


def _finite(value: float) -> float | None:
    """Return a number that JSON has; None if outputs can't be compared by numbers."""
    return value if value < float("inf") else None


def _judged_by_drop(artifact: Artifact, found: Agreement, check: Check) -> Artifact:
    """Return an artifact of 8-bit integers with the status that its loss of accuracy means."""
    drop, most = drop_of(found, check.single), check.max_drop or 0.0
    if drop is None:
        reason = (
            f"without classes there is no accuracy to compare; an output differs by {found.rms:.0%} of its standard "
            "deviation: look at the outputs before you use it"
        )
        return replace(artifact, reason=reason)
    if not drop <= most + 1e-9:
        reason = f"its accuracy drops by {drop:.2f} points, more than {most:g}: the file isn't kept"
        return replace(artifact, status="differs", reason=reason)
    reason = f"accuracy drops by {max(drop, 0.0):.2f} points on {check.single.images} images"
    return replace(artifact, status="verified", reason=reason)


def _agreement(target: Target, written: Path, check: Check) -> tuple[Agreement, int | None]:
    """Run an artifact in its runtime on all images, in every setting; return the worst agreement."""
    found: list[Agreement] = []
    with worker(target, Path(mkdtemp(dir=check.scratch))) as process:
        references = {name: (_inputs(check, name), one) for name, one in check.references(target).items()}
        for setting in target.settings:
            loaded = process.load(written, next(iter(references.values()))[0], threads=check.threads, setting=setting)
            results = [compare(one, _outputs(process, inputs, check)) for inputs, one in references.values()]
            found.append(functools.reduce(Agreement.merged, results))
    return functools.reduce(Agreement.merged, sorted(found, key=_classes_kept)), loaded["operations"]


def _classes_kept(found: Agreement) -> float:
    """Return the share of images with the same class, by which the worst setting comes first."""
    return 1.0 if found.same_class is None else found.same_class


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
