"""Property: programs that write in place, keep state or take flags are collapsed exactly, or left as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import unbranch as ub
from tests.convert.programs_in_place import OptionalProgram, random_writing_program

CALLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 6, 6), {}),
    ((1, 4, 8, 10), {"flag": False}),
    ((3, 4, 6, 8), {"scale": 0.5}),
]


def results(network: nn.Module) -> list[Any]:
    """What all calls return, leave in their arguments and keep."""
    found: list[Any] = []
    for shape, options in CALLS:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
        options = options if isinstance(network, OptionalProgram) else {}
        try:
            with torch.no_grad():
                outputs = network(x, **options)
        except Exception as error:
            found.append(type(error))
            continue
        found += [*outputs, x, network.calls, network.kept]
    return found


def check(seed: int) -> bool:
    """Whether a program was merged, without an example or with one."""
    program = random_writing_program(seed)
    before = copy.deepcopy(program.state_dict())
    expected = results(copy.deepcopy(program))
    if isinstance(expected[0], type):
        return False
    merged = False
    x = torch.randn(CALLS[0][0], dtype=torch.float64)
    kept = x.clone()
    for example in (None, x):
        try:
            plain = ub.collapse(program, example)
        except ub.UnbranchError:
            continue
        merged |= bool(ub.report(plain).merges)
        after = program.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert program.kept is None
        assert torch.equal(x, kept)
        found = results(plain)
        assert len(found) == len(expected), program.steps
        for ours, theirs in zip(found, expected, strict=True):
            if isinstance(theirs, torch.Tensor):
                largest = theirs.abs().max().clamp_min(1e-30)
                assert ours.shape == theirs.shape
                assert (ours - theirs).abs().max() <= 1e-9 * largest, program.steps
            else:
                assert ours is theirs, program.steps
    return merged


@given(st.integers(10**6, 2 * 10**6))
def test_programs_that_write_compute_the_same(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_many_of_these_programs_are_merged():
    """A converter that changed none of them would pass the test above."""
    assert sum(map(check, range(40))) >= 10
