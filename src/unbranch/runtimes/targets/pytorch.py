"""PyTorch: an exported program that runs without the network's code, and the same compiled by AOTInductor."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unbranch.runtimes.layers import Layer
from unbranch.runtimes.programs import load_package, load_program
from unbranch.runtimes.targets.base import Array, Runner, Source, Target

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class TorchRunner(Runner):
    """A callable of tensors."""

    def __init__(self, call: Any, operations: int | None, *, channels_last: bool = False) -> None:
        self.call, self.operations, self.channels_last = call, operations, channels_last

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            outputs = self.call(*(self._tensor(value) for value in inputs))
        return [value.numpy() for value in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]

    def _tensor(self, value: Array) -> torch.Tensor:
        tensor = torch.from_numpy(value)
        formats = CHANNELS_LAST if self.channels_last else {}
        return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


class TorchTarget(Target):
    """``torch.export``: loads with ``torch.export.load("model.pt2").module()``."""

    name, artifact = "torch", "model.pt2"
    settings = ("contiguous", "channels_last")

    def export(self, source: Source, directory: Path) -> None:
        shutil.copyfile(source.program, directory / self.artifact)

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        torch.set_num_threads(threads)
        program = load_program(directory / self.artifact)
        module = program.module()
        if setting == "channels_last":
            _make_channels_last(module)
        calls = sum(node.op == "call_function" for node in program.graph.nodes)
        return TorchRunner(module, calls, channels_last=setting == "channels_last")

    def load_layer(self, layer: Layer, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return load_module(layer, threads, setting)


def load_module(layer: Layer, threads: int, setting: str) -> TorchRunner:
    """Return a layer as a module of PyTorch, which runs as it does in a program, and is made much faster."""
    torch.set_num_threads(threads)
    module = layer.make()
    if setting == "channels_last":
        _make_channels_last(module)
    return TorchRunner(module, None, channels_last=setting == "channels_last")


def _make_channels_last(module: Any) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() in CHANNELS_LAST:
            tensor.data = tensor.data.contiguous(memory_format=CHANNELS_LAST[tensor.dim()])


class AOTInductorTarget(Target):
    """``torch._inductor.aoti_compile_and_package``: a library for this version of PyTorch and this kind of CPU."""

    name, artifact = "aotinductor", "model.pt2"

    def unavailable(self) -> str | None:
        if not any(map(shutil.which, ("g++", "clang++", "cl"))):
            return "AOTInductor needs a C++ compiler: install g++ or clang++"
        return None

    def export(self, source: Source, directory: Path) -> None:
        torch._inductor.aoti_compile_and_package(
            load_program(source.program), package_path=str((directory / self.artifact).absolute())
        )

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        torch.set_num_threads(threads)
        return TorchRunner(load_package(directory / self.artifact), None)

    def load_layer(self, layer: Layer, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        return load_module(layer, threads, setting)  # it calls the same kernels, and would take seconds to compile
