"""Names of RepLKNet in the code of its authors."""

from __future__ import annotations

from unbranch.models.replknet import DEPTHS
from unbranch.weights.layouts.blocks import OFFICIAL_KEYS
from unbranch.weights.layouts.layout import Block, LayoutFamily, chained
from unbranch.weights.layouts.tables import Table, same, under


def _replknet(block: Block) -> Table:  # noqa: ARG001
    kinds = ("RepLKBlock", "ConvFFN")
    blocks = (
        under(f"stages.*.blocks.{i}", f"stages.*.{i}", OFFICIAL_KEYS[kinds[i % 2]]) for i in range(2 * max(DEPTHS))
    )
    downs = tuple((f"transitions.{s}.", f"stages.{s + 1}.down.") for s in range(3))
    ends: Table = (("stages.*.norm.", "norms.*."), ("norm.", "head.norm."), ("head.", "head.fc."))
    return (*same("stem."), *chained(blocks), *downs, *ends)


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "replknet_*": (
        LayoutFamily("replknet", _replknet),
        LayoutFamily("replknet-deep-fused", _replknet, fuses_units=True),
    ),
}
