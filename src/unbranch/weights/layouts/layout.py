"""A layout: one code base's way to name the parameters of one network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import TypeAlias

from torch import Tensor

from unbranch.weights.layouts.blocks import ACB, DBB
from unbranch.weights.layouts.tables import Table, same, under

Block: TypeAlias = str | None


@dataclass(frozen=True)
class Layout:
    """How one code base names the parameters of a network.

    Args:
        name: of the code base.
        table: its names and ours.
        fuses_units: whether its deploy form has the norms of plain units fused, and not only its blocks.
        fuses_lone: whether its deploy form has blocks of one branch merged, too.
        rows: patterns of our names of tensors whose channels it has on the last axis: matrices ``(O, I)`` for
            ``(O, I, 1, 1)``, and ``(1, 1, 1, C)`` for ``(1, C, 1, 1)``.
        has_deploy: whether the names of its deploy form are known.
    """

    name: str
    table: Table
    fuses_units: bool = False
    fuses_lone: bool = True
    rows: tuple[str, ...] = ()
    has_deploy: bool = True

    def ours(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in our shape, given in the layout's; ``name`` is ours."""
        if not any(fnmatchcase(name, pattern) for pattern in self.rows):
            return tensor
        return tensor[..., None, None] if tensor.dim() == 2 else tensor.movedim(-1, 1)

    def theirs(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the layout's shape, given in ours; the inverse of ``ours``."""
        if not any(fnmatchcase(name, pattern) for pattern in self.rows):
            return tensor
        return tensor[..., 0, 0] if name.endswith(".weight") else tensor.movedim(1, -1)


@dataclass(frozen=True)
class LayoutFamily:
    """The layouts of one code base for networks of one family: one for each block that it trains them with.

    Args:
        name: of the code base.
        table: its names and ours, by block.
        blocks: for which it has names.
        fuses_units, fuses_lone, rows, has_deploy: see ``Layout``.
    """

    name: str
    table: Callable[[Block], Table]
    blocks: tuple[Block, ...] = (None,)
    fuses_units: bool = False
    fuses_lone: bool = True
    rows: tuple[str, ...] = ()
    has_deploy: bool = True

    def layout(self, block: Block) -> Layout:
        """Return the layout of a network with this block."""
        return Layout(self.name, self.table(block), self.fuses_units, self.fuses_lone, self.rows, self.has_deploy)


# --- parts of tables


BLOCKS: dict[Block, Table] = {"acb": ACB, "dbb": DBB}
_PLAIN: Table = (*same("conv.", "bn."), ("compactor.pwc.", "compactor.conv."), ("compactor.mask", "compactor.mask"))


def unit(official: str, ours: str, block: Block, *, relu: bool = True, infix: str = "") -> Table:
    """Return the table of a unit of convolution, norm and ReLU.

    With a ReLU our block is its child ``conv``, and the published one may have a name of its own.

    Args:
        official, ours: prefixes.
        block: what replaces the convolution.
        relu: whether the unit ends in a ReLU.
        infix: the published name of the block inside the unit.
    """
    inside = under(infix if relu else "", "conv" if relu else "", BLOCKS.get(block, ()))
    return under(official, ours, (*inside, *_PLAIN))


def chained(parts: Iterable[Table]) -> Table:
    """Return the rows of several tables."""
    return tuple(chain.from_iterable(parts))


def staged(names: Table) -> Table:
    """Return the table of a stem, four numbered stages of one block, and a classifier."""
    stages = (under(f"stage{s + 1}.*", f"stages.{s}.*", names) for s in range(4))
    return (*under("stage0", "stem", names), *chained(stages), ("linear.", "head.fc."))


def acnet(table: Callable[[Block], Table]) -> LayoutFamily:
    """Return the layouts of DingXiaoH/ACNet."""
    return LayoutFamily("acnet", table, (None, "acb"))


def resrep(table: Callable[[Block], Table]) -> LayoutFamily:
    """Return the layouts of DingXiaoH/ResRep, which names networks as ACNet does."""
    return LayoutFamily("resrep", table, (None, "compactor"), fuses_units=True)


def dbb(table: Callable[[Block], Table]) -> LayoutFamily:
    """Return the layouts of DingXiaoH/DiverseBranchBlock."""
    return LayoutFamily("dbb", table, (None, "acb", "dbb"), fuses_units=True)
