"""The training-side part: groups, steps, masks, targets, and going on after a break."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import unbranch as ub
from tests.prune.networks import conv
from tests.prune.stepped import Stepped
from unbranch.blocks import Compactor
from unbranch.errors import InputError
from unbranch.prune import ResRep, insert_compactors

X, Y = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])


def network(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return insert_compactors(ub.create_model("resnet8_cifar", num_classes=10), X, **options)


def sgd(net: nn.Module, **options: object) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, **options)


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, resrep: ResRep, steps: int) -> None:
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        resrep.step()
        optimizer.step()


def compactors(net: nn.Module) -> list[Compactor]:
    return [module for module in net.modules() if isinstance(module, Compactor)]


def test_compactors_get_groups_of_their_own() -> None:
    net = network()
    own = {id(m.conv.weight) for m in compactors(net)}
    kernels = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    first = {"params": kernels, "names": [str(i) for i in range(len(kernels))]}
    groups = [first, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    ResRep(net, X, optimizer, target=0.9, momentum=0.95, multiple=1)
    first, second, third = optimizer.param_groups
    assert {id(p) for p in third["params"]} == own
    assert not own & {id(p) for group in (first, second) for p in group["params"]}
    assert (third["momentum"], third["weight_decay"], third["lr"]) == (0.95, 0.0, 0.01)
    assert (first["momentum"], first["weight_decay"]) == (0.9, 1e-4)
    assert len(third["names"]) == 3
    assert len(first["names"]) == len(first["params"])


def test_masked_rows_move_by_the_penalty_alone() -> None:
    net = network()
    resrep = ResRep(net, X, target=0.9, strength=0.1, multiple=1)
    compactor = compactors(net)[0]
    compactor.mask[:3] = 0
    F.cross_entropy(net(X), Y).backward()
    gradient = compactor.conv.weight.grad.clone()
    resrep.step()
    rows = compactor.conv.weight.flatten(1)
    penalty = (0.1 * rows / rows.norm(dim=1, keepdim=True)).reshape(gradient.shape)
    assert torch.allclose(compactor.conv.weight.grad[:3], penalty[:3])
    assert torch.allclose(compactor.conv.weight.grad[3:], (gradient + penalty)[3:])


def test_masked_rows_have_a_pull_of_their_own_and_the_others_settle_when_the_target_is_met() -> None:
    net = network()
    resrep = ResRep(net, X, target=0.999, strength=0.1, masked_strength=0.3, stop_when_met=True, multiple=1)
    compactor = compactors(net)[0]
    rows = compactor.conv.weight.flatten(1)
    directions = (rows / rows.norm(dim=1, keepdim=True)).reshape(compactor.conv.weight.shape)
    for masked in (0, 3):  # the target is met with three
        net.zero_grad()
        compactor.mask[:masked] = 0
        F.cross_entropy(net(X), Y).backward()
        gradient = compactor.conv.weight.grad.clone()
        resrep.load_state_dict(resrep.state_dict())  # masks were changed by hand
        resrep.step()
        others = 0.0 if resrep.progress().met else 0.1
        assert torch.allclose(compactor.conv.weight.grad[:masked], 0.3 * directions[:masked])
        assert torch.allclose(compactor.conv.weight.grad[masked:], (gradient + others * directions)[masked:])
    assert resrep.progress().met


def test_rows_that_go_together_are_pulled_like_one() -> None:
    net = network(layers="all")
    resrep = ResRep(net, X, target=0.9, strength=0.1, multiple=1)
    compactor = net.get_submodule(resrep.units[0].rows[0][0])
    assert len(resrep.units[0].rows) > 1
    (net(X).sum() * 0).backward()
    resrep.step()
    assert torch.allclose(compactor.conv.weight.grad, 0.1 * compactor.conv.weight)


class PartlyNormed(nn.Module):
    """A depthwise convolution of two others, of which only one has a norm and so can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.bare = conv(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.depthwise, self.last = conv(14, 14, 3, groups=14, act=nn.SiLU), conv(14, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.depthwise(torch.cat([self.normed(x), self.bare(x)], 1)))


def test_rows_that_can_t_go_are_not_driven() -> None:
    net = insert_compactors(PartlyNormed(), X)
    resrep = ResRep(net, X, target=0.99, strength=0.1, multiple=1)
    (unit,) = resrep.units
    assert [path for path, _ in unit.rows] == ["normed.0.compactor", "depthwise.0.compactor"]
    (net(X).sum() * 0).backward()
    resrep.step()
    pulled = net.depthwise[0].compactor.conv.weight.grad.flatten()
    assert torch.equal(pulled, torch.tensor([0.1] * 8 + [0.0] * 6))


def test_rows_of_zeros_stay_zero_and_are_no_nan() -> None:
    net = network()
    optimizer = sgd(net)
    resrep = ResRep(net, X, optimizer, target=0.9, multiple=1)
    compactor = compactors(net)[0]
    with torch.no_grad():
        compactor.conv.weight[2] = 0
        compactor.mask[2] = 0
    learn(net, optimizer, resrep, 3)
    assert not compactor.conv.weight[2].any()
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize(("metric", "multiple"), [("macs", 1), ("params", 1), ("macs", 4), ("latency", 1)])
def test_masks_come_behind_the_warm_up_until_the_target_is_met(metric: str, multiple: int) -> None:
    net = network(layers="all" if metric == "latency" else "internal")
    optimizer = sgd(net)
    runtime = Stepped(1) if metric == "latency" else None
    resrep = ResRep(
        net, X, optimizer, target=0.6, metric=metric, runtime=runtime, multiple=multiple, warmup=4, interval=2,
        granularity=20,
    )  # fmt: skip
    learn(net, optimizer, resrep, 6)
    assert resrep.progress().masked == 0
    learn(net, optimizer, resrep, 1)
    first = resrep.progress()
    assert first.masked > 0 or multiple > 1
    learn(net, optimizer, resrep, 12)
    last = resrep.progress()
    assert last.met
    assert last.left <= last.target
    assert all(width % multiple == 0 for width in resrep.widths())
    assert "of the cost left (target" in str(last)


def test_a_network_goes_on_where_it_was() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.SGD, ResRep]:
        net = network()
        optimizer = sgd(net)
        return net, optimizer, ResRep(net, X, optimizer, target=0.6, multiple=1, interval=2, granularity=4)

    net, optimizer, resrep = fresh()
    learn(net, optimizer, resrep, 5)
    kept = [copy.deepcopy(part.state_dict()) for part in (net, optimizer, resrep)]
    learn(net, optimizer, resrep, 6)
    again = fresh()
    for part, state in zip(again, kept, strict=True):
        part.load_state_dict(state)
    learn(*again, 6)
    ours, theirs = net.state_dict(), again[0].state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert again[2].progress() == resrep.progress()
    with pytest.raises(InputError, match="another network"):
        resrep.load_state_dict({"iteration": 3, "units": []})


def test_layers_that_are_added_lose_the_same_channels() -> None:
    net = network(layers="all")
    optimizer = sgd(net)
    resrep = ResRep(net, X, optimizer, target=0.5, multiple=1, interval=1, granularity=40)
    learn(net, optimizer, resrep, 8)
    for unit in resrep.units:
        masks = [net.get_submodule(path).mask[rows] for path, rows in unit.rows]
        assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert resrep.progress().met
    plain = ub.prune.finalize(net, X, multiple=1, masked=True)
    widths = [int(m.sum()) for m in (net.get_submodule(u.rows[0][0]).mask[u.rows[0][1]] for u in resrep.units)]
    assert sum(widths) < sum(resrep.graph.full)
    assert resrep.graph.macs(widths) == ub.report(plain).macs[1]


@pytest.mark.slow
def test_branches_are_pruned_and_merged_in_one_go() -> None:
    torch.manual_seed(0)
    net = insert_compactors(ub.create_model("resnet8_cifar", num_classes=10, block="dbb", width=8), X)
    optimizer = sgd(net)
    resrep = ResRep(net, X, optimizer, target=0.6, multiple=1, interval=1, granularity=40)
    learn(net, optimizer, resrep, 4)
    plain = ub.prune.finalize(net, X, multiple=1, masked=True)
    assert ub.report(plain).macs[1] <= 0.6 * ub.report(plain).macs[0]
    assert ub.report(plain).after.layers["convolution"] == 9
    assert ub.report(plain).after.layers["batch norm"] == 0
    assert resrep.finalize().pruning.macs[0] == ub.report(plain).macs[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.01}, r"`target` must be at least 0\.\d+, the cost with the fewest channels, got 0.01"),
        ({"target": 0.0}, r"must be a fraction of the cost in \(0, 1\]"),
        ({"target": 1.5}, r"must be a fraction of the cost in \(0, 1\]"),
        ({"metric": "watts"}, "must be one of macs, params, latency"),
        ({"interval": 0}, "`interval` must be at least 1"),
        ({"granularity": 0}, "`granularity` must be an integer ≥ 1"),
    ],
)
def test_wrong_settings_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResRep(network(), X, **options)


def test_other_optimisers_and_networks_are_told() -> None:
    net = network()
    with pytest.raises(InputError, match="must be SGD with momentum, got Adam"):
        ResRep(net, X, torch.optim.Adam(net.parameters()), target=0.9)
    some = torch.optim.SGD([m.conv.weight for m in compactors(net)][:2], momentum=0.9, lr=1.0)
    with pytest.raises(InputError, match="must have the 3 compactors, it has 2"):
        ResRep(net, X, some, target=0.9, multiple=1)
    assert [len(group["params"]) for group in some.param_groups] == [2]  # as it was
    with pytest.raises(InputError, match="must have the 3 compactors, it has 0"):
        ResRep(net, X, torch.optim.SGD([nn.Parameter(torch.zeros(1))], momentum=0.9, lr=1.0), target=0.9)
    with pytest.raises(InputError, match="has no compactors"):
        ResRep(ub.create_model("resnet8_cifar"), X)


def test_wrapped_networks_are_unwrapped() -> None:
    net = network()
    assert ResRep(nn.DataParallel(net), X, target=0.9, multiple=1).network is net
