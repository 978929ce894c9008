"""The families of the zoo, one row each: as small as they still are what they are."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import randomised
from unbranch.models import registry
from unbranch.models.vgg import MAX2, MAX3, MEAN3, Conv


@dataclass(frozen=True)
class Row:
    """A family.

    Args:
        name: of one of its networks.
        arguments: that make it small, in place of those of its row in the table.
        size: height and width of images, non-square.
        smallest: that it takes.
        multiple: of which sides have to be.
        shortcuts: whether it has paths to drop.
        host: whether it takes blocks of others.
        kept: norms that no linear layer can take in.
        padded: whether each layer with a stride rounds sizes up.
        options: which every test adds.
    """

    name: str
    arguments: dict[str, Any]
    size: tuple[int, int] = (64, 48)
    smallest: int = 1
    multiple: int = 1
    shortcuts: bool = False
    host: bool = False
    kept: int = 0
    padded: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tiny(self) -> str:
        return f"tiny_{self.name}"

    def make(self, **options: Any) -> Any:
        """The small network, in training mode, always with the same weights."""
        with offered(self), torch.random.fork_rng():
            torch.manual_seed(0)
            return ub.create_model(self.tiny, **{"num_classes": 5, **self.options, **options})

    def images(self, batch: int = 2, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, channels, *(size or self.size), generator=generator)


A = (1, 2, 2, 1)
ROWS = {
    row.name: row
    for row in (
        Row("repvgg_a0", {"depths": A, "width_multipliers": (0.25, 0.25)}, shortcuts=True),
        Row("repvgg_d2se", {"depths": A, "width_multipliers": (0.5, 0.25), "squeeze_excite": "before", "groups": 2}),
        Row(
            "repvggplus_l2pse",
            {"depths": (1, 2, 4, 1), "width_multipliers": (0.25, 0.25), "squeeze_excite": "after", "auxiliary": True},
            shortcuts=True,
        ),
        Row("qarepvgg_a0", {"depths": A, "width_multipliers": (0.25, 0.25), "unit": "qarepvgg"}),
        Row(
            "repmlpnet_t224",
            {"width": 8, "depths": (1, 1, 2, 1), "size": 64, "sharesets": (1, 2, 4, 8)},
            size=(64, 128),
            smallest=64,
            multiple=64,
            shortcuts=True,
            kept=6,
        ),
        Row("replknet_31b", {"width": 8, "kernels": (11, 9, 7, 7), "depths": (1, 1, 2, 1)}, shortcuts=True, kept=1),
        Row(
            "replknet_xl",
            {"width": 8, "kernels": (11, 9, 7, 7), "depths": (1, 1, 2, 1), "small_kernel": None, "dw_ratio": 1.5},
            shortcuts=True,
            kept=1,
        ),
        Row("repghostnet_050", {"width": 0.25}, shortcuts=True),
        Row("mobileone_s4", {"width_multipliers": (0.25,) * 4, "num_branches": 2, "gates": (0, 0, 2, 1)}),
        Row("unireplknet_a", {"width": 8, "depths": (1, 1, 2, 1), "layer_scale": 1.0}, shortcuts=True),
        Row("resnet18", {"depths": (1, 1, 2, 1), "width": 8}, shortcuts=True, host=True),
        Row("resnet50", {"depths": (1, 1, 2, 1), "width": 8, "bottleneck": True}, shortcuts=True, host=True),
        Row("resnet56_cifar", {"depths": (2, 1, 2), "width": 8, "small": True}, (32, 24), shortcuts=True, host=True),
        Row("mobilenet_v1", {"pruned_widths": (16,) * 27}, host=True),
        Row("wrn_16_8", {"depth": 1, "factor": 1}, (32, 24), shortcuts=True, host=True, kept=6),
        Row(
            "alexnet",
            {
                "stages": ((Conv(8, 11, 4, 2), MAX3), (Conv(8, 5), MAX3), (Conv(8), Conv(8), MAX3)),
                "side": 6,
                "hidden": (16, 12),
                "drop_rate": 0.5,
                "min_size": 63,
            },
            (96, 80),
            smallest=63,
            host=True,
            padded=False,
        ),
        Row(
            "cifar_quick",
            {"stages": ((Conv(8, 5), MAX3), (Conv(8, 5), MEAN3), (Conv(8, 5), MEAN3)), "side": 3, "hidden": (12,),
             "min_size": 15},
            (32, 40),
            smallest=15,
            host=True,
            padded=False,
        ),
        Row(
            "vgg16_cifar",
            {"stages": tuple((Conv(8), Conv(8), MAX2) for _ in range(5)), "side": 1, "hidden": (12,), "min_size": 32},
            (64, 40),
            smallest=32,
            host=True,
            padded=False,
        ),
    )
}  # fmt: skip
HOSTS = {name: row for name, row in ROWS.items() if row.host}
DROPPING = {name: row for name, row in ROWS.items() if row.shortcuts}
NAMES = ("repvggplus_l2pse", "repmlpnet_t224", "replknet_31b", "resnet18", "wrn_16_8", "cifar_quick")
KINDS = {name: ROWS[name] for name in NAMES}  # one of each kind, for what takes long


@contextmanager
def offered(row: Row) -> Iterator[None]:
    """The small network by name, as if it were in the tables."""
    entry = replace(registry.MODELS[row.name], name=row.tiny, arguments=row.arguments)
    with mock.patch.dict(registry.MODELS, {row.tiny: entry}):
        yield


@functools.cache
def trained(name: str, **options: Any) -> Any:
    """In evaluation and float64, with random statistics; not to be changed."""
    return randomised(ROWS[name].make(**options)).double()


@functools.cache
def collapsed(name: str, **options: Any) -> Any:
    """What it collapses into; not to be changed."""
    return ub.collapse(trained(name, **options))


def tensor_of(output: Any) -> Tensor:
    """All of an output in one tensor, whatever it is made of."""
    if isinstance(output, dict):
        output = list(output.values())
    return output if isinstance(output, Tensor) else torch.cat([y.flatten(1) for y in output], 1)


def norms_of(network: nn.Module) -> list[str]:
    return [k for k, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
