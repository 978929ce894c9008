"""Kernels that see the image, for another number of input channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unbranch.blocks import BranchedConv
from unbranch.convert import equivalent_kernel
from unbranch.models.build import build_model
from unbranch.provenance import provenance_of
from unbranch.weights.canonical import State, key_of
from unbranch.weights.names import FIRST

Shapes = Mapping[str, torch.Size]


def adapt_kernel(kernel: Tensor, in_channels: int) -> Tensor:
    """Return a kernel for images of another number of channels.

    For gray images it is the sum over the input channels, which is as if the one channel were repeated; else the
    input channels are repeated in turn and scaled, so that equal channels give what they gave before.

    Args:
        kernel: ``(O, I, kH, kW)``.
        in_channels: of the images.

    Returns:
        ``(O, in_channels, kH, kW)``, float64.

    Example:
        >>> adapt_kernel(torch.ones(1, 3, 1, 1), 6).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    given = kernel.shape[1]
    if in_channels == 1:
        return kernel.double().sum(1, keepdim=True)
    return kernel.double().repeat(1, -(-in_channels // given), 1, 1)[:, :in_channels] * given / in_channels


def adapt_stem(state: Mapping[str, Tensor], model: nn.Module, shapes: Shapes) -> tuple[State, tuple[str, ...]]:
    """Adapt the kernels of the first layers whose number of input channels differs from the model's.

    Args:
        state: tensors by canonical name.
        model: structure of a network from ``create_model``.
        shapes: of the tensors that it knows.

    Returns:
        The state, and the names of the kernels that were adapted.
    """
    adapted = _merge_first_block(state, model, shapes)
    channels = _in_channels(model)
    keys = tuple(key for key in shapes if key.startswith(FIRST) and _is_adaptable(key, adapted, shapes, channels))
    return adapted | {key: adapt_kernel(adapted[key], channels) for key in keys}, keys


def _in_channels(model: nn.Module) -> int:
    return int(model.in_channels)  # type: ignore[arg-type]


def _is_adaptable(key: str, state: Mapping[str, Tensor], shapes: Shapes, in_channels: int) -> bool:
    """Whether a tensor is a kernel that differs from the model's in the number of input channels alone."""
    own, theirs = shapes.get(key, ()), state.get(key)
    if theirs is None or theirs.dim() != 4 or len(own) != 4:
        return False
    same = own[0] == theirs.shape[0] and own[2:] == theirs.shape[2:]
    return bool(same and own[1] == in_channels != theirs.shape[1])


def _has_shape(key: str, state: Mapping[str, Tensor], shapes: Shapes) -> bool:
    theirs = state.get(key)
    return key.endswith("num_batches_tracked") or (theirs is not None and theirs.shape == shapes.get(key))


@torch.no_grad()
def _merge_first_block(state: Mapping[str, Tensor], model: nn.Module, shapes: Shapes) -> State:
    """Merge the block that sees the image, if its branches can't be adapted one by one.

    That is a block which has channels of the image inside, or other branches for as many.
    """
    unchanged, channels = dict(state), _in_channels(model)
    path, block = _first_block(model)
    if block is None:
        return unchanged
    main = key_of(path, f"{block.main_branch}.conv.weight")
    if not _is_adaptable(main, state, shapes, channels):
        return unchanged
    inner = {key.removeprefix(f"{path}."): value for key, value in state.items() if key.startswith(f"{path}.")}
    keys = {key_of(path, key) for key in inner.keys() | block.state_dict().keys()}
    if all(_has_shape(key, state, shapes) or _is_adaptable(key, state, shapes, channels) for key in keys):
        return unchanged
    theirs = _block_for(model, path, state[main].shape[1])
    if theirs is None or not _load(theirs, inner):
        return unchanged
    weight, bias = equivalent_kernel(theirs)
    rest = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
    return rest | {key_of(path, "merged.weight"): weight, key_of(path, "merged.bias"): bias}


def _first_block(model: nn.Module) -> tuple[str, BranchedConv | None]:
    for path, module in model.named_modules():
        if isinstance(module, BranchedConv) and f"{path}.".startswith(FIRST):
            return path, module
    return "", None


def _block_for(model: nn.Module, path: str, in_channels: int) -> nn.Module | None:
    """Build the block at a path of a network like this one, for images of another number of channels."""
    history = provenance_of(model)
    if history.network is None:
        return None
    like = build_model(history.network, **{**history.arguments, "in_channels": in_channels})
    return like.get_submodule(path).double().eval()


def _load(block: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Load a state into a block, if it is one of this block."""
    own = {key: value.shape for key, value in block.state_dict().items() if not key.endswith("num_batches_tracked")}
    if any(key not in state or state[key].shape != shape for key, shape in own.items()):
        return False
    block.load_state_dict({key: state[key] for key in own}, strict=False)
    return True
