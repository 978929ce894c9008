"""Forwards that read, assert and compare sizes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, call, conv_bn, images, row, tensor

SHAPES = "shapes that are read"
GRID = "RepMLP-like blocks"
BETWEEN = "sizes read between a convolution and its norm"
PADDING = "padding that depends on the size"
BRANCHES = "branches on the size"


class _Normed(nn.Module):
    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=padding, bias=False), nn.BatchNorm2d(4)


MERGED = {"layers": 1, "norms": 0}


@row(SHAPES, **MERGED)
class ReshapeByStar(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y.flatten(2).reshape(*y.shape))


@row(SHAPES, **MERGED)
class ReshapeByList(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        size = list(y.shape)
        return self.norm(y.reshape(size[0], size[1], -1).view(size))


@row(SHAPES, **MERGED)
class RankByLen(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if len(y.shape) == 4 else y


@row(SHAPES, **MERGED)
class RankByDim(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            x = x[None]
        return self.norm(self.conv(x)) if x.ndim != 2 else x


@row(SHAPES, **MERGED)
class AssertsChannels(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 4
        y = self.conv(x)
        assert y.size(1) == self.norm.num_features, "channels"
        return self.norm(y)


@row(SHAPES, **MERGED)
class AssertsBatch(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c = y.shape[:2]
        assert b == x.shape[0]
        return self.norm(y.view(b, c, *y.shape[2:]))


@row(SHAPES, **MERGED)
class RaisesByChannels(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) != 4:
            raise ValueError(f"expected 4 channels, got {x.size(1)}")
        return self.norm(self.conv(x))


@row(SHAPES)
class IteratesOverChunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs, self.norm = nn.ModuleList([nn.Conv2d(1, 1, 3, padding=1) for _ in range(4)]), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [conv(part) for conv, part in zip(self.convs, x.chunk(x.shape[1], dim=1), strict=True)]
        return self.norm(torch.cat(parts, 1))


@row(SHAPES)
class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4, groups=2), conv_bn(4, 4, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.b(y)


@row(SHAPES)
class ScaledBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) / math.sqrt(x.shape[-1] * x.shape[-2])


@row(SHAPES)
class CountsImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return torch.stack([y[i] * (i + 1) for i in range(len(x))])


@row(GRID, call(tensor(2, 4, 6, 10)), call(tensor(3, 4, 3, 5)), norms=0)
class PartitionedPerceptron(nn.Module):
    """A fully connected layer and convolutions on parts of the image, with sizes read from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.w, self.s = 3, 5, 4
        self.fc, self.fc_norm = nn.Conv2d(60, 60, 1, groups=4, bias=False), nn.BatchNorm1d(4)
        self.conv = conv_bn(4, 4, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts_h, parts_w = h // self.h, w // self.w
        x = x.reshape(n, c, parts_h, self.h, parts_w, self.w).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(-1, self.s, self.h, self.w)
        y = self.fc(x.reshape(-1, self.s * self.h * self.w, 1, 1)).reshape(-1, self.s, self.h * self.w)
        y = self.fc_norm(y).reshape(-1, self.s, self.h, self.w) + self.conv(x)
        y = y.reshape(n, parts_h, parts_w, c, self.h, self.w).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(n, c, h, w)


@row(GRID, call(tensor(2, 4, 3, 5)), call(tensor(3, 4, 3, 5)), **MERGED, needs_example=True)
class WholePerceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.fc_norm = nn.Conv2d(60, 60, 1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.conv = conv_bn(4, 4, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == 3
        n, c = x.shape[:2]
        y = self.fc(x.reshape(n, c * 3 * 5, 1, 1)).reshape(n, c, 3, 5)
        return self.fc_norm(y) + self.conv(x.view(-1, c, 3, 5))


@row(GRID, call(tensor(2, 8, 8, 12)), call(tensor(3, 8, 4, 4)), layers=1, norms=0)
class PublishedPerceptron(nn.Module):
    """RepMLP's block as it is published: helpers, six axes, branches that are reshaped each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.C, self.h, self.w, self.S = 8, 4, 4, 2
        self.fc3, self.fc3_bn = nn.Conv2d(32, 32, 1, groups=2, bias=False), nn.BatchNorm2d(2)
        for k in (1, 3):
            self.add_module(f"repconv{k}", conv_bn(2, 2, k, groups=2))

    def partition(self, x: Tensor, h_parts: int, w_parts: int) -> Tensor:
        return x.reshape(-1, self.C, h_parts, self.h, w_parts, self.w).permute(0, 2, 4, 1, 3, 5)

    def affine(self, x: Tensor, h_parts: int, w_parts: int) -> Tensor:
        out = self.fc3(x.reshape(-1, self.S * self.h * self.w, 1, 1))
        out = self.fc3_bn(out.reshape(-1, self.S, self.h, self.w))
        return out.reshape(-1, h_parts, w_parts, self.S, self.h, self.w)

    def forward(self, inputs: Tensor) -> Tensor:
        shape = inputs.size()
        h_parts, w_parts = shape[2] // self.h, shape[3] // self.w
        windows = self.partition(inputs, h_parts, w_parts)
        out = self.affine(windows, h_parts, w_parts)
        images = windows.reshape(-1, self.S, self.h, self.w)
        convolved: Any = 0
        for k in (1, 3):
            convolved += self.get_submodule(f"repconv{k}")(images)
        out += convolved.reshape(-1, h_parts, w_parts, self.S, self.h, self.w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(*shape).sigmoid()


@row(GRID, call(tensor(2, 4, 12)), call(tensor(3, 4, 12)))
class WindowsThatAreWritten(nn.Module):
    """A reshape that is written to between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv, self.norm = nn.Linear(48, 48), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        flat = self.fc(x.reshape(-1, 48))
        x.view(-1, 4, 3, 4).add_(1.0)
        return flat.reshape(-1, 4, 3, 4) + self.norm(self.conv(x.reshape(-1, 4, 3, 4)))


@row(BETWEEN, **MERGED)
class HeightBetween(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        h = y.shape[2]
        y = self.norm(y)
        return torch.relu(y).flatten(2).view(y.size(0), 4, h, -1)


@row(BETWEEN, **MERGED)
class SizeBetween(_Normed):
    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        y = self.conv(x)
        _, _, h, w = y.size()
        return self.norm(y), h, w


@row(BETWEEN, **MERGED)
class TokensBetween(_Normed):
    """A patch embedding that returns its grid."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        y = self.norm(y).flatten(2).transpose(1, 2)
        return y.transpose(1, 2).reshape(b, c, h, w)


@row(BETWEEN, norms=0)
class BatchBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.na, self.b, self.nb = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        size = y.shape[-2:]
        y = torch.relu(self.na(y))
        z = self.b(F.adaptive_avg_pool2d(y, 1))
        batch = z.size(0)
        return F.interpolate(self.nb(z), size=size).view(batch, -1)


class SamePadding(nn.Conv2d):
    """TensorFlow's padding, as timm's ``Conv2dSame``."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, k, s, d in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):
            pads.append(max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0))
        x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@row(PADDING, **MERGED)
def same_padding() -> nn.Module:
    return nn.Sequential(SamePadding(4, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU())


@row(PADDING, layers=2, norms=0)
def same_padding_in_a_row() -> nn.Module:
    return nn.Sequential(
        SamePadding(4, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )


@row(PADDING, **MERGED)
class PadsIfNeeded(_Normed):
    """MobileNetV2's ``apply_tf_padding``: a pad only where one is needed."""

    def __init__(self) -> None:
        super().__init__(padding=0)
        self.conv.stride = (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, w = int(x.shape[-2]), int(x.shape[-1])
        along_h = max(3 - (2 if h % 2 == 0 else h % 2), 0)
        along_w = max(3 - (2 if w % 2 == 0 else w % 2), 0)
        padding = (along_w // 2, along_w - along_w // 2, along_h // 2, along_h - along_h // 2)
        if any(padding):
            x = F.pad(x, padding, "constant", 0.0)
        return torch.relu(self.norm(self.conv(x)))


@row(PADDING, **MERGED)
class PadsOddSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return self.norm(self.conv(x))


@row(PADDING, norms=0)
class PadsToAWindow(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        y = F.pad(x, (0, -w % 4, 0, -h % 4))
        return self.norm(self.conv(y))[:, :, :h, :w]


@row(BRANCHES, norms=0)
class OddOrEven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd, self.even = conv_bn(4, 4), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x) if x.shape[-1] % 2 else self.even(x)


@row(BRANCHES)
class Threshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.last = conv_bn(4, 4), conv_bn(4, 4, 3, stride=2), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.shape[2] > 10:
            x = self.down(x)
        return self.last(x)


@row(BRANCHES)
class ThresholdOnBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm = Block(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(x)) if x.size(0) > 2 else self.block(x)


class _Decoder(nn.Module):
    """A U-Net's: what comes up again is as large as what was kept only where the image could be halved."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv_bn(4, 4), conv_bn(4, 4, 1), conv_bn(4, 4), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.a(x) + self.b(x))
        y = F.interpolate(F.max_pool2d(skip, 2), scale_factor=2)
        y = self.fitted(y, skip)
        return torch.relu(self.c(y) + self.d(y)) + skip

    def fitted(self, y: Tensor, skip: Tensor) -> Tensor:
        if y.shape != skip.shape:
            y = F.pad(y, (0, skip.shape[3] - y.shape[3], 0, skip.shape[2] - y.shape[2]))
        return y


@row(BRANCHES, *images(sizes=((8, 12), (9, 7))))
class FitsIfNeeded(_Decoder):
    pass


@row(BRANCHES, *images(sizes=((16, 8), (18, 14))))
class FitsTwice(_Decoder):
    def fitted(self, y: Tensor, skip: Tensor) -> Tensor:
        y = F.interpolate(F.max_pool2d(y, 4), scale_factor=4)
        height, width = skip.shape[2], skip.shape[3]
        if not (y.size(2) == height and y.size(3) == width):
            y = F.interpolate(y, size=(height, width))
        return y


@row(BRANCHES, *images(sizes=((8, 8), (9, 12))))
class SquareImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if y.shape[2] == y.shape[3] else y


@row(BRANCHES, *images(sizes=((7, 9), (40, 33))))
class Tiles(nn.Module):
    """Large images go through in tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4, 1), conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] <= 16:
            return self.b(self.a(x))
        return torch.cat([self.b(self.a(tile)) for tile in x.split(16, dim=2)], 2)


@row(BRANCHES, call(tensor(2, 4, 9, 11)), call(tensor(4, 9, 11)))
class ImageOrBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x[None])[0] if x.dim() == 3 else self.block(x)


@row(BRANCHES)
class LoopOverSizes(nn.Module):
    """As many layers as the image is large."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.act = conv_bn(4, 4, 2, stride=2, padding=0), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        while x.shape[-1] > 3:
            x = self.act(self.block(x))
        return x
