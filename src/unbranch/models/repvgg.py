"""RepVGG and RepVGGplus, plain stacks of 3×3 convolutions that train with shortcuts.

Ding, Zhang, Ma, Han, Ding, Sun: "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021,
https://arxiv.org/abs/2101.03697, tables 2 and 3. RepVGGplus is described in the authors' repository only.

    stem   one block, stride 2, min(64, 64·a) channels
    stage  blocks of 64·a, 128·a, 256·a and 512·b channels; the first one of each with stride 2
    head   mean over the map, fc

In the group-wise variants every second layer up to the 26th has 2 or 4 groups. RepVGGplus halves its third stage, and
trains with a classifier behind each part of it but the last; ``collapse`` removes those classifiers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, cast

from torch import Tensor, nn

from unbranch.blocks import CONVOLUTIONS, BranchedConv
from unbranch.blocks.parts import conv_bn, gated
from unbranch.errors import InputError
from unbranch.models.accuracy import reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, Head, pooled_head
from unbranch.models.registry import register_models
from unbranch.models.stage import Stage, drop_path_rates
from unbranch.models.units import Block, Units

A, B, DEEP = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
WIDTHS = (64, 128, 256, 512)
GROUPED = range(2, 27, 2)  # layers with groups, the stem being layer 0

# depths, width of the first three stages and of the last as multiples, groups
VARIANTS: dict[str, dict[str, Any]] = {
    "repvgg_a0": {"depths": A, "width_multipliers": (0.75, 2.5)},
    "repvgg_a1": {"depths": A, "width_multipliers": (1.0, 2.5)},
    "repvgg_a2": {"depths": A, "width_multipliers": (1.5, 2.75)},
    "repvgg_b0": {"depths": B, "width_multipliers": (1.0, 2.5)},
    "repvgg_b1": {"depths": B, "width_multipliers": (2.0, 4.0)},
    "repvgg_b1g2": {"depths": B, "width_multipliers": (2.0, 4.0), "groups": 2},
    "repvgg_b1g4": {"depths": B, "width_multipliers": (2.0, 4.0), "groups": 4},
    "repvgg_b2": {"depths": B, "width_multipliers": (2.5, 5.0)},
    "repvgg_b2g2": {"depths": B, "width_multipliers": (2.5, 5.0), "groups": 2},
    "repvgg_b2g4": {"depths": B, "width_multipliers": (2.5, 5.0), "groups": 4},
    "repvgg_b3": {"depths": B, "width_multipliers": (3.0, 5.0)},
    "repvgg_b3g2": {"depths": B, "width_multipliers": (3.0, 5.0), "groups": 2},
    "repvgg_b3g4": {"depths": B, "width_multipliers": (3.0, 5.0), "groups": 4},
    "repvgg_d2se": {"depths": DEEP, "width_multipliers": (2.5, 5.0), "squeeze_excite": "before"},
    "repvggplus_l2pse": {"depths": DEEP, "width_multipliers": (2.5, 5.0), "squeeze_excite": "after", "auxiliary": True},
}
NOT_IN_TIMM = ("repvgg_b1g2", "repvgg_b2g2", "repvgg_b3g2", "repvggplus_l2pse")
ACCURACY = {
    **reported(
        "DingXiaoH/RepVGG, 120 epochs",
        224,
        {
            "repvgg_a0": 72.41,
            "repvgg_a1": 74.46,
            "repvgg_a2": 76.48,
            "repvgg_b0": 75.14,
            "repvgg_b1": 78.37,
            "repvgg_b1g2": 77.78,
            "repvgg_b1g4": 77.58,
            "repvgg_b2": 78.78,
        },
    ),
    **reported("DingXiaoH/RepVGG, 200 epochs", 224, {"repvgg_b2g4": 79.38, "repvgg_b3": 80.52, "repvgg_b3g4": 80.21}),
    **reported("DingXiaoH/RepVGG", 320, {"repvgg_d2se": 83.55, "repvggplus_l2pse": 84.06}),
}


class RepVGGNet(Classifier):
    """``(B, in_channels, H, W)`` to logits ``(B, num_classes)``.

    In training with auxiliary classifiers it returns a dictionary of logits, ``main`` and the auxiliary ones.
    """

    training_only = ("auxiliary",)

    def __init__(self, *parts: Any, auxiliary: Mapping[str, nn.Module], **options: Any) -> None:
        super().__init__(*parts, **options)
        self.auxiliary = nn.ModuleDict(dict(auxiliary))

    def heads(self) -> list[Head]:
        others = [cast(Head, classifier.get_submodule("classify")) for classifier in self.auxiliary.values()]
        return [self.head, *others]

    def forward_all(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logits by classifier in any mode: ``main``, and the auxiliary ones by their stage."""
        self.check(x)
        logits = {}
        x = self.stem(x)
        for position, stage in enumerate(self.stages, 1):
            x = stage(x)
            if f"stage{position}" in self.auxiliary:
                logits[f"stage{position}"] = self.auxiliary[f"stage{position}"](x)
        return {"main": self.forward_head(x), **logits}

    def forward(self, x: Tensor) -> Any:
        return self.forward_all(x) if self.training and len(self.auxiliary) else super().forward(x)


@register_models(
    VARIANTS,
    family="RepVGG",
    paper="RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, https://arxiv.org/abs/2101.03697",
    input_sizes={"repvgg_d2se": (3, 320, 320), "repvggplus_l2pse": (3, 320, 320)},
    aliases={"repvggplus_l2pse": ("RepVGGplus-L2pse", "repvgg_l2pse")},
    timm=VARIANTS.keys() - NOT_IN_TIMM,
    accuracy=ACCURACY,
    renamed_options={"widths": "width_multipliers"},
)
def repvgg(
    depths: Sequence[int],
    width_multipliers: tuple[float, float],
    groups: int = 1,
    squeeze_excite: str | None = None,
    auxiliary: bool = False,
    unit: str = "repvgg",
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    block_options: dict[str, Any] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a RepVGG of its own blocks or of others, each followed by a ReLU."""
    units = Units(unit if block is None else block, block_options)
    if units.block is None:
        raise InputError("a RepVGG is made of blocks; block='compactor' is for plain networks")
    if drop_path_rate and units.block is not CONVOLUTIONS["repvgg"]:
        raise InputError("`drop_path_rate` must be 0 for other blocks than RepVGG's own")
    layer, rates = count(), drop_path_rates(drop_path_rate, sum(depths) + 1)
    ours = isinstance(units.block, type) and issubclass(units.block, BranchedConv)

    def make(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        index = next(layer)
        place = (in_channels, out_channels, 3, stride, 1, groups if index in GROUPED else 1)
        activation = gated(nn.ReLU, out_channels, squeeze_excite, None, 2)
        if ours:
            dropped: dict[str, Any] = {"drop_path": rates[index]} if drop_path_rate else {}
            return units.conv(*place, activation=activation, **dropped)
        unit = units.unit(*place, relu=False)
        return nn.Sequential(OrderedDict(conv=unit, post=cast(Callable[[], nn.Module], activation)()))

    first, last = width_multipliers
    channels = min(64, int(64 * first))
    stem = make(in_channels, channels, 2)
    stages, outs, levels = [], [], [FeatureLevel(0, channels, 2)]
    for number, (depth, base) in enumerate(zip(depths, WIDTHS, strict=True)):
        width = int(base * (last if base == WIDTHS[-1] else first))
        blocks = [make(channels if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
        parts = [blocks[: depth // 2], blocks[depth // 2 :]] if auxiliary and number == 2 else [blocks]
        stages += [Stage(*part) for part in parts]
        outs += [width for _ in parts]
        levels.append(FeatureLevel(len(stages), width, 4 << number))
        channels = width
    heads = {f"stage{i}": _auxiliary_head(outs[i - 1], num_classes) for i in (1, 2, 3)} if auxiliary else {}
    return RepVGGNet(stem, stages, pooled_head(channels, num_classes, drop_rate), levels, in_channels, auxiliary=heads)


def _auxiliary_head(channels: int, num_classes: int) -> nn.Sequential:
    conv = conv_bn(channels, channels, 3, 2, 1)
    return nn.Sequential(OrderedDict(conv=conv, act=nn.ReLU(), classify=pooled_head(channels, num_classes)))
