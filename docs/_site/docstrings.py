"""Docstrings as the site shows them."""

from __future__ import annotations

import re
from typing import Any

import griffe

DRAWING = re.compile(r"[│├└─►▲]")


class Docstrings(griffe.Extension):
    """Render sections called ``Example`` as code, and drawings as they are written."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = "\n\n".join(map(_indented, text.split("\n\n")))


def _indented(paragraph: str) -> str:
    if not DRAWING.search(paragraph) or "`" in paragraph or paragraph.startswith(" "):
        return paragraph
    return "\n".join(f"    {line}" for line in paragraph.splitlines())
