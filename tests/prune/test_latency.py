"""Latency in a runtime as the metric: widths in its steps, the target met by measurement, and the report."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.prune.networks import Inverted, conv, grouped
from tests.prune.stepped import Stepped
from unbranch.blocks import Compactor
from unbranch.errors import InputError
from unbranch.prune import PruningGraph, ResRep, explain_pruning
from unbranch.prune.activations import activations
from unbranch.prune.latency import LatencyTable
from unbranch.prune.latency_report import DEPTHWISE, MEMORY_BOUND, SLOWER_KERNELS, UNPRUNED, reason_for

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RUNTIMES = {
    "sum of its layers": Stepped(),
    "smaller step": Stepped(8),
    "layers cost less together": Stepped(factor=0.5),
    "much else": Stepped(factor=0.8, rest=0.5),
    "not a straight line": Stepped(power=1.3, rest=0.1),
}


@functools.cache
def graph() -> PruningGraph:
    """The graph of a network with compactors whose rows have random norms."""
    torch.manual_seed(0)
    made = explain_pruning(nn.Sequential(conv(3, 64), conv(64, 96), conv(96, 80), nn.Conv2d(80, 5, 1)), X)
    with torch.no_grad():
        for module in made.network.modules():
            if isinstance(module, Compactor):
                module.conv.weight.mul_(0.5 + torch.rand(len(module.mask), 1, 1, 1))
    return made


def started(**options: object) -> ResRep:
    return ResRep(graph().apply(), X, graph=graph(), granularity=10**6, **{"target": 0.6, **options})


def pruned(runtime: Stepped, **options: object) -> tuple[ResRep, nn.Module]:
    resrep = started(metric="latency", runtime=runtime, **options)
    for _ in range(4):
        resrep.update_masks()
    return resrep, resrep.finalize(masked=True)


@pytest.mark.parametrize("case", RUNTIMES)
def test_target_is_met_as_measured_with_widths_in_steps(case: str) -> None:
    runtime = RUNTIMES[case]
    resrep, plain = pruned(runtime)
    assert resrep.limits.multiple == runtime.size
    assert all(width % runtime.size == 0 for width in resrep.widths())
    report = ub.report(plain, "prune").latency
    assert [report.before_ms, report.after_ms] == runtime.network_ms([resrep.latency.plain, plain], (X[:1],))
    assert 0.5 < report.left <= 0.6 * 1.02
    assert abs(report.error) < 0.02
    assert report.multiple == runtime.size
    assert resrep.progress().met


def test_own_multiple_wins_and_odd_widths_have_times_of_their_own() -> None:
    resrep, plain = pruned(Stepped(16), multiple=4)
    assert resrep.limits.multiple == 4
    assert any(width % 16 for width in resrep.widths())
    assert ub.report(plain, "prune").latency.left <= 0.62
    assert {layer.outputs % 16 for layer in asked_of(resrep)} >= {0, 15}


def asked_of(resrep: ResRep) -> list[ub.prune.Layer]:
    return resrep.latency.source.asked


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_other_metrics_keep_their_multiple_and_take_no_runtime(metric: str) -> None:
    assert started(metric=metric).limits.multiple == 8
    with pytest.raises(InputError, match="`runtime`"):
        started(metric=metric, runtime="onnx")


@pytest.mark.parametrize("name", ["onx", "", "all"])
def test_unknown_runtimes_are_one_error(name: str) -> None:
    with pytest.raises(InputError, match="unknown runtime"):
        started(metric="latency", runtime=name)


def test_target_that_can_t_be_met_is_refused_by_measurement() -> None:
    with pytest.raises(InputError, match="`target` must be at least"):
        started(target=0.3, metric="latency", runtime=Stepped(rest=50.0))


def test_report_has_every_layer_and_adds_up() -> None:
    _, plain = pruned(Stepped(factor=0.8, rest=0.5))
    report = ub.report(plain, "prune").latency
    assert len(report.layers) == 4
    for i, total in enumerate((report.before_ms, report.after_ms)):
        assert sum(layer.ms[i] for layer in report.layers) + report.rest_ms[i] == pytest.approx(total)
    assert sum(report.time_left().values()) == pytest.approx(1)
    assert sum(layer.macs[1] for layer in report.layers) == ub.report(plain, "prune").macs[1]
    values = ub.report(plain, "prune").to_dict()
    assert values["latency"]["after_ms"] == report.after_ms
    assert "stepped" in str(ub.report(plain, "prune"))


@pytest.mark.parametrize(
    ("macs", "ms", "facts", "reason"),
    [
        ((100, 100), (1.0, 1.0), {"varies": False}, UNPRUNED),
        ((100, 50), (1.0, 0.55), {}, ""),
        ((100, 50), (1.0, 0.9), {"depthwise": True}, DEPTHWISE),
        ((100, 50), (1.0, 0.9), {"moved": 10}, MEMORY_BOUND),
        ((100, 50), (1.0, 0.9), {"moved": 1}, SLOWER_KERNELS),
    ],
)
def test_layers_have_a_reason_where_they_save_less(
    macs: tuple[int, int], ms: tuple[float, float], facts: dict[str, object], reason: str
) -> None:
    assert reason_for(macs, ms, **{"varies": True, "depthwise": False, "moved": 1, **facts}) == reason


@pytest.mark.parametrize("make", [grouped, Inverted, lambda: nn.Sequential(conv(3, 8), conv(8, 8, 3, 8), conv(8, 5))])
def test_layers_are_those_of_the_network(make: object) -> None:
    """With all channels, the sum of the table's layers is that of the network's own."""
    runtime = Stepped(4)
    made = explain_pruning(make().eval(), X, layers="all")
    table = LatencyTable(made, runtime)
    assert table.layers_ms(made.full) == pytest.approx(runtime._sum(table.plain, (X[:1],)))
    narrow = [max(1, width // 2) for width in made.full]
    assert table.layers_ms(narrow) == pytest.approx(runtime._sum(table.narrow(narrow), (X[:1],)), rel=0.2)


class Activated(nn.Module):
    """Activations as modules and as functions, in place, behind a sum, and none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 1) for _ in range(5))
        self.act = nn.Hardswish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu6(self.b(self.act(self.a(x))))
        return self.d(self.c(y).relu_()) + self.e(x)


def test_activations_are_found_however_they_are_written() -> None:
    found = activations(Activated(), (X,), "abcde")
    assert found == {"a": "hardswish", "b": "relu6", "c": "relu"}
