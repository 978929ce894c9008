"""Which channels are masked: budgets, minimum, multiples, channels that come back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.prune.select import Limits, keep_rows, select_masks


def total(widths: Sequence[int]) -> float:
    return float(sum(widths))


def masks_of(*sizes: int) -> list[Tensor]:
    return [torch.ones(size) for size in sizes]


def test_smallest_channels_of_all_layers_go_until_the_budget_is_met() -> None:
    norms = [torch.tensor([5.0, 1.0, 4.0]), torch.tensor([2.0, 9.0, 3.0])]
    first, second = select_masks(norms, masks_of(3, 3), total, 3, Limits(granularity=6))
    assert first.tolist() == [1, 0, 1]
    assert second.tolist() == [0, 1, 0]


def test_a_round_masks_no_more_than_the_granularity_on_top() -> None:
    norms, masks = [torch.arange(10.0)], masks_of(10)
    counts = []
    for _ in range(4):
        masks = select_masks(norms, masks, total, 4, Limits(granularity=2))
        counts.append(int(masks[0].sum()))
    assert counts == [8, 6, 4, 4]


def test_a_channel_that_has_grown_comes_back() -> None:
    masks = select_masks([torch.tensor([1.0, 2.0, 3.0, 4.0])], masks_of(4), total, 2, Limits(4))
    assert masks[0].tolist() == [0, 0, 1, 1]
    masks = select_masks([torch.tensor([9.0, 2.0, 1.0, 4.0])], masks, total, 2, Limits(4))
    assert masks[0].tolist() == [1, 0, 0, 1]


def test_no_layer_is_emptied_and_skipped_channels_count_as_positions() -> None:
    norms = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 11.0, 12.0])]
    masks = select_masks(norms, masks_of(3, 3), total, 2, Limits(granularity=4))
    assert [int(mask.sum()) for mask in masks] == [1, 2]
    kept = select_masks(norms, masks_of(3, 3), total, 0, Limits(granularity=6, minimum=2))
    assert [int(mask.sum()) for mask in kept] == [2, 2]


@pytest.mark.parametrize(("granularity", "width"), [(1, 24), (5, 24), (9, 16), (16, 16), (17, 8)])
def test_widths_are_multiples_and_the_largest_come_back(granularity: int, width: int) -> None:
    norms = torch.arange(32.0)
    (mask,) = select_masks([norms], masks_of(32), total, 0, Limits(granularity, multiple=8))
    assert mask.sum() == width
    assert mask.tolist() == [0.0] * (32 - width) + [1.0] * width


def test_a_narrow_layer_keeps_what_it_has() -> None:
    assert Limits(multiple=8).kept(1, 6) == 6
    assert Limits(multiple=8).kept(9, 20) == 16
    assert Limits(multiple=8).kept(17, 20) == 20
    assert Limits(minimum=4).kept(1, 3) == 3
    assert Limits(minimum=0.25).kept(1, 18) == 5
    assert Limits(minimum=0.25, multiple=4).kept(1, 18) == 8
    assert Limits(minimum=0.07).least(100) == 7


@pytest.mark.parametrize(
    ("limits", "rounds"),
    [
        (Limits(4, minimum=0.25), 68),
        (Limits(4, minimum=2), 68),
        (Limits(4, multiple=8), 34),  # eight at once are more than four
        (Limits(30, minimum=0.25, multiple=8), 9),
        (Limits(4), 240),  # one channel in each of the last rounds
    ],
)
def test_rounds_come_to_the_target_whatever_the_limits(limits: Limits, rounds: int) -> None:
    sizes = [8] * 9 + [16] * 9 + [32] * 9
    generator = torch.Generator().manual_seed(0)
    norms = [1 + torch.rand(size, generator=generator) / 10 for size in sizes]
    norms[:9] = [norm / 100 for norm in norms[:9]]
    masks = masks_of(*sizes)
    for _ in range(rounds):
        before, masks = masks, select_masks(norms, masks, total, 232, limits)
        assert sum(map(torch.sum, masks)) < sum(map(torch.sum, before)) or sum(map(torch.sum, masks)) <= 232
    assert sum(map(torch.sum, masks)) <= 232


def test_layers_keep_a_fraction() -> None:
    norms = [torch.ones(8), torch.full((4,), 2.0)]
    masks = select_masks(norms, masks_of(8, 4), total, 0, Limits(granularity=12, minimum=0.5))
    assert [int(mask.sum()) for mask in masks] == [4, 2]


def test_the_largest_row_stays_where_all_are_small() -> None:
    keep = keep_rows(torch.tensor([1e-9, 3e-9, 2e-9]), 1e-5, Limits())
    assert keep.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "wrong",
    [{"granularity": 0}, {"minimum": 0}, {"multiple": 0.5}, {"minimum": 1.5}, {"minimum": 1.0}, {"minimum": 0.0}],
)
def test_limits_that_mean_nothing_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be an integer ≥ 1"):
        Limits(**wrong)


def test_masked_rows_go_first_and_the_largest_of_them_come_back() -> None:
    norms, mask = torch.arange(1.0, 9.0), torch.tensor([0.0] * 6 + [1.0] * 2)
    assert keep_rows(norms, 0.0, Limits(), mask).tolist() == [False] * 6 + [True] * 2
    assert keep_rows(norms, 0.0, Limits(minimum=4), mask).tolist() == [False] * 4 + [True] * 4
    assert keep_rows(norms, 7.5, Limits(minimum=4), mask).tolist() == [False] * 4 + [True] * 4
    assert keep_rows(norms, 0.0, Limits(), 1 - mask).tolist() == [True] * 6 + [False] * 2
