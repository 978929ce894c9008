"""The merged kernel of a block as a differentiable function of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from unbranch.algebra import GridMap
from unbranch.convert.faults import as_errors
from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.passes.reading import traces_of
from unbranch.convert.plan.plan import plan_of
from unbranch.convert.trace.trace import Trace
from unbranch.deprecation import renamed_arguments
from unbranch.errors import InexactError, InputError
from unbranch.graph.eval_view import eval_view, unwrap_model
from unbranch.graph.outside import restoring_outside
from unbranch.rules.value import Affine, TupleValue


class EquivalentKernel(NamedTuple):
    """Kernel ``(O, I/groups, *k)`` and bias ``(O,)`` of a merged layer."""

    kernel: Tensor
    bias: Tensor


@renamed_arguments(module="model")
def equivalent_kernel(model: nn.Module, *, constant_norms: bool = False) -> EquivalentKernel:
    """Return the kernel and bias of the layer that a block collapses to, differentiable in its parameters.

    Batch norms use their running statistics, in training mode, too; ``model`` isn't changed. Activations and other
    non-linear layers after the merged layer are ignored. A fully connected layer on a grid gives
    ``(C·h·w, h·w·C/groups, 1, 1)``. The trace is cached per module, so a call in every training step costs little
    more than the arithmetic.

    Args:
        model: a block, or any module that collapses to one linear layer.
        constant_norms: treat the norms' scales and shifts as constants, so that γ and β get no gradient.

    Returns:
        Kernel and bias with the dtype and device of the module's largest weight.

    Raises:
        InputError: if the module collapses to no linear layer, or to several.

    Example:
        >>> import torch, unbranch as ub
        >>> block = ub.blocks.RepVGG(4, 4, 3, padding=1)
        >>> kernel, bias = ub.equivalent_kernel(block)
        >>> kernel.square().sum().backward()  # a penalty on the deployed kernel
        >>> kernel.shape, block.conv_1x1.conv.weight.grad is not None
        (torch.Size([4, 4, 3, 3]), True)
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return _equivalent_kernel(unwrap_model(model), constant_norms)
    return _equivalent_kernel(unwrap_model(model), constant_norms)


def _equivalent_kernel(network: nn.Module, constant_norms: bool) -> EquivalentKernel:
    """Return the kernel by the cached trace; by a new one where values have made the cached one wrong."""
    try:
        return _by_cache(network, constant_norms)
    except InexactError:
        _CACHE.pop(network, None)
    try:
        return _by_cache(network, constant_norms)
    except InexactError as error:
        raise InputError(f"{type(network).__name__} has no equivalent kernel: {error}") from error


def _by_cache(network: nn.Module, constant_norms: bool) -> EquivalentKernel:
    cached = _CACHE.setdefault(network, {}).get(constant_norms)
    state = _state(network)
    if cached is None or cached.state != state:
        cached = _read(network, state, constant_norms)
        _CACHE[network][constant_norms] = cached
    value = cached.interpretation.materialise(cached.root, cached.target)
    like = cached.interpretation.weight_like(cached.root, cached.target)
    kernel, bias = _tensors(value)
    return EquivalentKernel(kernel.to(like.dtype), bias.to(like))


@dataclass(frozen=True, eq=False)
class _CachedTrace:
    """The interpretation of a module, and the state of the module that it is valid for."""

    state: tuple[Any, ...]
    interpretation: Interpretation
    root: fx.Node
    target: fx.Node


_CACHE: WeakKeyDictionary[nn.Module, dict[bool, _CachedTrace]] = WeakKeyDictionary()


def _state(network: nn.Module) -> tuple[Any, ...]:
    """Return all that a reading depends on: modules, attributes and addresses of tensors, but not their values."""
    return tuple(
        (id(module), *((name, _key(value)) for name, value in vars(module).items() if name not in _IGNORED))
        for module in network.modules()
    )


_IGNORED = {"training", "_is_full_backward_hook", "_non_persistent_buffers_set"}


def _key(value: Any) -> Any:
    """Return a comparable key: numbers and strings by value, tensors by address, other objects by identity."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Tensor):
        return id(value), 0 if is_lazy(value) else value.data_ptr()
    if isinstance(value, dict):
        return tuple((key, _key(part)) for key, part in value.items())
    return tuple(map(_key, value)) if isinstance(value, tuple | list) else id(value)


def _read(network: nn.Module, state: tuple[Any, ...], constant_norms: bool) -> _CachedTrace:
    view = nn.Sequential(eval_view(network))  # a container, so that a single layer has a graph, too
    if constant_norms:
        _freeze_norms(view)
    with as_errors(), restoring_outside(network):
        traces, unread = traces_of(view.eval())
    trace = next((t for t in traces if not t.path), None)
    if trace is None:
        reason = next(iter(unread.values()), "it has no linear layer")
        raise InputError(f"{type(network).__name__} has no equivalent kernel: {reason}")
    if trace.hidden or trace.unshared:
        raise InputError(f"{type(network).__name__} has no single equivalent kernel: its forward depends on the input")
    interpretation = Interpretation(trace, differentiable=not any(p.is_inference() for p in network.parameters()))
    root, target = _whole(interpretation, trace) or _only_merge(interpretation, network)
    return _CachedTrace(state, interpretation, root, target)


def _freeze_norms(view: nn.Module) -> None:
    for module in view.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)


def _whole(interpretation: Interpretation, trace: Trace) -> tuple[fx.Node, fx.Node] | None:
    """Return the module's input and output if the whole module is one affine map, else None."""
    output = trace.root.output
    roots = interpretation.values.get(output, {}) if isinstance(output, fx.Node) else {}
    first = next((r for r in roots if r.op == "placeholder" and _is_map(roots[r])), None)
    return None if first is None else (first, output)


def _is_map(value: Affine | TupleValue) -> bool:
    return isinstance(value, Affine) and value.arrangement is None


def _only_merge(interpretation: Interpretation, network: nn.Module) -> tuple[fx.Node, fx.Node]:
    """Return the root and target of the only merge, or of the only layer with a kernel.

    Raises:
        InputError: if there is none, or more than one.
    """
    merges = [(m.root, m.target) for m in plan_of(interpretation).merges]
    found = merges or [
        (n.all_input_nodes[0], n)
        for n in interpretation.values
        if (rule := interpretation.rule(n)) and rule.kind == "linear"
    ]
    if len(found) == 1:
        return found[0]
    name = type(network).__name__
    if not found:
        reason = next(iter(interpretation.trace.failures.values()), "it has no linear layer")
        raise InputError(f"{name} has no equivalent kernel: {reason}")
    inside = ", ".join(str(target.target).removeprefix("0.") for _, target in found[:4])
    raise InputError(f"{name} has {len(found)} merged layers ({inside}, …); call it with a submodule that has one")


def _tensors(value: Affine) -> tuple[Tensor, Tensor]:
    m = value.map
    if isinstance(m, GridMap):
        kernel = m.matrix.reshape(m.features, -1, 1, 1)
        return kernel, kernel.new_zeros(m.features) if m.bias is None else m.bias.flatten()
    kernel = value.conv.kernel
    return kernel, kernel.new_zeros(len(kernel)) if m.bias is None else m.bias
