"""Forwards that draw, remember, or belong to one instance."""

from __future__ import annotations

import random
import types

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, conv_bn, row

RANDOM = "random kernels and noise"
DROPOUT = "dropout kept on"
STATE = "state kept in attributes"
INSTANCE = "forward put on an instance"


class _WithBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Conv2d(4, 4, 1)


@row(RANDOM)
class RandomKernel(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(self.block(x), torch.randn(4, 4, 3, 3).to(x), padding=1))


@row(RANDOM)
class NoisyKernel(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        kernel = self.head.weight + 0.5 * torch.randn_like(self.head.weight)
        return F.conv2d(self.block(x), kernel, self.head.bias)


@row(RANDOM)
class NoisyBias(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.head.weight, torch.empty_like(self.head.bias).uniform_(-1, 1))


@row(RANDOM)
class NoiseBetweenLayers(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return self.head(y + torch.randn_like(y))


@row(RANDOM)
class NoiseOfOneChannel(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x) + torch.randn(1, 4, 1, 1).to(x))


@row(RANDOM)
class PythonsRandom(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) * (1 + random.random())


@row(RANDOM)
class NumpysRandom(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) * float(np.random.rand() + 1)


@row(RANDOM)
class RandomOrder(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)[:, torch.randperm(4)])


@row(RANDOM)
class RandomMaskOfAKernel(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full_like(self.head.weight, 0.5))
        return self.block(x) + F.conv2d(x, self.head.weight * mask)


@row(DROPOUT)
class DropoutAlways(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.block(x), 0.5, training=True))


@row(DROPOUT)
class DropoutByDefault(_WithBlock):
    """``F.dropout`` without ``training`` drops in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout2d(self.block(x)))


@row(DROPOUT)
class DropoutOfTheKernel(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.block(x), torch.dropout(self.head.weight, 0.5, True), self.head.bias)


@row(DROPOUT, also=lambda net, *_: net.drop.training)
class DropoutSwitchedOnByForward(_WithBlock):
    """Monte Carlo dropout: the forward puts the layer into training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        return self.head(self.drop(self.block(x)))


class Stubborn(nn.Dropout):
    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)


@row(DROPOUT)
class DropoutWhoseModeStays(_WithBlock):
    def __init__(self) -> None:
        super().__init__()
        self.drop = Stubborn(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.block(x)))


@row(STATE, also=lambda net, *_: net.h)
class KeepsItsOutput(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        self.h = self.block(x)
        return self.head(self.h)


@row(STATE, also=lambda net, *_: net.blocks[0].h)
class ReadsAChildsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList([KeepsItsOutput(), Block()]), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x) + self.blocks[0].h


@row(STATE)
class PreviousOutputIsAdded(_WithBlock):
    def __init__(self) -> None:
        super().__init__()
        self.previous = None

    def forward(self, x: Tensor) -> Tensor:
        mean = self.block(x).mean((0, 2, 3), keepdim=True)
        y = self.head(x) + (0 if self.previous is None else self.previous)
        self.previous = mean
        return y


@row(STATE, also=lambda net, *_: net.steps)
class CountsInPython(_WithBlock):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.block(x) if self.steps % 2 else self.head(x)


@row(STATE, also=lambda net, *_: [tuple(t.shape) for t in net.log])
class AppendsToAList(_WithBlock):
    def __init__(self) -> None:
        super().__init__()
        self.log = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        self.log.append(y)
        return self.head(y)


@row(STATE, also=lambda net, *_: net.block.size)
class SizeLeftOnAChild(_WithBlock):
    def forward(self, x: Tensor) -> Tensor:
        self.block.size = tuple(x.shape[-2:])
        return self.head(self.block(x))


@row(STATE)
class FirstCallBuilds(_WithBlock):
    """A bias is made by the first call, from its input."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "shift"):
            self.shift = x.detach().mean()
        return self.head(self.block(x)) + self.shift


@row(INSTANCE)
def closure_as_forward() -> nn.Module:
    net = _WithBlock()
    net.forward = lambda x: net.head(net.block(x)) * 2
    return net


@row(INSTANCE)
def bound_method_as_forward() -> nn.Module:
    net = Block()
    net.forward = types.MethodType(lambda self, x: self.large(x) + self.small(x) * 3, net)
    return net


@row(INSTANCE)
def closure_on_a_child() -> nn.Module:
    block = Block()
    block.forward = lambda x: block.large(x) - block.small(x)
    return nn.Sequential(block, nn.ReLU(), Block())


@row(INSTANCE)
def bound_method_on_a_layer() -> nn.Module:
    """A convolution that pads by itself: a well-known patch of ``nn.Conv2d`` in a finished network."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    net[0].forward = types.MethodType(
        lambda self, x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.weight) * 0.5, net[0]
    )
    return net


@row(INSTANCE)
def forward_of_a_norm_is_the_identity() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net[1].forward = lambda x: x
    return net


@row(INSTANCE)
def other_method_as_forward() -> nn.Module:
    """YOLO's way: ``m.forward = m.forward_fuse``."""

    class Two(_WithBlock):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x))

        def forward_fuse(self, x: Tensor) -> Tensor:
            return self.block(x)

    net = nn.Sequential(Two(), nn.ReLU())
    net[0].forward = net[0].forward_fuse
    return net


@row(INSTANCE)
def conv_forward_on_an_instance() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    net[0]._conv_forward = lambda x, weight, bias: F.conv2d(x, weight.flip(-1), bias, padding=1)
    return net
