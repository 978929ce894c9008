"""Unbranch: train with many branches, deploy one.

Exact structural re-parameterization for any PyTorch network.
"""

from .algebra import ConvMap, GridMap
from .collapse import (
    Affine,
    Report,
    Verification,
    collapse,
    explain,
    register_method,
    register_rule,
    verify,
)
from .errors import CollapseError, Inexact, InputError, UnbranchError

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "CollapseError",
    "ConvMap",
    "GridMap",
    "Inexact",
    "InputError",
    "Report",
    "UnbranchError",
    "Verification",
    "__version__",
    "collapse",
    "explain",
    "register_method",
    "register_rule",
    "verify",
]
