"""The images that a network takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unbranch.errors import InputError


class InputSpec(NamedTuple):
    """The images that a network takes, ``(B, in_channels, H, W)``.

    Args:
        in_channels: channels.
        min_size: the least height and width, in pixels.
        multiple: height and width must be multiples of this many pixels.
    """

    in_channels: int
    min_size: int = 1
    multiple: int = 1

    def check(self, x: Tensor) -> None:
        """Raise InputError, saying what to do, if the network can't take the images ``x``."""
        shape = tuple(x.shape)
        if len(shape) != 4 or shape[1] != self.in_channels:
            wanted = f"(B, {self.in_channels}, H, W)"
            raise InputError(f"the network takes images {wanted}, got {shape}{self._advice(shape)}")
        rows, columns = shape[2:]
        if rows < self.min_size or columns < self.min_size:
            least = f"{self.min_size}×{self.min_size}"
            raise InputError(f"the network takes images of at least {least}, got {rows}×{columns}: enlarge them")
        if rows % self.multiple or columns % self.multiple:
            raise InputError(
                f"the network takes images whose sides are multiples of {self.multiple}, got {rows}×{columns}: resize "
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


def check_images(x: Tensor, spec: InputSpec) -> None:
    """Check images, except while ``torch.jit`` records sizes."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        spec.check(x)
