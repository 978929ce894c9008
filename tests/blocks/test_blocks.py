"""What single blocks promise beyond the contract: their starts, their branches, their borders, their refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import unbranch as ub
from tests.blocks.rows import CONVOLUTIONS, ROWS, Row
from tests.blocks.test_contract import assert_equal, kernels, trained
from unbranch.blocks import (
    ACB,
    BRANCHES,
    DBB,
    BranchedConv,
    Compactor,
    ConvFFN,
    ConvSpec,
    DropPath,
    LargeKernel,
    Mixed,
    RepMLP,
    RepVGG,
    custom_l2,
    initialise,
)
from unbranch.blocks.branched import closing_norm
from unbranch.blocks.parts import through

EACH = pytest.mark.parametrize("row", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
PLANAR = [ACB, DBB, RepVGG, LargeKernel, Mixed]


def make(kind: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    return kind(*args, **options, **({"small_kernel": 1} if kind is LargeKernel else {}))


# --- a convolution's arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLANAR)
def test_block_takes_a_convolutions_arguments_by_position(kind: type[BranchedConv]) -> None:
    arguments = (4, 8, 3, 2, 1, 1, 2, False, "reflect", torch.device("cpu"), torch.float64)
    block, conv = make(kind, *arguments), nn.Conv2d(*arguments)
    x = torch.randn(1, 4, 7, 8, dtype=torch.float64)
    assert block(x).shape == conv(x).shape
    assert block(x).dtype == torch.float64


@pytest.mark.parametrize("kind", PLANAR)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"groups": 3}, "`groups` must divide both `in_channels` and `out_channels`, got groups=3, in_channels=4"),
        ({"groups": 0}, "`groups` must be at least 1, got 0"),
        ({"in_channels": 0}, "`in_channels` must be at least 1"),
        ({"out_channels": -1}, "`out_channels` must be at least 1"),
        ({"kernel_size": 0}, "`kernel_size` must be an integer ≥ 1, or 2 of them, got 0"),
        ({"kernel_size": (3,)}, r"`kernel_size` must be an integer ≥ 1, or 2 of them, got \(3,\)"),
        ({"kernel_size": (3, 3, 3)}, "`kernel_size` must be an integer ≥ 1"),
        ({"kernel_size": 2.5}, "`kernel_size` must be an integer ≥ 1"),
        ({"stride": 0}, "`stride` must be an integer ≥ 1"),
        ({"dilation": (1, 0)}, "`dilation` must be an integer ≥ 1"),
        ({"padding": -1}, "`padding` must be an integer ≥ 0"),
        ({"padding": "all"}, "`padding` must be 'same', 'valid' or numbers, got 'all'"),
        ({"padding": "same", "stride": 2}, "`padding='same'` needs stride 1"),
        ({"padding_mode": "mirror"}, "`padding_mode` must be one of zeros, reflect, replicate, circular, got 'mirror'"),
        ({"ndim": 4}, "`ndim` must be 1, 2 or 3, got 4"),
        ({"init": "dirac"}, "`init` must be a number or one of single, zero, identity, got 'dirac'"),
    ],
)
def test_argument_that_makes_no_convolution_is_refused(
    kind: type[BranchedConv], arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ub.InputError, match=reason):
        make(kind, **{"in_channels": 4, "out_channels": 6, "kernel_size": 3} | arguments)


@pytest.mark.parametrize("padding_mode", ["reflect", "circular"])
def test_input_is_padded_once(padding_mode: str) -> None:
    block = DBB(4, 4, 3, padding=1, padding_mode=padding_mode)
    assert isinstance(block.pad, nn.ReflectionPad2d | nn.CircularPad2d)
    assert all(m.padding == (0, 0) for m in block.modules() if isinstance(m, nn.Conv2d))


def test_block_prints_the_convolution_it_stands_for() -> None:
    printed = repr(ACB(4, 8, 3, 2, 1, groups=2))
    assert printed.startswith("ACB(\n  4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2\n")


# --- how a block starts ----------------------------------------------------------------------------------


def closing_scales(block: BranchedConv) -> dict[str, float]:
    branches = {name: block.get_submodule(name) for name in block.branch_names}
    return {n: b.bn.weight.unique().item() for n, b in branches.items() if hasattr(b, "bn")}


@EACH
def test_number_is_the_scale_of_every_closing_norm(row: Row) -> None:
    block = row.make(**row.arguments, init=1 / 3)
    assert set(closing_scales(block).values()) == {torch.tensor(1 / 3).item()}
    inner = [m for n, m in block.named_modules() if n.endswith("border_bn.bn")]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in inner)


def unnormed(block: BranchedConv, x: Tensor) -> Tensor | int:
    """The sum of the branches that have no norm to be switched off by."""
    branches = [block.get_submodule(name) for name in block.branch_names]
    return sum(branch(x) for branch in branches if not closing_norm(branch))


@EACH
def test_single_starts_as_the_main_branch_alone(row: Row) -> None:
    block, x = row.make(**row.arguments, init="single"), torch.randn(row.shape)
    expected = through(block.closing, block.get_submodule(block.main_branch)(x) + unnormed(block, x))
    assert_equal(block(x), expected, 1e-6)


@EACH
def test_identity_starts_as_the_main_norm_of_the_input(row: Row) -> None:
    block, x = row.make(**row.arguments | {"groups": 2}, init="identity").eval(), torch.randn(row.shape)
    main = x if block.online else x / math.sqrt(1 + 1e-5)
    assert_equal(block(x), through(block.closing, main + unnormed(block, x)), 1e-6)


@EACH
def test_zero_sets_every_closing_norm_and_can_come_later(row: Row) -> None:
    block = row.make(**row.arguments)
    initialise(block, "zero")
    assert set(closing_scales(block).values()) == {0.0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"out_channels": 8},
        {"stride": 2},
        {"padding": 0},
        {"kernel_size": 2, "padding": 1},
        {"dilation": 2},
    ],
    ids=str,
)
def test_identity_is_refused_where_the_block_can_not_be_one(arguments: dict[str, Any]) -> None:
    with pytest.raises(ub.InputError, match="`init='identity'` needs in_channels == out_channels, stride 1"):
        ACB(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1} | arguments, init="identity")


def test_norms_without_scale_can_not_be_initialised() -> None:
    with pytest.raises(ub.InputError, match="with affine=False the norms have no scale"):
        DBB(4, 4, 3, init="single", affine=False)


@pytest.mark.parametrize("kind", PLANAR)
def test_main_branch_may_be_an_existing_convolution(kind: type[BranchedConv]) -> None:
    """What ``expand`` does: a convolution with a bias replaces the main one, no norm after it, the others at zero."""
    conv, x = nn.Conv2d(4, 6, 3, 2, 1), torch.randn(2, 4, 7, 8)
    block = make(kind, 4, 6, 3, 2, 1, init="single")
    main = block.get_submodule(block.main_branch)
    main.conv, main.bn = conv, nn.Identity()
    assert torch.equal(block(x), conv(x))
    initialise(block, "single")
    assert torch.equal(block(x), conv(x))
    assert_equal(ub.collapse(block.double().eval(), x.double())(x.double()), block(x.double()))


# --- branches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (ACB(4, 4, 3), ("square", "vertical", "horizontal")),
        (ACB(4, 4, 3, ndim=3), ("square", "depth", "vertical", "horizontal")),
        (DBB(4, 4, 3), ("conv_kxk", "conv_1x1", "average", "conv_1x1_kxk")),
        (DBB(4, 4, 3, groups=4), ("conv_kxk", "average", "conv_1x1_kxk")),
        (RepVGG(4, 4, 3), ("conv_kxk", "conv_1x1", "identity")),
        (RepVGG(4, 4, 3, 2), ("conv_kxk", "conv_1x1")),
        (LargeKernel(4, 4, 7), ("large", "small")),
        (LargeKernel(4, 4, 7, small_kernel=None), ("large",)),
    ],
)
def test_branches_are_children_under_their_names(block: BranchedConv, names: tuple[str, ...]) -> None:
    assert block.branch_names == names
    assert tuple(dict(block.named_children())) == names


@pytest.mark.parametrize("name", [name for name in BRANCHES if name not in ("kxk", "depth")])
def test_every_branch_can_stand_beside_another(name: str) -> None:
    block = trained(Row(Mixed, {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "padding": 2,
                                "branches": ("kxk", name)}, (2, 6, 9, 8)))  # fmt: skip
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    plain = ub.collapse(block, x, strict=True)
    assert_equal(plain(x), block(x))
    assert len(kernels(plain)) == 1
    assert block.main_branch == "kxk"


@pytest.mark.parametrize(
    ("branches", "options", "reason"),
    [
        (("kxk", "identity"), {"stride": 2}, "branch 'identity': an identity branch needs .* stride"),
        (("kxk", "skip"), {"out_channels": 8}, "branch 'skip': an identity branch needs in_channels == out_channels"),
        (("kxk", "depth"), {}, "branch 'depth': a grid of 2 dimensions has no depth axis"),
        (("kxk", "vertical"), {"ndim": 1}, "branch 'vertical': in 1-D a line is the whole kernel"),
        (("kxk", "small"), {}, r"branch 'small': a branch with kernel \(5, 5\) doesn't fit"),
        (("kxk", "3x1"), {}, r"must be distinct names among kxk, 1x1, .*got \('kxk', '3x1'\)"),
        (("kxk", "kxk"), {}, r"must be distinct names .*got \('kxk', 'kxk'\)"),
        (("1x1", "identity"), {}, "must include one with the full kernel, such as 'kxk', got 1x1, identity"),
        ({"post": ConvSpec.conv_bn}, {}, "names of branches must not be attributes of the block, got 'post'"),
        ({"kernel_size": ConvSpec.conv_bn}, {}, "must not be attributes of the block, got 'kernel_size'"),
    ],
)
def test_branch_that_is_not_possible_is_named(branches: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ub.InputError, match=reason):
        Mixed(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3} | options, branches=branches)


def test_branch_of_ones_own_merges_with_the_others() -> None:
    def squeeze_and_spread(spec: ConvSpec) -> nn.Module:
        """A bottleneck of two channels, and a norm."""
        inner = nn.Conv2d(spec.in_channels, 2, spec.kernel, spec.stride, spec.padding, bias=False)
        return nn.Sequential(inner, nn.Conv2d(2, spec.out_channels, 1, bias=False), spec.norm(spec.out_channels))

    branches = {"own": squeeze_and_spread, "whole": ConvSpec.conv_bn, "line": BRANCHES["vertical"]}
    row = Row(Mixed, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "branches": branches},
              (2, 4, 6, 7))  # fmt: skip
    block, x = trained(row), torch.randn(2, 4, 6, 7, dtype=torch.float64)
    assert (block.main_branch, block.branch_names) == ("whole", ("own", "whole", "line"))
    plain = ub.collapse(block, x, strict=True)
    assert_equal(plain(x), block(x))
    assert len(kernels(plain)) == 1


def test_squeeze_excite_takes_its_place_around_the_activation() -> None:
    def kinds(place: str) -> list[str]:
        return [type(m).__name__ for m in RepVGG(16, 16, activation=nn.ReLU, squeeze_excite=place).post]

    assert (kinds("before"), kinds("after")) == (["SqueezeExcite", "ReLU"], ["ReLU", "SqueezeExcite"])
    assert isinstance(RepVGG(16, 16, activation=nn.ReLU).post, nn.ReLU)
    assert RepVGG(16, 16).post is None


@pytest.mark.parametrize("make_border", [lambda b: b.average, lambda b: b.conv_1x1_kxk])
def test_border_is_what_the_norm_gives_to_zero(make_border: Callable[[nn.Module], nn.Module]) -> None:
    row = Row(DBB, {"in_channels": 4, "out_channels": 4, "kernel_size": (3, 5), "padding": (1, 2)}, (8, 4, 6, 7))
    norm = make_border(trained(row)).border_bn
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    assert_equal(norm(x), norm.bn(nn.functional.pad(x, (2, 2, 1, 1))), 1e-12)


def test_wrong_border_would_be_seen() -> None:
    """The proof has teeth: zeros in place of the norm's border change the block by far more than is allowed."""
    block, x = trained(ROWS["DBB"]), torch.randn(2, 8, 6, 7, dtype=torch.float64)
    expected = block(x)
    for border in (block.average.border_bn, block.conv_1x1_kxk.border_bn):
        border.forward = lambda y, norm=border.bn: nn.functional.pad(norm(y), (1, 1, 1, 1))
    assert (block(x) - expected).abs().max() > 1e-2 * expected.abs().max()


# --- RepVGG's penalty ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (3, 5)], ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_custom_l2_decays_the_kernel_that_is_served(kernel: Any, ndim: int) -> None:
    kernel = kernel if isinstance(kernel, int) else (*kernel, 2)[:ndim]
    shape = (1, 4, 7, 8, 9)[: ndim + 2]
    block = trained(Row(RepVGG, {"in_channels": 4, "out_channels": 6, "kernel_size": kernel, "ndim": ndim}, shape))
    served, _ = ub.equivalent_kernel(block)  # no identity here: K·t + k·u at the centre
    centre = (..., *((k - 1) // 2 for k in block.kernel_size))
    large, scales = block.conv_kxk.conv.weight, []
    for branch in (block.conv_kxk, block.conv_1x1):
        scales.append((branch.bn.weight / (branch.bn.running_var + branch.bn.eps).sqrt())[:, None])
    around = large.square().sum() - large[centre].square().sum()
    expected = around + (served[centre].square() / (scales[0].square() + scales[1].square())).sum()
    penalty = custom_l2(block)
    assert torch.isclose(penalty, expected, rtol=1e-12, atol=0)
    penalty.backward()
    reached = {name for name, parameter in block.named_parameters() if parameter.grad is not None}
    assert reached == {"conv_kxk.conv.weight", "conv_1x1.conv.weight"}


# --- RepMLP ----------------------------------------------------------------------------------------------


def test_windows_and_runs_are_joined_in_the_published_order() -> None:
    """Sample number r = q·G + c goes to run r div P and window r mod P."""
    channels, sharesets, (h, w), (height, width) = 8, 2, (3, 4), (6, 12)
    runs, columns = channels // sharesets, width // w
    windows = (height // h) * columns
    block = RepMLP(channels, (h, w), None, sharesets).eval()
    block.perceptron, block.gate = nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Threshold(math.inf, 1.0))
    x = torch.randn(2, channels, height, width)
    output = block(x)
    for q in range(windows):
        for c in range(runs):
            run, window = divmod(q * runs + c, windows)
            theirs = _window(output, run, window, sharesets, (h, w), columns)
            assert torch.equal(theirs, _window(x, c, q, sharesets, (h, w), columns))


def _window(x: Tensor, run: int, window: int, sharesets: int, size: tuple[int, int], columns: int) -> Tensor:
    (h, w), (row, column) = size, divmod(window, columns)
    return x[:, run * sharesets : (run + 1) * sharesets, row * h : (row + 1) * h, column * w : (column + 1) * w]


def test_check_of_the_window_survives_tracing_export_and_collapse() -> None:
    block, wrong = trained(ROWS["RepMLP"]), torch.zeros(1, 8, 7, 8, dtype=torch.float64)
    x = torch.randn(2, 8, 6, 12, dtype=torch.float64)
    traced = fx.symbolic_trace(block)
    plain = ub.collapse(block, x)
    exported = torch.export.export(block, (x,)).module()
    for form in (traced, plain, exported):
        assert_equal(form(x), block(x))
    for form in (traced, plain):
        with pytest.raises(ub.InputError, match="multiples of `window`"):
            form(wrong)
    with pytest.raises(ub.InputError, match="multiples of `window`"):
        torch.export.export(block, (wrong,))


# --- smaller parts ---------------------------------------------------------------------------------------


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    factors = drop(x)
    assert torch.equal(factors, factors[:, :1, :1].expand_as(x))
    assert set(factors.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(factors.mean().item() - 1) < 0.05
    assert drop.eval()(x) is x
    with pytest.raises(ub.InputError, match=r"must be in \[0, 1\), got 1"):
        DropPath(1.0)


def test_convffn_without_shortcut_is_refused() -> None:
    with pytest.raises(
        ub.InputError, match="`in_channels` and `out_channels` must be equal for a shortcut, got 4 and 6"
    ):
        ConvFFN(4, 8, 6)


def test_compactor_starts_as_the_identity_and_does_not_read_its_mask() -> None:
    for ndim in (1, 2, 3):
        compactor, x = Compactor(3, ndim), torch.randn(2, 3, 4, 5, 6)[(..., *(0,) * (3 - ndim))]
        compactor.mask.zero_()
        assert torch.equal(compactor(x), x)
    with pytest.raises(
        ub.InputError, match="`channels` must be at least 1 and `ndim` 1, 2 or 3, got channels=0, ndim=2"
    ):
        Compactor(0)
