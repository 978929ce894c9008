"""Real networks, beside the peers: never more layers than timm's own conversion leaves, and the same function."""

# ruff: noqa: E402
from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.networks import randomised

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from benchmarks.peers import by_timm
from benchmarks.peers import layers as counted

pytestmark = pytest.mark.slow

# name: input side, and what is left of convolution and linear layers together, and of batch norms
TIMM = {
    "repvgg_a0": (64, 23, 0),
    "repvgg_b1g4": (64, 29, 0),
    "mobileone_s1": (64, 44, 0),
    "mobileone_s4": (64, 68, 0),
    "fastvit_t8": (128, 53, 0),
    "repvit_m1_0": (64, 104, 0),
    "repghostnet_100": (64, 96, 0),
    "efficientformer_l1": (224, 39, 0),
    "resnet18": (64, 21, 0),
    "mobilenetv2_100": (64, 53, 0),
    "densenet121": (64, 121, 62),
    "convnext_atto": (64, 41, 0),
}

TORCHVISION = {
    "resnet18": (64, 21),
    "mobilenet_v2": (64, 53),
    "shufflenet_v2_x1_0": (64, 57),
    "googlenet": (64, 64),
    "inception_v3": (96, 98),
    "regnet_y_400mf": (64, 86),
    "mnasnet1_0": (64, 53),
    "fasterrcnn_mobilenet_v3_large_fpn": (None, 73),
    "lraspp_mobilenet_v3_large": (64, 66),
}


def check_same(network: nn.Module, example: object, plain: nn.Module | None = None) -> None:
    """In float32 against the noise floor, then in float64 to 1e-10."""
    own = ub.verify(network, ub.collapse(network) if plain is None else plain, example)
    assert own.native_rel <= 4 * own.noise_floor, str(own)
    network = network.double()
    exact = ub.verify(network, ub.collapse(network), example)
    assert exact.compared
    assert exact.max_rel <= 1e-10, str(exact)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    side, layers, norms = TIMM[name]
    torch.manual_seed(0)
    network = randomised(timm.create_model(name))
    plain = ub.collapse(network)
    ours, peers = counted(plain), by_timm(network)
    assert ours == (layers, norms)
    assert ours[0] <= peers[0]
    assert ours[1] <= peers[1]
    assert type(plain) is type(network)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert plain.forward_features(x).shape == network.forward_features(x).shape
    check_same(network, x, plain)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    side, layers = TORCHVISION[name]
    torch.manual_seed(0)
    options = {"weights": None}
    if side is None or name.startswith("lraspp"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if side is None:
        options |= {"min_size": 96, "max_size": 128}  # images are resized to that
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = randomised(torchvision.models.get_model(name, **options))
    plain = ub.collapse(network)
    assert counted(plain) == (layers, 0)
    assert type(plain) is type(network)
    if side is None:  # random weights detect nothing, so its backbone is compared
        assert plain([torch.rand(3, 60, 70)])[0].keys() == network([torch.rand(3, 60, 70)])[0].keys()
        network, side = network.backbone, 64
    check_same(network, torch.randn(2, 3, side, side))


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0", "mobilenetv2_100", "repghostnet_100", "regnety_002"])
def test_timm_backbones(name):
    network = randomised(timm.create_model(name, features_only=True, out_indices=(1, 3)).double())
    plain = ub.collapse(network)
    assert counted(plain)[1] == 0
    assert plain.feature_info.channels() == network.feature_info.channels()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(plain(x), network(x), strict=True):
            assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 64), ("repvgg_a0", 64), ("fastvit_t8", 128), ("efficientformer_l1", 224)]
)
def test_intermediate_features_are_the_same(name, side):
    network = randomised(timm.create_model(name).double())
    plain = ub.collapse(network)
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = plain.forward_intermediates(x)[1], network.forward_intermediates(x)[1]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_an_exponential_moving_average_is_taken_off():
    network = randomised(timm.create_model("resnet10t").double())
    averaged = timm.utils.ModelEmaV3(network)
    assert counted(ub.collapse(averaged))[1] == 0
