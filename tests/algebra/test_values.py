"""Operators are frozen values whose invariants are checked once, and stay cheap where they are sparse."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.algebra.checks import geometry
from tests.algebra.strategies import numbers
from unbranch.algebra import (
    ConvMap,
    GridMap,
    add,
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
)
from unbranch.errors import InputError

PLAIN = {"stride": (1, 1), "dilation": (1, 1), "lo": (0, 0), "hi": (0, 0)}
WEIGHT = numbers(0, 4, 2, 3, 3)


# --- construction --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": numbers(0, 4)},
        {"weight": numbers(0, 4, 2, 3)},
        {"weight": torch.zeros(4, 0, 3, 3)},
        {"weight": torch.zeros(4, 2, 1, 1, 1, 1), **dict.fromkeys(PLAIN, (1,) * 4)},
        {"stride": (1,)},
        {"stride": (0, 1)},
        {"dilation": (1, 0)},
        {"dilation": (1, 1, 1)},
        {"lo": (0,)},
        {"hi": ()},
        {"input_dilation": (1,)},
        {"input_dilation": (0, 1)},
        {"groups": 3},
        {"groups": 0},
        {"padding_mode": "mirror"},
        {"bias": numbers(0, 3)},
        {"bias": numbers(0, 4, 1)},
        {"gain": numbers(0, 1)},
    ],
    ids=lambda wrong: " ".join(f"{k}" for k in wrong),
)
def test_map_of_wrong_parts_is_an_input_error(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ConvMap(**({"weight": WEIGHT, "bias": None} | PLAIN | wrong))


@pytest.mark.parametrize(
    ("matrix", "bias", "grid_in", "grid_out"),
    [
        (numbers(0, 1, 5, 4), None, (2, 2), (2, 2)),
        (numbers(0, 1, 4, 5), None, (2, 2), (2, 2)),
        (numbers(0, 1, 4, 4), numbers(0, 1), (2, 2), (2, 2)),
        (numbers(0, 2, 4, 4), numbers(0, 1, 2, 2), (2, 2), (2, 2)),
    ],
)
def test_grid_map_of_wrong_parts_is_an_input_error(
    matrix: Tensor, bias: Tensor | None, grid_in: tuple[int, ...], grid_out: tuple[int, ...]
) -> None:
    with pytest.raises(InputError):
        GridMap(matrix, bias, grid_in, grid_out)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: select(m, []),
        lambda m: with_groups(m, 3),
        lambda m: with_groups(m, 1, (2, 2)),
        lambda m: scale_shift(m, numbers(0, 3)),
    ],
)
def test_argument_that_no_map_allows_is_an_input_error(wrong: object) -> None:
    with pytest.raises(InputError):
        wrong(ConvMap(WEIGHT, None, **PLAIN))


def test_values_are_frozen() -> None:
    for value in (ConvMap(WEIGHT, None, **PLAIN), to_grid(ConvMap(WEIGHT, None, **PLAIN), (3, 4))):
        with pytest.raises(FrozenInstanceError):
            value.bias = numbers(0, 4)


def test_laws_are_differentiable() -> None:
    """A merged kernel is a function of the weights that it is made of: what penalties and quantisation need."""
    first, second = (numbers(j, 4, 4, 3, 3).requires_grad_() for j in range(2))
    scale, shift = (numbers(j, 4).requires_grad_() for j in (2, 3))

    def merged(first: Tensor, second: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor | None]:
        inner = scale_shift(convolution(first), scale, shift)
        whole = add(compose(convolution(second), inner), convolution(numbers(5, 4, 4, 5, 5)))
        return whole.kernel, whole.bias

    assert torch.autograd.gradcheck(merged, (first, second, scale, shift))


# --- what a map says of itself -------------------------------------------------------------------


def test_counts_are_those_of_pytorch() -> None:
    m = convolution(WEIGHT, numbers(1, 4), stride=2, padding=1, groups=2)
    x = numbers(2, 1, m.in_channels, 9, 7)
    with FlopCounterMode(display=False) as counter:
        y = m(x)
    assert 2 * m.macs(y[0, 0].numel()) == counter.get_total_flops()
    assert m.numel == sum(p.numel() for p in torch.nn.Conv2d(4, 4, 3, groups=2).parameters())
    assert replace(m, bias=None).numel == WEIGHT.numel()


def test_macs_of_a_transposed_convolution_are_those_of_its_input_points() -> None:
    weight, x = numbers(0, 3, 2, 2, 2), numbers(1, 1, 3, 5, 4)
    m = transposed_convolution(weight, None, 2)
    assert m.macs(m(x)[0, 0].numel()) == weight.numel() * x[0, 0].numel()


def test_pointwise_diagonal_and_padding_maps_know_that_they_are() -> None:
    depthwise, dense = identity(4, 2), convolution(numbers(0, 4, 4, 1, 1))
    assert depthwise.pointwise
    assert depthwise.diagonal
    assert dense.pointwise
    assert not dense.diagonal
    shifted = convolution(numbers(0, 4, 4, 1, 1), padding=1, padding_after=-1)
    assert shifted.pads
    assert not shifted.pointwise
    assert not convolution(WEIGHT, padding=-1).pads
    assert not replace(dense, stride=(2, 1)).pointwise
    assert not replace(dense, input_dilation=(1, 2)).pointwise


def test_names_show_kernel_and_channels() -> None:
    assert repr(convolution(WEIGHT, groups=2)) == "ConvMap(4→4, 3x3, stride (1, 1), groups 2)"
    assert repr(convolution(numbers(0, 5, 3))) == "ConvMap(3→5, matrix, stride (), groups 1)"


# --- precision -----------------------------------------------------------------------------------


def merge(low: ConvMap, high: ConvMap, scale: Tensor, shift: Tensor) -> list[ConvMap | GridMap]:
    """Every law, of maps of one input."""
    scaled = scale_shift(low, scale, shift)
    both = add(scaled, high)
    grid = add(to_grid(both, (4, 3)), low)
    return [
        scaled,
        both,
        compose(high, scaled),
        concat(low, both),
        select(both, [2, 0]),
        with_groups(scaled, 1),
        pad(scale_shift(high.to(low.dtype), None, -high.bias), (1, 1), (1, 1)),
        grid,
        compose(high, grid),
        reshape(scale_shift(grid, scale, shift), (12,)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_laws_compute_in_the_promoted_dtype_of_their_operands(dtype: torch.dtype) -> None:
    low, high = numbers(0, 4, 4, 3, 3).to(dtype), numbers(1, 4, 4, 1, 1).to(dtype)
    bias, scale, shift = (numbers(j, 4).to(dtype) for j in (2, 3, 4))
    first, second = convolution(low, bias, padding=1), convolution(high, bias)
    exact = merge(*(convolution(w.double(), bias.double(), padding=p) for w, p in ((low, 1), (high, 0))),
                  scale.double(), shift.double())  # fmt: skip
    lifted = {
        "both": (first.to(torch.float64), second.to(torch.float64)),
        "the inner one": (first.to(torch.float64), second),
    }
    for maps in lifted.values():
        for m, truth in zip(merge(*maps, scale, shift), exact, strict=True):
            assert m.dtype == torch.float64
            assert values(m) == values(truth)
    for m in merge(first, second, scale, shift):
        assert m.dtype == dtype
        assert m.bias is None or m.bias.dtype == dtype


def values(m: ConvMap | GridMap) -> tuple[object, ...]:
    numbers_of = m.kernel if isinstance(m, ConvMap) else m.matrix
    return numbers_of.dtype, numbers_of.tolist(), None if m.bias is None else m.bias.tolist()


def test_lifting_a_map_leaves_its_kernel_uncopied() -> None:
    m = convolution(WEIGHT.float()).to(torch.float64)
    assert m.weight.dtype == torch.float32
    assert m.kernel.dtype == torch.float64


def test_learned_kernel_is_not_the_identity_whatever_its_values_are() -> None:
    weight = torch.ones(4, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    merged = compose(convolution(numbers(0, 4, 4, 3, 3)), convolution(weight, groups=4))
    merged.kernel.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_map_applies_in_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    m = scale_shift(convolution(WEIGHT, numbers(1, 4), padding=1, groups=2), numbers(2, 4))
    x = numbers(3, 1, 4, 6, 5).to(dtype)
    assert m(x).dtype == to_grid(m, (6, 5))(x).dtype == dtype


def test_scaling_leaves_the_kernel_uncopied() -> None:
    weight = WEIGHT.float()
    m = scale_shift(scale_shift(convolution(weight), numbers(1, 4)), numbers(2, 4))
    assert m.weight.data_ptr() == weight.data_ptr()
    assert m.weight.dtype == torch.float32


# --- kernels without values ----------------------------------------------------------------------


def chain(first: ConvMap, second: ConvMap, grid: tuple[int, int]) -> tuple[list[ConvMap], list[GridMap]]:
    """Laws one after the other, as a network applies them."""
    merged = scale_shift(compose(second, first), numbers(5, 4), numbers(6, 4))
    both = add(merged, convolution(numbers(7, 4, 4, 1, 1), numbers(8, 4)), identity(4, 2))
    maps = [merged, both, concat(both, first), select(both, [3, 1]), pad(merged, (-1, 0), (0, 0)), with_groups(both)]
    last = to_grid(both, grid)
    fully = add(scale_shift(last, numbers(5, 4), numbers(6, 4)), to_grid(with_groups(first), grid))
    return maps, [last, fully, compose(fully, last), compose(to_grid(with_groups(identity(4, 2)), grid), last)]


def test_chain_of_laws_on_meta_kernels_gives_the_geometry_of_real_ones() -> None:
    first = convolution(numbers(0, 4, 2, 3, 3), numbers(1, 4), padding=1, groups=2)
    second = convolution(numbers(2, 4, 4, 1, 1), numbers(3, 4))
    real, planned = chain(first, second, (5, 4)), chain(first.meta(), second.meta(), (5, 4))
    for a, b in zip(real[0], planned[0], strict=True):
        assert b.weight.is_meta
        assert geometry(a) == geometry(b)
        assert a.numel == b.numel
    for c, d in zip(real[1], planned[1], strict=True):
        assert d.matrix.is_meta
        assert geometry(c) == geometry(d)


def test_real_and_meta_kernels_may_be_mixed() -> None:
    m = convolution(numbers(0, 4, 4, 3, 3), numbers(1, 4), padding=1)
    point = convolution(numbers(2, 4, 4, 1, 1), numbers(3, 4))
    for law, maps in ((add, (m, point)), (concat, (m, point)), (compose, (point, m))):
        truth = law(*maps).weight.shape
        for mixed in ((maps[0].meta(), maps[1]), (maps[0], maps[1].meta())):
            assert law(*mixed).weight.is_meta
            assert law(*mixed).weight.shape == truth


def test_bias_that_a_composition_leaves_unknown_is_not_taken_for_none() -> None:
    inner, outer = (convolution(numbers(j, 4, 4, 1, 1), numbers(j + 1, 4)).meta() for j in (0, 2))
    assert scale_shift(compose(outer, inner), None, numbers(4, 4)).bias is not None


# --- no detour over dense kernels ----------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Counts the entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, list | tuple) else [result]:
            if isinstance(part, Tensor):
                self.entries = max(self.entries, part.numel())
        return result


def depthwise(channels: int, size: int) -> ConvMap:
    return convolution(numbers(size, channels, 1, size, size), numbers(1, channels), 1, size // 2, 1, channels)


def test_large_depthwise_kernels_stay_depthwise() -> None:
    large, small = depthwise(1024, 31), depthwise(1024, 5)
    point = scale_shift(identity(1024, 2), numbers(1, 1024))
    with Largest() as largest:
        results = [
            compose(large, point),
            compose(point, large),
            add(large, small, identity(1024, 2), average_pool(1024, (3, 3), (1, 1), (1, 1))),
            scale_shift(large, numbers(2, 1024), numbers(3, 1024)),
            compose(pad(replace(small, bias=None), (-2, -2), (-2, -2)), replace(small, bias=None)),
        ]
    assert all(m.weight.shape[1] == 1 for m in results)
    assert largest.entries <= 2 * 1024 * 31 * 31  # dense: 1024 times as many


@pytest.mark.parametrize(
    ("outer", "inner", "groups", "width"),
    [
        (96, 96, 96, 1),
        (4, 4, 4, 24),
        (96, 4, 4, 24),
        (4, 96, 4, 24),
        (4, 8, 4, 24),
        (12, 8, 4, 24),
        (1, 96, 1, 96),
        (3, 2, 1, 96),
    ],
)
def test_composed_groups_are_no_wider_than_they_must_be(outer: int, inner: int, groups: int, width: int) -> None:
    maps = [convolution(numbers(g, 96, 96 // g, 3, 3), groups=g) for g in (outer, inner)]
    with Largest() as largest:
        merged = compose(*maps)
    assert (merged.groups, merged.weight.shape[1]) == (groups, width)
    assert largest.entries <= 96 * width * 25


def test_grid_matrices_keep_groups() -> None:
    assert to_grid(depthwise(64, 3), (5, 4)).matrix.shape == (64, 20, 20)
