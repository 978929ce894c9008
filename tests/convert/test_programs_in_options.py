"""Random networks whose options have their parts called otherwise: what is merged has to hold for all of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub

SEEDS = range(36)
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"labels": torch.ones(2)}, {"fast": True}, {"labels": torch.zeros(1), "fast": True},
)  # fmt: skip


class Part(nn.Module):
    """One of eight forwards that use an optional tensor, a number, both or neither."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.large, self.small, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.kind = kind

    def forward(self, x: Tensor, other: Tensor | None = None, number: int = 1) -> Tensor:
        large, small, norm = self.large, self.small, self.norm
        if self.kind == 0:
            return torch.relu(norm(large(x) + small(x)))
        if self.kind == 1:
            return torch.relu(norm(large(x)) + (0 if other is None else other))
        if self.kind == 2:
            return torch.relu(large(x) * number + small(x))
        if self.kind == 3:
            return norm(large(x)) if other is None else norm(small(x) + other)
        if self.kind == 4:
            return torch.relu(large(x) + small(x if other is None else other))
        if self.kind == 5:
            return torch.relu(norm(large(x) * number + small(x)))
        if self.kind == 6:
            return torch.relu(norm(large(x) + x)) if number == 1 else norm(large(x))
        y = large(x) + small(x)
        return torch.relu(y) + (norm(other) if isinstance(other, Tensor) else y)


GIVEN = {
    "itself": lambda x: x, "nothing": lambda _x: None, "doubled": lambda x: 2 * x, "flipped": lambda x: x.flip(-1),
}  # fmt: skip


class Program(nn.Module):
    """Three parts, each given something else if an option is there; with labels its forward may not be readable."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.parts = nn.ModuleList(Part(draw.randrange(8)) for _ in range(3))
        self.ways = [
            [(draw.choice(list(GIVEN)), draw.choice([1, 2]), draw.random() < 0.5) for _ in range(2)] for _ in range(3)
        ]
        self.unreadable, self.example = draw.random() < 0.5, draw.random() < 0.5

    def forward(self, x: Tensor, labels: Tensor | None = None, fast: bool = False) -> Any:
        for part, ways in zip(self.parts, self.ways, strict=True):
            given, number, by_name = ways[labels is not None or fast]
            other = GIVEN[given](x)
            x = part(x, number=number, other=other) if by_name else part(x, other, number)
        if labels is not None and self.unreadable and float(labels.sum()) > 0:
            return x, x.mean()
        return x


def check(seed: int) -> bool:
    """Convert a program and compare it under all options; whether anything was merged."""
    torch.manual_seed(seed)
    network = Program(seed).eval().double()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.normal_()
    images = [torch.randn(2, 4, 7, 9, dtype=torch.float64), torch.randn(3, 4, 8, 6, dtype=torch.float64)]
    plain = ub.collapse(network, images[0] if network.example else None)
    with torch.no_grad():
        for x in images:
            for options in OPTIONS:
                torch.testing.assert_close(plain(x, **options), network(x, **options), rtol=1e-9, atol=1e-9)
    return bool(ub.report(plain).merges)


@pytest.mark.parametrize("seed", SEEDS)
def test_merged_networks_are_the_same_under_all_options(seed: int) -> None:
    check(seed)


def test_some_of_them_merge() -> None:
    assert sum(check(seed) for seed in range(100, 116)) >= 3
