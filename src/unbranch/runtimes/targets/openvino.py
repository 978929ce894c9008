"""OpenVINO's intermediate representation, run on the CPU in the precision of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from unbranch.runtimes.targets.base import Array, Precision, Runner, Source, Target


class OpenVINORunner(Runner):
    """A compiled model of OpenVINO."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        # Without the hint, OpenVINO computes in bfloat16 on CPUs that have it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self.model: Any = openvino.Core().compile_model(path, "CPU", settings)
        self.operations = len(self.model.get_runtime_model().get_ops())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [value.copy() for value in self.model(list(inputs)).to_tuple()]


class OpenVINOTarget(Target):
    """``openvino``: an ``.xml`` file and a ``.bin`` file with weights in float32, or in float16 if asked for."""

    name, artifact = "openvino", "model.xml"
    packages, install = ("openvino", "onnx", "onnxscript"), "pip install 'unbranch[deploy]'"
    runtime = ("openvino",)
    needs_onnx = True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16", "int8")

    def export(self, source: Source, directory: Path) -> None:
        import openvino

        model = openvino.Core().read_model(source.onnx)
        openvino.save_model(model, directory / self.artifact, compress_to_fp16=source.precision == "float16")

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return OpenVINORunner(directory / self.artifact, threads)
