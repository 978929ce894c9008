"""The network of a recipe: made or loaded, with its blocks initialised."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn

from unbranch.blocks import BranchedConv, initialise
from unbranch.errors import InputError
from unbranch.expansion import expand
from unbranch.factory import create_model
from unbranch.train.recipe import Recipe
from unbranch.train.settings import REQUIRED


class LabelledImages(Protocol):
    """What a network depends on in the data."""

    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def channels(self) -> int: ...


def make_network(recipe: Recipe, data: LabelledImages) -> nn.Module:
    """Return the network of a recipe in training mode, for the classes and channels of the data.

    Random weights come from PyTorch's global generator.

    Raises:
        InputError: if there is no such network, or the recipe needs pretrained weights and none are given.
    """
    model = recipe.model
    if model.pretrained == REQUIRED:
        raise InputError(
            "this recipe fine-tunes and needs pretrained weights: model.pretrained=FILE, or --weights FILE"
        )
    options: dict[str, Any] = dict(model.options)
    options |= {"block_options": dict(recipe.block.options)} if recipe.block.options else {}
    options |= {"drop_path_rate": model.drop_path} if model.drop_path is not None else {}
    options |= {"drop_rate": model.drop_rate} if model.drop_rate is not None else {}
    classes = model.num_classes or len(data.classes)
    if classes < len(data.classes):
        raise InputError(
            f"`model.num_classes` must be at least {len(data.classes)}, the classes of the data; got {classes}"
        )
    network = create_model(
        model.name, pretrained=model.pretrained, num_classes=classes, in_channels=data.channels, block=model.block,
        **options,
    )  # fmt: skip
    if recipe.block.init is not None and not model.pretrained:  # which has the scales, too
        _initialise(network, recipe)
    if model.expand is not None:
        added = model.expand
        network = expand(network, added.block, added.where, start=added.start, **added.options)
    return network.train()


def _initialise(network: nn.Module, recipe: Recipe) -> None:
    """Initialise the blocks as ``block.init`` says."""
    settings = recipe.block
    how, patterns = settings.init, ("*",) if settings.where is None else settings.where
    blocks = [
        module
        for path, module in network.named_modules()
        if isinstance(module, BranchedConv) and any(fnmatchcase(path, pattern) for pattern in patterns)
    ]
    if not blocks or how is None:
        raise InputError(
            f"block.init={how} needs blocks with branches at {', '.join(patterns)}, and the network has none"
        )
    for block in blocks:
        initialise(block, how)
