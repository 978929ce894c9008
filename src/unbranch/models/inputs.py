"""Images that a model takes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unbranch.deprecation import renamed_arguments
from unbranch.errors import InputError
from unbranch.provenance import provenance_of


@renamed_arguments(network="model")
def example_input(
    model: nn.Module, size: tuple[int, ...] | None = None, batch: int = 1
) -> Tensor | tuple[list[Tensor]]:
    """Return random images for a model.

    Args:
        model: any model.
        size: channels, height and width; the model's own by default.
        batch: number of images.

    Returns:
        ``(batch, channels, height, width)``, or a list of images for a detector of torchvision.

    Raises:
        InputError: if the model fails on them.
    """
    shape = size or input_size(model)
    generator = torch.Generator().manual_seed(0)
    try:
        images: Tensor | tuple[list[Tensor]] = torch.randn((batch, *shape), generator=generator)
    except RuntimeError as error:  # out of memory, or a size that no tensor has
        raise InputError(f"no input of size {shape} can be made: {str(error).splitlines()[0]}") from error
    if type(model).__module__.startswith("torchvision.models.detection"):
        images = (list(torch.rand((batch, *shape), generator=generator)),)
    try:
        with torch.inference_mode():
            copy.deepcopy(model).eval()(*(images if isinstance(images, tuple) else (images,)))
    except Exception as error:  # whatever stops a forward
        raise InputError(f"the network doesn't take an input of size {shape}: {error}; see --input-size") from error
    return images


@renamed_arguments(network="model")
def input_size(model: nn.Module) -> tuple[int, ...]:
    """Return the usual input size of a model, ``(channels, height, width)``; ``(3, 224, 224)`` if it isn't known."""
    return known_input_size(model) or (3, 224, 224)


def known_input_size(model: nn.Module) -> tuple[int, ...] | None:
    """Return the input size that a model's history or its own configuration gives, None if neither does."""
    configurations = [getattr(model, field, None) or {} for field in ("pretrained_cfg", "default_cfg")]
    sizes = [provenance_of(model).input_size, *(known.get("input_size") for known in configurations)]
    return next((tuple(size) for size in sizes if size), None)
