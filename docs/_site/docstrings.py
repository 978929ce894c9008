"""Make docstrings render well on the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

DRAWING = re.compile(r"[│├└─►▲]")


class Docstrings(griffe.Extension):
    """Render examples as code, and drawings as they are written."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = "\n\n".join(map(_as_code, text.split("\n\n")))


def _as_code(paragraph: str) -> str:
    """Mark a paragraph as code if it is a drawing or an example without a heading."""
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    if DRAWING.search(paragraph) and "`" not in paragraph and not paragraph.startswith(" "):
        return "\n".join(f"    {line}" for line in paragraph.splitlines())
    return paragraph
