"""Compare two networks in float64 and in their own dtype, and relate the difference to rounding noise."""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from unbranch.convert.faults import as_errors
from unbranch.convert.formats import format_of
from unbranch.convert.prove.distance import Distance, Kind, Output, kinds_of, outputs_of, relative_error
from unbranch.convert.prove.inputs import as_inputs, input_error
from unbranch.convert.prove.rows import distance, in_place
from unbranch.convert.prove.verification import (
    LARGEST_FLOAT32_NOISE,
    Verification,
    default_tolerance,
    largest_tolerance,
)
from unbranch.errors import InputError, UnbranchError
from unbranch.graph.eval_view import eval_view, unwrap_model
from unbranch.graph.float64 import Float64, PerturbedRounding
from unbranch.graph.isolated import Isolated
from unbranch.graph.outside import restoring_outside


def verify(a: nn.Module, b: nn.Module, example_input: Any, *, tolerance: float | None = None) -> Verification:
    """Compare two networks on an input; neither is changed, and both run in evaluation mode.

    Outputs that aren't tensors must be the same, too. Rows of outputs that are sorted or selected by scores
    (detections, top-k) are matched, so that scores that tie up to the tolerance may change places; integers are
    compared exactly unless their scores tie.

    Args:
        a: the original.
        b: its collapsed form, or any network with the same inputs and outputs.
        example_input: a tensor, or a tuple of the forward's arguments.
        tolerance: the allowed relative difference in float64. The default is 1e-10 for float64 weights; otherwise four
            times the noise floor, since merged weights are rounded to their dtype, and at most 1e-3 for float32. If the
            noise floor is larger than that, the result says that this input proves nothing.

    Returns:
        The differences; ``print`` shows them as a table.

    Raises:
        InputError: if a network can't run on the input, or the outputs have different structures or shapes.
    """
    if (other := format_of(a, b)) is not None:
        return other.verify(a, b, example_input)  # type: ignore[no-any-return]
    a, b = unwrap_model(a), unwrap_model(b)
    with as_errors(), restoring_outside(a), restoring_outside(b):
        return _verified(a, b, example_input, tolerance)


def _verified(a: nn.Module, b: nn.Module, example_input: Any, tolerance: float | None) -> Verification:
    inputs = _cast(as_inputs(example_input), _dtype_of(a))
    dtype, most = _dtype_of(a), largest_tolerance(_dtype_of(a))
    # First in their own dtypes, so that caches outside the modules are filled in these dtypes.
    own_a, other_a = _native(a, inputs, "first")
    own_b, other_b = _native(b, inputs, "second")
    exact_a, seen = _exact(a, inputs, "first")
    exact_b, also = _exact(b, inputs, "second")
    noise = distance(own_a, exact_a, most)
    allowed = default_tolerance(dtype, noise.relative) if tolerance is None else tolerance
    unlike = _unlike_beside_tensors(other_b, other_a)
    found, native = distance(exact_b, exact_a, allowed), distance(own_b, own_a, max(allowed, 4 * noise.relative))
    plain = in_place(exact_b, exact_a)
    if plain is not None and plain.relative > allowed:
        # Rows may only be matched if rounding weights to their dtype changes what is selected.
        amount = max(1e-14, torch.finfo(dtype).eps)
        moved = _moved_by_rounding(a, inputs, exact_a, amount)
        if 0 < moved <= max(allowed, default_tolerance(dtype, noise.relative), 64 * amount):
            found = plain
        elif moved == 0:  # no layer rounds: selections from the input alone may tie
            found = distance(exact_b, exact_a, allowed, columns=False)
    if unlike:
        found |= Distance(1.0, 1.0, 1)
    differ = found.relative > allowed
    return Verification(
        max_abs=found.absolute,
        max_rel=found.relative,
        native_abs=native.absolute,
        native_rel=native.relative,
        noise_floor=noise.relative,
        same_classes=_same_classes(exact_b, exact_a),
        first_difference=_first_difference(seen, also, allowed) if differ else None,
        tolerance=allowed,
        compared=found.compared,
        unproved=_unproved(noise.relative, None if tolerance is not None else max(most, LARGEST_FLOAT32_NOISE), found)
        or (_depends_on_rounding(a, inputs, exact_a, allowed) if differ else None),
    )


def _unproved(noise: float, most: float | None, found: Distance) -> str | None:
    """Return why agreement on this input means nothing. ``most`` is the largest noise; None if the caller chose."""
    if most is not None and noise > most:
        return f"its own rounding noise, {noise:.0e} of the largest output, is above {most:.0e}: try trained weights"
    if found.tied > found.compared:
        return f"the scores of {found.tied} numbers tie, only {found.compared} could be compared: try another input"
    return None


def _unlike_beside_tensors(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether outputs that aren't tensors differ; floats may differ by rounding.

    Raises:
        InputError: if their structures differ.
    """
    for path in [*ours, *theirs]:
        if path not in ours or path not in theirs:
            raise InputError(f"the two networks give outputs of different structures: only one has {path or 'a value'}")
        if type(ours[path]) is not type(theirs[path]) or (isinstance(ours[path], Kind) and ours[path] != theirs[path]):
            raise InputError(f"the two networks give different outputs{path}: {ours[path]} and {theirs[path]}")
    return not all(_is_close(ours[path], theirs[path]) for path in ours)


def _is_close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and math.isfinite(a):
        return math.isclose(a, b, rel_tol=LARGEST_FLOAT32_NOISE, abs_tol=1e-6)
    return bool(a == b or (a != a and b != b))


def _depends_on_rounding(
    network: nn.Module, inputs: tuple[Any, ...], exact: list[Output], allowed: float
) -> str | None:  # fmt: skip
    """Return why a difference means nothing: the network's own outputs change if its layers round differently."""
    moved = _moved_by_rounding(network, inputs, exact, 1e-14)
    if moved <= allowed:
        return None
    return (
        f"rounding alone changes its outputs by {moved:.0e}, as where scores tie: try another input or trained weights"
    )


def _moved_by_rounding(network: nn.Module, inputs: tuple[Any, ...], exact: list[Output], amount: float) -> float:
    """Return how far outputs move if layers are off by ``amount`` of their largest value; 0 without layers."""
    shaken, _ = _exact(network, inputs, "first", functools.partial(PerturbedRounding, amount=amount))
    found = in_place(shaken, exact)
    return float("inf") if found is None else found.relative  # a different number of rows may be selected


def _native(network: nn.Module, inputs: tuple[Any, ...], which: str) -> tuple[list[Output], dict[str, Any]]:
    """Return outputs in the network's own dtype, and plain values and types of all leaves by path."""
    view = eval_view(network)
    with _run(network, inputs, which, "its own dtype"), Isolated() as run:
        output = run.values(view(*_cast(inputs, _dtype_of(network))))
        return outputs_of(output), kinds_of(output)


def _exact(
    network: nn.Module, inputs: tuple[Any, ...], which: str, mode: Callable[[torch.dtype], Float64] = Float64
) -> tuple[list[Output], dict[str, Tensor]]:
    """Return outputs in float64, and a fingerprint of every module's output."""
    view = eval_view(network)  # a new one each time, since some networks cache tensors
    seen: dict[str, Tensor] = {}
    for name, module in view.named_modules():
        if name:

            def remember(_m: nn.Module, _a: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and name not in seen:
                    seen[name] = _fingerprint(out)

            module.register_forward_hook(remember)
    dtype = _dtype_of(network)
    with _run(network, inputs, which, "float64"), mode(dtype) as run:
        return outputs_of(run.values(view(*_cast(inputs, dtype)))), seen


@contextlib.contextmanager
def _run(network: nn.Module, inputs: tuple[Any, ...], which: str, precision: str) -> Iterator[None]:
    """Run a network: errors become one sentence, and random generators are restored."""
    devices = {t.device for t in (*network.parameters(), *network.buffers()) if t.device.type == "cuda"}
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    except UnbranchError:
        raise
    except Exception as error:  # anything that a forward raises
        raise input_error(network, inputs, error, which=f"the {which} network", precision=f" in {precision}") from error
    finally:
        random.setstate(state)


def _fingerprint(value: Tensor) -> Tensor:
    """Return at most 4096 numbers of a tensor."""
    flat = value.detach().flatten()
    return flat[:: max(1, flat.numel() // 4096)].double().clone()


def _cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Clone tensors, since some networks write to their input, and cast the floating-point ones."""
    return tree_map(  # type: ignore[no-any-return]
        lambda v: v.to(dtype if v.is_floating_point() else v.dtype, copy=True) if isinstance(v, Tensor) else v, inputs
    )


def _dtype_of(network: nn.Module) -> torch.dtype:
    tensors = (*network.parameters(), *network.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def _same_classes(ours: list[Output], theirs: list[Output]) -> float | None:
    for o, t in ((o.value, t.value) for o, t in zip(ours, theirs, strict=True)):
        if t.dim() == 2 and t.shape[1] > 1 and t.is_floating_point() and o.shape == t.shape and len(t):
            return float((o.argmax(1) == t.argmax(1)).double().mean())
    return None


def _first_difference(seen: dict[str, Tensor], also: dict[str, Tensor], tolerance: float) -> str | None:
    for name, value in seen.items():
        other = also.get(name)
        if other is not None and other.shape == value.shape and relative_error(other, value) > tolerance:
            return name
    return None
