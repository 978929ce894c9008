"""What all networks of the zoo have in common: a stem, stages and a head, usable as classifier and as backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from unbranch.errors import InputError
from unbranch.models.images import Takes, check_images
from unbranch.models.recompute import once_updated
from unbranch.provenance import provenance_of, set_provenance


class Level(NamedTuple):
    """A feature map that a backbone offers: behind which part, with how many channels, how much smaller."""

    position: int  # 0 behind the stem, i behind the i-th stage
    channels: int
    reduction: int


class FeatureInfo(list[dict[str, Any]]):
    """One dictionary a feature map, finest first: ``num_chs``, ``reduction``, ``module``; as timm's."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Input pixels to one step of each map."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Path of the module that gives each map."""
        return [level["module"] for level in self]


def feature_info(levels: Iterable[Level]) -> FeatureInfo:
    """The levels in timm's words."""
    return FeatureInfo(
        {"num_chs": level.channels, "reduction": level.reduction, "module": _part_name(level.position)}
        for level in levels
    )


def _part_name(position: int) -> str:
    return f"stages.{position - 1}" if position else "stem"


fx.wrap("check_images")  # tracing must not branch on sizes that it doesn't know


class Stage(nn.Sequential):
    """Blocks one after the other, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    ``checkpointing`` trades time for memory in training: activations inside each block are computed again when the
    gradients go backward, without updating the statistics of norms again. Chen et al.: "Training Deep Nets with
    Sublinear Memory Cost", 2016.
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        keeps = not (self.checkpointing and self.training and torch.is_grad_enabled())
        for block in self:
            x = block(x) if keeps else _recomputed(block, x)
        return x


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, of which only ``x`` is kept for the gradients."""
    if torch.compiler.is_compiling():  # which updates statistics once, and takes no contexts
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=partial(once_updated, block)))


class Head(nn.Sequential):
    """Layers whose last one, ``fc``, makes ``(B, num_classes)`` of ``(B, num_features)``.

    Without classes ``fc`` is the identity, and the features come out.
    """

    fc: nn.Module

    def __init__(self, layers: dict[str, nn.Module], num_features: int, num_classes: int) -> None:
        super().__init__(OrderedDict(layers))
        self.num_features, self.num_classes = num_features, num_classes
        self.reset(num_classes)

    def reset(self, num_classes: int, like: Tensor | None = None) -> None:
        """A new, untrained classifier, on the device and in the dtype of ``like``."""
        if num_classes < 0:
            raise InputError(f"num_classes is at least 0, for features alone; got {num_classes}")
        fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc = fc if like is None else fc.to(like)
        self.num_classes = num_classes

    def features(self, x: Tensor) -> Tensor:
        """What the classifier sees, ``(B, num_features)``."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def pooled_head(channels: int, num_classes: int, drop_rate: float = 0.0, norm: nn.Module | None = None) -> Head:
    """``fc(dropout(mean(norm(x))))``, the mean over the whole map."""
    layers: dict[str, nn.Module] = {} if norm is None else {"norm": norm}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(drop_rate)}
    return Head(layers, channels, num_classes)


class Trunk(nn.Module):
    """A stem and stages, ``(B, in_channels, H, W)`` to a feature map; what classifiers and backbones share.

    Args:
        levels: the feature maps it offers.
        takes: what images.
    """

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Module], levels: Sequence[Level], takes: Takes) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.levels, self.takes = tuple(levels), takes
        self.frozen_stages = -1

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.takes.in_channels

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and reduction of the feature maps, finest first."""
        return feature_info(self.levels)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep no activations inside the blocks of the stages."""
        for stage in self.stages:
            cast(Stage, stage).checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, ...]]:
        """Depth of a parameter by its name, as timm wants it for learning rates by layer.

        The stem is ``(0,)``, the i-th part of the s-th stage ``(s, i)``, what comes behind the stages the last;
        ``coarse`` takes a stage as one.
        """
        parts = [[name for name, _ in stage.named_children()] for stage in self.stages]

        def depth(name: str) -> tuple[int, ...]:
            part, stage, child, *_ = (*name.split("."), "", "")
            if part != "stages":
                return (0 if part == "stem" else len(parts) + 1,)
            return (int(stage) + 1,) if coarse else (int(stage) + 1, parts[int(stage)].index(child))

        return depth

    def freeze_stages(self, count: int) -> None:
        """Train neither the stem nor the first ``count`` stages, and all the others.

        Frozen parts get no gradients and stay in evaluation mode, their norms with the statistics that they have. 0
        freezes the stem alone, −1 nothing.

        Raises:
            InputError: if there are fewer stages.
        """
        if not -1 <= count <= len(self.stages):
            raise InputError(f"there are {len(self.stages)} stages to freeze; got {count}")
        self.frozen_stages = count
        for number, part in enumerate([self.stem, *self.stages]):
            part.requires_grad_(number > count)
        self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        """As nn.Module's; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in [self.stem, *self.stages][: self.frozen_stages + 1]:
            part.eval()
        return self

    def check(self, x: Tensor) -> None:
        """Raises InputError if the network can't take the images ``x``."""
        check_images(x, self.takes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, ``(B, C, H', W')``."""
        self.check(x)
        return cast(Tensor, self.stages(self.stem(x)))


class Network(Trunk):
    """A classifier, ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``, or to features without classes.

    Args:
        stem, stages, levels: see ``Trunk``.
        head: from the last feature map to logits.
        in_channels: of the images.
        smallest: height and width that leave every layer something to work on.
        multiple: what divides height and width.
        num_features: channels of the last feature map, where it is none of the levels.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        head: Head,
        levels: Sequence[Level],
        in_channels: int = 3,
        smallest: int = 1,
        multiple: int = 1,
        num_features: int | None = None,
    ) -> None:
        super().__init__(stem, stages, levels, Takes(in_channels, smallest, multiple))
        self.head = head
        self.num_features = num_features or self.levels[-1].channels

    @property
    def head_hidden_size(self) -> int:
        """Numbers that the classifier sees of each image; ``num_features`` are the channels of the last map."""
        return self.head.num_features

    @property
    def num_classes(self) -> int:
        """Logits, or 0 for features alone."""
        return self.head.num_classes

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def heads(self) -> list[Head]:
        """All that make logits."""
        return [self.head]

    def reset_classifier(self, num_classes: int) -> None:
        """A new, untrained last layer; 0 for features alone. Files of the network will know of it."""
        like = next(self.parameters(), None)
        for head in self.heads():
            head.reset(num_classes, like)
        history = provenance_of(self)
        if history.network is not None:
            set_provenance(self, replace(history, arguments={**history.arguments, "num_classes": num_classes}))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map, or what the classifier sees."""
        return self.head.features(x) if pre_logits else cast(Tensor, self.head(x))

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))


class Features(Trunk):
    """A network without its head, ``(B, in_channels, H, W)`` to a list of feature maps, finest first.

    Args:
        network: takes the parts of this one.
        out_indices: which of its levels, all unless given; negative ones count from the end, a number takes so many
            from the end.
        norms: put a batch norm on each map, as detectors with RepLKNet-XL do.

    Raises:
        InputError: if there is no such level.
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | int | None = None, norms: bool = False) -> None:
        indices = _chosen(len(network.levels), out_indices)
        levels = [network.levels[i] for i in indices]
        stages = list(network.stages)[: levels[-1].position]
        super().__init__(network.stem, stages, levels, network.takes)
        self.norms = nn.ModuleDict({str(i): nn.BatchNorm2d(network.levels[i].channels) for i in indices if norms})

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check(x)
        maps, wanted = [], {level.position for level in self.levels}
        for position, part in enumerate([self.stem, *self.stages]):
            x = part(x)
            if position in wanted:
                maps.append(x)
        return [norm(y) for norm, y in zip(self.norms.values(), maps, strict=True)] if len(self.norms) else maps


def _chosen(known: int, out_indices: Sequence[int] | int | None) -> list[int]:
    """Which of so many levels, finest first."""
    if out_indices is None:
        return list(range(known))
    if isinstance(out_indices, int):
        wanted = list(range(known - out_indices, known)) if out_indices <= known else []
    else:
        wanted = list(out_indices)
    if not wanted or any(not isinstance(i, int) or not -known <= i < known for i in wanted):
        raise InputError(
            f"out_indices are at least one of {-known} to {known - 1}, or how many from the end; got {out_indices!r}"
        )
    return sorted({i % known for i in wanted})


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of stochastic depth that rise evenly from 0 at the first of ``depth`` blocks to ``rate`` at the last.

    Huang et al.: "Deep Networks with Stochastic Depth", ECCV 2016, section 3.
    """
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def no_drop_path(rate: float, name: str) -> None:
    """Raises InputError if a network without shortcuts is asked for stochastic depth."""
    if rate:
        raise InputError(f"{name} has no shortcuts around its layers, so that no path can be dropped: drop_path_rate=0")
