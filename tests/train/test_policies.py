"""raug15 and timm's policies do to images what they say, at every magnitude and in grey, too."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.train.stand_in import CIFAR, DIGITS, StandIn, noise, seed
from unbranch.errors import InputError
from unbranch.train.policies import make_policy
from unbranch.train.raug15 import OPERATIONS, RandAugment15, cut_out
from unbranch.train.recipe import load_recipe
from unbranch.train.transforms import train_transform


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original-mstd0.5", "v0", "augmix-m3-w2", "3a", "raug15"])
@pytest.mark.parametrize("data", [CIFAR, DIGITS], ids=["colour", "grey"])
def test_policies_run_on_images_in_colour_and_grey(policy: str, data: StandIn) -> None:
    recipe = load_recipe("digits", [f"augment.auto={policy}"])
    transform, image = train_transform(recipe, data), noise(*data.size, data.channels)  # type: ignore[misc]
    for number in range(20):
        seed(number)
        assert transform(image).shape == (data.channels, *data.size)  # type: ignore[misc]


@pytest.mark.parametrize("policy", ["rand-x3", "original-m3", "augmix-z1"])
def test_policy_that_timm_does_not_know_is_told(policy: str) -> None:
    with pytest.raises(InputError, match=f"augment.auto={policy} isn't a policy of timm"):
        train_transform(load_recipe("digits", [f"augment.auto={policy}"]), CIFAR)


# --- raug15


def operated(name: str, magnitude: int, image: Image.Image | None = None, number: int = 0) -> np.ndarray[Any, Any]:
    random.seed(number)
    return np.array(RandAugment15().apply(image or noise(20, 14), name, magnitude)).astype(int)


def test_raug15_has_the_sixteen_operations() -> None:
    assert len(OPERATIONS) == 16
    for name in OPERATIONS:
        for magnitude in range(15):
            assert operated(name, magnitude).shape == (14, 20, 3)


def test_raug15_keeps_no_bit_at_small_magnitudes_and_five_at_the_largest() -> None:
    assert [operated("Posterize", m).any() for m in (0, 2, 3)] == [False, False, True]
    kept = {m: 4 * m // 10 for m in range(15)}
    for magnitude, bits in kept.items():
        expected = np.array(noise(20, 14)).astype(int) & (0xFF ^ (2 ** (8 - bits) - 1))
        assert np.array_equal(operated("Posterize", magnitude), expected)


def test_raug15_goes_beyond_the_nominal_range() -> None:
    pixels = np.array(noise(20, 14)).astype(int)
    assert np.array_equal(operated("Solarize", 0), 255 - pixels)
    assert np.array_equal(operated("Solarize", 5), np.where(pixels < 128, pixels, 255 - pixels))
    assert np.array_equal(operated("Solarize", 14), pixels)
    assert np.array_equal(operated("SolarizeAdd", 14), np.where(pixels < 128, np.minimum(255, pixels + 154), pixels))
    grey = Image.new("L", (4, 4), 50)
    assert int(operated("Brightness", 14, grey)[0, 0]) == 50 * (1.8 * 1.4 + 0.1)
    assert int(operated("Brightness", 5, grey)[0, 0]) == 50


def test_raug15_moves_either_way_by_shares_of_the_side_and_fills_with_grey() -> None:
    white = Image.new("L", (100, 40), 255)
    moved = {
        (x[:, 0] == 128).all() and (x[:, -1] == 255).all()
        for x in (operated("TranslateXRel", 10, white, n) for n in range(20))
    }
    assert moved == {True, False}
    filled = (operated("TranslateXRel", 10, white) == 128).all(0).sum()
    assert 44 <= filled <= 46
    assert (operated("TranslateYRel", 5, white) == 128).all(1).sum() == 9
    assert {int(v) for v in np.unique(operated("Rotate", 10, white))} >= {128, 255}


def test_raug15_cuts_out_an_even_square_about_any_pixel() -> None:
    black = Image.new("RGB", (100, 100))
    sizes = set()
    for number in range(200):
        cut = operated("Cutout", 5, black, number).any(2)
        rows, columns = cut.any(1).sum(), cut.any(0).sum()
        assert cut.sum() == rows * columns
        sizes.add((int(rows), int(columns)))
    assert max(sizes) == (20, 20)
    assert min(rows for rows, _ in sizes) < 20  # at the border a part of it
    assert max(operated("Cutout", 0, black, n).any(2).sum() for n in range(5)) == 2 * 2
    random.seed(1)
    pixels = np.array(cut_out(black, 10)).reshape(-1, 3)
    assert {tuple(map(int, pixel)) for pixel in np.unique(pixels, axis=0)} == {(0, 0, 0), (125, 122, 113)}


def test_policy_of_timm_keeps_no_bit_where_it_means_to() -> None:
    policy = make_policy("rand-m10-mstd0.5-inc1", 32, (0.5,) * 3, "bicubic")
    posterizing = next(op for op in policy.ops if op.name == "PosterizeIncreasing")  # type: ignore[attr-defined]
    posterizing.prob = 1.0
    random.seed(0)
    results = [np.array(posterizing(noise(8, 8))).any() for _ in range(40)]
    assert {bool(result) for result in results} == {True, False}


def test_raug15_leaves_its_image_alone() -> None:
    image = noise(20, 14)
    before = np.array(image)
    random.seed(0)
    for _ in range(60):
        RandAugment15()(image)
    assert np.array_equal(before, np.array(image))
