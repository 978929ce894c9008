"""Forwards that go one way or another by what they are given; the inputs here take ways that no proof comes to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, call, conv_bn, row, tensor

ALIKE = "ways that share what merges"
APART = "ways that don't"
ASKED = "what a value is"
HELPERS = "sizes in helpers"
OWN = "convolutions with a forward of their own"

FEW, MANY = tensor(2, 4, 9, 11), tensor(7, 4, 12, 8)
LARGE = tensor(2, 4, 9, 11) + 100.0
BATCHES = (call(FEW), call(MANY))
NUMBERS = (call(FEW), call(LARGE))


class _Normed(nn.Module):
    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=padding), nn.BatchNorm2d(4)


@row(ALIKE, *BATCHES, norms=0)
class FlipsLargeBatches(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 5:
            x = x.flip(-1)
        return self.norm(self.conv(x)).relu()


@row(ALIKE, *BATCHES, norms=0)
class PadsLargeBatches(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        rows, rest = divmod(x.shape[0], 6)
        if rows >= 1 and rest > 0:
            x = F.pad(x, (rest, 0, 0, rows))
        return self.norm(self.conv(x)).relu()


@row(APART, *NUMBERS)
class ClampsLargeNumbers(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 50:
            x = x.clamp(max=50)
        return self.norm(self.conv(x)).relu()


@row(APART, *BATCHES)
class AnotherActivation(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y.relu() if len(x) > 5 else F.gelu(y)


@row(APART, *BATCHES)
class RefusesOddBatches(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 11:
            raise ValueError("eleven")
        assert x.shape[-1] % 7 or x.shape[-2] % 7
        return self.norm(self.conv(x)).relu()


@row(ALIKE, *BATCHES, norms=0)
class AsksAgainAndAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv_bn(4, 4) for _ in range(12)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if x.shape[0] > 5:
                x = x.flip(-1)
            x = block(x).relu()
        return x


@row(ALIKE, *BATCHES, norms=0)
class BranchesInABlockThatBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = FlipsLargeBatches(), PadsLargeBatches(), conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[0] > 6:
            x = x[..., 1:]
        return self.c(self.b(x)).relu()


@row(APART, *BATCHES)
class NormsSmallBatchesAlone(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[0] < 6:
            y = self.norm(y)
        return y.relu()


@row(APART, *NUMBERS)
class NormsSmallNumbersAlone(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() if x.mean() > 50 else self.norm(y).relu()


@row(APART, *BATCHES)
class ConvolvesOnceMore(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 5:
            x = self.conv(x).relu()
        return self.norm(self.conv(x))


@row(APART, *BATCHES)
class LooksBetween(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return z + y.abs() if x.shape[0] > 5 else z.relu()


@row(APART, *BATCHES)
class LooksIntoABlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 5:
            return self.block[0](x).relu()
        return self.block(x).relu()


@row(APART, *BATCHES)
class WalksThroughABlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(conv_bn(4, 4), nn.ReLU(), Block())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] < 6:
            return self.blocks(x)
        y = x
        for layer in self.blocks[0]:
            x = layer(x)
            y = y + x
        return y + self.blocks[2].large[0](y)


@row(APART, *BATCHES)
class ReadsAWeight(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 5:
            x = x * self.conv.weight.abs().mean() + self.norm.bias.sum()
        return self.norm(self.conv(x)).relu()


@row(APART, *BATCHES)
class AnotherNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.a(y) if x.shape[0] > 5 else self.b(y)).relu()


@row(APART, *BATCHES)
class WritesToWhatMayBeItsInput(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y.contiguous() if x.shape[0] > 5 else y.clone()
        z.relu_()
        return self.norm(y) + z


@row(APART, *BATCHES)
class WritesOnOneWay(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[0] > 5:
            y.mul_(2)
        return self.norm(y).relu()


@row(APART, *BATCHES)
class WritesToAViewOnOneWay(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y[:, 1:]
        if x.shape[0] > 5:
            z[:, :, 0] = 3.0
        return self.norm(y).relu()


@row(APART, *BATCHES)
class ActivatesInPlaceOnOneWay(_Normed):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[0] > 5:
            self.act(y)
        return self.norm(y).relu()


@row(APART, *BATCHES)
class WritesToAWeightOnOneWay(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.clone()
        if x.shape[0] > 5:
            weight[:, :, 0] = 0.0
        return self.norm(F.conv2d(x, weight, self.conv.bias)).relu()


@row(APART, *BATCHES)
class WritesToItsOwnOnOneWay(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 5:
            x = F.pad(x, (1, 1)).relu_()
        return self.norm(self.conv(x)).relu()


@row(APART, *BATCHES)
class KeepsAWay(_Normed):
    """What a way leaves behind isn't there for the next one."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x)
        if x.shape[0] > 5:
            self.kept = self.kept.abs()
        return self.norm(self.kept).relu()


@row(APART, *BATCHES)
class ForgetsItsWeightsOnOneWay(_Normed):
    """A way that no image here takes, and that would destroy the source."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 50:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)
            self.half()
        return self.norm(self.conv(x)).relu()


@row(APART, *BATCHES)
class CountsInAnAttribute(_Normed):
    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.norm(self.conv(x)).relu()


class _Flag(nn.Module):
    flag = False

    def forward(self, x: Tensor) -> Tensor:
        self.flag = bool(x.shape[0] > 5)
        return x


@row(APART, *BATCHES)
class ChildThatKeepsAFlag(_Normed):
    def __init__(self) -> None:
        super().__init__()
        self.child = _Flag()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.child(x))
        return self.norm(y.abs() if self.child.flag else y)


@row(APART, *BATCHES)
class CatchesConversions(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        try:
            batch = int(x.shape[0])
        except Exception:
            batch = 2
        return self.norm(y.abs() if batch > 5 else y)


@row(APART, *BATCHES)
class AsksInWords(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y.abs() if f"{x.shape[0]}" == "7" else y)


@row(APART, *BATCHES)
class AnotherTensorOnOneWay(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        factor = torch.tensor([1.0]) if x.shape[0] < 6 else torch.tensor([2.0])
        return self.norm(self.conv(x * factor))


@row(APART, *BATCHES)
class ReplacesItsData(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[0] > 5:
            y.data = y.abs()
        return self.norm(y)


@row(APART, *BATCHES)
class EndsTheProcess(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 50:
            raise SystemExit("too many")
        return self.norm(self.conv(x))


class _Sometimes(nn.Module):
    """Gives a tensor for few images, and something else for many."""

    def __init__(self, give: Callable[[Tensor], Any], other: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give, self.other = give, other

    def forward(self, x: Tensor) -> Any:
        return self.give(x) if x.shape[0] < 6 else self.other(x)


class _AsksWhatItGot(_Normed):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        got, y = self.child(x), self.conv(x)
        return self.norm(y.abs() if got is None or isinstance(got, bool | tuple) else y)


GIVEN: dict[str, Callable[[Tensor], Any]] = {
    "flipped": lambda x: x.flip(-1), "doubled": lambda x: x * 2, "itself": lambda x: x, "activated": torch.relu,
}  # fmt: skip
OTHER: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda _x: None, "a flag": lambda _x: True, "a pair": lambda x: (x, x),
}  # fmt: skip
for _name, _give in GIVEN.items():
    for _word, _other in OTHER.items():
        row(APART, *BATCHES, name=f"child that gives its input {_name} or {_word}")(
            lambda give=_give, other=_other: _AsksWhatItGot(_Sometimes(give, other))
        )


class _Child(_Normed):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return (y, y.abs()) if x.shape[0] > 5 else y


@row(APART, *BATCHES)
class ReturnsOneOrTwo(_Child):
    pass


@row(APART, *BATCHES)
class ChildThatReturnsOneOrTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child, self.last = _Child(), conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.child(x)
        return self.last(y[0] + y[1] if isinstance(y, tuple) else y)


@row(APART, *BATCHES)
class HalvesUntilSmall(_Normed):
    """As many ways as there are sizes."""

    def forward(self, x: Tensor) -> Tensor:
        while x.shape[-1] > 4:
            x = F.max_pool2d(self.norm(self.conv(x)), 2)
        return x


def _along(size: int, kernel: int, stride: int) -> int:
    return max(kernel - stride if size % stride == 0 else kernel - size % stride, 0)


def _padded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    h, w = int(x.shape[-2]), int(x.shape[-1])
    along_h = _along(h, conv.kernel_size[0], conv.stride[0])
    along_w = _along(w, conv.kernel_size[1], conv.stride[1])
    return F.pad(x, (along_w // 2, along_w - along_w // 2, along_h // 2, along_h - along_h // 2), "constant", 0.0)


@row(HELPERS, norms=0)
class HelperThatConverts(nn.Module):
    """As transformers' ``apply_tf_padding``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(_padded(x, self.conv))).relu()


@row(HELPERS, norms=0)
class MethodThatConverts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4)

    @staticmethod
    def rest(size: float) -> int:
        return int(math.ceil(float(size) / 2) * 2 - size) if isinstance(size, int) else 0

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.rest(int(x.shape[-1])), 0, self.rest(int(x.size(2)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.pad(x))).relu()


@row(HELPERS, norms=0)
class RoundsSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(x, size=(round(x.shape[-2] * 1.5), int(x.shape[-1] * 1.5)))
        return self.norm(self.conv(y)).relu()


class DynamicSame(nn.Conv2d):
    """TensorFlow's padding, written out in the forward, and only where there is something to pad."""

    def forward(self, x: Tensor) -> Tensor:
        ih, iw = x.size()[-2:]
        kh, kw = self.weight.size()[-2:]
        sh, sw = self.stride
        pad_h = max((math.ceil(ih / sh) - 1) * sh + (kh - 1) * self.dilation[0] + 1 - ih, 0)
        pad_w = max((math.ceil(iw / sw) - 1) * sw + (kw - 1) * self.dilation[1] + 1 - iw, 0)
        if pad_h > 0 or pad_w > 0:
            x = F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@row(OWN, norms=0)
def dynamic_same() -> nn.Module:
    return nn.Sequential(DynamicSame(4, 8, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())


@row(OWN, norms=0)
def dynamic_same_in_a_row() -> nn.Module:
    rows = [(DynamicSame(4, 4, k, stride=2), nn.BatchNorm2d(4), nn.ReLU()) for k in (3, 5)]
    return nn.Sequential(*(layer for layers in rows for layer in layers))


class _Mixed(nn.Module):
    """Convolutions of several sizes, each on a part of the channels, and a norm behind all of them, as MixNet has."""

    def __init__(self, split: bool, **options: Any) -> None:
        super().__init__()
        self.split, self.norm = split, nn.BatchNorm2d(12)
        sizes = (3, 5, 7)
        self.convs = nn.ModuleList(DynamicSame(4, 4, k, **options) for k in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(torch.cat([x, x * 2, x.abs()], 1), 4, 1) if self.split else (x, x, x)
        return self.norm(torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)).relu()


for _split in (False, True):
    for _word, _options in {
        "strided": {"stride": 2}, "depthwise": {"groups": 4, "bias": False}, "with bias": {"stride": 2, "bias": True},
    }.items():  # fmt: skip
        row(OWN, norms=0, name=f"dynamic same, mixed, {_word}{', of parts' * _split}")(
            lambda split=_split, options=_options: _Mixed(split, **options)
        )


class _Scaled(nn.Conv2d):
    """Its bias isn't added by the convolution, so a norm can't be put into the two."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if x.shape[0] > 5 else x
        return F.conv2d(x, self.weight) * 2 + self.bias[:, None, None]


class _Forgetful(nn.Conv2d):
    """Without a bias, and it would pass none on."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if x.shape[0] > 5 else x
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class _ReadsItsWeight(nn.Conv2d):
    """Pads with a number that is made of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1), value=1.0) * self.weight.mean() if x.shape[0] > 5 else x
        return F.conv2d(x, self.weight, self.bias)


for _class in (_Scaled, _Forgetful, _ReadsItsWeight):
    row(OWN, *BATCHES, name=f"own forward: {_class.__name__[1:].lower()}")(
        lambda c=_class: nn.Sequential(c(4, 4, 3, bias=c is not _Forgetful), nn.BatchNorm2d(4), nn.ReLU())
    )


@row(OWN)
class SharedByTwo(nn.Module):
    """One convolution with a forward of its own at two places, with one norm behind each: it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = DynamicSame(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x)).relu())).relu()


# --- what a value is, and whether a set holds it ---


@row(ASKED, *BATCHES)
class AsksForATensorFirst(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if isinstance(x, Tensor) and x.shape[0] > 5:
            y = y * 2
        return self.norm(y).relu()


@row(ASKED, *BATCHES)
class AsksForANumberFirst(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y, n = self.conv(x), x.shape[0]
        if isinstance(n, int) and n > 5:
            y = y.relu()
        return self.norm(y).relu()


@row(ASKED, *BATCHES)
class LooksIntoASet(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if x.shape[0] in {7, 8} else y).relu()


@row(ASKED, *BATCHES)
class LooksForAShape(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if x.shape in {(7, 4, 12, 8)} else y).relu()


@row(ASKED, *BATCHES)
class LooksIntoATable(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * {7: 2.0}.get(x.shape[0], 1.0)).relu()


@row(ASKED, call(FEW), call(tensor(1, 4, 5, 5)))
class CutsToSixteen(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y if x[..., :8].shape[-1] == 8 else y * 2).relu()


@row(ASKED)
class AsksForGradients(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if torch.is_grad_enabled() else y).relu()


@row(ASKED, *BATCHES, norms=0)
class TakesListsToo(_Normed):
    def forward(self, x: Tensor) -> list[Tensor]:
        images = x if isinstance(x, list | tuple) else [x]
        return [self.norm(self.conv(image)).relu() for image in images]


@row(ASKED, *BATCHES, norms=0)
class WantsATensor(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("a tensor")
        return self.norm(self.conv(x)).relu()


@row(ASKED, *BATCHES, norms=0)
class PairsOfSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        size: Any = x.shape[-1]
        size = (size, size) if isinstance(size, int) else size
        return F.interpolate(self.norm(self.conv(x)).relu(), size=size)


@row(ASKED, *BATCHES, norms=0)
class AsksForAParameter(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() if isinstance(self.conv.weight, nn.Parameter) else y


@row(ASKED, *BATCHES, norms=0)
class TypeOfTheImages(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() if type(x) is Tensor else self.norm(y * 2)


@row(ASKED, *BATCHES, norms=0)
class TypeOfASize(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() if type(x.shape[-1]) is int else self.norm(y * 2)


@row(ASKED, *BATCHES, norms=0)
class TypeOfAShape(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        known = type(x.shape) is torch.Size and isinstance(x.shape[2:], torch.Size)
        return self.norm(y).relu() if known else self.norm(y * 2)


def _doubled_tensor(y: Any) -> Any:
    return y * 2 if type(y) == Tensor else y  # noqa: E721


@row(ASKED, *BATCHES, norms=0)
class TypeInAFunction(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_doubled_tensor(self.conv(x))).relu()


@row(ASKED, *BATCHES, norms=0)
class TypeAsAKey(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * {Tensor: 2.0, int: 3.0}[type(x)]).relu()


@row(ASKED, *BATCHES, norms=0)
class SubclassOfItsType(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() if issubclass(type(y), Tensor) else self.norm(y * 2)


@row(ASKED, *BATCHES, norms=0)
class MatchesAClass(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        match x:
            case Tensor():
                return self.norm(y).relu()
            case _:
                return self.norm(y * 2)


@row(ASKED, *BATCHES, norms=0)
class NamesItsClass(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() if x.__class__ is Tensor else self.norm(y * 2)


@functools.singledispatch
def _by_class(y: Any) -> Any:
    return y


@_by_class.register(Tensor)
def _of_tensors(y: Tensor) -> Tensor:
    return y * 2


@row(ASKED, *BATCHES, norms=0)
class DispatchesOnTheClass(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_by_class(self.conv(x))).relu()


@row(ASKED, *BATCHES, norms=0)
class AsksForASequence(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if isinstance(x, Sequence) else y).relu()


@row(ASKED, *BATCHES, call(tensor(2, 4, 6, 6), 2.0), call(tensor(2, 4, 6, 6), tensor(2, 4, 6, 6)))
class MatchesAnOption(_Normed):
    def forward(self, x: Tensor, scale: Any = None) -> Tensor:
        y = self.conv(x)
        match scale:
            case float():
                y = y * scale
            case Tensor():
                y = y + scale
        return self.norm(y).relu()


@row(ASKED, *BATCHES, norms=0)
class IsinstanceOfStars(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if isinstance(*(x, Tensor)) else y).relu()


@functools.lru_cache(maxsize=8)
def _twice(size: Any) -> Any:
    return size * 2


@row(ASKED, *BATCHES, norms=0)
class KeepsSizesInACache(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.norm(self.conv(x)).relu(), size=(_twice(x.shape[-2]), _twice(x.shape[-1])))


@row(ASKED, call(tensor(2, 4, 8, 8)), *BATCHES)
class CountsUnlikeSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if len(set(x.shape[2:])) == 1 else y).relu()


@row(ASKED, *BATCHES)
class MakesASetOfSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y * 2 if {x.shape[0]} & {7} else y).relu()


@row(ASKED, *BATCHES)
class MakesATableOfSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y, table = self.conv(x), {x.shape[0]: 1}
        return self.norm(y * 2 if 7 in table else y).relu()


@row(ASKED, *BATCHES)
class CollectsSizes(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y, seen = self.conv(x), {n for n in x.shape}  # noqa: C416
        return self.norm(y * 2 if 7 in seen else y).relu()


@row(ASKED, *BATCHES)
class AsksWhatNothingIsKnownOf(_Normed):
    def forward(self, x: Tensor) -> Tensor:
        y, found = self.conv(x), (x > 0).nonzero()
        return self.norm(y * 2 if isinstance(found, Tensor) else y).relu()


@row(ASKED, *BATCHES, norms=0)
class DrawsForOneImage(nn.Module):
    """The small image that a proof tries as well has a result of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.part = conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x).relu()
        return y + torch.rand_like(y) if len(x) == 1 else y
