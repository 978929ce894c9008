"""Libraries that only some users need."""

from __future__ import annotations

import importlib
from types import ModuleType

from unbranch.errors import MissingPackageError


def library(name: str, extra: str = "vision") -> ModuleType:
    """An optional library. Raises MissingPackageError, saying what to install, if it isn't there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{name.partition('.')[0]} isn't installed: pip install 'unbranch[{extra}]'"
        ) from error
