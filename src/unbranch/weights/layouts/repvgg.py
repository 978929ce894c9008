"""Names of RepVGG, RepVGGplus and QARepVGG in the code of their authors and of timm."""

from __future__ import annotations

from unbranch.weights.layouts.blocks import OFFICIAL_KEYS, QAREPVGG
from unbranch.weights.layouts.layout import Block, LayoutFamily, chained, staged
from unbranch.weights.layouts.tables import Table, same, under


def _repvgg(block: Block) -> Table:  # noqa: ARG001
    return staged(OFFICIAL_KEYS["RepVGGBlock"])


def _qarepvgg(block: Block) -> Table:  # noqa: ARG001
    return staged(QAREPVGG)


def _repvgg_timm(block: Block) -> Table:  # noqa: ARG001
    names: Table = (
        *same("conv_kxk.", "conv_1x1."),
        ("identity.", "identity.bn."),
        ("attn.fc1.", "post.0.down."),
        ("attn.fc2.", "post.0.up."),
        ("reparam_conv.", "merged."),
    )
    return (*under("stem", "stem", names), *under("stages.*.*", "stages.*.*", names), *same("head.fc."))


def _repvggplus(block: Block) -> Table:  # noqa: ARG001
    names = OFFICIAL_KEYS["RepVGGplusBlock"]
    places = ("stage1", "stage2", "stage3_first", "stage3_second", "stage4")
    stages = (under(f"{theirs}.blocks.*", f"stages.{s}.*", names) for s, theirs in enumerate(places))
    auxiliary = (
        under(f"{theirs}_aux", f"auxiliary.stage{s + 1}", (("0.", "conv."), ("3.", "classify.fc.")))
        for s, theirs in enumerate(places[:3])
    )
    return (*under("stage0", "stem", names), *chained(stages), *chained(auxiliary), ("linear.", "head.fc."))


_BLOCKS: tuple[Block, ...] = (None, "repvgg")
LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "repvggplus_*": (LayoutFamily("repvgg", _repvggplus, _BLOCKS),),
    "repvgg_*": (LayoutFamily("repvgg", _repvgg, _BLOCKS), LayoutFamily("timm", _repvgg_timm, _BLOCKS)),
    "qarepvgg_*": (LayoutFamily("qarepvgg", _qarepvgg, (None, "qarepvgg")),),
}
