"""Pages of the site that lie beside ``docs/``: the changelog and how to contribute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
WIDE = {"atlas.md", "benchmarks.md", "models.md"}  # pages of wide tables of numbers
UNBROKEN = "\n\n<style>.md-typeset td:not(:last-child) { white-space: nowrap; }</style>\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the repository's root as pages."""
    for name, page in OUTSIDE.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / name).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to those files lead to the pages, and give wide tables the room of the table of contents."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
        markdown += UNBROKEN
    for name, target in OUTSIDE.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}")
    return markdown
