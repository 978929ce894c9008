"""Property: what is known of a tensor's axes holds for inputs of a third size, and what is merged stays right there."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import unbranch as ub
from tests.networks import randomised
from unbranch.convert.passes.reading import read_module
from unbranch.convert.passes.rearrange import rearranged, rearranges, shapes_of
from unbranch.convert.trace.part_examples import PartExamples
from unbranch.errors import NotAffineError
from unbranch.graph.probe import Arguments
from unbranch.rules.arrangement import Arrangement

Step = Callable[[Tensor, Tensor], Tensor]  # a tensor, and one whose sizes may be read


def random_steps(rng: random.Random, channels: int) -> list[Step]:
    """Reshapes and transpositions for tensors of any rank, some of which mix."""

    def axes(x: Tensor) -> list[int]:
        return list(range(x.dim()))

    a, b = rng.randrange(4), rng.randrange(4)
    seed = rng.randrange(10**6)

    def permute(x: Tensor, _like: Tensor) -> Tensor:
        return x.permute(random.Random(seed).sample(axes(x), x.dim()))

    def transpose(x: Tensor, _like: Tensor) -> Tensor:
        return x.transpose(a % x.dim(), b % x.dim())

    def flatten(x: Tensor, _like: Tensor) -> Tensor:
        i, j = sorted((a % x.dim(), b % x.dim()))
        return x.flatten(i, j)

    def swapped(x: Tensor, like: Tensor) -> Tensor:
        sizes = [like.shape[j] for j in axes(like)]
        i, j = a % len(sizes), b % len(sizes)
        sizes[i], sizes[j] = sizes[j], sizes[i]
        return x.reshape(sizes)

    def halved(x: Tensor, _like: Tensor) -> Tensor:
        return x.unflatten(a % x.dim(), (-1, 2)) if b % 2 else x.unflatten(a % x.dim(), (2, -1))

    possible: list[Step] = [
        permute, transpose, transpose, flatten, swapped, halved,
        lambda x, like: x.reshape_as(like),
        lambda x, _like: x.reshape(-1, channels),
        lambda x, like: x.reshape(like.shape[0], channels, -1),
        lambda x, like: x.reshape(like.shape[0], -1, channels),
        lambda x, _like: x.unsqueeze(a % (x.dim() + 1)),
        lambda x, _like: x.squeeze(a % x.dim()),
        lambda x, _like: x.mT if x.dim() > 1 else x,
    ]  # fmt: skip
    return [rng.choice(possible) for _ in range(rng.randint(1, 4))]


class Steps(nn.Module):
    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in self.steps:
            y = step(y, x)
        return y + self.weight.sum()


def shapes_of_case(rng: random.Random, channels: int, last: bool) -> list[tuple[int, ...]]:
    """Shapes of three inputs: two that differ along every axis, and one with as many points as channels."""
    rank = rng.choice((3, 3, 4))
    points = [*zip(*(rng.sample([2, 4, 6], 2) for _ in range(rank - 2)), strict=True), (channels,) * (rank - 2)]
    batches = [*rng.sample([1, 2, 3, 4], 2), 2]
    return [(b, *p, channels) if last else (b, channels, *p) for b, p in zip(batches, points, strict=True)]


@settings(max_examples=2 * settings.default.max_examples)
@given(st.integers(0, 10**6))
def test_axes_hold_for_a_third_size(seed):
    rng = random.Random(seed)
    channels, last = rng.choice((2, 4, 6)), rng.random() < 0.5
    network = Steps(random_steps(rng, channels)).eval()
    first, second, third = shapes_of_case(rng, channels, last)
    pair = Arguments((torch.zeros(first),)), Arguments((torch.zeros(second),))
    trace = read_module("", network, set(), PartExamples(network, pair).of)
    if isinstance(trace, str):
        return
    at = len(first) - 1 if last else 1
    index = torch.arange(torch.Size(third).numel()).view(third)
    channel = torch.arange(channels).view([-1 if j == at else 1 for j in range(len(third))]).expand(third)
    nodes = [n for n in trace.graph.nodes if rearranges(trace, n)]
    if not nodes or (shapes := shapes_of(trace, trace.graph.find_nodes(op="placeholder")[0])) is None:
        return
    arrangement = Arrangement.of(shapes, at)
    done = []
    for node, step in zip(nodes, network.steps, strict=False):
        try:
            arrangement = rearranged(trace, node, arrangement, channels)
            done.append(step)
            moved, channel_of = index, channel
            for one in done:
                moved, channel_of = one(moved, index), one(channel_of, index)
        except (NotAffineError, RuntimeError, IndexError):
            return
        if arrangement.is_own:
            assert torch.equal(moved, index)
        if (axis := arrangement.channel_axis) is not None:
            where = [-1 if j == axis else 1 for j in range(channel_of.dim())]
            assert torch.equal(channel_of, torch.arange(channels).view(where).expand(channel_of.shape))


class Program(nn.Module):
    """Linear layers, norms and convolutions wherever they fit an input, with reshapes and transpositions in between."""

    def __init__(self, rng: random.Random, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.plan: list[Step | int] = []
        x = y = tokens(*shape)
        while len(self.plan) < rng.randint(3, 9):
            step: Step | nn.Module = rng.choice(random_steps(rng, channels) + [random_layer(rng, channels)] * 2)
            try:
                with torch.no_grad():
                    y = step(y) if isinstance(step, nn.Module) else step(y, x)
            except (RuntimeError, ValueError, IndexError):
                continue
            self.plan.append(len(self.layers) if isinstance(step, nn.Module) else step)
            if isinstance(step, nn.Module):
                self.layers.append(step)
        self.keeps, self.active = rng.random() < 0.3, rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        y, kept = x, []
        for step in self.plan:
            y = self.layers[step](y) if isinstance(step, int) else step(y, x)
            kept.append(y)
        if self.active:
            y = F.relu(y)
        same = [k for k in kept if self.keeps and k.shape == y.shape]
        return y + same[0] if same else y


def random_layer(rng: random.Random, channels: int) -> nn.Module:
    kind = rng.randrange(5)
    if kind < 2:
        return nn.Linear(channels, channels).double().eval()
    if kind < 4:
        return (nn.BatchNorm1d, nn.BatchNorm2d)[kind - 2](channels).double().eval()
    size = rng.choice((1, 3))
    return nn.Conv1d(channels, channels, size, padding=size // 2).double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@given(st.integers(10**6, 2 * 10**6))
def test_random_programs_of_tokens_compute_the_same_at_three_sizes(seed):
    rng = random.Random(seed)
    channels, last = rng.choice((4, 6)), rng.random() < 0.7
    shapes = shapes_of_case(rng, channels, last)
    if rng.random() < 0.2:
        shapes = shapes[::-1]
    program = randomised(Program(rng, channels, shapes[0]), seed).double().eval()
    plain = ub.collapse(program, tokens(*shapes[0]))
    for shape in shapes:
        x = tokens(*shape)
        with torch.no_grad():
            try:
                expected = program(x)
            except (RuntimeError, ValueError, IndexError):
                continue
            found = plain(x)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp_min(1e-30)
