"""Every proof fails for a broken law: a test that a wrong law would pass is not a test."""

from __future__ import annotations

import pytest
from hypothesis import Phase

from tests.algebra.mutants import MUTANTS
from tests.algebra.properties import PROPERTIES
from unbranch.errors import UnbranchError


@pytest.mark.parametrize(("prop", "bug"), MUTANTS, ids=[": ".join(key) for key in MUTANTS])
def test_mutant_is_caught(prop: str, bug: str) -> None:
    with pytest.raises((AssertionError, UnbranchError, RuntimeError)):
        PROPERTIES[prop].prove(
            MUTANTS[prop, bug], phases=[Phase.generate], max_examples=1000, derandomize=True, report_multiple_bugs=False
        )


def test_every_property_has_a_mutant() -> None:
    assert {prop for prop, _ in MUTANTS} == set(PROPERTIES)
