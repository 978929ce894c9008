"""Names of wide ResNets in the code of ACNet."""

from __future__ import annotations

from unbranch.weights.layouts.layout import BLOCKS, Block, LayoutFamily, acnet, chained
from unbranch.weights.layouts.tables import Table, same, under

MAX_DEPTH = 6  # blocks of a stage in a wide ResNet of 40 layers


def _wide_acnet(block: Block) -> Table:
    blocks = BLOCKS.get(block, ())
    unit: Table = (*under("acb", "conv", blocks), *same("bn.", "conv."))

    def pair(s: int, i: int) -> Table:
        at, ours = f"stage{s + 1}.block{i + 1}", f"stages.{s}.{i}"
        names = (("proj", "shortcut"), ("conv1", "conv1"), ("conv2", "conv2"))
        return chained(under(f"{at}.{theirs}", f"{ours}.{mine}", unit) for theirs, mine in names)

    pairs = (pair(s, i) for s in range(3) for i in range(MAX_DEPTH))
    return (
        *under("conv1", "stem.conv", (*blocks, *same("weight"))),
        *chained(pairs),
        ("last_bn.", "head.norm."),
        ("linear.", "head.fc."),
    )


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {"wrn_16_8": (acnet(_wide_acnet),)}
