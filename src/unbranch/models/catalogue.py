"""The networks of the zoo as rows: what each costs with its branches and collapsed, and what its authors report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from unbranch.convert import NetworkCost, collapse
from unbranch.convert.costs import cost_of
from unbranch.models.names import create
from unbranch.models.published import PUBLISHED, Published
from unbranch.models.registry import ENTRIES, Entry


@dataclass(frozen=True)
class Row:
    """A network, with the block that it trains with if it takes others' blocks."""

    entry: Entry
    block: str | None
    before: NetworkCost
    after: NetworkCost
    published: Published | None

    @property
    def name(self) -> str:
        return self.entry.name

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: parameters and multiply-accumulates of one image, in both forms."""
        return {
            "name": self.name,
            "block": self.block,
            "family": self.entry.family,
            "paper": self.entry.paper,
            "input_size": list(self.entry.input_size),
            "params": {"training": self.before.params, "deploy": self.after.params},
            "macs": {"training": self.before.macs, "deploy": self.after.macs},
            "published": None if self.published is None else vars(self.published),
        }


def catalogue(names: Iterable[str]) -> Iterator[Row]:
    """A row for each network and each block that it was published with; nothing is computed but shapes."""
    for name in names:
        blocks = sorted({block for known, block in PUBLISHED if known == name and block}) or []
        for block in (None, *blocks):
            yield _row(ENTRIES[name], block)


def _row(entry: Entry, block: str | None) -> Row:
    with torch.device("meta"):
        network = create(entry.name, **({"block": block} if block else {})).eval()
        images = (torch.empty(1, *entry.input_size),)
    plain = collapse(network)
    published = PUBLISHED.get((entry.name, block))
    return Row(entry, block, cost_of(network, images), cost_of(plain, images), published)
