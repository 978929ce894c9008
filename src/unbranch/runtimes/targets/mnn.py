"""MNN: converted from ONNX, run with precision "high"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from unbranch.runtimes.targets.base import Array, Precision, Runner, Source, Target

APPROXIMATED = {"Gelu", "Erf"}  # operators of ONNX that MNN computes by polynomials
GELU_LIMIT = 1e-3


class MNNRunner(Runner):
    """A module of MNN's expression interface."""

    def __init__(self, path: Path, threads: int) -> None:
        import MNN

        self.mnn: Any = MNN
        self.manager = MNN.nn.create_runtime_manager(({"precision": "high", "backend": 0, "numThread": threads},))
        self.module = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=self.manager)
        self.kinds = {"float32": MNN.expr.float, "int32": MNN.expr.int, "int64": MNN.expr.int64}

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        expr = self.mnn.expr
        given = [expr.const(v, list(v.shape), expr.NCHW, self.kinds[str(v.dtype)]) for v in inputs]
        return [self._read(value) for value in self.module.forward(given)]

    def _read(self, value: Any) -> Array:
        import numpy

        expr = self.mnn.expr
        return numpy.array(expr.convert(value, expr.NCHW).read(), copy=True)


class MNNTarget(Target):
    """``mnn``: one file."""

    name, artifact = "mnn", "model.mnn"
    packages, install = ("MNN", "onnx", "onnxscript"), "pip install 'unbranch[mnn]'"
    runtime = ("MNN",)
    needs_onnx = True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")

    def limit(self, source: Source) -> tuple[float, str]:
        import onnx

        operators = {node.op_type for node in onnx.load(source.onnx, load_external_data=False).graph.node}
        if source.precision == "float32" and operators & APPROXIMATED:
            return GELU_LIMIT, "approximated GELU"
        return super().limit(source)

    def export(self, source: Source, directory: Path) -> None:
        import _tools  # what `mnnconvert` calls, without its usage statistics
        import MNN  # noqa: F401  # makes the next one importable

        half = ["--fp16"] if source.precision == "float16" else []
        _tools.mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(source.onnx), "--MNNModel", str(directory / self.artifact),
             "--bizCode", "unbranch", "--keepInputFormat", *half]
        )  # fmt: skip
        if not (directory / self.artifact).exists():
            raise RuntimeError("mnnconvert wrote no file")

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return MNNRunner(directory / self.artifact, threads)
