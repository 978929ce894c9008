"""Broken twins of the laws, each with a bug that real converters have had; every proof must catch its mutants.

``MUTANTS`` maps the property that a mutant breaks (see ``properties.py``) and what is wrong with it to the broken law.
"""

from tests.algebra import mutants_grid, mutants_layers, mutants_many, mutants_one  # noqa: F401  each registers its own
from tests.algebra.mutant_tools import MUTANTS

__all__ = ["MUTANTS"]
