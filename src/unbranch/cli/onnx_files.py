"""The commands for networks that are ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

import unbranch.onnx as files
from unbranch.cli.output import print_result
from unbranch.errors import InputError
from unbranch.render import to_rich, written_files

SIDE = 224  # of images, where the file leaves it open


def is_file(network: str) -> bool:
    """Whether a network is given as an ONNX file."""
    return network.endswith(".onnx")


def refuse(**options: Any) -> None:
    """Raise InputError for options that say how a network of PyTorch is made."""
    for name, value in options.items():
        if value:
            raise InputError(f"--{name.replace('_', '-')} needs a network of PyTorch, not an ONNX file")


def collapse_file(source: str, output: Path, strict: bool, freeze: bool, as_json: bool) -> None:
    """Collapse an ONNX file into another."""
    if output.suffix != ".onnx":
        raise InputError(f"an ONNX file is collapsed into one: --output must end with .onnx, got {output}")
    if not output.absolute().parent.is_dir():
        raise InputError(f"can't write {output}: the directory {output.absolute().parent} doesn't exist")
    conversion = files.explain(source, freeze=freeze)
    if strict:
        conversion.report.require_all()
    files.save(conversion.apply(), output, external=conversion.external)
    comparison = conversion.comparison
    print_result(
        conversion.report, as_json, comparison.__rich__(), to_rich([written_files([output])]),
        comparison=comparison.to_dict(), files=[str(output)],
    )  # fmt: skip


def explain_file(source: str, freeze: bool, as_json: bool) -> None:
    """Show what would be merged."""
    conversion = files.explain(source, freeze=freeze)
    print_result(conversion.report, as_json, comparison=conversion.comparison.to_dict())


def verify_files(first: str, second: str | None, data: Path | None, as_json: bool) -> bool:
    """Compare two ONNX files, or a file with its collapsed form."""
    images = None if data is None else images_for(first, data)
    comparison = files.explain(first, images).comparison if second is None else files.verify(first, second, images)
    print_result(comparison, as_json)
    return comparison.same


def images_for(source: str, data: Path, limit: int = 32) -> dict[str, Any]:
    """Return images of a folder as the only input of a file takes them."""
    from unbranch.deploy.samples import load_samples
    from unbranch.onnx.files import read_model

    inputs = read_model(source).proto.graph.input
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs]
    images = [(value.name, shape) for value, shape in zip(inputs, shapes, strict=True) if len(shape) == 4]
    if len(images) != 1 or len(inputs) != 1:
        raise InputError(f"--data needs a network with one image as input, {source} has {len(inputs)} inputs")
    name, (batch, channels, height, width) = images[0]
    stub = nn.Module()
    stub.pretrained_cfg = {"input_size": (channels or 3, height or SIDE, width or SIDE)}  # type: ignore[assignment]
    samples = load_samples(data, stub, limit=batch or limit)
    return {name: samples.batch(batch or min(limit, len(samples)))[0].numpy()}
