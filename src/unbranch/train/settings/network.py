"""What a recipe says of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from unbranch.train.settings.bounds import NotNegative, Rate
from unbranch.train.typed import Bounds

REQUIRED = "required"
"""In place of weights, in recipes that make no sense without."""


@dataclass(frozen=True, kw_only=True)
class Expand:
    """Blocks in place of a network's convolutions, ``unbranch.expand``'s arguments."""

    block: str
    where: tuple[str, ...] | None = None
    start: Literal["zero", "compensated", "subtracted"] = "zero"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network, by ``unbranch.create_model``'s arguments.

    Args:
        name: of ours, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``.
        block: what stands for the convolutions of a plain network of ours.
        options: further arguments.
        num_classes: those of the data unless given.
        pretrained: true, a file, or an id on the Hugging Face hub; ``required`` in recipes that fine-tune.
        expand: blocks put into the network, whatever its origin, its function kept.
        drop_path: rate of stochastic depth at the last block.
        drop_rate: of the dropout before the classifier; the network's own unless given.
    """

    name: str
    block: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    num_classes: Annotated[int, Bounds(least=2)] | None = None
    pretrained: bool | str | None = None
    expand: Expand | None = None
    drop_path: Rate | None = None
    drop_rate: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """How blocks with branches begin.

    Args:
        init: scale of the norm that closes each branch: a number, or ``single``: 1 in the main branch, 0 elsewhere.
        where: patterns of the paths of blocks that ``init`` is for; all of them unless given.
        options: further arguments of the block that ``model.block`` names.
    """

    init: NotNegative | Literal["single", "zero", "identity"] | None = None
    where: tuple[str, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
