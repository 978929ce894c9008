"""Whether the branches of a network are computed together while it trains."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from unbranch.blocks.branched import BranchedConv
from unbranch.deprecation import warn_deprecated
from unbranch.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


def fuse_branches_in_training(model: Model, enabled: bool = True) -> Model:
    """Reduce the activation memory of branched blocks during training, in place.

    Outputs, gradients and running statistics stay the same; they are computed from fewer convolutions (see
    docs/training_cost.md for what that saves where). It is a setting of the blocks, like train mode: parameters and
    their names stay, copies and pickles keep it, files don't hold it, and evaluation and ``collapse`` aren't affected.

    Args:
        model: a network with blocks.
        enabled: False to compute the branches one by one again.

    Returns:
        The model itself.

    Raises:
        InputError: if the model has no block with branches.

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
