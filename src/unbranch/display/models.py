"""The catalogue of networks, as tables and as the page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from unbranch.models.catalogue import ModelRow
from unbranch.models.registry import MODELS
from unbranch.render import Table, count

PAGE = """# Models

Written by `unbranch models --markdown > docs/models.md`; don't edit.

`unbranch.create_model(NAME)` makes each; `unbranch models` lists them. Parameters and multiply-accumulates (MACs, by
PyTorch's counter, for one image of the size in the second column) are those of the training form → those of the network
that `collapse` makes of it; batch norms count as parameters. Top-1 accuracy is what the authors' repository reports, in
percent.
Networks of timm and torchvision are reached as `timm:NAME` and `torchvision:NAME`.

Networks that were published without branches take any block that stands for a convolution: `block="acb"`, `"dbb"`,
`"repvgg"`, …, or a class of your own; the rows show those with published figures.
"""


def names_table(names: Sequence[str]) -> Table:
    """Return names with their family and the size of their images."""
    rows = []
    for name in names:
        entry = MODELS.get(name)
        known = ("", "", "") if entry is None else (entry.family, _size(entry.input_size), ", ".join(entry.aliases))
        rows.append((name, *known))
    return Table(("name", "family", "images", "also called"), rows)


def catalogue_table(rows: Iterable[ModelRow]) -> Table:
    """Return names with their costs and published accuracy."""
    return Table(HEADERS, [_cells(row) for row in rows])


def models_page(rows: Iterable[ModelRow]) -> str:
    """Return the page of the documentation, in Markdown: one section for each family."""
    parts = [PAGE]
    for paper, found in groupby(rows, key=lambda row: row.entry.paper):
        title, _, address = paper.rpartition(", ")
        lines = ["| " + " | ".join(_cells(row)) + " |" for row in found]
        header = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
        parts.append("\n".join((f"## [{title}]({address})\n", *header, *lines)) + "\n")
    return "\n".join(parts)


HEADERS = ("name", "image", "parameters", "MACs", "top-1", "source")


def _cells(row: ModelRow) -> tuple[str, ...]:
    name = f"{row.name}, block={row.block}" if row.block else row.name
    params = _both(row.before.params, row.after.params)
    macs = _both(row.before.macs, row.after.macs)
    if row.published is None:
        return name, _size(row.entry.input_size), params, macs, "", ""
    published = row.published
    side = f" at {published.side}" if published.side != row.entry.input_size[-1] else ""
    return (
        name,
        _size(row.entry.input_size),
        params,
        macs,
        f"{published.top1:g}",
        f"{published.source}; {published.data}{side}",
    )


def _both(before: int | None, after: int | None) -> str:
    first, second = count(before), count(after)
    return first if first == second else f"{first} → {second}"


def _size(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
