"""Names of RepGhostNet in the code of its authors and of timm."""

from __future__ import annotations

from unbranch.weights.layouts.blocks import OFFICIAL_KEYS
from unbranch.weights.layouts.layout import Block, LayoutFamily
from unbranch.weights.layouts.tables import Table, under


def _repghostnet(block: Block) -> Table:  # noqa: ARG001
    last: Table = (("blocks.9.0.conv.", "stages.9.0.conv."), ("blocks.9.0.bn1.", "stages.9.0.bn."))
    return (
        ("conv_stem.", "stem.conv."),
        ("bn1.", "stem.bn."),
        *last,
        *under("blocks.*.*", "stages.*.*", OFFICIAL_KEYS["RepGhostBottleneck"]),
        ("conv_head.", "head.conv."),
        ("classifier.", "head.fc."),
    )


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "repghostnet_*": (
        LayoutFamily("repghost", _repghostnet, fuses_lone=False),
        LayoutFamily("repghost-deploy", _repghostnet),  # as constructed for deployment, not converted
        LayoutFamily("timm", _repghostnet, fuses_lone=False),
    ),
}
