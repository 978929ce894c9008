"""Columns that multiply zeros are found and removed: by law for every input, or on the data."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import unbranch as ub
from tests.convert.programs import random_program
from tests.networks import randomised
from tests.quantize.networks import Function, conv, topology
from unbranch.blocks import RepVGG
from unbranch.errors import InputError
from unbranch.quantize import explain_dead_channels, suspicious_norms, zero_dead_weights
from unbranch.quantize.intervals import Bounds, IntervalMode
from unbranch.quantize.layers import LayerCall
from unbranch.quantize.report import DeadColumns
from unbranch.quantize.trials import Trials

GENERATOR = torch.Generator().manual_seed(0)
DATA = [(torch.randn(3, 3, 9, 12, generator=GENERATOR), torch.zeros(3)) for _ in range(3)]


def with_dead_channels(dead: float = -50.0) -> Any:
    """RepVGG blocks in which channel 2 is zero after each ReLU, and the identity norms saw that."""
    torch.manual_seed(0)
    network: Any = nn.Sequential(
        RepVGG(3, 8, 3, padding=1),
        nn.ReLU(),
        RepVGG(8, 8, 3, padding=1),
        nn.ReLU(),
        RepVGG(8, 8, 3, padding=1),
        nn.ReLU(),
    )
    randomised(network, 0)
    with torch.no_grad():
        for block in network[0], network[2]:
            main = block.conv_kxk.bn
            main.bias[2] = dead
        for block in network[2], network[4]:
            norm = block.identity.bn
            norm.running_mean[2], norm.running_var[2] = 0, 1e-7
    return network


def rows_of(network: nn.Module, data: Any = DATA, **options: Any) -> dict[str, DeadColumns]:
    return {one.path: one for one in explain_dead_channels(network, data, **options).report.layers}


# On the data


def test_huge_weights_of_dead_channels_are_removed() -> None:
    branched = with_dead_channels()
    assert {norm.channels for norm in suspicious_norms(branched)} == {(2,)}
    plain: Any = ub.collapse(branched)
    state = copy.deepcopy(plain.state_dict())
    dead = explain_dead_channels(plain, DATA)
    found = {one.path: one for one in dead.report.layers}
    assert {one.zeroed for one in found.values()} == {1}
    assert len(found) == 2
    assert all(one.proved == 0 and one.range[0] > 100 * one.range[1] for one in found.values())
    assert dead.report.images == 9
    assert dead.report.guarantee
    assert "9" in str(dead)
    result = dead.apply()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    with torch.no_grad():
        for x, _ in DATA:
            assert torch.allclose(result(x), plain(x), atol=1e-6 * float(plain(x).abs().max()))
        assert result[2].weight.abs().max() < 5
        assert not torch.equal(result(100 * x), plain(100 * x))  # the channel is alive there


@pytest.mark.parametrize("size", [0.5, 1.0, 1.9, 2.1, 50.0])
@pytest.mark.parametrize("columns", ["harmful", "all"])
def test_only_harmful_columns_are_removed_unless_all_are_asked_for(size: float, columns: Any) -> None:
    """Channel 1 is dead on the data; its weights are ``size`` times the others."""
    network: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()
    with torch.no_grad():
        network[0].bias[1] = -50
        network[2].weight.fill_(0.1)
        network[2].weight[3, 1] = 0.1 * size
    found = rows_of(network, columns=columns)["2.weight"]
    assert found.dead == 1
    assert found.zeroed == (1 if columns == "all" or size > 2 else 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(8, 8, 3, groups=8),
        lambda: nn.Conv2d(8, 4, 3, groups=2, padding=1),
        lambda: nn.ConvTranspose2d(8, 4, 3),
        lambda: nn.ConvTranspose2d(8, 4, 3, groups=2),
        lambda: Function(lambda m, x: m.a(x.permute(0, 2, 3, 1)), a=nn.Linear(8, 5)),
        lambda: Function(lambda m, x: m.a(m.a(x)), a=nn.Conv2d(8, 8, 1)),
    ],
    ids=["depthwise", "grouped", "transposed", "grouped transposed", "linear", "called twice"],
)
def test_columns_of_all_kinds_of_layers(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), make()).eval()
    with torch.no_grad():
        network[0].bias[5] = -50
    result = zero_dead_weights(network, DATA, columns="all")
    changed = [name for name, p in network.named_parameters() if not torch.equal(p, result.get_parameter(name))]
    twice = isinstance(network[2], Function) and isinstance(network[2].a, nn.Conv2d)  # it is alive in the second call
    assert len(changed) == (0 if twice else 1)
    with torch.no_grad():
        assert torch.allclose(result(DATA[0][0]), network(DATA[0][0]), atol=1e-5)


def test_data_may_be_a_tensor_an_iterator_or_batches_with_labels() -> None:
    plain = ub.collapse(with_dead_channels())
    for data in (DATA[0][0], iter(DATA), [x for x, _ in DATA], [[x, y] for x, y in DATA]):
        assert {one.zeroed for one in rows_of(plain, data).values()} == {1}


@pytest.mark.parametrize("options", [{"columns": "some"}, {"factor": 0.5}, {"factor": float("nan")}])
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        explain_dead_channels(nn.Conv2d(3, 3, 1), DATA, **options)


@pytest.mark.parametrize("data", [[], ["x"], None, torch.randn(2, 5, 4, 4)])
def test_wrong_data_is_refused(data: Any) -> None:
    with pytest.raises(InputError):
        explain_dead_channels(nn.Conv2d(3, 3, 1), data)


def test_a_kernel_that_is_read_elsewhere_is_skipped() -> None:
    network: Any = Function(lambda m, x: m.b(m.a(x).relu()) * m.b.weight.sum(), a=conv(3, 8), b=conv(8, 2)).eval()
    with torch.no_grad():
        network.a.bias[5] = -50
    report = explain_dead_channels(network, DATA, columns="all").report
    assert "b.weight" in report.skipped
    assert not report.layers


# For every input


def _zero_row(m: Any) -> None:
    m.a.weight[1] = 0
    m.a.bias[1] = -0.5


def _constant(m: Any) -> None:
    m.a.weight[1] = 0
    m.a.bias[1] = 0.7


def _negative(m: Any) -> None:
    m.a.weight[1] = -m.a.weight[1].abs()
    m.a.bias[1] = -0.1


def _zero_norm(m: Any) -> None:
    m.n.weight[1] = 0
    m.n.bias[1] = -0.3


LAWS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None], str]] = {
    "zero row": (lambda: Function(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 2)), _zero_row, "zeroed"),
    "zero norm": (
        lambda: Function(lambda m, x: m.b(m.n(m.a(x)).relu()), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 2)),
        _zero_norm, "zeroed",
    ),
    "negative row behind relu": (
        lambda: Function(lambda m, x: m.b(m.a(x.relu()).relu()), a=conv(3, 8), b=conv(8, 2)), _negative, "zeroed"
    ),
    "negative row of signed values": (
        lambda: Function(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 2)), _negative, "alive"
    ),
    "constant into 1x1": (
        lambda: Function(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 2, 1)), _constant, "absorbed"
    ),
    "constant into 3x3 without padding": (
        lambda: Function(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=nn.Conv2d(8, 2, 3, 2)), _constant, "absorbed"
    ),
    "constant into padding": (
        lambda: Function(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 2)), _constant, "skipped"
    ),
    "constant into reflected padding": (
        lambda: Function(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 2, padding_mode="reflect")),
        _constant, "absorbed",
    ),
    "constant into zeros of pad": (
        lambda: Function(lambda m, x: m.b(F.pad(m.a(x), (1, 0))), a=conv(3, 8), b=nn.Conv2d(8, 2, 3)),
        _constant, "alive",
    ),
    "constant into a layer without bias": (
        lambda: Function(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 2, 1, bias=False)),
        _constant, "skipped",
    ),
    "constant through pooling and silu": (
        lambda: Function(lambda m, x: m.b(F.silu(m.a(x)).mean((2, 3))), a=conv(3, 8), b=nn.Linear(8, 2)),
        _constant, "absorbed",
    ),
    "constant plus the input": (
        lambda: Function(lambda m, x: m.b(m.a(x) + x.mean(1, True)), a=conv(3, 8), b=conv(8, 2, 1)), _constant, "alive"
    ),
    "number of the input": (
        lambda: Function(lambda m, x: m.b(m.a(x) * float(x.mean())), a=conv(3, 8), b=conv(8, 2, 1)), _constant, "alive"
    ),
    "into a group": (
        lambda: Function(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 4, 1, groups=2)), _constant, "absorbed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_constant_channels_are_a_law(name: str) -> None:
    make, change, expected = LAWS[name]
    network: Any = topology(make)
    with torch.no_grad():
        change(network)
    dead = explain_dead_channels(network, DATA)
    found = {one.path: one for one in dead.report.layers}.get("b.weight")
    outcome = (
        found is not None and found.proved,
        found is not None and found.absorbed,
        "b.weight" in dead.report.skipped,
    )
    assert outcome == {
        "zeroed": (1, 0, False), "absorbed": (0, 1, False), "skipped": (False, False, True),
        "alive": (False, False, False),
    }[expected]  # fmt: skip
    result = dead.apply()
    if expected in ("zeroed", "absorbed"):
        kernel: Any = result.get_parameter("b.weight")
        assert not torch.equal(kernel, network.b.weight)
    with torch.no_grad():
        for x in (DATA[0][0], 1e3 * torch.randn(1, 3, 21, 13), -torch.rand(2, 3, 7, 9)):
            assert torch.allclose(result(x), network(x), rtol=1e-4, atol=1e-5 * float(network(x).abs().max()))


def test_a_buffer_that_the_forward_writes_is_no_constant() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.register_buffer("last", torch.zeros(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.last.expand(len(x), 8, *x.shape[2:]))
            self.last = self.a(x).mean((0, 2, 3)).reshape(8, 1, 1)
            return y

    report = explain_dead_channels(Remembers().eval(), DATA).report
    assert report.refusal or not report.layers


def test_networks_that_cannot_be_compared_are_refused() -> None:
    network: Any = topology(lambda: Function(lambda m, x: m.a(x) * next(m.counter), a=conv(3, 8)))
    network.counter = itertools.count()
    assert explain_dead_channels(network, DATA).report.refusal


@settings(max_examples=settings.default.max_examples // 2)
@given(st.integers(0, 10**6))
def test_values_lie_in_their_bounds(seed: int) -> None:
    """Of random programs some of whose rows are zero."""
    program = randomised(random_program(seed), seed)
    rng = random.Random(seed)
    with torch.no_grad():
        for name, parameter in program.named_parameters():
            if parameter.dim() > 1 and name.endswith("weight"):
                parameter[rng.randrange(len(parameter))] = 0

    def see(layer: LayerCall, bounds: Bounds) -> None:
        lower, upper = bounds
        slack = 1e-9 * (1 + layer.x.abs())
        assert (layer.x >= lower - slack).all()
        assert (layer.x <= upper + slack).all()

    with contextlib.suppress(ub.DifferenceError):
        trials = Trials(program, (torch.randn(2, 4, 13, 15, dtype=torch.float64),))
        for one in trials.given:
            trials.read(IntervalMode(see), one)


@pytest.mark.slow
def test_a_network_of_the_zoo() -> None:
    network: Any = randomised(ub.create_model("resnet8_cifar", block="repvgg", num_classes=10), 0)
    plain = ub.collapse(network, DATA[0][0])
    dead = explain_dead_channels(plain, DATA, columns="all")
    with torch.no_grad():
        for x, _ in DATA:
            assert torch.allclose(dead.apply()(x), plain(x), atol=1e-5)
