"""A network written once, as files from which every target converts."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.runtimes.exporting import LARGEST, export_problem, first_lines, quiet
from unbranch.runtimes.programs import load_program
from unbranch.runtimes.signature import FlatNetwork, Signature, TensorSpec
from unbranch.runtimes.targets.base import Source, Target

PROGRAM, ONNX = "model.pt2", "model.onnx"


def write_source(
    network: FlatNetwork, directory: Path, *, targets: Iterable[Target] | None = None, dynamic_size: bool = False,
    dynamic_batch: bool = True,
) -> Source:  # fmt: skip
    """Export a network for any batch size if it allows that, and for a batch of one.

    Args:
        network: in evaluation mode, on the CPU.
        directory: where the files go; it must exist.
        targets: for which files are written; for all by default.
        dynamic_size: whether height and width (axes 2 and 3) of images are dynamic, too.
        dynamic_batch: whether to try any batch size.

    Raises:
        InputError: if ``torch.export`` can't export the network. If only ONNX fails, the source says why.
    """
    one = tuple(value[:1] if _is_batched(value) else value for value in network.example)
    axes = [_dynamic_axes(value, dynamic_size) for value in one]
    program = _exported(network, one, None)
    flexible = _flexible(network, one, axes) if dynamic_batch else None
    if flexible is None:
        axes = [()] * len(one)
    inputs = (replace(TensorSpec.of(spec.name, value), dynamic=axis) for spec, value, axis in _rows(network, one, axes))
    signature = Signature(tuple(inputs), network.signature.outputs)
    forms = _forms(targets)
    problem, folders = "", [directory / "static", directory / ("static" if flexible is None else "dynamic")]
    for place, (folder, exported) in enumerate(zip(folders, (program, flexible), strict=True)):
        wanted = forms[place] if flexible is not None else forms[0] | forms[1]
        if exported is None or not wanted:
            continue
        folder.mkdir()
        if "program" in wanted:
            save_program(exported, folder / PROGRAM)
        if "onnx" in wanted and not problem:
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


def _forms(targets: Iterable[Target] | None) -> tuple[set[str], set[str]]:
    """Return the files that targets convert from, for a batch of one and for any batch."""
    if targets is None:
        return {"program", "onnx"}, {"program", "onnx"}
    forms: tuple[set[str], set[str]] = (set(), set())
    for target in targets:
        forms[not target.static_batch].add("onnx" if target.needs_onnx else "program")
    return forms


def rewrite_source(source: Source, state: Mapping[str, Tensor], directory: Path, example: Sequence[Tensor]) -> Source:
    """Write the files of a source again with other values of its parameters and buffers.

    Args:
        source: for any batch size.
        state: values by the names in the programs; those that aren't in it keep theirs.
        directory: where the files go; it must exist.
        example: inputs, for a batch of one.
    """
    static, dynamic = directory / "static", directory / "dynamic"
    problem = ""
    for folder, program in ((static, source.static_program), (dynamic, source.program)):
        folder.mkdir()
        exported = load_program(program)
        for name, value in exported.state_dict.items():
            value.data.copy_(state.get(name, value))
        save_program(exported, folder / PROGRAM)
        problem = problem or _write_onnx(exported, example, source.signature, folder / ONNX)
    return replace(
        source, program=dynamic / PROGRAM, static_program=static / PROGRAM, onnx=dynamic / ONNX,
        static_onnx=static / ONNX, onnx_problem=problem,
    )  # fmt: skip


def write_onnx_of(module: nn.Module, example: Tensor, signature: Signature, path: Path) -> str:
    """Write a module of one tensor as an ONNX file with the dynamic axes of a signature.

    Returns:
        Why that isn't possible, or nothing.
    """
    dynamic = signature.inputs[0].dynamic
    batch = torch.export.Dim("batch", min=1)
    shape = {axis: torch.export.Dim.DYNAMIC if axis else batch for axis in dynamic}
    several = example.repeat(2 if 0 in dynamic else 1, *[1] * (example.dim() - 1))
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (several,), dynamic_shapes=(shape or None,))
    except Exception as error:  # torch.export raises anything
        return export_problem(error)
    return _write_onnx(program, (example,), signature, path)


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
        raise InputError(export_problem(error)) from error


def _write_onnx(
    program: torch.export.ExportedProgram, example: Sequence[Tensor], signature: Signature, path: Path
) -> str:
    """Write an ONNX file; return why that isn't possible, or nothing."""
    try:
        import onnx
    except ImportError:
        return "onnx isn't installed: pip install 'unbranch[onnx]'"

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
        return f"torch can't export this network to ONNX: {type(error).__name__}: {first_lines(error)}"
    return ""
