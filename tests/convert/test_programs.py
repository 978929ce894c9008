"""Property: any program of layers and operations is collapsed exactly, and never costs more."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unbranch as ub
from tests.convert.programs import random_program
from tests.networks import randomised


def stored(network: torch.nn.Module) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    return sum(t.numel() for t in tensors if t.is_floating_point())


@settings(max_examples=2 * settings.default.max_examples)
@given(st.integers(0, 10**6))
def test_random_programs_compute_the_same_and_cost_no_more(seed):
    program = randomised(random_program(seed), seed)
    x = torch.randn(2, 4, 13, 15, dtype=torch.float64)
    with torch.no_grad():
        expected = program(x.clone())
    plain = ub.collapse(program, x)
    with torch.no_grad():
        found = plain(x.clone())
    for ours, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max().clamp_min(1e-30)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-10 * scale
    before, after = ub.report(plain).before, ub.report(plain, "collapse").after
    assert after.launches <= before.launches
    assert after.macs <= before.macs
    assert stored(plain) <= stored(program)
    wider = torch.randn(1, 4, 16, 21, dtype=torch.float64)
    with torch.no_grad():
        try:
            expected = program(wider.clone())
        except RuntimeError:  # sums of values that only happen to have one size at 13x15
            return
        for ours, theirs in zip(plain(wider.clone()), expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max().clamp_min(1e-30)
