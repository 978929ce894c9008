"""LiteRT (TensorFlow Lite): converted by litert-torch, run by ai-edge-litert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbranch.runtimes.programs import load_program
from unbranch.runtimes.targets.base import Array, Runner, Source, Target


class LiteRTRunner(Runner):
    """An interpreter of LiteRT, which runs XNNPACK."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        interpreter: Any = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
        self.call = interpreter.get_signature_runner()
        details = self.call.get_input_details(), self.call.get_output_details()
        self.inputs, self.outputs = (sorted(names, key=lambda name: (len(name), name)) for names in details)
        self.operations = len(interpreter._get_ops_details())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        found = self.call(**dict(zip(self.inputs, inputs, strict=True)))
        return [found[name] for name in self.outputs]


class LiteRTTarget(Target):
    """``litert``: one ``.tflite`` file for a batch of one, with images in PyTorch's order of axes."""

    name, artifact = "litert", "model.tflite"
    packages, install = ("litert_torch", "ai_edge_litert"), "pip install litert-torch ai-edge-litert"
    runtime = ("ai_edge_litert.interpreter",)
    static_batch = True

    def export(self, source: Source, directory: Path) -> None:
        import litert_torch

        program = load_program(source.static_program)
        (example, _) = program.example_inputs
        litert_torch.convert(program.module(), example).export(str(directory / self.artifact))

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return LiteRTRunner(directory / self.artifact, threads)
