"""The provenance of a pruned network: which layers became narrower, by their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.provenance import record_transform, register_replay

PRUNE = "prune"  # kind of the transform
ATTRIBUTES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels")
Shapes = dict[str, dict[str, tuple[int, ...]]]


def shapes_of(network: nn.Module) -> Shapes:
    """Return the shapes of the parameters and buffers that each module itself holds, by path and name."""
    return {
        path: {name: tuple(t.shape) for name, t in _own(module).items()} for path, module in network.named_modules()
    }


def record_narrowing(network: nn.Module, before: Shapes) -> None:
    """Record in a network's provenance which of its layers have other shapes than ``before``."""
    layers = {}
    for path, module in network.named_modules():
        own = {name: tuple(t.shape) for name, t in _own(module).items()}
        if own != before.get(path):
            numbers = {name: getattr(module, name) for name in ATTRIBUTES if type(getattr(module, name, None)) is int}
            layers[path] = {"shapes": {name: list(shape) for name, shape in own.items()}, "numbers": numbers}
    if layers:
        record_transform(network, network, {"kind": PRUNE, "layers": layers})


@register_replay(PRUNE)
def _replay(network: nn.Module, transform: dict[str, Any]) -> nn.Module:
    """Narrow the layers of a recorded transform; their weights are meaningless."""
    layers, modules = transform.get("layers"), dict(network.named_modules())
    if not isinstance(layers, dict):
        raise InputError("its record of pruning has no layers")
    for path, layer in layers.items():
        module = modules.get(path)
        if module is None or not isinstance(layer, dict):
            raise InputError(f"its record of pruning has a layer {path[:80]} that the network doesn't have")
        shapes, numbers = layer.get("shapes"), layer.get("numbers")
        if not isinstance(shapes, dict) or not isinstance(numbers, dict):
            raise InputError(f"its record of pruning doesn't say how narrow {path[:80]} is")
        _narrow(module, shapes, numbers, path)
    record_transform(network, network, transform)
    return network


def _narrow(module: nn.Module, shapes: dict[str, Any], numbers: dict[str, Any], path: str) -> None:
    own = _own(module)
    for name, shape in shapes.items():
        old = own.get(name)
        if old is None and not (name == "bias" and "bias" in module._parameters and _is_shape(shape, 1)):
            raise InputError(f"its record of pruning has a tensor {path}.{name[:40]} that the network doesn't have")
        like = old if old is not None else next(iter(own.values()))
        largest = tuple(old.shape) if old is not None else (like.shape[0],)
        if not _is_shape(shape, len(largest)) or any(n > limit for n, limit in zip(shape, largest, strict=True)):
            raise InputError(f"its record of pruning makes {path}.{name[:40]} {shape} of {list(largest)}")
        tensor = torch.empty(shape, dtype=like.dtype, device=like.device)
        if name in module._buffers:
            module._buffers[name] = tensor
        else:
            requires = like.requires_grad
            module._parameters[name] = nn.Parameter(tensor, requires_grad=requires)
    for name, number in numbers.items():
        if name not in ATTRIBUTES or type(number) is not int or not 0 < number <= getattr(module, name, 0):
            raise InputError(f"its record of pruning makes {path}.{name[:40]} {number!r:.40}")
        setattr(module, name, number)


def _is_shape(shape: Any, ndim: int) -> bool:
    return isinstance(shape, list) and len(shape) == ndim and all(type(n) is int and n >= 0 for n in shape)


def _own(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**module._parameters, **module._buffers}
    return {name: t for name, t in tensors.items() if t is not None}
