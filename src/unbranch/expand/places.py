"""Where a block can be put into a network: its convolutions, the norms behind them, and why some must be left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from unbranch.blocks import BranchedConv
from unbranch.collapse.rules import rule_of_module
from unbranch.collapse.shadow import has_hooks, shadow_of
from unbranch.collapse.trace import Trace, traces_of


@dataclass(frozen=True)
class Place:
    """A convolution by its path, and the batch norm that alone reads it, if there is one."""

    path: str
    norm: str | None


def convolutions(network: nn.Module) -> dict[str, Any]:
    """Every convolution by its path."""
    return {path: m for path, m in network.named_modules() if isinstance(m, _ConvNd)}


def norms_behind(network: nn.Module) -> dict[str, str]:
    """For each convolution that one batch norm reads, and nothing else, the path of that norm.

    Both have to be used once, without hooks and with parameters of their own.
    """
    found: dict[str, str] = {}
    owners = _owners(network)
    for trace in traces_of(shadow_of(network))[0]:
        times = trace.times_called()
        for call in trace.calls:
            conv = trace.full_path(call.path)
            if call.leaf and isinstance(call.module, _ConvNd) and times[id(call.module)] == 1:
                path = _norm_behind(trace, call.output)
                norm = None if path is None else network.get_submodule(trace.full_path(path))
                if path is not None and norm is not None and not has_hooks(norm) and _owns_all(norm, owners):
                    found[conv] = trace.full_path(path)
    return found


def why_left(network: nn.Module) -> dict[str, str]:
    """Convolutions that no block can take the place of, by path, with the reason."""
    owners, inside = _owners(network), _inside_blocks(network)
    return {
        path: reason for path, conv in convolutions(network).items() if (reason := _reason(path, conv, owners, inside))
    }


def is_norm(module: Any) -> bool:
    """Whether a module is a batch norm with statistics, or ends in nothing but one and an activation."""
    return isinstance(getattr(module, "running_var", None), Tensor) and rule_of_module(module) is not None


def _reason(path: str, conv: Any, owners: Counter[int], inside: set[str]) -> str | None:
    if path in inside:
        return "it is a branch of a block"
    if isinstance(conv, _ConvTransposeNd):
        return "it is a transposed convolution"
    if rule_of_module(conv) is None or hasattr(conv, "parametrizations") or conv._forward_pre_hooks:
        return f"its class {type(conv).__name__} does more than convolve with its weight"
    if is_lazy(conv.weight):
        return "its parameters aren't initialised yet"
    if has_hooks(conv):
        return "it has a hook, which would be lost"
    return None if _owns_all(conv, owners) else "it shares its weights with another module"


def _norm_behind(trace: Trace, node: Any) -> str | None:
    """Path of the norm that alone reads a value, identities between them passed over."""
    while isinstance(node, fx.Node):
        users = [u for u in node.users if u not in trace.checks]
        if len(users) != 1 or users[0].op != "call_module":
            return None
        (node,) = users
        module = trace.module.get_submodule(str(node.target))
        if is_norm(module) and trace.times_called()[id(module)] <= 1:
            return str(node.target)
        if type(module) is not nn.Identity:
            return None
    return None


def _inside_blocks(network: nn.Module) -> set[str]:
    blocks = [path for path, m in network.named_modules() if isinstance(m, BranchedConv)]
    return {path for path in convolutions(network) if any(path.startswith(f"{b}." if b else "") for b in blocks)}


def _owners(network: nn.Module) -> Counter[int]:
    """How many modules hold each parameter and buffer, by id."""
    return Counter(
        id(t) for m in network.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None
    )


def _owns_all(module: nn.Module, owners: Counter[int]) -> bool:
    return all(owners[id(t)] == 1 for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
