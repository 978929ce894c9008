"""Small relatives of the published networks, with the same names and other widths and depths."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import randomised
from unbranch.factory import create_model
from unbranch.weights import LoadResult, load_checkpoint
from unbranch.weights.layouts import layouts_of

_GHOST: dict[str, Any] = {"width": 0.1, "drop_rate": 0.0}
TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 4},
    "resnet50": {"width": 4, "depths": [1, 2, 1, 1]},
    "resnet56_cifar": {"width": 4, "depths": [2, 1, 1]},
    "wrn_16_8": {"factor": 1},
    "mobilenet_v1": {"pruned_widths": [4] * 27},
    "vgg16_cifar": {"pruned_widths": [4] * 13, "hidden": [8]},
    "cifar_quick": {"pruned_widths": [4, 4, 8], "hidden": [8]},
    "alexnet": {"pruned_widths": [8, 4, 4, 4, 4], "hidden": [8, 8]},
    "repvgg_b1g2": {"width_multipliers": [0.125, 0.0625], "depths": [2, 2, 3, 1]},
    "repvgg_d2se": {"width_multipliers": [0.25, 0.125], "depths": [1, 2, 2, 1]},
    "repvggplus_l2pse": {"width_multipliers": [0.25, 0.125], "depths": [1, 1, 2, 1]},
    "repmlpnet_t224": {"width": 8, "depths": [1, 1, 1, 1], "size": 64, "sharesets": [1, 2, 2, 4]},
    "replknet_31b": {"width": 4, "kernels": [7, 7, 5, 5], "small_kernel": 3},
    "repghostnet_100": _GHOST,
    "repghostnet_050_identity": _GHOST,
    "repghostnet_050_none": _GHOST,
    "mobileone_s0": {"width_multipliers": [0.125] * 4, "num_branches": 2},
}
BLOCKS = (None, "acb", "dbb", "compactor")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LONG = ("mobileone_s0", "replknet_31b", "repghostnet_050_identity", "repghostnet_050_none")  # of many blocks


def published() -> list[Any]:
    """Each network with each block and layout that it is published in."""
    rows = [(name, block, layout.name) for name in TINY for block in BLOCKS for layout in layouts_of(name, block)]
    return [pytest.param(*row, marks=_marks(row[0])) for row in rows]


def _marks(name: str) -> list[pytest.MarkDecorator]:
    """One process runs all rows of a network, so that it converts it once."""
    return [pytest.mark.xdist_group(name), *([pytest.mark.slow] if name in LONG else [])]


def tiny(name: str, seed: int = 0, block: str | None = None, **options: Any) -> nn.Module:
    """A small network in float64 with random weights and statistics, in evaluation."""
    torch.manual_seed(seed)
    given = {**TINY.get(name, {}), "num_classes": 5, **({"block": block} if block else {}), **options}
    network = randomised(create_model(name, **given).double(), seed)
    with torch.no_grad():  # so that compactors, and differences from an identity, do something
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


@functools.cache
def shared_forms(name: str, block: str | None = None) -> tuple[nn.Module, nn.Module]:
    """A small network and what it collapses to, the same ones each time: only to read."""
    network = tiny(name, 1, block)
    return network, ub.collapse(network)


def both_forms(name: str, block: str | None = None) -> tuple[nn.Module, nn.Module]:
    """A small network and what it collapses to, new copies."""
    return copy.deepcopy(shared_forms(name, block))


def scrambled(network: nn.Module) -> nn.Module:
    """The network with other values everywhere."""
    torch.manual_seed(7)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.1)
    return network


def quiet(network: nn.Module, source: Any) -> LoadResult:
    """Load without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(network, source)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the very same weights."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
