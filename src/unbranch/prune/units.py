"""What pruning works with: channels that are pruned one by one, and the cost of layers by how many there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PruningUnit:
    """Channels that are pruned one by one; each may have several rows of compactors, which must be pruned together.

    Args:
        layer: path, in the collapsed network, of a convolution that produces them.
        channels: numbers ``(C, k)`` of its output channels that make up each channel of the unit. k is 1, except for a
            producer of a convolution with k groups, whose channels must be pruned alike.
        rows: paths of compactors, and which of their rows ``(C,)`` belong to the channels. A compactor of a producer
            of k groups occurs k times.
        consumers: paths of the layers that mix them. A layer that reads their mean is left out if others read them.
        added: whether other convolutions are added to the same channels.
        depthwise: those compactors of ``rows`` that come after depthwise convolutions, and the paths of these.
    """

    layer: str
    channels: Tensor
    rows: tuple[tuple[str, Tensor], ...]
    consumers: tuple[str, ...]
    added: bool
    depthwise: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def internal(self) -> bool:
        """Whether one layer produces these channels and one consumes them, as ResRep prunes them."""
        return len(self.producers) == 1 and not self.added and len(self.consumers) == 1

    @property
    def producers(self) -> set[str]:
        """Paths of the compactors after convolutions that mix channels."""
        return {path for path, _ in self.rows} - {path for path, _ in self.depthwise}

    def without(self, compactors: Collection[str]) -> PruningUnit:
        """Return the unit without the rows of these compactors after depthwise convolutions."""
        return replace(
            self,
            rows=tuple((path, rows) for path, rows in self.rows if path not in compactors),
            depthwise=tuple((path, layer) for path, layer in self.depthwise if path not in compactors),
        )


@dataclass(frozen=True)
class ChannelCount:
    """The channels of a layer: a fixed number, and ``each`` so many for every channel of a unit, by its index."""

    fixed: int
    each: tuple[tuple[int, int], ...] = ()

    def at(self, widths: Sequence[int]) -> int:
        """Return the number of channels, by the channels of each unit."""
        return self.fixed + sum(many * widths[unit] for unit, many in self.each)


@dataclass(frozen=True)
class LayerCost:
    """Multiply-accumulates and parameters of a convolution or linear layer, by the channels of each unit.

    Args:
        path: in the collapsed network.
        shape: of its input for one example: ``(1, C_in, *size)``.
        taps: of the kernel.
        points: of its output for one example.
        inputs: input channels.
        outputs: output channels.
        groups: of the convolution, 1 for a linear layer.
        depthwise: whether it is a depthwise convolution.
        bias: whether it has a bias.
    """

    path: str
    shape: tuple[int, ...]
    taps: int
    points: int
    inputs: ChannelCount
    outputs: ChannelCount
    groups: int
    depthwise: bool
    bias: bool

    def weights(self, widths: Sequence[int]) -> int:
        """Return the size of the kernel."""
        outputs = self.outputs.at(widths)
        return self.taps * (outputs if self.depthwise else outputs * self.inputs.at(widths) // self.groups)

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-accumulates for one example."""
        return self.points * self.weights(widths)

    def params(self, widths: Sequence[int]) -> int:
        """Return the parameters."""
        return self.weights(widths) + (self.outputs.at(widths) if self.bias else 0)
