"""Wide ResNet for CIFAR, with norms and ReLUs before the convolutions.

Zagoruyko, Komodakis: "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146, table 1, as ACNet trains
it: without dropout, with a norm and a ReLU of its own before each projection, and no ReLU behind the last norm.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn

from unbranch.blocks import DropPath
from unbranch.models.accuracy import CIFAR10, reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, pooled_head
from unbranch.models.registry import CIFAR, register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, Units, not_compacted

VARIANTS: dict[str, dict[str, Any]] = {"wrn_16_8": {"depth": 2, "factor": 8}}
WIDTHS = (16, 32, 64)


class PreActivation(nn.Module):
    """``conv2(conv1(x)) + shortcut(x)``, every convolution behind a norm and a ReLU of its own."""

    def __init__(self, units: Units, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        first = in_channels != out_channels or stride > 1
        self.shortcut = _unit(units, in_channels, out_channels, 1, stride) if first else None
        self.conv1 = _unit(units, in_channels, out_channels, 3, stride)
        self.conv2 = _unit(units, out_channels, out_channels, 3, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.drop_path(self.conv2(self.conv1(x))))
        return y + (x if self.shortcut is None else self.shortcut(x))


@register_models(
    VARIANTS,
    family="Wide ResNet",
    paper="Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146",
    input_size=CIFAR,
    num_classes=10,
    aliases={"wrn_16_8": ("wrnc16plain", "wide_resnet16_8")},
    accuracy=reported("DingXiaoH/ACNet", 32, {"wrn_16_8": {None: 95.89, "acb": 96.33}}, CIFAR10),
)
def wide_resnet(
    depth: int,
    factor: int,
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    block_options: dict[str, Any] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a wide ResNet with ``depth`` blocks in each stage, ``factor`` times as wide as a ResNet."""
    not_compacted(block, "a wide ResNet, whose norms come before its convolutions,")
    units, rates = Units(block, block_options), iter(drop_path_rates(drop_path_rate, depth * len(WIDTHS)))
    channels = WIDTHS[0]
    stem = nn.Sequential(OrderedDict(conv=units.conv(in_channels, channels, 3)))
    stages, levels = [], []
    for number, base in enumerate(WIDTHS):
        blocks = []
        for i in range(depth):
            stride = 2 if number and i == 0 else 1
            blocks.append(PreActivation(units, channels, base * factor, stride, next(rates)))
            channels = base * factor
        stages.append(Stage(*blocks))
        levels.append(FeatureLevel(number + 1, channels, 1 << number))
    head = pooled_head(channels, num_classes, drop_rate, nn.BatchNorm2d(channels))
    return Classifier(stem, stages, head, levels, in_channels)


def _unit(units: Units, in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    conv = units.conv(in_channels, out_channels, kernel, stride)
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(in_channels), act=nn.ReLU(), conv=conv))
