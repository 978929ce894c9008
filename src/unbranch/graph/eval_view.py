"""Evaluation views: copies of a network's modules, in evaluation mode, that share every tensor.

Tracing and proofs run on such a copy, so the user's network keeps its mode, hooks and statistics.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from unbranch.errors import InputError, UnsupportedError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WEIGHT_HOOKS = ("WeightNorm", "SpectralNorm")  # they only compute the weight; rules account for them
_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "timm.utils.model_ema.ModelEma": "ema",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
}


def unwrap_model(model: Any) -> nn.Module:
    """Return the network inside data-parallel, averaging and compiling wrappers.

    Raises:
        InputError: if ``model`` isn't a module.
    """
    while True:
        inner = next(
            (_WRAPPERS[name] for t in type(model).__mro__ if (name := f"{t.__module__}.{t.__qualname__}") in _WRAPPERS),
            None,
        )
        if inner is None:
            break
        model = getattr(model, inner)
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}")
    return model


def deep_copied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Do what ``copy.deepcopy`` does, level by level, since networks can be deeper than Python's stack."""
    for module in _inside_out(network, memo):
        _copied_module(module, memo)
    copied: nn.Module = copy.deepcopy(network, memo)
    return copied


def _copied_module(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy one module as ``copy.deepcopy`` does, but faster for classes with default copying."""
    kind: Any = type(module)
    if id(module) in memo or _copies_itself(kind):
        copy.deepcopy(module, memo)
        return
    memo[id(module)] = copied = kind.__new__(kind)
    new = vars(copied)
    for name, value in vars(module).items():
        of = type(value)
        if of in _ATOMS:
            new[name] = value
        elif name in MODULE_ATTRIBUTES and of in _CONTAINERS and not value:
            new[name] = of()
        else:
            new[name] = _copied_value(value, memo)


@functools.lru_cache(maxsize=4096)
def _copies_itself(kind: Any) -> bool:
    names = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__", "__slots__")
    return any(
        (method := getattr(kind, name, None)) is not getattr(nn.Module, name, None)
        and not (getattr(method, "__module__", "") or "").startswith(
            "torch.nn.modules."
        )  # they only fill in missing attributes
        for name in names
    )


MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Names of the attributes that every module has."""
_CONTAINERS = {dict, OrderedDict, set}
_ATOMS = {int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size}


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and all(type(v) in _ATOMS for v in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        copied: dict[Any, Any] = kind()
        memo[id(value)] = copied
        copied.update((_copied_value(k, memo), _copied_value(v, memo)) for k, v in value.items())
        return copied
    if kind is set and all(type(v) in _ATOMS for v in value):
        memo[id(value)] = taken = set(value)
        return taken
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(_copied_value(v, memo) for v in value)
        return items
    return copy.deepcopy(value, memo)


def _inside_out(network: nn.Module, memo: dict[int, Any]) -> list[nn.Module]:
    """Return the modules that haven't been copied yet, children first."""
    found: list[nn.Module] = []
    stack = [network]
    while stack:
        module = stack.pop()
        if id(module) not in memo:
            found.append(module)
            stack += [child for child in module._modules.values() if child is not None]
    return found[::-1]


def eval_view(model: nn.Module) -> nn.Module:
    """Return a copy of the modules in evaluation mode, without hooks, that shares all tensors with ``model``.

    Raises:
        UnsupportedError: if a module can't be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in _tensors_of(module):
            memo[id(value)] = value
    try:
        view = deep_copied(model, memo)
    except Exception as error:
        raise UnsupportedError(f"{type(model).__name__} can't be copied: {error}") from error
    view.eval()
    for module in view.modules():
        kept = [(k, h) for k, h in module._forward_pre_hooks.items() if type(h).__name__ in _WEIGHT_HOOKS]
        for name in _HOOKS:
            vars(module)[name] = OrderedDict()
        vars(module)["_forward_pre_hooks"] = OrderedDict(kept)
    return view


def training_only_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return containers, by path, of modules that an evaluation forward never uses, such as auxiliary classifiers.

    A class lists the names of such children, each an ``nn.ModuleDict`` or ``nn.ModuleList``, in ``training_only``; its
    forward must work when they are empty.
    """
    return [
        (f"{path}.{name}".lstrip("."), module.get_submodule(name))
        for path, module in network.named_modules()
        for name in getattr(type(module), "training_only", ())
    ]


def _tensors_of(module: nn.Module) -> list[torch.Tensor]:
    own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [v for v in own if isinstance(v, torch.Tensor)]


def has_hooks(module: nn.Module) -> bool:
    """Whether the user's hooks see this module's inputs, outputs or gradients."""
    return any(
        type(hook).__name__ not in _WEIGHT_HOOKS for name in _HOOKS for hook in (getattr(module, name) or {}).values()
    )


def computed_names(module: nn.Module) -> set[str]:
    """Return the attributes that hooks of weight and spectral norm compute before each forward."""
    hooks = module._forward_pre_hooks.values()
    return {name for hook in hooks if type(hook).__name__ in _WEIGHT_HOOKS and (name := getattr(hook, "name", ""))}


def copy_hooks(source: nn.Module, target: nn.Module) -> None:
    """Copy a module's hooks to the module that replaces it."""
    for name in _HOOKS:
        hooks = OrderedDict((k, h) for k, h in getattr(source, name).items() if type(h).__name__ not in _WEIGHT_HOOKS)
        if hooks:
            setattr(target, name, hooks)
    for name in ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"):
        setattr(target, name, OrderedDict(getattr(source, name)))


def owners_of(network: nn.Module) -> dict[int, set[int]]:
    """Return, for each parameter and buffer by id, the ids of the modules that hold it."""
    owners: dict[int, set[int]] = {}
    for module in network.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(id(tensor), set()).add(id(module))
    return owners
