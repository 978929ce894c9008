"""The row of the corpus, and the decorator that adds one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_generator = torch.Generator().manual_seed(15)


@dataclass(frozen=True)
class Call:
    """Arguments of one forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A network of one kind, and what is called and expected of it.

    ``calls`` are made one after the other, on the same network; the first is the example. ``also`` is what else other
    code reads of the network after each call. ``layers`` (convolutions and linear layers), ``norms`` (batch norms) and
    ``operations`` (everything that is launched, at most) are what the first call of the result runs. ``tables`` are
    calls of cached functions that the forward makes, outside the modules. A row that ``needs_example`` takes inputs of
    a size that nobody can guess; without one the report has to say so.
    """

    kind: str
    name: str
    make: Callable[[], nn.Module]
    calls: tuple[Call, ...] = field(repr=False)
    also: Callable[..., Any] | None = None
    layers: int | None = None
    norms: int | None = None
    operations: int | None = None
    tables: tuple[tuple[Any, tuple[Any, ...]], ...] = ()
    needs_example: bool = False


ROWS: list[Row] = []


def tensor(*shape: int) -> Tensor:
    """Normal numbers, from a generator of the corpus's own."""
    return torch.randn(shape, generator=_generator)


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


def images(channels: int = 4, sizes: Sequence[tuple[int, ...]] = ((9, 11), (12, 8))) -> tuple[Call, ...]:
    """Calls with images of these sizes, in batches of two and three."""
    return tuple(call(tensor(batch, channels, *size)) for batch, size in zip((2, 3), sizes, strict=True))


def row(kind: str, *calls: Call, name: str = "", **expected: Any) -> Callable[[Any], Any]:
    """Add a class, or a function that makes a network, as a row; named after it unless ``name`` is given."""

    def add(make: Any) -> Any:
        words = name or re.sub(r"(?<!^)(?=[A-Z])", " ", make.__name__).replace("_", " ").lower()
        ROWS.append(Row(kind, words, make, calls or images(), **expected))
        return make

    return add


class Block(nn.Module):
    """RepVGG's: ``BN(K*x) + BN(k*x) + BN(x)``, without activation, so that it merges into one convolution."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.large = conv_bn(channels, channels, 3)
        self.small = conv_bn(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x) + self.norm(x)


def conv_bn(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    """A convolution that keeps sizes, and its norm."""
    options = {"padding": size // 2, "bias": False, **options}
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, **options), nn.BatchNorm2d(outputs))
