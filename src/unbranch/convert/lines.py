"""Where in the user's code an operation is run."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import fx

_OURS = (os.path.dirname(__file__), os.path.dirname(fx.__file__).rpartition(os.sep)[0], "<")


def line_of_user() -> tuple[str, int]:
    """File and line of the user's code that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def place_of(node: fx.Node) -> str:
    """File and line where the user's code runs an operation, if that is known."""
    file, line = node.meta.get("where", ("", 0))
    if not file:
        return ""
    parts = file.split(f"{os.sep}site-packages{os.sep}")
    inside = os.path.relpath(file) if len(parts) == 1 and file.startswith(os.getcwd() + os.sep) else parts[-1]
    return f"{inside}:{line}"
