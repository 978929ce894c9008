"""The units that plain networks are made of, and the blocks that can replace their convolutions.

A unit is convolution, batch norm and ReLU. ACNet and DBB replace the convolution and its norm by a block where the
kernel has 2 to 6 taps a side, and skip 1×1 and 7×7 or larger ones; ResRep puts a compactor behind the norms of the
layers that it prunes. All of them collapse to the same keys: ``conv.weight`` and ``conv.bias``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from torch import nn

from unbranch.blocks import CONVOLUTIONS, Compactor
from unbranch.errors import InputError

Block: TypeAlias = str | Callable[..., nn.Module] | None
SIDES = range(2, 7)  # of kernels that a block replaces


class Units:
    """Factory of the units of one network.

    Args:
        block: what replaces convolutions, by name or anything with nn.Conv2d's signature; ``"compactor"`` for
            compactors behind the prunable units; None for plain ones.
        block_options: further arguments of the block, such as ``init``.
        pruned_widths: output channels of each unit in the order they are made, for a network that was pruned.

    Raises:
        InputError: for an unknown block, or an option that it doesn't have.
    """

    def __init__(
        self,
        block: Block = None,
        block_options: dict[str, Any] | None = None,
        pruned_widths: Iterable[int] | None = None,
    ) -> None:
        known = block in (*CONVOLUTIONS, "compactor") if isinstance(block, str) else block is None or callable(block)
        if not known:
            raise InputError(
                f"`block` must be one of {', '.join(CONVOLUTIONS)}, compactor, None, or a class or function with "
                f"nn.Conv2d's arguments, got {block!r}"
            )
        self.compacts = block == "compactor"
        make: Callable[..., nn.Module] | None = CONVOLUTIONS.get(block) if isinstance(block, str) else block
        self.block, self.options = make, block_options or {}
        if self.options and make is None:
            raise InputError("`block_options` need a `block` that replaces convolutions, got none")
        if isinstance(pruned_widths, int):
            raise InputError(f"`pruned_widths` must list the channels of each unit, got {pruned_widths}")
        self._widths: Iterator[int] | None = None if pruned_widths is None else iter(pruned_widths)

    def width(self, usual: int) -> int:
        """Return the channels of the next unit: ``usual``, or the next of ``pruned_widths``.

        Raises:
            InputError: if ``pruned_widths`` has ended, or gives more than ``usual``.
        """
        if self._widths is None:
            return usual
        width = next(self._widths, None)
        if width is None:
            raise InputError("`pruned_widths` has fewer entries than the network has units")
        if not 1 <= width <= usual:
            raise InputError(
                f"`pruned_widths` must be between 1 and the channels of each unit, got {width} for {usual} channels"
            )
        return width

    def finish(self) -> None:
        """Raise InputError if ``pruned_widths`` has entries left."""
        if self._widths is not None and next(self._widths, None) is not None:
            raise InputError("`pruned_widths` has more entries than the network has units")

    def conv(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int | None = None,
        groups: int = 1, **options: Any,
    ) -> nn.Module:  # fmt: skip
        """Return a convolution without bias, or the block that replaces it, which gets the further options."""
        place = (in_channels, out_channels, kernel, stride, kernel // 2 if padding is None else padding)
        if self.block is not None and kernel in SIDES:
            try:
                return self.block(*place, groups=groups, **options, **self.options)
            except TypeError as error:
                given = f" and block_options={self.options}" if self.options else ""
                raise InputError(f"{self.block} can't replace a convolution with {place}{given}: {error}") from error
        return nn.Conv2d(*place, groups=groups, bias=False)

    def unit(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int | None = None,
        groups: int = 1, relu: bool = True, prunable: bool = False,
    ) -> nn.Module:  # fmt: skip
        """Return ``ReLU(BN(conv(x)))`` with a compactor behind the norm; or the block, with its norms, and the ReLU."""
        conv = self.conv(in_channels, out_channels, kernel, stride, padding, groups)
        layers = OrderedDict(conv=conv)
        if isinstance(conv, nn.Conv2d):
            layers["bn"] = nn.BatchNorm2d(out_channels)
            if self.compacts and prunable:
                layers["compactor"] = Compactor(out_channels)
        elif not relu:
            return conv
        if relu:
            layers["act"] = nn.ReLU()
        return nn.Sequential(layers)


def no_block(block: Block, family: str) -> None:
    """Raise InputError if a network that is made of its own blocks is asked for others."""
    if block is not None:
        raise InputError(f"`block` must be None for {family}, which is made of blocks of its own, got {block!r}")


def not_compacted(block: Block, family: str) -> None:
    """Raise InputError if a network that ResRep doesn't prune is asked for compactors."""
    if block == "compactor":
        raise InputError(f"{family} has no compactors; see unbranch.expand")
