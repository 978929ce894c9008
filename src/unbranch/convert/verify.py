"""Comparing two networks: in float64, in their own precision, and beside that precision's own noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..errors import InputError
from ..graph.float64 import Float64
from ..graph.shadow import shadow_of, unwrapped
from .prove import relative_error


@dataclass(frozen=True)
class Verification:
    """How far two networks are apart on the given input, both in evaluation.

    Args:
        max_abs, max_rel: largest difference, and over the largest output of the first, in float64.
        native_abs, native_rel: the same in the networks' own dtype.
        noise_floor: the first network in its own dtype against itself in float64, relative. A difference in
            its own dtype that isn't well above this says nothing.
        same_classes: fraction of rows whose largest entry is at the same place, of the first 2-D output.
        first_difference: path of the first module, in order of computation, that is in both networks under one
            name and differs in float64; None if none does.
        tolerance: what ``ok`` allows for ``max_rel``.
        compared: how many numbers were compared; a detector that finds nothing gives none.
    """

    max_abs: float
    max_rel: float
    native_abs: float
    native_rel: float
    noise_floor: float
    same_classes: float | None
    first_difference: str | None
    tolerance: float
    compared: int

    @property
    def ok(self) -> bool:
        """Whether there was something to compare and the float64 outputs agree within the tolerance."""
        return self.compared > 0 and self.max_rel <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        if not self.compared:
            return "nothing to compare: all outputs are empty on this input; try another"
        verdict = "the same function" if self.ok else "NOT the same function"
        lines = [
            f"{verdict} (tolerance {self.tolerance:.0e} of the largest output)",
            f"  float64       {self.max_rel:.1e} relative, {self.max_abs:.1e} absolute",
            f"  own precision {self.native_rel:.1e} relative, {self.native_abs:.1e} absolute",
            f"  noise floor   {self.noise_floor:.1e} relative: the first network against its own float64",
        ]
        if self.same_classes is not None:
            lines.append(f"  same largest entry in {self.same_classes:.2%} of the rows")
        if self.first_difference is not None:
            lines.append(f"  first module that differs: {self.first_difference}")
        return "\n".join(lines)


def as_inputs(example: Any) -> tuple[Any, ...]:
    """An example input as the tuple of a forward's arguments.

    Raises:
        InputError: if there is no tensor in it.
    """
    inputs = tuple(example) if isinstance(example, tuple | list) and not _is_image_list(example) else (example,)
    if not any(isinstance(v, Tensor) for v in tree_flatten(inputs)[0]):
        raise InputError(f"example_input must be a tensor or a tuple of tensors, got {type(example).__name__}")
    return inputs


def _is_image_list(example: Any) -> bool:
    return isinstance(example, list)  # detectors take one list of images


def default_tolerance(dtype: torch.dtype, noise_floor: float) -> float:
    """What rounding the merged weights once, to ``dtype``, may cost: four times the network's own noise."""
    return 1e-10 if dtype == torch.float64 else max(64 * torch.finfo(dtype).eps, 4 * noise_floor)


def verify(a: nn.Module, b: nn.Module, example_input: Any, *, tolerance: float | None = None) -> Verification:
    """Compare two networks on an input; neither is changed, and both run in evaluation mode.

    Args:
        a: the original.
        b: its collapsed form, or any network with the same inputs and outputs.
        example_input: a tensor, or a tuple of the forward's arguments.
        tolerance: allowed relative difference in float64; default 1e-10 for float64 weights, otherwise four
            times the noise floor, since merged weights are rounded to their dtype.

    Raises:
        InputError: if the outputs have different structures or shapes.
    """
    a, b = unwrapped(a), unwrapped(b)
    inputs = as_inputs(example_input)
    dtype = _dtype_of(a)
    exact_a, seen = _run(a, inputs, record=True)
    exact_b, also = _run(b, inputs, record=True)
    _check_same_structure(exact_a, exact_b)
    own_a, own_b = _native(a, inputs, dtype), _native(b, inputs, dtype)
    max_rel = _worst(exact_b, exact_a)
    noise_floor = _worst(own_a, exact_a)
    tolerance = default_tolerance(dtype, noise_floor) if tolerance is None else tolerance
    return Verification(
        max_abs=_largest(exact_b, exact_a),
        max_rel=max_rel,
        native_abs=_largest(own_b, own_a),
        native_rel=_worst(own_b, own_a),
        noise_floor=noise_floor,
        same_classes=_same_classes(exact_b, exact_a),
        first_difference=_first_difference(seen, also, tolerance) if max_rel > tolerance else None,
        tolerance=tolerance,
        compared=sum(t.numel() for t in exact_a),
    )


def _run(network: nn.Module, inputs: tuple[Any, ...], *, record: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs in float64, and a fingerprint of every module's output."""
    network = shadow_of(network)  # a fresh one, since some networks cache tensors
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        if record and name:

            def remember(_m: nn.Module, _a: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and name not in seen:
                    seen[name] = _fingerprint(out)

            handles.append(module.register_forward_hook(remember))
    try:
        with torch.no_grad(), Float64():
            outputs = _tensors(network(*_copied(inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, seen


def _fingerprint(value: Tensor) -> Tensor:
    """At most 4096 numbers that stand for a tensor."""
    flat = value.detach().flatten()
    return flat[:: max(1, flat.numel() // 4096)].double().clone()


def _native(network: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    network = shadow_of(network)
    given = tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, inputs)
    with torch.no_grad():
        return _tensors(network(*_copied(given)))


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Fresh tensors: some networks write to their input."""
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)  # type: ignore[no-any-return]


def _tensors(output: Any) -> list[Tensor]:
    if hasattr(output, "to_tuple"):  # Hugging Face's outputs
        output = output.to_tuple()
    return [v for v in tree_flatten(output)[0] if isinstance(v, Tensor)]


def _dtype_of(network: nn.Module) -> torch.dtype:
    tensors = (*network.parameters(), *network.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def _check_same_structure(ours: list[Tensor], theirs: list[Tensor]) -> None:
    a, b = [tuple(t.shape) for t in ours], [tuple(t.shape) for t in theirs]
    if a != b:
        raise InputError(f"the two networks give outputs of different shapes: {a} and {b}")


def _largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(
        (float((o.double() - t.double()).abs().max()) for o, t in zip(ours, theirs, strict=True) if o.numel()),
        default=0.0,
    )


def _worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((relative_error(o, t) for o, t in zip(ours, theirs, strict=True)), default=0.0)


def _same_classes(ours: list[Tensor], theirs: list[Tensor]) -> float | None:
    for o, t in zip(ours, theirs, strict=True):
        if o.dim() == 2 and o.shape[1] > 1:
            return float((o.argmax(1) == t.argmax(1)).double().mean())
    return None


def _first_difference(seen: dict[str, Tensor], also: dict[str, Tensor], tolerance: float) -> str | None:
    for name, value in seen.items():
        other = also.get(name)
        if other is not None and other.shape == value.shape and relative_error(other, value) > tolerance:
            return name
    return None
