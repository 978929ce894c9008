"""What classifiers and feature extractors share: a stem, stages, and the feature maps they offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, fx, nn

from unbranch.errors import InputError
from unbranch.models.input_spec import InputSpec, check_images
from unbranch.models.stage import Stage

fx.wrap("check_images")  # tracing must not branch on sizes that it doesn't know


class FeatureLevel(NamedTuple):
    """A feature map that a backbone offers.

    Args:
        position: 0 behind the stem, i behind the i-th stage.
        channels: of the map.
        reduction: input pixels to one step of the map, along each axis.
    """

    position: int
    channels: int
    reduction: int


class FeatureInfo(list[dict[str, Any]]):
    """One dictionary for each feature map, finest first, with timm's keys ``num_chs``, ``reduction``, ``module``."""

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Return the input pixels to one step of each map."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Return the path of the module that each map comes out of."""
        return [level["module"] for level in self]


def feature_info(levels: Iterable[FeatureLevel]) -> FeatureInfo:
    """Return the levels as timm's ``feature_info``."""
    return FeatureInfo(
        {"num_chs": level.channels, "reduction": level.reduction, "module": _part_name(level.position)}
        for level in levels
    )


def _part_name(position: int) -> str:
    return f"stages.{position - 1}" if position else "stem"


class Backbone(nn.Module):
    """A stem and stages, ``(B, in_channels, H, W)`` to a feature map.

    Args:
        stem: the first layers.
        stages: of blocks, each a ``Stage``.
        levels: the feature maps that the network offers.
        input_spec: the images that it takes.
    """

    def __init__(
        self, stem: nn.Module, stages: Iterable[nn.Module], levels: Sequence[FeatureLevel], input_spec: InputSpec
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.levels, self.input_spec = tuple(levels), input_spec
        self.frozen_stages = -1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also one of a version that called ``input_spec`` ``takes``."""
        renamed = {"input_spec" if key == "takes" else key: value for key, value in state.items()}
        super().__setstate__(renamed)  # type: ignore[no-untyped-call]

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.input_spec.in_channels

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and reduction of the feature maps, finest first."""
        return feature_info(self.levels)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations inside each block in the backward pass, which needs less memory and more time."""
        for stage in self.stages:
            cast(Stage, stage).checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, ...]]:
        """Return a function from the name of a parameter to its depth, for timm's layer-wise learning-rate decay.

        The stem has depth ``(0,)``, the i-th part of the s-th stage ``(s, i)``, and the head the largest.

        Args:
            coarse: count each stage as one depth, ``(s,)``.
        """
        parts = [[name for name, _ in stage.named_children()] for stage in self.stages]

        def depth(name: str) -> tuple[int, ...]:
            part, stage, child, *_ = (*name.split("."), "", "")
            if part != "stages":
                return (0 if part == "stem" else len(parts) + 1,)
            return (int(stage) + 1,) if coarse else (int(stage) + 1, parts[int(stage)].index(child))

        return depth

    def freeze_stages(self, count: int) -> None:
        """Freeze the stem and the first stages, and unfreeze the others.

        Frozen parts get no gradients and stay in evaluation mode, so their norms keep their statistics.

        Args:
            count: number of stages; 0 freezes the stem alone, −1 nothing.

        Raises:
            InputError: if there are fewer stages.
        """
        if not -1 <= count <= len(self.stages):
            raise InputError(f"`count` must be between -1 and the number of stages, {len(self.stages)}, got {count}")
        self.frozen_stages = count
        for number, part in enumerate([self.stem, *self.stages]):
            part.requires_grad_(number > count)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in [self.stem, *self.stages][: self.frozen_stages + 1]:
            part.eval()
        return self

    def check(self, x: Tensor) -> None:
        """Raise InputError if the network can't take the images ``x``."""
        check_images(x, self.input_spec)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, ``(B, C, H', W')``."""
        self.check(x)
        return cast(Tensor, self.stages(self.stem(x)))
