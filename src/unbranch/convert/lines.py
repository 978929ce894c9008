"""File and line of the user's code that runs an operation."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx

_OURS = (os.path.dirname(__file__), os.path.dirname(fx.__file__).rpartition(os.sep)[0], "<")

_BEGINNINGS: set[types.CodeType] = set()
Method = TypeVar("Method", bound=Callable[..., Any])


def begins(function: Method) -> Method:
    """Mark a function as the start of a trace: its callers aren't part of the network."""
    _BEGINNINGS.add(function.__code__)
    return function


def line_of_user() -> tuple[str, int]:
    """Return file and line of the user's code that a trace runs, ``("", 0)`` if only PyTorch and Unbranch run."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = None if frame.f_code in _BEGINNINGS else frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def place_of(node: fx.Node) -> str:
    """Return file and line of the user's code that runs an operation, empty if unknown."""
    file, line = node.meta.get("where", ("", 0))
    if not file:
        return ""
    parts = file.split(f"{os.sep}site-packages{os.sep}")
    inside = os.path.relpath(file) if len(parts) == 1 and file.startswith(os.getcwd() + os.sep) else parts[-1]
    return f"{inside}:{line}"
