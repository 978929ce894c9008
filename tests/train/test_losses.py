"""The loss is the cross-entropy of the labels as they are smoothed, mixed and given to several classifiers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unbranch.train.losses import make_loss
from unbranch.train.recipe import load_recipe


def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator), torch.randint(5, (6,), generator=generator)


def test_plain_loss_is_cross_entropy() -> None:
    logits, labels = sample()
    torch.testing.assert_close(make_loss(load_recipe("repvgg"), False)(logits, labels), F.cross_entropy(logits, labels))


def test_smoothed_loss_is_that_of_smoothed_labels_mixed_or_not() -> None:
    logits, labels = sample()
    recipe = load_recipe("repvggplus")
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(make_loss(recipe, False)(logits, labels), expected)
    targets = 0.9 * F.one_hot(labels, 5).float() + 0.1 / 5
    torch.testing.assert_close(make_loss(recipe, True)(logits, targets), expected)


@pytest.mark.parametrize("weight", [0.1, 0.0, 0.4])
def test_auxiliary_classifiers_count_by_their_weight(weight: float) -> None:
    logits, labels = sample()
    loss = make_loss(load_recipe("repvggplus", [f"loss.auxiliary={weight}", "loss.smoothing=0"]), False)
    found = loss({"main": logits, "stage1": logits.flip(0), "stage2": 2 * logits}, labels)
    others = F.cross_entropy(logits.flip(0), labels) + F.cross_entropy(2 * logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels) + weight * others)


def test_dictionary_of_the_main_classifier_alone_is_its_loss() -> None:
    logits, labels = sample()
    loss = make_loss(load_recipe("repvgg"), False)
    assert torch.equal(loss({"main": logits}, labels), loss(logits, labels))
