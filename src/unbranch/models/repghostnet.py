"""RepGhostNet, networks for phones that add features where GhostNet concatenates them.

Chen, Guo, Zeng, Xiong, Dong: "RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization", 2022,
https://arxiv.org/abs/2211.06088, table 1.

    stem    3×3 with stride 2, norm, ReLU
    stages  bottlenecks, one run of equal stride a stage; a 1×1 convolution, norm, ReLU after the last
    head    mean over the map, 1×1 to 1280 channels, ReLU, dropout, fc

All widths but the last are multiplied and rounded to a multiple of 4.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

from torch import nn

from unbranch.blocks import RepGhostBottleneck, make_divisible
from unbranch.models.accuracy import reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, Head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, Units, no_block


class Row(NamedTuple):
    """A bottleneck: its stage, kernel of the strided convolution, widths, gate and stride."""

    stage: int
    kernel: int
    mid: int
    out: int
    se_ratio: float
    stride: int


ROWS = (
    Row(0, 3, 8, 16, 0, 1),
    Row(1, 3, 24, 24, 0, 2),
    Row(2, 3, 36, 24, 0, 1),
    Row(3, 5, 36, 40, 0.25, 2),
    Row(4, 5, 60, 40, 0.25, 1),
    Row(5, 3, 120, 80, 0, 2),
    Row(6, 3, 100, 80, 0, 1),
    Row(6, 3, 120, 80, 0, 1),
    Row(6, 3, 120, 80, 0, 1),
    Row(6, 3, 240, 112, 0.25, 1),
    Row(6, 3, 336, 112, 0.25, 1),
    Row(7, 5, 336, 160, 0.25, 2),
    Row(8, 5, 480, 160, 0, 1),
    Row(8, 5, 480, 160, 0.25, 1),
    Row(8, 5, 480, 160, 0, 1),
    Row(8, 5, 480, 160, 0.25, 1),
)
STEM, LAST, HEAD = 16, 960, 1280

VARIANTS: dict[str, dict[str, Any]] = {
    "repghostnet_050": {"width": 0.5},
    "repghostnet_058": {"width": 0.58},
    "repghostnet_080": {"width": 0.8},
    "repghostnet_100": {"width": 1.0},
    "repghostnet_111": {"width": 1.11},
    "repghostnet_130": {"width": 1.3},
    "repghostnet_150": {"width": 1.5},
    "repghostnet_200": {"width": 2.0},
    # ablations of table 6: x itself beside the depthwise kernel, nothing beside it, no shortcut of equal widths
    "repghostnet_050_identity": {"width": 0.5, "fusion": "identity"},
    "repghostnet_050_none": {"width": 0.5, "fusion": "none"},
    "repghostnet_050_noshortcut": {"width": 0.5, "shortcut": False},
}
PUBLISHED = [name for name in VARIANTS if name.count("_") == 1]  # which are also those of timm
ACCURACY = reported(
    "ChengpengChen/RepGhost",
    224,
    {
        "repghostnet_050": 66.95,
        "repghostnet_058": 68.94,
        "repghostnet_080": 72.24,
        "repghostnet_100": 74.22,
        "repghostnet_111": 75.07,
        "repghostnet_130": 76.37,
        "repghostnet_150": 77.45,
        "repghostnet_200": 78.81,
    },
)


def _published_name(name: str) -> str:
    """Return ``repghostnet_1_11x`` for ``repghostnet_111``."""
    family, digits = name.split("_")
    return f"{family}_{digits[0]}_{digits[1:].rstrip('0') or '0'}x"


@register_models(
    VARIANTS,
    family="RepGhostNet",
    paper="RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization, 2022, https://arxiv.org/abs/2211.06088",
    aliases={
        **{name: (_published_name(name),) for name in PUBLISHED},
        "repghostnet_050_identity": ("repghostnet_repid_0_5x",),
        "repghostnet_050_none": ("repghostnet_norep_0_5x",),
        "repghostnet_050_noshortcut": ("repghostnet_wo_0_5x",),
    },
    timm=PUBLISHED,
    accuracy=ACCURACY,
)
def repghostnet(
    width: float,
    fusion: str = "bn",
    shortcut: bool = True,
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    drop_rate: float = 0.2,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a RepGhostNet; ``fusion`` is the branch beside the depthwise kernels."""
    no_block(block, "RepGhostNet")
    units, rates = Units(), iter(drop_path_rates(drop_path_rate, len(ROWS)))
    channels = make_divisible(STEM * width)
    stem = units.unit(in_channels, channels, 3, 2)
    stages, levels, reduction = [], [FeatureLevel(0, channels, 2)], 2
    for number, run in groupby(ROWS, key=lambda row: row.stage):
        rows, blocks = list(run), []
        for row in rows:
            mid, out = make_divisible(row.mid * width), make_divisible(row.out * width)
            blocks.append(
                RepGhostBottleneck(
                    channels, mid, out, row.kernel, row.stride, row.se_ratio, shortcut, fusion, next(rates)
                )
            )
            channels = out
        stages.append(Stage(*blocks))
        if rows[0].stride > 1:  # the first map of its size, as timm has it
            reduction *= rows[0].stride
            levels.append(FeatureLevel(number + 1, channels, reduction))
    wide = make_divisible(LAST * width)
    stages.append(Stage(units.unit(channels, wide, 1)))
    head = Head(
        {
            "pool": nn.AdaptiveAvgPool2d(1),
            "conv": nn.Conv2d(wide, HEAD, 1),
            "act": nn.ReLU(),
            "flatten": nn.Flatten(),
            "dropout": nn.Dropout(drop_rate),
        },
        HEAD,
        num_classes,
    )
    return Classifier(stem, stages, head, levels, in_channels, num_features=wide)
