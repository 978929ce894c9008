"""Which network has which layouts."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from unbranch.weights.layouts import (
    mobilenet,
    mobileone,
    repghostnet,
    replknet,
    repmlpnet,
    repvgg,
    resnet,
    unireplknet,
    vgg,
    wide_resnet,
)
from unbranch.weights.layouts.layout import Block, Layout, LayoutFamily

LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    **resnet.LAYOUTS,
    **wide_resnet.LAYOUTS,
    **mobilenet.LAYOUTS,
    **vgg.LAYOUTS,
    **repvgg.LAYOUTS,
    **mobileone.LAYOUTS,
    **unireplknet.LAYOUTS,
    **repmlpnet.LAYOUTS,
    **replknet.LAYOUTS,
    **repghostnet.LAYOUTS,
}
"""By a pattern of our names of networks."""


@lru_cache(maxsize=256)
def layouts_of(network: str | None, block: Block = None) -> tuple[Layout, ...]:
    """Return the layouts in which others publish a network with this block; those of the block's authors come first.

    Args:
        network: our name, None for a network without one.
        block: what replaces its convolutions.
    """
    found = next((layouts for pattern, layouts in LAYOUTS.items() if fnmatchcase(network or "", pattern)), ())
    ordered = sorted(found, key=lambda family: family.name != block and (family.name, block) != ("resrep", "compactor"))
    return tuple(family.layout(block) for family in ordered if block in family.blocks)
