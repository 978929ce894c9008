"""Read, check and write ONNX files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unbranch.errors import InputError, UnsupportedError
from unbranch.extras import library
from unbranch.files import all_or_nothing
from unbranch.onnx.protos import bytes_of, opset_of, overridable, tensors_of, without_weights

LARGEST = 2_000_000_000  # bytes of a protobuf; beyond it, weights are in a file of their own
OLDEST_OPSET = 7


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX model as it was given.

    Args:
        proto: a copy, whose external data isn't loaded.
        directory: of the file, from which external data is read; None for a model in memory.
        name: of the file, or of the graph.
        doubt: what a strict check says, empty if nothing; operators of other domains fail it, too.
    """

    proto: Any
    directory: Path | None
    name: str
    doubt: str = ""

    @property
    def opset(self) -> int:
        """The version of the operators of ONNX itself."""
        return opset_of(self.proto)


def read_model(source: Any, *, freeze: bool = False) -> Model:
    """Return a checked copy of a model.

    Args:
        source: path of a file, or an ``onnx.ModelProto``.
        freeze: remove initialisers from the inputs, so that they are constants.

    Raises:
        InputError: if it isn't a readable, valid model.
        UnsupportedError: if it uses operators that are too old.
        MissingPackageError: if onnx isn't installed.
    """
    onnx = library("onnx", "onnx")
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        model = Model(proto, None, source.graph.name or "the model")
        if not proto.graph.node and not proto.graph.output:
            raise InputError("this model has no graph")
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        model = Model(_loaded(onnx, path), path.absolute().parent, path.name)
    else:
        raise InputError(f"expected a path or an onnx.ModelProto, got {type(source).__name__}")
    if freeze:
        names = overridable(model.proto)
        inputs = [value for value in model.proto.graph.input if value.name not in names]
        del model.proto.graph.input[:]
        model.proto.graph.input.extend(inputs)
    _check(onnx, model)
    return replace(model, doubt=_doubt(onnx, model))


def _loaded(onnx: Any, path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise InputError(f"{path} isn't an ONNX file ({type(error).__name__})") from error
    if not proto.graph.node and not proto.graph.output:
        raise InputError(f"{path} isn't an ONNX file: it has no graph")
    return proto


def _check(onnx: Any, model: Model) -> None:
    """Check the model; external data, which may lie about its size, is checked when it is read."""
    proto = model.proto
    external = [t for t in tensors_of(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    if external and model.directory is None:
        raise InputError("the weights of this model are in other files: give its path, or load them first")
    for tensor in external:
        external_path(tensor, model)
    if model.opset and model.opset < OLDEST_OPSET:
        raise UnsupportedError(f"{model.name} uses opset {model.opset}, the oldest that can be read is {OLDEST_OPSET}")
    newest = onnx.defs.onnx_opset_version()
    if model.opset > newest:
        raise UnsupportedError(
            f"{model.name} uses opset {model.opset}, the newest that onnx {onnx.__version__} knows is {newest}"
        )
    try:
        checkable = without_weights(proto)
        onnx.checker.check_model(checkable)
    except Exception as error:
        raise InputError(f"{model.name} isn't a valid ONNX model: {_first_line(error)}") from error
    for node in proto.graph.node:
        if any(a.name == "group" and a.i < 1 for a in node.attribute if node.op_type in ("Conv", "ConvTranspose")):
            raise InputError(f"{model.name}: `group` of {node.name or node.output[0]} must be at least 1")
    for tensor in proto.graph.initializer:
        _check_size(onnx, tensor, model)


def _doubt(onnx: Any, model: Model) -> str:
    """Return why a strict check refuses the model."""
    try:
        onnx.checker.check_model(without_weights(model.proto), full_check=True)
    except Exception as error:
        return _first_line(error)
    return ""


def _check_size(onnx: Any, tensor: Any, model: Model) -> None:
    """Check that an initialiser has as many bytes as its shape says."""
    if any(n < 0 for n in tensor.dims):
        raise InputError(f"{model.name}: the initialiser {tensor.name!r} has a negative size")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or not tensor.raw_data:
        return
    expected = bytes_of(onnx, tensor)
    if expected is not None and expected != len(tensor.raw_data):
        raise InputError(
            f"{model.name}: the initialiser {tensor.name!r} has {len(tensor.raw_data)} bytes, "
            f"but its shape needs {expected}"
        )


def external_path(tensor: Any, model: Model) -> Path:
    """Return the file of an external tensor.

    Raises:
        InputError: if it lies outside of the model's directory, isn't a regular file, or is too short.
    """
    onnx = library("onnx", "onnx")
    assert model.directory is not None
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    place = model.directory / location
    inside = location and not os.path.isabs(location) and ".." not in Path(location).parts
    if not inside or place.is_symlink() or model.directory.resolve() not in place.resolve().parents:
        raise InputError(f"{model.name} refers to weights outside of its directory: {location!r}")
    if not place.is_file():
        raise InputError(f"{model.name} needs {location!r} beside it, which isn't there")
    try:
        offset, size = int(given.get("offset", 0)), place.stat().st_size
        length = int(given.get("length", size - offset))
    except ValueError as error:
        raise InputError(f"{model.name}: where the weights {tensor.name!r} are isn't a number") from error
    needed = bytes_of(onnx, tensor)
    if offset < 0 or length < 0 or offset + length > size or (needed is not None and length != needed):
        raise InputError(f"{model.name}: {location!r} doesn't have the weights {tensor.name!r} of this shape")
    return Path(place)


def with_weights(proto: Any, model: Model) -> Any:
    """Return a model with all its weights: itself, or a copy if they are in files beside ``model``."""
    onnx = library("onnx", "onnx")
    if not is_external(proto):
        return proto
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    onnx.load_external_data_for_model(whole, os.fspath(model.directory or "."))
    return whole


def is_large(proto: Any) -> bool:
    """Whether a model is too large for one file."""
    onnx = library("onnx", "onnx")
    stored = (t for t in tensors_of(proto) if t.data_location != onnx.TensorProto.EXTERNAL)
    return sum(bytes_of(onnx, tensor) or 0 for tensor in stored) > LARGEST


def is_external(proto: Any) -> bool:
    """Whether weights of a model are in other files."""
    external = library("onnx", "onnx").TensorProto.EXTERNAL
    return any(tensor.data_location == external for tensor in tensors_of(proto))


def save(model: Any, path: str | os.PathLike[str], *, external: bool = False) -> Path:
    """Write a model to a file.

    Args:
        model: an ``onnx.ModelProto``.
        path: of the file. It is replaced when everything is written.
        external: write the weights to a file beside it, ``path.data``, as is done beyond 2 GB in any case.

    Raises:
        InputError: if the file can't be written, or ``model`` is of another type.
    """
    if not isinstance(model, library("onnx", "onnx").ModelProto):
        raise InputError(f"expected an onnx.ModelProto, got {type(model).__name__}")
    path = Path(path)
    if external or is_large(model):
        with all_or_nothing(path, path.with_name(f"{path.name}.data")) as (temporary, data):
            _write_external(model, temporary, data, f"{path.name}.data")
        return path
    with all_or_nothing(path) as (temporary,):
        temporary.write_bytes(model.SerializeToString())
    return path


def _write_external(model: Any, path: Path, data: Path, location: str) -> None:
    """Write a model to ``path`` and its weights to ``data``, which will have the name ``location``."""
    helper = library("onnx.external_data_helper", "onnx")
    copy = library("onnx", "onnx").ModelProto()
    copy.CopyFrom(model)
    helper.convert_model_to_external_data(copy, all_tensors_to_one_file=True, location=data.name, size_threshold=0)
    helper.write_external_data_tensors(copy, str(data.parent))
    for tensor in tensors_of(copy):
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(copy.SerializeToString())


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("[ShapeInferenceError] ") if lines else type(error).__name__
