"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unbranch.train.settings.bounds import AtLeastTwo, Flag, Many, NotNegative, Options, Rate, Text

REQUIRED = "required"
"""The value of ``model.pretrained`` in recipes that make no sense without pretrained weights."""


@dataclass(frozen=True, kw_only=True)
class Expand:
    """Blocks that replace the network's convolutions: the arguments of ``unbranch.expand``."""

    block: Text
    where: Many[Text] | None = None
    start: Literal["zero", "compensated", "subtracted"] = "zero"  # "subtracted" is deprecated
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network: the arguments of ``unbranch.create_model``.

    Args:
        name: of a network of the package, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``.
        block: the block that replaces each convolution of a plain network of the package.
        options: further arguments.
        num_classes: number of classes; that of the data unless given.
        pretrained: true, a file, or an id on the Hugging Face hub; ``required`` in recipes that fine-tune.
        expand: blocks inserted into the network, wherever it comes from, without changing its function.
        drop_path: rate of stochastic depth at the last block.
        drop_rate: of the dropout before the classifier; the network's default unless given.
    """

    name: Text
    block: Text | None = None
    options: Options = field(default_factory=dict)
    num_classes: AtLeastTwo | None = None
    pretrained: Flag | Text | None = None
    expand: Expand | None = None
    drop_path: Rate | None = None
    drop_rate: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """Initialisation of blocks with branches.

    Args:
        init: scale of the norm at the end of each branch: a number, or ``single``: 1 in the main branch, 0 elsewhere.
        where: patterns of the paths of blocks that ``init`` applies to; all of them unless given.
        options: further arguments of the block named by ``model.block``.
    """

    init: NotNegative | Literal["single", "zero", "identity"] | None = None
    where: Many[Text] | None = None
    options: Options = field(default_factory=dict)
