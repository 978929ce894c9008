"""How the branches of a network are computed while it trains."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from unbranch.blocks.branched import BranchedConv
from unbranch.errors import InputError

WAYS = ("merged",)
Network = TypeVar("Network", bound=nn.Module)


def train_cheaper(network: Network, way: str | None = "merged") -> Network:
    """Make the blocks of a network keep less for the gradient in training; returns the network itself.

    ``"merged"`` computes the same outputs, gradients and running statistics from fewer convolutions (see
    docs/training_cost.md for what it saves where); ``None`` takes it back. It is a setting of the blocks, as
    train mode is: parameters and their names stay, copies and pickles keep it, files don't hold it, and evaluation
    and ``collapse`` don't see it.

    Raises:
        InputError: for another way, or if the network has no blocks with branches.

    >>> from unbranch.blocks import DBB
    >>> train_cheaper(DBB(8, 8, 3, padding=1)).merging
    True
    """
    if way is not None and way not in WAYS:
        hint = "; to train blocks online, make them with online=True" if way == "online" else ""
        raise InputError(f"way={way!r} is none of {', '.join(WAYS)} or None{hint}")
    blocks = [module for module in network.modules() if isinstance(module, BranchedConv)]
    if not blocks:
        raise InputError(f"{type(network).__name__} has no block with branches whose training could be made cheaper")
    for block in blocks:
        block.merging = way == "merged"
    return network
