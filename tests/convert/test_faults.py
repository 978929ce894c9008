"""Internal errors of the converter leave the part unchanged, with a warning, or raise one clear error."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.networks import randomised
from unbranch.convert import account, attempt, conversion, kernel, trace_plan
from unbranch.convert.passes import reading

STEPS = {
    "read_writes": reading, "share_grids": reading, "order_sums": reading, "_read_shapes": reading,
    "drop_unused": trace_plan, "move_norms": trace_plan, "plan_of": trace_plan, "rewrites_of": trace_plan,
    "replaced_modules": attempt, "Interpretation": trace_plan,
}  # fmt: skip


class Part(nn.Module):
    def __init__(self, faulty: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.faulty = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), faulty

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def network() -> nn.Module:
    return randomised(nn.Sequential(Part(), nn.Sequential(Part(faulty=True), Part()), Part())).eval()


def failing(step, when):
    def fails(first, *args, **kwargs):
        module = getattr(getattr(first, "trace", first), "module", None)
        if module is not None and when(module):
            raise KeyError("getitem_7")
        return step(first, *args, **kwargs)

    return fails


def norms(net) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize("step", STEPS)
def test_parts_around_a_fault_are_converted(monkeypatch, step):
    holds = lambda module: any(getattr(m, "faulty", False) for m in module.modules())  # noqa: E731
    monkeypatch.setattr(STEPS[step], step, failing(getattr(STEPS[step], step), holds))
    source = network()
    before, x = copy.deepcopy(source.state_dict()), torch.randn(2, 4, 7, 9)
    with pytest.warns(ub.InternalErrorWarning, match="KeyError: 'getitem_7'.*report"):
        plain = ub.collapse(source)
    assert norms(plain) == 1
    assert isinstance(plain[1][0].norm, nn.BatchNorm2d)
    assert torch.allclose(plain(x), source(x), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    kinds = {r.kind for r in (*ub.report(plain).refusals, *ub.report(plain, "collapse").norms)}
    assert "internal-error" in kinds


@pytest.mark.parametrize("step", STEPS)
def test_a_fault_everywhere_leaves_a_copy(monkeypatch, step):
    monkeypatch.setattr(STEPS[step], step, failing(getattr(STEPS[step], step), lambda _module: True))
    source = network()
    with pytest.warns(ub.InternalErrorWarning):
        plain = ub.collapse(source)
    assert norms(plain) == 4
    x = torch.randn(2, 4, 7, 9)
    assert torch.equal(plain(x), source(x))


@pytest.mark.parametrize("step", ["copied", "cost_of", "record_collapse"])
def test_a_fault_elsewhere_is_one_sentence(monkeypatch, step):
    homes = {"copied": attempt, "cost_of": account, "record_collapse": conversion}
    monkeypatch.setattr(homes[step], step, lambda *_args, **_kwargs: [][0])
    with pytest.raises(ub.InternalError, match="please report it: IndexError: list index out of range"):
        ub.collapse(network(), torch.randn(2, 4, 7, 9))


def test_other_entries_say_so_too(monkeypatch):
    monkeypatch.setattr(reading, "order_sums", lambda _trace: [][0])
    with pytest.raises(ub.InternalError, match="IndexError"):
        ub.equivalent_kernel(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval())
    with pytest.raises(ub.InternalError, match="IndexError"):
        ub.expand(network(), "acb")
    assert kernel.traces_of is reading.traces_of


def test_full_memory_is_no_fault(monkeypatch):
    def full(*_args, **_kwargs):
        raise MemoryError("not enough memory")

    monkeypatch.setattr(trace_plan, "plan_of", full)
    with pytest.raises(MemoryError):
        ub.collapse(network())
