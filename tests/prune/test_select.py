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


@pytest.mark.parametrize(("granularity", "width"), [(5, 16), (9, 8), (16, 8)])
def test_widths_are_multiples_and_the_largest_come_back(granularity: int, width: int) -> None:
    norms = torch.arange(16.0)
    (mask,) = select_masks([norms], masks_of(16), total, 0, Limits(granularity, multiple=8))
    assert mask.sum() == width
    assert mask.tolist() == [0.0] * (16 - width) + [1.0] * width


def test_a_narrow_layer_keeps_what_it_has() -> None:
    assert Limits(multiple=8).kept(1, 6) == 6
    assert Limits(multiple=8).kept(9, 20) == 16
    assert Limits(multiple=8).kept(17, 20) == 20
    assert Limits(minimum=4).kept(1, 3) == 3
    assert Limits(minimum=0.25).kept(1, 18) == 5
    assert Limits(minimum=0.25, multiple=4).kept(1, 18) == 8


def test_rounds_go_on_where_layers_have_come_to_their_minimum() -> None:
    norms, masks = [torch.arange(1.0, 9.0), torch.arange(10.0, 18.0)], masks_of(8, 8)
    for _ in range(4):
        masks = select_masks(norms, masks, total, 8, Limits(granularity=2, minimum=0.25))
    assert [int(mask.sum()) for mask in masks] == [2, 6]


def test_layers_keep_a_fraction() -> None:
    norms = [torch.ones(8), torch.full((4,), 2.0)]
    masks = select_masks(norms, masks_of(8, 4), total, 0, Limits(granularity=12, minimum=0.5))
    assert [int(mask.sum()) for mask in masks] == [4, 2]


@pytest.mark.parametrize("options", [{"minimum": 0}, {"minimum": 1.5}, {"minimum": 0.0}, {"multiple": 0.5}])
def test_limits_that_mean_nothing_are_told(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} is a whole number from 1"):
        Limits(**options)


def test_the_largest_row_stays_where_all_are_small() -> None:
    keep = keep_rows(torch.tensor([1e-9, 3e-9, 2e-9]), 1e-5, Limits())
    assert keep.tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [{"granularity": 0}, {"minimum": 0}, {"multiple": 0}, {"minimum": 1.5}])
def test_limits_are_whole_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Limits(**wrong)
