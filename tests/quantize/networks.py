"""Small networks: activations, layers and topologies that equalisation must treat rightly, and what it can scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks import randomised

HOMOGENEOUS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(8, 0.3),
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
    "max_pool": lambda: nn.MaxPool2d(2),
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "adaptive_pool": lambda: nn.AdaptiveAvgPool2d(3),
    "adaptive_max_pool": lambda: nn.AdaptiveMaxPool2d(3),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "channel_shuffle": lambda: nn.ChannelShuffle(2),
    "reflect": lambda: nn.ReflectionPad2d(1),
    "batch_norm": lambda: nn.BatchNorm2d(8),
    "plain batch_norm": lambda: nn.BatchNorm2d(8, affine=False),
}
BORDERS: dict[str, Callable[[], nn.Module]] = {
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "softmax": lambda: nn.Softmax(1),
    "hardshrink": nn.Hardshrink,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "without bias": lambda: nn.Conv2d(8, 8, 3, bias=False),
    "grouped": lambda: nn.Conv2d(8, 8, (3, 1), groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "multiplier": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 3, 2),
    "grouped transposed": lambda: nn.ConvTranspose2d(8, 4, 2, groups=2),
    "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "same": lambda: nn.Conv2d(8, 8, 4, padding="same"),
}


class Function(nn.Module):
    """Layers that a function connects."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor):
                self.register_parameter(name, nn.Parameter(layer))
            else:
                self.add_module(name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def _write_half(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4] += m.b(x)
    return m.c(y.relu_())


def _split(m: Any, x: Tensor) -> Tensor:
    first, second = m.a(x).chunk(2, 1)
    return m.c(torch.cat([second, F.relu(m.b(first))], 1))


def _canvas(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    canvas = x.new_zeros(len(x), 8, y.shape[2] + 2, y.shape[3])
    canvas[:, :, 1:-1] = y
    return m.b(canvas)


def _option_a(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.c(F.relu(m.b(y) + F.pad(y, (0, 0, 0, 0, 2, 2))))


def _by_hand(m: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    y = F.conv2d(x, m.a.weight, m.a.bias, padding=1)
    return m.b(y.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w))


TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Function(
        lambda m, x: m.d((y := F.relu(m.a(x))) + m.c(F.relu(m.b(y)))),
        a=conv(3, 8), b=conv(8, 6), c=conv(6, 8), d=conv(8, 2),
    ),
    "concat": lambda: Function(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), m.b(x)], 1)), a=conv(3, 8), b=conv(3, 4), c=conv(12, 2)
    ),
    "concat with the input": lambda: Function(
        lambda m, x: m.b(torch.cat([F.relu(m.a(x)), x], 1)), a=conv(3, 8), b=conv(11, 2)
    ),
    "dense": lambda: Function(
        lambda m, x: m.c(torch.cat([y := m.a(x), m.b(F.relu(y))], 1)), a=conv(3, 8), b=conv(8, 4), c=conv(12, 2)
    ),
    "shared layer": lambda: Function(
        lambda m, x: m.c(m.b(F.relu(m.b(m.a(x))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)
    ),
    "two consumers": lambda: Function(
        lambda m, x: (m.b(y := F.relu(m.a(x))), m.c(y)), a=conv(3, 8), b=conv(8, 4), c=conv(8, 2)
    ),
    "squeeze and excitation": lambda: Function(
        lambda m, x: m.d((y := F.relu(m.a(x))) * m.c(F.relu(m.b(y.mean((2, 3), keepdim=True)))).sigmoid()),
        a=conv(3, 8), b=conv(8, 4, 1), c=conv(4, 8, 1), d=conv(8, 2),
    ),
    "gate without bound": lambda: Function(
        lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2)
    ),
    "layer scale": lambda: Function(
        lambda m, x: m.b(m.g * m.a(x)), a=conv(3, 8), b=conv(8, 2), g=torch.rand(8, 1, 1)
    ),
    "added parameter": lambda: Function(
        lambda m, x: m.b(m.a(x) + m.g), a=conv(3, 8), b=conv(8, 2), g=torch.rand(8, 1, 1)
    ),
    "write into a slice": lambda: Function(_write_half, a=conv(3, 8), b=conv(3, 4), c=conv(8, 2)),
    "split": lambda: Function(_split, a=conv(3, 8), b=conv(4, 4), c=conv(8, 2)),
    "canvas of zeros": lambda: Function(_canvas, a=conv(3, 8), b=conv(8, 2)),
    "zero channels": lambda: Function(_option_a, a=conv(3, 8), b=conv(8, 12), c=conv(12, 2)),
    "shuffle by hand": lambda: Function(_by_hand, a=conv(3, 8), b=conv(8, 2)),
    "flatten": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)),
    "maximum": lambda: Function(
        lambda m, x: m.c(torch.maximum(m.a(x), m.b(x))), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2)
    ),
    "channels last": lambda: Function(
        lambda m, x: m.b(m.n(F.relu(m.a(x)).permute(0, 2, 3, 1))), a=conv(3, 8), n=nn.Linear(8, 6), b=nn.Linear(6, 2)
    ),
    "layer norm": lambda: Function(
        lambda m, x: m.b(m.n(m.a(x).permute(0, 2, 3, 1))), a=conv(3, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 2)
    ),
    "group norm": lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 2)),
    "1d": lambda: Function(
        lambda m, x: m.c(F.relu(m.b(m.a(x.flatten(2))))), a=nn.Conv1d(3, 8, 3), b=nn.ConvTranspose1d(8, 6, 3, 2),
        c=nn.Conv1d(6, 2, 1),
    ),
    "3d": lambda: Function(
        lambda m, x: m.c(F.relu(m.b(m.a(x.unsqueeze(2))))), a=nn.Conv3d(3, 8, (1, 3, 3)), b=nn.BatchNorm3d(8),
        c=nn.Conv3d(8, 2, 1),
    ),
}  # fmt: skip

# Nothing of these may be scaled, or only other layers than `a`.
UNSCALABLE: dict[str, Callable[[], nn.Module]] = {
    "output": lambda: Function(lambda m, x: (y := F.relu(m.a(x)), m.b(y)), a=conv(3, 8), b=conv(8, 2)),
    "number in Python": lambda: Function(
        lambda m, x: m.b(y) if float((y := m.a(x)).mean()) > 100 else m.b(F.relu(y)), a=conv(3, 8), b=conv(8, 2)
    ),
    "numpy": lambda: Function(
        lambda m, x: m.b(y := m.a(x)) * float(y.detach().numpy().max()), a=conv(3, 8), b=conv(8, 2)
    ),
    "list": lambda: Function(
        lambda m, x: m.b(y := m.a(x)) * sum(y[0, :, 0, 0].tolist()), a=conv(3, 8), b=conv(8, 2)
    ),
    "computed weight": lambda: Function(
        lambda m, x: m.b(F.conv2d(x, m.a.weight / m.a.weight.norm())), a=conv(3, 8), b=conv(8, 2)
    ),
    "square": lambda: Function(lambda m, x: m.b(m.a(x) ** 2), a=conv(3, 8), b=conv(8, 2)),
    "product with itself": lambda: Function(lambda m, x: m.b((y := m.a(x)) * y), a=conv(3, 8), b=conv(8, 2)),
    "added number": lambda: Function(lambda m, x: m.b(m.a(x) + 0.5), a=conv(3, 8), b=conv(8, 2)),
    "added input": lambda: Function(lambda m, x: m.b(m.a(x) + x), a=conv(3, 3), b=conv(3, 2)),
    "complex": lambda: Function(
        lambda m, x: m.b(torch.fft.ifft2(torch.fft.fft2(m.a(x))).real), a=conv(3, 8), b=conv(8, 2)
    ),
    "bits": lambda: Function(
        lambda m, x: m.b(m.a(x).view(torch.int32).bitwise_and(-256).view(torch.float32)), a=conv(3, 8), b=conv(8, 2)
    ),
    "attention": lambda: Function(
        lambda m, x: m.b(((y := m.a(x).flatten(2)) @ y.transpose(1, 2)).unsqueeze(1)), a=conv(3, 8), b=conv(1, 2)
    ),
    "custom clamp": lambda: Function(lambda m, x: m.b(m.a(x).clamp(0, 3)), a=conv(3, 8), b=conv(8, 2)),
}  # fmt: skip


def with_activation(make: Callable[[], nn.Module]) -> nn.Module:
    return _built(nn.Sequential(nn.Conv2d(3, 8, 3), make(), nn.Conv2d(8, 5, 1)))


def with_layer(make: Callable[[], nn.Module]) -> nn.Module:
    layer: Any = make()
    return _built(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), layer, nn.LeakyReLU(), nn.Conv2d(layer.out_channels, 5, 1))
    )


def topology(make: Callable[[], nn.Module]) -> nn.Module:
    return _built(make())


def _built(network: nn.Module) -> nn.Module:
    return randomised(network, 0).eval()
