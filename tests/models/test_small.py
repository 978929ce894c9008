"""The small residual network trains in every form and collapses to one of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbranch import collapse, verify
from unbranch.errors import InputError
from unbranch.models import randomise_statistics, small_resnet

BLOCKS = ["acb", "dbb", "repvgg"]


@pytest.mark.parametrize("block", [None, *BLOCKS])
def test_small_resnet_gives_logits(block: str | None) -> None:
    network = small_resnet(block, num_classes=7, in_channels=3, width=4, stem_stride=2)
    assert network(torch.randn(2, 3, 28, 20)).shape == (2, 7)


def test_unknown_block_is_told() -> None:
    with pytest.raises(InputError, match="block='bdd' is none of"):
        small_resnet("bdd")


@pytest.mark.parametrize("block", BLOCKS)
def test_every_form_collapses_to_the_parameters_of_the_plain_one(block: str) -> None:
    x = torch.randn(2, 2, 9, 12, dtype=torch.float64)
    network = small_resnet(block, in_channels=2, width=4).double().eval()
    randomise_statistics(network)
    plain = collapse(network, x)
    # The plain network, merged: convolutions with a bias, and no batch norm.
    merged = collapse(small_resnet(None, in_channels=2, width=4).double().eval(), x)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in merged.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert verify(network, plain, x).max_rel < 1e-12
