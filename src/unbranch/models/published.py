"""What the authors report of their networks: top-1 accuracy, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET, CIFAR10, IMAGENET22K = "ImageNet", "CIFAR-10", "ImageNet, after 22K"


@dataclass(frozen=True)
class Published:
    """A reported accuracy.

    Args:
        top1: in percent.
        side: of the images it was measured on, in pixels.
        data: the data set.
        source: repository of the authors.
    """

    top1: float
    side: int
    data: str
    source: str


def _rows(
    source: str, side: int, top1: dict[str, float], data: str = IMAGENET
) -> dict[tuple[str, str | None], Published]:
    return {(name, None): Published(value, side, data, source) for name, value in top1.items()}


def _hosts(
    source: str, side: int, data: str, rows: dict[str, dict[str | None, float]]
) -> dict[tuple[str, str | None], Published]:
    found = ((name, block, top1) for name, blocks in rows.items() for block, top1 in blocks.items())
    return {(name, block): Published(top1, side, data, source) for name, block, top1 in found}


_SHORT = {"repvgg_a0": 72.41, "repvgg_a1": 74.46, "repvgg_a2": 76.48, "repvgg_b0": 75.14, "repvgg_b1": 78.37,
          "repvgg_b1g2": 77.78, "repvgg_b1g4": 77.58, "repvgg_b2": 78.78}  # fmt: skip
_LONG = {"repvgg_b2g4": 79.38, "repvgg_b3": 80.52, "repvgg_b3g4": 80.21}
_GHOST = {"repghostnet_050": 66.95, "repghostnet_058": 68.94, "repghostnet_080": 72.24, "repghostnet_100": 74.22,
          "repghostnet_111": 75.07, "repghostnet_130": 76.37, "repghostnet_150": 77.45,
          "repghostnet_200": 78.81}  # fmt: skip
_MLP224 = {"repmlpnet_t224": 76.62, "repmlpnet_b224": 80.32}
_MLP256 = {"repmlpnet_t256": 77.44, "repmlpnet_b256": 81.03, "repmlpnet_d256": 80.83, "repmlpnet_l256": 81.68}
_ONE = {"mobileone_s0": 71.4, "mobileone_s1": 75.9, "mobileone_s2": 77.4, "mobileone_s3": 78.1, "mobileone_s4": 79.4}
_UNI = {"unireplknet_a": 77.0, "unireplknet_f": 78.6, "unireplknet_p": 80.2, "unireplknet_n": 81.6,
        "unireplknet_t": 83.2, "unireplknet_s": 83.9}  # fmt: skip
_UNI22K = {"unireplknet_b": 87.4, "unireplknet_l": 87.9, "unireplknet_xl": 88.0}
_DBB: dict[str, dict[str | None, float]] = {
    "alexnet": {None: 57.23, "acb": 58.43, "dbb": 59.19},
    "mobilenet_v1": {None: 71.89, "acb": 72.14, "dbb": 72.88},
    "resnet18": {None: 69.54, "acb": 70.53, "dbb": 70.99},
    "resnet50": {None: 76.14, "acb": 76.46, "dbb": 76.71},
}
_ACNET: dict[str, dict[str | None, float]] = {
    "cifar_quick": {None: 86.20, "acb": 86.87},
    "vgg16_cifar": {None: 93.99, "acb": 94.54},
    "resnet56_cifar": {None: 94.55, "acb": 95.06},
    "wrn_16_8": {None: 95.89, "acb": 96.33},
}

PUBLISHED: dict[tuple[str, str | None], Published] = {
    **_rows("DingXiaoH/RepVGG, 120 epochs", 224, _SHORT),
    **_rows("DingXiaoH/RepVGG, 200 epochs", 224, _LONG),
    **_rows("DingXiaoH/RepVGG", 320, {"repvgg_d2se": 83.55, "repvggplus_l2pse": 84.06}),
    **_rows("DingXiaoH/RepMLP", 224, _MLP224),
    **_rows("DingXiaoH/RepMLP", 256, _MLP256),
    **_rows("DingXiaoH/RepLKNet-pytorch", 224, {"replknet_31b": 83.5}),
    **_rows("DingXiaoH/RepLKNet-pytorch", 384, {"replknet_31l": 86.6}, IMAGENET22K),
    **_rows("DingXiaoH/RepLKNet-pytorch, after MegData-73M", 320, {"replknet_xl": 87.8}),
    **_rows("ChengpengChen/RepGhost", 224, _GHOST),
    **_rows("apple/ml-mobileone", 224, _ONE),
    **_rows("AILab-CVC/UniRepLKNet", 224, _UNI),
    **_rows("AILab-CVC/UniRepLKNet", 384, _UNI22K, IMAGENET22K),
    **_hosts("DingXiaoH/DiverseBranchBlock", 224, IMAGENET, _DBB),
    **_hosts("DingXiaoH/ACNet", 32, CIFAR10, _ACNET),
}
"""By name and block; the block of a host network that trained with it, or None."""
