"""A ResNet-8 for small images.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with one basic block
per stage: 8 layers, 78 thousand parameters at width 16. Its 3×3 convolutions are made by a factory, so that each
can be a block with branches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from unbranch.blocks import ACB, DBB, RepVGG
from unbranch.errors import InputError

# (width as a multiple of the first, stride) of each stage.
STAGES = ((1, 1), (2, 2), (4, 2))

MakeConv: TypeAlias = Callable[[int, int, int], nn.Module]
"""``(in_channels, out_channels, stride)`` to a 3×3 convolution and its batch norm."""


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    """A bias-free convolution that keeps the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


FACTORIES: dict[str | None, MakeConv] = {
    None: lambda i, o, stride: conv_bn(i, o, 3, stride),
    "acb": lambda i, o, stride: ACB(i, o, 3, stride, 1),
    "dbb": lambda i, o, stride: DBB(i, o, 3, stride, 1),
    "repvgg": lambda i, o, stride: RepVGG(i, o, 3, stride, 1),
}


class BasicBlock(nn.Module):
    """``ReLU(conv2(ReLU(conv1(x))) + shortcut(x))``, ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, make_conv: MakeConv) -> None:
        super().__init__()
        self.conv1 = make_conv(in_channels, out_channels, stride)
        self.conv2 = make_conv(out_channels, out_channels, 1)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_bn(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class SmallResNet(nn.Module):
    """``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""

    def __init__(self, make_conv: MakeConv, num_classes: int, in_channels: int, width: int, stem_stride: int) -> None:
        super().__init__()
        self.stem = make_conv(in_channels, width, stem_stride)
        stages: list[nn.Module] = []
        channels = width
        for multiple, stride in STAGES:
            stages.append(BasicBlock(channels, multiple * width, stride, make_conv))
            channels = multiple * width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.stem(x)))
        return cast(Tensor, self.head(x.mean((2, 3))))  # (B, C, H, W) to (B, C)


def small_resnet(
    block: str | None = None, num_classes: int = 10, in_channels: int = 1, width: int = 16, stem_stride: int = 1
) -> SmallResNet:
    """A ResNet-8 whose 3×3 convolutions are plain (``None``) or blocks: ``"acb"``, ``"dbb"`` or ``"repvgg"``."""
    if block not in FACTORIES:
        names = ", ".join(repr(name) for name in FACTORIES)
        raise InputError(f"block={block!r} is none of {names}")
    return SmallResNet(FACTORIES[block], num_classes, in_channels, width, stem_stride)
