"""ExecuTorch: a program whose convolutions and linear layers run in XNNPACK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from unbranch.deploy.targets.base import Array, Runner, Source, Target


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
    packages, install = ("executorch",), "pip install 'unbranch[executorch]'"
    static_batch = True

    def export(self, source: Source, directory: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.load(source.static_program)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        with open(directory / self.artifact, "wb") as file:
            lowered.write_to_file(file)

    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:  # noqa: ARG002
        if hasattr(os, "sched_setaffinity"):  # the runtime has no setting for its thread pool
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        return ExecuTorchRunner(directory / self.artifact)
