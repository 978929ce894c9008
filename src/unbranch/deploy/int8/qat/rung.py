"""The rung of quantisation-aware training: fake quantise, train, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from unbranch.deploy.int8.qat.network import FakeQuantizedNetwork, fake_quantized
from unbranch.deploy.int8.qat.onnx import write_qdq
from unbranch.deploy.int8.qat.training import QatRun, logits_of
from unbranch.deploy.samples import Samples
from unbranch.errors import InputError
from unbranch.runtimes.programs import load_program
from unbranch.runtimes.source import rewrite_source
from unbranch.runtimes.targets import Source

BATCH = 16


@dataclass(frozen=True)
class Trained:
    """A trained network as files.

    Args:
        source: in float32, with the trained weights.
        quantized: the same network in ONNX with Q/DQ, with the trained scales.
    """

    source: Source
    quantized: Path


def train_quantized(
    run: QatRun, source: Source, calibration: Samples, folder: Path,
    on_step: Callable[[str, int, int], None], *, weight_bits: int = 8,
) -> Trained:  # fmt: skip
    """Train a network with 8-bit integers.

    Args:
        run: recipe, images and directory.
        source: files of the network to start from.
        calibration: images from which the first ranges are estimated.
        folder: for the files.
        on_step: called with (what is done, steps done, steps in total).
        weight_bits: of the weights.

    Raises:
        InputError: if the network works for a batch of one only, or can't be trained or written.
        TrainingInterrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    if 0 not in source.signature.inputs[0].dynamic:
        raise InputError("the network works for a batch of one image only, so it can't be trained")
    program = load_program(source.program)
    output = logits_of(source.signature) or 0
    network = fake_quantized(program, calibration.batches(BATCH), weight_bits=weight_bits, output=output)
    trained = run.train(network, on_step)
    assert isinstance(trained, FakeQuantizedNetwork)
    example: Tensor = calibration.batch(1)[0]
    write_qdq(trained, example, source.signature, folder / "quantized.onnx")
    floating = rewrite_source(source, trained.float_state(), folder, (example,))
    return Trained(replace(floating, quantization=source.quantization), folder / "quantized.onnx")
