"""Where the merged layer goes, and how far merging pays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, call, conv_bn, images, row, tensor

METHODS = "methods called forward_..."
YOLO = "YOLO's list of layers with attributes"
NORMS = "norms behind a concatenation, a split or rows"
UNRUN = "parts that no forward runs"
SHARED = "an activation that many blocks share"
MEAN = "a norm before a global mean and a linear layer"
UNLIKE = "an unlike branch in the middle of a sum"
IDENTITY = "activations that are the identity"
DILATION = "huge dilations"
DEAD = "results that nobody reads"

ONE = {"layers": 1, "norms": 0}


@row(METHODS, **ONE)
class ForwardFuse(Block):
    """RepConv of the YOLO world, whose own fused form was never made."""

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def fuseforward(self, x: Tensor) -> Tensor:
        return self.act(self.rbr_reparam(x))


@row(METHODS, layers=3, norms=0)
class ForwardSplit(nn.Module):
    """C2f: the same layers, by split instead of chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.m, self.cv2, self.c = conv_bn(4, 4, 1), Block(2), nn.Conv2d(6, 4, 1), 2

    def forward(self, x: Tensor) -> Tensor:
        y = list(F.relu(self.cv1(x)).chunk(2, 1))
        y.append(F.relu(self.m(y[-1])))
        return self.cv2(torch.cat(y, 1))

    def forward_split(self, x: Tensor) -> Tensor:
        y = list(F.relu(self.cv1(x)).split((self.c, self.c), 1))
        y.append(F.relu(self.m(y[-1])))
        return self.cv2(torch.cat(y, 1))


@row(METHODS, also=lambda net, x: net.forward_features(x))
class ForwardFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = conv_bn(4, 4), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@row(METHODS, also=lambda net, x: net.forward_intermediates(x))
class ForwardIntermediates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(conv_bn(4, 4), conv_bn(4, 4, 1), Block())

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        outs = []
        for stage in self.stages:
            x = stage(x)
            outs.append(x)
        return outs

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


@row(METHODS, also=lambda net, x: net.hidden_states(x))
class WalksDeep(nn.Module):
    """Other code goes through the blocks of the stages, by position and in a comprehension."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(conv_bn(4, 4), conv_bn(4, 4, 1)) for _ in range(2)])

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        found = [x]
        for j, stage in enumerate(self.stages):
            found += [block(x) for block in (stage[:1] if j else stage)]
            x = stage[1](stage[0](x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class _Flat(nn.Module):
    """As VGG and DenseNet: all layers in one sequence, which other methods walk through."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@row(METHODS, layers=2, norms=0, also=lambda net, x: net.activations(x))
class WalksToTheActivations(_Flat):
    def activations(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


@row(METHODS, layers=2, norms=2, also=lambda net, x: net.everything(x))
class WalksAndKeepsEverything(_Flat):
    def everything(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x.clone())
        return found


@row(METHODS, layers=2, norms=2, also=lambda net, x: net.everything(x, 1.0))
class WalksWithMoreArguments(_Flat):
    """What can't be run can't be proved."""

    def everything(self, x: Tensor, scale: float) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x * scale)
        return found


class Layer(nn.Module):
    """A layer as YOLO's configurations make it: f(rom), i(ndex) and type are set from outside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.act = inner, nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x))


class Concat(nn.Module):
    def __init__(self, d: int = 1) -> None:
        super().__init__()
        self.d = d

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


def _with_attributes(layers: list[nn.Module], sources: list[Any]) -> nn.Sequential:
    for i, (layer, source) in enumerate(zip(layers, sources, strict=True)):
        layer.i, layer.f, layer.type = i, source, type(layer).__name__
        layer.np = sum(p.numel() for p in layer.parameters())
    return nn.Sequential(*layers)


class Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [Layer(Block()), Block(), Layer(conv_bn(4, 4, 1)), Concat(), conv_bn(8, 4, 1), Layer(Block())]
        self.model = _with_attributes(layers, [-1, -1, -1, [-1, 0], -1, -1])
        self.save = [0]

    def forward(self, x: Tensor, profile: bool = False, visualize: bool = False) -> Tensor:
        y = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x


@row(YOLO, also=lambda net, *_: [(m.f, m.i, m.type, m.np) for m in net.model], norms=0)
def yolo() -> nn.Module:
    return Yolo()


@row(YOLO, also=lambda net, *_: [(m.f, m.i, m.type, m.np) for m in net.model])
def yolo_that_cannot_be_traced() -> nn.Module:
    class Once(Yolo):
        def forward(self, x: Tensor, *options: bool) -> Tensor:
            return super().forward(x) if x.mean() > -1e9 else x

    return Once()


@row(YOLO, also=lambda net, *_: [net[0].stride, net[1].names, net[0].note])
def attributes_on_blocks() -> nn.Module:
    net = nn.Sequential(Block(), Block())
    net[0].stride, net[0].note, net[1].names = torch.tensor([8.0, 16.0]), {"a": 1}, ["person", "car"]
    return net


@row(YOLO, also=lambda net, *_: (isinstance(net[0], Block), net[0].describe()))
def class_of_a_part_with_methods() -> nn.Module:
    class Described(Block):
        def describe(self) -> str:
            return "a block"

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    return nn.Sequential(Described(), conv_bn(4, 4, 1))


class LinearNorm(nn.Sequential):
    """LeViT's: the norm is over channels of tokens."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.add_module("c", nn.Linear(a, b, bias=False))
        self.add_module("bn", nn.BatchNorm1d(b))

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


TOKENS = (call(tensor(2, 7, 4)), call(tensor(3, 5, 4)))


@row(NORMS, *TOKENS, **ONE)
def linear_and_norm_of_rows() -> nn.Module:
    return LinearNorm(4, 6)


@row(NORMS, *TOKENS, layers=2, norms=0)
class TokenBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = LinearNorm(4, 8), LinearNorm(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.hardswish(self.up(x)))


@row(NORMS, *TOKENS, **ONE)
class NormOfTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x).transpose(1, 2)).transpose(1, 2)


@row(NORMS, layers=2, norms=0)
class NormBehindCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 2, 5, padding=2), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat([self.a(x), self.b(F.relu(x))], 1)))


@row(NORMS, layers=2, norms=0)
class MixedConvolution(nn.Module):
    """MixNet: channels split, kernels of several sizes, concatenation, norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(2, 2, k, padding=k // 2, groups=2, bias=False) for k in (3, 5)])
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(x), [2, 2], 1)
        return F.relu(self.norm(torch.cat([c(part) for c, part in zip(self.convs, parts, strict=True)], 1)))


@row(NORMS, **ONE)
class NormsBehindSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(x).split([2, 4], 1)
        return F.relu(self.a(a)), torch.tanh(self.b(b))


@row(NORMS, norms=0)
class NormBehindPartial(nn.Module):
    """A third of the channels passes: RepNeXt's and FasterNet's copies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [2, 2], 1)
        return self.last(self.norm(torch.cat([self.conv(a), b], 1)))


@row(NORMS, layers=2, norms=0)
class NormBehindTwoCats(nn.Module):
    """The norm's channels are counted through both, and one part is normed in another module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = conv_bn(4, 3, 3), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(torch.concat((self.a(x), self.b(F.relu(x))), dim=-3)))


@row(NORMS)
class PartIsReadElsewhere(NormBehindCat):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(x)
        return F.relu(self.norm(torch.cat([a, self.b(F.relu(x))], 1))), a


@row(NORMS)
class TheSamePartTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 3, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(F.relu(x))
        return F.relu(self.norm(torch.cat([a, a], 1)))


@row(NORMS, call(tensor(2, 4, 6, 6)), call(tensor(3, 4, 6, 6)))
class NormBehindCatOfRows(nn.Module):
    """Rows are joined, not channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat([self.a(x), self.b(F.relu(x))], 2)))


@row(NORMS, norms=0)
class NormsBehindChunkInTurn(nn.Module):
    """The parts are taken in another order, one of them without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.conv(F.relu(x)).chunk(3, dim=1)
        return F.relu(self.b(parts[2])) * torch.tanh(self.a(parts[0])) + parts[1].sigmoid()


@row(NORMS)
class PartsThatAreAlsoReadWhole(NormsBehindSplit):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        a, b = y.split([2, 4], 1)
        return F.relu(self.a(a)), torch.tanh(self.b(b)), y


@row(MEAN, also=lambda net, x: net.pooled(x))
class PartWithAMethodThatIsAskedFor(nn.Module):
    """The head's features, by a loop over all but its last layer, are what another method of the network returns."""

    class Head(nn.Sequential):
        def features(self, x: Tensor) -> Tensor:
            for layer in list(self)[:-1]:
                x = layer(x)
            return x

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.head = self.Head(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def pooled(self, x: Tensor) -> Tensor:
        return self.head.features(F.relu(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)))


@row(NORMS, also=lambda net, x: net.branches(x))
class MethodRunsTheBranches(NormBehindCat):
    def branches(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(F.relu(x))], 1)


@row(NORMS, call(tensor(2, 4, 13)), call(tensor(3, 4, 20)), **ONE)
def one_dimension() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU())


@row(NORMS, call(tensor(2, 4, 5, 6, 4)), call(tensor(3, 4, 4, 5, 7)), **ONE)
def three_dimensions() -> nn.Module:
    return nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.norm(F.relu(self.conv(x)))))


@row(MEAN, layers=2, norms=0)
def norm_mean_linear() -> nn.Module:
    return Pooled()


@row(MEAN, layers=2, norms=0)
class NormAdaptivePoolLinear(Pooled):
    def pool(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


@row(MEAN, layers=2, norms=0)
class NormMeanOfTokens(Pooled):
    def pool(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


@row(MEAN, layers=2, norms=0)
def norm_pool_sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


@row(MEAN, layers=2, norms=0)
class NormBehindTheMean(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.norm(F.relu(self.conv(x)).mean((2, 3))), 0.5, self.training))


@row(MEAN, layers=2, norms=0)
class NormMeanConvolution(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(4, 3, 1)

    def pool(self, x: Tensor) -> Tensor:
        return F.dropout(x.mean([-2, -1], keepdim=True), 0.5, self.training)


class _OwnMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, y: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.one(y)), self.two(y)], 1)


class _TwoHeads(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.other, self.pool = nn.Linear(4, 5), _OwnMean()

    def forward(self, x: Tensor) -> Any:
        y = self.norm(F.relu(self.conv(x))).mean((2, 3))
        return self.fc(y), self.other(y)


@row(MEAN, layers=3, norms=0)
def norm_mean_two_heads() -> nn.Module:
    return _TwoHeads()


@row(MEAN, layers=3, norms=0)
class NormPoolOfItsOwnTwoHeads(_TwoHeads):
    def forward(self, x: Tensor) -> Any:
        y = self.pool(self.norm(F.relu(self.conv(x))))
        return self.fc(y), self.other(y)


@row(MEAN, layers=3, norms=0)
class NormMeanTwoHeadsInAPart(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.fc = _Heads()

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@row(MEAN)
class NormMeanHeadAndItself(_TwoHeads):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(F.relu(self.conv(x))).mean((2, 3))
        return self.fc(y), self.other(y), y


@row(MEAN)
class NormMeanHeadOfBoth(_TwoHeads):
    """One layer is given the means twice, once as what it multiplies with."""

    def forward(self, x: Tensor) -> Any:
        y = self.norm(F.relu(self.conv(x))).mean((2, 3))
        return self.fc(y), F.linear(y, y)


@row(MEAN)
class NormPoolPaddedConvolution(Pooled):
    """Zeros that the last convolution pads with aren't shifted by the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.pooling = nn.Conv2d(4, 3, 3, padding=1), nn.AvgPool2d(2)

    def pool(self, x: Tensor) -> Tensor:
        return self.pooling(x)


@row(MEAN)
class NormPaddedPool(NormPoolPaddedConvolution):
    """Neither are those of a pool that counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.pooling = nn.Conv2d(4, 3, 3), nn.AvgPool2d(3, 2, 1)


@row(MEAN)
class MeanOfTheBatch(Pooled):
    def pool(self, x: Tensor) -> Tensor:
        return x.mean((0, 2, 3))


@row(MEAN)
class MeanIsReadTwice(Pooled):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(F.relu(self.conv(x))).mean((2, 3))
        return self.fc(y), y


@row(MEAN, also=lambda net, x: net.features(x))
class FeaturesAreNormed(Pooled):
    """Who asks for features gets them normed."""

    def features(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(x)))


@row(MEAN)
class MaximumInstead(Pooled):
    """A norm with scales of both signs doesn't pass through a maximum."""

    def pool(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class Three(nn.Module):
    """``a(x) + dilated(x) + BN(x)``, in any order."""

    order = "adn"

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = conv_bn(4, 4), nn.BatchNorm2d(4)
        self.d = conv_bn(4, 4, 3, dilation=5, padding=5)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (getattr(self, name) for name in self.order)
        return first(x) + second(x) + third(x)


for order in ("adn", "and", "dan"):
    row(UNLIKE, name=f"unlike branch, {order}", layers=2, norms=0)(type("Three", (Three,), {"order": order}))


@row(UNLIKE)
class AddedToAPartInPlace(nn.Module):
    """What is added changes the tensor that it is a part of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(4, 4), conv_bn(4, 2), conv_bn(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        part = y[:, :2]
        part += torch.sigmoid(x[:, :2])
        part += self.b(x)
        part += self.c(x)
        return y


@row(UNLIKE)
class ChangedBetweenSums(Three):
    """One of what is added changes in place after it was added."""

    def forward(self, x: Tensor) -> Tensor:
        a, d = self.a(x), torch.sigmoid(self.d(x))
        y = d + a
        a.mul_(0.5).relu_()
        return y + self.n(x) + a


@row(UNLIKE)
class SumOfFour(Three):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        y += self.d(x)
        return (y + self.n(x)).add(self.a[0](x))


@row(UNLIKE, norms=0, layers=1)
class PoolInTheMiddle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pool = conv_bn(4, 4), conv_bn(4, 4, 1), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.pool(x) + self.b(x)


@row(UNLIKE, norms=0, layers=2)
class GateInTheMiddle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.n = conv_bn(4, 4), conv_bn(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + torch.sigmoid(self.g(x)) + self.n(x)


ACTIVATIONS: dict[str, Any] = {
    "leaky relu of slope one": lambda: nn.LeakyReLU(1.0),
    "prelu of ones": lambda: nn.PReLU(4, init=1.0),
    "hardtanh without bounds": lambda: nn.Hardtanh(float("-inf"), float("inf")),
    "dropout in evaluation": lambda: nn.Dropout(0.5),
}


def _between(make: Any) -> Any:
    return lambda: nn.Sequential(conv_bn(4, 4), make(), conv_bn(4, 4, 1, padding=0))


for act_name, make_act in ACTIVATIONS.items():
    row(IDENTITY, name=act_name, **ONE)(_between(make_act))


@row(IDENTITY, name="prelu of other slopes", layers=2, norms=0)
def other_slopes() -> nn.Module:
    return nn.Sequential(conv_bn(4, 4), nn.PReLU(4, init=0.5), conv_bn(4, 4, 1))


@row(IDENTITY, **ONE)
class ClampWithoutBounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.slope = conv_bn(4, 4), conv_bn(4, 4, 1), 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = torch.clamp(self.a(x), float("-inf"), float("inf"))
        return self.b(F.leaky_relu(y, self.slope))


@row(IDENTITY, also=lambda net, *_: net.slope)
class SlopeThatIsRead(ClampWithoutBounds):
    """Zero slope to start with: the attribute decides, and is no identity."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(self.a(x), self.slope))


@row(DILATION, *images(sizes=((9, 7), (5, 12))), norms=0)
def huge_dilation() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1500, dilation=1500), nn.BatchNorm2d(4), nn.ReLU())


@row(DILATION, *images(sizes=((9, 7), (5, 12))))
class HugeDilationInASum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4, 3, padding=1500, dilation=1500), conv_bn(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


@row(DILATION, call(tensor(2, 4, 30)), call(tensor(3, 4, 41)), norms=0)
def huge_dilation_of_one_dimension() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 4, 3, padding=100_000, dilation=100_000), nn.BatchNorm1d(4), nn.ReLU())


@row(DEAD, **ONE)
class AuxiliaryHeadDropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.aux = Block(), nn.Sequential(conv_bn(4, 4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        aux = self.aux(y)
        return y if aux is not None else aux


@row(DEAD, **ONE)
class OneOfTwoResults(nn.Module):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aux = Block(), conv_bn(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.main(x), F.relu(self.aux(x))

    def __init__(self) -> None:
        super().__init__()
        self.both = self.Both()

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)[0]


@row(DEAD, **ONE)
class LoopWithUnreadLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv_bn(4, 4), conv_bn(4, 4), conv_bn(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for layer in self.layers:
            x = F.relu(layer(x))
            outs.append(x)
        return outs[0]


@row(DEAD, also=lambda net, x: net.segment(x))
class AnotherMethodReadsIt(AuxiliaryHeadDropped):
    def segment(self, x: Tensor) -> Tensor:
        return self.aux(self.block(x))


@row(DEAD, *(call(tensor(2, 4, 5, 6), **options) for options in ({}, {"with_aux": True})))
class ReadByFlag(AuxiliaryHeadDropped):
    def forward(self, x: Tensor, with_aux: bool = False) -> Any:
        y = self.block(x)
        aux = self.aux(y)
        return (y, aux) if with_aux else y


@row(DEAD, *(call(tensor(2, 4, 5, 6), **options) for options in ({}, {"with_aux": True})))
class ReadByAnyKeyword(AuxiliaryHeadDropped):
    def forward(self, x: Tensor, **options: Any) -> Any:
        y = self.block(x)
        aux = self.aux(y)
        return (y, aux) if options.get("with_aux") else y


@row(DEAD)
class UnreadResultThatChangesItsInput(nn.Module):
    """An activation in place: the part's output isn't read, its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.aux = nn.Sequential(nn.ReLU(inplace=True), conv_bn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        self.aux(y)
        return y * 2


@row(DEAD)
class UnreadResultThatIsWrittenIntoItsInput(nn.Module):
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv_bn(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            torch.mul(x, 2.0, out=x)
            return self.conv(x)

    def __init__(self) -> None:
        super().__init__()
        self.block, self.aux = Block(), self.Doubles()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        self.aux(y)
        return y - 1


@row(DEAD, layers=1, norms=0)
class UnreadResultOfAnotherSize(nn.Module):
    """What is made of the unread result wouldn't fit without the part."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.aux = Block(), nn.Sequential(conv_bn(4, 8, 3, stride=2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        aux = self.aux(y)
        _ = aux.chunk(2, 1)
        return y


@row(DEAD, also=lambda net, *_: net.count)
class UnreadResultThatWrites(nn.Module):
    """Nothing reads the auxiliary result, but its layer counts images, and the count stays right."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv_bn(4, 4)
            self.register_buffer("count", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(x.size(0))
            return self.conv(x)

    def __init__(self) -> None:
        super().__init__()
        self.block, self.aux = Block(), self.Counting()

    @property
    def count(self) -> Tensor:
        return self.aux.count

    def forward(self, x: Tensor) -> Tensor:
        self.aux(x)
        return self.block(x)


# --- one activation in many places ---


class _Shared(nn.Module):
    """As YOLO's: the activation belongs to the class."""

    default_act = nn.SiLU()

    def __init__(self, size: int, act: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, size, padding=size // 2, bias=False), nn.BatchNorm2d(4)
        self.act = self.default_act if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _SharedSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.a, self.b = _Shared.default_act, _Shared(3, False), _Shared(1, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.a(x) + self.b(x))


@row(SHARED, layers=4, norms=0)
def shared_activation() -> nn.Module:
    """Traced under a path that is shorter, longer or unlike those of the blocks that are rebuilt."""
    inner = nn.Sequential(_Shared(1), nn.Sequential(_SharedSum()), _SharedSum())
    return nn.Sequential(_Shared(1), inner)


@row(SHARED, layers=2, norms=0)
def shared_activation_found_late() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Sequential(nn.Sequential(_SharedSum()))), _SharedSum())


class _Borrows(nn.Module):
    """Uses an activation and a scale that its caller passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, act: nn.Module, scale: Tensor) -> Tensor:
        return act(self.a(x) + self.b(x)) * scale


@row(SHARED)
class LendsItsParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.parts = conv_bn(4, 4), nn.PReLU(4), nn.ModuleList([_Borrows() for _ in range(2)])
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for part in self.parts:
            x = part(x, self.act, self.scale)
        return x


# --- parts that the network's forward doesn't run ---


class _TrainedWith(nn.Module):
    """An auxiliary head for training that shares its activation with what the forward runs."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = _Shared(1), head

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        return (y, self.head(y)) if self.training else y


@row(UNRUN, layers=1, norms=0, also=lambda net, x: net.head(x))
def trained_with_a_head() -> nn.Module:
    return _TrainedWith(_Shared(3))


@row(UNRUN, layers=1, norms=0, also=lambda net, x: net.head(x))
def trained_with_branches() -> nn.Module:
    return _TrainedWith(nn.Sequential(_SharedSum(), nn.Conv2d(4, 2, 1)))


class _Doubles(nn.Module):
    """Goes by its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.inner:
            x = part(x)
            if x.mean() < 1e9:
                x = x.abs() * 2
        return x


@row(UNRUN, also=lambda net, x: net.head(x))
def trained_with_what_cannot_be_read() -> nn.Module:
    return _TrainedWith(_Doubles())


# --- a form of its own for after training ---


class _Depthwise(nn.Module):
    """RepVGGDW: ``forward_fuse`` runs what is there today, and means what its ``fuse`` will put there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv1 = _Shared(7, False), _Shared(3, False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + self.conv1(x))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    @torch.no_grad()
    def fuse(self) -> None:
        conv = nn.Conv2d(4, 4, 7, padding=3)
        self.conv = conv
        del self.conv1


class _DeletesByName(_Depthwise):
    @torch.no_grad()
    def fuse(self) -> None:
        self.conv = nn.Conv2d(4, 4, 7, padding=3)
        self.__delattr__("conv1")


for _class in (_Depthwise, _DeletesByName):
    row(METHODS, name=f"a form for later: {_class.__name__}", **ONE)(_class)


class _ShowsOneBranch(_Depthwise):
    """Nothing is deleted: one branch is to be had alone."""

    def fuse(self) -> None:
        self.scale = 1.0


row(METHODS, name="a branch alone", also=lambda net, x: net.forward_fuse(x))(_ShowsOneBranch)
