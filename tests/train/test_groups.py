"""The right parameters get decay, the doubled rate and the scale of their depth: by the published names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.train.stand_in import CIFAR, DIGITS, IMAGENET
from unbranch.blocks import RepVGG, custom_l2
from unbranch.errors import InputError
from unbranch.train.build import make_network
from unbranch.train.losses import extra_penalty
from unbranch.train.optimise import make_optimizer, make_schedule, parameter_groups
from unbranch.train.recipe import load_recipe
from unbranch.weights.layouts import layouts_of, renamed


def on_meta(name: str, *overrides: str, data: Any = IMAGENET) -> tuple[nn.Module, Any]:
    recipe = load_recipe(name, list(overrides))
    with torch.device("meta"):
        return make_network(recipe, data), recipe


def published_names(network: nn.Module, name: str, block: str | None, layout: str | None = None) -> dict[str, str]:
    """The published name of each of our parameters."""
    layouts = layouts_of(name, block)
    table = next(known for known in layouts if layout in (None, known.name)).table
    turned = tuple((ours, theirs) for theirs, ours in table)
    names = {ours: renamed(turned, ours) for ours, _ in network.named_parameters()}
    assert set(names.values()) <= set(ub.to_official(network, layout))
    return {ours: str(theirs) for ours, theirs in names.items()}


def told(network: nn.Module, recipe: Any) -> dict[str, tuple[float, float]]:
    """Weight decay and factor of the learning rate of each parameter."""
    groups = parameter_groups(network, recipe)
    names = [name for group in groups for name in group["names"]]
    own = dict(network.named_parameters())
    assert sorted(names) == sorted(own)
    for group in groups:
        assert all(own[name] is value for name, value in zip(group["names"], group["params"], strict=True))
    return {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}


Rule = Callable[[str, torch.Tensor], bool]


def flat(key: str, value: torch.Tensor) -> bool:
    return value.ndim <= 1 or key.endswith(".bias")


# recipe, overrides, data, layout; who is decayed and who has the double rate, by the published key
CASES: dict[str, tuple[str, list[str], Any, str | None, Rule, Rule]] = {
    name: (recipe, changes, data, layout, decayed, doubled)
    for name, recipe, changes, data, layout, decayed, doubled in (
        ("acnet resnet18", "acnet-imagenet", [], IMAGENET, "acnet",
         lambda key, value: "depth" not in key, lambda key, value: "bias" in key),
        ("acnet mobilenet", "acnet-imagenet", ["model.name=mobilenet_v1"], IMAGENET, "acnet",
         lambda key, value: "depth" not in key, lambda key, value: "bias" in key),
        ("acnet vgg", "acnet-cifar", [], CIFAR, "acnet",
         lambda key, value: "depth" not in key, lambda key, value: "bias" in key),
        ("acnet wrn", "acnet-cifar-wrn", [], CIFAR, "acnet",
         lambda key, value: "depth" not in key, lambda key, value: "bias" in key),
        ("dbb resnet50", "dbb", ["model.name=resnet50"], IMAGENET, "dbb",
         lambda key, value: "depth" not in key, lambda key, value: "bias" in key),
        ("dbb mobilenet", "dbb-mobile", [], IMAGENET, "dbb",
         lambda key, value: "depth" not in key, lambda key, value: "bias" in key),
        ("repvgg", "repvgg", [], IMAGENET, "repvgg",
         lambda key, value: not flat(key, value) or "identity.weight" in key, lambda key, value: False),
        ("repvggplus", "repvggplus", [], IMAGENET, "repvgg",
         lambda key, value: not flat(key, value) or "identity.weight" in key, lambda key, value: False),
        ("repmlpnet", "repmlpnet", [], IMAGENET, "repmlp",
         lambda key, value: not flat(key, value), lambda key, value: False),
        ("replknet", "replknet", [], IMAGENET, "replknet",
         lambda key, value: not flat(key, value), lambda key, value: False),
        ("repghost", "repghost", [], IMAGENET, "repghost",
         lambda key, value: not flat(key, value), lambda key, value: False),
        ("resrep", "resrep-base", [], CIFAR, "resrep",
         lambda key, value: "bias" not in key and "bn" not in key, lambda key, value: "bias" in key),
        ("resrep vgg", "resrep-base", ["model.name=vgg16_cifar"], CIFAR, "resrep",
         lambda key, value: "bias" not in key and "bn" not in key, lambda key, value: "bias" in key),
    )
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_decay_and_doubled_rate_are_for_the_published_parameters(case: str) -> None:
    name, changes, data, layout, decayed, doubled = CASES[case]
    network, recipe = on_meta(name, *changes, data=data)
    names, rates = published_names(network, recipe.model.name, recipe.model.block, layout), told(network, recipe)
    full = recipe.optimizer.weight_decay
    expected = {
        ours: (full if decayed(names[ours], value) else 0.0, 2.0 if doubled(names[ours], value) else 1.0)
        for ours, value in network.named_parameters()
    }
    assert rates == expected


def test_mobilenet_has_parameters_on_both_sides_of_the_rule() -> None:
    network, recipe = on_meta("dbb-mobile")
    rates = told(network, recipe)
    assert {rate for name, rate in rates.items() if ".depthwise." in name} == {(0.0, 1.0), (0.0, 2.0)}
    assert {rate for name, rate in rates.items() if ".depthwise." not in name} == {(1e-4, 1.0), (1e-4, 2.0)}


def test_repvgg_decays_no_scale_but_that_of_the_identity() -> None:
    network, recipe = on_meta("repvgg")
    decayed = {name for name, (decay, _) in told(network, recipe).items() if decay and "bn" in name}
    assert decayed
    assert all(name.endswith("identity.bn.weight") for name in decayed)


def replknet_depth(key: str) -> int:
    """The published groups, by the published key."""
    kind, _, rest = key.partition(".")
    if kind == "stem":
        return 0
    if kind not in ("stages", "transitions"):
        return 13
    stage = int(rest.split(".")[0])
    if stage == 2:
        return 11 if kind == "transitions" else 3 + int(rest.split(".")[2]) // 4
    return {0: 1, 1: 2, 3: 12}[stage]


@pytest.mark.parametrize("variant", ["replknet_31b", "replknet_xl"])
def test_layer_decay_of_replknet_is_the_published_one(variant: str) -> None:
    network, recipe = on_meta("replknet-finetune", f"model.name={variant}", "model.pretrained=null")
    names = published_names(network, variant, None)
    scales = {ours: scale for ours, (_, scale) in told(network, recipe).items()}
    depths = {ours: replknet_depth(key) for ours, key in names.items()}
    assert set(depths.values()) == set(range(14))
    assert scales == {ours: pytest.approx(0.7 ** (13 - depth)) for ours, depth in depths.items()}


def test_layer_decay_and_schedule_multiply() -> None:
    network, recipe = on_meta("replknet-finetune", "model.pretrained=null")
    optimizer = make_optimizer(network, recipe, 2048)
    make_schedule(optimizer, recipe, 10).set(9)  # the last of the warm-up: the full rate
    rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([4e-4 * 0.7**i for i in range(14)])


def test_layer_decay_works_on_timms_networks_and_says_where_it_cannot() -> None:
    recipe = load_recipe("digits", ["optimizer.layer_decay=0.5", "model.name=timm:resnet10t", "model.block=null"])
    network = make_network(recipe, CIFAR)
    assert min(group["lr_scale"] for group in parameter_groups(network, recipe)) < 0.1
    with pytest.raises(InputError, match="needs a network that implements timm's group_matcher"):
        parameter_groups(nn.Linear(2, 2), recipe)


def test_frozen_parameters_are_in_no_group_and_something_has_to_be_left() -> None:
    network, recipe = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), load_recipe("digits")
    network[0].requires_grad_(False)
    assert sorted(name for g in parameter_groups(network, recipe) for name in g["names"]) == ["1.bias", "1.weight"]
    with pytest.raises(InputError, match="there is nothing to train"):
        parameter_groups(network.requires_grad_(False), recipe)


def test_last_matching_rule_counts_field_by_field() -> None:
    rules = "optimizer.rules=[{match: '*', decay_scale: 0.5, lr_scale: 3}, {match: ['0.*'], lr_scale: 4}]"
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rates = told(network, load_recipe("digits", [rules]))
    assert rates == {"0.weight": (5e-5, 4), "0.bias": (5e-5, 4), "1.weight": (5e-5, 3), "1.bias": (5e-5, 3)}


def test_custom_l2_takes_the_place_of_decay_on_its_kernels_alone() -> None:
    network, plain = on_meta("repvgg", "model.name=repvgg_a0")
    recipe = load_recipe("repvgg", ["loss.custom_l2=true"])
    before, after = told(network, plain), told(network, recipe)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith(("conv_kxk.conv.weight", "conv_1x1.conv.weight"))}
    assert all(after[name] == (0.0, 1.0) for name in changed)


def test_custom_l2_is_half_the_decay_times_the_penalty_of_every_block_with_gradients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(RepVGG(3, 4, 3, padding=1), RepVGG(4, 4, 3, padding=1))
    penalty = extra_penalty(network, load_recipe("repvgg", ["loss.custom_l2=true"]))
    assert penalty is not None
    expected = 0.5 * 1e-4 * (custom_l2(network[0]) + custom_l2(network[1]))
    torch.testing.assert_close(penalty(), expected)
    penalty().backward()
    assert all(block.conv_kxk.conv.weight.grad.abs().sum() > 0 for block in network)
    assert extra_penalty(network, load_recipe("repvgg")) is None
    with pytest.raises(InputError, match="needs a network with RepVGG blocks"):
        extra_penalty(nn.Linear(2, 2), load_recipe("repvgg", ["loss.custom_l2=true"]))


def test_blocks_begin_as_the_recipe_says() -> None:
    network = make_network(load_recipe("acnet-cifar-quick"), CIFAR)
    scales = [p for name, p in network.named_parameters() if name.endswith("bn.weight")]
    assert scales
    assert all(torch.equal(scale, torch.full_like(scale, 0.333)) for scale in scales)


def test_blocks_that_the_recipe_leaves_out_begin_as_ever() -> None:
    network = make_network(load_recipe("acnet-cifar-wrn"), CIFAR)
    assert float(network.stem.conv.square.bn.weight[0].detach()) == pytest.approx(0.333)
    assert float(network.stages[0][0].conv1.conv.square.bn.weight[0].detach()) == 1


def test_single_init_is_one_override_away() -> None:
    network = make_network(load_recipe("digits", ["block.init=single"]), DIGITS)
    block = network.stem.conv
    assert [float(block.get_submodule(name).bn.weight[0].detach()) for name in block.branch_names] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("replknet-finetune", [], "needs pretrained weights: model.pretrained=FILE"),
        ("resrep-base", ["block.init=1"], "needs blocks with branches"),
        ("acnet-cifar", ["block.where=nowhere.*"], "needs blocks with branches at nowhere"),
        ("digits", ["model.name=resnet_8_cifa"], "did you mean resnet8_cifar"),
    ],
)
def test_network_that_cannot_be_made_is_told(name: str, changes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        on_meta(name, *changes, data=CIFAR)


def test_drop_rates_options_and_expansion_reach_the_network() -> None:
    changes = ["model.drop_path=0.3", "model.drop_rate=0.25", "model.expand={block: repvgg, where: 'stages.2.*'}"]
    network = make_network(load_recipe("resrep-base", changes), CIFAR)
    assert network.head.dropout.p == 0.25
    assert network.stages[2][8].drop_path.rate == pytest.approx(0.3)
    assert isinstance(network.stages[2][1].conv1.conv, RepVGG)
    assert network.training
    assert network.num_classes == 10
