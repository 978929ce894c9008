"""Stage 5, fill: write a state dict into a model, all of it or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unbranch.errors import CheckpointError
from unbranch.weights.manifest import printable

LISTED = 4  # names of each kind of mismatch that a message gives


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    origin: str,
    *,
    skipped: Collection[str] = (),
    keep_dtype: bool = False,
) -> None:
    """Load tensors by name into a model; if any of them doesn't fit, raise and change nothing.

    Names that share one tensor may be given once, and counters of batches may be missing: files of older versions
    of PyTorch have none.

    Args:
        model: whose parameters and buffers get the values.
        state: one tensor for each of the model's names.
        origin: path of the file, for messages.
        skipped: names of the model that keep their values.
        keep_dtype: change the dtype of floating-point tensors of the model to that of the file.

    Raises:
        CheckpointError: listing what is missing, unexpected or of another shape or type.
    """
    tensors = _named_tensors(model)
    if any(is_lazy(tensor) or tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError(
            f"{origin} can't be loaded: the model has parameters without values (lazy, or on the meta device); "
            "run it once or move it to a device first"
        )
    if skipped:
        state = {**state, **{key: value for key, value in model.state_dict().items() if key in skipped}}
    _check_fit(model, state, origin)
    if keep_dtype:
        _set_dtypes(model, state)
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{origin} doesn't fit the model: {error}") from error


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Raise CheckpointError with every mismatch between a state dict and the model's own."""
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    both, twins = [key for key in own if key in state], _twins(model)
    problems = {
        "missing": [printable(key) for key in own if _is_missing(key, state, twins)],
        "unexpected": [printable(key) for key in state if key not in own],
        "wrong shape": [
            f"{printable(key)} {tuple(state[key].shape)} where the model has {tuple(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
        "wrong type": [
            f"{printable(key)} {state[key].dtype} where the model has {own[key].dtype}"
            for key in both
            if _kind(state[key]) != _kind(own[key])
        ],
        "unequal though shared": [
            f"{printable(key)} and {printable(twin)}"
            for key in both
            for twin in twins.get(key, ())
            if key < twin and twin in state and not _same_bytes(state[key], state[twin])
        ],
    }
    if any(problems.values()):
        listed = "; ".join(_listed(kind, names) for kind, names in problems.items() if names)
        raise CheckpointError(f"{origin} doesn't fit the model: {listed}")


def _is_missing(key: str, state: Mapping[str, Tensor], twins: Mapping[str, list[str]]) -> bool:
    given = key in state or any(twin in state for twin in twins.get(key, ()))
    return not given and not key.endswith("num_batches_tracked")


def _kind(tensor: Tensor) -> str:
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _twins(model: nn.Module) -> dict[str, list[str]]:
    """For each name of a shared tensor, its other names."""
    names: dict[int, list[str]] = {}
    for name, tensor in _named_tensors(model).items():
        names.setdefault(id(tensor), []).append(name)
    return {name: [twin for twin in group if twin != name] for group in names.values() for name in group}


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(*(t.flatten().contiguous().view(torch.uint8) for t in (a, b)))


def _set_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Change floating-point tensors of the model to the file's dtypes, in place so that shared ones stay shared.

    Buffers that are in no file follow the other tensors of their dtype.
    """
    floating = {name: tensor for name, tensor in _named_tensors(model).items() if tensor.is_floating_point()}
    wanted = {name: state[name].dtype for name in floating if name in state}
    changes: dict[torch.dtype, set[torch.dtype]] = {}
    for name, dtype in wanted.items():
        changes.setdefault(floating[name].dtype, set()).add(dtype)
    usual = {old: next(iter(new)) for old, new in changes.items() if len(new) == 1}
    for name, tensor in floating.items():
        tensor.data = tensor.data.to(wanted.get(name, usual.get(tensor.dtype, tensor.dtype)))


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind} ({', '.join(names[:LISTED])}{more})"
