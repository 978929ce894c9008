"""Write merged layers into a copy of the network; modules that no rewrite affects are copied as they are."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.blueprint import Blueprint, blueprints_of
from unbranch.convert.rewrite.placement import Rebuild, Swap
from unbranch.convert.source.methods import attributes_set_by
from unbranch.errors import UnsupportedError
from unbranch.graph.eval_view import copy_hooks, deep_copied, has_hooks
from unbranch.rules import rule_of_module


def replaced_modules(
    interpretation: Interpretation, plans: list[Swap | Rebuild], network: nn.Module, layers: dict[Merge, nn.Module],
    memo: dict[int, Any],
) -> list[Blueprint]:  # fmt: skip
    """Enter replacements of modules into ``memo``; returns the modules to rebuild, innermost first."""
    trace = interpretation.trace
    swaps = [p for p in plans if isinstance(p, Swap)]
    for swap in swaps:
        for j, path in enumerate(swap.paths):
            old = network.get_submodule(trace.full_path(path))
            if j < len(swap.calls) or id(old) not in memo:  # a norm moved into several layers is removed once
                layer = layers[swap.merge] if j == swap.host else None
                keeps = layer is not None and swap.keeps
                new = _with_weights_of(layer, old) if keeps else with_rest(layer, old, memo)
                _take_place(old, new, memo)
    rebuilds = [p for p in plans if isinstance(p, Rebuild)]
    for norm in dict.fromkeys(c for plan in rebuilds for c in plan.emptied):
        old = network.get_submodule(trace.full_path(norm.path))
        if id(old) not in memo:
            _take_place(old, with_rest(None, old, memo), memo)
    return blueprints_of(interpretation, rebuilds, network, layers)


def rebuild(blueprints: list[Blueprint], memo: dict[int, Any]) -> None:
    """Build modules, inner ones first, and enter them into ``memo``."""
    for blueprint in blueprints:
        _take_place(blueprint.old, blueprint.built(memo), memo)


def with_rest(layer: nn.Module | None, old: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a merged layer, if any, followed by the parts of the old module after its affine part."""
    rule = rule_of_module(old)
    rest = rule.epilogue if rule is not None else ()
    parts = OrderedDict((name, copy.deepcopy(getattr(old, name), memo)) for name in rest)
    parts = OrderedDict((n, m) for n, m in parts.items() if not isinstance(m, nn.Identity))
    if layer is not None:
        parts = OrderedDict([("conv", layer), *parts.items()])
    if not parts:
        return nn.Identity()
    return next(iter(parts.values())) if len(parts) == 1 else nn.Sequential(parts)


def _with_weights_of(layer: Any, old: Any) -> nn.Module:
    """Return a copy of a convolution with its own forward that has the merged layer's weight and bias."""
    new = deep_copied(old, {id(old.weight): layer.weight, id(old.bias): layer.bias})
    new.bias = layer.bias
    return new


_COMMON = ("training", "inplace")


def _holds(module: nn.Module, name: str) -> bool:
    return any(name in table for table in (module._parameters, module._buffers, module._modules))


def _is_data(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if isinstance(value, Tensor):
        return value.is_leaf and not isinstance(value, nn.Parameter)
    return isinstance(value, bool | int | float | str | None)


def _take_place(old: nn.Module, new: nn.Module, memo: dict[int, Any]) -> None:
    """Enter a replacement, with attributes that other code set on the original, such as f and i of YOLO's layers."""
    data = {n: v for n, v in vars(old).items() if not n.startswith("_") and _is_data(v)}
    kind: Any = type(old)
    own = attributes_set_by(kind) | set(_COMMON)
    if any(name not in own and (name in vars(new) or _holds(new, name)) for name in data):
        new = nn.Sequential(OrderedDict([("conv", new)])).train(new.training)  # whose attributes collide with none
    if has_hooks(old):
        copy_hooks(old, new)
    for name, value in data.items():
        if name not in vars(new) and not _holds(new, name):
            vars(new)[name] = copy.deepcopy(value)
    memo[id(old)] = new


def copied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy of the network with its replacements in place.

    Raises:
        UnsupportedError: if something in it can't be copied.
    """
    for module in network.modules():
        for value in vars(module).values():
            for tensor in tree_leaves(value) if isinstance(value, Tensor | tuple | list | dict) else ():
                if isinstance(tensor, Tensor) and not tensor.is_leaf:  # PyTorch refuses to copy those
                    memo.setdefault(id(tensor), tensor.detach().clone())
    lazy = [path for path, m in network.named_modules() if any(map(is_lazy, m.parameters(recurse=False)))]
    try:
        return deep_copied(network, memo)
    except (RuntimeError, ValueError, TypeError) as error:
        if lazy:
            raise UnsupportedError(f"{lazy[0]} is a lazy layer without a shape: run the network once before") from error
        raise UnsupportedError(f"{type(network).__name__} can't be copied: {error}") from error


def trained_like(layer: nn.Module, sources: list[Tensor], training: bool) -> nn.Module:
    """Set a merged layer's mode and ``requires_grad`` as in the layers that it replaces."""
    wanted = [t.requires_grad for t in sources if isinstance(t, nn.Parameter)]
    if wanted and not any(wanted):
        layer.requires_grad_(False)
    return layer.train(training)
