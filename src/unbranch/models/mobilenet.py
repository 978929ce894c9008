"""MobileNet, depthwise and 1×1 convolutions in turns.

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861, table 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from unbranch.models.accuracy import reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, pooled_head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, no_drop_path
from unbranch.models.units import Block, Units

VARIANTS: dict[str, dict[str, Any]] = {"mobilenet_v1": {}}
# output channels of the blocks of each stage; the first block has stride 2, except in the first stage
STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
STEM = 32


@register_models(
    VARIANTS,
    family="MobileNet",
    paper="MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017, "
    "https://arxiv.org/abs/1704.04861",
    aliases={"mobilenet_v1": ("smi1", "MobileNet", "mobilenetv1_100")},
    accuracy=reported("DingXiaoH/DiverseBranchBlock", 224, {"mobilenet_v1": {None: 71.89, "acb": 72.14, "dbb": 72.88}}),
    renamed_options={"widths": "pruned_widths"},
)
def mobilenet(
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    block_options: dict[str, Any] | None = None,
    pruned_widths: Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a MobileNet; in a pruned one, depthwise layers are as wide as their inputs."""
    no_drop_path(drop_path_rate, "MobileNet")
    units = Units(block, block_options, pruned_widths)
    channels = units.width(STEM)
    stem = units.unit(in_channels, channels, 3, 2, prunable=True)
    stages, levels = [], []
    for number, outs in enumerate(STAGES):
        blocks = []
        for i, out in enumerate(outs):
            stride = 2 if number and i == 0 else 1
            inside = units.width(channels)
            depthwise = units.unit(channels, inside, 3, stride, groups=channels)
            channels = units.width(out)
            pointwise = units.unit(inside, channels, 1, prunable=True)
            blocks.append(nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise)))
        stages.append(Stage(*blocks))
        levels.append(FeatureLevel(number + 1, channels, 2 << number))
    units.finish()
    return Classifier(stem, stages, pooled_head(channels, num_classes, drop_rate), levels, in_channels)
