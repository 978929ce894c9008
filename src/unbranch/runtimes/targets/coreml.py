"""Core ML: an ML program with weights and arithmetic in float32, or in float16 if asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from unbranch.runtimes.programs import load_program
from unbranch.runtimes.targets.base import Array, Precision, Runner, Source, Target


class CoreMLRunner(Runner):
    """A model of Core ML on the CPU; it needs macOS."""

    def __init__(self, path: Path) -> None:
        import coremltools

        self.model: Any = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        description = self.model.get_spec().description
        self.inputs = [value.name for value in description.input]
        self.outputs = [value.name for value in description.output]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        found = self.model.predict(dict(zip(self.inputs, inputs, strict=True)))
        return [found[name] for name in self.outputs]


class CoreMLTarget(Target):
    """``coreml``: an ``.mlpackage`` for a batch of one, iOS 17 or macOS 14 and later."""

    name, artifact = "coreml", "model.mlpackage"
    packages, install = ("coremltools",), "pip install 'unbranch[coreml]'"
    runtime = ("coremltools",)
    static_batch = True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")

    def unrunnable(self) -> str | None:
        return None if sys.platform == "darwin" else "Core ML runs on macOS only, so the file isn't verified here"

    def export(self, source: Source, directory: Path) -> None:
        import coremltools

        program = load_program(source.static_program).run_decompositions({})
        half = source.precision == "float16"
        model = coremltools.convert(
            program,
            compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS17,
        )
        model.save(str(directory / self.artifact))

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return CoreMLRunner(directory / self.artifact)
