"""Forwards that write: into kernels, masks, counters, and tables outside the modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, call, conv_bn, row, tensor

WRITES = "in-place writes to kernels and masks"
COUNTERS = "counters in buffers"
TABLES = "tables kept in caches"


class Masked(nn.Conv2d):
    """A convolution that masks its kernel in its forward."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, 1, 2:] = 0
        self.mask[:, :, 2] = 0


class Written(nn.Module):
    """A block whose first kernel (or a mask of it) is changed by ``write`` before it is used."""

    def __init__(self, write: Callable[[Any], None]) -> None:
        super().__init__()
        self.write = write
        self.conv, self.norm, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.register_buffer("mask", torch.linspace(0, 1.5, 9).reshape(3, 3))
        self.conv.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return self.norm(self.conv(x)) + self.point(x)


def _set(view: Tensor, value: float) -> None:
    view[...] = value


def _iadd(view: Tensor) -> None:
    view += 0.25


def _copy(m: Any) -> None:
    m.conv.weight[:, :, 1, 1].copy_(m.point.weight.detach()[:, :, 0, 0])


WAYS: dict[str, Callable[[Any], Any]] = {
    "mul_": lambda m: m.conv.weight.mul_(m.mask),
    "mul_ of data": lambda m: m.conv.weight.data.mul_(m.mask),
    "mul_ of detach": lambda m: m.conv.weight.detach().mul_(m.mask),
    "out=": lambda m: torch.mul(m.conv.weight, m.mask, out=m.conv.weight),
    "out= of a view": lambda m: torch.add(m.conv.bias[1:], 0.25, out=m.conv.bias[1:]),
    "setitem": lambda m: m.conv.weight.__setitem__((slice(None), slice(None), 1, 1), 0.5),
    "select": lambda m: m.conv.weight.select(2, 1).add_(0.25),
    "narrow": lambda m: m.conv.weight.narrow(0, 1, 2).zero_(),
    "unbind": lambda m: m.conv.weight.unbind(0)[1].mul_(-0.5),
    "chunk": lambda m: m.conv.weight.chunk(2, 0)[1].add_(0.125),
    "split": lambda m: m.conv.weight.split(2)[0].fill_(0.25),
    "transpose": lambda m: m.conv.weight.transpose(2, 3).add_(m.mask),
    "permute": lambda m: m.conv.weight.permute(2, 3, 0, 1).mul_(0.5),
    "T of the point's matrix": lambda m: m.point.weight[:, :, 0, 0].T.add_(torch.eye(4).to(m.mask)),
    "view": lambda m: m.conv.weight.view(4, -1).mul_(0.5),
    "view_as": lambda m: m.conv.weight.view_as(m.conv.weight).add_(0.25),
    "reshape": lambda m: m.conv.weight.reshape(-1)[::2].zero_(),
    "flatten": lambda m: m.conv.weight.flatten(1)[:, :3].zero_(),
    "unsqueeze": lambda m: m.conv.bias.unsqueeze(0).add_(1),
    "squeeze": lambda m: m.point.weight.squeeze().add_(0.25),
    "diagonal": lambda m: m.conv.weight.diagonal(dim1=2, dim2=3).zero_(),
    "as_strided": lambda m: m.conv.weight.as_strided((4,), (36,)).fill_(1),
    "unfold": lambda m: m.conv.bias.unfold(0, 2, 2).mul_(2),
    "expand_as": lambda m: m.conv.weight.expand_as(m.conv.weight).mul_(0.5),
    "swapaxes": lambda m: m.conv.weight.swapaxes(0, 1).mul_(0.5),
    "movedim": lambda m: m.conv.weight.movedim(0, -1).mul_(0.5),
    "tensor_split": lambda m: torch.tensor_split(m.conv.weight, 3)[1].mul_(0.5),
    "unflatten": lambda m: m.conv.weight.unflatten(0, (2, 2)).mul_(0.5),
    "real": lambda m: m.conv.weight.real.mul_(0.5),
    "setattr of data": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data * m.mask),
    "iadd of a view": lambda m: _iadd(m.conv.weight[0]),
    "copy_": _copy,
    "masked_fill_": lambda m: m.conv.weight.masked_fill_(m.mask > 1, 0),
    "index_fill_": lambda m: m.conv.weight.index_fill_(0, torch.tensor([1, 2]), 0.5),
    "clamp_": lambda m: m.conv.weight.clamp_(-0.1, 0.1),
    "foreach": lambda m: torch._foreach_mul_([m.conv.weight, m.point.weight.data], 0.5),
    "lerp_": lambda m: m.conv.weight.lerp_(m.mask.expand_as(m.conv.weight), 0.5),
    "init.zeros_": lambda m: nn.init.zeros_(m.conv.bias.data),
    "mask of the norm": lambda m: m.norm.running_mean.view(2, 2).mul_(0.5),
    "statistics replaced": lambda m: m.norm.running_var.data.copy_(m.norm.running_var * 0.5),
    "slice of the mask": lambda m: (_set(m.mask[1:, 1:], 0.25), m.conv.weight.mul_(m.mask)),
}
for way, write in WAYS.items():
    row(WRITES, name=f"write by {way}")(partial(Written, write))


@row(WRITES, name="weight.data *= mask")
class DataMask(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


@row(WRITES, name="weight.data *= mask, beside a branch")
class DataMaskBeside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masked, self.norm, self.point = DataMask(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.masked(x)) + self.point(x)


@row(WRITES, name="mask of a clone, layers may merge", layers=1, norms=0)
class MaskedClone(nn.Module):
    """The kernel is masked without a write: PixelCNN's way done right."""

    def __init__(self) -> None:
        super().__init__()
        self.masked, self.norm = Masked(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.masked.weight.clone().mul_(self.masked.mask)
        return self.norm(F.conv2d(x, kernel, self.masked.bias, padding=1))


@row(WRITES)
class WriteIntoInput(nn.Module):
    """The caller's image is normalised in place."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].mul_(0.5)
        x.sub_(0.1)
        return self.block(x)


@row(WRITES)
class WriteIntoResultThroughView(nn.Module):
    """A view of the block's output is changed before the output is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        border = y.narrow(2, 0, 1)
        border.zero_()
        return self.head(y)


@row(WRITES)
class WriteThroughAlias(nn.Module):
    """``z`` is ``y``: ReLU in place on one changes the other."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.other, self.act = Block(), conv_bn(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        z = y.view(y.size(0), 4, -1)
        self.act(z)
        return self.other(y) + y


@row(COUNTERS, also=lambda net, *_: net.calls)
class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.block(x)


@row(COUNTERS)
class CounterScalesTheOutput(CountsCalls):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.block(x) * self.calls


@row(COUNTERS, also=lambda net, *_: net.calls)
class CounterReplaced(CountsCalls):
    """The buffer is another tensor after each call."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.block(x)


@row(COUNTERS, also=lambda net, *_: net[0].calls)
def counter_in_a_child() -> nn.Module:
    return nn.Sequential(CounterReplaced(), nn.ReLU(), CountsCalls())


@row(COUNTERS, also=lambda net, *_: net.seen)
class RunningMeanOfInputs(nn.Module):
    """Statistics that are updated in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.register_buffer("seen", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        return self.block(x - self.seen.view(1, -1, 1, 1))


@row(COUNTERS)
class CounterOnTheClass(nn.Module):
    made: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        type(self).made[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).made[0] += 1
        return self.block(x)


@cache
def grid(height: int, width: int) -> Tensor:
    """Anchors as RT-DETR keeps them."""
    return torch.linspace(0, 1, height)[:, None] * torch.linspace(0, 1, width)


@cache
def window(size: int) -> Tensor:
    return torch.ones(4, 1, size, size) / size**2


@cache
def table_of(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(channels, dtype=dtype, device=device).view(1, -1, 1, 1)


class DictCache:
    """A table in a dictionary, filled at first use."""

    def __init__(self) -> None:
        self.kept: dict[Any, Tensor] = {}

    def __call__(self, width: int) -> Tensor:
        if width not in self.kept:
            self.kept[width] = torch.cos(torch.arange(width, dtype=torch.get_default_dtype()))
        return self.kept[width]

    def cache_clear(self) -> None:
        self.kept.clear()


cosines = DictCache()


@row(TABLES, tables=((grid, (9, 11)), (grid, (12, 8))))
class CachedGrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + grid(x.shape[2], x.shape[3])


@row(TABLES, tables=((window, (3,)),))
class CachedKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.block(x), window(3).to(x), padding=1, groups=4)


@row(TABLES, tables=((table_of, (4, torch.float32, torch.device("cpu"))),))
class CachedByDevice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * table_of(x.shape[1], x.dtype, x.device)


@row(TABLES, tables=((cosines, (11,)), (cosines, (8,))))
class CachedInDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + cosines(x.size(-1))


@row(TABLES, also=lambda net, *_: sorted(net.kept))
class CachedInAttribute(nn.Module):
    """The table belongs to the module, a plain dictionary of tensors by size."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.kept = Block(), {}

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        if size not in self.kept:
            self.kept[size] = torch.ones(size).cumsum(-1)
        return self.block(x) + self.kept[size]


@row(TABLES, call(tensor(2, 5, 8)), call(tensor(3, 7, 8)), tables=((cosines, (8,)),))
class CachedBias(nn.Module):
    """Tokens, with a table that goes into a linear layer's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + cosines(8))
