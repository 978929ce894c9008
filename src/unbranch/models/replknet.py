"""RepLKNet, networks with depthwise kernels of up to 31×31.

Ding, Zhang, Zhou, Han, Ding, Sun: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
CVPR 2022, https://arxiv.org/abs/2203.06717, section 4.1.

    stem   3×3 with stride 2, depthwise 3×3, 1×1, depthwise 3×3 with stride 2
    stage  (1×1, depthwise 3×3 with stride 2 before all but the first), RepLKBlock and ConvFFN in turns
    head   norm, mean over the map, fc
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from unbranch.blocks import ConvFFN, RepLKBlock
from unbranch.models.accuracy import IMAGENET22K, reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, pooled_head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, Units, no_block

DEPTHS = (2, 2, 18, 2)
TOGETHER = 4  # blocks of the third stage that share a learning rate in fine-tuning

VARIANTS: dict[str, dict[str, Any]] = {
    "replknet_31b": {"width": 128, "kernels": (31, 29, 27, 13)},
    "replknet_31l": {"width": 192, "kernels": (31, 29, 27, 13)},
    "replknet_xl": {"width": 256, "kernels": (27, 27, 27, 13), "small_kernel": None, "dw_ratio": 1.5},
    "replknet_13": {"width": 128, "kernels": (13, 13, 13, 13)},
}
ACCURACY = {
    **reported("DingXiaoH/RepLKNet-pytorch", 224, {"replknet_31b": 83.5}),
    **reported("DingXiaoH/RepLKNet-pytorch", 384, {"replknet_31l": 86.6}, IMAGENET22K),
    **reported("DingXiaoH/RepLKNet-pytorch, after MegData-73M", 320, {"replknet_xl": 87.8}),
}


class RepLKNet(Classifier):
    """A network whose depths for layer-wise learning rates are those of the authors' fine-tuning, 14 in all."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, ...]]:
        """Return depths: one for each stage, but one for two pairs of blocks in the third; see ``Backbone``."""
        if coarse:
            return super().group_matcher(coarse)
        ends = (1, 2, 2 + 2 * DEPTHS[2] // TOGETHER, 3 + 2 * DEPTHS[2] // TOGETHER)  # depth of each stage's last

        def depth(name: str) -> tuple[int, ...]:
            part, stage, child, *_ = (*name.split("."), "", "")
            if part != "stages":
                return (0 if part == "stem" else ends[-1] + 1,)
            if child == "down":
                return (ends[int(stage) - 1],)
            return (ends[1] + 1 + int(child) // TOGETHER if stage == "2" else ends[int(stage)],)

        return depth


@register_models(
    VARIANTS,
    family="RepLKNet",
    paper="Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs, CVPR 2022, "
    "https://arxiv.org/abs/2203.06717",
    input_sizes={"replknet_xl": (3, 320, 320)},
    aliases={
        "replknet_31b": ("replknet31b", "create_RepLKNet31B"),
        "replknet_31l": ("replknet31l", "create_RepLKNet31L"),
        "replknet_xl": ("replknetxl", "create_RepLKNetXL"),
    },
    accuracy=ACCURACY,
)
def replknet(
    width: int,
    kernels: Sequence[int],
    small_kernel: int | None = 5,
    dw_ratio: float = 1.0,
    depths: Sequence[int] = DEPTHS,
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    ffn_ratio: float = 4.0,
) -> Classifier:
    """Build a RepLKNet; both members of a pair of blocks share their rate of stochastic depth."""
    no_block(block, "RepLKNet")
    units, rates = Units(), iter(drop_path_rates(drop_path_rate, sum(depths)))

    def depthwise(channels: int, stride: int) -> nn.Module:
        return units.unit(channels, channels, 3, stride, groups=channels)

    stem = nn.Sequential(
        units.unit(in_channels, width, 3, 2), depthwise(width, 1), units.unit(width, width, 1), depthwise(width, 2)
    )
    stages, levels = [], []
    for number, (depth, kernel) in enumerate(zip(depths, kernels, strict=True)):
        channels = width << number
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if number:
            layers["down"] = nn.Sequential(units.unit(channels // 2, channels, 1), depthwise(channels, 2))
        for i in range(depth):
            rate = next(rates)
            layers[str(2 * i)] = RepLKBlock(channels, int(dw_ratio * channels), kernel, small_kernel, rate)
            layers[str(2 * i + 1)] = ConvFFN(channels, int(ffn_ratio * channels), channels, rate)
        stages.append(Stage(layers))
        levels.append(FeatureLevel(number + 1, channels, 4 << number))
    channels = levels[-1].channels
    head = pooled_head(channels, num_classes, drop_rate, nn.BatchNorm2d(channels))
    return RepLKNet(stem, stages, head, levels, in_channels)
