"""Every law of the algebra equals PyTorch's own function on random maps and inputs, borders included."""

from __future__ import annotations

import pytest
import torch

from tests.algebra.checks import Property, check_meta
from tests.algebra.properties import PROPERTIES
from unbranch import algebra

VALUES = {"PADDING_MODES", "AffineMap", "ConvMap", "GridMap"}
LAYERS = {"identity", "convolution", "transposed_convolution", "average_pool", "batch_norm_scale_shift"}
NEEDS_VALUES = "scale_shift takes a map's bias away"
WITHOUT_VALUES = {
    name: p for name, p in PROPERTIES.items() if name.split()[0] not in LAYERS | {"a"} and name != NEEDS_VALUES
}


@pytest.mark.parametrize("proof", PROPERTIES.values(), ids=PROPERTIES)
def test_law_equals_pytorch(proof: Property) -> None:
    proof.prove()


@pytest.mark.parametrize("proof", WITHOUT_VALUES.values(), ids=WITHOUT_VALUES)
def test_law_on_meta_kernels_gives_the_geometry_of_real_ones(proof: Property) -> None:
    proof.prove(check=check_meta, max_examples=25)


def test_every_public_law_is_proved() -> None:
    assert {name.split()[0] for name in PROPERTIES} - {"a"} == set(algebra.__all__) - VALUES


OLD = ["BORDERS", "densified", "grid_add", "grid_compose", "grid_scale_shift", "grid_select", "lifted", "regridded"]


@pytest.mark.parametrize("name", [*OLD, "upsampled"])
def test_old_name_of_a_law_warns_and_is_the_new_one(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"`unbranch.algebra.{name}` is deprecated"):
        assert getattr(algebra, name) in {getattr(algebra, new) for new in algebra.__all__}


def test_old_names_of_a_convolutions_geometry_warn() -> None:
    with pytest.warns(DeprecationWarning, match="use `padding_mode`"):
        m = algebra.convolution(torch.ones(2, 3, 5, 3), padding=1, border="reflect")
    with pytest.warns(DeprecationWarning, match="use `input_dilation`"):
        wide = algebra.ConvMap(m.weight, None, *[(1, 1)] * 4, up=(2, 1))
    new = {"size": m.kernel_size, "reach": m.span, "delta": m.size_delta, "numbers": m.numel, "border": "reflect"}
    for name, value in new.items():
        with pytest.warns(DeprecationWarning, match=f"`ConvMap.{name}` is deprecated"):
            assert getattr(m, name) == value
    with pytest.warns(DeprecationWarning, match="use `input_dilation`"):
        assert wide.up == (2, 1)
