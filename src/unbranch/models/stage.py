"""A stage of a network: blocks in sequence, with activation checkpointing and rates of stochastic depth."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unbranch.errors import InputError
from unbranch.models.recompute import once_updated


class Stage(nn.Sequential):
    """Blocks in sequence, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    With ``checkpointing``, the activations inside each block are recomputed in the backward pass, which needs less
    memory and more time; statistics of norms are updated once. Chen et al.: "Training Deep Nets with Sublinear Memory
    Cost", 2016.
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        keeps = not (self.checkpointing and self.training and torch.is_grad_enabled())
        for block in self:
            x = block(x) if keeps else _recomputed(block, x)
        return x


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, and keep only ``x`` for the backward pass."""
    if torch.compiler.is_compiling():  # which updates statistics once, and takes no contexts
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=partial(once_updated, block)))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return rates of stochastic depth that rise linearly from 0 at the first block to ``rate`` at the last.

    Huang et al.: "Deep Networks with Stochastic Depth", ECCV 2016, section 3.
    """
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def no_drop_path(rate: float, name: str) -> None:
    """Raise InputError if a network without shortcuts is asked for stochastic depth."""
    if rate:
        raise InputError(f"`drop_path_rate` must be 0 for {name}, which has no shortcuts around its layers, got {rate}")
