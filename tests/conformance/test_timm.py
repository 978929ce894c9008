"""Our networks are timm's, where timm has them: names, shapes and logits, in both forms and in both directions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import randomised
from unbranch.factory import create_model
from unbranch.models.registry import MODELS
from unbranch.weights import load_checkpoint, to_official

TOLERANCE = 1e-10  # of the largest logit
SHARED = [name for name, entry in MODELS.items() if entry.timm]
SMALL = ("repvgg_a0", "repghostnet_050", "mobileone_s1")
X = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def theirs(name: str, **options: Any) -> nn.Module:
    return timm.create_model(MODELS[name].timm, **options).eval()


def merged(network: nn.Module) -> nn.Module:
    return timm.utils.model.reparameterize_model(network)


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_every_network_that_timm_has_is_compared() -> None:
    shared = {name for name in MODELS if timm.is_model(name) and not name.startswith("resnet")}
    assert shared == set(SHARED)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", SHARED)
def test_both_forms_have_the_names_and_shapes_of_timms(name: str) -> None:
    with torch.device("meta"):
        ours, reference = create_model(name).eval(), theirs(name)
        assert shapes(to_official(ours, "timm")) == shapes(reference.state_dict())
        assert shapes(to_official(ub.collapse(ours), "timm")) == shapes(merged(reference).state_dict())


@pytest.mark.sweep(10)
@torch.no_grad()
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SMALL else pytest.mark.slow) for n in SHARED])
def test_logits_equal_timms_in_both_forms_and_directions(name: str) -> None:
    torch.manual_seed(0)
    reference = randomised(theirs(name, num_classes=7).double())
    expected, ours = reference(X), create_model(name, num_classes=7).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(ours, reference.state_dict())
        assert gap(ours(X), expected) < TOLERANCE
        plain, reduced = ub.collapse(ours), merged(reference)
        load_checkpoint(ours, reduced.state_dict())
    assert gap(ours(X), expected) < TOLERANCE
    back = theirs(name, num_classes=7).double()
    back.load_state_dict(to_official(ours, "timm"), strict=True)
    assert gap(back(X), expected) < TOLERANCE
    reduced.load_state_dict(to_official(plain, "timm"), strict=True)
    assert gap(reduced(X), expected) < TOLERANCE
