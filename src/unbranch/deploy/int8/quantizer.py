"""Artifacts in 8-bit integers, from the rung of the ladder that was chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from unbranch.deploy.artifact import Artifact
from unbranch.deploy.batches import Call
from unbranch.deploy.check import Check, checked
from unbranch.deploy.int8.engines import SymmetricEngine
from unbranch.deploy.int8.ladder import Int8Settings, climb
from unbranch.deploy.int8.rung import Ladder
from unbranch.deploy.reference import Reference, make_reference
from unbranch.deploy.samples import Samples
from unbranch.runtimes.measure import OnProgress
from unbranch.runtimes.process import WorkerError, worker
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.targets import Source, Target
from unbranch.runtimes.targets.base import Quantization

BATCH = 16


class Quantizer:
    """Climbs the ladder once, and makes the artifacts of all targets from its result.

    Args:
        settings: what is allowed, and calibration images.
        evaluation: images that decide.
    """

    def __init__(self, settings: Int8Settings, evaluation: Samples) -> None:
        self.settings, self.evaluation = settings, evaluation
        self.ladder: Ladder | None = None
        self._single: Reference | None = None
        self._reference: Reference | None = None

    def claim(self, plain: nn.Module, flat: FlatNetwork) -> None:
        """Check that the network can be trained, and the directory used, if quantisation-aware training is asked for.

        Raises:
            InputError: if that isn't so.
        """
        if self.settings.qat is not None:
            run = self.settings.qat.claim(plain, flat, self.settings.reduce_range)
            self.settings = replace(self.settings, qat=run)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the images."""
        seen = {_content(call) for call in self.settings.calibration.calls}
        both = sum(_content(call) in seen for call in self.evaluation.calls)
        text = (
            f"{both} of the {len(self.evaluation)} images on which 8-bit integers are measured are calibration images, "
            "too: other images may lose more"
        )
        return (text,) if both else ()

    def climb(
        self, plain: nn.Module, flat: FlatNetwork, source: Source, scratch: Path, threads: int, on_progress: OnProgress
    ) -> None:  # fmt: skip
        """Quantise the network in one way after the other, until its accuracy is good enough.

        Raises:
            TrainingInterrupted: if quantisation-aware training is interrupted, once a checkpoint is written.
        """
        size = BATCH if any(0 in spec.dynamic for spec in source.signature.inputs) else 1
        self._single = make_reference(flat, self.evaluation.calls, self.evaluation.labels, double=False)
        self._reference = self._single
        if size > 1:
            batches = list(self.evaluation.batches(size))
            self._reference = make_reference(flat, batches, self.evaluation.labels, double=False)
        folder = scratch / "ladder"
        folder.mkdir()
        if source.onnx_problem:
            self.ladder = Ladder((), self.settings.max_drop, self.settings.reduce_range)
            return
        self.ladder = climb(
            plain, source, self._reference, self.settings, folder, threads,
            lambda what, done, total: on_progress(f"quantising: {what}", done, total),
        )  # fmt: skip

    def artifact(self, target: Target, check: Check) -> Artifact:
        """Return the artifact of a target, checked in its own runtime."""
        rung = None if self.ladder is None else self.ladder.chosen
        if rung is None or rung.source is None or rung.directory is None:
            reasons = [] if self.ladder is None else [r.problem for r in self.ladder.rungs]
            return Artifact(target.name, "int8", "failed", next(iter(reasons), "the network can't be exported to ONNX"))
        assert self._single is not None
        assert self._reference is not None
        scratch = check.scratch / "ladder"
        file = rung.directory / "model.onnx"
        source = replace(
            rung.source, precision="int8", onnx=file, static_onnx=file,
            quantization=Quantization(scratch / "calibration.npz"),
        )  # fmt: skip
        own = replace(check, single=self._single, several=self._reference, max_drop=self.settings.max_drop)
        if target.symmetric_activations:
            return self._symmetric(target, rung.source, source, own)
        return checked(target, source, own)

    def _symmetric(self, target: Target, floating: Source, source: Source, check: Check) -> Artifact:
        """Return the artifact of a target that needs signed symmetric activations."""
        folder = check.scratch / "ladder" / "symmetric"
        folder.mkdir(exist_ok=True)
        try:
            with worker(SymmetricEngine(), folder) as process:
                process.export(replace(floating, quantization=source.quantization), folder)
        except WorkerError as error:
            return Artifact(target.name, "int8", "failed", str(error))
        return checked(target, replace(source, onnx=folder / "model.onnx"), check)


def _content(call: Call) -> bytes:
    """Return the bytes of an image."""
    return b"".join(value.contiguous().numpy().tobytes() for value in call)
