"""RepMLPNet, hierarchical vision MLPs whose fully connected layers train beside convolutions.

Ding, Chen, Zhang, Han, Ding: "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality", CVPR 2022,
https://arxiv.org/abs/2112.11081, table 1 and section 4.

    stem   4×4 convolution, stride 4, norm, ReLU
    stage  (2×2 convolution, stride 2, norm, ReLU before all but the first), units of RepMLP and FFN
    head   norm, mean over the map, fc

A unit works on windows of fixed size, and at the resolution that a variant is named after each map is one window. It
runs on images that are a whole multiple of that, cut into windows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from unbranch.blocks import RepMLPUnit
from unbranch.blocks.parts import conv_bn
from unbranch.models.accuracy import reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, pooled_head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, no_block

KERNELS = (1, 3)

VARIANTS: dict[str, dict[str, Any]] = {
    "repmlpnet_t224": {"width": 64, "depths": (2, 2, 6, 2), "size": 224, "sharesets": (1, 4, 16, 128)},
    "repmlpnet_t256": {"width": 64, "depths": (2, 2, 6, 2), "size": 256, "sharesets": (1, 4, 16, 128)},
    "repmlpnet_b224": {"width": 96, "depths": (2, 2, 12, 2), "size": 224, "sharesets": (1, 4, 32, 128)},
    "repmlpnet_b256": {"width": 96, "depths": (2, 2, 12, 2), "size": 256, "sharesets": (1, 4, 32, 128)},
    "repmlpnet_d256": {"width": 80, "depths": (2, 2, 18, 2), "size": 256, "sharesets": (1, 4, 16, 128)},
    "repmlpnet_l256": {"width": 96, "depths": (2, 2, 18, 2), "size": 256, "sharesets": (1, 4, 32, 256)},
}
ACCURACY = {
    **reported("DingXiaoH/RepMLP", 224, {"repmlpnet_t224": 76.62, "repmlpnet_b224": 80.32}),
    **reported(
        "DingXiaoH/RepMLP",
        256,
        {"repmlpnet_t256": 77.44, "repmlpnet_b256": 81.03, "repmlpnet_d256": 80.83, "repmlpnet_l256": 81.68},
    ),
}


@register_models(
    VARIANTS,
    family="RepMLPNet",
    paper="RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality, CVPR 2022, "
    "https://arxiv.org/abs/2112.11081",
    input_sizes={name: (3, row["size"], row["size"]) for name, row in VARIANTS.items()},
    accuracy=ACCURACY,
)
def repmlpnet(
    width: int,
    depths: Sequence[int],
    size: int,
    sharesets: Sequence[int],
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a RepMLPNet for images of ``size`` and its multiples."""
    no_block(block, "RepMLPNet")
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
    stages, levels = [], []
    for number, (depth, sets) in enumerate(zip(depths, sharesets, strict=True)):
        channels, reduction = width << number, 4 << number
        side = size // reduction
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if number:
            layers["down"] = _patches(channels // 2, channels, 2)
        for i in range(depth):
            layers[str(i)] = RepMLPUnit(channels, (side, side), KERNELS, sets, drop_path=next(rates))
        stages.append(Stage(layers))
        levels.append(FeatureLevel(number + 1, channels, reduction))
    channels = levels[-1].channels
    head = pooled_head(channels, num_classes, drop_rate, nn.BatchNorm2d(channels))
    return Classifier(_patches(in_channels, width, 4), stages, head, levels, in_channels, multiple=size)


def _patches(in_channels: int, out_channels: int, side: int) -> nn.Sequential:
    """Return ``ReLU(BN(conv(x)))`` of patches that don't overlap."""
    unit = conv_bn(in_channels, out_channels, side, side)
    unit.add_module("act", nn.ReLU())
    return unit
