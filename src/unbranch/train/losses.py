"""The loss of a recipe: smoothed or mixed labels, auxiliary classifiers, RepVGG's penalty. timm's where it has it."""

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
MAIN = "main"
KERNELS = ("conv_kxk.conv.weight", "conv_1x1.conv.weight")  # of a RepVGG block, which its penalty is for


def make_loss(recipe: Recipe, mixed: bool) -> Callable[[Outputs, Tensor], Tensor]:
    """From logits ``(B, classes)`` and labels to the mean loss of a batch, a scalar.

    Labels are ``(B,)``, or ``(B, classes)`` where images are ``mixed``, smoothed already. Of logits by the name of
    their classifier, ``main`` counts fully and the others as ``loss.auxiliary`` says.
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
    """``½ · weight decay · Σ custom_l2`` over the RepVGG blocks of the network, a scalar to add to the loss; or None.

    Raises:
        InputError: if the recipe asks for it, and the network has no such block.
    """
    blocks = list(_penalised_blocks(network, recipe).values())
    if not blocks:
        return None
    factor = recipe.optimizer.weight_decay / 2
    return lambda: factor * torch.stack([custom_l2(block) for block in blocks]).sum()


def penalised(network: nn.Module, recipe: Recipe) -> list[str]:
    """Names of the kernels that the penalty is for, in place of weight decay."""
    return [f"{path}.{kernel}".lstrip(".") for path in _penalised_blocks(network, recipe) for kernel in KERNELS]


def _penalised_blocks(network: nn.Module, recipe: Recipe) -> dict[str, RepVGG]:
    if not recipe.loss.custom_l2:
        return {}
    blocks = {path: module for path, module in network.named_modules() if isinstance(module, RepVGG)}
    if not blocks:
        raise InputError("loss.custom_l2 is for networks of RepVGG blocks, and this one has none: set it false")
    return blocks
