"""The laws refuse what would change the function, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.algebra.checks import assert_close
from tests.algebra.strategies import numbers
from tests.algebra.truths import padded, stuffed
from unbranch.algebra import (
    ConvMap,
    GridMap,
    add,
    as_pointwise,
    average_pool,
    compose,
    concat,
    convolution,
    identity,
    pad,
    reshape,
    scale_shift,
    select,
    to_grid,
    transposed_convolution,
    with_groups,
    zero_stuff,
)
from unbranch.errors import InexactError, InputError

GRID = (9, 7)
X = numbers(1, 2, 4, *GRID)


def conv(size: int = 3, *, bias: bool = False, groups: int = 1, outputs: int = 4, **how: object) -> ConvMap:
    weight = numbers(size + 10 * groups, outputs, 4 // groups, size, size)
    return convolution(weight, numbers(2, outputs) if bias else None, groups=groups, **how)


# --- what would change the function --------------------------------------------------------------

REFUSED: dict[str, tuple[str, Callable[[], object]]] = {
    "zero padding after a bias": ("after a bias", lambda: compose(conv(padding=1), conv(1, bias=True))),
    "zero padding after a bias of zeros": (
        "after a bias",
        lambda: pad(scale_shift(conv(1), None, torch.zeros(4)), (1, 1), (1, 1)),
    ),
    "padding with another value than the bias": (
        "own bias",
        lambda: pad(conv(1, bias=True), (1, 1), (1, 1), numbers(9, 4)),
    ),
    "padding with a value after a map without bias": (
        "own bias",
        lambda: pad(conv(1), (1, 1), (1, 1), numbers(9, 4)),
    ),
    "padding after a kernel that reaches back": ("reaches", lambda: compose(conv(padding=1), conv(padding=1))),
    "padding after a pool": (
        "reaches",
        lambda: compose(conv(padding=1), average_pool(4, (3, 3), (1, 1), (1, 1))),
    ),
    "padding after the end only": ("reaches", lambda: pad(conv(padding=2, padding_after=0), (0, 0), (1, 0))),
    "padding after a crop": ("reaches", lambda: pad(conv(1, padding=-1), (1, 1), (1, 1))),
    "reflection after a kernel": (
        "pointwise",
        lambda: compose(conv(padding=1, padding_mode="reflect"), conv(padding=1)),
    ),
    "replication after a stride": (
        "pointwise",
        lambda: pad(conv(1, stride=2), (1, 1), (1, 1), padding_mode="replicate"),
    ),
    "zeros after a reflection": ("reflect", lambda: pad(conv(padding=2, padding_mode="reflect"), (1, 1), (1, 1))),
    "sum of strides": ("strides", lambda: add(conv(padding=1), conv(padding=1, stride=2))),
    "sum of sizes": ("sizes", lambda: add(conv(padding=1), conv(padding=0))),
    "sum of sizes that agree for some inputs only": (
        "sizes",
        lambda: add(conv(2, stride=2), conv(1, stride=2)),
    ),
    "sum of padding modes": ("padding modes", lambda: add(conv(padding=1), conv(padding=1, padding_mode="reflect"))),
    "sum that broadcasts over channels": ("broadcasts", lambda: add(conv(), conv(outputs=1))),
    "sum of inputs of different width": ("input channels", lambda: add(identity(1, 2), conv(1, outputs=1))),
    "sum of dimensions": ("dimensions", lambda: add(identity(4, 2), identity(4, 1))),
    "sum of upsamplings": (
        "input dilations",
        lambda: add(conv(1), transposed_convolution(numbers(3, 4, 4, 1, 1), None, 2)),
    ),
    "concatenation of sizes": ("sizes", lambda: concat(conv(padding=1), conv(padding=0))),
    "concatenation of padding modes": (
        "padding modes",
        lambda: concat(conv(padding=1), conv(padding=1, padding_mode="circular")),
    ),
    "composition of different channels": ("channels", lambda: compose(conv(), conv(outputs=3))),
    "upsampling after a bias": ("bias", lambda: zero_stuff(conv(bias=True), (2, 2))),
    "upsampling after a stride": ("strided", lambda: zero_stuff(conv(stride=2), (1, 2))),
    "upsampling after a reflection": ("reflect", lambda: zero_stuff(conv(padding=1, padding_mode="reflect"), (2, 2))),
    "a kernel of two dimensions used in three": ("dimensional", lambda: as_pointwise(conv(), 3)),
    "grid maps of different grids added": (
        "grid_in",
        lambda: add(to_grid(conv(1), (3, 4)), to_grid(conv(1), (4, 3))),
    ),
    "grid maps of different channels added": (
        "out_channels",
        lambda: add(to_grid(conv(1), (3, 3)), to_grid(select(conv(1), [0]), (3, 3))),
    ),
    "a reshape that doesn't divide": (
        "don't divide",
        lambda: reshape(to_grid(conv(1), (3, 3)), (5, 7)),
    ),
    "grid maps that don't fit composed": (
        "fit",
        lambda: compose(to_grid(conv(1), (3, 4)), to_grid(conv(1), (4, 3))),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    reason, merge = REFUSED[name]
    with pytest.raises(InexactError, match=reason):
        merge()


def outside_in(m: ConvMap, by: int) -> ConvMap:
    """Padding written into the map, whatever it meets: what a converter does that doesn't refuse."""
    step = [s * by for s in m.stride]
    return replace(
        m,
        lo=tuple(a + p for a, p in zip(m.lo, step, strict=True)),
        hi=tuple(a + p for a, p in zip(m.hi, step, strict=True)),
    )


def errors(naive: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest errors at the border of one point and inside it."""
    error = (naive - truth).abs().amax((0, 1))
    inside = error[1:-1, 1:-1].max().item()
    error[1:-1, 1:-1] = 0
    return error.max().item(), inside


@pytest.mark.parametrize("size", [1, 3])
def test_zero_padding_after_a_bias_or_a_kernel_would_be_wrong_at_the_border_only(size: int) -> None:
    inner, outer = conv(size, bias=size == 1, padding=size // 2), conv(padding=1)
    naive = compose(replace(outer, lo=(0, 0), hi=(0, 0)), outside_in(inner, 1))
    border, inside = errors(naive(X), outer(inner(X)))
    assert border > 0.1
    assert inside < 1e-12


def test_error_of_zero_padding_after_a_bias_is_the_bias_seen_by_the_taps_outside() -> None:
    inner, outer = conv(1, bias=True), conv(padding=1)
    naive = compose(replace(outer, lo=(0, 0), hi=(0, 0)), outside_in(inner, 1))
    outside = 1 - padded(torch.ones(1, 4, *GRID, dtype=torch.float64), (1, 1), (1, 1))
    seen = replace(outer, lo=(0, 0), hi=(0, 0))(outside * inner.bias.reshape(1, -1, 1, 1))
    assert_close(naive(X) - outer(inner(X)), seen.expand(2, -1, -1, -1))


def test_reflection_after_a_kernel_would_be_wrong() -> None:
    inner, outer = conv(padding=1), conv(padding=1, padding_mode="reflect")
    naive = compose(replace(outer, lo=(0, 0), hi=(0, 0)), replace(outside_in(inner, 1), padding_mode="reflect"))
    assert errors(naive(X), outer(inner(X)))[0] > 0.1


def test_sum_of_borders_would_be_wrong_at_the_border_only() -> None:
    zeros, reflect = conv(padding=1), conv(padding=1, padding_mode="reflect")
    border, inside = errors(add(zeros, replace(reflect, padding_mode="zeros"))(X), zeros(X) + reflect(X))
    assert border > 0.1
    assert inside < 1e-12


def test_sizes_that_agree_for_some_inputs_differ_for_others() -> None:
    a, b = conv(2, stride=2), conv(1, stride=2)
    assert a.output_size((8, 8)) == b.output_size((8, 8))
    assert a.output_size((9, 9)) != b.output_size((9, 9))


# --- what would not ------------------------------------------------------------------------------


def one_by_one_then(outer: ConvMap, inner: ConvMap) -> tuple[ConvMap, Tensor]:
    return compose(outer, inner), outer(inner(X))


def total(*maps: ConvMap) -> tuple[ConvMap, Tensor]:
    return add(*maps), torch.stack([m(X) for m in maps]).sum(0)


def own_border(outer: ConvMap) -> tuple[ConvMap, Tensor]:
    """DBB: 1x1, batch norm, then padding with what the batch norm makes of zero."""
    inner = scale_shift(conv(1), numbers(3, 4), numbers(4, 4))
    y = padded(inner(X), (1, 1), (1, 1), inner.bias)
    return compose(outer, pad(inner, (1, 1), (1, 1), inner.bias)), outer(y)


def border_without_bias() -> tuple[ConvMap, Tensor]:
    """Padding of what is left when the bias is taken away, and the bias added again."""
    inner = conv(1, bias=True)
    bare = pad(scale_shift(inner, None, -inner.bias), (1, 1), (1, 1))
    return scale_shift(bare, None, inner.bias), padded(inner(X), (1, 1), (1, 1), inner.bias)


def cropped(m: ConvMap) -> tuple[ConvMap, Tensor]:
    return pad(m, (-1, 0), (0, -2)), m(X)[:, :, 1:, :-2]


EXACT: dict[str, Callable[[], tuple[ConvMap, Tensor]]] = {
    "zero padding after pointwise without bias": lambda: one_by_one_then(conv(padding=1), conv(1)),
    "zero padding after depthwise pointwise": lambda: one_by_one_then(conv(padding=1), conv(1, groups=4)),
    "zero padding after identity": lambda: one_by_one_then(conv(padding=1), identity(4, 2)),
    "zero padding after a strided point": lambda: one_by_one_then(conv(padding=1), conv(1, stride=2)),
    "zero padding after a fully padded kernel": lambda: one_by_one_then(conv(padding=1), conv(padding=2)),
    "zero padding after a pointwise map labelled reflect": lambda: one_by_one_then(
        conv(padding=1), conv(1, padding_mode="reflect")
    ),
    "identity after anything": lambda: one_by_one_then(
        identity(4, 2), conv(bias=True, padding=1, padding_mode="reflect")
    ),
    "identity alone": lambda: (add(identity(4, 2)), X),
    "pointwise after anything": lambda: one_by_one_then(conv(1, bias=True), conv(bias=True, padding=1, stride=2)),
    "kernel without padding after a biased, padded one": lambda: one_by_one_then(conv(), conv(bias=True, padding=1)),
    "reflection after pointwise with bias": lambda: one_by_one_then(
        conv(padding=1, padding_mode="reflect"), conv(1, bias=True)
    ),
    "replication after pointwise with bias": lambda: one_by_one_then(
        conv(padding=2, padding_mode="replicate"), conv(1, bias=True)
    ),
    "circular padding after pointwise with bias": lambda: one_by_one_then(
        conv(padding=2, padding_mode="circular"), conv(1, bias=True)
    ),
    "own bias around a biased map, then a kernel": lambda: own_border(conv()),
    "own bias around a biased map, then a pool": lambda: own_border(average_pool(4, (3, 3), (2, 2), (0, 0))),
    "own bias taken away, zeros, own bias added": border_without_bias,
    "zero value around a map without bias": lambda: (
        pad(conv(1), (1, 1), (1, 1), torch.zeros(4)),
        padded(conv(1)(X), (1, 1), (1, 1)),
    ),
    "crop after a biased kernel": lambda: cropped(conv(bias=True, padding=1)),
    "crop after a reflection": lambda: cropped(conv(padding=2, padding_mode="reflect")),
    "sum of kernels of different size": lambda: total(conv(5, padding=2), conv(3, padding=1), conv(1), identity(4, 2)),
    "sum of kernels of different dilation": lambda: total(conv(padding=1), conv(padding=2, dilation=2), conv(1)),
    "sum of even and odd kernels": lambda: total(conv(padding=1), conv(2, padding=0, padding_after=1)),
    "sum of strided kernels": lambda: total(conv(padding=1, stride=2), conv(1, stride=2)),
    "sum of different groups": lambda: total(conv(padding=1, groups=2), conv(1, groups=4), conv(1)),
    "sum of a kernel and a pool": lambda: total(conv(padding=1), average_pool(4, (3, 3), (1, 1), (1, 1))),
    "sum of biased and unbiased": lambda: total(conv(padding=1, bias=True), conv(1), conv(1, bias=True)),
    "sum of a reflecting kernel and a pointwise one": lambda: total(conv(padding=1, padding_mode="reflect"), conv(1)),
    "sum of reflecting kernels": lambda: total(
        conv(padding=1, padding_mode="reflect"), conv(5, padding=2, padding_mode="reflect")
    ),
    "upsampling without bias": lambda: (zero_stuff(conv(padding=1), (2, 3)), stuffed(conv(padding=1)(X), (2, 3))),
    "transposed convolution after pointwise without bias": lambda: one_by_one_then(
        transposed_convolution(numbers(3, 4, 2, 3, 3), numbers(4, 2), 2, 1, 1), conv(1)
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_does_not_refuse(name: str) -> None:
    merged, truth = EXACT[name]()
    assert_close(merged(X), truth)


def test_sum_keeps_dilation_while_all_agree() -> None:
    merged = add(conv(padding=2, dilation=2), conv(1), identity(4, 2))
    assert (merged.kernel_size, merged.dilation) == ((3, 3), (2, 2))


def test_composition_keeps_the_common_step_of_the_taps() -> None:
    merged = compose(conv(dilation=3), conv(dilation=6))
    assert (merged.kernel_size, merged.dilation) == ((7, 7), (3, 3))


# --- arguments that no law allows ------------------------------------------------------------------

LINE = convolution(numbers(0, 4, 4, 3))
POINT = convolution(numbers(1, 4, 4, 1, 1))
ON_GRID = to_grid(POINT, (3, 4))
WRONG: dict[str, Callable[[], object]] = {
    "maps of other dimensions composed": lambda: compose(LINE, POINT),
    "a matrix after a convolution": lambda: compose(convolution(numbers(0, 4, 4)), POINT),
    "a line after a grid map": lambda: compose(LINE, ON_GRID),
    "a kernel that doesn't fit the grid": lambda: compose(conv(7), ON_GRID),
    "a number added": lambda: add(POINT, 1),
    "nothing concatenated": lambda: concat(POINT, None),
    "nothing composed": lambda: compose(POINT, None),
    "too few amounts of padding": lambda: pad(POINT, (1,), (1,)),
    "padding by halves": lambda: pad(POINT, (1.5, 1), (1, 1)),
    "a padding value of other channels": lambda: pad(POINT, (1, 1), (1, 1), numbers(0, 5)),
    "a value with a reflection": lambda: pad(POINT, (1, 1), (1, 1), numbers(0, 4), "reflect"),
    "a mask in place of channels": lambda: select(POINT, [True, False]),
    "a channel that there isn't": lambda: select(POINT, [4]),
    "a channel that a grid map hasn't": lambda: select(ON_GRID, [4]),
    "a grid of unknown size": lambda: reshape(ON_GRID, (-1,)),
    "an empty grid": lambda: reshape(ON_GRID, (0,)),
    "a scale of one number": lambda: scale_shift(ON_GRID, numbers(0, 1)),
    "a scale of too few numbers": lambda: scale_shift(ON_GRID, numbers(0, 3)),
    "too few steps": lambda: zero_stuff(POINT, (2,)),
    "no groups": lambda: with_groups(POINT, 0),
    "a negative number of groups": lambda: with_groups(POINT, -1),
    "a grid of one dimension": lambda: to_grid(POINT, (4,)),
    "a grid that is too small": lambda: to_grid(conv(3), (2, 2)),
    "groups that don't divide the inputs": lambda: transposed_convolution(numbers(0, 3, 2, 1, 1), groups=2),
    "an input of other channels": lambda: conv(groups=2)(numbers(0, 1, 8, 5, 5)),
    "an input on another grid": lambda: ON_GRID(numbers(0, 1, 4, 4, 3)),
    "a matrix without groups": lambda: GridMap(numbers(0, 4, 4), None, (2,), (2,)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_argument_is_one_error_of_ours(wrong: Callable[[], object]) -> None:
    with pytest.raises((InexactError, InputError)):
        wrong()


def test_geometry_may_be_given_as_lists() -> None:
    assert ConvMap(POINT.weight, None, [1, 1], [1, 1], [0, 0], [0, 0]).stride == (1, 1)


def test_bias_is_taken_away_channel_by_channel() -> None:
    """A channel with a large bias doesn't make the bias of another one rounding."""
    m = convolution(numbers(0, 2, 2, 1, 1), torch.tensor([1e9, 1e-4], dtype=torch.float64))
    shifted = scale_shift(m, shift=torch.tensor([-1e9, 0.0], dtype=torch.float64))
    assert shifted.bias.tolist() == [0, 1e-4]
    with pytest.raises(InexactError, match="other than the map's own bias"):
        pad(m, (1, 1), (1, 1), torch.tensor([1e9, 0.0], dtype=torch.float64))
    low = convolution(torch.ones(1, 1, 1, 1).half(), torch.ones(1).half())
    assert scale_shift(low, shift=torch.tensor([-1.005]).half()).bias is not None
