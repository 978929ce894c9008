"""``to_official``: whoever leaves takes the weights along, under the names that the published code loads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import unbranch as ub
from tests.models.tiny import X, both_forms, equal, gap, published, quiet, scrambled, shared_forms, tiny
from tests.networks import randomised
from unbranch.errors import InputError
from unbranch.factory import create_model
from unbranch.weights import to_official


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("name", "block", "layout"), published())
def test_names_of_the_training_form_come_back_exactly(name: str, block: str | None, layout: str) -> None:
    source = shared_forms(name, block)[0]
    target = scrambled(copy.deepcopy(source))
    quiet(target, to_official(source, layout))
    assert equal(source, target)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "block"), [("resnet50", "dbb"), ("mobilenet_v1", "compactor"), ("repvgg_d2se", None), ("wrn_16_8", None)]
)
def test_names_of_the_deploy_form_come_back_to_the_last_digits(name: str, block: str | None) -> None:
    source = shared_forms(name, block)[1]
    first = to_official(source)
    target = scrambled(copy.deepcopy(source))
    quiet(target, first)
    again = to_official(target)
    assert again.keys() == first.keys()
    assert all(torch.allclose(again[key], first[key], rtol=0, atol=1e-12) for key in first)


@torch.no_grad()
@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
def test_timm_loads_ours_strictly_in_both_forms(name: str) -> None:
    ours = randomised(create_model(name, num_classes=5).double())
    theirs = timm.create_model(name, num_classes=5).double().eval()
    theirs.load_state_dict(to_official(ours, "timm"), strict=True)
    x = X[..., :32]
    expected = ours(x)
    assert gap(theirs(x), expected) < 1e-10
    merged = scrambled(timm.utils.model.reparameterize_model(theirs))
    merged.load_state_dict(to_official(ub.collapse(ours), "timm"), strict=True)
    assert gap(merged(x), expected) < 1e-10


# --- what was done to a network


def test_other_classes_are_written_as_they_are() -> None:
    for network in both_forms("repvgg_b1g2"):
        network.reset_classifier(3)
        state = to_official(network)
        assert state["linear.weight"].shape == (3, network.num_features)
        network.reset_classifier(0)
        assert not any(key.startswith("linear.") for key in to_official(network))


def test_a_backbone_is_written_without_its_head() -> None:
    """RepLKNet's detectors have norms on the maps."""
    network = tiny("replknet_31b", features_only=True, feature_norms=True)
    state = to_official(network)
    assert "stages.3.norm.weight" in state
    assert not any(key.startswith(("head.", "norm.")) for key in state)
    assert to_official(ub.collapse(network)).keys() >= {"stages.0.blocks.0.large_kernel.lkb_reparam.bias"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["repvgg_b1g2", "repmlpnet_t224", "resnet18"])
def test_a_collapsed_network_can_be_trained_on_and_written(name: str) -> None:
    """A plain network that was fine-tuned has a deploy form, if no longer a training form."""
    plain = both_forms(name)[1]
    for parameter in plain.parameters():
        parameter += 0.01 * torch.randn_like(parameter)
    state = to_official(plain)
    target = both_forms(name)[1]
    quiet(target, state)
    assert gap(target(X), plain(X)) < 1e-10


@torch.no_grad()
def test_precision_is_that_of_the_network() -> None:
    for network in both_forms("repghostnet_050_none"):
        state = to_official(network.half())
        assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}


def test_wrappers_are_taken_off_and_nothing_is_shared_with_autograd() -> None:
    network = tiny("cifar_quick")
    state = to_official(nn.DataParallel(network))
    assert state.keys() == to_official(network).keys()
    assert not any(value.requires_grad for value in state.values())


def test_lone_branches_stay_apart_as_the_published_conversion_leaves_them() -> None:
    """Of a RepGhostNet without fusions; whatever its width, and told by its structure, not by its name."""
    network = ub.collapse(tiny("repghostnet_100", fusion="none"))
    assert "blocks.0.0.ghost1.cheap_operation.0.weight" in to_official(network)
    assert "blocks.0.0.ghost1.cheap_operation.weight" in to_official(network, "repghost-deploy")


# --- refusals


@pytest.mark.parametrize(
    ("name", "options", "layout", "message"),
    [
        ("resnet18", {"block": "repvgg"}, None, "no published code for resnet18 with block='repvgg'"),
        ("resnet18", {}, "mmcv", "`layout` must be one of acnet, dbb, timm, got 'mmcv'"),
        ("timm:test_resnet", {}, None, "no published code for timm:test_resnet"),
        ("repvgg_a0", {"block": "acb"}, None, "no published code for repvgg_a0 with block=.acb."),
    ],
)
def test_to_official_says_what_there_is(name: str, options: dict[str, Any], layout: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_official(create_model(name, **options), layout)


def test_networks_without_a_name_or_with_other_steps_have_no_published_names() -> None:
    with pytest.raises(InputError, match=r"only for a model from create_model.*this one is torch.nn.*Sequential"):
        to_official(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InputError, match="this one is resnet18 after expand"):
        to_official(ub.expand(create_model("resnet18", width=4), "acb"))
    with pytest.raises(InputError, match="this one is resnet18 after expand, collapse"):
        to_official(ub.collapse(ub.expand(create_model("resnet18", width=4), "acb")))


def test_what_was_changed_after_collapsing_is_told() -> None:
    plain = both_forms("repvgg_b1g2")[1]
    plain.stages[0][0] = nn.Identity()
    with pytest.raises(InputError, match=r"no layer that stands for stages.0.0.*changed after it was collapsed"):
        to_official(plain)
    plain = both_forms("repvgg_b1g2")[1]
    plain.stem = nn.Conv2d(3, 4, 3, 2, 1)
    with pytest.raises(InputError, match="stem has a kernel"):
        to_official(plain)


def test_a_bias_without_a_place_in_the_training_form_is_told() -> None:
    plain = ub.collapse(tiny("wrn_16_8"))
    last = plain.stages[2][1].conv2.conv
    last.bias = nn.Parameter(torch.ones(last.out_channels, dtype=torch.float64))
    with pytest.raises(InputError, match="has a bias for which its training form has no place"):
        to_official(plain)
