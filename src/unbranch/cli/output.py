"""Output of the commands: JSON or tables on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from unbranch.display import console


def print_json(values: Any) -> None:
    """Print plain values as JSON."""
    sys.stdout.write(json.dumps(values, indent=2, default=str) + "\n")


def print_result(result: Any, as_json: bool, *more: RenderableType, **values: Any) -> None:
    """Print a result as itself, or as JSON.

    Args:
        result: a value with ``to_dict`` that renders itself, as rich or as text.
        more: printed after it.
        values: added to the JSON.
    """
    if as_json:
        print_json({**result.to_dict(), **values})
    else:
        rendered = result if hasattr(result, "__rich__") else Text(str(result))
        console().print(rendered, *more, sep="\n")
