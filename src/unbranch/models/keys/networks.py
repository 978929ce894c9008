"""Names of parameters in the published code of whole networks, and ours.

A layout is one code base's way to name the parameters of one network. Where several code bases train the same
network, it has several layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

from torch import Tensor

from unbranch.models.keys.blocks import ACB, DBB, MOBILEONE, MOBILEONE_TIMM, OFFICIAL_KEYS, QAREPVGG, UNIREPLKNET_BLOCK
from unbranch.models.keys.tables import Table, same, under
from unbranch.models.mobilenet import STAGES as MOBILENET
from unbranch.models.replknet import DEPTHS as REPLK_DEPTHS
from unbranch.models.vgg import VARIANTS as STACKS
from unbranch.models.vgg import Conv

Block: TypeAlias = str | None
DEEPEST_WIDE = 6  # blocks of a stage in a wide ResNet of 40 layers


@dataclass(frozen=True)
class Layout:
    """How one code base names the parameters of a network.

    Args:
        name: of the code base.
        table: its names and ours.
        fuses_units: whether its deploy form has the norms of plain units fused, too, and not only its blocks.
        fuses_lone: whether a block of one branch is merged there, too.
        rows: patterns of our names of tensors whose channels are there on the last axis: matrices ``(O, I)`` for
            ``(O, I, 1, 1)``, and ``(1, 1, 1, C)`` for ``(1, C, 1, 1)``.
        has_deploy: whether names of its deploy form are known.
    """

    name: str
    table: Table
    fuses_units: bool = False
    fuses_lone: bool = True
    rows: tuple[str, ...] = ()
    has_deploy: bool = True

    def ours(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as we have it under our name."""
        if not any(fnmatchcase(name, pattern) for pattern in self.rows):
            return tensor
        return tensor[..., None, None] if tensor.dim() == 2 else tensor.movedim(-1, 1)

    def theirs(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as they have it, given under our name; the inverse of ``ours``."""
        if not any(fnmatchcase(name, pattern) for pattern in self.rows):
            return tensor
        return tensor[..., 0, 0] if name.endswith(".weight") else tensor.movedim(1, -1)


# --- units of convolution, norm and ReLU

_PLAIN: Table = (*same("conv.", "bn."), ("compactor.pwc.", "compactor.conv."), ("compactor.mask", "compactor.mask"))
_BLOCKS: dict[Block, Table] = {"acb": ACB, "dbb": DBB}


def _unit(official: str, ours: str, block: Block, *, relu: bool = True, infix: str = "") -> Table:
    """A unit; with a ReLU our block is its child ``conv``, and the published one may have a name of its own."""
    inside = under(infix if relu else "", "conv" if relu else "", _BLOCKS.get(block, ()))
    return under(official, ours, (*inside, *_PLAIN))


# --- ACNet and ResRep


def _chained(parts: Iterator[Table]) -> Table:
    return tuple(chain.from_iterable(parts))


def _basic_acnet(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.*", f"stages.{s}.*"
        return (
            *_unit(f"{at}.shortcut", f"{ours}.shortcut", block, relu=False),
            *_unit(f"{at}.conv1", f"{ours}.conv1", block, infix="acb"),
            *_unit(f"{at}.conv2", f"{ours}.conv2", block, relu=False),
        )

    return (*_unit("conv1", "stem", block), *_chained(stage(s) for s in range(4)), ("linear.", "head.fc."))


def _bottleneck_acnet(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.block*", f"stages.{s}.*"
        return (
            *_unit(f"stage{s + 1}.projection", f"stages.{s}.0.shortcut", block, relu=False),
            *_unit(f"{at}.conv1", f"{ours}.conv1", block, infix="acb"),
            *_unit(f"{at}.conv2", f"{ours}.conv2", block, infix="acb"),
            *_unit(f"{at}.conv3", f"{ours}.conv3", block, relu=False),
        )

    return (*_unit("conv1", "stem", block), *_chained(stage(s) for s in range(4)), ("fc.", "head.fc."))


def _cifar_acnet(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.block*", f"stages.{s}.*"
        return (
            *_unit(f"stage{s + 1}.projection", f"stages.{s}.0.shortcut", block, relu=False),
            *_unit(f"{at}.conv1", f"{ours}.conv1", block, infix="acb"),
            *_unit(f"{at}.conv2", f"{ours}.conv2", block, relu=False),
        )

    return (*_unit("stage1.conv1", "stem", block), *_chained(stage(s) for s in range(3)), ("linear.", "head.fc."))


def _wide_acnet(block: Block) -> Table:
    blocks = _BLOCKS.get(block, ())
    unit: Table = (*under("acb", "conv", blocks), *same("bn.", "conv."))

    def pair(s: int, i: int) -> Table:
        at, ours = f"stage{s + 1}.block{i + 1}", f"stages.{s}.{i}"
        names = (("proj", "shortcut"), ("conv1", "conv1"), ("conv2", "conv2"))
        return _chained(under(f"{at}.{theirs}", f"{ours}.{mine}", unit) for theirs, mine in names)

    pairs = (pair(s, i) for s in range(3) for i in range(DEEPEST_WIDE))
    return (
        *under("conv1", "stem.conv", (*blocks, *same("weight"))),
        *_chained(pairs),
        ("last_bn.", "head.norm."),
        ("linear.", "head.fc."),
    )


def _mobilenet(block: Block, infix: str) -> Table:
    places = [f"stages.{s}.{i}" for s, outs in enumerate(MOBILENET) for i in range(len(outs))]
    halves = ((n, ours, half) for n, ours in enumerate(places) for half in ("depthwise", "pointwise"))
    units = (_unit(f"stem.{n}.{half}", f"{ours}.{half}", block, infix=infix) for n, ours, half in halves)
    return (*_unit("conv1", "stem", block, infix=infix), *_chained(units), ("linear.", "head.fc."))


def _mobilenet_acnet(block: Block) -> Table:
    return _mobilenet(block, "acb")


def _stack(name: str, block: Block, stem: str, linear: str, infix: str = "") -> Table:
    """A stack of numbered convolutions and numbered linear layers, the last of them the classifier."""
    row = STACKS[name]
    convs = [(s, layer) for s, layers in enumerate(row["stages"]) for layer in layers if isinstance(layer, Conv)]
    numbered = ((s, n) for n, (s, _) in enumerate(convs, 1))
    units = (_unit(f"{stem}conv{n}", f"stages.{s}.conv{n}", block, infix=infix) for s, n in numbered)
    last = len(row["hidden"]) + 1
    hidden = tuple((f"{linear}{i}.", f"head.linear{i}.") for i in range(1, last))
    return (*_chained(units), *hidden, (f"{linear}{last}.", "head.fc."))


def _vgg_acnet(block: Block) -> Table:
    return _stack("vgg16_cifar", block, "stem.", "linear", "acb")


def _quick_acnet(block: Block) -> Table:
    return _stack("cifar_quick", block, "", "fc", "acb")


# --- DBB


def _resnet_dbb(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.*", f"stages.{s}.*"
        return (
            *_unit(f"{at}.shortcut", f"{ours}.shortcut", block, relu=False),
            *_unit(f"{at}.conv1", f"{ours}.conv1", block),
            *_unit(f"{at}.conv2", f"{ours}.conv2", block, relu=False),
        )

    old = _unit("conv1", "stem", block)  # in files from before the stem was a stage
    return (
        *_unit("stage0.conv1", "stem", block), *old, *_chained(stage(s) for s in range(4)), ("linear.", "head.fc."),
    )  # fmt: skip


def _bottleneck_dbb(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.*", f"stages.{s}.*"
        return (
            *_unit(f"{at}.shortcut", f"{ours}.shortcut", block, relu=False),
            *_unit(f"{at}.conv1", f"{ours}.conv1", block),
            *_unit(f"{at}.conv2", f"{ours}.conv2", block),
            *_unit(f"{at}.conv3", f"{ours}.conv3", block, relu=False),
        )

    old = _unit("conv1", "stem", block)
    return (
        *_unit("stage0.conv1", "stem", block), *old, *_chained(stage(s) for s in range(4)), ("linear.", "head.fc."),
    )  # fmt: skip


def _mobilenet_dbb(block: Block) -> Table:
    return _mobilenet(block, "")


def _alexnet_dbb(block: Block) -> Table:
    return _stack("alexnet", block, "stem.", "linear")


# --- timm and torchvision


def _resnet_timm(block: Block) -> Table:  # noqa: ARG001 (they have plain ones only)
    def stage(s: int) -> Table:
        at, ours = f"layer{s + 1}.*", f"stages.{s}.*"
        convs = ((f"{at}.conv{n}.", f"{ours}.conv{n}.conv.") for n in (1, 2, 3))
        norms = ((f"{at}.bn{n}.", f"{ours}.conv{n}.bn.") for n in (1, 2, 3))
        shortcut = ((f"{at}.downsample.0.", f"{ours}.shortcut.conv."), (f"{at}.downsample.1.", f"{ours}.shortcut.bn."))
        return (*convs, *norms, *shortcut)

    stem: Table = (("conv1.", "stem.conv."), ("bn1.", "stem.bn."))
    return (*stem, *_chained(stage(s) for s in range(4)), ("fc.", "head.fc."))


def _repvgg_timm(block: Block) -> Table:  # noqa: ARG001
    names: Table = (
        *same("conv_kxk.", "conv_1x1."),
        ("identity.", "identity.bn."),
        ("attn.fc1.", "post.0.down."),
        ("attn.fc2.", "post.0.up."),
        ("reparam_conv.", "merged."),
    )
    return (*under("stem", "stem", names), *under("stages.*.*", "stages.*.*", names), *same("head.fc."))


def _mobileone_timm(block: Block) -> Table:  # noqa: ARG001
    return (
        *under("stem", "stem", MOBILEONE_TIMM),
        *under("stages.*.*", "stages.*.*", MOBILEONE_TIMM),
        *same("head.fc."),
    )


# --- networks that are made of blocks of their own


def _staged(names: Table) -> Table:
    """A stem and four numbered stages of one block, and the classifier."""
    stages = (under(f"stage{s + 1}.*", f"stages.{s}.*", names) for s in range(4))
    return (*under("stage0", "stem", names), *_chained(stages), ("linear.", "head.fc."))


def _mobileone(block: Block) -> Table:  # noqa: ARG001
    return _staged(MOBILEONE)


def _qarepvgg(block: Block) -> Table:  # noqa: ARG001
    return _staged(QAREPVGG)


def _repvgg(block: Block) -> Table:  # noqa: ARG001
    return _staged(OFFICIAL_KEYS["RepVGGBlock"])


def _unireplknet(block: Block) -> Table:  # noqa: ARG001
    downs = tuple((f"downsample_layers.{s}.*.", f"stages.{s}.down.*.") for s in (1, 2, 3))
    blocks = under("stages.*.*", "stages.*.*", UNIREPLKNET_BLOCK)
    return (("downsample_layers.0.*.", "stem.*."), *downs, *blocks, ("norm.", "head.norm."), ("head.", "head.fc."))


def _repvggplus(block: Block) -> Table:  # noqa: ARG001
    names = OFFICIAL_KEYS["RepVGGplusBlock"]
    places = ("stage1", "stage2", "stage3_first", "stage3_second", "stage4")
    stages = (under(f"{theirs}.blocks.*", f"stages.{s}.*", names) for s, theirs in enumerate(places))
    auxiliary = (
        under(f"{theirs}_aux", f"auxiliary.stage{s + 1}", (("0.", "conv."), ("3.", "classify.fc.")))
        for s, theirs in enumerate(places[:3])
    )
    return (*under("stage0", "stem", names), *_chained(stages), *_chained(auxiliary), ("linear.", "head.fc."))


def _repmlpnet(block: Block) -> Table:  # noqa: ARG001
    downs = tuple((f"embeds.{s}.", f"stages.{s + 1}.down.") for s in range(3))
    units = under("stages.*.*", "stages.*.*", OFFICIAL_KEYS["RepMLPNetUnit"])
    return (("conv_embedding.", "stem."), *downs, *units, ("head_norm.", "head.norm."), ("head.", "head.fc."))


def _replknet(block: Block) -> Table:  # noqa: ARG001
    kinds = ("RepLKBlock", "ConvFFN")
    blocks = (
        under(f"stages.*.blocks.{i}", f"stages.*.{i}", OFFICIAL_KEYS[kinds[i % 2]])
        for i in range(2 * max(REPLK_DEPTHS))
    )
    downs = tuple((f"transitions.{s}.", f"stages.{s + 1}.down.") for s in range(3))
    ends: Table = (("stages.*.norm.", "norms.*."), ("norm.", "head.norm."), ("head.", "head.fc."))
    return (*same("stem."), *_chained(blocks), *downs, *ends)


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


# --- which network has which


@dataclass(frozen=True)
class _Offer:
    """A layout, and the blocks in a network for which it has names."""

    name: str
    make: Callable[[Block], Table]
    blocks: tuple[Block, ...]
    fuses_units: bool = False
    fuses_lone: bool = True
    rows: tuple[str, ...] = ()
    has_deploy: bool = True

    def layout(self, block: Block) -> Layout:
        """The layout for a network with this block."""
        return Layout(self.name, self.make(block), self.fuses_units, self.fuses_lone, self.rows, self.has_deploy)


def _acnet(make: Callable[[Block], Table], *, pruned: bool = True) -> tuple[_Offer, ...]:
    offers = (_Offer("acnet", make, (None, "acb")),)
    return (*offers, _Offer("resrep", make, (None, "compactor"), True)) if pruned else offers


def _dbb(make: Callable[[Block], Table]) -> _Offer:
    return _Offer("dbb", make, (None, "acb", "dbb"), True)


_TIMM_RESNET = _Offer("timm", _resnet_timm, (None,))
_OFFERS: dict[str, tuple[_Offer, ...]] = {
    "resnet18": (*_acnet(_basic_acnet, pruned=False), _dbb(_resnet_dbb), _TIMM_RESNET),
    "resnet34": (*_acnet(_basic_acnet, pruned=False), _dbb(_resnet_dbb), _TIMM_RESNET),
    "resnet50": (*_acnet(_bottleneck_acnet), _dbb(_bottleneck_dbb), _TIMM_RESNET),
    "resnet8_cifar": _acnet(_cifar_acnet),
    "resnet20_cifar": _acnet(_cifar_acnet),
    "resnet56_cifar": _acnet(_cifar_acnet),
    "resnet110_cifar": _acnet(_cifar_acnet),
    "wrn_16_8": _acnet(_wide_acnet, pruned=False),
    "mobilenet_v1": (*_acnet(_mobilenet_acnet), _dbb(_mobilenet_dbb)),
    "vgg16_cifar": _acnet(_vgg_acnet),
    "cifar_quick": _acnet(_quick_acnet, pruned=False),
    "alexnet": (_dbb(_alexnet_dbb),),
    "repvggplus_l2pse": (_Offer("repvgg", _repvggplus, (None, "repvgg")),),
}
_FAMILIES: dict[str, tuple[_Offer, ...]] = {
    "repvgg_": (_Offer("repvgg", _repvgg, (None, "repvgg")), _Offer("timm", _repvgg_timm, (None, "repvgg"))),
    "qarepvgg_": (_Offer("qarepvgg", _qarepvgg, (None, "qarepvgg")),),
    "mobileone_": (_Offer("mobileone", _mobileone, (None,)), _Offer("timm", _mobileone_timm, (None,))),
    "unireplknet_": (
        _Offer(
            "unireplknet",
            _unireplknet,
            (None,),
            rows=("*.pw?.weight", "*.pw2.conv.weight", "*.grn.*"),
            has_deploy=False,
        ),
    ),
    "repmlpnet_": (_Offer("repmlp", _repmlpnet, (None,)),),
    "replknet_": (
        _Offer("replknet", _replknet, (None,)),
        _Offer("replknet-deep-fused", _replknet, (None,), fuses_units=True),
    ),
    "repghostnet_": (
        _Offer("repghost", _repghostnet, (None,), fuses_lone=False),
        _Offer("repghost-deploy", _repghostnet, (None,)),  # as constructed for deployment, not converted
        _Offer("timm", _repghostnet, (None,), fuses_lone=False),
    ),
}


@lru_cache(maxsize=256)
def layouts_of(network: str | None, block: Block = None) -> tuple[Layout, ...]:
    """The layouts in which others keep a network of ours with this block, the first one that of its authors."""
    offers = _OFFERS.get(network or "") or next(
        (offers for family, offers in _FAMILIES.items() if (network or "").startswith(family)), ()
    )
    # Where several code bases train it, that of the block's authors comes first.
    ordered = sorted(offers, key=lambda offer: offer.name != block and (offer.name, block) != ("resrep", "compactor"))
    return tuple(offer.layout(block) for offer in ordered if block in offer.blocks)
