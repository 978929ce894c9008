"""Which positive scales of channels leave a network's outputs as they are.

The labels of a value are the variables of its scales: number ``i`` becomes ``s_i x_i``. A layer ``y = Wx + b`` has any
scales of its own behind it, ``W' = S_y W S_x⁻¹`` and ``b' = S_y b``. A positively homogeneous function of each channel,
``f(sx) = s f(x)`` for ``s > 0``, passes the scales on; a sum joins those of its summands; everything else fixes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from unbranch.graph.running import plain_output
from unbranch.quantize.calls import Call, Stored, base_name, tensors_in
from unbranch.quantize.labels import ANY, FIXED, Labels
from unbranch.quantize.shadows import ShadowMode

Shadows = list[tuple[Tensor, ...] | None]
_MOST_NUMBERS = 1 << 16  # of a parameter that is added or multiplied elementwise
_NAMES = {
    "hardtanh": "ReLU6 or hardtanh", "clamp": "clamp", "relu6": "ReLU6", "hardswish": "Hardswish", "silu": "SiLU",
    "gelu": "GELU", "elu": "ELU", "sigmoid": "sigmoid", "hardsigmoid": "Hardsigmoid", "tanh": "tanh", "mish": "Mish",
    "_softmax": "softmax", "_log_softmax": "log_softmax", "native_layer_norm": "layer norm", "softplus": "Softplus",
    "native_group_norm": "group norm", "bmm": "a product of values",
    "mm": "a product of values", "addmm": "a product of values",
    "convolution": "a convolution whose kernel is computed", "_local_scalar_dense": "a number read in Python",
    "pow": "a power", "linalg_vector_norm": "a vector norm", "var": "a variance",
}  # fmt: skip
ADDED = "a number is added"
MULTIPLIED = "two values are multiplied"
POSITIONS = "it is added to, or pooled with, a value whose scale is fixed"
SHARED = "another use of the same parameter fixes its scale"


@dataclass(frozen=True, eq=False)
class Weight:
    """How a parameter is scaled: ``W' = W · s[behind] / s[before]``.

    Args:
        name: of the parameter.
        behind, before: labels of the scales behind and before the layer, broadcastable to the parameter's shape.
    """

    name: str
    behind: Tensor
    before: Tensor


@dataclass(frozen=True, eq=False)
class KernelLabels:
    """Labels of the channels of a convolution or linear layer.

    Args:
        behind: of the output channels, ``(O,)``.
        before: of the input channels, ``(I,)``.
        groups: of the convolution.
        transposed: whether it is a transposed convolution.
    """

    behind: Tensor
    before: Tensor
    groups: int
    transposed: bool


@dataclass(eq=False)
class Scales:
    """What runs of a network have shown about its scales.

    Args:
        labels: the variables.
        weights: the layers found so far, by the name of the parameter.
        values: labels of parameters and buffers that are used elementwise, in their shape, by name.
        kernels: labels of the channels of convolutions and linear layers, by the name of the parameter.
    """

    labels: Labels = field(default_factory=Labels)
    weights: dict[str, Weight] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    kernels: dict[str, KernelLabels] = field(default_factory=dict)

    def settle(self) -> None:
        """Fix parameters that are both the weight of a layer and a value: these uses scale them differently."""
        for name in self.weights.keys() & self.values.keys():
            for labels in (self.weights[name].behind, self.weights[name].before, self.values[name]):
                self.labels.fix(labels, SHARED)


class ScalingMode(ShadowMode):  # type: ignore[no-untyped-call]
    """Reads the labels of all values while a network runs.

    Several runs, of one network on different inputs, may share ``scales``: what they find is joined.

    Args:
        scales: receives what is found.
        observed: reason for each module, by path, whose inputs and outputs keep their scale.
    """

    def __init__(self, scales: Scales, observed: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.scales, self.labels, self._observed = scales, scales.labels, dict(observed or {})

    def install(self, running: nn.Module, beside: nn.Module | None) -> list[RemovableHandle]:
        """Learn the parameters, and watch the modules whose inputs and outputs keep their scale."""
        super().install(running, beside)
        handles = []
        for path, reason in self._observed.items():
            module = running.get_submodule(path)

            def before(_: nn.Module, args: Any, kwargs: Any, reason: str = reason) -> None:
                self.left((args, kwargs), reason)

            def after(_: nn.Module, args: Any, output: Any, reason: str = reason) -> None:  # noqa: ARG001
                self.left(output, reason)

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        return handles

    def unknown(self, tensor: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return ``FIXED``."""
        return (torch.tensor(float(FIXED), dtype=torch.float64),)

    def initial(self, tensor: Tensor, size: int) -> tuple[Tensor, ...]:
        """Return new variables for parameters and buffers that may be scaled, ``FIXED`` for other memory."""
        stored, values = self.owner_of(tensor), self.scales.values
        if stored is None:
            return self.unknown(tensor)
        like = stored.tensor
        if stored.name not in values:
            small = like.is_floating_point() and like.numel() <= _MOST_NUMBERS
            values[stored.name] = (
                self.labels.new(like.numel()).reshape(like.shape) if small else self.unknown(like)[0].expand(like.shape)
            )
        plane = self.unknown(tensor)[0].expand(size).clone()
        plane.as_strided(like.shape, like.stride(), like.storage_offset()).copy_(values[stored.name])
        return (plane,)

    def reinterpreted(self, planes: tuple[Tensor, ...]) -> None:
        """Fix numbers whose bits are read."""
        self.labels.fix(planes[0], "its bits are read")

    def of(self, tensor: Tensor) -> Tensor:
        """Return the labels of a tensor."""
        return self.read(tensor)[0]

    def left(self, value: Any, reason: str = "a number read in Python") -> None:
        """Fix the scales of tensors that code outside of PyTorch's operations sees."""
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            for tensor in tensors_in(plain_output(value)):
                self.fix(tensor, reason)
                labels = self.of(tensor)  # of memory that is written unseen, too
                self.write(tensor, (torch.where(labels == ANY, float(FIXED), labels),))

    def fix(self, value: Any, reason: str) -> None:
        """Fix the scales of all tensors in a nested value."""
        for tensor in tensors_in(value):
            self.labels.fix(self.of(tensor), reason)

    def rule(self, name: str) -> Callable[[Call], Any] | None:
        """Return the rule of an operation."""
        found = RULES.get(name)
        return None if found is None else functools.partial(found, self)

    def without_rule(self, call: Call) -> None:
        """Fix the scales of all that an unknown operation reads."""
        name = base_name(call.func)
        self.fix((call.args, call.kwargs), f"it is read by {_NAMES.get(name, name)}")

    def layer(self, stored: Stored, before: Tensor, behind: Tensor) -> None:
        """Record a layer; the labels are broadcastable to the shape of its parameter."""
        known = self.scales.weights.get(stored.name)
        if known is not None:
            before = self.labels.join(known.before, before, SHARED)
            behind = self.labels.join(known.behind, behind, SHARED)
        self.scales.weights[stored.name] = Weight(stored.name, behind, before)

    def parameter(self, tensor: Any) -> Stored | None:
        """Return the parameter that a tensor is as a whole, if it can be scaled."""
        found = self.stored(tensor)
        return found if found is not None and tensor.is_floating_point() else None


Rule = Callable[[ScalingMode, Call], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by their names, without namespace and overload."""

    def decorate(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return decorate


def channels_of(mode: ScalingMode, labels: Tensor, axis: int) -> Tensor:
    """Join labels along all axes but one, ``(C,)``."""
    others = [other for other in range(labels.dim()) if other != axis % labels.dim()]
    return mode.labels.reduced(labels, others, POSITIONS).reshape(-1)


def along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """Return ``(C,)`` as an array of ``dims`` axes with C at one of them."""
    shape = [1] * dims
    shape[axis] = -1
    return vector.reshape(shape)


def each(planes: Tensor) -> Shadows:
    """Return one result's shadow."""
    return [(planes,)]


def any_scale() -> Tensor:
    """Return the label of a zero, ``()``."""
    return torch.tensor(float(ANY), dtype=torch.float64)
