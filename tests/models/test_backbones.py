"""Every network without its head: the maps are those of the network, at the sizes that it says, in timm's words."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.models.zoo_rows import ROWS, Row, trained
from unbranch.errors import InputError

every_family = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def backbone_of(network: Any, row: Row, **options: Any) -> Any:
    """With the weights of a network."""
    backbone = row.make(features_only=True, **options).double().eval()
    own = backbone.state_dict()
    weights = {key: value for key, value in network.state_dict().items() if key in own}
    backbone.load_state_dict(own | weights)
    return backbone


def maps_by_hook(network: Any, x: Tensor) -> list[Tensor]:
    """What the modules that ``feature_info`` names put out."""
    maps: dict[str, Tensor] = {}
    names = [level["module"] for level in network.feature_info]
    handles = [
        network.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: maps.update({name: y}))
        for name in names
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return [maps[name] for name in names]


@every_family
@torch.no_grad()
def test_maps_are_those_of_the_network_and_as_announced(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    backbone = backbone_of(network, row)
    maps, info = backbone(x), backbone.feature_info
    assert info == network.feature_info
    assert [y.shape[1] for y in maps] == info.channels()
    for y, reduction in zip(maps, info.reduction(), strict=True):
        for size, side in zip(y.shape[2:], x.shape[2:], strict=True):
            # poolings that don't pad cut off at most one step
            assert size == -(-side // reduction) if row.padded else 0 <= side // reduction - size <= 1
    for ours, hooked in zip(maps, maps_by_hook(copy.deepcopy(network), x), strict=True):
        assert torch.equal(ours, hooked)
    assert info.module_name() == [level["module"] for level in info]
    assert info.reduction() == sorted(set(info.reduction()))


@every_family
@torch.no_grad()
def test_any_of_the_maps_can_be_had_and_what_lies_behind_them_is_left_out(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    every, size = backbone_of(network, row)(x), len(network.feature_info)
    for wanted, expected in {
        (0,): [0],
        (-1,): [size - 1],
        (2, 0): [0, 2],  # finest first, whatever the order
        (-2, size - 2): [size - 2],
        (1, -1): [1, size - 1],
        2: [size - 2, size - 1],
        1: [size - 1],
    }.items():
        backbone = backbone_of(network, row, out_indices=wanted)
        maps = backbone(x)
        assert len(maps) == len(expected)
        assert all(torch.equal(y, every[i]) for y, i in zip(maps, expected, strict=True))
        assert backbone.feature_info == [network.feature_info[i] for i in expected]
    first = backbone_of(network, row, out_indices=[0])
    assert len(first.stages) == network.levels[0].position < len(network.stages)


@pytest.mark.parametrize("wrong", [(), (5,), (-6, 0), 0, 6, -1, (0.5,), "ab", ("1",)])
def test_maps_that_there_are_not_are_refused(wrong: Any) -> None:
    with pytest.raises(
        InputError, match=r"`out_indices` must be one or more of -5 to 4, or how many from the end, got"
    ):
        ROWS["resnet18"].make(features_only=True, out_indices=wrong)


@pytest.mark.parametrize("option", [{"out_indices": (1,)}, {"feature_norms": True}])
def test_options_of_backbones_are_refused_for_classifiers(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="need features_only=True"):
        ROWS["resnet18"].make(**option)


@every_family
@torch.no_grad()
def test_norms_on_the_maps_are_the_maps_own(row: Row) -> None:
    network, x = trained(row.name), row.images().double()
    plain = backbone_of(network, row, out_indices=(0, -1))
    backbone = backbone_of(network, row, out_indices=(0, -1), feature_norms=True)
    assert [norm.num_features for norm in backbone.norms.values()] == backbone.feature_info.channels()
    for norm, y, before in zip(backbone.norms.values(), backbone(x), plain(x), strict=True):
        assert torch.equal(y, norm(before))


@every_family
def test_every_parameter_of_a_backbone_gets_a_gradient(row: Row) -> None:
    backbone = row.make(features_only=True).double().train()
    sum(y.square().sum() for y in backbone(row.images().double())).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


class Detector(nn.Module):
    """A backbone inside of something of the user's."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.necks = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in backbone.feature_info.channels())

    def forward(self, x: Tensor) -> Tensor:
        maps = [neck(y) for neck, y in zip(self.necks, self.backbone(x), strict=True)]
        return torch.cat([y.flatten(2) for y in maps], 2)


@pytest.mark.sweep(6)
@every_family
def test_a_backbone_collapses_alone_and_inside_of_a_detector(row: Row) -> None:
    x = row.images().double()
    backbone = backbone_of(trained(row.name), row, out_indices=(1, -1))
    plain = ub.collapse(backbone)
    assert type(plain) is type(backbone)
    assert plain.feature_info == backbone.feature_info
    detector = Detector(backbone).double().eval()
    inside = ub.collapse(detector)
    with torch.no_grad():
        assert (detector(x) - inside(x)).abs().max() <= 1e-10 * detector(x).abs().max()
        for ours, theirs, again in zip(plain(x), backbone(x), inside.backbone(x), strict=True):
            assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()
            assert torch.equal(ours, again)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in inside.backbone.parameters())
    assert type(inside) is Detector


@pytest.mark.parametrize(
    "name", ["repvgg_a0", "repghostnet_050", "mobileone_s0", "resnet18", "resnet50", "mobilenetv1_100"]
)
def test_what_is_said_of_the_maps_is_what_timm_says(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = (ub.create_model(n, features_only=True).feature_info for n in (name, f"timm:{name}"))
    assert ours.channels() == theirs.channels()
    assert ours.reduction() == theirs.reduction()


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
@torch.no_grad()
def test_maps_are_timms_own(name: str) -> None:
    """In float64, with timm's weights; logits and features before the classifier, too."""
    theirs = timm.create_model(name, num_classes=7).double().eval()
    ub.models.randomise_statistics(theirs)
    ours, backbone = (ub.create_model(name, num_classes=7, features_only=f).double().eval() for f in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ub.load_checkpoint(ours, theirs.state_dict())
        ub.load_checkpoint(backbone, theirs.state_dict())
    x = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    first = 1 if name.startswith("repghostnet") else 0  # where timm takes the map before its norm
    pairs = [*zip(backbone(x), maps_by_hook(theirs, x), strict=True)][first:]
    features = ours.forward_features(x), theirs.forward_features(x)
    before = [net.forward_head(net.forward_features(x), pre_logits=True) for net in (ours, theirs)]
    for mine, timms in [*pairs, features, before, (ours(x), theirs(x))]:
        assert mine.shape == timms.shape
        assert (mine - timms).abs().max() <= 1e-10 * timms.abs().max()
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
