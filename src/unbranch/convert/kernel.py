"""The merged kernel of a block while it trains, as a function of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from unbranch.algebra import GridMap
from unbranch.convert.faults import as_errors
from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.passes.reading import traces_of
from unbranch.convert.plan.plan import plan_of
from unbranch.convert.trace.trace import Trace
from unbranch.errors import InputError
from unbranch.graph.eval_view import eval_view, unwrap_model
from unbranch.graph.outside import restoring_outside
from unbranch.rules.value import Affine, TupleValue


class EquivalentKernel(NamedTuple):
    """Kernel ``(O, I/groups, *k)`` and bias ``(O,)`` of one merged layer."""

    kernel: Tensor
    bias: Tensor


def equivalent_kernel(module: nn.Module, *, constant_norms: bool = False) -> EquivalentKernel:
    """The kernel and bias that ``module`` deploys with, differentiable in all parameters that they depend on.

    Batch norms count with their running statistics, as in evaluation, whatever the mode; ``module`` isn't changed.
    For a block that ends in an activation or another non-linear layer it is the kernel of the one convolution that
    its branches merge into. A fully connected layer on a grid gives ``(C·h·w, h·w·C/groups, 1, 1)``. The structure is
    read once per module and kept, so that a call in every training step costs little more than the arithmetic.

    Args:
        module: a block, or any module with one merged layer.
        constant_norms: take the norms' scales and shifts as constants: no gradient reaches γ and β.

    Returns:
        Tensors of the dtype and on the device of the module's largest weight.

    Raises:
        InputError: if there is no such layer, or more than one.

    Example:
        >>> import torch, unbranch as ub
        >>> block = ub.blocks.RepVGG(4, 4, 3, padding=1)
        >>> kernel, bias = ub.equivalent_kernel(block)
        >>> kernel.square().sum().backward()  # a penalty on what will be deployed
        >>> kernel.shape, block.conv_1x1.conv.weight.grad is not None
        (torch.Size([4, 4, 3, 3]), True)
    """
    network = unwrap_model(module)
    cached = _READ.setdefault(network, {}).get(constant_norms)
    state = _state(network)
    if cached is None or cached.state != state:
        cached = _read(network, state, constant_norms)
        _READ[network][constant_norms] = cached
    value = cached.region.materialise(cached.root, cached.target)
    like = cached.region.weight_like(cached.root, cached.target)
    kernel, bias = _tensors(value)
    return EquivalentKernel(kernel.to(like.dtype), bias.to(like))


@dataclass(frozen=True, eq=False)
class _Reading:
    """What a module was found to be, and the state of it that this holds for."""

    state: tuple[Any, ...]
    region: Interpretation
    root: fx.Node
    target: fx.Node


_READ: WeakKeyDictionary[nn.Module, dict[bool, _Reading]] = WeakKeyDictionary()


def _state(network: nn.Module) -> tuple[Any, ...]:
    """What a reading depends on: the modules, their attributes and where their tensors are, but not their values."""
    return tuple(
        (id(module), *((name, _key(value)) for name, value in vars(module).items() if name not in _UNREAD))
        for module in network.modules()
    )


_UNREAD = {"training", "_is_full_backward_hook", "_non_persistent_buffers_set"}


def _key(value: Any) -> Any:
    """A number or a text as it is, a container by its parts, a tensor by its place, anything else by identity."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Tensor):
        return id(value), 0 if is_lazy(value) else value.data_ptr()
    if isinstance(value, dict):
        return tuple((key, _key(part)) for key, part in value.items())
    return tuple(map(_key, value)) if isinstance(value, tuple | list) else id(value)


def _read(network: nn.Module, state: tuple[Any, ...], constant_norms: bool) -> _Reading:
    shadow = nn.Sequential(eval_view(network))  # so that a single layer has a graph, too
    if constant_norms:
        _freeze_norms(shadow)
    with as_errors(), restoring_outside(network):
        traces, unread = traces_of(shadow.eval())
    trace = next((t for t in traces if not t.path), None)
    if trace is None:
        reason = next(iter(unread.values()), "it holds no linear layer")
        raise InputError(f"{type(network).__name__} has no equivalent kernel: {reason}")
    if trace.hidden or trace.unshared:
        raise InputError(f"{type(network).__name__} has no one equivalent kernel: its forward goes by what it is given")
    region = Interpretation(trace, differentiable=True)
    root, target = _whole(region, trace) or _only_merge(region, network)
    return _Reading(state, region, root, target)


def _freeze_norms(shadow: nn.Module) -> None:
    for module in shadow.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)


def _whole(region: Interpretation, trace: Trace) -> tuple[fx.Node, fx.Node] | None:
    """The module's input and output, if it is one map."""
    output = trace.root.output
    roots = region.values.get(output, {}) if isinstance(output, fx.Node) else {}
    first = next((r for r in roots if r.op == "placeholder" and _is_map(roots[r])), None)
    return None if first is None else (first, output)


def _is_map(value: Affine | TupleValue) -> bool:
    return isinstance(value, Affine) and value.arrangement is None


def _only_merge(region: Interpretation, network: nn.Module) -> tuple[fx.Node, fx.Node]:
    """Where the one merged layer starts and ends, or else the one layer with a kernel."""
    merges = [(m.root, m.target) for m in plan_of(region).merges]
    found = merges or [
        (n.all_input_nodes[0], n) for n in region.values if (rule := region.rule(n)) and rule.kind == "linear"
    ]
    if len(found) == 1:
        return found[0]
    name = type(network).__name__
    if not found:
        reason = next(iter(region.trace.failures.values()), "nothing in it is a linear map")
        raise InputError(f"{name} has no equivalent kernel: {reason}")
    inside = ", ".join(str(target.target).removeprefix("0.") for _, target in found[:4])
    raise InputError(f"{name} has {len(found)} merged layers ({inside}, …); ask a submodule that has one")


def _tensors(value: Affine) -> tuple[Tensor, Tensor]:
    m = value.map
    if isinstance(m, GridMap):
        kernel = m.matrix.reshape(m.features, -1, 1, 1)
        return kernel, kernel.new_zeros(m.features) if m.bias is None else m.bias.flatten()
    kernel = value.conv.kernel
    return kernel, kernel.new_zeros(len(kernel)) if m.bias is None else m.bias
