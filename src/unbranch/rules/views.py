"""Rules of reshapes to images of a fixed shape, as before and after a fully connected layer on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx, nn

from unbranch.algebra import GridMap
from unbranch.errors import NotAffineError
from unbranch.rules.registry import register_method, register_rule
from unbranch.rules.value import Affine


def image_shape(sizes: Sequence[Any]) -> tuple[int, ...] | None:
    """Return the shape of one image from ``reshape``'s arguments ``-1, C, …``, or None if it isn't fixed."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = sizes[0]
    batch, *image = sizes or (None,)
    fixed = image and all(type(n) is int and n > 0 for n in image)
    return tuple(image) if type(batch) is int and batch == -1 and fixed else None


def shape_after(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of one image after a node that reshapes to a fixed shape, else None."""
    reshapes = node.op in ("call_function", "call_method") and node.target in RESHAPES and not node.kwargs
    if not reshapes:
        return None
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    return image_shape((-1, *sizes[1:]) if sizes and isinstance(sizes[0], fx.Node) else sizes)


@register_rule(torch.reshape, kind="view")
def _reshape(x: Affine, *sizes: Any) -> Affine:
    shape = image_shape(sizes)
    if shape is None:
        raise NotAffineError("a reshape to a size that depends on the input, or of the batch")
    return x.reshape(shape)


register_method("reshape", "view", kind="view")(_reshape)
RESHAPES = (torch.reshape, "reshape", "view")


@register_rule(torch.flatten, kind="view")
def _flatten(x: Affine, start_dim: int = 0, end_dim: int = -1) -> Affine:
    if start_dim != 1 or end_dim != -1:
        raise NotAffineError("a flattening of other axes than all of an image")
    return x.reshape((prod(_shape(x)),))


def _shape(x: Affine) -> tuple[int, ...]:
    """Return the shape of one image, channels first, if the graph fixes it."""
    m = x.on_grid().map
    assert isinstance(m, GridMap)
    return m.shape


register_method("flatten", kind="view")(_flatten)


@register_rule(nn.Flatten, kind="view")
def _flatten_layer(module: nn.Flatten, x: Affine) -> Affine:
    return _flatten(x, module.start_dim, module.end_dim)


@register_rule(nn.Unflatten, kind="view")
def _unflatten_layer(module: Any, x: Affine) -> Affine:
    if module.dim != 1:
        raise NotAffineError("an unflattening of another axis than the first of an image")
    return _reshape(x, -1, *module.unflattened_size, *_shape(x)[1:])
