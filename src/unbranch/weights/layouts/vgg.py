"""Names of VGG-16, cifar-quick and AlexNet in the code of ACNet, ResRep and DBB."""

from __future__ import annotations

from unbranch.models.vgg import VARIANTS, Conv
from unbranch.weights.layouts.layout import Block, LayoutFamily, acnet, chained, dbb, resrep, unit
from unbranch.weights.layouts.tables import Table


def _stack(name: str, block: Block, stem: str, linear: str, infix: str = "") -> Table:
    """Return the table of numbered convolutions and linear layers, the last of which is the classifier."""
    row = VARIANTS[name]
    convs = [(s, layer) for s, layers in enumerate(row["stages"]) for layer in layers if isinstance(layer, Conv)]
    numbered = ((s, n) for n, (s, _) in enumerate(convs, 1))
    units = (unit(f"{stem}conv{n}", f"stages.{s}.conv{n}", block, infix=infix) for s, n in numbered)
    last = len(row["hidden"]) + 1
    hidden = tuple((f"{linear}{i}.", f"head.linear{i}.") for i in range(1, last))
    return (*chained(units), *hidden, (f"{linear}{last}.", "head.fc."))


def _vgg_acnet(block: Block) -> Table:
    return _stack("vgg16_cifar", block, "stem.", "linear", "acb")


def _quick_acnet(block: Block) -> Table:
    return _stack("cifar_quick", block, "", "fc", "acb")


def _alexnet_dbb(block: Block) -> Table:
    return _stack("alexnet", block, "stem.", "linear")


LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "vgg16_cifar": (acnet(_vgg_acnet), resrep(_vgg_acnet)),
    "cifar_quick": (acnet(_quick_acnet),),
    "alexnet": (dbb(_alexnet_dbb),),
}
