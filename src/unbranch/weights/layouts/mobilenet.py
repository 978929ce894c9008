"""Names of MobileNet in the code of ACNet, ResRep and DBB."""

from __future__ import annotations

from unbranch.models.mobilenet import STAGES
from unbranch.weights.layouts.layout import Block, LayoutFamily, acnet, chained, dbb, resrep, unit
from unbranch.weights.layouts.tables import Table


def _mobilenet(block: Block, infix: str) -> Table:
    places = [f"stages.{s}.{i}" for s, outs in enumerate(STAGES) for i in range(len(outs))]
    halves = ((n, ours, half) for n, ours in enumerate(places) for half in ("depthwise", "pointwise"))
    units = (unit(f"stem.{n}.{half}", f"{ours}.{half}", block, infix=infix) for n, ours, half in halves)
    return (*unit("conv1", "stem", block, infix=infix), *chained(units), ("linear.", "head.fc."))


def _mobilenet_acnet(block: Block) -> Table:
    return _mobilenet(block, "acb")


def _mobilenet_dbb(block: Block) -> Table:
    return _mobilenet(block, "")


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "mobilenet_v1": (acnet(_mobilenet_acnet), resrep(_mobilenet_acnet), dbb(_mobilenet_dbb)),
}
