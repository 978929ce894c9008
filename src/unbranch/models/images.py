"""Which images a network takes, and what is said of others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unbranch.errors import InputError


class Takes(NamedTuple):
    """The images that a network takes: so many channels, each side at least so long and a multiple of so many pixels.

    Raises:
        InputError: from ``check``, for others, with what to do about it.
    """

    in_channels: int
    smallest: int = 1
    multiple: int = 1

    def check(self, x: Tensor) -> None:
        """Raises InputError if the network can't take the images ``x``."""
        shape = tuple(x.shape)
        if len(shape) != 4 or shape[1] != self.in_channels:
            wanted = f"(B, {self.in_channels}, H, W)"
            raise InputError(f"the network takes images {wanted}; got {shape}{self._advice(shape)}")
        rows, columns = shape[2:]
        if rows < self.smallest or columns < self.smallest:
            least = f"{self.smallest}×{self.smallest}"
            raise InputError(f"the network takes images of at least {least}; got {rows}×{columns}: enlarge them")
        if rows % self.multiple or columns % self.multiple:
            raise InputError(
                f"the network takes images whose sides are multiples of {self.multiple}; got {rows}×{columns}: resize "
                "or pad them"
            )

    def _advice(self, shape: tuple[int, ...]) -> str:
        if len(shape) == 3:
            return "; x[None] makes a batch of one image"
        if len(shape) == 4 and shape[3] == self.in_channels:
            return "; x.permute(0, 3, 1, 2) puts the channels first"
        if len(shape) == 4 and shape[1]:
            return f"; for such images create it with in_channels={shape[1]}"
        return ""


def check_images(x: Tensor, takes: Takes) -> None:
    """Raises InputError for images that a network can't take; nothing while ``torch.jit`` records sizes."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        takes.check(x)
