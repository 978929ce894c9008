"""Compare two ONNX files in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.onnx.files import Model, is_large, save, with_weights
from unbranch.onnx.shapes import sizes_of_inputs
from unbranch.render import Block, Paragraph, Renderable

FLOORS = 4  # an honest difference is at most so many times the rounding noise
LEAST = 1e-6  # noise of one convolution in float32, relative to the largest output
SIZES = 2  # at which two files are compared, if the inputs may have several
HALF = 2e-3  # the same in half precision
_ORDER = (2, 0, 3, 1)  # of the runs: an odd size first, one that networks with U-shapes take second
Feeds = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison(Renderable):
    """Outputs of two files on the same inputs.

    Args:
        error: largest difference of an output relative to its largest value.
        noise: the same between the first file with ONNX Runtime's optimisations and without.
        sizes: shapes of the inputs that were compared.
        problem: why they couldn't be compared, or an empty string.
    """

    error: float
    noise: float
    sizes: tuple[dict[str, tuple[int, ...]], ...]
    problem: str = ""

    @property
    def limit(self) -> float:
        """The largest error that rounding explains."""
        return FLOORS * self.noise

    @property
    def same(self) -> bool:
        """Whether the files compute the same, up to rounding."""
        return not self.problem and self.error <= self.limit

    @property
    def ok(self) -> bool:
        """The same as ``same``."""
        return self.same

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.problem:
            return f"not compared: {self.problem}"
        verdict = "the same function" if self.same else "another function"
        return f"{verdict}: largest difference {self.error:.1e} of the largest output, rounding noise {self.noise:.1e}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the verdict as plain values."""
        return {**super().to_dict(), "same": self.same}

    def blocks(self) -> Iterable[Block]:
        """The verdict, and the sizes of the inputs."""
        yield Paragraph(self.summary, "bold")
        for sizes in self.sizes:
            yield Paragraph(", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in sizes.items()))


def compare(first: Model, second: Any, inputs: Feeds | None = None) -> Comparison:
    """Compare a model with another one, on given inputs or on random ones of two sizes.

    Raises:
        InputError: if the given inputs don't fit.
    """
    if (unlike := _unlike_tensors(first)) and inputs is None:
        return Comparison(0.0, 0.0, (), f"the input {unlike} isn't a tensor of numbers")
    feeds = _random(first) if inputs is None else [_checked(first, inputs)]
    try:
        sessions = [_session(first.proto, first, basic) for basic in (True, False)]
    except _Unrunnable as error:
        return Comparison(0.0, 0.0, (), str(error))
    try:
        other = _session(second, first, True)
    except _Unrunnable as error:
        return Comparison(float("inf"), 0.0, (), str(error))
    worst, noise = 0.0, HALF if _is_half(first) else LEAST
    sizes: list[dict[str, tuple[int, ...]]] = []
    for feed in feeds:
        try:
            plain, fused = (session.run(None, feed) for session in sessions)
        except Exception as failure:
            if inputs is not None:
                raise InputError(f"{first.name} doesn't run on these inputs: {_short(failure)}") from failure
            continue  # a size that the network doesn't take
        try:
            found = other.run(None, feed)
        except Exception as failure:
            return Comparison(float("inf"), noise, tuple(sizes), f"it doesn't run: {_short(failure)}")
        noise = max(noise, _difference(plain, fused))
        worst = max(worst, _difference(plain, found))
        sizes.append({name: tuple(value.shape) for name, value in feed.items()})
        if len(sizes) == SIZES:
            break
    if not sizes:
        return Comparison(0.0, 0.0, (), "it runs on no input that was tried")
    return Comparison(worst, noise, tuple(sizes))


class _Unrunnable(Exception):
    """ONNX Runtime can't run a model."""


def _checked(model: Model, inputs: Any) -> dict[str, Any]:
    """Return given inputs.

    Raises:
        InputError: if they aren't numbers by the names of the inputs.
    """
    names = [value.name for value in model.proto.graph.input if value.name not in _constants(model)]
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs must be NumPy arrays by name ({', '.join(names)}), got {type(inputs).__name__}")
    if set(inputs) != set(names):
        raise InputError(f"{model.name} has the inputs {', '.join(names)}, got {', '.join(map(str, inputs)) or 'none'}")
    for name, value in inputs.items():
        if not isinstance(value, np.ndarray):
            raise InputError(f"the input {name} must be a NumPy array, got {type(value).__name__}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"the input {name} isn't finite: a comparison would show nothing")
    return dict(inputs)


def _constants(model: Model) -> set[str]:
    """Return the inputs of an old model that are its weights."""
    return {t.name for t in model.proto.graph.initializer} if model.proto.ir_version < 4 else set()


def _session(proto: Any, model: Model, plain: bool) -> Any:
    """Return a session of one thread; a plain one doesn't fuse."""
    ort = library("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if plain else level.ORT_ENABLE_ALL
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = _loadable(proto, model, Path(folder))
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _Unrunnable(f"ONNX Runtime can't run it: {_short(error)}") from error


def _loadable(proto: Any, model: Model, folder: Path) -> bytes | str:
    """Return a model with all weights in it, or the path of its file if it is too large for that."""
    whole = with_weights(proto, model)
    if is_large(whole):
        return str(save(whole, folder / "model.onnx"))
    return whole.SerializeToString()  # type: ignore[no-any-return]


def _unlike_tensors(model: Model) -> str:
    """Return the name of an input for which there are no random values, such as a sequence or text; or nothing."""
    onnx = library("onnx", "onnx")
    numbers = onnx.TensorProto
    other = {numbers.UNDEFINED, numbers.STRING, numbers.COMPLEX64, numbers.COMPLEX128}
    inputs = (v for v in model.proto.graph.input if v.name not in _constants(model))
    return next((str(v.name) for v in inputs if v.type.tensor_type.elem_type in other), "")


def _random(model: Model) -> list[dict[str, Any]]:
    """Return inputs of several sizes: normal noise, and small numbers for integers."""
    onnx = library("onnx", "onnx")
    generator = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    constant = _constants(model)
    for run in _ORDER:
        shapes = sizes_of_inputs(model.proto, run)
        feed: dict[str, Any] = {}
        for value in model.proto.graph.input:
            if value.name in constant:
                continue
            shape = shapes[value.name]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            if np.dtype(dtype).kind == "f":
                feed[value.name] = generator.standard_normal(shape or ()).astype(dtype)
            elif np.dtype(dtype).kind == "b":
                feed[value.name] = np.ones(shape or (), dtype)
            else:
                feed[value.name] = generator.integers(0, 3, shape or ()).astype(dtype)
        if all(any(feed[n].shape != other[n].shape for n in feed) for other in found):
            found.append(feed)
    return found


def _difference(first: Any, second: Any) -> float:
    """Return the largest difference of an output relative to its largest value; infinity for other kinds of results."""
    if isinstance(first, list | tuple):
        if not isinstance(second, list | tuple) or len(first) != len(second):
            return float("inf")
        return max((_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    if not isinstance(first, np.ndarray) or first.dtype.kind not in "fiubc":
        return 0.0 if np.array_equal(first, second) else float("inf")
    if first.shape != second.shape or not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return float("inf")
    kind = np.complex128 if first.dtype.kind == "c" else np.float64
    a, b = (np.where(np.isfinite(v), v, 0).astype(kind) for v in (first, second))
    return float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(a).max(initial=0.0)), 1e-12)


def _is_half(model: Model) -> bool:
    """Whether all weights are in half precision; one of them doesn't excuse the errors of a network in float32."""
    kinds = {t.data_type for t in model.proto.graph.initializer if t.data_type in (1, 10, 11, 16) and len(t.dims) > 1}
    return bool(kinds) and kinds <= {10, 16}


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]
