"""MobileOne, a network for phones whose depthwise and 1×1 convolutions both train with branches.

Vasu, Gabriel, Zhu, Tuzel, Ranjan: "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023,
https://arxiv.org/abs/2206.04040, tables 2 and 3.

    stem   one block, stride 2
    stage  pairs of a depthwise 3×3 and a 1×1 block, each with ReLU; the first 3×3 of each stage with stride 2
    head   mean over the map, fc

The smallest variant trains four kernels a block, the largest has squeeze-and-excitation in its last pairs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from unbranch.blocks import MobileOne
from unbranch.models.accuracy import reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, pooled_head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, no_drop_path
from unbranch.models.units import Block, no_block

DEPTHS = (2, 8, 10, 1)  # pairs
WIDTHS = (64, 128, 256, 512)

VARIANTS: dict[str, dict[str, Any]] = {
    "mobileone_s0": {"width_multipliers": (0.75, 1.0, 1.0, 2.0), "num_branches": 4},
    "mobileone_s1": {"width_multipliers": (1.5, 1.5, 2.0, 2.5)},
    "mobileone_s2": {"width_multipliers": (1.5, 2.0, 2.5, 4.0)},
    "mobileone_s3": {"width_multipliers": (2.0, 2.5, 3.0, 4.0)},
    "mobileone_s4": {"width_multipliers": (3.0, 3.5, 3.5, 4.0), "gates": (0, 0, 5, 1)},
}
ACCURACY = reported(
    "apple/ml-mobileone",
    224,
    {"mobileone_s0": 71.4, "mobileone_s1": 75.9, "mobileone_s2": 77.4, "mobileone_s3": 78.1, "mobileone_s4": 79.4},
)


@register_models(
    VARIANTS,
    family="MobileOne",
    paper="MobileOne: An Improved One millisecond Mobile Backbone, CVPR 2023, https://arxiv.org/abs/2206.04040",
    timm=VARIANTS,
    accuracy=ACCURACY,
    renamed_options={"widths": "width_multipliers"},
)
def mobileone(
    width_multipliers: tuple[float, ...],
    num_branches: int = 1,
    gates: tuple[int, ...] = (0, 0, 0, 0),
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a MobileOne; ``gates`` counts the last pairs of each stage that have squeeze-and-excitation."""
    no_block(block, "MobileOne")
    no_drop_path(drop_path_rate, "MobileOne")
    channels = min(WIDTHS[0], int(WIDTHS[0] * width_multipliers[0]))
    stem = MobileOne(in_channels, channels, 3, 2, 1, activation=nn.ReLU)
    stages, levels = [], [FeatureLevel(0, channels, 2)]
    for number, (depth, base, width, gated) in enumerate(zip(DEPTHS, WIDTHS, width_multipliers, gates, strict=True)):
        blocks: list[nn.Module] = []
        for i in range(depth):
            options: dict[str, Any] = {"num_branches": num_branches, "activation": nn.ReLU}
            if i >= depth - gated:
                options |= {"squeeze_excite": "before"}
            out = int(base * width)
            blocks.append(MobileOne(channels, channels, 3, 1 if i else 2, 1, groups=channels, **options))
            blocks.append(MobileOne(channels, out, 1, **options))
            channels = out
        stages.append(Stage(*blocks))
        levels.append(FeatureLevel(number + 1, channels, 4 << number))
    return Classifier(stem, stages, pooled_head(channels, num_classes, drop_rate), levels, in_channels)
