"""Networks tell the depth of each parameter, from the stem to the head."""

from __future__ import annotations

import pytest
import torch

import unbranch as ub
from unbranch.errors import InputError


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0", "vgg16_cifar", "repghostnet_050", "replknet_31b"])
def test_networks_tell_their_depths_from_the_stem_to_the_head(name: str) -> None:
    with torch.device("meta"):
        network = ub.create_model(name)
    coarse = network.group_matcher(coarse=True)
    assert len({coarse(key) for key, _ in network.named_parameters()}) <= len(network.stages) + 2
    for matcher in (network.group_matcher(), coarse):
        order = [matcher(key) for key, _ in network.named_parameters()]
        assert order == sorted(order)
        assert matcher("head.fc.weight") == max(order)


def test_unknown_name_with_a_block_is_told_by_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean resnet18"):
        ub.create_model("resnet_81", block="dbb")
