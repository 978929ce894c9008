"""Random programs with conditions: what is returned computes the same whichever way an input goes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from torch import Tensor

import unbranch as ub
from tests.convert.programs_in_ways import If, Program, steps
from tests.networks import randomised

_generator = torch.Generator().manual_seed(17)


def inputs() -> list[Tensor]:
    """Inputs that take the ways in many combinations."""
    shapes = [(2, 4, 6, 8), (7, 4, 6, 8), (2, 4, 6, 9), (7, 4, 9, 7), (3, 4, 9, 8)]
    return [
        torch.randn(shape, generator=_generator, dtype=torch.float64) + shift
        for shape in shapes
        for shift in (1.0, -1.0, 100.0)
    ]


INPUTS = inputs()


@torch.no_grad()
def check(program: tuple[Any, ...]) -> bool:
    """Compare on all ways, and say whether anything was merged in a program with conditions."""
    network = randomised(Program(program)).double()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    plain = ub.collapse(network)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    for x in INPUTS:
        theirs, ours = copy.deepcopy(network)(x.clone()), plain(x.clone())
        assert (theirs - ours).abs().max() <= 1e-9 * theirs.abs().max().clamp_min(1e-6), program
    merged = {source for merge in ub.report(plain).merges for source in merge.sources}
    return any(isinstance(step, If) for step in program) and not merged <= {"block.0", "block.1"}


def run(part: int, examples: int) -> None:
    found: list[bool] = []

    @seed(part)
    @given(program=steps())
    @settings(max_examples=examples, derandomize=False, database=None)
    def each(program: tuple[Any, ...]) -> None:
        found.append(check(program))

    each()
    assert sum(found) >= max(1, len(found) // 10)  # a converter that changed nothing would be exact, too


def test_random_programs_with_conditions() -> None:
    run(0, max(60, settings.default.max_examples))


@pytest.mark.slow
@pytest.mark.sweep(1_000_000)
@pytest.mark.parametrize("part", range(1, 101))
def test_many_random_programs_with_conditions(part: int) -> None:
    run(part, 50)
