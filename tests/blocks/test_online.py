"""Online re-parameterization: one convolution with the sum of the branches' kernels, which collapses as any other."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.blocks.rows import CONVOLUTIONS, Row
from tests.blocks.test_contract import assert_equal, kernels
from unbranch.blocks import DBB, OREPA, BranchedConv, ConvSpec, Mixed, RepVGG, custom_l2
from unbranch.blocks.orepa import SCALES, frequencies
from unbranch.convert.statistics import randomise_statistics

SWEEP = [
    pytest.param(row, arguments, id=f"{name}: {label}")
    for name, row in CONVOLUTIONS.items()
    for label, arguments in {"usual": {}, **row.sweep}.items()
]


def online(row: Row, arguments: dict[str, Any]) -> BranchedConv:
    torch.manual_seed(0)
    block = row.make(**row.arguments | arguments | {"online": True}).double()
    randomise_statistics(block)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    assert isinstance(block, BranchedConv)
    return block


@pytest.mark.sweep(7)
@pytest.mark.parametrize(("row", "arguments"), SWEEP)
def test_merged_kernel_is_the_sum_of_branches_run_one_by_one(row: Row, arguments: dict[str, Any]) -> None:
    block = online(row, arguments)
    x = torch.randn(row.shape, dtype=torch.float64)
    padded = x if block.pad is None else block.pad(x)
    assert_equal(
        block.summed(padded, block.branch_names), sum(block.get_submodule(n)(padded) for n in block.branch_names)
    )
    block.eval()
    plain = ub.collapse(block, x, strict=True)
    assert_equal(plain(x), block(x))
    assert len(kernels(plain)) == 1


def test_one_norm_is_left_and_it_is_behind_the_sum() -> None:
    block = DBB(8, 16, 3, padding=1, online=True)
    norms = [path for path, m in block.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == ["closing"]


def test_branches_have_learning_rates_of_their_own() -> None:
    """A step on the branches isn't the step on their sum: otherwise a plain convolution would do."""
    block = RepVGG(4, 4, 3, padding=1, online=True)
    before = block.kernel().detach()
    x = torch.randn(8, 4, 6, 6)
    block(x).square().sum().backward()
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    optimizer.step()
    moved = (block.kernel().detach() - before).abs().mean((0, 1))
    assert moved[1, 1] > 1.2 * moved.mean()


def test_orepa_starts_as_published() -> None:
    torch.manual_seed(0)
    block = OREPA(16, 32, 3, padding=1)
    assert {name: block.get_submodule(name).bn.weight[0].item() for name in block.branch_names} == SCALES
    weight = block.get_submodule("conv_kxk").conv.weight
    bound = math.sqrt(6 / (16 * 9))
    assert 0.95 * bound < weight.abs().max() <= bound
    single = OREPA(16, 32, 3, padding=1, init="single")
    assert [single.get_submodule(n).bn.weight[0].item() for n in single.branch_names] == [1, 0, 0, 0, 0, 0]


def test_frequencies_are_the_published_cosines() -> None:
    filters = frequencies(6, (3, 3))[:, 0]
    for i in range(6):
        for h in range(3):
            for w in range(3):
                j, t = (i + 1, h) if i < 3 else (i + 1 - 3, w)
                assert filters[i, h, w].item() == pytest.approx(math.cos(math.pi * (t + 0.5) * j / 3), abs=1e-6)


def test_width_inside_the_sequence_doubles_from_five_groups_on() -> None:
    for groups, width in ((4, 16), (8, 32)):
        block = OREPA(16, 16, 3, padding=1, groups=groups)
        assert block.get_submodule("conv_1x1_kxk").conv_kxk.in_channels == width


def test_collapse_of_a_network_of_online_blocks_leaves_one_convolution_each() -> None:
    network = ub.create_model("cifar_quick", block="orepa").eval()
    randomise_statistics(network)
    x = torch.randn(2, 3, 32, 32)
    plain = ub.collapse(network, x, strict=True)
    assert ub.verify(network, plain, x).ok
    assert len([m for m in plain.modules() if isinstance(m, nn.Conv2d)]) == 3


def test_equivalent_kernel_is_the_online_kernel_behind_the_norm() -> None:
    block = OREPA(4, 6, 3, padding=1).double()
    randomise_statistics(block)
    closing: Any = block.closing
    scale = closing.weight / (closing.running_var + closing.eps).sqrt()
    found = ub.equivalent_kernel(block).kernel
    assert_equal(found, block.kernel() * scale.view(-1, 1, 1, 1), 1e-12)
    found.sum().backward()
    assert block.get_submodule("separable").depthwise.weight.grad is not None


def test_penalty_of_repvgg_takes_scales_for_norms() -> None:
    block = RepVGG(4, 4, 3, padding=1, online=True)
    large, point = block.get_submodule("conv_kxk"), block.get_submodule("conv_1x1")
    with torch.no_grad():
        large.bn.weight.fill_(2.0)
    kernel = large.conv.weight
    middle = 2 * kernel[..., 1, 1] + point.conv.weight[..., 0, 0]
    wanted = kernel.square().sum() - kernel[..., 1, 1].square().sum() + (middle.square() / 5).sum()
    assert_equal(custom_l2(block), wanted, 1e-6)


def test_autocast_and_half_precision_train() -> None:
    for block, x in ((OREPA(8, 8, 3, padding=1), torch.randn(4, 8, 6, 6)),):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block(x)
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def nonlinear(spec: ConvSpec) -> nn.Module:
    return nn.Sequential(spec.conv_alone(), nn.ReLU())


def off_centre(spec: ConvSpec) -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d((2, -2, 0, 0)), spec.conv_alone((1, 1)))


def unstrided(spec: ConvSpec) -> nn.Module:
    return nn.Sequential(nn.Conv2d(spec.in_channels, spec.out_channels, 1, stride=2, bias=False))


def two_kernels(spec: ConvSpec) -> nn.Module:
    first = nn.Conv2d(spec.in_channels, spec.in_channels, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.Conv2d(spec.in_channels, spec.out_channels, 3, padding=1, bias=False))


@pytest.mark.parametrize("branch", [nonlinear, off_centre, unstrided, two_kernels], ids=lambda b: b.__name__)
def test_branch_without_a_kernel_in_the_frame_is_refused(branch: Any) -> None:
    with pytest.raises(ub.InputError, match="branch 'other' can't be trained online"):
        Mixed(8, 8, 3, padding=1, branches={"whole": ConvSpec.conv_bn, "other": branch}, online=True)


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ub.InputError, match="`drop_path` must be 0 with online=True"):
        RepVGG(8, 8, 3, padding=1, drop_path=0.1, online=True)
    with pytest.raises(ub.InputError, match="`online` must be True for OREPA"):
        OREPA(8, 8, 3, padding=1, online=False)
    with pytest.raises(ub.InputError, match="needs a block with online=True"):
        DBB(8, 8, 3, padding=1).kernel()
    with pytest.raises(ub.InputError, match="`internal_channels` must be a multiple"):
        OREPA(8, 8, 3, padding=1, internal_channels=12)


@pytest.mark.parametrize("start", ["zero", "compensated"])
@pytest.mark.parametrize("options", [{"block": "orepa"}, {"block": "dbb", "online": True}], ids=str)
def test_expanded_network_keeps_its_function_in_both_modes(
    options: dict[str, Any], start: str, tmp_path: Path
) -> None:  # fmt: skip
    torch.manual_seed(0)
    conv, last = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.Conv2d(8, 6, 3, bias=False)
    network = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), last).double()
    randomise_statistics(network)
    x = torch.randn(4, 3, 11, 12, dtype=torch.float64)
    wide = ub.expand(network, start=start, **options)
    assert [(p.path, p.norm) for p in ub.report(wide).replaced] == [("0", "1"), ("3", None)]
    assert_equal(wide.train()(x), network.train()(x))
    assert_equal(wide.eval()(x), network.eval()(x))
    plain = ub.collapse(wide, x, strict=True)
    assert len(list(plain.modules())) == len(list(ub.collapse(network, x).modules()))
    ub.save(wide, tmp_path / "wide.safetensors")
    assert_equal(ub.load(tmp_path / "wide.safetensors", into=copy.deepcopy(network))(x), wide(x))


def test_expand_leaves_a_convolution_whose_bias_the_kernel_cannot_hold() -> None:
    with pytest.raises(ub.InputError, match="has a bias"):
        ub.expand(nn.Sequential(nn.Conv2d(3, 8, 3)), "orepa")
