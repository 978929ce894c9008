"""ncnn: converted from ONNX by pnnx, with weights and arithmetic in float32."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

from unbranch.runtimes.targets.base import Array, Precision, Runner, Source, Target


class NcnnRunner(Runner):
    """A net of ncnn; its tensors have no batch axis."""

    def __init__(self, param: Path, weights: Path, threads: int) -> None:
        import ncnn

        self.ncnn: Any = ncnn
        self.net = ncnn.Net()
        options = self.net.opt
        options.num_threads = threads
        options.use_vulkan_compute = options.use_fp16_packed = options.use_fp16_storage = False
        options.use_fp16_arithmetic = options.use_bf16_storage = False
        if self.net.load_param(str(param)) or self.net.load_model(str(weights)):
            raise RuntimeError("ncnn can't load the files")
        self.outputs = self.net.output_names()
        self.operations = int(param.read_text().splitlines()[1].split()[0])

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        extractor = self.net.create_extractor()
        given = [self.ncnn.Mat(value[0]).clone() for value in inputs]
        for name, value in zip(self.net.input_names(), given, strict=True):
            if extractor.input(name, value):
                raise RuntimeError(f"ncnn doesn't take the input {name}")
        return [self._output(extractor, name) for name in self.outputs]

    def _output(self, extractor: Any, name: str) -> Array:
        import numpy

        code, value = extractor.extract(name)
        if code:
            raise RuntimeError(f"ncnn fails to compute {name}")
        return numpy.array(value)[None]


class NcnnTarget(Target):
    """``ncnn``: ``.param`` and ``.bin`` for a batch of one; inputs are called ``in0``, ``in1``, …"""

    name, artifact = "ncnn", "model.ncnn.param"
    packages, install = ("ncnn", "pnnx", "onnx", "onnxscript"), "pip install 'unbranch[ncnn]'"
    runtime = ("ncnn",)
    needs_onnx = True
    static_batch = True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")

    def export(self, source: Source, directory: Path) -> None:
        import pnnx

        if any(spec.dtype != "float32" or len(spec.shape) < 2 for spec in source.signature.inputs):
            raise ValueError("ncnn takes float32 inputs with a batch axis only")
        scratch = Path(mkdtemp(prefix="pnnx-", dir="."))  # pnnx writes files that ncnn doesn't need, too
        names = {
            "pnnxparam": scratch / "a.param", "pnnxbin": scratch / "a.bin", "pnnxpy": scratch / "a.py",
            "pnnxonnx": scratch / "a.onnx", "ncnnparam": directory / self.artifact,
            "ncnnbin": directory / "model.ncnn.bin", "ncnnpy": scratch / "b.py",
        }  # fmt: skip
        command = [pnnx.EXEC_PATH, str(source.static_onnx), f"fp16={int(source.precision == 'float16')}"]
        subprocess.run([*command, *(f"{key}={value}" for key, value in names.items())], check=True)
        if not (directory / self.artifact).exists():
            raise RuntimeError("pnnx wrote no file")

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return NcnnRunner(directory / self.artifact, directory / "model.ncnn.bin", threads)
