"""A network written once, as files from which every target converts."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbranch.deploy.onnx import LARGEST, quiet
from unbranch.deploy.signature import FlatNetwork, Signature, TensorSpec
from unbranch.deploy.targets.base import Source
from unbranch.errors import InputError

PROGRAM, ONNX = "model.pt2", "model.onnx"


def write_source(network: FlatNetwork, directory: Path, *, onnx: bool = True, dynamic_size: bool = False) -> Source:
    """Export a network for any batch size if it allows that, and for a batch of one.

    Args:
        network: in evaluation mode, on the CPU.
        directory: where the files go; it must exist.
        onnx: whether a target needs ONNX files.
        dynamic_size: whether height and width (axes 2 and 3) of images are dynamic, too.

    Raises:
        InputError: if ``torch.export`` can't export the network. If only ONNX fails, the source says why.
    """
    one = tuple(value[:1] if _is_batched(value) else value for value in network.example)
    axes = [_dynamic_axes(value, dynamic_size) for value in one]
    program = _exported(network, one, None)
    flexible = _flexible(network, one, axes)
    if flexible is None:
        axes = [()] * len(one)
    inputs = (replace(TensorSpec.of(spec.name, value), dynamic=axis) for spec, value, axis in _rows(network, one, axes))
    signature = Signature(tuple(inputs), network.signature.outputs)
    problem, folders = "", [directory / "static", directory / ("static" if flexible is None else "dynamic")]
    for folder, exported in zip(folders, (program, flexible), strict=True):
        if exported is None:
            continue
        folder.mkdir()
        save_program(exported, folder / PROGRAM)
        if onnx and not problem:
            problem = _write_onnx(exported, one, signature, folder / ONNX)
    static, dynamic = folders
    return Source(
        dynamic / PROGRAM, static / PROGRAM, dynamic / ONNX, static / ONNX, signature, onnx_problem=problem
    )  # fmt: skip


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program by way of memory: PyTorch's own writer aborts the process if the disk is full."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def _rows(network: FlatNetwork, one: Sequence[Tensor], axes: Sequence[tuple[int, ...]]) -> Any:
    return zip(network.signature.inputs, one, axes, strict=True)


def _is_batched(value: Tensor) -> bool:
    return value.dim() > 1


def _dynamic_axes(value: Tensor, dynamic_size: bool) -> tuple[int, ...]:
    if not _is_batched(value):
        return ()
    return (0, 2, 3) if dynamic_size and value.dim() == 4 else (0,)


def _flexible(network: FlatNetwork, one: Sequence[Tensor], axes: Sequence[tuple[int, ...]]) -> Any:
    """Return the program with dynamic axes; None if the network works for a batch of one only."""
    several = tuple(v.repeat(2, *[1] * (v.dim() - 1)) if 0 in axis else v for v, axis in zip(one, axes, strict=True))
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({axis: torch.export.Dim.DYNAMIC if axis else batch for axis in found} or None for found in axes)
    if not any(axes):
        return None
    try:
        return _exported(network, several, shapes)
    except InputError:
        if any(axis for found in axes for axis in found):
            raise
        return None


def _exported(network: FlatNetwork, example: Sequence[Tensor], shapes: Any) -> torch.export.ExportedProgram:
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(network, tuple(example), dynamic_shapes=None if shapes is None else (shapes,))
    except Exception as error:  # torch.export raises anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(f"torch.export can't export this network: {type(error).__name__}: {reason}") from error


def _write_onnx(
    program: torch.export.ExportedProgram, example: Sequence[Tensor], signature: Signature, path: Path
) -> str:
    """Write an ONNX file; return why that isn't possible, or nothing."""
    import onnx

    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    names: dict[str, Any] = {
        "input_names": [v.name for v in signature.inputs],
        "output_names": [v.name for v in signature.outputs],
    }
    try:
        with quiet():
            torch.onnx.export(
                program, tuple(example), path, dynamo=True, external_data=size > LARGEST, verbose=False, **names
            )  # fmt: skip
        onnx.checker.check_model(os.fspath(path))
    except Exception as error:  # the exporter raises anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"torch can't export this network to ONNX: {type(error).__name__}: {reason}"
    return ""
