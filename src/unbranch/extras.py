"""Optional libraries, which come with the extras of the package."""

from __future__ import annotations

import importlib
from types import ModuleType

from unbranch.errors import MissingPackageError


def library(name: str, extra: str = "vision") -> ModuleType:
    """Import an optional library.

    Args:
        name: of the module.
        extra: the extra of the package that installs it.

    Raises:
        MissingPackageError: if it isn't installed; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{name.partition('.')[0]} isn't installed: pip install 'unbranch[{extra}]'"
        ) from error
