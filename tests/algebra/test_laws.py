"""Every law of the algebra equals PyTorch's own function on random maps and inputs, borders included."""

from __future__ import annotations

import pytest

from tests.algebra.checks import Property, check_meta
from tests.algebra.properties import PROPERTIES
from unbranch import algebra

VALUES = {"BORDERS", "ConvMap", "GridMap"}
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
