"""What a deployment runtime has to offer: converting, loading, running."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from unbranch.runtimes.layers import Layer, write_onnx, write_program
from unbranch.runtimes.signature import Signature, TensorSpec

Array: TypeAlias = Any  # numpy.ndarray
Precision: TypeAlias = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Quantization:
    """How a network is quantised to 8-bit integers.

    Args:
        calibration: inputs of images, from which ranges of activations are estimated.
        validation: inputs of images with their classes, for accuracy control.
        reduce_range: use 7 bits for weights, for CPUs whose 8-bit multiplications saturate.
        full_bias_correction: correct biases layer by layer on the calibration images, which is slower.
        max_drop: return layers to float32 until the accuracy is within this fraction; None without that.
    """

    calibration: Path
    validation: Path | None = None
    reduce_range: bool = False
    full_bias_correction: bool = False
    max_drop: float | None = None


@dataclass(frozen=True)
class Source:
    """A network as files, from which every target converts.

    Args:
        program: an ``ExportedProgram`` of torch, ``.pt2``, that takes any batch size if the network does.
        static_program: the same for a batch of one.
        onnx: an ONNX file that takes any batch size if the network does.
        static_onnx: the same for a batch of one.
        signature: names, shapes and dtypes; shapes are those of a batch of one.
        precision: of the artifact that is asked for.
        onnx_problem: why there are no ONNX files, empty if there are.
        quantization: how an engine quantises; None for sources that aren't, or are already, quantised.
    """

    program: Path
    static_program: Path
    onnx: Path
    static_onnx: Path
    signature: Signature
    precision: Precision = "float32"
    onnx_problem: str = ""
    quantization: Quantization | None = None


class Runner(ABC):
    """An artifact in its runtime, ready to run.

    Attributes:
        operations: number of operations left in the graph that the runtime executes; None if it doesn't tell.
    """

    operations: int | None = None

    @abstractmethod
    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the outputs in the order of the signature; arrays have the batch on their first axis."""


class Target(ABC):
    """A runtime that a network is deployed to.

    Every call happens in a process of its own, whose working directory is a temporary one; what a converter prints
    is kept for messages.

    Attributes:
        name: as in ``--to``.
        packages: modules that ``export`` and ``load`` import.
        runtime: modules that are imported before a cold start is timed.
        install: command that installs them.
        artifact: name of the file that the runtime loads.
        needs_onnx: whether it converts from ONNX.
        static_batch: whether artifacts take the batch size of the export only, which is 1.
        symmetric_activations: whether its 8-bit integers must be signed, with 0 for zero.
        settings: ways in which one artifact can run; all of them are checked and timed.
        precisions: those that it can write.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""
    artifact: ClassVar[str]
    needs_onnx: ClassVar[bool] = False
    static_batch: ClassVar[bool] = False
    symmetric_activations: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...]] = ("default",)
    precisions: ClassVar[tuple[Precision, ...]] = ("float32",)

    def unavailable(self) -> str | None:
        """Return why this machine can't export to the target, with the command that helps; None if it can."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(missing)}; {self.install}" if missing else None

    def unrunnable(self) -> str | None:
        """Return why this machine can't run the artifact, so that it can't be verified; None if it can."""
        return None

    def limit(self, source: Source) -> tuple[float, str]:
        """Return the largest error relative to the largest output, and what kind of rounding it allows for."""
        return (1e-5, "") if source.precision == "float32" else (2e-2, "float16 weights")

    @abstractmethod
    def export(self, source: Source, directory: Path) -> None:
        """Write the artifact into an empty directory."""

    @abstractmethod
    def load(self, directory: Path, *, threads: int, setting: str) -> Runner:
        """Load an artifact to run on the CPU."""

    def load_layer(self, layer: Layer, directory: Path, *, threads: int, setting: str) -> Runner:
        """Load a single layer, to be timed.

        Args:
            layer: the layer.
            directory: for files: an empty one, or that of an earlier call for this layer.
            threads, setting: as for ``load``.
        """
        written = directory / "artifact"
        if not written.exists():
            written.mkdir()
            self.export(_layer_source(layer, directory, onnx=self.needs_onnx), written)
        return self.load(written, threads=threads, setting=setting)


def _layer_source(layer: Layer, directory: Path, *, onnx: bool) -> Source:
    """Write a layer in the form that a target converts from."""
    program, file = directory / "layer.pt2", directory / "layer.onnx"
    if onnx:
        write_onnx(layer, file)
    else:
        write_program(layer, program)
    signature = Signature((TensorSpec("x", layer.shape, "float32"),), (TensorSpec("y", (), "float32"),))
    return Source(program, program, file, file, signature)
