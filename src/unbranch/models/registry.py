"""The zoo: every network of ours by name, from the tables of its family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from unbranch.errors import InputError, nearest
from unbranch.extras import library
from unbranch.models import (
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
from unbranch.models.network import Features, Network
from unbranch.models.units import Block
from unbranch.provenance import Provenance, set_provenance

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
        family: in words.
        build: called with ``arguments`` and the caller's options.
        paper: title, venue and address.
        input_size: of the images it is published for, ``(channels, height, width)``.
        num_classes: it is published with.
        aliases: other spellings, those of the published code among them.
        timm: its name there, if timm has it.
    """

    name: str
    family: str
    build: Callable[..., Any]
    arguments: dict[str, Any]
    paper: str
    input_size: tuple[int, int, int] = IMAGENET
    num_classes: int = 1000
    aliases: tuple[str, ...] = ()
    timm: str | None = None

    def options(self) -> list[str]:
        """Names of what the family's builder takes; those of the table's row can be given another value."""
        return list(inspect.signature(self.build).parameters)

    def make(
        self,
        num_classes: int | None = None,
        in_channels: int = 3,
        block: Block = None,
        *,
        features_only: bool = False,
        out_indices: Sequence[int] | int | None = None,
        feature_norms: bool = False,
        **options: Any,
    ) -> nn.Module:
        """The network with random weights; see ``create_model``."""
        self._check(num_classes, in_channels, options)
        if not features_only and (out_indices is not None or feature_norms):
            raise InputError("out_indices and feature_norms are for features_only=True")
        classes = self.num_classes if num_classes is None else num_classes
        network: Network = self.build(
            **{**self.arguments, **options}, num_classes=classes, in_channels=in_channels, block=block
        )
        made = Features(network, out_indices, feature_norms) if features_only else network
        set_provenance(made, Provenance(source_class=self.name, input_size=(in_channels, *self.input_size[1:])))
        return made

    def _check(self, num_classes: int | None, in_channels: int, options: dict[str, Any]) -> None:
        numbers = {"num_classes": (num_classes, 0), "in_channels": (in_channels, 1)}
        for name, (number, least) in numbers.items():
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
                raise InputError(f"{name} is a whole number from {least} on; got {number!r}")
        for name in ("drop_rate", "drop_path_rate"):
            rate = options.get(name, 0.0)
            if not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise InputError(f"{name} lies in [0, 1); got {rate!r}")
        known = self.options()
        unknown = [name for name in options if name not in known]
        if unknown:
            every = [*known, "features_only", "out_indices", "feature_norms"]
            close = nearest(unknown[0], every)
            raise InputError(f"{self.name} has no option {unknown[0]!r}; it has {', '.join(every)}{close}")


# Spellings of the published code that aren't the name with other signs between its parts.
ALIASES: dict[str, tuple[str, ...]] = {
    "repvggplus_l2pse": ("RepVGGplus-L2pse", "repvgg_l2pse"),
    "replknet_31b": ("replknet31b", "create_RepLKNet31B"),
    "replknet_31l": ("replknet31l", "create_RepLKNet31L"),
    "replknet_xl": ("replknetxl", "create_RepLKNetXL"),
    "repghostnet_050_identity": ("repghostnet_repid_0_5x",),
    "repghostnet_050_none": ("repghostnet_norep_0_5x",),
    "repghostnet_050_noshortcut": ("repghostnet_wo_0_5x",),
    "resnet18": ("sres18", "ResNet-18"),
    "resnet34": ("sres34", "ResNet-34"),
    "resnet50": ("sres50", "ResNet-50"),
    "resnet8_cifar": ("resnet8",),
    "resnet20_cifar": ("src20", "resnet20"),
    "resnet56_cifar": ("src56", "resnet56"),
    "resnet110_cifar": ("src110", "resnet110"),
    "mobilenet_v1": ("smi1", "MobileNet", "mobilenetv1_100"),
    "cifar_quick": ("cfqkbnc",),
    "vgg16_cifar": ("vc", "VGG-16"),
    "wrn_16_8": ("wrnc16plain", "wide_resnet16_8"),
}
NOT_IN_TIMM = ("repvgg_b1g2", "repvgg_b2g2", "repvgg_b3g2", "repvggplus_l2pse")


def _entries() -> Iterable[Entry]:
    for name, row in repvgg.VARIANTS.items():
        paper = "RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, https://arxiv.org/abs/2101.03697"
        size = (3, 320, 320) if name in ("repvgg_d2se", "repvggplus_l2pse") else IMAGENET
        yield Entry(name, "RepVGG", repvgg.repvgg, row, paper, size, timm=None if name in NOT_IN_TIMM else name)
    for name, row in repmlpnet.VARIANTS.items():
        paper = (
            "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality, CVPR 2022, "
            "https://arxiv.org/abs/2112.11081"
        )
        yield Entry(name, "RepMLPNet", repmlpnet.repmlpnet, row, paper, (3, row["size"], row["size"]))
    for name, row in replknet.VARIANTS.items():
        paper = (
            "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs, CVPR 2022, "
            "https://arxiv.org/abs/2203.06717"
        )
        size = (3, 320, 320) if name == "replknet_xl" else IMAGENET
        yield Entry(name, "RepLKNet", replknet.replknet, row, paper, size)
    for name, row in repghostnet.VARIANTS.items():
        paper = (
            "RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization, 2022, "
            "https://arxiv.org/abs/2211.06088"
        )
        plain = name.count("_") == 1
        official = (f"repghostnet_{name[12:13]}_{name[13:].rstrip('0') or '0'}x",) if plain else ()
        yield Entry(
            name, "RepGhostNet", repghostnet.repghostnet, row, paper, aliases=official, timm=name if plain else None
        )
    for name, row in mobileone.VARIANTS.items():
        paper = "MobileOne: An Improved One millisecond Mobile Backbone, CVPR 2023, https://arxiv.org/abs/2206.04040"
        yield Entry(name, "MobileOne", mobileone.mobileone, row, paper, timm=name)
    for name, row in repvgg.QUANTISABLE.items():
        paper = "Make RepVGG Greater Again: A Quantization-Aware Approach, AAAI 2024, https://arxiv.org/abs/2212.01593"
        yield Entry(name, "QARepVGG", repvgg.repvgg, row, paper)
    for name, row in unireplknet.VARIANTS.items():
        paper = "UniRepLKNet: A Universal Perception Large-Kernel ConvNet, CVPR 2024, https://arxiv.org/abs/2311.15599"
        yield Entry(name, "UniRepLKNet", unireplknet.unireplknet, row, paper)
    for name, row in resnet.VARIANTS.items():
        paper = "Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385"
        yield _host(name, "ResNet", resnet.resnet, row, paper, small=name.endswith("_cifar"))
    paper = "Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146"
    yield _host("wrn_16_8", "Wide ResNet", wide_resnet.wide_resnet, wide_resnet.VARIANTS["wrn_16_8"], paper, small=True)
    paper = (
        "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017, "
        "https://arxiv.org/abs/1704.04861"
    )
    yield _host("mobilenet_v1", "MobileNet", mobilenet.mobilenet, {}, paper)
    papers = {
        "alexnet": "One weird trick for parallelizing convolutional neural networks, 2014, "
        "https://arxiv.org/abs/1404.5997",
        "vgg16_cifar": "Very Deep Convolutional Networks, ICLR 2015, https://arxiv.org/abs/1409.1556",
        "cifar_quick": "Caffe: Convolutional Architecture for Fast Feature Embedding, 2014, "
        "https://arxiv.org/abs/1408.5093",
    }
    for name, row in vgg.VARIANTS.items():
        yield _host(name, "plain stack", vgg.vgg, row, papers[name], small=name != "alexnet")


def _host(
    name: str, family: str, build: Callable[..., Any], row: dict[str, Any], paper: str, *, small: bool = False
) -> Entry:
    return Entry(name, family, build, row, paper, CIFAR if small else IMAGENET, 10 if small else 1000)


ENTRIES: dict[str, Entry] = {
    entry.name: replace(entry, aliases=(*entry.aliases, *ALIASES.get(entry.name, ()))) for entry in _entries()
}


def _letters(name: str) -> str:
    """A spelling without what spellings differ in."""
    return "".join(c for c in name.casefold() if c.isalnum())


_SPELLINGS = {_letters(spelling): entry.name for entry in ENTRIES.values() for spelling in (entry.name, *entry.aliases)}


def resolve(name: str) -> str | None:
    """Our name of a network in any of its spellings, None if there is no such network.

    >>> resolve("RepVGG-A0"), resolve("repghostnet_1_0x"), resolve("src56")
    ('repvgg_a0', 'repghostnet_100', 'resnet56_cifar')
    """
    return name if name in NETWORKS else _SPELLINGS.get(_letters(name))


def list_models(pattern: str | Iterable[str] = "*") -> list[str]:
    """Names of networks that match a pattern, or one of several, in the order of families.

    Patterns are for networks of ours, which have all their spellings; ``timm:`` and ``torchvision:`` before one make
    it for theirs.

    >>> list_models("repvgg_b1*")
    ['repvgg_b1', 'repvgg_b1g2', 'repvgg_b1g4']
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    spelled = {resolve(p) for p in patterns}
    found = [name for name in ENTRIES if name in spelled or any(fnmatchcase(name, p.casefold()) for p in patterns)]
    for source in SOURCES:
        wanted = [p.removeprefix(f"{source}:") for p in patterns if p.startswith(f"{source}:")]
        if wanted:
            known = library(source).list_models() if source == "timm" else library(source).models.list_models()
            found += [f"{source}:{name}" for name in known if any(fnmatchcase(name, p) for p in wanted)]
    return found


SOURCES = ("timm", "torchvision")  # other libraries whose networks have names here
NETWORKS: dict[str, Callable[..., Any]] = {name: entry.make for name, entry in ENTRIES.items()}
"""What makes a network, by name; nothing else may be named in a file."""
