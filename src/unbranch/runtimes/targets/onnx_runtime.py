"""ONNX, run by ONNX Runtime; and the same file with a command for TensorRT."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from unbranch.runtimes.targets.base import Array, Precision, Runner, Source, Target

QUIET = 3  # ONNX Runtime's severity level of errors


class OnnxRuntimeRunner(Runner):
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int, *, optimize: bool = True) -> None:
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.operations = len(onnx.load(path, load_external_data=False).graph.node)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        outputs: list[Array] = self.session.run(None, dict(zip(self.inputs, inputs, strict=True)))
        return outputs


class OnnxTarget(Target):
    """The ONNX file itself; weights beyond 2 GiB are in a file beside it."""

    name, artifact = "onnx", "model.onnx"
    packages, install = ("onnx", "onnxscript", "onnxruntime"), "pip install 'unbranch[onnx]'"
    runtime = ("onnx", "onnxruntime")
    needs_onnx = True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "int8")

    def export(self, source: Source, directory: Path) -> None:
        copy_onnx(source.onnx, directory / self.artifact)

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return OnnxRuntimeRunner(directory / self.artifact, threads)


class TensorRTTarget(Target):
    """The ONNX file with the command that builds an engine; TensorRT 11 reads precisions from the file's types."""

    name, artifact = "tensorrt", "model.onnx"
    packages, install = ("onnx", "onnxscript"), "pip install 'unbranch[onnx]'"
    needs_onnx, symmetric_activations = True, True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "int8")

    def unrunnable(self) -> str | None:
        return "TensorRT builds its engine on the GPU that will run it: see build.sh beside the file"

    def export(self, source: Source, directory: Path) -> None:
        copy_onnx(source.onnx, directory / self.artifact)
        (directory / "build.sh").write_text(
            f"#!/bin/sh\n# Builds the engine on the GPU that will run it.\n{trtexec_command(source)}\n"
        )

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        raise NotImplementedError(self.unrunnable())


def trtexec_command(source: Source, largest_batch: int = 8) -> str:
    """Return the command of TensorRT that builds an engine for batches of 1 to ``largest_batch``."""
    dynamic = [spec for spec in source.signature.inputs if 0 in spec.dynamic]
    sizes = {"min": 1, "opt": 1, "max": largest_batch} if dynamic else {}
    profile = [
        f"--{kind}Shapes=" + ",".join(f"{v.name}:{'x'.join(map(str, (batch, *v.shape[1:])))}" for v in dynamic)
        for kind, batch in sizes.items()
    ]
    return " ".join(["trtexec", "--onnx=model.onnx", "--stronglyTyped", "--saveEngine=model.engine", *profile])


def copy_onnx(source: Path, target: Path) -> None:
    """Copy an ONNX file with its external data, which keeps its name."""
    shutil.copyfile(source, target)
    data = source.with_name(source.name + ".data")
    if data.exists():
        shutil.copyfile(data, target.with_name(data.name))
