"""Rebuilt parts stay what they were for everything but their forward: copies, files, classes, methods, attributes."""

from __future__ import annotations

import copy
import io
import types
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import unbranch as ub
from tests.networks import randomised
from unbranch.convert.source.methods import (
    attributes_set_by,
    entry_points,
    methods_reaching_into,
    methods_running,
    methods_running_all,
)


class Described(nn.Module):
    """Rebuilt, since what it adds is merged and its activation is a function."""

    kind = "a block"
    pretrained: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), 4
        self.aside = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))  # for training, say
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def describe(self) -> str:
        return f"{self.kind} of {self.width}"

    @property
    def double_width(self) -> int:
        return 2 * self.width

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(x))


def converted() -> tuple[nn.Module, Any]:
    network = randomised(nn.Sequential(Described(), nn.Conv2d(4, 2, 1)), 0).eval()
    network[0].f, network[0].names = -1, ["cat", "dog"]
    return network, ub.collapse(network)


def through_a_file(network: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "again", [lambda net: net, copy.deepcopy, through_a_file, lambda net: copy.deepcopy(through_a_file(net))]
)
def test_a_rebuilt_part_keeps_what_others_see(again: Any) -> None:
    network, plain = converted()
    part = again(plain)[0]
    assert isinstance(part, Described)
    kept = {"aside.0.weight", "aside.0.bias", "steps", "temperature"}
    assert kept < {*part.state_dict()} == {*plain[0].state_dict()}
    assert isinstance(part.aside[1], nn.Identity)  # merged as well
    assert torch.allclose(part.aside(torch.ones(1, 4, 5, 5)), network[0].aside(torch.ones(1, 4, 5, 5)), atol=1e-5)
    assert [part.temperature.item(), int(part.steps), part.scratch.tolist()] == [0.5, 7, [1.0] * 3]
    assert isinstance(part.aside[0], nn.Conv2d)
    assert isinstance(part, fx.GraphModule)
    assert part.describe() == "a block of 4"
    assert part.double_width == 8
    assert part.pretrained is None
    assert part.f == -1
    assert part.names == ["cat", "dog"]
    assert repr(part).startswith("Described(")
    assert not part.training
    assert len([m for m in part.children() if isinstance(m, nn.Conv2d)]) == 1
    x = torch.randn(2, 4, 6, 7)
    torch.testing.assert_close(part(x), network[0](x))
    with pytest.raises(AttributeError, match="nothing"):
        _ = part.nothing


def test_the_class_itself_is_not_changed() -> None:
    before = dict(vars(Described))
    converted()
    assert dict(vars(Described)) == before
    assert Described.__name__ == "Described"


class Walker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1)
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(3)])
        self.heads = nn.ModuleDict({"a": nn.Conv2d(4, 1, 1)})

    def by_loop(self, x: Tensor) -> Any:
        return [stage(x) for stage in self.stages]

    def by_enumerate(self, x: Tensor) -> Tensor:
        for _, stage in enumerate(self.stages[1:]):
            x = stage(x)
        return x

    def by_position(self, x: Tensor) -> Tensor:
        return self.stages[1][0](x)

    def by_name(self, x: Tensor) -> Tensor:
        stem = self.stem
        return stem(x)

    def by_getattr(self, x: Tensor) -> Any:
        return [getattr(self, name)(x) for name in ("stem",)]

    def by_key(self, x: Tensor) -> Tensor:
        return self.heads["a"](x)

    def inside(self, x: Tensor) -> Any:
        return [layer(x) for stage in self.stages for layer in stage]

    def all_but_the_last(self, x: Tensor) -> Tensor:
        for stage in list(self.stages)[:-1]:
            x = stage(x)
        return list(self.stages)[1][1](x)

    def weights_only(self) -> Tensor:
        self.stem.reset_parameters()
        return self.stem.weight.sum() + sum(p.sum() for p in self.stages.parameters())

    def for_later(self, x: Tensor) -> Tensor:
        return self.stem(self.fused(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


def test_what_methods_run_is_read_from_their_code() -> None:
    network = Walker()
    network.set_on_it = types.MethodType(lambda self, x: self.stem(x), network)
    runs = {
        "set_on_it",
        "all_but_the_last",
        "by_loop",
        "by_enumerate",
        "by_position",
        "by_name",
        "by_getattr",
        "by_key",
        "inside",
    }
    assert set(entry_points(network)) == runs
    assert set(methods_running(network, "stem")) == {"by_name", "by_getattr", "set_on_it"}
    assert set(methods_running(network, "stages.0")) == {"by_loop", "by_enumerate", "all_but_the_last"}
    assert set(methods_running(network, "stages.1.0")) == {"by_position", "inside"}
    assert set(methods_reaching_into(network, "stages.1")) == {"by_position", "all_but_the_last", "inside"}
    assert set(methods_reaching_into(network, "stages")) == runs - {"set_on_it", "by_name", "by_key", "by_getattr"}
    assert methods_running_all(network, {"stem", "heads.a"}) == set()
    assert methods_running_all(network, {"stem"}) == {"by_name", "set_on_it"}
    assert methods_running(network, "heads.a") == ["by_key"]


def test_attributes_that_a_class_sets_are_its_own() -> None:
    assert {"a", "b", "width", "kind", "describe"} <= attributes_set_by(Described)
    assert "f" not in attributes_set_by(Described)
    assert {"stride", "padding", "in_channels"} <= attributes_set_by(nn.Conv2d)


class _Counted(Described):
    """Holds a buffer and a parameter that its forward doesn't read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(3.0))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.spare = nn.Parameter(torch.ones(1))


def test_tensors_that_the_forward_does_not_read_stay():
    network = randomised(nn.Sequential(_Counted(), nn.Conv2d(4, 2, 1)), 0).eval()
    plain = ub.collapse(network)
    for name in ("calls", "scratch", "spare"):
        assert torch.equal(getattr(plain[0], name), getattr(network[0], name))
        assert getattr(plain[0], name) is not getattr(network[0], name)
    assert "0.scratch" not in plain.state_dict()
    assert isinstance(plain[0].spare, nn.Parameter)


class _Multiplied(Described):
    """Fails in the graph itself if its matrix doesn't fit."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3)) @ self.matrix


@pytest.mark.parametrize("again", [lambda net: net, copy.deepcopy, through_a_file])
def test_a_call_that_fails_prints_nothing(again, capfd):
    plain = ub.collapse(nn.Sequential(_Multiplied(), nn.Linear(4, 2)).eval())
    assert isinstance(plain[0], fx.GraphModule)
    plain[0].matrix = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        again(plain)(torch.randn(2, 4, 5, 5))
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


class PadsBySize(nn.Conv2d):
    """A layer of PyTorch's with a forward of its own and a kernel that is computed."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return torch.relu(nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding))


def test_a_rebuilt_layer_is_no_layer_of_its_kind_any_more() -> None:
    network = nn.Sequential(PadsBySize(4, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    plain = ub.collapse(network)
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 2  # which code that looks for layers may count, and take their weights
    assert all(m.weight.dim() == 4 for m in layers)
    x = torch.randn(2, 4, 9, 9)
    assert torch.allclose(plain(x), network(x), atol=1e-5)
