"""Export to ONNX: files that are checked, and compared with the network by ONNX Runtime."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from unbranch.deprecation import renamed_arguments
from unbranch.errors import DifferenceError, InputError, MissingPackageError
from unbranch.files import all_or_nothing
from unbranch.render import Block, Paragraph, Renderable
from unbranch.runtimes.exporting import LARGEST, first_lines, quiet

TOLERANCE = 1e-3  # of the largest output, since runtimes sum float32 numbers in different orders


@dataclass(frozen=True)
class OnnxFile(Renderable):
    """An ONNX file that was written.

    Args:
        opset: version of the operator set.
        nodes: number of nodes in the graph.
        max_rel: largest difference of ONNX Runtime's output from the network's, relative to the largest output; None
            if ONNX Runtime isn't installed.
    """

    path: Path
    opset: int
    nodes: int
    max_rel: float | None

    def blocks(self) -> tuple[Block, ...]:
        agrees = "" if self.max_rel is None else f"; ONNX Runtime agrees to {self.max_rel:.0e} of the largest output"
        return (Paragraph(f"{self.path}: ONNX opset {self.opset}, {self.nodes} nodes{agrees}"),)


@renamed_arguments(network="model")
def export_onnx(model: nn.Module, example_input: Any, path: str | Path) -> OnnxFile:
    """Write a network in evaluation mode as an ONNX file whose batch size is dynamic.

    Args:
        model: any network that takes one tensor; its mode is restored.
        example_input: images ``(B, C, H, W)``.
        path: file to write, completely or not at all.

    Raises:
        MissingPackageError: if ``onnx`` or ``onnxscript`` isn't installed.
        InputError: if the network can't be exported, or the file can't be written.
        DifferenceError: if ONNX Runtime computes something else.
    """
    path = Path(path)
    with all_or_nothing(path) as (temporary,):
        written = write_onnx(model, example_input, temporary)
    return OnnxFile(path, written.opset, written.nodes, written.max_rel)


@renamed_arguments(network="model")
def write_onnx(model: nn.Module, example_input: Any, path: str | Path) -> OnnxFile:
    """Write a network as an ONNX file like ``export_onnx``, but directly to ``path``."""
    path = Path(path)
    require_onnx()
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if size > LARGEST:
        raise InputError(f"a network of {size / 2**30:.1f} GiB doesn't fit in one ONNX file of 2 GiB")
    if not isinstance(example_input, Tensor):
        raise InputError(
            f"`example_input` must be a tensor to export a network to ONNX, got {type(example_input).__name__}"
        )
    training = model.training
    model.eval()
    try:
        _export(model, example_input, path)
        opset, nodes = _checked(path)
        return OnnxFile(path, opset, nodes, _compared(model, example_input, path))
    finally:
        model.train(training)


def require_onnx() -> None:
    """Raise MissingPackageError, which says what to install, if ONNX files can't be written."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{' and '.join(missing)} isn't installed: pip install 'unbranch[onnx]'")


def _export(network: nn.Module, example_input: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    example = example_input if len(example_input) > 1 else example_input.repeat(2, *[1] * (example_input.ndim - 1))
    try:
        with quiet():
            torch.onnx.export(
                network,
                (example,),
                path,
                input_names=["input"],
                output_names=None,
                dynamic_shapes=({0: batch},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises anything
        reason = f"{type(error).__name__}: {first_lines(error)}"
        raise InputError(f"torch can't export this network to ONNX: {reason}") from error


def _checked(path: Path) -> tuple[int, int]:
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    return model.opset_import[0].version, len(model.graph.node)


def _compared(network: nn.Module, example_input: Tensor, path: Path) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: example_input.detach().cpu().numpy()})
    with torch.no_grad():
        expected = [v for v in tree_flatten(network(example_input))[0] if isinstance(v, Tensor)]
    worst = max(
        float(
            (torch.from_numpy(ours).double() - theirs.cpu().double()).abs().max() / theirs.abs().max().clamp_min(1e-30)
        )
        for ours, theirs in zip(found, expected, strict=True)
    )
    if not worst <= TOLERANCE:
        raise DifferenceError(
            f"ONNX Runtime computes another function: it differs by {worst:.1e} of the largest output"
        )
    return worst
