"""The loss of a recipe: smoothed or mixed labels, auxiliary classifiers, RepVGG's penalty; on timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from unbranch.blocks import RepVGG, custom_l2
from unbranch.errors import InputError
from unbranch.extras import library
from unbranch.train.recipe import Recipe

Outputs: TypeAlias = Tensor | Mapping[str, Tensor]
MAIN = "main"  # the classifier in the outputs of a network that has auxiliary ones, too
KERNELS = ("conv_kxk.conv.weight", "conv_1x1.conv.weight")  # of a RepVGG block, to which its penalty applies


def make_loss(recipe: Recipe, mixed: bool) -> Callable[[Outputs, Tensor], Tensor]:
    """Return a function from logits ``(B, classes)`` and labels to the mean loss of a batch, a scalar.

    Logits may be a mapping by classifier: ``main`` has weight 1, the others ``loss.auxiliary``.

    Args:
        mixed: labels are ``(B, classes)``, mixed and smoothed already; they are ``(B,)`` otherwise.
    """
    timm, smoothing = library("timm.loss", "train"), recipe.loss.smoothing
    criterion: nn.Module
    if mixed:
        criterion = timm.SoftTargetCrossEntropy()
    else:
        criterion = timm.LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return cast(Tensor, criterion(outputs, targets))
        total = cast(Tensor, criterion(outputs[MAIN], targets))
        others = [criterion(logits, targets) for name, logits in outputs.items() if name != MAIN]
        return total + recipe.loss.auxiliary * torch.stack(others).sum() if others else total

    return loss


def extra_penalty(network: nn.Module, recipe: Recipe) -> Callable[[], Tensor] | None:
    """Return a function that computes ``½ · weight decay · Σ custom_l2`` over the RepVGG blocks of the network.

    Its scalar is added to the loss. None without ``loss.custom_l2``.

    Raises:
        InputError: if ``loss.custom_l2`` is set and the network has no RepVGG block.
    """
    blocks = list(_penalised_blocks(network, recipe).values())
    if not blocks:
        return None
    factor = recipe.optimizer.weight_decay / 2
    return lambda: factor * torch.stack([custom_l2(block) for block in blocks]).sum()


def penalised(network: nn.Module, recipe: Recipe) -> list[str]:
    """Return the names of the kernels to which the penalty applies, instead of weight decay."""
    return [f"{path}.{kernel}".lstrip(".") for path in _penalised_blocks(network, recipe) for kernel in KERNELS]


def _penalised_blocks(network: nn.Module, recipe: Recipe) -> dict[str, RepVGG]:
    if not recipe.loss.custom_l2:
        return {}
    blocks = {path: module for path, module in network.named_modules() if isinstance(module, RepVGG)}
    if not blocks:
        raise InputError("`loss.custom_l2` needs a network with RepVGG blocks, and this one has none: set it false")
    return blocks
