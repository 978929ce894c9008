"""Unbranch: train with many branches, deploy one.

Exact structural re-parameterization for any PyTorch network.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unbranch import blocks, onnx, prune
from unbranch.algebra import ConvMap, GridMap
from unbranch.blocks import fuse_branches_in_training
from unbranch.channels_last import SafeChannelsLast
from unbranch.convert import (
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
from unbranch.convert.report import report
from unbranch.deprecation import renamed_names
from unbranch.errors import (
    CheckpointError,
    CollapseError,
    DifferenceError,
    InexactError,
    InputError,
    InternalError,
    InternalErrorWarning,
    MissingPackageError,
    TrainingInterrupted,
    UnbranchError,
    UnsupportedError,
)
from unbranch.expansion import Expansion, ExpansionReport, expand, explain_expansion
from unbranch.factory import create_model
from unbranch.large_kernels import accelerate_large_kernels
from unbranch.models import list_models
from unbranch.weights import load, load_checkpoint, save, to_official

if TYPE_CHECKING:
    from unbranch import deploy, quantize, train

__version__ = "0.2.0"

__all__ = [
    "Affine",
    "CheckpointError",
    "CollapseError",
    "ConvMap",
    "Conversion",
    "DifferenceError",
    "Expansion",
    "ExpansionReport",
    "GridMap",
    "InexactError",
    "InputError",
    "InternalError",
    "InternalErrorWarning",
    "MissingPackageError",
    "Report",
    "SafeChannelsLast",
    "TrainingInterrupted",
    "UnbranchError",
    "UnsupportedError",
    "Verification",
    "__version__",
    "accelerate_large_kernels",
    "blocks",
    "collapse",
    "create_model",
    "deploy",
    "equivalent_kernel",
    "expand",
    "explain",
    "explain_expansion",
    "fuse_branches_in_training",
    "list_models",
    "load",
    "load_checkpoint",
    "onnx",
    "prune",
    "quantize",
    "register_method",
    "register_rule",
    "report",
    "save",
    "to_official",
    "train",
    "verify",
]

_LATER = ("cli", "deploy", "quantize", "train")  # what only some users need, and takes time to import


def _later(name: str) -> Any:
    if name == "train_cheaper":  # deprecated; it warns when it is called
        return blocks.train_cheaper
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__getattr__ = renamed_names(
    __name__,
    {
        "Inexact": "InexactError",
        "Stopped": "TrainingInterrupted",
    },
    otherwise=_later,
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
