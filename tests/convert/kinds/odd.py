"""Odd modules, names and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, call, conv_bn, images, row, tensor

DTYPES = "complex and float64 buffers"
TWICE = "modules used twice"
SHARED = "shared activation modules"
NAMES = "parameters with a name of torch.fx"
DEEP = "deep nesting"
SCRIPTED = "ScriptModule children"
LAZY = "lazy layers"
STORED = "quantised, sparse and float8 tensors"


@row(DTYPES)
class ComplexBuffer(nn.Module):
    """A constant complex factor: the imaginary part is part of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.register_buffer("phase", torch.polar(torch.ones(4), torch.arange(4.0)).view(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * self.phase


class _Locked(nn.Module):
    """Attributes can't be set once it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.block = conv_bn(4, 4, 3)
        self.ready = True

    def __setattr__(self, name: str, value: object) -> None:
        if vars(self).get("ready") and name != "training":
            raise AttributeError(f"{name} can't be set")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).relu()


@row(NAMES, norms=0)
def locked_attributes() -> nn.Module:
    return _Locked()


@row(NAMES, norms=0)
def locked_attributes_inside() -> nn.Module:
    return nn.Sequential(_Locked(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


@row(DTYPES)
class ComplexKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.complex(torch.ones(4, 4, 1, 1), torch.arange(16.0).view(4, 4, 1, 1)))
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return torch.view_as_real(F.conv2d(y.to(self.kernel.dtype), self.kernel))


@row(DTYPES)
class ComplexShift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.register_buffer("shift", torch.complex(torch.ones(1, 4, 1, 1), torch.ones(1, 4, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + self.shift).abs()


@row(DTYPES)
class FourierFilter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.gain = Block(), nn.Parameter(torch.randn(4, 1, 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return torch.fft.irfft2(torch.fft.rfft2(y) * self.gain, s=y.shape[-2:])


@row(DTYPES)
class DoubleBuffer(nn.Module):
    """The output is float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.register_buffer("scale", torch.linspace(0.5, 2, 4, dtype=torch.float64).view(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


@row(DTYPES)
class DoubleMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.arange(4, dtype=torch.float64).view(1, 4, 1, 1))
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block((x - self.mean).to(x.dtype))


@row(DTYPES)
class HalfInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(), nn.Conv2d(4, 4, 1).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x).bfloat16())


@row(DTYPES)
class DoubleInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(), nn.Conv2d(4, 4, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x).double()).float()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + x


@row(TWICE)
class OwnForwardUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.point = Own(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(torch.relu(self.own(x))) + self.point(x)


@row(TWICE)
class UsedInARow(OwnForwardUsedTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.own(x))


@row(TWICE)
class ConvolutionWithTwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.conv(x)) + self.b(self.conv(x.flip(-1)))


@row(TWICE)
def same_module_at_two_places() -> nn.Module:
    own = Own()
    return nn.Sequential(own, nn.ReLU(), own, Block())


@row(TWICE)
def same_norm_behind_two_layers() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.Conv2d(4, 4, 1), norm)


@row(TWICE)
def one_kernel_in_two_layers() -> nn.Module:
    net = nn.Sequential(conv_bn(4, 4), nn.ReLU(), conv_bn(4, 4), Block())
    net[2][0].weight = net[0][0].weight
    return net


@row(TWICE, *images(sizes=((16, 12), (24, 20))))
class HeadOnAPyramid(nn.Module):
    """One head for all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([Own(), Own()])
        self.head = nn.Sequential(conv_bn(4, 4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = []
        for stage in self.body:
            x = F.max_pool2d(stage(x), 2)
            outs.append(self.head(x))
        return outs


class Act(nn.Module):
    """FastViT's idiom: an activation as default argument, one object for all blocks."""

    def __init__(self, act: nn.Module = nn.ReLU()) -> None:  # noqa: B008
        super().__init__()
        self.block, self.act = Block(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.block(x))


class ClassAct(nn.Module):
    nonlinearity = nn.GELU()

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinearity(self.block(x))


@row(SHARED, layers=3, norms=0)
def activation_as_default_argument() -> nn.Module:
    return nn.Sequential(Act(), Act(), Act())


@row(SHARED, layers=2, norms=0)
def activation_as_class_attribute() -> nn.Module:
    return nn.Sequential(ClassAct(), ClassAct())


@row(SHARED, layers=2, norms=0)
def activation_shared_by_levels() -> nn.Module:
    act = nn.ReLU()
    return nn.Sequential(Act(act), nn.Sequential(act, nn.Sequential(Act(act), act)), act)


@row(SHARED)
class SharedActivationUnread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.Hardswish()
        self.a, self.b, self.act = Act(act), Act(act), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.a(x)) if x.mean() > -1e9 else self.b(x)


@row(NAMES)
class ParametersNamedAsFx(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.graph, self.code = (nn.Parameter(torch.randn(1, 4, 1, 1)) for _ in range(3))
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x * self.graph) + self.code - self.conv


@row(NAMES, layers=1, norms=0)
class ModulesNamedAsFx(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph, self.code, self.add_module_ = conv_bn(4, 4), conv_bn(4, 4, 1), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.add_module_(self.graph(x) + self.code(x))


@row(NAMES)
class ParameterNamedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shift = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.conv, self.shift, padding=1))


@row(NAMES)
class ModulesNamedAsWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("class", "1x1", "add", "x", "getattr", "torch", "self"):
            self.add_module(name, conv_bn(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return sum(m(x) for m in self.children())


@row(NAMES)
class Shadowing(nn.Module):
    """Attributes that hide methods of ``nn.Module``'s neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.recompile, self.path, self.name, self.meta = Block(), "no", "a/b", "net", {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * self.meta["a"]


@row(DEEP, *images(sizes=((5, 6), (7, 4))), layers=1, norms=0)
def nested_sequences() -> nn.Module:
    net: nn.Module = conv_bn(4, 4)
    for _ in range(220):
        net = nn.Sequential(net)
    return net


@row(DEEP, *images(sizes=((5, 6), (7, 4))), layers=1, norms=0)
def nested_modules_of_their_own() -> nn.Module:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    net: nn.Module = Block()
    for _ in range(200):
        net = Outer(net)
    return net


@row(DEEP, *images(sizes=((5, 6), (7, 4))))
def long_sequence() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(60) for layer in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh())))


@row(SCRIPTED)
def scripted_child() -> nn.Module:
    return nn.Sequential(Block(), torch.jit.script(conv_bn(4, 4).eval()), Block())


@row(SCRIPTED)
def scripted_activation() -> nn.Module:
    return nn.Sequential(conv_bn(4, 4), torch.jit.script(nn.ReLU6()), Block())


@row(SCRIPTED)
def scripted_root() -> nn.Module:
    return torch.jit.script(nn.Sequential(conv_bn(4, 4), nn.ReLU()).eval())


@row(SCRIPTED)
def traced_child() -> nn.Module:
    return nn.Sequential(torch.jit.trace(conv_bn(4, 4).eval(), torch.zeros(1, 4, 5, 5)), Block())


def _gate(x: Tensor, y: Tensor) -> Tensor:
    return x * torch.sigmoid(y)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    gate = torch.jit.script(_gate)


@row(SCRIPTED)
class ScriptedFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Block(), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return gate(self.a(x), self.b(x))


@row(LAZY)
def lazy_convolution() -> nn.Module:
    return nn.Sequential(Block(), nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())


@row(LAZY)
def lazy_norm_that_has_run() -> nn.Module:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    net(torch.zeros(2, 4, 5, 5))
    return net


@row(LAZY, call(tensor(2, 5)), call(tensor(3, 5)))
def lazy_linear() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.LazyLinear(3))


def stored(change: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A block with a buffer in another format, which the forward converts back."""

    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()
            self.register_buffer("table", change(torch.linspace(-1, 1, 16).view(4, 4)))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.block(x), back(self.table).to(x)[:, :, None, None])

    return Stored


FORMATS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "float8 buffer": (lambda t: t.to(torch.float8_e4m3fn), lambda t: t.float()),
    "sparse buffer": (lambda t: t.relu().to_sparse(), lambda t: t.to_dense()),
    "int8 buffer": (lambda t: (t * 64).round().to(torch.int8), lambda t: t * 0.5),
    "bool buffer": (lambda t: t > 0, lambda t: t),
}
for format_name, (change, back) in FORMATS.items():
    row(STORED, name=format_name)(stored(change, back))


@row(STORED)
class Int8Kernel(nn.Module):
    """A kernel kept in eight bits, with a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.arange(144).sub(72).to(torch.int8).view(4, 4, 3, 3))
        self.scale, self.norm = nn.Parameter(torch.rand(4, 1, 1, 1)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.kernel * self.scale, padding=1))


@row(STORED)
class QuantisedChild(nn.Module):
    """A linear layer that PyTorch quantised dynamically."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = torch.ao.nn.quantized.dynamic.Linear(4, 3)
        kernel = torch.quantize_per_tensor(torch.randn(3, 4), 0.02, 0, torch.qint8)
        self.head.set_weight_bias(kernel, torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean((2, 3)).float())


@row(STORED)
class FakeQuantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.fake_quantize_per_tensor_affine(self.last.weight.float(), 0.05, 0, -128, 127)
        return F.conv2d(self.block(x), kernel.to(x), self.last.bias)


@row(STORED)
class UnusedOddParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.empty = nn.Parameter(torch.empty(0))
        self.register_buffer("nothing", None)
        self.register_buffer("nan", torch.full((3,), float("nan")))
        self.register_parameter("none", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)
