"""Networks whose channels hang together in all the ways there are, and compactors with rows of zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

import unbranch as ub
from unbranch.blocks import ACB, DBB, Compactor, RepVGG
from unbranch.models import randomise_statistics
from unbranch.prune import PruningGraph


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), act())


class Squeezed(nn.Module):
    """A squeeze-and-excitation between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


class Joined(nn.Module):
    """Two convolutions side by side, concatenated, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.last = conv(3, 6), conv(6, 8), conv(6, 4, 1), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3))


class Halved(nn.Module):
    """A convolution whose halves are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 12), nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(a + b)


def depthwise(act: type[nn.Module] = nn.ReLU, last: int = 1) -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, act=act), conv(8, 8, 3, groups=8, act=act), conv(8, 6, last, act=act))


class Inverted(nn.Module):
    """An inverted residual: wide, depthwise, squeeze-and-excitation, narrow."""

    def __init__(self, act: type[nn.Module] = nn.Hardswish, last: int = 1) -> None:
        super().__init__()
        self.wide, self.depthwise = conv(3, 8, 1, act=act), conv(8, 8, 3, groups=8, act=act)
        self.down, self.up, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), conv(8, 5, last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.wide(x))
        return self.last(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


def branched_depthwise() -> nn.Module:
    """A depthwise block with branches whose zeros a padding convolution reads."""
    made = (RepVGG(8, 8, 3, padding=1, groups=8, activation=nn.SiLU), conv(8, 5, 3))
    return nn.Sequential(conv(3, 8, 1), *made)


def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 4, 7), nn.ReLU(), nn.Linear(7, 3))


def grouped() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 12, 3, groups=2), conv(12, 4, 1))


def blocks() -> nn.Module:
    made = (ACB(3, 8, 3, padding=1, activation=nn.ReLU), DBB(8, 8, 3, padding=1), nn.ReLU(), RepVGG(8, 8, 3, padding=1))
    return nn.Sequential(*made, nn.ReLU(), nn.Conv2d(8, 4, 1))


def ghost() -> nn.Module:
    """The stem and five of nine stages of a RepGhostNet: with and without gates, strides and equal widths."""
    whole = ub.create_model("repghostnet_050", width=0.1)
    stages = whole.stages[:5]
    return nn.Sequential(whole.stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    side: int = 8
    layers: str = "all"
    options: dict[str, Any] = field(default_factory=dict)

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        network = self.make().double()
        randomise_statistics(network)
        return network

    def images(self) -> Tensor:
        return torch.randn(2, 3, self.side, self.side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def named(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: ub.create_model(name, num_classes=10, **options)


CASES: dict[str, Case] = {
    "squeezed": Case(Squeezed),
    "joined": Case(Joined),
    "depthwise": Case(depthwise),
    "depthwise, hardswish": Case(lambda: depthwise(nn.Hardswish)),
    "depthwise, padded": Case(lambda: depthwise(nn.SiLU, last=3)),
    "depthwise block, padded": Case(branched_depthwise),
    "depthwise, squeezed": Case(Inverted),
    "depthwise, squeezed, padded": Case(lambda: Inverted(nn.SiLU, last=3)),
    "flattened": Case(flattened),
    "grouped": Case(grouped),
    "halves added": Case(Halved),
    "blocks": Case(blocks),
    "resnet, internal": Case(named("resnet8_cifar"), 16, "internal"),
    "resnet, all": Case(named("resnet8_cifar"), 16),
    "resnet of dbb": Case(named("resnet8_cifar", block="dbb", width=4), 16),
    "resnet of acb": Case(named("resnet8_cifar", block="acb", width=4), 16),
    "mobilenet": Case(named("mobilenet_v1"), 32),
    "vgg": Case(named("vgg16_cifar", pruned_widths=[8, 8, 8, 8, 12, 12, 12, 16, 16, 16, 16, 16, 16]), 32),
    "ghost": Case(ghost, 32),
    "densenet": Case(lambda: DenseNet(4, (2, 2), 8, num_classes=5), 32),
    "regnet": Case(named("timm:regnety_002"), 32),
    "mobilenetv3": Case(named("timm:mobilenetv3_small_050"), 32),
}  # fmt: skip


@torch.no_grad()
def with_small_rows(network: nn.Module, graph: PruningGraph, share: float = 0.5, seed: int = 0) -> nn.Module:
    """Compactors that mix, with a share of each unit's rows below the threshold."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, Compactor):
            module.conv.weight += 0.1 * torch.randn(module.conv.weight.shape, generator=generator).to(
                module.conv.weight
            )
    for unit in graph.units:
        small = torch.rand(len(unit), generator=generator) < share
        small[int(torch.randint(len(unit), (), generator=generator))] = False
        for path, rows in unit.rows:
            network.get_submodule(path).conv.weight[rows[small]] *= 1e-8
    return network
