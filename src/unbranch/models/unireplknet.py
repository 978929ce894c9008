"""UniRepLKNet, large depthwise kernels that train beside small ones with gaps.

Ding, Zhang, Ge, Zhao, Song, Yue, Shan: "UniRepLKNet: A Universal Perception Large-Kernel ConvNet", CVPR 2024,
https://arxiv.org/abs/2311.15599, section 3.1 and table 3.

    stem   3×3 with stride 2, norm, GELU, 3×3 with stride 2, norm
    stage  (3×3 with stride 2, norm before all but the first), blocks with kernels of 3 and of 13
    head   mean over the map, norm, fc

The norms between the stages and in the head are over the channels of each position, and can't be merged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from unbranch.blocks import ChannelNorm, UniRepLKNetBlock
from unbranch.models.accuracy import IMAGENET22K, reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, Head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, no_block

SMALL, LARGE = 3, 13
EPS = 1e-6
# by the depth of the third stage: the kernels that alternate there
NANO, TINY, BASE = (2, 2, 6, 2), (3, 3, 18, 3), (3, 3, 27, 3)

# width of the first stage, depths, and the kernels that take turns in the third stage
VARIANTS: dict[str, dict[str, Any]] = {
    "unireplknet_a": {"width": 40, "depths": NANO},
    "unireplknet_f": {"width": 48, "depths": NANO},
    "unireplknet_p": {"width": 64, "depths": NANO},
    "unireplknet_n": {"width": 80, "depths": (2, 2, 8, 2)},
    "unireplknet_t": {"width": 80, "depths": TINY, "turns": (LARGE, SMALL)},
    "unireplknet_s": {"width": 96, "depths": BASE, "turns": (LARGE, SMALL, SMALL)},
    "unireplknet_b": {"width": 128, "depths": BASE, "turns": (LARGE, SMALL, SMALL)},
    "unireplknet_l": {"width": 192, "depths": BASE, "turns": (LARGE, SMALL, SMALL)},
    "unireplknet_xl": {"width": 256, "depths": BASE, "turns": (LARGE, SMALL, SMALL)},
}
ACCURACY = {
    **reported(
        "AILab-CVC/UniRepLKNet",
        224,
        {
            "unireplknet_a": 77.0,
            "unireplknet_f": 78.6,
            "unireplknet_p": 80.2,
            "unireplknet_n": 81.6,
            "unireplknet_t": 83.2,
            "unireplknet_s": 83.9,
        },
    ),
    **reported(
        "AILab-CVC/UniRepLKNet",
        384,
        {"unireplknet_b": 87.4, "unireplknet_l": 87.9, "unireplknet_xl": 88.0},
        IMAGENET22K,
    ),
}


@register_models(
    VARIANTS,
    family="UniRepLKNet",
    paper="UniRepLKNet: A Universal Perception Large-Kernel ConvNet, CVPR 2024, https://arxiv.org/abs/2311.15599",
    accuracy=ACCURACY,
)
def unireplknet(
    width: int,
    depths: Sequence[int],
    turns: Sequence[int] = (LARGE,),
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale: float = 1e-6,
) -> Classifier:
    """Build a UniRepLKNet: kernels of 3 in the first stage, ``turns`` repeated in the third, 13 in the others."""
    no_block(block, "UniRepLKNet")
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
    stem = nn.Sequential(*_down(in_channels, width // 2), nn.GELU(), *_down(width // 2, width))
    stages, levels = [], []
    for number, depth in enumerate(depths):
        channels = width << number
        kernels = ((SMALL,), (LARGE,), turns, (LARGE,))[number]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if number:
            layers["down"] = nn.Sequential(*_down(channels // 2, channels))
        for i in range(depth):
            kernel = kernels[i % len(kernels)]
            layers[str(i)] = UniRepLKNetBlock(channels, kernel, next(rates), layer_scale=layer_scale)
        stages.append(Stage(layers))
        levels.append(FeatureLevel(number + 1, channels, 4 << number))
    network = Classifier(stem, stages, _head(levels[-1].channels, num_classes, drop_rate), levels, in_channels)
    network.apply(_initialise)
    return network


def _down(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(in_channels, out_channels, 3, 2, 1), ChannelNorm(out_channels, eps=EPS)


def _head(channels: int, num_classes: int, drop_rate: float) -> Head:
    layers: dict[str, nn.Module] = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers |= {"norm": nn.LayerNorm(channels, eps=EPS), "dropout": nn.Dropout(drop_rate)}
    return Head(layers, channels, num_classes)


def _initialise(module: nn.Module) -> None:
    """Initialise as published: kernels from a normal distribution of deviation 0.02, cut at ±2; zero biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
