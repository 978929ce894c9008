"""Configurations in which the published code crashes or is silently wrong: each works here, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.blocks.test_contract import assert_equal, kernels, norms
from unbranch.blocks import (
    ACB,
    DBB,
    LargeKernel,
    RepGhostBottleneck,
    RepGhostModule,
    RepLKBlock,
    RepMLP,
    RepVGG,
    SqueezeExcite,
)
from unbranch.convert.statistics import randomise_statistics

# What it is, how to make it, and the kernel that it deploys with. Inputs have 8 channels, 11×14 points.
CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ACB: dilation gives the branches different shapes": (lambda: ACB(8, 6, 3, 1, 2, 2), (6, 8, 3, 3)),
    "ACB: a kernel of 2 gives the branches different shapes": (lambda: ACB(8, 6, 2, 1, 1), (6, 8, 2, 2)),
    "ACB: a kernel of 2 without padding": (lambda: ACB(8, 6, 2), (6, 8, 2, 2)),
    "ACB: an even kernel": (lambda: ACB(8, 6, 4, 2, 2), (6, 8, 4, 4)),
    "ACB: a non-square kernel": (lambda: ACB(8, 6, (3, 5), 1, (1, 2)), (6, 8, 3, 5)),
    "ACB: more padding on one axis than on the other": (lambda: ACB(8, 6, 5, 1, (0, 3)), (6, 8, 5, 5)),
    "ACB: norms without scale can't be converted": (lambda: ACB(8, 6, 3, 1, 1, affine=False), (6, 8, 3, 3)),
    "ACB: crop and dilation": (lambda: ACB(8, 6, 5, 1, 1, 2), (6, 8, 5, 5)),
    "DBB: padding other than half the kernel": (lambda: DBB(8, 6, 3, 1, 0), (6, 8, 3, 3)),
    "DBB: padding larger than half the kernel": (lambda: DBB(8, 8, 3, 1, 3, groups=8), (8, 1, 3, 3)),
    "DBB: dilation": (lambda: DBB(8, 6, 3, 2, 2, 2), (6, 8, 3, 3)),
    "DBB: as many groups as outputs, but not as inputs": (lambda: DBB(8, 4, 3, 1, 1, groups=4), (4, 2, 3, 3)),
    "DBB: an even kernel": (lambda: DBB(8, 6, 4, 1, 1), (6, 8, 4, 4)),
    "DBB: a non-square kernel": (lambda: DBB(8, 6, (1, 3), 1, (0, 1)), (6, 8, 1, 3)),
    "DBB: norms without scale": (lambda: DBB(8, 6, 3, 1, 1, affine=False), (6, 8, 3, 3)),
    "RepVGG: the training branches ignore dilation": (lambda: RepVGG(8, 8, 3, 1, 2, 2), (8, 8, 3, 3)),
    "RepVGG: the training branches ignore the padding mode": (
        lambda: RepVGG(8, 8, 3, 1, 1, padding_mode="reflect"),
        (8, 8, 3, 3),
    ),
    "RepVGG: a kernel other than 3": (lambda: RepVGG(8, 8, 5, 1, 2), (8, 8, 5, 5)),
    "RepVGG: padding other than 1": (lambda: RepVGG(8, 8, 3), (8, 8, 3, 3)),
    "LargeKernel: even, with an odd small one": (lambda: LargeKernel(8, 8, 6, 1, 3, groups=8), (8, 1, 6, 6)),
    "LargeKernel: odd, with an even small one": (lambda: LargeKernel(8, 8, 7, 1, 3, small_kernel=4), (8, 8, 7, 7)),
    "LargeKernel: non-square": (
        lambda: LargeKernel(8, 8, (9, 3), 1, (4, 1), small_kernel=(3, 3)),
        (8, 8, 9, 3),
    ),
    "LargeKernel: dilated": (lambda: LargeKernel(8, 8, 7, 1, 6, 2, small_kernel=3), (8, 8, 7, 7)),
}


def trained(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    block = block.double().eval()
    randomise_statistics(block)
    return block


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("make", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_of_this_kind_works(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    block, x = trained(make()), image(2, 8, 11, 14)
    block.train()(x)
    plain = ub.collapse(block.eval(), x, strict=True)
    assert_equal(plain(x), block(x))
    assert [tuple(conv.weight.shape) for conv in kernels(plain)] == [shape]
    assert norms(plain) == []


@pytest.mark.parametrize("size", [(6, 9), (9, 6), (12, 5), (5, 12), (7, 7)])
@pytest.mark.parametrize("place", ["before", "after"])
def test_repvgg_squeezes_the_whole_of_an_image_that_is_not_square(place: str, size: tuple[int, int]) -> None:
    block = trained(RepVGG(8, 8, 3, 1, 1, squeeze_excite=place, activation=nn.ReLU, reduction=2))
    gate = next(m for m in block.modules() if isinstance(m, SqueezeExcite))
    seen: list[Tensor] = []
    gate.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    gate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = block(image(1, 8, *size))
    assert output.shape == (1, 8, *size)
    whole, squeezed = seen
    assert_equal(squeezed, whole.flatten(2).sum(2)[..., None, None] / (size[0] * size[1]), 1e-12)


def test_squeeze_excite_of_few_channels_keeps_one() -> None:
    block = RepVGG(8, 8, 3, 1, 1, squeeze_excite="before")
    assert block.post[0].down.weight.shape == (1, 8, 1, 1)


@pytest.mark.parametrize("dw_size", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("fusion", ["bn", "identity", "both"])
def test_repghost_merges_depthwise_kernels_other_than_three(dw_size: int, fusion: str) -> None:
    block, x = trained(RepGhostModule(6, 8, dw_size=dw_size, fusion=fusion)), image(2, 6, 9, 11)
    plain = ub.collapse(block, x)
    assert_equal(plain(x), block(x))
    assert [tuple(conv.weight.shape) for conv in kernels(plain)] == [(8, 6, 1, 1), (8, 1, dw_size, dw_size)]


def test_repghost_without_fusion_is_merged_too() -> None:
    block, x = trained(RepGhostModule(6, 8, fusion="none")), image(2, 6, 9, 11)
    plain = ub.collapse(block, x)
    assert_equal(plain(x), block(x))
    assert norms(plain) == []


@pytest.mark.parametrize("kernels_", [(2,), (4, 2), ((2, 3), (3, 2))], ids=str)
def test_repmlp_takes_even_and_non_square_kernels(kernels_: tuple[int, ...]) -> None:
    block, x = trained(RepMLP(8, (3, 4), kernels_, sharesets=2)), image(2, 8, 6, 8)
    plain = ub.collapse(block, x)
    assert_equal(plain(x), block(x))
    assert len(kernels(plain)) == 3


def test_repmlp_made_in_float32_is_exact_in_float64() -> None:
    block, x = RepMLP(8, (5, 3), (1, 3), sharesets=4), image(2, 8, 5, 6)
    assert next(block.parameters()).dtype == torch.float32
    block = trained(block)
    assert_equal(ub.collapse(block, x)(x), block(x), 1e-13)


@pytest.mark.parametrize("size", [(7, 8), (6, 9), (2, 4)])
def test_repmlp_refuses_an_image_that_is_no_multiple_of_the_window(size: tuple[int, int]) -> None:
    block = RepMLP(8, (3, 4), sharesets=2)
    with pytest.raises(ub.InputError, match=rf"multiples of `window` \(3, 4\), got {size[0]}×{size[1]}"):
        block(torch.zeros(1, 8, *size))


def test_dbb_averages_exactly_in_float64_when_made_in_float32() -> None:
    for dilation in (1, 2):
        block = DBB(2, 2, 3, padding=2, dilation=dilation, groups=2).double().eval()
        taps = torch.full((2, 1, 3, 3), 1 / 9, dtype=torch.float64)
        x = image(1, 2, 9, 8)
        expected = nn.functional.conv2d(x, taps, None, 1, 2, dilation, 2)
        assert_equal(block.average[:-1](x), expected, 1e-15)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ACB(8, 8, 3, padding=1, ndim=1), "in 1-D a line is the whole kernel"),
        (
            lambda: DBB(8, 8, 3, groups=4, internal_channels=6),
            "`internal_channels` must be a multiple of `groups`, got internal_channels=6",
        ),
        (lambda: LargeKernel(8, 8, 3), r"kernel \(5, 5\) doesn't fit into kernel \(3, 3\)"),
        (lambda: RepVGG(8, 8, squeeze_excite="inside"), "`squeeze_excite` must be None, 'before' or 'after'"),
        (lambda: RepLKBlock(8, 8, 6), "must be odd for a block with a shortcut, got 6"),
        (lambda: RepGhostBottleneck(8, 8, 12, kernel_size=4), "must be odd for a shortcut with stride 1, got 4"),
        (lambda: RepGhostModule(8, 8, fusion="bm"), "`fusion` must be one of bn, identity, both, none, got 'bm'"),
        (lambda: RepMLP(8, (3, 4), sharesets=3), "`sharesets` must divide `channels`, got sharesets=3"),
        (lambda: RepMLP(8, (3, 4), (3, 3)), "`kernels` must be distinct"),
        (lambda: RepMLP(8, (3, 4), reduction=16), "`hidden` must be at least 1, got 0"),
    ],
)
def test_what_can_not_work_is_refused_in_the_constructor(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(ub.InputError, match=reason):
        make()
