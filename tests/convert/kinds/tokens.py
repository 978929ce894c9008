"""Norms of tokens: channels on the last axis, behind reshapes to rows and transpositions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.convert.kinds.places import TOKENS, LinearNorm
from tests.convert.kinds.table import call, conv_bn, images, row, tensor

ROWS = "norms of rows"
AXES = "norms behind a transposition"
CHAINS = "chains and sums of tokens"
TRAPS = "reshapes that mix, and axes of one size"

ONE = {"layers": 1, "norms": 0}
GRID = (call(tensor(2, 3, 5, 4)), call(tensor(3, 4, 2, 4)))
SQUARE = (call(tensor(2, 4, 4)), call(tensor(3, 7, 4)))  # as many tokens as channels, then another number


class Between(nn.Module):
    """``back(norm(to(linear(x))), linear(x))``."""

    def __init__(self, to: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor], norm: Any) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), norm(6)
        self.to_rows, self.back = to, back

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.back(self.norm(self.to_rows(y)), y)


def _sizes(y: Tensor) -> list[int]:
    return [y.size(j) for j in range(y.dim())]


TO_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda y: y.flatten(0, 1),
    "function": lambda y: torch.flatten(y, 0, -2),
    "layer": nn.Flatten(0, 1),
    "reshape": lambda y: y.reshape(-1, y.shape[-1]),
    "view of sizes": lambda y: y.view(y.shape[0] * y.shape[1], y.shape[2]),
    "view of number": lambda y: y.view(-1, 6),
}
FROM_ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as": lambda z, y: z.reshape_as(y),
    "view as": lambda z, y: z.view_as(y),
    "shape": lambda z, y: z.view(y.shape),
    "star": lambda z, y: z.reshape(*y.shape),
    "size": lambda z, y: z.view(y.size()),
    "numbers": lambda z, y: z.view(y.shape[0], y.shape[1], -1),
    "unflatten": lambda z, y: z.unflatten(0, (y.shape[0], y.shape[1])),
    "minus one": lambda z, y: torch.reshape(z, (-1, y.shape[1], 6)),
}
for a, b in [*((a, "as") for a in TO_ROWS), *(("flatten", b) for b in FROM_ROWS if b != "as")]:
    row(ROWS, *TOKENS, name=f"rows by {a}, back by {b}", **ONE)(
        lambda a=a, b=b: Between(TO_ROWS[a], FROM_ROWS[b], nn.BatchNorm1d)
    )


@row(ROWS, *GRID, **ONE)
def rows_of_a_grid() -> nn.Module:
    return Between(lambda y: y.flatten(0, 2), lambda z, y: z.view(*y.shape), nn.BatchNorm1d)


@row(ROWS, *GRID, **ONE)
def rows_of_a_grid_in_two_steps() -> nn.Module:
    return Between(
        lambda y: y.flatten(0, 1).flatten(0, 1),
        lambda z, y: z.unflatten(0, (-1, y.shape[2])).reshape_as(y),
        nn.BatchNorm1d,
    )


@row(ROWS, call(tensor(1, 7, 4)), call(tensor(3, 5, 4)), **ONE)
def rows_of_one_image() -> nn.Module:
    return LinearNorm(4, 6)


@row(ROWS, *TOKENS, **ONE)
def rows_that_stay_rows() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Flatten(0, 1), nn.BatchNorm1d(6), nn.ReLU())


@row(ROWS, *TOKENS, **ONE)
def rows_first() -> nn.Module:
    return nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())


@row(ROWS, call(tensor(2, 4, 13)), call(tensor(3, 4, 20)), **ONE)
class RowsOfConv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).transpose(1, 2)
        return self.norm(y.flatten(0, 1)).view(y.shape).relu()


@row(ROWS, **ONE)
class RowsOfAnImage(nn.Module):
    """A norm of tokens behind a convolution of the image, and the tokens as an image again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        z = self.norm(y.flatten(2).transpose(1, 2).reshape(-1, c))
        return z.view(b, h * w, c).transpose(1, 2).reshape(b, c, h, w)


THERE: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda y: y.transpose(1, 2),
    "negative axes": lambda y: torch.transpose(y, -1, -2),
    "permute": lambda y: y.permute(0, 2, 1),
    "list": lambda y: torch.permute(y, [0, 2, 1]).contiguous(),
    "movedim": lambda y: y.movedim(-1, 1),
    "swapaxes": lambda y: y.swapaxes(1, 2),
    "attribute": lambda y: y.mT,
}
for name, there in THERE.items():
    row(AXES, *TOKENS, name=f"norm behind {name}", **ONE)(
        lambda there=there: Between(there, lambda z, _y: z.transpose(1, 2), nn.BatchNorm1d)
    )
    row(AXES, *TOKENS, name=f"norm and activation behind {name}", **ONE)(
        lambda there=there: Between(there, lambda z, _y: F.relu(z), nn.BatchNorm1d)
    )


@row(AXES, *GRID, **ONE)
def norm_of_an_image_with_channels_last() -> nn.Module:
    return Between(lambda y: y.permute(0, 3, 1, 2), lambda z, _y: z.permute(0, 2, 3, 1), nn.BatchNorm2d)


@row(AXES, *GRID, **ONE)
def norm_of_an_image_that_stays() -> nn.Module:
    return Between(lambda y: y.permute(0, 3, 1, 2), lambda z, _y: z.relu(), nn.BatchNorm2d)


@row(AXES, layers=2, norms=0)
class LinearOfAnImage(nn.Module):
    """ConvNeXt's: a pointwise layer with channels on the last axis, in between two transpositions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(6), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        return F.relu(self.norm(self.fc(y).permute(0, 3, 1, 2)))


@row(AXES, *TOKENS, **ONE)
class NormBeforeLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(self.norm(x.transpose(1, 2)).transpose(1, 2)))


@row(AXES, call(tensor(2, 7, 4)), call(tensor(3, 7, 4)), **ONE, needs_example=True)
class NormOfFixedTokens(nn.Module):
    """The number of tokens is a number of the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.position = nn.Parameter(torch.randn(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x + self.position)
        return self.norm(y.view(-1, 6)).view(-1, 7, 6)


@row(CHAINS, *TOKENS, **ONE)
class ChainOfRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(self.norm(y.flatten(0, 1)).reshape_as(y))


@row(CHAINS, *TOKENS, **ONE)
def chain_of_blocks() -> nn.Module:
    return nn.Sequential(LinearNorm(4, 8), LinearNorm(8, 4), nn.GELU())


@row(CHAINS, *TOKENS, **ONE)
class SumOfRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = LinearNorm(4, 4), LinearNorm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + x


@row(CHAINS, *TOKENS, **ONE)
class SumInRows(nn.Module):
    """The sum is taken before the rows are tokens again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.m = nn.Linear(4, 6), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        z = self.n(a.flatten(0, 1)) + self.m(b.view(-1, 6)) * 0.5
        return z.view(x.shape[0], x.shape[1], 6).tanh()


@row(CHAINS, *TOKENS, **ONE)
class SumOfTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.m = nn.Linear(4, 6), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.n(self.a(x).transpose(1, 2)) + self.m(self.b(x).permute(0, 2, 1))
        return z.mT.tanh()


@row(CHAINS, *TOKENS, layers=2, norms=0)
class BranchesBesideRows(nn.Module):
    """The same forward has a norm that moves, and branches for which it is rebuilt."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y = F.relu(self.norm(y.flatten(0, 1))).reshape_as(y)
        return torch.tanh(self.a(y) + self.b(y))


@row(CHAINS, layers=3, norms=0)
class BranchesBesideCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(5)
        self.c, self.d = nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(torch.cat([self.a(x), self.b(F.relu(x))], 1)))
        return self.c(y) + self.d(y)


@row(CHAINS, *TOKENS, layers=2, norms=0)
class SumInTwoArrangements(nn.Module):
    """Tokens and rows of the transposed have one size here, and other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.m = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        z = self.m(b.transpose(1, 2)).reshape(x.shape)
        return self.n(a.flatten(0, 1)).view(a.shape) + z


@row(CHAINS, *TOKENS, layers=3, norms=0)
class Attention(nn.Module):
    """LeViT's, with norms behind each linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = LinearNorm(4, 12), nn.Sequential(nn.Hardswish(), LinearNorm(4, 4))
        self.mlp = LinearNorm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 2, -1).split([2, 2, 2], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        y = ((q @ k).softmax(-1) @ v).transpose(1, 2).reshape(b, n, 4)
        return x + self.mlp(x + self.proj(y))


@row(CHAINS, **ONE)
class ImageAndTokens(nn.Module):
    """A convolution, tokens with a linear layer and a norm, and the image again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        z = self.norm(self.fc(y.flatten(2).transpose(1, 2)).transpose(1, 2))
        return z.view(b, c, h, w).relu()


@row(CHAINS, call(tensor(2, 4, 13)), call(tensor(3, 4, 20)), **ONE)
class PointwiseConvolutionOfTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).transpose(1, 2)).transpose(1, 2).relu()


@row(TRAPS, *SQUARE, **ONE)
class SquareTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x).transpose(1, 2)).transpose(1, 2)


@row(TRAPS, call(tensor(2, 4, 4)), call(tensor(3, 4, 4)), layers=1, norms=1)
class SquareTransposedTwice(SquareTransposed):
    """The tokens are normalised after all."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x).transpose(1, 2).transpose(1, 2)).relu()


@row(TRAPS, *SQUARE, layers=1, norms=1)
class MixingView(SquareTransposed):
    """Not a transposition."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        b, n, c = y.shape
        return self.norm(y.view(b, c, n)).view(b, n, c)


@row(TRAPS, *TOKENS, layers=1, norms=1)
class MixingViewOfOtherTokens(MixingView):
    pass


@row(TRAPS, *SQUARE, layers=2, norms=0)
class MixedTwice(nn.Module):
    """The same numbers in the same places for as many tokens as channels, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = LinearNorm(4, 4), LinearNorm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y.transpose(1, 2).reshape(y.shape).transpose(1, 2).reshape(y.shape)
        return self.b(y)


@row(TRAPS, call(tensor(2, 7, 4)), call(tensor(3, 7, 4)), layers=1, norms=1)
def norm_of_whole_images() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Flatten(1), nn.BatchNorm1d(42), nn.ReLU())


@row(TRAPS, call(tensor(2, 7, 4)), call(tensor(3, 7, 4)), layers=2, norms=0, needs_example=True)
class TokenMixer(nn.Module):
    """A linear layer along the tokens, and a norm of them."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.tokens, self.norm = nn.Linear(4, 7), nn.Linear(7, 7), nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tokens(self.channels(x).transpose(1, 2)).transpose(1, 2))


@row(TRAPS, *TOKENS, layers=1, norms=1)
class NormOfHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return self.norm(self.fc(x).view(b, n, 2, 3).permute(0, 2, 1, 3)).permute(0, 2, 1, 3).reshape(b, n, 6)


@row(TRAPS, *TOKENS, layers=1, norms=1)
class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc(x)
        return F.relu(y), self.norm(y.flatten(0, 1)).reshape_as(y).tanh()


@row(TRAPS, *TOKENS)
class WrittenThroughATransposition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        z = y.swapaxes(1, 2)
        z += 1
        return self.norm(z).mT + y


@row(TRAPS, *TOKENS)
class PerTokenConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.scale = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Parameter(torch.randn(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x).transpose(1, 2) * self.scale
        return self.norm(y + self.scale.flatten()[:, None]).transpose(1, 2).relu()


@row(TRAPS, call(tensor(2, 7, 1)), call(tensor(3, 5, 1)))
class OneChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.last = nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return self.last(self.norm(self.fc(x).view(b, 1, n)).view(b, n, 1)).relu()


@row(TRAPS, call(tensor(2, 1, 4)), call(tensor(3, 1, 4)))
class OneToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.fc(x).view(-1, 6, 1)).squeeze(2).unsqueeze(1)
        return self.last(y).relu()


@row(TRAPS, also=lambda net, x: net.forward_features(x), norms=0)
class TokensWithFeatures(nn.Module):
    """Other code runs the parts one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = conv_bn(4, 4), LinearNorm(4, 6), nn.Linear(6, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.stem(x)).flatten(2).transpose(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean(1))


@row(TRAPS, *images(), layers=2, norms=1)
class WindowsOfAnImage(nn.Module):
    """Channels become points."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.conv(x), 2)
        return self.last(F.relu(self.norm(y)))
