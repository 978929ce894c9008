"""The networks of the zoo as rows: what each costs with its branches and collapsed, and what its authors report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from unbranch.convert import NetworkCost, collapse
from unbranch.convert.costs import cost_of
from unbranch.models.accuracy import Accuracy
from unbranch.models.build import build_model
from unbranch.models.registry import MODELS, ModelEntry


@dataclass(frozen=True)
class ModelRow:
    """A network with its costs.

    Args:
        entry: of the registry.
        block: that replaces its convolutions, None for its own.
        before, after: cost of one image in training form and collapsed.
        published: accuracy that its authors report; None if they don't.
    """

    entry: ModelEntry
    block: str | None
    before: NetworkCost
    after: NetworkCost
    published: Accuracy | None

    @property
    def name(self) -> str:
        return self.entry.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: parameters and multiply-accumulates of one image, in both forms."""
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


def catalogue(names: Iterable[str]) -> Iterator[ModelRow]:
    """Yield a row for each network and each block that it was published with; only shapes are computed."""
    for name in names:
        for block in (None, *sorted(block for block in MODELS[name].accuracy if block)):
            yield _row(MODELS[name], block)


def _row(entry: ModelEntry, block: str | None) -> ModelRow:
    with torch.device("meta"):
        network = build_model(entry.name, **({"block": block} if block else {})).eval()
        images = (torch.empty(1, *entry.input_size),)
    plain = collapse(network)
    before, after = cost_of(network, images), cost_of(plain, images)
    return ModelRow(entry, block, before, after, entry.accuracy.get(block))
