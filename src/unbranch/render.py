"""Results that render themselves: one description becomes plain text, a rich table in a terminal, or HTML.

A result lists its blocks once, and ``Renderable`` derives every form from them:

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Timing(Renderable):
...     first_ms: float
...     second_ms: float
...     def blocks(self) -> tuple[Block, ...]:
...         row = ("latency", f"{self.first_ms:.1f} ms", f"{self.second_ms:.1f} ms")
...         return Paragraph("1.5× faster"), Table(("", "first", "second"), [row], numeric=True)
>>> print(Timing(3.0, 2.0))
1.5× faster
          first  second
latency  3.0 ms  2.0 ms
>>> Timing(3.0, 2.0).to_dict()
{'first_ms': 3.0, 'second_ms': 2.0}
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 80
"""Columns of ``str()``."""

Style: TypeAlias = Literal["", "bold", "dim", "green", "yellow", "red", "bold green", "bold yellow", "bold red"]


@dataclass(frozen=True)
class Paragraph:
    """Text that wraps at the width of the output."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    Args:
        header: one name for each column; without names, no header is shown.
        rows: cells, as many in each row as the header has names.
        title: shown above the table.
        numeric: align every column but the first to the right.
        limit: number of rows to show; the others are counted in a last line. All of them unless given.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    numeric: bool = False
    limit: int | None = None

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows within ``limit``."""
        return self.rows[: self.limit]

    @property
    def more(self) -> str:
        """A line that counts the rows beyond ``limit``, empty if there are none."""
        hidden = len(self.rows) - len(self.shown)
        return f"… and {hidden:,} more" if hidden else ""


Block: TypeAlias = Paragraph | Table


class Renderable:
    """Mixin of a frozen dataclass that renders itself: ``str()``, rich, HTML in notebooks, and ``to_dict``."""

    @abstractmethod
    def blocks(self) -> Iterable[Block]:
        """The parts of the output, from top to bottom."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        done: dict[str, Any] = plain(self)
        return done

    def __str__(self) -> str:
        return to_text(self.blocks())

    def __rich__(self) -> RenderableType:
        return to_rich(self.blocks())

    def _repr_html_(self) -> str:
        return to_html(self.blocks())


class Reporting:
    """Mixin of a value with a ``report``, a ``Renderable`` with a ``summary``, which renders as its report does."""

    report: Any

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report.summary}>"

    def __rich__(self) -> RenderableType:
        rendered: RenderableType = self.report.__rich__()
        return rendered

    def _repr_html_(self) -> str:
        return str(self.report._repr_html_())


def plain(value: Any) -> Any:
    """Return dataclasses and mappings as dictionaries, sequences as lists, paths as text; other values unchanged."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inside) for inside in value]
    return str(value) if isinstance(value, Path) else value


def to_text(blocks: Iterable[Block], width: int = WIDTH) -> str:
    """Return the blocks as plain text of at most ``width`` columns."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, highlight=False, emoji=False)
    console.print(to_rich(blocks))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def to_rich(blocks: Iterable[Block]) -> RenderableType:
    """Return the blocks as one renderable of rich."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(b.text, b.style) if isinstance(b, Paragraph) else _rich_table(b) for b in blocks))


def to_html(blocks: Iterable[Block]) -> str:
    """Return the blocks as HTML; every text is escaped."""
    return "\n".join(_html_paragraph(b) if isinstance(b, Paragraph) else _html_table(b) for b in blocks)


def count(number: int | None) -> str:
    """Return a number with at most four digits before its unit: ``1,234``, ``12.30 M``, ``1.36 G``; ``?`` for None."""
    if number is None:
        return "?"
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,}"


def byte_size(size: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB.

    >>> byte_size(3 * 2**20)
    '3.0 MiB'
    """
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def written_files(paths: Iterable[Path]) -> Paragraph:
    """One line for each file that was written, with its size."""
    return Paragraph("\n".join(f"wrote {path} ({byte_size(path.stat().st_size)})" for path in paths))


def _rich_table(table: Table) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=None, pad_edge=False, header_style="dim", show_header=any(table.header),
        title=Text(f"\n{table.title}", "bold") if table.title else None, title_justify="left",
    )  # fmt: skip
    for column, name in enumerate(table.header):
        drawn.add_column(Text(name), justify="right" if table.numeric and column else "left", overflow="fold")
    for row in table.shown:
        drawn.add_row(*map(Text, row))
    if table.more:
        drawn.add_row(Text(table.more))
    return drawn


def _html_paragraph(paragraph: Paragraph) -> str:
    lines = "<br>".join(escape(line) for line in paragraph.text.splitlines())
    return f"<p>{f'<b>{lines}</b>' if 'bold' in paragraph.style else lines}</p>"


def _html_table(table: Table) -> str:
    title = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    rows = [_html_row("th", table.header, False)] if any(table.header) else []
    rows += [_html_row("td", row, table.numeric) for row in table.shown]
    if table.more:
        rows.append(f'<tr><td colspan="{len(table.header)}">{escape(table.more)}</td></tr>')
    return f"<table>{title}{''.join(rows)}</table>"


def _html_row(tag: str, cells: Sequence[str], numeric: bool) -> str:
    right = ' style="text-align:right"' if numeric else ""
    inside = (f"<{tag}{right if column else ''}>{escape(cell)}</{tag}>" for column, cell in enumerate(cells))
    return f"<tr>{''.join(inside)}</tr>"
