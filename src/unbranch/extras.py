"""Libraries that only some users need."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import InputError


def library(name: str, extra: str = "vision") -> ModuleType:
    """An optional library. Raises InputError, saying what to install, if it isn't there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name.partition('.')[0]} isn't installed: pip install 'unbranch[{extra}]'") from error
