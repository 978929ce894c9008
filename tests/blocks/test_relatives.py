"""The younger relatives are what their papers and timm say."""

from __future__ import annotations

import pytest
import torch
from timm.models.byobnet import MobileOneBlock
from timm.models.fastvit import RepMixerBlock as FastViTBlock
from timm.models.repvit import RepViTBlock as TimmRepViTBlock
from torch import Tensor, nn

import unbranch as ub
from unbranch.blocks import (
    GRN,
    DilatedReparam,
    MobileOne,
    QARepVGG,
    RepMixerBlock,
    RepVGG,
    RepViTBlock,
    UniRepLKNetBlock,
)
from unbranch.blocks.dilated import BRANCHES
from unbranch.errors import InputError
from unbranch.models import randomise_statistics

X = torch.randn(2, 8, 11, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ready(module: nn.Module) -> nn.Module:
    module = module.double()
    randomise_statistics(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def copied(theirs: nn.Module, ours: nn.Module, names: tuple[tuple[str, str], ...]) -> None:
    """Give ours the state of theirs, each prefix turned into another."""
    state = {}
    for key, value in theirs.state_dict().items():
        new = next((mine + key.removeprefix(old) for old, mine in names if key.startswith(old)), key)
        state[new] = value.reshape(ours.state_dict()[new].shape)
    ours.load_state_dict(state)


@torch.no_grad()
def assert_equal_in_both_modes(theirs: nn.Module, ours: nn.Module) -> None:
    for mode in (False, True):
        a, b = theirs.train(mode)(X), ours.train(mode)(X)
        assert float((a - b).abs().max()) < 1e-12 * float(a.abs().max())


def test_mobileone_equals_timms() -> None:
    for channels, kernel, stride, groups in ((8, 3, 1, 8), (8, 3, 2, 8), (12, 1, 1, 1)):
        theirs = ready(MobileOneBlock(8, channels, kernel, stride, group_size=8 // groups, num_conv_branches=3))
        ours = MobileOne(
            8, channels, kernel, stride, kernel // 2, groups=groups, num_branches=3, activation=nn.ReLU
        ).double()
        copied(theirs, ours, (("identity.", "identity.bn."), *((f"conv_kxk.{i}.", f"conv_kxk_{i}.") for i in range(3))))
        assert_equal_in_both_modes(theirs, ours)


def test_repmixer_equals_timms() -> None:
    theirs, ours = ready(FastViTBlock(8, kernel_size=3, layer_scale_init_value=0.5)), RepMixerBlock(8).double()
    names = (
        ("token_mixer.norm.identity.", "mixer.norm."),
        ("token_mixer.mixer.identity.", "mixer.mixer.identity.bn."),
        ("token_mixer.mixer.conv_kxk.0.", "mixer.mixer.conv_kxk_0."),
        ("token_mixer.mixer.", "mixer.mixer."),
        ("token_mixer.layer_scale.", "mixer.scale."),
        ("mlp.conv.", "conv."),
        ("mlp.", ""),
        ("layer_scale.", "scale."),
    )
    copied(theirs, ours, names)
    assert_equal_in_both_modes(theirs, ours)


@pytest.mark.parametrize("gate", [False, True])
def test_repvit_equals_timms(gate: bool) -> None:
    theirs = ready(TimmRepViTBlock(8, 2, 3, gate, nn.GELU))
    ours = RepViTBlock(8, squeeze_excite=gate).double()
    names = (
        ("token_mixer.conv1.", "token_mixer.conv_1x1."),
        ("token_mixer.conv.c.", "token_mixer.conv_kxk.conv."),
        ("token_mixer.conv.bn.", "token_mixer.conv_kxk.bn."),
        ("se.fc1.", "se.down."),
        ("se.fc2.", "se.up."),
        *((f"channel_mixer.conv{i}.c.", f"pw{i}.conv.") for i in (1, 2)),
        *((f"channel_mixer.conv{i}.bn.", f"pw{i}.bn.") for i in (1, 2)),
    )
    copied(theirs, ours, names)
    assert_equal_in_both_modes(theirs, ours)


@pytest.mark.parametrize("kernel", BRANCHES)
def test_branches_of_the_paper_fill_the_kernel(kernel: int) -> None:
    """Each with its gaps is no larger than the kernel, and the widest has its size or two less."""
    reach = [dilation * (k - 1) + 1 for k, dilation in BRANCHES[kernel]]
    assert max(reach) in (kernel, kernel - 2)
    block = DilatedReparam(8, 8, kernel, padding=kernel // 2, groups=8)
    assert len(block.branch_names) == 1 + len(BRANCHES[kernel])


def test_dilated_branch_is_where_its_taps_are() -> None:
    block = ready(DilatedReparam(8, 8, 7, padding=3, groups=8, branches=((3, 3),))).eval()
    with torch.no_grad():
        block.large.conv.weight.zero_()
    kernel, _ = ub.equivalent_kernel(block)
    taps = torch.zeros(7, 7, dtype=torch.bool)
    taps[::3, ::3] = True
    assert kernel[..., taps].all()
    assert not kernel[..., ~taps].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 19}, "for which the paper has none"),
        ({"kernel_size": (7, 5)}, "for which the paper has none"),
        ({"kernel_size": 7, "branches": ((3, 4),)}, "taps 3 apart|taps 4 apart"),
        ({"kernel_size": 7, "branches": ((9, 1),)}, "doesn't fit"),
    ],
)
def test_wrong_branches_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        DilatedReparam(8, 8, **arguments)


def test_qarepvgg_has_one_norm_beside_and_one_behind_the_sum() -> None:
    block = QARepVGG(8, 8, 3, padding=1)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in block.modules()) == 2
    assert sum(isinstance(m, nn.BatchNorm2d) for m in RepVGG(8, 8, 3, padding=1).modules()) == 3
    assert isinstance(block.closing, nn.BatchNorm2d)


def test_qarepvgg_isnt_put_into_a_trained_network() -> None:
    """The norm after the sum would see other statistics in training."""
    with pytest.raises(InputError):
        ub.expand(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), QARepVGG)


def test_grn_starts_as_the_identity_and_follows_its_formula() -> None:
    grn = GRN(8).double()
    assert torch.equal(grn(X), X)
    grn = ready(grn)
    length = X.square().sum((2, 3), keepdim=True).sqrt()
    expected: Tensor = X + grn.gamma * X * length / (length.mean(1, keepdim=True) + 1e-6) + grn.beta
    assert torch.allclose(grn(X), expected, atol=1e-12)


@pytest.mark.parametrize("kernel", [3, 13])
def test_unireplknet_block_has_one_depthwise_kernel_once_collapsed(kernel: int) -> None:
    plain = ub.collapse(ready(UniRepLKNetBlock(8, kernel)).eval())
    convs = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs if conv.groups == 8] == [(kernel, kernel)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
