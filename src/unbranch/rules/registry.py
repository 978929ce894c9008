"""The registry of rules for modules, functions and methods; users can add their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from torch import nn

from unbranch.deprecation import renamed_arguments, warn_deprecated
from unbranch.errors import InputError
from unbranch.graph.float64 import Float64
from unbranch.rules.value import Affine

Kind = Literal["linear", "elementwise", "view"]
RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Any])


class LayerInput(NamedTuple):
    """Input of a layer: number of channels, number of grid dimensions, and axis of the channels, 1 or -1."""

    channels: int
    ndim: int
    channel_axis: int = 1


LayerInputOf = Callable[[Any], LayerInput]


@dataclass(frozen=True)
class Rule:
    """A rule: how a layer or function acts on affine maps.

    Args:
        apply: ``(module, value)`` for layers, the function's own arguments with values for tensors otherwise; returns
            a value, or raises ``InexactError``.
        kind: ``linear`` costs multiply-accumulates, ``elementwise`` one kernel launch, ``view`` nothing.
        layer_input: for layers, ``module -> LayerInput(channels, ndim, channel_axis)``.
        epilogue: names of the module's children that follow the affine part, for norm-and-activation layers.
        arranged: whether it supports values whose axes are arranged differently from the root's.
    """

    apply: Callable[..., Any]
    kind: Kind = "elementwise"
    layer_input: LayerInputOf | None = None
    epilogue: tuple[str, ...] = ()
    arranged: bool = False


_MODULES: dict[type | str, Rule] = {}
_FUNCTIONS: dict[Any, Rule] = {}
_METHODS: dict[str, Rule] = {}
_METHODS_THAT_MATTER = ("forward", "_conv_forward", "_output_padding")


@renamed_arguments(rest="epilogue")
def register_rule(
    target: type[nn.Module] | str | Callable[..., Any],
    *more: type[nn.Module] | str | Callable[..., Any],
    kind: Kind | Literal["kernel"] = "elementwise",
    layer_input: Callable[[Any], LayerInput | tuple[int, int, int]] | None = None,
    epilogue: tuple[str, ...] = (),
    arranged: bool = False,
    channels: Callable[[Any], tuple[int, int, bool]] | None = None,
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule for a custom layer or function, so that the converter can merge it.

    The rule of a layer receives the module (in evaluation mode) and the ``Affine`` value of its input, and returns
    the value of its output. It must raise ``unbranch.InexactError("reason")`` for cases that it can't compute exactly.
    A subclass that overrides ``forward`` doesn't inherit the rule.

    Args:
        target, more: module classes or functions. A class can be given by its qualified name, which doesn't import its
            library.
        kind: what the operation costs: ``"linear"`` multiply-accumulates, ``"elementwise"`` one kernel launch,
            ``"view"`` nothing.
        layer_input: for layers, ``module -> (channels, grid dimensions, channel axis)`` of the input; the axis is 1,
            or -1 for the last.
        epilogue: names of the module's children that follow the affine part, for norm-and-activation layers.
        arranged: whether the rule also supports values that were transposed or flattened, which is the case if it
            uses only the methods of values and none of their attributes.
        channels: deprecated form of ``layer_input``, whose third number is whether channels are on the last axis.

    Returns:
        A decorator that returns the rule unchanged.

    Example:
        >>> import torch, unbranch as ub
        >>> class Gain(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.log = torch.nn.Parameter(torch.zeros(channels))
        ...     def forward(self, x):
        ...         return x * self.log.exp()[:, None, None]
        >>> @ub.register_rule(Gain, layer_input=lambda m: (len(m.log), 2, 1))
        ... def gain(module, x):
        ...     return x.scaled(module.log.exp())
    """

    if channels is not None:
        warn_deprecated("the argument `channels` of register_rule() is deprecated, use `layer_input`", frames=2)
        layer_input = _with_an_axis(channels)
    spec = None if layer_input is None else _as_layer_input(layer_input)

    def decorate(function: RuleFunction) -> RuleFunction:
        rule = Rule(_in_float64(function), _kind(kind), spec, epilogue, arranged)
        for one in (target, *more):
            if isinstance(one, str) or (isinstance(one, type) and issubclass(one, nn.Module)):
                _MODULES[one] = rule
            else:
                _FUNCTIONS[one] = rule
        return function

    return decorate


def _in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule from outside of the package that computes with parameters in float64, as proofs do."""
    if str(getattr(function, "__module__", "")).startswith("unbranch."):
        return function  # the package's own rules pass parameters to the laws as they are

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        with Float64():
            return function(*args, **kwargs)

    return apply


def _as_layer_input(function: Callable[[Any], tuple[int, int, int]]) -> LayerInputOf:
    return lambda module: LayerInput(*function(module))


def _with_an_axis(function: Callable[[Any], tuple[int, int, bool]]) -> LayerInputOf:
    def convert(module: Any) -> LayerInput:
        channels, ndim, last = function(module)
        return LayerInput(channels, ndim, -1 if last else 1)

    return convert


def _kind(kind: str) -> Kind:
    if kind == "kernel":
        warn_deprecated('kind="kernel" is deprecated, use kind="linear"', frames=3)
        kind = "linear"
    if kind not in get_args(Kind):
        raise InputError(f"`kind` must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    return kind  # type: ignore[return-value]


def register_method(
    *names: str, kind: Kind = "elementwise", arranged: bool = False
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule for ``tensor.name(...)``; see ``register_rule``."""

    def decorate(function: RuleFunction) -> RuleFunction:
        for name in names:
            _METHODS[name] = Rule(function, _kind(kind), arranged=arranged)
        return function

    return decorate


def rule_of_module(module: nn.Module) -> Rule | None:
    """Return the rule of a module's class, or of a base whose ``forward`` it didn't change (parametrizations don't)."""
    for base in type(module).__mro__:
        rule = _MODULES.get(base) or _MODULES.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            same = all(getattr(type(module), name, None) is getattr(base, name, None) for name in _METHODS_THAT_MATTER)
            return rule if same else None
    return None


def rule_of_base(module: nn.Module) -> Rule | None:
    """Return the rule of the nearest base class that has one, even if the module overrides its forward.

    Only its ``layer_input`` is valid for such a module.
    """
    for base in type(module).__mro__:
        rule = _MODULES.get(base) or _MODULES.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            return rule
    return None


def rule_of_function(function: Any) -> Rule | None:
    try:
        return _FUNCTIONS.get(function)
    except TypeError:
        return None


def rule_of_method(name: str) -> Rule | None:
    return _METHODS.get(name)


def users_functions() -> tuple[Callable[..., Any], ...]:
    """Return the registered Python functions that tracing must not enter."""
    return tuple(f for f in _FUNCTIONS if hasattr(f, "__code__") and not (f.__module__ or "").startswith("torch"))


__all__ = [
    "Affine",
    "LayerInput",
    "Rule",
    "register_method",
    "register_rule",
    "rule_of_function",
    "rule_of_method",
    "rule_of_module",
]
