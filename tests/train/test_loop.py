"""Training learns, repeats itself, and moves pixels only as told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unbranch.errors import InputError
from unbranch.models import small_resnet
from unbranch.train import Images, Recipe, Step, accuracy, fit, load, predict
from unbranch.train.loop import _augmented


def few(count: int = 256) -> Images:
    images = load("digits")
    return replace(images, train_images=images.train_images[:count], train_labels=images.train_labels[:count])


def trained(recipe: Recipe, images: Images) -> tuple[Tensor, list[Step]]:
    torch.manual_seed(0)
    network = small_resnet("repvgg", width=4)
    steps: list[Step] = []
    fit(network, images, recipe, steps.append)
    assert not network.training
    return predict(network, images.test_images), steps


def test_training_learns_and_reports_every_step() -> None:
    images = few(1438)
    logits, steps = trained(Recipe(epochs=4), images)
    assert accuracy(logits, images.test_labels) > 0.8
    assert [step.done for step in steps] == list(range(1, 4 * 22 + 1))
    assert steps[-1].total == 4 * 22
    assert steps[-1].epoch == 3
    assert steps[-1].loss < steps[0].loss


def test_one_seed_gives_one_network_and_another_seed_another() -> None:
    images = few()
    first, _ = trained(Recipe(epochs=1), images)
    second, _ = trained(Recipe(epochs=1), images)
    other, _ = trained(Recipe(epochs=1, seed=1), images)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_channels_last_trains_the_same_network() -> None:
    images = few()
    first, _ = trained(Recipe(epochs=1), images)
    second, _ = trained(Recipe(epochs=1, channels_last=True), images)
    assert (first - second).abs().max() < 0.05 * first.abs().max()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 1}])
def test_impossible_recipe_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="training needs an epoch and two images a batch"):
        Recipe(**wrong)


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="32 images are fewer than one batch of 64"):
        fit(small_resnet(width=4), few(32), Recipe())


def test_predicting_leaves_the_mode_as_it_was() -> None:
    network = small_resnet(width=4).train()
    predict(network, torch.randn(3, 1, 8, 8))
    assert network.training


def test_shift_of_nothing_is_the_image_itself() -> None:
    batch = torch.randn(5, 2, 6, 7)
    assert torch.equal(_augmented(batch, 0, False, torch.Generator()), batch)


def test_mirrored_images_are_mirrored_whole() -> None:
    batch = torch.randn(64, 2, 6, 7)
    moved = _augmented(batch, 0, True, torch.Generator().manual_seed(0))
    same = (moved == batch).flatten(1).all(1)
    mirrored = (moved == batch.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 10 < mirrored.sum() < 54


def test_shift_moves_every_image_by_whole_pixels() -> None:
    batch = torch.zeros(32, 1, 7, 7)
    batch[:, :, 3, 3] = 1
    moved = _augmented(batch, 2, False, torch.Generator().manual_seed(0))
    assert torch.equal(moved.flatten(1).sum(1), torch.ones(32))
    assert len({tuple(position.tolist()) for position in moved[:, 0].nonzero()[:, 1:]}) > 10
