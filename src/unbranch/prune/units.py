"""What pruning works with: channels that go one by one, and what layers cost by how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Unit:
    """Channels that are pruned one by one; each may be several rows, which are added or must stay alike.

    Args:
        layer: path in the collapsed network of a convolution that has them, and ``channels`` ``(C, k)`` which of its
            channels each of them is: k is 1 but for one that feeds k groups of a convolution, which stay alike.
        rows: compactors by their paths, and which rows ``(C,)`` of theirs belong to the channels; one that feeds k
            groups occurs k times.
        readers: paths of the layers that mix them, those apart that read a mean of them beside others.
        added: whether other convolutions give to the same channels.
        along: those compactors of the rows that are behind depthwise convolutions, and the paths of these.
    """

    layer: str
    channels: Tensor
    rows: tuple[tuple[str, Tensor], ...]
    readers: tuple[str, ...]
    added: bool
    along: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def internal(self) -> bool:
        """Whether one layer gives these channels and one reads them, as ResRep prunes them."""
        return len(self.givers) == 1 and not self.added and len(self.readers) == 1

    @property
    def givers(self) -> set[str]:
        """Compactors behind convolutions that mix channels."""
        return {path for path, _ in self.rows} - {path for path, _ in self.along}


@dataclass(frozen=True)
class Count:
    """Channels of a layer: a number of them, and so many for each channel of a unit."""

    fixed: int
    each: tuple[tuple[int, int], ...] = ()

    def at(self, widths: Sequence[int]) -> int:
        return self.fixed + sum(many * widths[unit] for unit, many in self.each)


@dataclass(frozen=True)
class LayerCost:
    """A convolution or linear layer as its multiply-accumulates and parameters depend on the units.

    Args:
        shape: of what it reads, of one example: ``(1, C_in, *size)``.
        taps: of the kernel.
        points: of its output, of one example.
    """

    path: str
    shape: tuple[int, ...]
    taps: int
    points: int
    reads: Count
    gives: Count
    groups: int
    depthwise: bool
    bias: bool

    def weights(self, widths: Sequence[int]) -> int:
        gives = self.gives.at(widths)
        return self.taps * (gives if self.depthwise else gives * self.reads.at(widths) // self.groups)

    def macs(self, widths: Sequence[int]) -> int:
        return self.points * self.weights(widths)

    def params(self, widths: Sequence[int]) -> int:
        return self.weights(widths) + (self.gives.at(widths) if self.bias else 0)
