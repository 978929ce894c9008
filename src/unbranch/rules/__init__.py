"""Rules: the affine maps that modules, functions and methods compute."""

from unbranch.rules import activations, borders, foreign, functions, layers, pieces, views  # noqa: F401  (they register themselves)
from unbranch.rules.registry import (
    LayerInput,
    Rule,
    register_method,
    register_rule,
    rule_of_base,
    rule_of_function,
    rule_of_method,
    rule_of_module,
    users_functions,
)
from unbranch.rules.views import RESHAPES, shape_after

__all__ = [
    "RESHAPES",
    "LayerInput",
    "Rule",
    "register_method",
    "register_rule",
    "rule_of_base",
    "rule_of_function",
    "rule_of_method",
    "rule_of_module",
    "shape_after",
    "users_functions",
]
