"""Equalised networks compute the same function, with better ranges; what can't be scaled has a reason."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unbranch as ub
from tests.convert.programs import random_program
from tests.networks import randomised
from tests.quantize.networks import (
    BORDERS,
    HOMOGENEOUS,
    LAYERS,
    TOPOLOGIES,
    UNSCALABLE,
    Function,
    conv,
    topology,
    with_activation,
    with_layer,
)
from unbranch.errors import InputError, UnsupportedError
from unbranch.quantize import equalize, explain_equalization
from unbranch.quantize.scales import read_scales, with_factors
from unbranch.quantize.trials import Trials

X = torch.randn(2, 3, 11, 14, generator=torch.Generator().manual_seed(0))


def rows(table: dict[str, Callable[[], nn.Module]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in table.items()])


def spread(network: nn.Module) -> nn.Module:
    """Give rows of kernels very different ranges."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                shape = (len(parameter), *(1,) * (parameter.dim() - 1))
                parameter.mul_(torch.randn(shape, generator=generator).mul(1.5).exp())
    return network


def scaled_at_random(network: nn.Module, x: Any, *, power_of_two: bool = False) -> tuple[str | None, set[str]]:
    """How the network differs with random scales for everything that was read as free, and the scaled parameters."""
    trials = Trials(network, x if isinstance(x, tuple) else (x,))
    found = read_scales(trials, {})
    generator = torch.Generator().manual_seed(2)
    scales = torch.randn(len(found.roots), generator=generator, dtype=torch.float64).exp()
    scales = scales.log2().round().exp2() if power_of_two else scales
    factors = found.factors(torch.where(found.free, scales, 1.0))
    return trials.differs(with_factors(network, factors, exact=True)), set(factors)


# What is read, before any proof


@rows(HOMOGENEOUS)
def test_channels_pass_through_homogeneous_functions(make: Callable[[], nn.Module]) -> None:
    reason, scaled = scaled_at_random(with_activation(make), X)
    assert reason is None
    assert {"0.weight", "0.bias", "2.weight"} <= scaled


@rows(BORDERS)
def test_other_functions_fix_their_scales(make: Callable[[], nn.Module]) -> None:
    assert scaled_at_random(with_activation(make), X) == (None, set())
    skipped = {
        s.path: s for s in explain_equalization(with_activation(make), X).report.skipped if s.channels == "output"
    }
    assert skipped["0.weight"].share == 1


@rows(LAYERS)
def test_layers_have_scales_on_both_sides(make: Callable[[], nn.Module]) -> None:
    reason, scaled = scaled_at_random(with_layer(make), X)
    assert reason is None
    assert {"0.weight", "2.weight", "4.weight"} <= scaled


@rows(TOPOLOGIES)
def test_topologies_are_read(make: Callable[[], nn.Module]) -> None:
    network = topology(make)
    reason, scaled = scaled_at_random(network, X)
    assert reason is None
    assert len(scaled) > 2


@rows(UNSCALABLE)
def test_values_that_something_else_reads_keep_their_scale(make: Callable[[], nn.Module]) -> None:
    reason, scaled = scaled_at_random(topology(make), X)
    assert reason is None
    assert "a.weight" not in scaled


@settings(max_examples=settings.default.max_examples // 2)
@given(st.integers(0, 10**6))
def test_random_programs_are_read(seed: int) -> None:
    program = randomised(random_program(seed), seed)
    with contextlib.suppress(ub.DifferenceError):
        reason, _ = scaled_at_random(program, torch.randn(2, 4, 13, 15, dtype=torch.float64))
        assert reason is None


def _recurrent(m: Any, x: Tensor) -> Tensor:
    return m.b(m.l(m.a(x.flatten(2).transpose(1, 2)).relu())[0])


def _attention(m: Any, x: Tensor) -> Tensor:
    y = m.a(x.flatten(2).transpose(1, 2))
    return m.b(m.l(y, y, y)[0])


OTHER: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: Function(_recurrent, a=nn.Linear(3, 8), l=nn.LSTM(8, 8, batch_first=True), b=nn.Linear(8, 2)),
    "attention": lambda: Function(
        _attention, a=nn.Linear(3, 8), l=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 2)
    ),
    "weight norm": lambda: nn.Sequential(
        conv(3, 8), nn.utils.parametrizations.weight_norm(conv(8, 8)), nn.ReLU(), conv(8, 8), conv(8, 2)
    ),
    "channels last": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 2)).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "one layer": lambda: conv(3, 8),
    "no layer": nn.ReLU,
}  # fmt: skip


@rows(OTHER)
def test_other_networks_are_read(make: Callable[[], nn.Module]) -> None:
    assert scaled_at_random(topology(make), X)[0] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    network = spread(topology(TOPOLOGIES["residual"])).to(dtype)
    equalization = explain_equalization(network, X.to(dtype))
    assert equalization.report.layers
    assert {p.dtype for p in equalization.apply().parameters()} == {dtype}


def test_images_without_a_batch_are_read() -> None:
    assert scaled_at_random(topology(TOPOLOGIES["residual"]), X[0])[0] is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "network",
    [lambda: torch.jit.trace(conv(3, 8).eval(), X), lambda: conv(3, 8).to("meta")],
    ids=["ScriptModule", "meta"],
)
def test_networks_whose_weights_cannot_change_are_errors(network: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnsupportedError):
        equalize(network(), X)


# What is made of it


ALL = {**TOPOLOGIES, **{name: (lambda make=make: with_layer(make)) for name, make in LAYERS.items()}}


@rows(ALL)
def test_result_is_equal_and_its_ranges_are_better(make: Callable[[], nn.Module]) -> None:
    network = spread(topology(make))
    state = copy.deepcopy(network.state_dict())
    equalization = explain_equalization(network, X)
    report, result = equalization.report, equalization.apply()
    assert not report.refusal
    assert not [s for s in report.skipped if "differs" in s.reason]
    assert all(0 < p <= 1 for layer in report.layers for p in layer.precision)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        for ours, theirs in zip(_tensors(result(X)), _tensors(network(X)), strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert str(report)
    assert report.to_dict()["sizes"]


@settings(max_examples=settings.default.max_examples // 4)
@given(st.integers(0, 10**6))
def test_random_programs_are_equalised_exactly(seed: int) -> None:
    program = spread(randomised(random_program(seed), seed))
    state = copy.deepcopy(program.state_dict())
    x = torch.randn(2, 4, 13, 15, dtype=torch.float64)
    equalization = explain_equalization(program, x)
    assert not [s for s in equalization.report.skipped if "differs" in s.reason]
    with torch.no_grad():
        for ours, theirs in zip(equalization.apply()(x.clone()), program(x.clone()), strict=True):
            assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max().clamp_min(1e-30)
    assert all(torch.equal(state[name], tensor) for name, tensor in program.state_dict().items())


def test_twice_changes_nothing_more() -> None:
    network = equalize(spread(topology(TOPOLOGIES["residual"])), X)
    assert not explain_equalization(network, X).report.layers


def _tensors(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def test_a_pair_of_layers_gets_equal_ranges() -> None:
    network = spread(topology(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))))
    result: Any = equalize(network, X)
    first, second = result[0].weight.abs().amax((1, 2, 3)), result[2].weight.abs().amax((0, 2, 3))
    assert (first / second).max() / (first / second).min() < 1.01


def test_powers_of_two_keep_every_bit() -> None:
    network = spread(topology(TOPOLOGIES["residual"]))
    equalization = explain_equalization(network, X, power_of_two=True)
    with torch.no_grad():
        assert torch.equal(equalization.apply()(X), network(X))
    assert equalization.report.layers


def test_dead_channels_get_no_scale() -> None:
    network: Any = spread(topology(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))))
    with torch.no_grad():
        network[0].weight[2] = 0
        network[2].weight[:, 5] = 0
    result: Any = equalize(network, X)
    assert torch.equal(result[0].weight[2], network[0].weight[2])
    assert torch.equal(result[0].weight[5], network[0].weight[5])
    assert all(p.isfinite().all() for p in result.parameters())


def test_modules_that_are_named_or_have_hooks_keep_their_values() -> None:
    make = lambda: spread(topology(lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))))  # noqa: E731
    network: Any = make()
    assert explain_equalization(network, X).report.layers
    assert not {layer.path for layer in explain_equalization(network, X, fixed=["1", "3"]).report.layers}
    kept: Any = equalize(network, X, fixed="1")
    with torch.no_grad():
        assert torch.equal(kept[0](X), network[0](X))
        assert not torch.equal(kept[:3](X), network[:3](X))
    network[1].register_forward_hook(lambda *_: None)
    assert torch.equal(equalize(network, X)[0].weight, network[0].weight)
    with pytest.raises(InputError):
        equalize(network, X, fixed=["nowhere"])


def test_shared_parameters_stay_shared() -> None:
    network: Any = topology(
        lambda: Function(lambda m, x: m.c(m.a(x).relu() + m.b(-x).relu()), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2))
    )
    network.b.weight = network.a.weight
    equalization = explain_equalization(spread(network), X)
    result: Any = equalization.apply()
    assert result.a.weight is result.b.weight
    assert [layer.path for layer in equalization.report.layers] == ["a.weight", "c.weight"]


def test_tied_embedding_is_skipped() -> None:
    network = Function(
        lambda m, x: m.head(torch.relu(m.a(m.e(x)))), e=nn.Embedding(9, 8), a=nn.Linear(8, 8), head=nn.Linear(8, 9)
    )
    network.head.weight = network.e.weight  # type: ignore[union-attr]
    reason, scaled = scaled_at_random(network.eval(), torch.arange(6).reshape(2, 3))
    assert reason is None
    assert "e.weight" not in scaled


def test_other_sizes_are_read_too() -> None:
    """A function that only larger images reach fixes the scale."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y.sigmoid() if x.shape[-1] > 20 else y.relu())

    network = topology(lambda: Function(forward, a=conv(3, 8), b=conv(8, 2)))
    assert scaled_at_random(network, X) == (None, set())


def test_mode_and_dtype_are_kept() -> None:
    network = topology(TOPOLOGIES["residual"]).double().train()
    network.get_parameter("a.weight").requires_grad_(False)
    result = equalize(network, X.double())
    assert result.training
    assert {p.dtype for p in result.parameters()} == {torch.float64}
    assert [p.requires_grad for p in result.parameters()] == [p.requires_grad for p in network.parameters()]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x) + torch.rand(1)),
        lambda m, x: m.b(m.a(x)) * next(m.counter),
    ],
    ids=["random", "stateful"],
)
def test_networks_that_cannot_be_compared_are_refused(forward: Callable[[Any, Tensor], Tensor]) -> None:
    network: Any = topology(lambda: Function(forward, a=conv(3, 8), b=conv(8, 2)))
    network.counter = itertools.count()
    equalization = explain_equalization(network, X)
    assert equalization.report.refusal
    assert not equalization.report.layers
    assert torch.equal(equalization.apply().get_parameter("a.weight"), network.get_parameter("a.weight"))


def test_inputs_that_do_not_fit_are_errors() -> None:
    with pytest.raises(InputError):
        equalize(nn.Conv2d(3, 8, 3), torch.randn(2, 4, 8, 8))


# Whole networks


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: __import__("torchvision").models.get_model(name)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: __import__("timm").create_model(name)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "resnet18": _torchvision("resnet18"),
    "repghost": _timm("repghostnet_050"),
    "mobileone": _timm("mobileone_s0"),
    "zoo": lambda: ub.create_model("resnet8_cifar", block="repvgg", num_classes=10),
    "repvgg": _timm("repvgg_a0"),
    "convnext": _timm("convnext_atto"),
    "detector": lambda: __import__("torchvision").models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ),
    "vit": _timm("test_vit"),
    "shufflenet": _torchvision("shufflenet_v2_x0_5"),
}


def _input(network: Any) -> Any:
    if hasattr(network, "roi_heads") or hasattr(network, "anchor_generator"):
        return ([torch.rand(3, 320, 320)],)
    size = network.default_cfg["input_size"] if getattr(network, "pos_embed", None) is not None else (3, 64, 64)
    return torch.randn(1, *size)


@pytest.mark.slow
@pytest.mark.sweep(4)
@rows(NETWORKS)
def test_networks_of_libraries(make: Callable[[], nn.Module]) -> None:
    network = make()
    x = _input(network)
    plain = ub.collapse(randomised(network, 0).eval(), x)
    reason, scaled = scaled_at_random(plain, x, power_of_two=True)  # a detector selects boxes, whose scores may tie
    assert reason is None
    assert scaled
    report = explain_equalization(plain, x).report
    assert report.layers
    assert not [s for s in report.skipped if "differs" in s.reason]
