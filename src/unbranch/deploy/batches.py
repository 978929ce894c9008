"""Inputs and labels in batches, in any of the forms that data sets and loaders have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unbranch.errors import InputError

Call: TypeAlias = tuple[Tensor, ...]
IMAGE_KEYS, LABEL_KEYS = ("pixel_values", "image", "images", "input"), ("label", "labels", "target")


def separated(batch: Any) -> tuple[Call, Tensor | None]:
    """Return the inputs and the labels of a batch in any of the usual forms.

    Raises:
        InputError: if it has another form, or not one label for each image.
    """
    tensors, labels = _parted(batch)
    tensors = tuple(_readable(value) for value in tensors)
    if labels is not None and tensors[0].dim() and len(labels) != len(tensors[0]):
        raise InputError(f"`data` must have one label for each image, got {len(labels)} for {len(tensors[0])} images")
    return tensors, labels


def _readable(value: Tensor) -> Tensor:
    """Return a tensor on the CPU, without gradient, of a dtype that files have."""
    if value.dtype == torch.bfloat16 or value.layout != torch.strided or value.is_meta:
        kind = "bfloat16" if value.dtype == torch.bfloat16 else "meta" if value.is_meta else "sparse"
        raise InputError(f"`data` must be dense tensors of float32 or integers, got a {kind} tensor")
    return value.detach().cpu()


def _parted(batch: Any) -> tuple[Call, Tensor | None]:
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
        if images is None:
            raise InputError(
                f"batches of `data` must have one of {', '.join(IMAGE_KEYS)}, got {', '.join(map(str, batch))}"
            )
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        return (_tensor(images),), None if labels is None else _classes(_tensor(labels))
    if isinstance(batch, Tensor) or type(batch).__module__ == "numpy":
        return (_tensor(batch),), None
    values = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(values) == 2 and isinstance(values[1], tuple | list):  # labels as a list of numbers
        values = values[0], _tensor(values[1])
    values = tuple(_tensor(v) if type(v).__module__ == "numpy" else v for v in values)
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(values) == 2 and len(tensors) == 2 and tensors[1].dim() <= 1 and not tensors[1].is_floating_point():
        return (tensors[0],), tensors[1].flatten()
    if len(tensors) != len(values) or not values:
        raise InputError(f"batches of `data` must be tensors, or tensors with labels, got {type(batch).__name__}")
    return tuple(tensors), None


def _classes(labels: Tensor) -> Tensor | None:
    """Return labels ``(N,)``; None if they are something else, such as masks."""
    single = labels.dim() <= 1 or labels.numel() == len(labels)
    return labels.flatten() if single and not labels.is_floating_point() else None


def _tensor(value: Any) -> Tensor:
    """Return an array or a list of numbers as a tensor."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"images of `data` must be tensors, and labels integers, got {type(value).__name__}: "
            "transform images to tensors and number the classes"
        ) from error


def repeatable(data: Any, limit: int) -> Any:
    """Return data that can be read several times: the first batches of an iterator, otherwise the data itself.

    Args:
        data: as for ``load_samples``.
        limit: number of images that are read at most.
    """
    if not isinstance(data, Iterator):
        return data
    batches, number = [], 0
    for batch in data:
        batches.append(batch)
        number += len(separated(batch)[0][0])
        if number >= limit:
            break
    return batches


def unsqueezed(example: Any) -> Any:
    """Return an example of a data set as a batch of one."""
    if isinstance(example, Tensor):
        return example[None]
    if isinstance(example, Mapping):
        return {key: value[None] if isinstance(value, Tensor) else [value] for key, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_tensor(v)[None] for v in example)
    if type(example).__module__ == "numpy":
        return _tensor(example)[None]
    raise InputError(f"examples of `data` must be tensors, with or without a label, got {type(example).__name__}")
