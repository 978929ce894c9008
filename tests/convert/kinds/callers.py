"""What callers pass, walk through, and take apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.table import Block, call, conv_bn, images, row, tensor
from unbranch.blocks import RepVGG

DEFAULTS = "arguments with defaults that callers override"
WALKS = "parents that reach into a child"
FLAGS = "a child called with different flags"
ISINSTANCE = "isinstance in a loop over layers"
KEYWORDS = "keyword calls and None"
OPTIONAL = "optional arguments of the network"
RESULTS = "results that aren't tensors"

A, B = tensor(2, 4, 9, 11), tensor(3, 4, 12, 8)


class Switch(nn.Module):
    """A block that skips its norm when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, normed: bool = True) -> Tensor:
        y = self.conv(x) + self.point(x)
        return self.norm(y) if normed else y


@row(DEFAULTS)
class CallerOverrides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Switch(), Switch()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x, normed=False) + F.relu(self.b(x))


@row(DEFAULTS)
class CallerOverridesOutsideOfWhatIsTraced(nn.Module):
    """The parent branches on numbers, so that only its children can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Switch(), Switch()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x, normed=False)
        return self.b(y, False) if x.mean() > -10 else self.b(y)


@row(DEFAULTS, call(A), call(B), call(A, False), call(B, normed=False))
def root_with_a_flag() -> nn.Module:
    return Switch()


@row(DEFAULTS, call(A), call(B), call(A, normed=False), call(B, False))
class NormByFlag(nn.Module):
    """A convolution and its norm, which could be merged where they stand if the flag weren't there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, normed: bool = True) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if normed else y


@row(DEFAULTS, call(A), call(B), call(A, A[:, :1]), call(B, mask=B[:, :1]))
class MaskBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if mask is not None:
            y = y * mask
        return self.norm(y)


@row(DEFAULTS, call(A, A[:, :1]), call(B), call(A), call(B, B[:, 1:2]))
class MaskOfTheExample(nn.Module):
    """Without the mask, which the example has, another layer stands between the convolution and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.more = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x if mask is None else x * mask)
        return self.norm(self.more(y) if mask is None else y)


@row(DEFAULTS, call(A), call(B), call(A, A[:, :1]), call(B, B[:, :1], B[:, 1:2]))
class AnyNumberOfMasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, *masks: Tensor) -> Tensor:
        y = self.conv(x)
        for mask in masks:
            y = y * mask
        return self.norm(y)


@row(DEFAULTS, call(A), call(B), call(A, depth=1), call(B, 0), layers=3, norms=0)
class DepthByNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv_bn(4, 4), conv_bn(4, 4, 1), conv_bn(4, 4)])

    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        for layer in self.layers[:depth]:
            x = layer(x)
        return x


@row(DEFAULTS, call(A), call(B), call(A, normed=False), call(B, normed=False))
class KeywordsOfAnyKind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if options.get("normed", True) else y


@row(DEFAULTS, call(A), call(B), call(A, return_features=True), call(B, True))
class ReturnsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), conv_bn(4, 3, 1)

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        y = self.block(x)
        return (self.head(y), y) if return_features else self.head(y)


@row(DEFAULTS)
class CallerWantsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = ReturnsFeatures(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, features = self.net(x, return_features=True)
        return y + self.last(features) if y.abs().sum() > 0 else y


@row(DEFAULTS, call(A), call(B), call(A, 2.0), call(B, scale=0.5))
class NumberByDefault(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.point = Block(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.block(x) + self.point(x) * scale


@row(DEFAULTS)
class NumberOverridden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = NumberByDefault(), NumberByDefault()

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x, 3.0)
        return self.two(y, scale=-1.0) if y.mean() > -1e9 else y


@row(DEFAULTS, call(A), call(B), call(A, "circular"))
class ModeByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, mode: str = "constant") -> Tensor:
        return self.norm(self.conv(F.pad(x, (1, 1, 1, 1), mode=mode)))


@row(DEFAULTS, call(A), call(B), call(A, 1, 2), call(A, stages=2))
class HowManyBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: Tensor, *skipped: int, stages: int = 3) -> Tensor:
        for j, block in enumerate(self.blocks[:stages]):
            x = x if j in skipped else torch.relu(block(x))
        return x


class Features(nn.Module):
    """Layers in a row behind a forward that pads odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList([conv_bn(4, 4, 2, stride=2, padding=0), conv_bn(4, 4), nn.ReLU(), conv_bn(4, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        for m in self.f:
            x = m(x)
        return x


@row(WALKS)
class EncoderWithSkips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.last = Features(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = [self.last(self.encoder(x))]
        for m in self.encoder.f:
            x = m(x)
            outs.append(x)
        return outs


class Row3(nn.Sequential):
    """A sequence with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


@row(WALKS)
class WalksThroughASequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = Row3(conv_bn(4, 4), conv_bn(4, 4, 1), conv_bn(4, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = []
        for layer in self.features:
            x = layer(x)
            outs.append(x)
        return outs


@row(WALKS)
class WalksAndCallsTheWhole(WalksThroughASequence):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [*super().forward(x), self.features(x)]


@row(WALKS)
class TakesLayersByIndex(nn.Module):
    """VGG's slices: features up to some layers of a plain sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(4, 4), conv_bn(4, 4, 1), nn.ReLU(), conv_bn(4, 4), conv_bn(4, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.features[:1](x), self.features[:4](x), self.features(x)]


@row(WALKS)
class TakesAPartByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.block(x))) + getattr(self.block, "small")(x)  # noqa: B009


@row(WALKS)
class TakesAPartByNameOutsideOfWhatIsTraced(TakesAPartByName):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return self.block.large[1](y) if y.mean() > -1e9 else y


@row(WALKS)
class ReadsAChildsKernel(TakesAPartByName):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) * self.block.large[0].weight.abs().sum() + self.block.norm.running_mean.mean()


@row(WALKS)
class ReadsAChildsSettings(TakesAPartByName):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) * self.block.large[0].kernel_size[0] * len(list(self.block.children()))


@row(WALKS)
class CollectsByHooklessNames(TakesAPartByName):
    """torchvision's ``IntermediateLayerGetter``: children by name, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"stem": conv_bn(4, 4), "next": conv_bn(4, 4, 1), "last": Block()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = {}
        for name, module in self.body.items():
            x = module(x)
            if name != "stem":
                out[name] = x
        return out


@row(WALKS, call(tensor(2, 4, 8, 12)), call(tensor(3, 4, 9, 7)))
class UnetOfOddSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Block(), Block()])
        self.up = nn.ModuleList([conv_bn(8, 4), conv_bn(8, 4)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.down:
            x = torch.relu(stage(x))
            skips.append(x)
            x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            x = F.interpolate(x, scale_factor=2)[:, :, : skip.shape[2], : skip.shape[3]]
            x = torch.relu(stage(torch.cat([x, skip], 1)))
        return x


@row(WALKS, also=lambda net, x: net.features(x))
class MethodBesidesForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(4, 4), conv_bn(4, 4, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.first(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.features(x))


@row(WALKS, also=lambda net, x: net.encode(x))
def method_of_a_subclass_of_sequential() -> nn.Module:
    class Coder(nn.Sequential):
        def encode(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    return Coder(conv_bn(4, 4), conv_bn(4, 4, 1), conv_bn(4, 4))


@row(FLAGS)
class CalledTwiceWithFlags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Switch()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.a(x, normed=False)


@row(FLAGS)
class CalledTwiceInABranch(CalledTwiceWithFlags):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.a(y, False) if x.mean() > -1e9 else y


@row(FLAGS)
class CalledWithFlagsInALoop(CalledTwiceWithFlags):
    def forward(self, x: Tensor) -> Tensor:
        for normed in (True, False, True):
            x = self.a(x, normed)
        return x


@row(FLAGS)
class CalledWithOtherOptions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = HowManyBlocks()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x, stages=1) + self.a(x, 0)


@row(ISINSTANCE)
class SkipsNorms(nn.Module):
    """The loop knows a norm from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * 2 if isinstance(layer, nn.BatchNorm2d) else layer(x)
        return x


@row(ISINSTANCE)
class SkipsNormsUnread(SkipsNorms):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > -1e9 else x


@row(ISINSTANCE)
class CollectsBehindNorms(SkipsNorms):
    def forward(self, x: Tensor) -> list[Tensor]:
        outs = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                outs.append(x)
        return [*outs, x]


@row(ISINSTANCE)
class PadsByType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), conv_bn(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(F.pad(x, (1, 1, 1, 1), value=1.0)) if type(layer) is nn.Conv2d else layer(x)
            if isinstance(layer, nn.Identity):
                x = x + 100
        return x


@row(ISINSTANCE)
class CountsModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * sum(isinstance(m, nn.Conv2d) for m in self.modules())


class Masked(nn.Module):
    """A block with an optional second argument, as attention and time embeddings are given."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.block(x)
        return y if mask is None else y * mask


@row(KEYWORDS, layers=1, norms=0)
class PassesNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Masked()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)


@row(KEYWORDS, layers=1, norms=0)
class CallsByKeyword(PassesNone):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x=x)


@row(KEYWORDS)
class CallsByKeywordInABranch(PassesNone):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(mask=None, x=x) if x.mean() > -1e9 else x


@row(KEYWORDS)
class PassesAMask(PassesNone):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, mask=(x > 0).to(x))


@row(KEYWORDS)
class LayerByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(input=self.conv(input=x))
        return torch.relu(input=y)


class _SkipFirst(nn.Module):
    """A part that is given more than it reads, as transformers' EfficientNet gives its last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, skip: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _SkipFirstByOperations(_SkipFirst):
    def forward(self, skip: Any, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))


class _SkipLast(_SkipFirst):
    def forward(self, x: Tensor, skip: Any = None) -> Tensor:
        return self.norm(self.conv(x))


class _SkipLastByOperations(_SkipFirst):
    def forward(self, x: Tensor, skip: Any = None, scale: float = 2.0) -> Tensor:
        return self.norm(F.conv2d(x, self.conv.weight * scale, self.conv.bias, padding=1))


class _OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = RepVGG(4, 4, 3, padding=1)

    def forward(self, x: Tensor, skip: Any = None) -> Tensor:
        return self.block(x=x)


class _Around(nn.Module):
    """Calls a part in a way of its own; ``read``, or after a question that can't be read."""

    def __init__(self, part: type[nn.Module], run: Callable[[Any, Tensor], Tensor], read: bool) -> None:
        super().__init__()
        self.part, self.run, self.read = part(), run, read

    def forward(self, x: Tensor) -> Tensor:
        x = x.abs()
        return torch.relu(self.run(self.part, x)) if self.read or x.mean() > -1.0 else x


LAST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by position": lambda part, x: part(x, x),
    "by keyword": lambda part, x: part(skip=x, x=x),
    "with a number": lambda part, x: part(x, 3),
    "alone by keyword": lambda part, x: part(x=x),
    "with None": lambda part, x: part(x, None),
    "with a list": lambda part, x: part(x, skip=[x, "word"]),
}
FIRST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by position": lambda part, x: part(x * 2, x),
    "by keyword": lambda part, x: part(x=x, skip=x),
    "with a number": lambda part, x: part(3, x),
    "with None": lambda part, x: part(None, x=x),
    "with a list": lambda part, x: part([x, "word"], x),
}
for _part, _runs in (
    (_SkipFirst, FIRST), (_SkipFirstByOperations, FIRST),
    (_SkipLast, LAST), (_SkipLastByOperations, LAST), (_OwnBlock, LAST),
):  # fmt: skip
    for _word, _run in _runs.items():
        _name = re.sub(r"(?=[A-Z])", " ", _part.__name__.lstrip("_")).lower().strip()
        row(KEYWORDS, layers=1, norms=0, name=f"{_name}, called {_word}")(
            lambda part=_part, run=_run: _Around(part, run, read=True)
        )
        row(KEYWORDS, name=f"{_name}, called {_word} where that can't be read")(
            lambda part=_part, run=_run: _Around(part, run, read=False)
        )


class _TakesAnyName(nn.Module):
    """Its argument has a name that code around may use as well."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, m: Any = None, forward: Any = None, path: Any = None, node: Any = None) -> Tensor:
        y = torch.relu(self.large(x) + self.small(x))
        return sum((v for v in (m, forward, path, node) if v is not None), y)


for _word in ("m", "forward", "path", "node"):
    row(KEYWORDS, layers=1, name=f"argument called {_word}")(
        lambda word=_word: _Around(_TakesAnyName, lambda part, x: part(x, **{word: x}), read=True)
    )


class _Resizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, size: Any) -> Tensor:
        return F.interpolate(self.large(x) + self.small(x), list(size))


SIZES: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda x: x.shape[-2:], "size": lambda x: x.size()[2:], "tuple": lambda x: tuple(x.shape[-2:]),
    "list": lambda x: [2 * x.shape[-2], x.shape[-1]], "numbers": lambda _x: (7, 5),
}  # fmt: skip
for _word, _size in SIZES.items():
    row(KEYWORDS, layers=1, name=f"part that is given a size as {_word}")(
        lambda size=_size: _Around(_Resizes, lambda part, x: part(x, size(x)), read=True)
    )


@row(KEYWORDS)
class BlocksWithTwoArguments(nn.Module):
    """Blocks of one list that all take ``(x, skip)``."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Masked(), Masked(), Masked()])

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        for block in self.blocks:
            x = torch.relu(block(x, mask))
            mask = x.mean((2, 3), keepdim=True)
        return x


@row(KEYWORDS, call(A), call(B), call(x=A))
class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, *, gain: float = 2.0) -> Tensor:
        return self.block(x) * gain


@row(OPTIONAL, call(A), call(B), call(A, None), call(B, mask=(B > 0).float()))
def root_with_an_optional_mask() -> nn.Module:
    return Masked()


@row(OPTIONAL, call(A), call(B), call(A, True), call(B, return_dict=False), call(pixel_values=A))
class ReturnDict(nn.Module):
    """transformers' signature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = Block(), conv_bn(4, 4, 1)

    def forward(
        self, pixel_values: Tensor | None = None, output_hidden_states: bool | None = None, return_dict: bool = True
    ) -> Any:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        first = torch.relu(self.stem(pixel_values))
        last = self.last(first)
        hidden = (first, last) if output_hidden_states else None
        return {"last": last, "hidden": hidden} if return_dict else (last, hidden)


@row(OPTIONAL, call(A), call(B), call(pixel_values=A), call(A, return_dict=False), norms=0)
class FailsWithoutImages(nn.Module):
    """Its first layer is given None where there are no images, which no layer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixel_values: Tensor | None = None, return_dict: bool = True) -> Any:
        y = torch.relu(self.norm(self.conv(pixel_values)))
        return {"last": y} if return_dict else (y,)


class _TwoArguments(nn.Module):
    """A part with two arguments."""

    def __init__(self, add: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.add = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), add
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor, skip: Any) -> Tensor:
        y = self.norm(self.conv(x))
        if self.add:
            y = y + skip
        return torch.relu(y)


class _TestsIt(_TwoArguments):
    def forward(self, x: Tensor, skip: Any) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + 1 if skip is None or isinstance(skip, int) else self.norm(y * 2) + skip


class _TestsItBefore(_TwoArguments):
    def forward(self, x: Tensor, skip: Any) -> Tensor:
        alone = skip is None
        y = self.conv(x)
        return self.norm(y if alone else y.abs())


class _TakesByIt(_TwoArguments):
    def forward(self, x: Tensor, skip: Any) -> Tensor:
        number = 0 if isinstance(skip, Tensor) else 1
        return self.norms[number](self.conv(x))


class _LetsAnotherTest(_TwoArguments):
    def normed(self, y: Tensor, skip: Any) -> Tensor:
        return self.norm(y) if skip is None else self.norm(y.abs())

    def forward(self, x: Tensor, skip: Any) -> Tensor:
        return self.normed(self.conv(x), skip)


class _PassesItselfOn(_TwoArguments):
    def forward(self, x: Tensor, skip: Any) -> Tensor:
        return _normed(self.norm, self.conv(x), skip)


def _normed(norm: nn.Module, y: Tensor, skip: Any) -> Tensor:
    return norm(y) if skip is None else norm(y.abs())


class _Flagged(_TwoArguments):
    """Returns something else by its other argument, and runs its layers alike."""

    def forward(self, x: Tensor, skip: Any, last: bool = True) -> Any:
        y = self.norm(self.conv(x))
        if skip is None:
            return y
        return torch.relu(y) if last else (y, skip)


class _FlaggedBefore(_TwoArguments):
    def forward(self, x: Tensor, skip: Any, last: bool = True) -> Any:
        y = self.conv(x)
        if skip is not None and last:
            y = y.abs()
        return self.norm(y)


class _WithLabels(nn.Module):
    """Its forward can't be read where there are labels, and gives its part something else then."""

    def __init__(self, part: nn.Module, given: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.part, self.given = part, given

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.part(x, self.given(x, labels is not None))
        if labels is not None and labels.max() > 1:
            return y, (y.mean((1, 2, 3)) - labels).abs().mean()
        return y


PASSED: dict[str, Callable[[Tensor, bool], Any]] = {
    "the same": lambda x, _labelled: x,
    "None": lambda x, labelled: None if labelled else x,
    "a tensor": lambda x, labelled: x if labelled else None,
    "a number": lambda x, labelled: 3 if labelled else x,
}
LABELLED = (call(A), call(B), call(A, labels=torch.tensor([1.0, 2.0])), call(B, torch.tensor([1.0, 2.0, 3.0])))
_KINDS = (
    _TwoArguments, _TestsIt, _TestsItBefore, _TakesByIt, _LetsAnotherTest, _PassesItselfOn, _Flagged, _FlaggedBefore,
)  # fmt: skip
for _kind in _KINDS:
    for _word, _give in PASSED.items():
        if _kind is not _TwoArguments or _word in ("the same", "a number"):
            _name = re.sub(r"(?=[A-Z])", " ", _kind.__name__.strip("_")).lower().strip()
            row(OPTIONAL, *LABELLED, name=f"part with two arguments, {_name}, given {_word} with labels")(
                lambda kind=_kind, give=_give: _WithLabels(kind(), give)
            )


@row(OPTIONAL, call(A), call(B), call(A, scale=tensor(1, 4, 1, 1)), call(B, anything=3))
class AnyKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.block(x) * options.get("scale", 1.0)


@row(OPTIONAL, call([A, A[:, :, ::2]]), call([B]))
class ListOfImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.block(x) for x in xs]


@row(OPTIONAL, call({"image": A}), call({"image": B, "depth": B[:, :1]}))
class DictOfImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y = self.block(batch["image"])
        return y + batch["depth"] if "depth" in batch else y


@row(OPTIONAL, call(A, A[:, :1]), call(B, B[:, :1]), call(A, None))
class TwoImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = conv_bn(4, 4), conv_bn(1, 4)

    def forward(self, image: Tensor, depth: Tensor | None) -> Tensor:
        y = self.rgb(image)
        return y if depth is None else y + self.depth(depth)


@dataclass
class Output:
    logits: Tensor
    features: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), conv_bn(4, 3, 1)


@row(RESULTS)
class ReturnsDataclass(_Two):
    def forward(self, x: Tensor) -> Output:
        y = self.block(x)
        return Output(logits=self.head(torch.relu(y)), features=y)


@row(RESULTS)
class ChildReturnsDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = ReturnsDataclass()

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return out.logits + out.features[:, :3]


@row(RESULTS)
class ReturnsNamedTuple(_Two):
    def forward(self, x: Tensor) -> Pair:
        y = self.block(x)
        return Pair(self.head(torch.relu(y)), y)


@row(RESULTS)
class ReturnsDict(_Two):
    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.block(x)
        return {"out": self.head(torch.relu(y)), "aux": [y, {"size": tuple(y.shape)}]}


@row(RESULTS)
class ReturnsTupleOfOne(_Two):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head(torch.relu(self.block(x))),)


@row(RESULTS, *images())
class ReturnsListAndNone(_Two):
    def forward(self, x: Tensor) -> list[Any]:
        return [self.block(x), None, self.head(x), "label", 3]


# --- options that can't be read ---


class _Options(nn.Module):
    """Runs its blocks one after the other, with options that are passed on to a method that measures."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv_bn(4, 4) for _ in range(3)])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.predict(x, *args, **kwargs)

    def predict(self, x: Tensor, measured: bool = False, at: Any = None) -> Tensor:
        at, found = frozenset(at) if at else {-1}, []
        for j, block in enumerate(self.blocks):
            if measured:
                found.append(float(block(x).mean()))
            x = block(x).relu()
            if j in at:
                return x
        return x


@row(OPTIONAL, call(A), call(B, True), call(A, at=[1]), norms=0)
class PassesOptionsOn(_Options):
    pass


@row(OPTIONAL, call(A), call(B, True), call(A, at=[1]))
class ReachesIntoItsBlocks(_Options):
    """One option shows what is between the layers of a block."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args:
            return self.blocks[0][0](x)
        return self.predict(x, **kwargs)


class _Half(nn.Module):
    """Its norm is left out when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, normed: Any) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if normed is None else y


@row(OPTIONAL, call(A), call(B, True))
class PassesOptionsOnToItsBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Half()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.part(x, args[0] if args else None).relu()


class _AnyNumber(nn.Module):
    """One value or two, the second between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, *values: Tensor) -> Tensor:
        y = self.conv(values[0])
        return self.norm(y + values[1] if len(values) > 1 else y)


row(OPTIONAL, call(A), call(B, B), name="any number of values")(_AnyNumber)


class _OneOrAPair(_AnyNumber):
    def forward(self, x: Any) -> Tensor:
        y = self.conv(x[0] if isinstance(x, tuple) else x)
        return self.norm(y + x[1] if isinstance(x, tuple) else y)


class _Passes(nn.Module):
    def __init__(self, part: nn.Module, pairs: bool) -> None:
        super().__init__()
        self.part, self.pairs = part, pairs

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        if not self.pairs:
            return self.part(x, *more).relu()
        return self.part((x, *more) if more else x).relu()


row(OPTIONAL, call(A), call(B, B), name="passes any number on")(lambda: _Passes(_AnyNumber(), False))
row(OPTIONAL, call(A), call(B, B), name="passes a pair on")(lambda: _Passes(_OneOrAPair(), True))


class _ByKind(nn.Module):
    """What it does with its option depends on what that is."""

    def __init__(self, kinds: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.kinds = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), kinds

    def forward(self, x: Tensor, scale: Any = None) -> Tensor:
        y = self.conv(x)
        if isinstance(scale, self.kinds):
            y = y * (scale[0] if isinstance(scale, list | tuple) else scale)
        return self.norm(y).relu()


for _kinds, _scale in ((float, 2.0), ((int, float), 2), (list | tuple, [2.0]), (Tensor, tensor(1, 4, 1, 1))):
    row(OPTIONAL, call(A), call(B, _scale), name=f"an option of kind {_kinds}")(lambda k=_kinds: _ByKind(k))
