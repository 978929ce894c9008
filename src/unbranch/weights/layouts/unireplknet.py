"""Names of UniRepLKNet in the code of its authors."""

from __future__ import annotations

from unbranch.weights.layouts.blocks import UNIREPLKNET_BLOCK
from unbranch.weights.layouts.layout import Block, LayoutFamily
from unbranch.weights.layouts.tables import Table, under


def _unireplknet(block: Block) -> Table:  # noqa: ARG001
    downs = tuple((f"downsample_layers.{s}.*.", f"stages.{s}.down.*.") for s in (1, 2, 3))
    blocks = under("stages.*.*", "stages.*.*", UNIREPLKNET_BLOCK)
    return (("downsample_layers.0.*.", "stem.*."), *downs, *blocks, ("norm.", "head.norm."), ("head.", "head.fc."))


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "unireplknet_*": (
        LayoutFamily(
            "unireplknet", _unireplknet, rows=("*.pw?.weight", "*.pw2.conv.weight", "*.grn.*"), has_deploy=False
        ),
    ),
}
