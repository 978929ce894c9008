"""ExecuTorch: a program whose convolutions and linear layers run in XNNPACK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from unbranch.runtimes.arrays import read_arrays
from unbranch.runtimes.programs import load_program
from unbranch.runtimes.targets.base import Array, Precision, Quantization, Runner, Source, Target


class ExecuTorchRunner(Runner):
    """A method of a program in ExecuTorch's runtime."""

    def __init__(self, path: Path) -> None:
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(path)
        self.method = self.program.load_method("forward")

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        outputs = self.method.execute([torch.from_numpy(value) for value in inputs])
        return [value.clone().numpy() for value in outputs]


class ExecuTorchTarget(Target):
    """``executorch``: one ``.pte`` file for a batch of one."""

    name, artifact = "executorch", "model.pte"
    packages, install = ("executorch", "torchao"), "pip install 'unbranch[executorch]'"
    runtime = ("executorch.runtime",)
    static_batch = True
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "int8")

    def export(self, source: Source, directory: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = load_program(source.static_program)
        if source.quantization is not None:
            program = _quantized(program, source.quantization)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        with open(directory / self.artifact, "wb") as file:
            lowered.write_to_file(file)

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        if hasattr(os, "sched_setaffinity"):  # the runtime has no setting for its thread pool
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        return ExecuTorchRunner(directory / self.artifact)


def _quantized(program: torch.export.ExportedProgram, how: Quantization) -> torch.export.ExportedProgram:
    """Quantise a program by torchao's PT2E, with symmetric weights per channel, as XNNPACK has them."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    calls = [tuple(torch.from_numpy(value) for value in call) for call in read_arrays(how.calibration)]
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for call in calls:
            prepared(*call)
        return torch.export.export(convert_pt2e(prepared), calls[0])
