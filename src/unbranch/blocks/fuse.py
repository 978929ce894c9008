"""Switch fused training of a network's blocks on and off."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from unbranch.blocks.branched import BranchedConv
from unbranch.deprecation import warn_deprecated
from unbranch.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


def fuse_branches_in_training(model: Model, enabled: bool = True) -> Model:
    """Reduce the activation memory of branched blocks during training, in place.

    The blocks compute the same outputs, gradients and running statistics from fewer convolutions;
    docs/training_cost.md lists what this saves. It is a setting of the blocks, like train mode: parameters and their
    names don't change, copies and pickles include the setting, saved files don't, and it has no effect in evaluation
    or on ``collapse``.

    Args:
        model: a network that contains branched blocks.
        enabled: whether to fuse; False switches back to separate branches.

    Returns:
        The model itself.

    Raises:
        InputError: if the model contains no branched block.

    Example:
        >>> from unbranch.blocks import DBB
        >>> fuse_branches_in_training(DBB(8, 8, 3, padding=1)).fused_in_training
        True
    """
    blocks = [module for module in model.modules() if isinstance(module, BranchedConv)]
    if not blocks:
        raise InputError(f"`model` must have blocks with branches, got a {type(model).__name__} without")
    for block in blocks:
        block.fused_in_training = enabled
    return model


def train_cheaper(network: Model, way: str | None = "merged") -> Model:
    """Deprecated: use ``fuse_branches_in_training``."""
    warn_deprecated("`unbranch.train_cheaper` is deprecated, use `unbranch.fuse_branches_in_training`")
    if way not in ("merged", None):
        hint = "; to train blocks online, make them with online=True" if way == "online" else ""
        raise InputError(f"`way` must be 'merged' or None, got {way!r}{hint}")
    return fuse_branches_in_training(network, way is not None)
