"""ResNet, the network that most blocks are tried in, for ImageNet and for CIFAR.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, table 1 (ImageNet) and section 4.2
(CIFAR, with projections in place of padded shortcuts), and the version with the stride in the 3×3 of a bottleneck.

    basic       x ── 3×3 ── ReLU ── 3×3 ── + ── ReLU          bottleneck   1×1 ── ReLU ── 3×3 ── ReLU ── 1×1
                └────────── (1×1) ─────────┘

ACNet, DBB and ResRep train these, each with its own names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from unbranch.blocks import DropPath
from unbranch.models.accuracy import CIFAR10, reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, pooled_head
from unbranch.models.registry import CIFAR, register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, Units

IMAGENET_VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": (2, 2, 2, 2)},
    "resnet34": {"depths": (3, 4, 6, 3)},
    "resnet50": {"depths": (3, 4, 6, 3), "bottleneck": True},
}
CIFAR_VARIANTS: dict[str, dict[str, Any]] = {
    "resnet8_cifar": {"depths": (1, 1, 1), "width": 16, "small": True},
    "resnet20_cifar": {"depths": (3, 3, 3), "width": 16, "small": True},
    "resnet56_cifar": {"depths": (9, 9, 9), "width": 16, "small": True},
    "resnet110_cifar": {"depths": (18, 18, 18), "width": 16, "small": True},
}
EXPANSION = 4  # of a bottleneck
PAPER = "Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385"


class Residual(nn.Module):
    """``ReLU(path(x) + shortcut(x))``, ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``.

    The path is the children ``conv1``, ``conv2`` and, in a bottleneck, ``conv3``.
    """

    def __init__(self, shortcut: nn.Module | None, convs: Sequence[nn.Module], drop_path: float) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.depth = len(convs)
        for number, conv in enumerate(convs, 1):
            self.add_module(f"conv{number}", conv)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.depth + 1):
            y = self.get_submodule(f"conv{number}")(y)
        y = cast(Tensor, self.drop_path(y))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


@register_models(
    CIFAR_VARIANTS,
    family="ResNet",
    paper=PAPER,
    input_size=CIFAR,
    num_classes=10,
    aliases={
        "resnet8_cifar": ("resnet8",),
        "resnet20_cifar": ("src20", "resnet20"),
        "resnet56_cifar": ("src56", "resnet56"),
        "resnet110_cifar": ("src110", "resnet110"),
    },
    accuracy=reported("DingXiaoH/ACNet", 32, {"resnet56_cifar": {None: 94.55, "acb": 95.06}}, CIFAR10),
    renamed_options={"widths": "pruned_widths"},
)
@register_models(
    IMAGENET_VARIANTS,
    family="ResNet",
    paper=PAPER,
    aliases={
        "resnet18": ("sres18", "ResNet-18"),
        "resnet34": ("sres34", "ResNet-34"),
        "resnet50": ("sres50", "ResNet-50"),
    },
    accuracy=reported(
        "DingXiaoH/DiverseBranchBlock",
        224,
        {
            "resnet18": {None: 69.54, "acb": 70.53, "dbb": 70.99},
            "resnet50": {None: 76.14, "acb": 76.46, "dbb": 76.71},
        },
    ),
    renamed_options={"widths": "pruned_widths"},
)
def resnet(
    depths: Sequence[int],
    width: int = 64,
    bottleneck: bool = False,
    small: bool = False,
    stem_stride: int | None = None,
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    block_options: dict[str, Any] | None = None,
    pruned_widths: Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a ResNet.

    Args:
        depths: blocks of each stage.
        width: channels of the first stage.
        bottleneck: use bottlenecks instead of basic blocks.
        small: for small images: a 3×3 stem without pooling, and without stride unless ``stem_stride``.
        stem_stride: of the stem; 1 or 2 by default.
    """
    units, rates = Units(block, block_options, pruned_widths), iter(drop_path_rates(drop_path_rate, sum(depths)))
    channels = units.width(width)
    step = stem_stride or (1 if small else 2)
    stem = units.unit(in_channels, channels, 3 if small else 7, step)
    stages, levels = [], [] if small else [FeatureLevel(0, channels, step)]
    reduction = step if small else 2 * step
    for number, depth in enumerate(depths):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if number == 0 and not small:
            layers["pool"] = nn.MaxPool2d(3, 2, 1)
        for i in range(depth):
            stride = 2 if number and i == 0 else 1
            layers[str(i)], channels = _residual(units, channels, width << number, stride, bottleneck, next(rates))
        stages.append(Stage(layers))
        levels.append(FeatureLevel(number + 1, channels, reduction << number))
    units.finish()
    return Classifier(stem, stages, pooled_head(channels, num_classes, drop_rate), levels, in_channels)


def _residual(
    units: Units, channels: int, width: int, stride: int, bottleneck: bool, drop_path: float
) -> tuple[Residual, int]:
    """Return a residual block and its output channels."""
    out = width * (EXPANSION if bottleneck else 1)
    shortcut = None
    if stride > 1 or channels != out:
        projected = units.width(out)
        shortcut = units.unit(channels, projected, 1, stride, relu=False)
    first = units.width(width)
    if bottleneck:
        second, last = units.width(width), units.width(out)
        convs = [
            units.unit(channels, first, 1, prunable=True),
            units.unit(first, second, 3, stride, prunable=True),
            units.unit(second, last, 1, relu=False),
        ]
    else:
        last = units.width(out)
        convs = [units.unit(channels, first, 3, stride, prunable=True), units.unit(first, last, 3, relu=False)]
    return Residual(shortcut, convs, drop_path), last
