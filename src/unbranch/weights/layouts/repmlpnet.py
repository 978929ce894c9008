"""Names of RepMLPNet in the code of its authors."""

from __future__ import annotations

from unbranch.weights.layouts.blocks import OFFICIAL_KEYS
from unbranch.weights.layouts.layout import Block, LayoutFamily
from unbranch.weights.layouts.tables import Table, under


def _repmlpnet(block: Block) -> Table:  # noqa: ARG001
    downs = tuple((f"embeds.{s}.", f"stages.{s + 1}.down.") for s in range(3))
    units = under("stages.*.*", "stages.*.*", OFFICIAL_KEYS["RepMLPNetUnit"])
    return (("conv_embedding.", "stem."), *downs, *units, ("head_norm.", "head.norm."), ("head.", "head.fc."))


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {"repmlpnet_*": (LayoutFamily("repmlp", _repmlpnet),)}
