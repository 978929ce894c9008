"""Unbranch: train with many branches, deploy one.

Exact structural re-parameterization for any PyTorch network.
"""

from . import blocks, prune
from .algebra import ConvMap, GridMap
from .blocks import train_cheaper
from .channels_last import SafeChannelsLast
from .convert import (
    Affine,
    Conversion,
    Report,
    Verification,
    collapse,
    equivalent_kernel,
    explain,
    register_method,
    register_rule,
    verify,
)
from .errors import CollapseError, Inexact, InputError, InternalError, InternalErrorWarning, UnbranchError
from .expansion import Expansion, expand
from .models import create_model, list_models, load, load_checkpoint, save, to_official

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "CollapseError",
    "ConvMap",
    "Conversion",
    "Expansion",
    "GridMap",
    "Inexact",
    "InputError",
    "InternalError",
    "InternalErrorWarning",
    "Report",
    "SafeChannelsLast",
    "UnbranchError",
    "Verification",
    "__version__",
    "blocks",
    "collapse",
    "create_model",
    "equivalent_kernel",
    "expand",
    "explain",
    "list_models",
    "load",
    "load_checkpoint",
    "prune",
    "register_method",
    "register_rule",
    "save",
    "to_official",
    "train_cheaper",
    "verify",
]
