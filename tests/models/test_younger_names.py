"""Weights of the younger relatives go in and out under the names of their authors and of timm."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import unbranch as ub
from unbranch.errors import InputError
from unbranch.models import randomise_statistics

UNIREPLKNET = {  # as published: a large block, a small one, what is between and behind them
    "downsample_layers.0.3.weight": (40, 20, 3, 3),
    "downsample_layers.1.1.bias": (80,),
    "stages.0.1.dwconv.weight": (40, 1, 3, 3),
    "stages.1.0.dwconv.lk_origin.weight": (80, 1, 13, 13),
    "stages.1.0.dwconv.origin_bn.running_var": (80,),
    "stages.1.0.dwconv.dil_conv_k7_2.weight": (80, 1, 7, 7),
    "stages.1.0.dwconv.dil_bn_k3_5.weight": (80,),
    "stages.1.0.se.down.weight": (20, 80, 1, 1),
    "stages.1.0.pwconv1.1.weight": (320, 80),
    "stages.1.0.act.1.gamma": (1, 1, 1, 320),
    "stages.1.0.pwconv2.0.weight": (80, 320),
    "stages.1.0.pwconv2.2.bias": (80,),
    "stages.1.0.gamma": (80,),
    "norm.weight": (320,),
    "head.weight": (1000, 320),
}
MOBILEONE = {  # S4, whose last blocks have a gate
    "stage0.rbr_conv.0.conv.weight": (64, 3, 3, 3),
    "stage0.rbr_scale.bn.weight": (64,),
    "stage3.13.rbr_skip.running_mean": (896,),
    "stage3.13.rbr_conv.0.conv.weight": (896, 896, 1, 1),
    "stage3.13.se.reduce.weight": (56, 896, 1, 1),
    "stage4.1.se.expand.bias": (2048,),
    "linear.weight": (1000, 2048),
}
QAREPVGG = {
    "stage1.1.rbr_dense.bn.weight": (48,),
    "stage1.1.rbr_1x1.weight": (48, 48, 1, 1),
    "stage1.1.bn.running_mean": (48,),
    "linear.bias": (1000,),
}


@pytest.mark.parametrize(
    ("name", "published"),
    [("unireplknet_a", UNIREPLKNET), ("mobileone_s4", MOBILEONE), ("qarepvgg_a0", QAREPVGG)],
)
def test_names_and_shapes_are_the_published_ones(name: str, published: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        found = {key: tuple(value.shape) for key, value in ub.to_official(ub.create_model(name)).items()}
    assert {key: found.get(key) for key in published} == published


@pytest.mark.parametrize("name", ["unireplknet_a", "mobileone_s0", "qarepvgg_a0"])
def test_what_goes_out_comes_in_again(name: str) -> None:
    trained, fresh = (ub.create_model(name, num_classes=4).double().eval() for _ in range(2))
    randomise_statistics(trained)
    ub.load_checkpoint(fresh, {"model": ub.to_official(trained)})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(fresh(x), trained(x))


def test_a_layout_without_a_deploy_form_says_so() -> None:
    with torch.device("meta"):
        plain = ub.collapse(ub.create_model("unireplknet_a").eval())
        with pytest.raises(InputError, match="is for the training form"):
            ub.to_official(plain)


@pytest.mark.parametrize("converted", [False, True], ids=["training form", "deploy form"])
@pytest.mark.parametrize("name", ["mobileone_s0", "mobileone_s4"])
@torch.no_grad()
def test_timms_mobileone_is_ours(name: str, converted: bool) -> None:
    theirs = timm.create_model(name, num_classes=5).double().eval()
    randomise_statistics(theirs)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = theirs(x)
    given: nn.Module = timm.utils.reparameterize_model(theirs) if converted else theirs
    ours = ub.create_model(name, num_classes=5).double().eval()
    assert ub.load_checkpoint(ours, given.state_dict()).merged == converted
    assert float((ours(x) - expected).abs().max() / expected.abs().max()) < 1e-10
    back = timm.create_model(name, num_classes=5).double().eval()
    back.load_state_dict(ub.to_official(ours, "timm"))
    assert float((back(x) - expected).abs().max() / expected.abs().max()) < 1e-10
