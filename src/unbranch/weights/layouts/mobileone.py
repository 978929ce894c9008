"""Names of MobileOne in the code of Apple and of timm."""

from __future__ import annotations

from unbranch.weights.layouts.blocks import MOBILEONE, MOBILEONE_TIMM
from unbranch.weights.layouts.layout import Block, LayoutFamily, staged
from unbranch.weights.layouts.tables import Table, same, under


def _mobileone(block: Block) -> Table:  # noqa: ARG001
    return staged(MOBILEONE)


def _mobileone_timm(block: Block) -> Table:  # noqa: ARG001
    return (
        *under("stem", "stem", MOBILEONE_TIMM),
        *under("stages.*.*", "stages.*.*", MOBILEONE_TIMM),
        *same("head.fc."),
    )


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "mobileone_*": (LayoutFamily("mobileone", _mobileone), LayoutFamily("timm", _mobileone_timm)),
}
