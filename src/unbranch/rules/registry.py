"""Which operator a layer, a function or a method stands for: one registry, open to users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from unbranch.rules.value import Affine

Kind = Literal["kernel", "elementwise", "view"]
RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """How to run a layer or function on operators.

    Args:
        apply: ``(module, value)`` for layers, the function's own arguments with values for tensors
            otherwise; returns a value, or raises ``Inexact``.
        kind: ``kernel`` costs multiply-accumulates, ``elementwise`` one kernel launch, ``view`` nothing.
        channels: for layers, ``module -> (channels, grid dimensions, channels on the last axis)`` of the input.
        rest: names of the module's children that follow the affine part, for norm-and-activation layers.
        arranged: whether it takes values whose axes are in another arrangement than the root's.
    """

    apply: Callable[..., Any]
    kind: Kind = "elementwise"
    channels: Callable[[Any], tuple[int, int, bool]] | None = None
    rest: tuple[str, ...] = ()
    arranged: bool = False


_MODULES: dict[type | str, Rule] = {}
_FUNCTIONS: dict[Any, Rule] = {}
_METHODS: dict[str, Rule] = {}
_METHODS_THAT_MATTER = ("forward", "_conv_forward", "_output_padding")


def register_rule(
    target: type[nn.Module] | str | Callable[..., Any],
    *more: type[nn.Module] | str | Callable[..., Any],
    kind: Kind = "elementwise",
    channels: Callable[[Any], tuple[int, int, bool]] | None = None,
    rest: tuple[str, ...] = (),
    arranged: bool = False,
) -> Callable[[RuleFunction], RuleFunction]:
    """Teach the converter a layer or a function of yours.

    The rule of a layer receives the module (in evaluation mode) and the ``Affine`` value of its input, and
    returns the value of its output; whatever isn't exact raises ``unbranch.Inexact("reason")``. A class may
    be given by its qualified name, so that its library needn't be installed. A subclass that overrides
    ``forward`` does not inherit a rule. A rule that only uses the value's methods, and no attribute of it, may be
    ``arranged``: it then takes values that were transposed or flattened, too.

    Example:
        >>> import torch, unbranch as ub
        >>> class Gain(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.log = torch.nn.Parameter(torch.zeros(channels))
        ...     def forward(self, x):
        ...         return x * self.log.exp()[:, None, None]
        >>> @ub.register_rule(Gain, channels=lambda m: (len(m.log), 2, False))
        ... def gain(module, x):
        ...     return x.scaled(module.log.exp())
    """

    def decorate(function: RuleFunction) -> RuleFunction:
        rule = Rule(function, kind, channels, rest, arranged)
        for one in (target, *more):
            if isinstance(one, str) or (isinstance(one, type) and issubclass(one, nn.Module)):
                _MODULES[one] = rule
            else:
                _FUNCTIONS[one] = rule
        return function

    return decorate


def register_method(
    *names: str, kind: Kind = "elementwise", arranged: bool = False
) -> Callable[[RuleFunction], RuleFunction]:
    """A rule for ``tensor.name(...)``."""

    def decorate(function: RuleFunction) -> RuleFunction:
        for name in names:
            _METHODS[name] = Rule(function, kind, arranged=arranged)
        return function

    return decorate


def rule_of_module(module: nn.Module) -> Rule | None:
    """The rule of a module's class, or of a base whose ``forward`` it didn't change (parametrizations don't)."""
    for base in type(module).__mro__:
        rule = _MODULES.get(base) or _MODULES.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            same = all(getattr(type(module), name, None) is getattr(base, name, None) for name in _METHODS_THAT_MATTER)
            return rule if same else None
    return None


def rule_of_base(module: nn.Module) -> Rule | None:
    """The rule of the nearest base that has one, whatever the module's own forward does: it tells what goes in."""
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
    """Registered Python functions that tracing must not enter."""
    return tuple(f for f in _FUNCTIONS if hasattr(f, "__code__") and not (f.__module__ or "").startswith("torch"))


__all__ = ["Affine", "Rule", "register_method", "register_rule", "rule_of_function", "rule_of_method", "rule_of_module"]
