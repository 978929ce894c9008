"""A result is described once, and every form shows the same."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from unbranch.render import Block, Paragraph, Renderable, Table, byte_size, count, to_html, to_text


@dataclass(frozen=True)
class Result(Renderable):
    name: str
    sizes: tuple[int, ...]
    files: tuple[Path, ...] = ()

    def blocks(self) -> Iterable[Block]:
        yield Paragraph(self.name, "bold")
        yield Table(("", "size"), [(f"row {i}", f"{n:,}") for i, n in enumerate(self.sizes)], "sizes", True, limit=2)


RESULT = Result("net [bold]<b>", (1, 1234, 3, 4), (Path("a/b"),))


def test_text_has_titles_aligned_numbers_and_a_count_of_hidden_rows() -> None:
    lines = str(RESULT).splitlines()
    assert lines[0] == "net [bold]<b>"  # no markup
    assert lines[1:3] == ["", "sizes"]
    assert lines[4].endswith("    1")
    assert lines[5].endswith("1,234")
    assert lines[-1].startswith("… and 2 more")


def test_text_fits_80_columns_and_loses_nothing() -> None:
    path, reason = "stages." * 30, "because " * 30
    text = to_text([Paragraph(reason), Table(("at", "reason"), [("", reason)]), Table(("at",), [(path,)])])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("because") == 60
    assert path in "".join(text.split())


def test_html_is_escaped() -> None:
    html = RESULT._repr_html_()
    assert "<b>net [bold]&lt;b&gt;</b>" in html
    assert "<caption>sizes</caption>" in html
    assert html.count("<tr>") == 4
    assert "<script>" not in to_html([Paragraph("<script>"), Table(("<script>",), [("<script>",)], "<script>")])


def test_rich_prints_the_same_words() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(RESULT)
    assert [line.rstrip() for line in file.getvalue().rstrip().splitlines()] == str(RESULT).splitlines()


def test_dictionary_is_json() -> None:
    assert json.loads(json.dumps(RESULT.to_dict())) == {
        "name": "net [bold]<b>", "sizes": [1, 1234, 3, 4], "files": [str(Path("a/b"))],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"), [(None, "?"), (0, "0"), (1234, "1,234"), (12_300_000, "12.30 M"), (1_360_000_000, "1.36 G")]
)
def test_numbers_have_units(number: int | None, text: str) -> None:
    assert count(number) == text


def test_sizes_have_binary_units() -> None:
    assert [byte_size(2**n) for n in (10, 20, 30)] == ["1 KiB", "1.0 MiB", "1.00 GiB"]
