"""RepMLP, a fully connected layer on windows of the image, trained in parallel with convolutions.

Ding, Chen, Zhang, Han, Ding: "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality", CVPR 2022,
https://arxiv.org/abs/2112.11081, section 3.

    y = σ(gate(x)) · join(p(split(x))),   p(x) = BN(FC(x)) + BN(1×1 * x) + BN(3×3 * x)        p deploys as   FC(x) + b

                ┌── gate ────────────────────── σ ────────────────┐
    x ──────────┤         ┌── FC ─────────── BN ──┐               · ── y
                └─ split ─┼── depthwise 1×1 ─ BN ─┼─ + ── join ───┘
                          └── depthwise 3×3 ─ BN ─┘

``split`` cuts the image into windows of h×w and the channels into C/S runs of S; each run of a window is a sample of
shape (S, h, w), whose S channels have one FC each (S "share-sets"). The convolutions pad each window with zeros.

``join`` *permutes* the samples, as published: with P windows and G = C/S runs per image, the sample of window q and
run c has number r = q·G + c, and moves to run r div P and window r mod P. If P or G is 1, as in all layers of RepMLPNet
at its default resolution, this is the identity. Otherwise windows and runs are shuffled, and trained weights depend on
it.

Deviations from the published code: even and non-square kernels, with their centre at tap (k − 1)//2; an image whose
size isn't a multiple of the window raises ``InputError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

from unbranch.blocks.parts import Activation, ChannelGate, DropPath, Size, conv_bn
from unbranch.blocks.spec import ConvSpec, centre
from unbranch.errors import InputError
from unbranch.grids import per_axis


def window_grid(height: int, width: int, window: tuple[int, int]) -> tuple[int, int]:
    """Return the number of windows in an image, ``(rows, columns)``.

    Raises:
        InputError: if height or width isn't a multiple of the window's.
    """
    recording = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if not recording and (height % window[0] or width % window[1]):
        raise InputError(f"height and width of the input must be multiples of `window` {window}, got {height}×{width}")
    return height // window[0], width // window[1]


fx.wrap("window_grid")  # sizes are unknown in tracing


class WindowPerceptron(nn.Module):
    """``BN(FC(x)) + Σ BN(k×k * x)``, samples ``(B, S, h, w)`` to the same; deploys as one FC.

    ``fc`` is a grouped 1×1 convolution of the flattened sample ``(B, S·h·w, 1, 1)``, with a group per share-set. Its
    norm is over the S channels; the convolutions are depthwise, with zero padding.

    Args:
        sharesets: S.
        window: (h, w).
        kernels: sizes of the convolutions.

    Raises:
        InputError: if a kernel occurs twice.
    """

    def __init__(self, sharesets: int, window: tuple[int, int], kernels: Sequence[Size]) -> None:
        super().__init__()
        features = sharesets * window[0] * window[1]
        self.shape, self.features = (sharesets, *window), features
        self.fc = nn.Conv2d(features, features, 1, groups=sharesets, bias=False)
        self.fc_bn = nn.BatchNorm2d(sharesets)
        self.conv_names = tuple(_conv_name(kernel) for kernel in kernels)
        if len(set(self.conv_names)) < len(kernels):
            raise InputError(f"`kernels` must be distinct, got {tuple(kernels)!r}")
        for name, kernel in zip(self.conv_names, kernels, strict=True):
            self.add_module(name, _same_conv_bn(sharesets, kernel))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, *self.shape)  # (B, S, h, w)
        y = self.fc(x.reshape(-1, self.features, 1, 1)).reshape(-1, *self.shape)  # (B, S·h·w, 1, 1) to (B, S, h, w)
        y = self.fc_bn(y)
        for name in self.conv_names:
            y = y + self.get_submodule(name)(x)
        return cast(Tensor, y)


def _conv_name(kernel: Size) -> str:
    return f"conv{kernel}" if isinstance(kernel, int) else "conv" + "x".join(str(k) for k in kernel)


def _same_conv_bn(channels: int, kernel: Size) -> nn.Sequential:
    """A depthwise convolution that preserves the size, and its norm; an even kernel is part of an odd one."""
    shape = per_axis(kernel, 2, "kernels", 1)
    odd = tuple(2 * (k - 1 - centre(k)) + 1 for k in shape)
    half = tuple(k // 2 for k in odd)
    return ConvSpec(channels, channels, odd, (1, 1), half, (1, 1), channels).conv_bn(shape)


class RepMLP(nn.Module):
    """``σ(gate(x)) · join(p(split(x)))``, ``(B, C, H, W)`` to the same, H and W multiples of the window.

    Args:
        channels: C.
        window: (h, w).
        kernels: sizes of the convolutions; None or empty for none.
        sharesets: S, the number of FCs; a divisor of C.
        reduction: C over the hidden channels of the gate.

    Raises:
        InputError: if ``sharesets`` doesn't divide C, or a kernel occurs twice; in ``forward``, if the size of the
            image isn't a multiple of the window.

    Example:
        >>> import torch
        >>> RepMLP(8, (3, 4), sharesets=2)(torch.zeros(1, 8, 6, 8)).shape
        torch.Size([1, 8, 6, 8])
    """

    def __init__(
        self,
        channels: int,
        window: tuple[int, int],
        kernels: Sequence[Size] | None = (1, 3),
        sharesets: int = 1,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        self.window = cast(tuple[int, int], per_axis(window, 2, "window", 1))
        if sharesets < 1 or channels % sharesets:
            raise InputError(f"`sharesets` must divide `channels`, got sharesets={sharesets}, channels={channels}")
        self.channels, self.sharesets = channels, sharesets
        self.gate = ChannelGate(channels, channels // reduction)
        self.perceptron = WindowPerceptron(sharesets, self.window, kernels or ())

    def forward(self, x: Tensor) -> Tensor:
        (h, w), s, runs = self.window, self.sharesets, self.channels // self.sharesets
        height, width = x.size(2), x.size(3)
        grid = window_grid(height, width, self.window)
        y = x.reshape(-1, self.channels, grid[0], h, grid[1], w)
        y = y.permute(0, 2, 4, 1, 3, 5).reshape(-1, s, h, w)  # (B·rows·columns·C/S, S, h, w)
        y = self.perceptron(y).reshape(-1, runs, grid[0], grid[1], s, h, w)
        y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, self.channels, height, width)  # (B, C, H, W)
        return cast(Tensor, y * self.gate(x))


class FFN(nn.Module):
    """``BN(1×1 * GELU(BN(1×1 * x)))``, ``(B, C_in, H, W)`` to ``(B, C_out, H, W)``; channels are C_in by default."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | None = None,
        out_channels: int | None = None,
        activation: Activation = nn.GELU,
    ) -> None:
        super().__init__()
        hidden = hidden_channels or in_channels
        self.fc1 = conv_bn(in_channels, hidden, 1)
        self.act = nn.Identity() if activation is None else activation()
        self.fc2 = conv_bn(hidden, out_channels or in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(x))))


class RepMLPUnit(nn.Module):
    """``z + FFN(BN(z))`` with ``z = x + RepMLP(BN(x))``, ``(B, C, H, W)`` to the same.

    Figure 2.

    Args:
        channels, window, kernels, sharesets, reduction: as for ``RepMLP``.
        expansion: hidden channels of the FFN over C.
        drop_path: rate of stochastic depth of both parts.
    """

    def __init__(
        self,
        channels: int,
        window: tuple[int, int],
        kernels: Sequence[Size] | None = (1, 3),
        sharesets: int = 1,
        reduction: int = 4,
        expansion: int = 4,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.block = RepMLP(channels, window, kernels, sharesets, reduction)
        self.ffn = FFN(channels, channels * expansion)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + cast(Tensor, self.drop_path(self.block(self.norm1(x))))
        return x + cast(Tensor, self.drop_path(self.ffn(self.norm2(x))))
