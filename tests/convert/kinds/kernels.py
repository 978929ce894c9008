"""Kernels that a forward puts together, and borders that it writes by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import call, conv_bn, row, tensor

BORDERS = "writes into slices of fresh tensors"
COMPUTED = "kernels put together in the forward"


class BorderOfBias(nn.Module):
    """``K2 * pad(BN(k1 * x))``, where the border is what the norm makes of zeros: DBB's and ECB's idea."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, bias=False)

    def border(self) -> Tensor:
        norm = self.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (norm.bias - norm.running_mean * scale).detach().view(1, -1, 1, 1)


@row(BORDERS, layers=1, norms=0, operations=1)
class BorderBySlices(BorderOfBias):
    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.norm(self.first(x)), (1, 1, 1, 1))
        b = self.border()
        y[:, :, 0:1, :] = b
        y[:, :, -1:, :] = b
        y[:, :, :, 0:1] = b
        y[:, :, :, -1:] = b
        return self.second(y)


@row(BORDERS, layers=1, norms=0, operations=1)
class BorderByFreshTensor(BorderOfBias):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        n, c, h, w = y.shape
        z = y.new_zeros(n, c, h + 2, w + 2)
        z += self.border()
        z[:, :, 1:-1, 1:-1] = y
        return self.second(z)


@row(BORDERS, layers=1, norms=0, operations=1)
class BorderByExpandedBias(BorderOfBias):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        z = self.border().expand(y.size(0), -1, y.size(2) + 2, y.size(3) + 2).clone()
        z[:, :, 1:-1, 1:-1].copy_(y)
        return self.second(z)


@row(BORDERS, layers=1, norms=0, operations=1)
class BorderByNarrow(BorderOfBias):
    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.norm(self.first(x)), (1, 1, 1, 1))
        b = self.border()
        for dim in (2, 3):
            for start in (0, y.size(dim) - 1):
                edge = y.narrow(dim, start, 1)
                edge.copy_(b.expand_as(edge))
        return self.second(y)


@row(BORDERS, layers=1, norms=0, operations=1)
class BorderBySelect(BorderOfBias):
    """A layer's own bias, without norm, written into rows and columns: ECB."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.first.weight, self.first.bias)
        b = self.first.bias.view(1, -1, 1)
        y[:, :, 0, :] = b
        y[:, :, -1, :] = b
        y[:, :, :, 0] = b
        y[:, :, :, -1] = b
        return self.second(y)


@row(BORDERS, layers=1, norms=0, operations=1)
class BorderByCat(BorderOfBias):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        b = self.border()
        side = b.expand(y.shape[0], -1, y.shape[2], 1)
        y = torch.cat([side, y, side], 3)
        top = b.expand(y.shape[0], -1, 1, y.shape[3])
        return self.second(torch.cat([top, y, top], 2))


@row(BORDERS, layers=1, norms=0, operations=1)
class EdgeEnhancing(nn.Module):
    """Several sequences with hand-made borders beside a plain kernel: the sum is one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 1)
        self.scale, self.shift = nn.Parameter(torch.randn(4, 1, 1, 1)), nn.Parameter(torch.randn(4))
        self.register_buffer("sobel", torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(4, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.first(x), (1, 1, 1, 1))
        b = self.first.bias.view(1, -1, 1, 1)
        y[:, :, :1] = b
        y[:, :, -1:] = b
        y[:, :, :, :1] = b
        y[:, :, :, -1:] = b
        return self.plain(x) + F.conv2d(y, self.scale * self.sobel, self.shift, groups=4)


@row(BORDERS)
class BorderOfAnotherConstant(BorderOfBias):
    """The border isn't what the first layer makes of zeros: no convolution with zero padding computes this."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.norm(self.first(x)), (1, 1, 1, 1))
        y[:, :, :1] = 1.5
        y[:, :, -1:] = 1.5
        return self.second(y)


@row(BORDERS)
class HalfOfTheChannelsWritten(nn.Module):
    """FasterNet's partial convolution, done in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_bn(2, 2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :2] = self.conv(y[:, :2])
        return self.norm(y)


@row(BORDERS)
class RowsAlternate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :, ::2] = self.a(x)[:, :, ::2]
        y[:, :, 1::2] = self.b(x)[:, :, 1::2]
        return y


@row(BORDERS)
class Shifted(nn.Module):
    """Channels moved by a point, zeros come in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :2, :, :-1] = x[:, :2, :, 1:]
        y[:, 2:, 1:] = x[:, 2:, :-1]
        return self.conv(y)


class _Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(4, 4, 3, 3) / 6), nn.Parameter(torch.randn(4))
        self.point = nn.Parameter(torch.randn(4, 4, 1, 1) / 2)
        self.norm = nn.BatchNorm2d(4)


ONE = {"layers": 1, "norms": 0, "operations": 1}


@row(COMPUTED, **ONE)
class WeightStandardisation(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, w / std.expand_as(w), self.bias, self.stride, self.padding, self.dilation, self.groups)


@row(COMPUTED, **ONE)
class StandardisedBehindNorm(nn.Module):
    """timm's ``ScaledStdConv2d`` computes the kernel by a batch norm of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(4, 4, 3, padding=1), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.conv.weight.reshape(1, 4, -1)
        w = F.batch_norm(flat, None, None, weight=self.gain * 0.5, training=True, momentum=0.0)
        return F.conv2d(x, w.reshape_as(self.conv.weight), self.conv.bias, padding=1)


@row(COMPUTED, **ONE)
class DiracNet(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.alpha, self.beta = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.register_buffer("delta", nn.init.dirac_(torch.empty(4, 4, 3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, 1, 1, 1)
        unit = F.normalize(self.weight.reshape(4, -1)).view_as(self.weight)
        return F.conv2d(x, self.alpha.view(*shape) * self.delta + self.beta.view(*shape) * unit, self.bias, padding=1)


@row(COMPUTED, **ONE)
class KernelByCloneAndMul(_Kernel):
    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel.clone().mul_(0.5)
        k[:, :, 1:2, 1:2] += self.point
        return F.conv2d(x, k, self.bias, padding=1)


@row(COMPUTED, **ONE)
class KernelInZeros(_Kernel):
    def forward(self, x: Tensor) -> Tensor:
        k = torch.zeros_like(self.kernel)
        for i in range(k.size(0)):
            k[i] = self.kernel[i] / (1 + i)
        k[:, :, 1, 1].add_(self.point[:, :, 0, 0])
        return self.norm(F.conv2d(x, k, padding=1))


@row(COMPUTED, **ONE)
class KernelByOut(_Kernel):
    def forward(self, x: Tensor) -> Tensor:
        k = torch.empty_like(self.kernel)
        torch.mul(self.kernel.detach(), 0.5, out=k)
        return F.conv2d(x, k, self.bias, padding=1)


@row(COMPUTED, **ONE)
class KernelOfDifferences(_Kernel):
    """Central differences: the centre of the kernel minus its sum."""

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel.clone()
        k[:, :, 1, 1] = k[:, :, 1, 1] - self.kernel.sum((2, 3))
        return self.norm(F.conv2d(x, k, self.bias, padding=1))


@row(COMPUTED, **ONE)
class DifferenceOfTwoConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) - 0.7 * F.conv2d(x, self.conv.weight.sum((2, 3))[:, :, None, None])


@row(COMPUTED, **ONE)
class OnlineSum(_Kernel):
    """OREPA's idea: every branch is a kernel, scaled a channel; the sum is applied once, behind it a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.rand(4, 4))
        self.one, self.three = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.Parameter(torch.randn(4, 4, 3, 3))
        self.register_buffer("average", torch.full((4, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        groups = int(self.kernel.size(1) / self.point.size(1))
        product = torch.einsum("ti,othw->oihw", self.one.squeeze(3).squeeze(2), self.three)
        average = torch.einsum("oi,ihw->oihw", self.point[:, :, 0, 0], self.average)
        k = sum(
            torch.einsum("oihw,o->oihw", branch, self.scales[j])
            for j, branch in enumerate((self.kernel, product, average, F.pad(self.point, (1, 1, 1, 1))))
        )
        return self.norm(F.conv2d(x, k, padding=1, groups=groups))


@row(COMPUTED, **ONE)
class KernelByDevice(_Kernel):
    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(4, device=self.kernel.device, dtype=self.kernel.dtype)
        k = self.kernel.cuda() if self.kernel.is_cuda else self.kernel
        return F.conv2d(x, k + F.pad(eye[:, :, None, None], (1, 1, 1, 1)), self.bias, padding=1)


@row(COMPUTED, **ONE)
class SpectralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        largest = torch.linalg.matrix_norm(self.conv.weight.flatten(1), 2)
        return F.conv2d(x, self.conv.weight / largest, self.conv.bias, padding=1)


@row(COMPUTED, call(tensor(2, 5)), call(tensor(7, 5)), layers=1)
class LowRank(nn.Module):
    """A linear layer with an adapter of low rank, merged in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight + self.b @ self.a * 0.5, self.linear.bias)


@row(COMPUTED)
class KernelOfTheInput(_Kernel):
    """Dynamic convolution: the kernel depends on the image, and nothing may merge."""

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel.clone()
        k.mul_(x.mean())
        return self.norm(F.conv2d(x, k, padding=1))


@row(COMPUTED)
class KernelResized(_Kernel):
    """A kernel as large as the image asks for."""

    def forward(self, x: Tensor) -> Tensor:
        size = 2 * (x.shape[-1] // 4) + 1
        k = F.interpolate(self.kernel, size=(size, size), mode="nearest")
        return F.conv2d(x, k, padding=size // 2)
