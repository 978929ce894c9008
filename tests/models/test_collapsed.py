"""A collapsed network is still the network: its class, its methods, its parts; and it comes back from a file."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.models.zoo_rows import HOSTS, KINDS, ROWS, Row, collapsed, norms_of, offered, tensor_of, trained
from tests.networks import randomised
from unbranch.errors import InputError
from unbranch.provenance import provenance_of

every_family = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
some_families = pytest.mark.parametrize("row", KINDS.values(), ids=KINDS.keys())


@pytest.mark.sweep(5)
@every_family
@torch.no_grad()
def test_collapsed_network_computes_the_same_with_the_same_methods(row: Row) -> None:
    network, plain, x = trained(row.name), collapsed(row.name), row.images().double()
    assert type(plain) is type(network)
    last, features = network.forward_features(x), plain.forward_features(x)
    pairs = [
        (plain(x), network(x)),
        (features, last),
        (plain.forward_head(features, pre_logits=True), network.forward_head(last, pre_logits=True)),
        (plain.get_classifier()(torch.ones(1, plain.head_hidden_size).double()),) * 2,
    ]
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    assert plain.feature_info == network.feature_info
    assert (plain.num_features, plain.num_classes, plain.in_channels) == (network.num_features, 5, 3)
    assert [type(stage) for stage in plain.stages] == [type(stage) for stage in network.stages]
    assert len(norms_of(plain)) == row.kept
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.sweep(3)
@every_family
def test_collapsed_network_refuses_the_same_images_and_takes_another_classifier(row: Row) -> None:
    plain = copy.deepcopy(collapsed(row.name))
    with pytest.raises(InputError, match=r"takes images \(B, 3, H, W\), got \(1, 4"):
        plain(row.images(1, 4).double())
    plain.reset_classifier(2)
    assert plain(row.images().double()).shape == (2, 2)


@pytest.mark.sweep(3)
@every_family
def test_collapsed_network_learns_again(row: Row) -> None:
    plain = copy.deepcopy(collapsed(row.name)).train()
    plain.set_grad_checkpointing()
    plain.freeze_stages(1)
    tensor_of(plain(row.images().double())).square().sum().backward()
    grads = {name: p.grad is not None for name, p in plain.named_parameters()}
    assert grads == {name: not name.startswith(("stem.", "stages.0.")) for name in grads}


@some_families
def test_collapsing_twice_is_collapsing_once(row: Row) -> None:
    once = collapsed(row.name)
    twice = ub.collapse(once)
    assert not ub.report(twice).merges
    assert repr(twice) == repr(once)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


# --- files ------------------------------------------------------------------------------------------


def assert_comes_back(network: Any, row: Row, path: Path) -> None:
    ub.save(network, path)
    with offered(row):
        again = ub.load(path)
    x = row.images().double()
    with torch.no_grad():
        assert torch.equal(tensor_of(again(x)), tensor_of(network(x)))
    assert type(again) is type(network)
    assert again.feature_info == network.feature_info
    assert provenance_of(again) == provenance_of(network)


@pytest.mark.sweep(5)
@some_families
@pytest.mark.parametrize("collapse", [False, True], ids=["training", "collapsed"])
def test_classifiers_and_backbones_come_back_from_their_files(row: Row, collapse: bool, tmp_path: Path) -> None:
    assert_comes_back(collapsed(row.name) if collapse else trained(row.name), row, tmp_path / "a.safetensors")
    backbone = randomised(row.make(features_only=True, out_indices=(0, -1), feature_norms=True)).double()
    assert_comes_back(ub.collapse(backbone) if collapse else backbone, row, tmp_path / "b.safetensors")


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("cifar_quick", {"block": "dbb", "block_options": {"init": "single"}}),
    "third": ("cifar_quick", {"block": "acb", "block_options": {"init": 1 / 3}, "num_classes": 0}),
    "tuples": ("resnet56_cifar", {"block": "dilated", "block_options": {"branches": ((1, 1),)}, "in_channels": 1}),
    "compactors": ("vgg16_cifar", {"block": "compactor"}),
    "pruned": ("cifar_quick", {"pruned_widths": (3, 8, 5)}),
    "drop path": ("resnet18", {"drop_path_rate": 0.1, "drop_rate": 0.2, "num_classes": 3}),
}


@pytest.mark.parametrize(("name", "options"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options_come_back_from_a_file(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    row = ROWS[name]
    network = randomised(row.make(**options)).double()
    channels = options.get("in_channels", 3)
    for form in (network, ub.collapse(network)):
        ub.save(form, tmp_path / "a.safetensors")
        with offered(row):
            again = ub.load(tmp_path / "a.safetensors")
        x = row.images(channels=channels).double()
        assert torch.equal(again(x), form(x))
        assert provenance_of(again) == provenance_of(form)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", ["cifar_quick", "replknet_31b", "repvggplus_l2pse"])
def test_a_network_with_another_classifier_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    for network in (trained(name), collapsed(name)):
        changed = copy.deepcopy(network)
        changed.reset_classifier(7)
        assert_comes_back(changed, ROWS[name], tmp_path / "a.safetensors")
        changed.reset_classifier(0)
        assert_comes_back(ub.collapse(changed), ROWS[name], tmp_path / "a.safetensors")


# --- blocks -----------------------------------------------------------------------------------------


class Pair(nn.Module):
    """A block of a user: two kernels of one size, each with its norm."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1):
        super().__init__()
        place = (inside, outside, kernel, stride, padding, 1, groups)
        self.first, self.second = (nn.Conv2d(*place, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms[0](self.first(x)) + self.norms[1](self.second(x))


class OwnConv(nn.Conv2d):
    """A convolution of a user."""


EVERYWHERE, ONCE = ("acb", "dbb", "repvgg", Pair), ("mobileone", "qarepvgg", "dilated", "replk", OwnConv)
PLACES = [*((name, block) for name in HOSTS for block in EVERYWHERE), *(("resnet50", block) for block in ONCE)]


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("name", "block"), PLACES)
def test_hosts_take_any_block_and_all_collapse_to_the_plain_network(name: str, block: Any) -> None:
    row = ROWS[name]
    options = {"dilated": {"branches": ((1, 1),)}, "replk": {"small_kernel": 1}}.get(block, {})
    network = randomised(row.make(block=block, block_options=options)).double()
    plain, x = ub.collapse(network), row.images().double()
    with torch.no_grad():
        y = network(x)
        assert (plain(x) - y).abs().max() <= 1e-10 * y.abs().max()
    # a wide ResNet's first norms belong to no convolution, so that some of its blocks bring further ones
    assert len(norms_of(plain)) <= row.kept
    host = collapsed(row.name)
    kernels = [tuple(m.weight.shape) for m in host.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(m.weight.shape) for m in plain.modules() if isinstance(m, nn.Conv2d)] == kernels


@pytest.mark.parametrize("row", [row for row in HOSTS.values() if row.name != "wrn_16_8"], ids=lambda row: row.name)
def test_compactors_are_behind_the_prunable_layers_and_start_as_nothing(row: Row) -> None:
    network, plain, x = row.make(block="compactor").double(), row.make().double(), row.images().double()
    compactors = [name for name in network.state_dict() if "compactor.conv" in name]
    assert compactors
    theirs = {key: value for key, value in network.state_dict().items() if "compactor" not in key}
    plain.load_state_dict(theirs)
    assert torch.equal(network.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("block", ["acb", "dbb", Pair, OwnConv, "mobileone"])
def test_repvgg_is_built_of_any_block(block: Any) -> None:
    for name in ("repvgg_a0", "repvgg_d2se"):
        row = ROWS[name]
        network = randomised(row.make(block=block)).double()
        plain, x = ub.collapse(network), row.images().double()
        assert torch.allclose(plain(x), network(x), rtol=1e-10, atol=1e-12)
        assert not norms_of(plain)
        gates = sum("down" in key for key in network.state_dict())
        assert gates == (2 * 7 if name == "repvgg_d2se" else 0)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "name": (
        "resnet18",
        {"block": "abc"},
        "`block` must be one of acb, dbb, repvgg, .*, got 'abc'",
    ),
    "number": ("resnet18", {"block": 3}, "`block` must be one of acb, .* got 3"),
    "options": ("resnet18", {"block": "acb", "block_options": {"inti": 1}}, "block_options={'inti': 1}: .*'inti'"),
    "signature": ("resnet18", {"block": nn.ReLU}, "ReLU'> can't replace a convolution with"),
    "no block": ("resnet18", {"block_options": {"init": 1}}, "`block_options` need a `block`"),
    "repghost": (
        "repghostnet_050",
        {"block": "acb"},
        "`block` must be None for RepGhostNet, .* got 'acb'",
    ),
    "repmlp": ("repmlpnet_t224", {"block": "acb"}, "made of blocks of its own"),
    "replk": ("replknet_31b", {"block": "dbb"}, "made of blocks of its own"),
    "mobileone": ("mobileone_s4", {"block": "dbb"}, "made of blocks of its own"),
    "wrn": ("wrn_16_8", {"block": "compactor"}, "has no compactors"),
    "repvgg": ("repvgg_a0", {"block": "compactor"}, "block='compactor' is for plain networks"),
    "drop path": (
        "repvgg_a0",
        {"block": "acb", "drop_path_rate": 0.1},
        "`drop_path_rate` must be 0 for other blocks",
    ),
    "widths": ("cifar_quick", {"pruned_widths": (3, 4)}, "fewer entries than the network has units"),
    "more widths": ("cifar_quick", {"pruned_widths": (3, 4, 5, 6)}, "more entries"),
    "wide": ("cifar_quick", {"pruned_widths": (3, 4, 99)}, "got 99 for 8 channels"),
    "one width": ("cifar_quick", {"pruned_widths": 3}, "`pruned_widths` must list the channels of each unit, got 3"),
}


@pytest.mark.parametrize(("name", "options", "message"), WRONG.values(), ids=WRONG.keys())
def test_blocks_and_widths_that_do_not_fit_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(InputError, match=message):
        ROWS[name].make(**options)
